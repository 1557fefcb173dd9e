"""Recorded conversations with the module that once went wrong, and what our engine makes of them now."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from smtstack.transport.params import SOFTWARE, TransportParams
from smtstack.wire import homa
from tests.module_cases import DATA, SMTNET
from tests.performing import Performance, perform
from tests.replay import Packet, Recording, load, packet, plan

_MS = 1_000_000


def capture(name: str, sealed: bool = True) -> Recording:
    return load(DATA / f"{name}.pcap.xz", SMTNET, sealed)


def sent(recording: Recording, done: Performance, kind: type[homa.Packet]) -> list[Packet]:
    """What today's engine sent of this type."""
    found = [packet(at, frame, recording.sealed) for at, frame in done.sent]
    return [p for p in found if isinstance(p.header, kind)]


def test_a_response_is_kept_until_its_client_has_it() -> None:
    """Four were forgotten after five NEED_ACKs; each RESEND for them was answered by UNKNOWN."""
    recording = capture("d1a-server-forgets-response")
    done = perform(plan(recording, True, {}))
    for rpc in (75702, 75740, 75752, 75786):
        asked = [p.at for p in recording.theirs if p.rpc == rpc and isinstance(p.header, homa.Resend)]
        again = [p.at for p in sent(recording, done, homa.Data)
                 if p.rpc == rpc and isinstance(p.header, homa.Data) and p.header.retransmit]
        assert len(asked) > 5
        assert again == asked
    arrived = {p.rpc: p.at for p in reversed(recording.theirs) if isinstance(p.header, homa.Data)}
    assert all(p.at < arrived[p.rpc] for p in sent(recording, done, homa.Unknown))
    assert len(done.delivered) == 100


def test_a_client_waits_while_the_host_lives() -> None:
    """It gave up after 0.52 s; the module asked for what it missed at 1.24 s."""
    recording = capture("d1b-client-gives-up")
    done = perform(plan(recording, True, {}))
    (late,) = [p for p in recording.theirs if isinstance(p.header, homa.Resend)]
    assert isinstance(late.header, homa.Resend)
    (again,) = [p for p in sent(recording, done, homa.Data)
                if isinstance(p.header, homa.Data) and p.header.retransmit]
    assert again.at == late.at
    assert done.failed == []
    assert sent(recording, done, homa.Unknown) == []


def test_a_module_that_was_loaded_anew_is_not_answered_for_ever() -> None:
    """Request 2 of port 32769 was delivered once: it is asked for no more, and its RESENDs bring nothing."""
    recording = capture("d3-module-reloaded-ids-again")
    request = recording.theirs[0]
    before = -900 * _MS
    acked = homa.Ack(request.header.sport, request.header.dport, request.rpc).pack()
    ip = replace(request.ip, total_length=20 + len(acked)).pack()
    lived = plan(recording, True, {})
    port = request.header.dport
    earlier = [(before, port, request.frame), (before + 5 * _MS, port, request.frame[:14] + ip + acked)]
    done = perform(replace(lived, ports=(port,), frames=earlier + lived.frames))
    assert [at for at, _rpc, _data in done.delivered] == [before]
    now = [packet(at, frame, True) for at, frame in done.sent if at >= 0]
    # It learns that the module's cutoffs are unknown once more, and nothing else.
    assert {type(p.header) for p in now} <= {homa.Cutoffs}
    assert done.left["replays"] == sum(isinstance(p.header, homa.Data) for p in recording.theirs)


def test_plain_homa_at_a_server_with_keys_costs_a_resend_an_interval() -> None:
    recording = capture("d4-plain-homa-client-resend-storm", sealed=False)
    done = perform(replace(plan(recording, True, {}), sealed=True))
    times = [p.at for p in sent(recording, done, homa.Resend)]
    assert len(times) > 3
    assert min(b - a for a, b in pairwise(times)) >= (SOFTWARE.resend_interval - 1) * _MS
    assert len(times) < recording.packets[-1].at // (SOFTWARE.resend_interval * _MS)
    assert (done.delivered, sent(recording, done, homa.Data)) == ([], [])
    assert done.left["records_failed"] > 100


def test_the_same_client_is_answered_without_keys() -> None:
    recording = capture("d4-plain-homa-client-resend-storm", sealed=False)
    done = perform(plan(recording, True, {}))
    assert [(at, rpc, len(data)) for at, rpc, data in done.delivered] == [(0, 76130, 64)]
    assert sent(recording, done, homa.Resend) == []
    first, *_again = sent(recording, done, homa.Data)
    assert (first.at, first.payload[20:]) == (0, done.delivered[0][2])


def test_a_record_at_a_server_without_keys_is_no_message() -> None:
    recording = capture("d1c-8192-one-rpc")
    done = perform(replace(plan(recording, True, {}), sealed=False))
    assert done.delivered == []
    assert sent(recording, done, homa.Data) == []
    assert done.left["beyond_message"] > 0


def test_parameters_of_the_cases_are_those_of_the_commands() -> None:
    """The engine is replayed with what smtnet serve and call have."""
    assert (SOFTWARE.window, SOFTWARE.unsched_bytes, SOFTWARE.request_ack_ticks) == (200_000, 60_000, 20)
    assert TransportParams().resend_interval == SOFTWARE.resend_interval
