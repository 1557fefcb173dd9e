"""When an RPC is given up, what keeps it, and how much is asked for meanwhile: in virtual time."""

from __future__ import annotations

import pytest

from smtstack.nic.impairments import ImpairmentRates
from smtstack.sim.pair import CLIENT_IP, SERVER_IP, SERVER_PORT, MemoryPair
from smtstack.transport.events import Failed, Reason, Request, Response
from smtstack.transport.params import SOFTWARE, TransportParams, software
from smtstack.wire import frame as wire_frame
from smtstack.wire import homa
from smtstack.wire.ethernet import Ethernet
from smtstack.wire.ipv4 import IPv4
from tests.rig import Rig

MS = 1_000_000
SECOND = 1000 * MS
#: A path slow enough that a second is not a hundred thousand RPCs.
SLOW = ImpairmentRates(delay_ns=2 * MS)
PROFILES = ["smt", "homa", "linux"]


def packets(rig: Rig, kind: type, from_client: bool, profile: str = "smt") -> list[homa.Packet]:
    parsed = [wire_frame.parse_untrusted(frame, homa.FORMATS[profile])[1]
              for side, frame in rig.sent_frames if side is from_client]
    return [packet for packet in parsed if isinstance(packet, kind)]


def control(rig: Rig, packet: homa.Control, to_server: bool, profile: str = "smt", delay: int = 0) -> None:
    src, dst = (CLIENT_IP, SERVER_IP) if to_server else (SERVER_IP, CLIENT_IP)
    body = packet.pack()
    ip = IPv4(src, dst, homa.FORMATS[profile].protocol, 20 + len(body))
    rig.inject(to_server, Ethernet(bytes(6), bytes(6)).pack() + ip.pack() + body, delay)


def about(frame: bytes, rpc_id: int) -> bool:
    return int.from_bytes(frame[54:62], "big") | 1 == rpc_id | 1


# -- how long ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mbps", [None, 10, 20, 100, 1000, 100_000])
def test_real_interfaces_survive_three_seconds_and_notice_in_ten(mbps: int | None) -> None:
    params = software(mbps)
    silence_ns = params.silence_ticks * params.tick_ns
    assert 5 * SECOND <= silence_ns <= 9 * SECOND


@pytest.mark.parametrize("params", [TransportParams(), SOFTWARE, TransportParams(timeout_resends=2)])
def test_a_dead_peer_is_noticed_when_it_was_said(params: TransportParams) -> None:
    rig = Rig("smt", params, tamper=lambda from_client, frame: [])
    rpc = rig.request(b"anybody there?")
    rig.run()
    event, = rig.outcomes[rpc]
    assert isinstance(event, Failed)
    assert (event.reason, event.detail) == (Reason.TIMEOUT, "")
    assert rig.now == params.silence_ticks * params.tick_ns
    # Asked often at first, then less and less: a process that is stopped must not find thousands of RESENDs.
    asked = len(packets(rig, homa.Resend, True))
    assert min(5, params.timeout_resends) <= asked <= 9 + params.silence_ticks // (16 * params.resend_interval)
    rig.assert_empty()


@pytest.mark.parametrize("profile", PROFILES)
def test_a_server_that_is_stopped_for_three_seconds_loses_nothing(profile: str) -> None:
    """All it would have got is lost, which is worse than a stop."""
    def stopped(_from_client: bool, frame: bytes) -> list[bytes]:
        return [] if 3 * MS <= rig.now < 3003 * MS else [frame]

    rig = Rig(profile, SOFTWARE, tamper=stopped, rates=ImpairmentRates(delay_ns=200_000))
    sizes = [1, 64, 1400, 20_000, 300_000]
    for number in range(60):
        rig.request(bytes([number]) * (sizes[number % 5] + number))
        if number % 4 == 3:
            rig.step()
    rig.run()
    assert rig.answered() == 60
    rig.assert_empty()


