"""Any loss, reordering, duplication, corruption: every RPC ends in one right delivery or a clear error."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtstack.nic.impairments import ImpairmentRates
from smtstack.transport.events import Failed, Reason, Request, Response
from smtstack.transport.params import TransportParams
from tests.rig import Rig, answer

#: Around the borders of packets, records and segments of the three profiles at MTU 1500.
BORDERS = (1, 2, 64, 1390, 1391, 1392, 1407, 1408, 1417, 1418, 1419, 1420, 1440, 1441, 2827, 8490, 8491, 8492,
           8617, 8618, 8619, 8640, 8641, 17236, 17237, 30_000)
sizes = st.one_of(st.sampled_from(BORDERS), st.integers(1, 40_000))
shares = st.floats(0, 0.3, allow_nan=False)


def content(number: int, size: int) -> bytes:
    """Bytes that differ for every number and do not repeat at packet distance."""
    block = hashlib.sha256(b"%d" % number).digest()
    return (number.to_bytes(4, "big") + block * (size // 32 + 1))[:max(size, 4)]


def rates(drop: float, duplicate: float, reorder: float, corrupt: float = 0.0) -> ImpairmentRates:
    return ImpairmentRates(drop=drop, duplicate=duplicate, reorder=reorder, corrupt=corrupt,
                           reorder_ns=40_000, jitter_ns=3_000)


@given(profile=st.sampled_from(["smt", "homa", "linux", "upstream"]), offload=st.booleans(),
       asks=st.lists(st.tuples(sizes, st.booleans()), min_size=1, max_size=6),
       drop=shares, duplicate=shares, reorder=shares, seed=st.integers(0, 2**32), incast=st.integers(0, 2))
@example(profile="smt", offload=True, asks=[(40_000, True)] * 3, drop=0.3, duplicate=0.3, reorder=0.3, seed=7,
         incast=0)
@example(profile="smt", offload=True, asks=[(40_000, True)] * 3, drop=0.3, duplicate=0.3, reorder=0.3, seed=7,
         incast=1)
def test_loss_reorder_duplication(profile: str, offload: bool, asks: list[tuple[int, bool]], drop: float,
                                  duplicate: float, reorder: float, seed: int, incast: int) -> None:
    params = TransportParams(incast_threshold=incast if profile in ("smt", "homa") else 0,
                             grant_increment=(1, 2_000, 5_000)[seed % 3])
    rig = Rig(profile, params, offload, rates(drop, duplicate, reorder), seed)
    for number, (size, from_client) in enumerate(asks):
        # In the module's profile a socket has one role: its keys are per role, not per direction.
        rig.request(content(number, size), from_client or profile == "linux")
    rig.run()
    good = rig.answered()
    rig.assert_empty()
    if drop == 0:
        assert good == len(asks)
    for events in rig.outcomes.values():
        event = events[0]
        assert isinstance(event, Response) or (isinstance(event, Failed) and event.reason is Reason.TIMEOUT)


@given(offload=st.booleans(), asks=st.lists(st.tuples(sizes, st.booleans()), min_size=1, max_size=5),
       drop=st.floats(0, 0.1), corrupt=st.floats(0.01, 0.3), reorder=shares, seed=st.integers(0, 2**32),
       overlay=st.booleans())
def test_bit_corruption(offload: bool, asks: list[tuple[int, bool]], drop: float, corrupt: float,
                        reorder: float, seed: int, overlay: bool) -> None:
    rig = Rig("smt", None, offload, rates(drop, 0.05, reorder, corrupt), seed, overlay=overlay)
    for number, (size, from_client) in enumerate(asks):
        rig.request(content(number, size), from_client)
    rig.run()
    rig.answered()
    rig.assert_empty()
    for events in rig.outcomes.values():
        event = events[0]
        assert isinstance(event, Response) or (isinstance(event, Failed) and event.reason is Reason.TIMEOUT)


@pytest.mark.parametrize("profile", ["smt", "homa", "linux", "upstream"])
@pytest.mark.parametrize("drop", [0.0, 0.05, 0.15])
def test_most_rpcs_survive_loss(profile: str, drop: float) -> None:
    """Recovery really recovers: with a test that accepts errors, an engine that always fails would pass."""
    rig = Rig(profile, None, False, rates(drop, 0.02, 0.1), seed=11)
    for number in range(60):
        rig.request(content(number, 200 * number + 1))
    rig.run()
    assert rig.answered() >= (60 if drop < 0.1 else 54)
    rig.assert_empty()
    if drop:
        assert rig.client.endpoint.counters.resends_sent > 0
        assert rig.client.endpoint.counters.packets_resent > 0


def test_dead_peer_is_a_clear_timeout() -> None:
    rig = Rig("smt", tamper=lambda from_client, frame: [] if from_client else [frame])
    rpc = rig.request(b"anybody there?")
    rig.run()
    event, = rig.outcomes[rpc]
    assert isinstance(event, Failed)
    assert event.reason is Reason.TIMEOUT
    params = TransportParams()
    ticks = params.resend_ticks + params.timeout_resends * params.resend_interval
    assert rig.now == ticks * params.tick_ns
    rig.assert_empty()


def test_server_gone_in_mid_message() -> None:
    heard = 0

    def dies(from_client: bool, frame: bytes) -> list[bytes]:
        nonlocal heard
        heard += from_client
        return [frame] if heard < 20 else []

    rig = Rig("smt", tamper=dies)
    rpc = rig.request(content(1, 200_000))
    rig.run()
    assert isinstance(rig.outcomes[rpc][0], Failed)
    rig.assert_empty()


@pytest.mark.parametrize("profile", ["smt", "homa", "linux", "upstream"])
def test_an_end_that_is_lost_again_and_again_arrives_at_last(profile: str) -> None:
    """Longer than it takes to doubt what is there: after that, too, all that is missing must be asked for."""
    lost = 0

    def path(from_client: bool, frame: bytes) -> list[bytes]:
        nonlocal lost
        # The response's second packet, of two: shorter than a full one, longer than any control packet.
        if not from_client and 150 < len(frame) < 1400 and rig.now < 60_000_000:
            lost += 1
            return []
        return [frame]

    # A server that is asked does not ask for acknowledgements, which would help.
    rig = Rig(profile, TransportParams(timeout_resends=30, request_ack_ticks=20), tamper=path)
    rig.request(content(1, 2000))
    rig.run()
    assert lost > 3
    assert rig.answered() == 1
    rig.assert_empty()


def test_abort_frees_both_ends() -> None:
    rig = Rig("smt")
    rpc = rig.request(content(1, 100_000))
    for _ in range(10):
        rig.step()
    rig.client.endpoint.abort(rpc)
    rig.run()
    event, = rig.outcomes[rpc]
    assert isinstance(event, Failed)
    assert event.reason is Reason.ABORTED
    rig.assert_empty()


def test_slow_application_is_no_timeout() -> None:
    """BUSY keeps a client waiting as long as the server lives."""
    rig = Rig("smt")
    endpoint = rig.server.endpoint
    held: list[Request] = []
    rig.request(b"think hard")
    rig._serve = lambda side: None  # type: ignore[method-assign]
    while rig.now < 400_000_000:
        rig.step()
        if isinstance(event := endpoint.next_event(), Request):
            held.append(event)
    assert endpoint.counters.busy_sent >= 20
    request, = held
    assert endpoint.send_reply(request.rpc, answer(request.data), rig.now)
    del rig._serve
    rig.run()
    assert [type(e) for e, in rig.outcomes.values()] == [Response]
    rig.assert_empty()


@pytest.mark.parametrize("profile", ["smt", "homa", "linux", "upstream"])
def test_a_retransmission_is_the_same_bytes(profile: str) -> None:
    """Payload by (direction, sender, segment, packet): one value each, however often it travelled."""
    from smtstack.wire import frame as wire_frame
    from smtstack.wire import homa

    rig = Rig(profile, None, True, rates(0.2, 0.1, 0.2), seed=5)
    for number in range(12):
        rig.request(content(number, 9000 * number + 10))
    rig.run()
    seen: dict[tuple[object, ...], bytes] = {}
    again = 0
    for from_client, frame in rig.sent_frames:
        ip, packet, payload = wire_frame.parse_untrusted(frame, homa.FORMATS[profile])
        if isinstance(packet, homa.Data):
            key = (from_client, packet.sender_id, packet.segment_offset,
                   ip.identification + packet.packet_index)
            again += key in seen
            assert seen.setdefault(key, payload) == payload
    assert again > 10
