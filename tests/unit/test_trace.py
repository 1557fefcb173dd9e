"""The engine's trace: what is told in which order and why, that times add up, and that off it costs nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtstack.capture import ladder, qlog
from smtstack.capture.qlog import TraceRecord
from smtstack.capture.traces import APP, DOUBT, GRANT, PHASES, QUEUE, SESSION, RpcTrace, by_rpc, handshakes, table
from smtstack.crypto.keys import demo_keys
from smtstack.nic.impairments import ImpairmentRates
from smtstack.sim.host import SimEndpoint
from smtstack.sim.link import LinkParams
from smtstack.sim.network import Network
from smtstack.transport import trace
from smtstack.transport.events import Event, Request
from smtstack.transport.params import TransportParams
from smtstack.transport.trace import Trace, TraceEvent
from smtstack.wire import homa
from smtstack.wire.frame import PAYLOAD_AT, TYPE_AT
from tests.fake_negotiator import Fake
from tests.pair import CLIENT, CLIENT_PORT, SERVER, SERVER_PORT, Pair, pattern
from tests.recorder import Recorder
from tests.rig import Rig

C_END, S_END = "10.0.0.1:32768", "10.0.0.2:2000"


def traced(pair: Pair) -> tuple[Recorder, Recorder]:
    """A recorder at each end."""
    client, server = Recorder(), Recorder()
    pair.client.endpoint.trace_to(client)
    pair.server.endpoint.trace_to(server)
    return client, server


def records(client: Recorder, server: Recorder) -> list[TraceRecord]:
    return [TraceRecord(C_END, events=client.events), TraceRecord(S_END, events=server.events)]


def lose(*numbers: int) -> Callable[[bytes], list[bytes]]:
    """A wire that loses the DATA packets with these numbers, counted from 0."""
    seen = 0

    def wire(frame: bytes) -> list[bytes]:
        nonlocal seen
        if frame[TYPE_AT] != homa.DATA:
            return [frame]
        seen += 1
        return [] if seen - 1 in numbers else [frame]

    return wire


def test_story_of_a_request_that_lost_its_first_packet():
    pair = Pair(wire=lose(0))
    client, server = traced(pair)
    pair.request(pattern(3000))
    pair.run(settle=True)
    pair.check()
    request = [e for e in client.events if e.message == trace.REQUEST]
    assert [e.name for e in request] == [trace.QUEUED, trace.SENT, trace.RESENT, trace.SENT]
    queued, sent, resent, again = request
    assert (queued.time, queued.length, queued.total) == (0, 3022, 3022)
    assert (sent.offset, sent.length) == (0, 3022)
    assert (resent.offset, resent.length, resent.count, resent.why) == (0, 1440, 1, "RESEND")
    assert (again.offset, again.length) == (0, 1440)
    assert ", again, " in again.text
    theirs = [e for e in server.events if e.message == trace.REQUEST]
    assert [e.name for e in theirs if e.name != trace.RECEIVED] == [trace.DOUBTED, trace.OPENED, trace.DELIVERED]
    doubted = next(e for e in theirs if e.name == trace.DOUBTED)
    assert (doubted.offset, doubted.length, doubted.count, doubted.why) == (0, 1440, 1, "silence")
    assert doubted.time == pair.client.endpoint.params.resend_ticks * pair.client.endpoint.params.tick_ns
    assert client.events[-1].time >= doubted.time
    # The client has its response, the server the acknowledgement it had to ask for.
    ends = [e for e in client.events if e.name in (trace.DELIVERED, trace.FREED)]
    assert [(e.name, e.why) for e in ends] == [(trace.DELIVERED, ""), (trace.FREED, "its response is here")]
    assert (server.events[-1].name, server.events[-1].why) == (trace.FREED, "acknowledged")
    assert {(e.rpc, e.client) for e in client.events} == {(2, True)}
    assert {(e.rpc, e.client) for e in server.events} == {(2, False)}


def test_grants_pacer_and_what_waits_for_them():
    rig = Rig()
    client, server = Recorder(), Recorder()
    rig.client.endpoint.trace_to(client)
    rig.server.endpoint.trace_to(server)
    rig.request(pattern(60_000))
    rig.run()
    why = [e.why for e in client.events if e.name == trace.BLOCKED and e.message == trace.REQUEST]
    assert trace.GRANT in why
    assert trace.PACER in why
    given_ = [e.length for e in server.events if e.name == trace.GRANTED and e.message == trace.REQUEST]
    heard = [e.length for e in client.events if e.name == trace.GRANTED and e.message == trace.REQUEST]
    assert given_ == heard == sorted(given_)
    assert given_[-1] == 60_000 + 22 * 7


def test_a_message_that_waits_is_said_once():
    """Polling asks again and again; a trace of it must not grow with that."""
    pair = Pair()
    client, _server = traced(pair)
    pair.request(pattern(60_000))
    pair.client.post(0)
    before = len(client.events)
    for _ in range(100):
        pair.client.endpoint.poll_transmit(0)
    assert len(client.events) == before


def test_failure_tells_why():
    pair = Pair(wire=lambda _frame: [])
    client, _server = traced(pair)
    pair.request(b"?")
    pair.run(settle=True)
    assert len(pair.failed) == 1
    assert [(e.name, e.why) for e in client.events[-2:]] == [
        (trace.FREED, "given up after silence"), (trace.FAILED, "the peer stopped answering")]
    assert client.names().count(trace.DOUBTED) > 3
    (rpc,) = by_rpc([TraceRecord(C_END, events=client.events)])
    assert rpc.outcome() == "failed: the peer stopped answering"
    assert sum(rpc.phases().values()) == client.events[-1].time


def test_aborted():
    pair = Pair()
    client, _server = traced(pair)
    pair.client.endpoint.abort(pair.request(b"?"))
    pair.exchange()
    assert [(e.why) for e in client.events if e.name in (trace.FREED, trace.FAILED)] == [
        "aborted", "aborted by the application"]


def test_forged_records_are_said_to_have_failed():
    hit = True

    def wire(frame: bytes) -> list[bytes]:
        nonlocal hit
        if hit and frame[TYPE_AT] == homa.DATA and len(frame) > 1000:
            hit = False
            return [frame[:100] + bytes((frame[100] ^ 1,)) + frame[101:]]
        return [frame]

    pair = Pair(wire=wire)
    _client, server = traced(pair)
    pair.request(pattern(5000))
    pair.run()
    pair.check()
    (failed,) = [e for e in server.events if e.name == trace.OPENED and e.why]
    assert (failed.why, failed.count) == ("failed", 1)
    assert "not authentic" in [e.why for e in server.events if e.name == trace.DOUBTED]


@pytest.mark.parametrize("profile", ["smt", "homa", "linux"])
def test_every_profile(profile):
    pair = Pair(profile, wire=lose(1, 4))
    client, server = traced(pair)
    for size in (1, 3000, 30_000):
        pair.request(pattern(size, size))
    pair.run(settle=True)
    pair.check()
    assert client.names().count(trace.DELIVERED) == server.names().count(trace.DELIVERED) == 3
    assert client.names().count(trace.FREED) == server.names().count(trace.FREED) == 3
    assert (trace.OPENED in client.names()) == (profile != "homa")
    rpcs = by_rpc(records(client, server))
    assert [rpc.outcome() for rpc in rpcs] == ["answered"] * 3
    drawn = [rung for rpc in rpcs for rung in ladder.rungs(rpc)]
    bytes_lost = sum(r.length - sum(e.length for e in r.arrived) for r in drawn if r.packet and r.length > 0)
    data = [frame for frame in pair.frames if frame[TYPE_AT] == homa.DATA]
    assert bytes_lost == sum(len(data[n]) - PAYLOAD_AT for n in (1, 4))


@settings(max_examples=15, deadline=None)
@given(profile=st.sampled_from(["smt", "homa", "linux"]),
       sizes=st.lists(st.integers(4, 40_000), min_size=1, max_size=4), drop=st.floats(0, 0.3),
       seed=st.integers(0, 2**32))
def test_whatever_is_lost_times_add_up_and_files_say_the_same(profile: str, sizes: list[int], drop: float,
                                                              seed: int) -> None:
    rig = Rig(profile, rates=ImpairmentRates(drop=drop, reorder=drop, jitter_ns=3000), seed=seed)
    ends = [(side.endpoint, Recorder()) for side in (rig.client, rig.server)]
    for endpoint, recorder in ends:
        endpoint.trace_to(recorder)
    for number, size in enumerate(sizes):
        rig.request(number.to_bytes(4, "big") + pattern(size, number))
    rig.run()
    files = [read(write(endpoint.ip, endpoint.port, recorder.events)) for endpoint, recorder in ends]
    for record, (_endpoint, recorder) in zip(files, ends, strict=True):
        assert list(map(repr, record.events)) == list(map(repr, recorder.events))
        assert [e.time for e in recorder.events] == sorted(e.time for e in recorder.events)
    rpcs = by_rpc(files)
    assert len(rpcs) == len(sizes)
    for rpc in rpcs:
        begin, end = rpc.span()
        spent = rpc.phases()
        assert sum(spent.values()) == end - begin
        assert min(spent.values()) >= 0
        assert ladder.as_text(rpc, ladder.rungs(rpc))
    assert sum(rpc.outcome() == "answered" for rpc in rpcs) == rig.answered()


# -- sessions ----------------------------------------------------------------------------------------------------


def test_a_request_that_waits_for_a_session():
    pair = Pair(keys=Fake)
    client, server = traced(pair)
    pair.request(b"hello")
    assert [(e.name, e.why, e.rpc) for e in client.events] == [(trace.QUEUED, trace.SESSION, 0)]
    pair.now = 7000
    pair.client.endpoint.refuse(SERVER, SERVER_PORT, "no, never", pair.now)
    pair.exchange()
    assert [(e.name, e.why) for e in client.events[1:]] == [
        (trace.FREED, "there is no session"), (trace.FAILED, "there is no session with the peer: no, never")]
    (rpc,) = by_rpc(records(client, server))
    assert (rpc.key.rpc, rpc.key.birth) == (0, 1)
    assert rpc.phases()[SESSION] == 7000


def test_the_wait_for_a_session_belongs_to_the_rpc_that_has_an_id_later():
    events = [event(0, trace.QUEUED, 0, birth=5, message="request", total=10, why=trace.SESSION),
              event(500, trace.QUEUED, 8, birth=5, message="request", total=10),
              event(900, trace.DELIVERED, 8, birth=5, message="response", total=10)]
    (rpc,) = by_rpc([TraceRecord(C_END, events=events)])
    assert rpc.key.rpc == 8
    assert {name: ns for name, ns in rpc.phases().items() if ns} == {SESSION: 500, QUEUE: 400}


def test_packets_that_make_the_session_are_in_the_ladder():
    """Whoever is the client on the handshake plane, each packet goes from who sent it."""
    ours = [event(0, trace.QUEUED, 0, birth=1, message="request", total=10, why=trace.SESSION),
            event(10, trace.SENT, 70, message="request", offset=0, length=9, total=9, why="handshake",
                  text="hello"),
            event(40, trace.RECEIVED, 33, client=False, message="request", total=5, why="handshake",
                  text="theirs"),
            event(50, trace.QUEUED, 8, birth=1, message="request", total=10),
            event(60, trace.SENT, 90, message="request", total=9, why="handshake", text="too late")]
    theirs = [event(20, trace.RECEIVED, 70, client=False, message="request", offset=0, length=9, total=9,
                    why="handshake", text="hello")]
    both = [TraceRecord(C_END, events=ours), TraceRecord(S_END, events=theirs)]
    (rpc,) = by_rpc(both)
    rpc.ends = frozenset((True, False))
    # Of their own request to us, the sender's trace says nothing.
    ours[2].ip, ours[2].port = SERVER, SERVER_PORT
    drawn = ladder.rungs(rpc, handshakes(both, rpc))
    assert [(r.time, r.client, r.text) for r in drawn if r.packet] == [(10, True, "hello"), (40, False, "theirs")]
    assert drawn[1].fate() == "+0.0"


def test_a_clock_tells_the_time_of_events_where_there_is_one():
    pair = Pair()
    recorder = Recorder()
    pair.client.endpoint.trace_to(recorder, iter(range(100, 1000)).__next__)
    pair.request(b"?")
    pair.run()
    assert [e.time for e in recorder.events] == list(range(100, 100 + len(recorder.events)))


# -- arithmetic by hand ---------------------------------------------------------------------------------------


def event(time: int, name: str, rpc: int = 2, client: bool = True, **more: object) -> TraceEvent:
    ip, port = (SERVER, SERVER_PORT) if client else (CLIENT, CLIENT_PORT)
    return TraceEvent(time, name, ip, port, rpc, 0, client, **more)  # type: ignore[arg-type]


def test_phases_by_hand():
    q, r = trace.REQUEST, trace.RESPONSE
    client = [event(0, trace.QUEUED, message=q, total=9), event(10, trace.SENT, message=q, total=9),
              event(10, trace.BLOCKED, message=q, total=9, why=trace.GRANT),
              event(40, trace.GRANTED, message=q, total=9), event(45, trace.SENT, message=q, total=9),
              event(50, trace.GRANTED, message=q, total=9),
              event(200, trace.DOUBTED, message=r, offset=0, length=9),
              event(320, trace.DELIVERED, message=r, total=9), event(320, trace.FREED)]
    server = [event(60, trace.RECEIVED, client=False, message=q, total=9),
              event(210, trace.RESENT, client=False, message=r, count=1),
              event(250, trace.RECEIVED, client=False, message=q, total=9),
              event(260, trace.DELIVERED, client=False, message=q, total=9),
              event(290, trace.QUEUED, client=False, message=r, total=9),
              event(300, trace.SENT, client=False, message=r, total=9),
              event(999, trace.FREED, client=False)]
    (rpc,) = by_rpc([TraceRecord(C_END, events=client), TraceRecord(S_END, events=server)])
    assert rpc.span() == (0, 320)
    #  0-10 queue, 10-40 grant, 40-45 queue, 45-60 wire, 60-250 nothing came, then was doubted, 250-260 wire,
    #  260-290 the application, 290-300 queue, 300-320 wire
    assert rpc.phases() == {SESSION: 0, QUEUE: 25, GRANT: 30, "wire": 45, DOUBT: 190, APP: 30}


# -- off ------------------------------------------------------------------------------------------------------


@pytest.mark.interpreted("compiled functions are no calls to a profiler")
def test_off_nothing_of_it_is_called():
    pair = Pair()
    called = []

    def profile(frame: object, what: str, _arg: object) -> None:
        if what == "call" and frame.f_code.co_filename.endswith(("transport/trace.py", "wire/show.py")):  # type: ignore[attr-defined]
            called.append(frame.f_code.co_name)  # type: ignore[attr-defined]

    def one() -> list[str]:
        called.clear()
        sys.setprofile(profile)
        try:
            pair.request(pattern(20_000, len(pair.sent)))
            pair.run()
        finally:
            sys.setprofile(None)
        return list(called)

    assert one() == []
    # The control: on, there is something to see.
    pair.client.endpoint.trace_to(Recorder())
    assert "sent" in one()
    pair.client.endpoint.trace_to(None)
    assert one() == []


def test_on_or_off_the_wire_is_the_same():
    frames = []
    for on in (False, True):
        pair = Pair(wire=lose(0, 7))
        if on:
            traced(pair)
        for size in (10, 5000, 50_000):
            pair.request(pattern(size))
        pair.run(settle=True)
        frames.append(pair.frames)
    assert frames[0] == frames[1]


# -- a full ring -----------------------------------------------------------------------------------------------


def test_a_full_ring_is_told():
    pair = Pair()
    client, _server = traced(pair)
    pair.request(pattern(3000))
    segment = pair.client.endpoint.poll_transmit(0)
    hooks = pair.client.endpoint.trace
    assert segment is not None
    assert isinstance(hooks, Trace)
    hooks.ring_full(segment)
    last = client.events[-1]
    assert (last.name, last.why, last.offset, last.length) == (trace.BLOCKED, trace.RING, 0, 3022)


# -- files ----------------------------------------------------------------------------------------------------


def write(ip: int, port: int, events: list[TraceEvent]) -> bytes:
    return b"".join([qlog.head(ip, port, "smt", "a test", "2026-11-28T00:00:00Z"),
                     *(qlog.encode(ip, port, e) for e in events)])


def read(data: bytes) -> TraceRecord:
    at = 0

    def some(size: int) -> bytes:
        nonlocal at
        at += size
        return data[at - size:at]

    return qlog.read_untrusted(some)


def test_no_key_and_no_plaintext_in_a_file():
    pair = Pair()
    client, server = traced(pair)
    secret = b"a secret that nobody must see."
    pair.request(secret * 500)
    pair.run(settle=True)
    epochs = [keys for side in (pair.client, pair.server)
              for keys in (pair.session(side).own_keys(0), pair.session(side).request_keys(0)) if keys is not None]
    keys = [way.key for epoch in epochs for way in (epoch.tx, epoch.rx)]
    assert len(keys) >= 4
    for record in (write(CLIENT, CLIENT_PORT, client.events), write(SERVER, SERVER_PORT, server.events)):
        for known in (secret[:8], *keys):
            assert known not in record
            assert known.hex().encode() not in record


# -- in a network ---------------------------------------------------------------------------------------------


def test_in_a_simulated_network_arrivals_take_the_time_of_the_link():
    net = Network()
    hosts = [net.add_host(host_delay_ns=2000) for _ in range(2)]
    net.connect(hosts[0], hosts[1], LinkParams(10_000))

    def on_event(here: SimEndpoint, event: Event) -> None:
        if isinstance(event, Request):
            here.send_reply(event.rpc, event.data)

    ends = [host.listen(port, "smt", demo_keys("smt"), on_event, TransportParams())
            for host, port in zip(hosts, (40_000, 2000), strict=True)]
    recorders = [Recorder() for _ in ends]
    for end, recorder in zip(ends, recorders, strict=True):
        end.endpoint.trace_to(recorder)
    ends[0].send_request(hosts[1].ip, 2000, pattern(9000))
    net.run()
    (rpc,) = by_rpc([TraceRecord(where, events=recorder.events) for where, recorder
                     in zip(("10.0.0.1:40000", "10.0.0.2:2000"), recorders, strict=True)])
    for rung in ladder.rungs(rpc):
        if rung.packet:
            assert rung.arrived, rung
            assert all(e.time >= rung.time + 4000 for e in rung.arrived)
    assert rpc.ends == {True, False}
    said = table([rpc]).splitlines()
    assert said[0].split() == ["rpc", "client", "server", "request", "response", "us", *PHASES, "doubts",
                               "outcome"]
    assert said[1].split()[:5] == ["2", "10.0.0.1:40000", "10.0.0.2:2000", "9000", "9000"]
    assert isinstance(rpc, RpcTrace)