def test_a_client_that_was_stopped_asks_before_it_gives_up() -> None:
    """Its time ran on while it could not look: that was no silence of the server's."""
    pair = MemoryPair("smt", SOFTWARE)
    pair.request(b"are you there?")
    pair.client.transmit(pair.now)  # lost
    pair.now = 20 * SECOND
    pair.client.endpoint.handle_timeout(pair.now)
    assert pair.client.endpoint.next_event() is None
    assert pair.client.endpoint.counters.resends_sent == 1

    def serve(event: object) -> None:
        assert isinstance(event, Request)
        pair.server.endpoint.send_reply(event.rpc, b"yes", pair.now)

    for _ in range(100):
        if events := pair.step(serve):
            break
    assert [type(event) for event in events] == [Response]


def test_a_client_that_is_stopped_when_much_was_asked_asks_once_more() -> None:
    pair = MemoryPair("smt", SOFTWARE)
    pair.request(b"are you there?")
    endpoint = pair.client.endpoint
    for _ in range(8):
        pair.client.transmit(pair.now)
        pair.now = endpoint.next_timeout() or pair.now
        endpoint.handle_timeout(pair.now)
    asked = endpoint.counters.resends_sent
    assert asked >= 5
    pair.now += 20 * SECOND
    endpoint.handle_timeout(pair.now)
    assert endpoint.next_event() is None
    assert endpoint.counters.resends_sent == asked + 1
    # And if it can look now and still nothing comes, that is the end.
    while endpoint.next_timeout() is not None:
        pair.client.transmit(pair.now)
        pair.now = endpoint.next_timeout() or pair.now
        endpoint.handle_timeout(pair.now)
    assert isinstance(endpoint.next_event(), Failed)


# -- liveness is the host's ----------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_what_is_heard_about_one_rpc_keeps_the_others(profile: str) -> None:
    """Nothing of one RPC gets through for a second, fifteen times what a silent host is given."""
    def path(_from_client: bool, frame: bytes) -> list[bytes]:
        return [] if about(frame, 2) and rig.now < SECOND else [frame]

    rig = Rig(profile, rates=SLOW, tamper=path)
    first = rig.request(b"unlucky")
    assert first.id == 2
    number = 0
    while rig.now < SECOND:
        if len(rig.outcomes) - sum(map(len, rig.outcomes.values())) == 1:
            number += 1
            rig.request(b"lucky %d" % number)
        rig.step()
    rig.run()
    assert rig.answered() == number + 1
    rig.assert_empty()


@pytest.mark.parametrize("profile", PROFILES)
def test_an_rpc_that_gets_no_further_fails_though_its_host_lives(profile: str) -> None:
    params = TransportParams(stalled_ticks=500)
    rig = Rig(profile, params, rates=SLOW, tamper=lambda _c, frame: [] if about(frame, 2) else [frame])
    first = rig.request(b"nobody hears this")
    number = 0
    while not rig.outcomes[first]:
        if len(rig.outcomes) - sum(map(len, rig.outcomes.values())) == 1:
            number += 1
            rig.request(b"well %d" % number)
        rig.step()
    event, = rig.outcomes[first]
    assert isinstance(event, Failed)
    assert event.reason is Reason.TIMEOUT
    assert "lives" in event.detail
    assert 500 * MS <= rig.now <= 520 * MS
    rig.run()
    assert rig.answered() == number
    rig.assert_empty()


# -- responses -----------------------------------------------------------------------------------------------


def deaf(rig: Rig, count: int, size: int = 100) -> None:
    """Requests whose answers arrive, and whose client never acknowledges and never stops asking."""
    for _ in range(count):
        rig.request(bytes(str(len(rig.asked)), "ascii") * size)
        while any(not events for events in rig.outcomes.values()):
            rig.step()


def no_acks(_from_client: bool, frame: bytes) -> list[bytes]:
    return [] if frame[wire_frame.TYPE_AT] == homa.ACK else [frame]


def test_responses_nobody_acknowledges_stay_for_a_bounded_time() -> None:
    rig = Rig("smt", TransportParams(keep_response_ticks=300), rates=SLOW, tamper=no_acks)
    while rig.now < SECOND:
        deaf(rig, 1)
    born = sorted(rpc.heard_tick for peer in rig.server.endpoint._table.peers.values()
                  for rpc in peer.rpcs.values())
    assert born, "they stay while their client lives"
    assert rig.now // MS - born[0] <= 320
    rig.run()
    rig.assert_empty()


