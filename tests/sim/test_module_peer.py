"""Our engine against the kernel module's timing: RESENDs rationed by host, NEED_ACKs, acks that ride anywhere."""

from __future__ import annotations

from itertools import pairwise

import pytest

from smtstack.transport.events import Response
from smtstack.transport.params import SOFTWARE, TransportParams
from smtstack.wire import homa
from tests.module_peer import TICK_NS, Lab, answer

RPCS = 150
DEFAULTS = {"module": TransportParams(), "software": SOFTWARE}


def requests(size: int) -> list[bytes]:
    return [bytes([n & 0xFF, n >> 8]) * (size // 2) for n in range(RPCS)]


@pytest.mark.parametrize("under_way", [1, 4, 16, 64])
@pytest.mark.parametrize("size", [64, 8192])
@pytest.mark.parametrize("params", DEFAULTS)
def test_module_asks(params: str, size: int, under_way: int) -> None:
    lab = Lab(0.1, seed=under_way * 1000 + size, params=DEFAULTS[params])
    lab.module.ask(requests(size), under_way)
    lab.run_until(lambda: len(lab.module.outcomes) == RPCS)
    right = sum(data == answer(lab.module.requests[i]) for i, data in lab.module.outcomes.items())
    assert right == RPCS
    assert len(lab.delivered) == len(set(lab.delivered)) == RPCS
    lab.run_until(lambda: lab.ours.endpoint.snapshot()["server_rpcs"] == 0)


@pytest.mark.parametrize("under_way", [1, 4, 16, 64])
@pytest.mark.parametrize("size", [64, 8192])
@pytest.mark.parametrize("params", DEFAULTS)
def test_module_answers(params: str, size: int, under_way: int) -> None:
    lab = Lab(0.1, seed=under_way * 2000 + size, params=DEFAULTS[params])
    todo = requests(size)
    asked = 0

    def more() -> bool:
        nonlocal asked
        while asked < RPCS and asked - len(lab.events) < under_way:
            lab.ask(todo[asked])
            asked += 1
        return len(lab.events) == RPCS

    lab.run_until(more)
    assert lab.ended() == (RPCS, 0)
    assert {e.data for e in lab.events if isinstance(e, Response)} == {answer(data) for data in todo}


@pytest.mark.parametrize("clear", [False, True], ids=["records", "in clear"])
@pytest.mark.parametrize("size", [1, 1392, 1420, 8492, 30_000])
def test_other_segments_than_the_modules_and_no_keys(clear: bool, size: int) -> None:
    """A record a packet here, six packets there; both as plain Homa; one in five frames lost."""
    lab = Lab(0.2, seed=size, params=TransportParams(max_gso_size=0), clear=clear)
    asked = [bytes([n]) * size for n in range(8)]
    lab.module.ask(asked, 4)
    for data in asked:
        lab.ask(data)
    lab.run_until(lambda: len(lab.module.outcomes) == len(lab.events) == 8)
    assert lab.module.outcomes == {i: answer(data) for i, data in lab.module.requests.items()}
    assert {e.data for e in lab.events if isinstance(e, Response)} == {answer(data) for data in asked}
    if size > 1000:
        assert any(asked[3][:1000] in frame for _at, frame in lab.to_module) is clear
    lab.run_until(lambda: lab.ours.endpoint.snapshot()["rpcs"] == 0)


def test_acknowledgements_of_all_its_sockets_ride_on_any_packet() -> None:
    lab = Lab(0.0, seed=1, params=TransportParams(request_ack_ticks=1000))
    lab.module.ask(requests(64)[:40], 4)
    lab.run_until(lambda: len(lab.module.outcomes) == 40)
    assert lab.module.foreign_acks > 20
    # What waits in the module's list for a ride, and nothing else, is still here.
    assert lab.ours.endpoint.snapshot()["server_rpcs"] == len(lab.module.acks) <= homa.MAX_ACKS
    assert lab.sent(homa.NeedAck) == []


def test_a_module_that_starts_over_fails_clearly() -> None:
    """Id 2 from port 32769 once more: delivered before, so there is silence, and no request comes twice."""
    lab = Lab(0.0, seed=1)
    lab.module.ask([b"first"], 1)
    lab.run_until(lambda: len(lab.module.outcomes) == 1)
    lab.run_until(lambda: lab.ours.endpoint.snapshot()["server_rpcs"] == 0)
    lab.reload_module()
    began = lab.now
    lab.module.ask([b"other"], 1)
    lab.run_until(lambda: len(lab.module.outcomes) == 1)
    assert lab.module.outcomes == {2: None}
    assert lab.now - began < 100 * 1_000_000
    assert lab.delivered == [b"first"]
    assert lab.sent(homa.Unknown) == []
    assert lab.module.sent_types[homa.DATA] == 1


@pytest.mark.parametrize("params", DEFAULTS)
def test_records_that_never_authenticate_cost_a_resend_an_interval(params: str) -> None:
    lab = Lab(0.0, seed=1, params=DEFAULTS[params], sealed=False)
    lab.module.ask([b"plain" * 10, b"plain" * 400], 2)
    lab.run_until(lambda: lab.now > 15_000_000_000)
    interval = TransportParams().resend_interval
    # All ranges of a round at once; time in ticks.
    ticks: dict[int, list[int]] = {}
    for at, packet in lab.sent(homa.Resend):
        times = ticks.setdefault(packet.sender_id, [])
        if at // TICK_NS not in times:
            times.append(at // TICK_NS)
    assert len(ticks) == 2
    for times in ticks.values():
        assert len(times) > 4
        assert min(b - a for a, b in pairwise(times)) >= interval
    assert lab.delivered == []
    lab.module.rpcs.clear()
    lab.run_until(lambda: lab.ours.endpoint.snapshot()["server_rpcs"] == 0)


def test_what_never_authenticates_is_dropped_though_its_host_lives() -> None:
    lab = Lab(0.0, seed=1)
    lab.spoil = lambda frame: frame[:-1] + bytes([frame[-1] ^ 1]) if len(frame) > 500 else frame
    lab.module.ask([b"spoiled" * 100, *requests(64)], 2)
    counters = lab.ours.endpoint.counters
    lab.run_until(lambda: counters.timeouts > 0)
    assert lab.now < 100 * TICK_NS
    assert len(lab.delivered) > 100
    lab.run_until(lambda: len(lab.delivered) == RPCS)