@pytest.mark.parametrize("params", [TransportParams(max_kept_bytes_per_host=20_000),
                                    TransportParams(max_kept_bytes=20_000)], ids=["host", "all"])
def test_responses_nobody_acknowledges_stay_within_their_memory(params: TransportParams) -> None:
    rig = Rig("smt", params, tamper=no_acks)
    for _ in range(60):
        deaf(rig, 1, 600)
        for _ in range(10):
            rig.step()
        assert rig.server.endpoint.snapshot()["kept_bytes"] <= 20_000
    assert rig.server.endpoint.counters.responses_dropped > 10
    assert rig.answered() == 60
    rig.run()
    rig.assert_empty()


def test_responses_nobody_acknowledges_make_room_for_new_rpcs() -> None:
    rig = Rig("smt", TransportParams(max_rpcs_per_host=10), tamper=no_acks)
    for _ in range(40):
        deaf(rig, 1)
        for _ in range(10):
            rig.step()
    assert rig.answered() == 40
    assert rig.server.endpoint.counters.no_memory == 0
    assert rig.server.endpoint.counters.responses_dropped > 20


@pytest.mark.parametrize("profile", PROFILES)
def test_an_id_that_was_delivered_and_forgotten_is_answered_with_silence(profile: str) -> None:
    rig = Rig(profile)
    rig.request(b"once")
    rig.run()
    assert rig.answered() == 1
    rig.sent_frames.clear()
    for sender_id in (2, 4):
        control(rig, homa.Resend(rig.client.endpoint.port, SERVER_PORT, sender_id, 0, 100, 7), True, profile)
    rig.run()
    unknown = packets(rig, homa.Unknown, False, profile)
    assert [packet.sender_id for packet in unknown] == [5], "only of what never came"


# -- how much is asked for -----------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_unknown_costs_the_request_once_an_interval(profile: str) -> None:
    rig = Rig(profile, tamper=lambda from_client, frame: [] if from_client else [frame])
    rpc = rig.request(b"u" * 900)
    for number in range(50):
        control(rig, homa.Unknown(SERVER_PORT, rig.client.endpoint.port, rpc.id | 1), False, profile, number * MS)
    while rig.now < 49 * MS:
        rig.step()
    copies = len(packets(rig, homa.Data, True, profile))
    assert 4 <= copies <= 7


@pytest.mark.parametrize("profile", PROFILES)
def test_need_ack_that_overtakes_its_response_costs_nothing(profile: str) -> None:
    rig = Rig(profile, TransportParams(unsched_bytes=60_000))
    rpc = rig.request(b"r" * 20_000)
    need = homa.NeedAck(SERVER_PORT, rig.client.endpoint.port, rpc.id | 1)
    for number in range(100):
        control(rig, need, False, profile, number * 2_000)
    rig.run()
    assert rig.answered() == 1
    assert packets(rig, homa.Resend, True, profile) == []
    assert rig.server.endpoint.counters.packets_resent == 0


@pytest.mark.parametrize("profile", PROFILES)
def test_acknowledgements_of_another_port(profile: str) -> None:
    """Taken where nothing is proven anyway; in profile smt a proof speaks for its own session alone."""
    rig = Rig(profile, TransportParams(request_ack_ticks=1000, max_rpcs_per_host=100))
    server = rig.server.endpoint
    rpc = rig.request(b"mine")
    while not rig.outcomes[rpc]:
        rig.step()
    assert server.snapshot()["server_rpcs"] == 1
    mine = homa.AckEntry(rpc.id, rig.client.endpoint.port, SERVER_PORT)
    proof = bytes(16) if profile == "smt" else b""
    control(rig, homa.Ack(0x9000, SERVER_PORT, 1 << 30, (mine,), proof=proof), True, profile)
    before = rig.now
    while rig.now == before:
        rig.step()
    assert server.snapshot()["server_rpcs"] == (1 if profile == "smt" else 0)
