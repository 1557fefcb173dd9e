"""Sessions made while requests wait: nothing leaves before, nothing in clear, every request ends exactly once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtstack.crypto.keys import EarlySecrets, Endpoints, KeyStore, PlainKeys, TrafficSecrets
from smtstack.crypto.session import NO_KEYS, SessionParams, SmtSession
from smtstack.errors import LocalError
from smtstack.nic.driver import ContextPolicy
from smtstack.transport.endpoint import Endpoint
from smtstack.transport.events import Event, Failed, Reason, Request, Response
from smtstack.transport.params import TransportParams
from smtstack.transport.rpc import Rpc, State
from smtstack.transport.segment import Segment
from smtstack.wire import homa
from smtstack.wire.frame import FLAGS_AT, is_handshake
from tests.fake_negotiator import Fake
from tests.pair import CLIENT, CLIENT_PORT, SERVER, SERVER_PORT, Side

MAX_MESSAGE = 100_000
TICK = TransportParams().tick_ns
FORWARD = Endpoints(CLIENT, CLIENT_PORT, SERVER, SERVER_PORT)
BACK = Endpoints(SERVER, SERVER_PORT, CLIENT, CLIENT_PORT)
SECRET = bytes(range(32))
#: Of 0-RTT sessions: what seals the first flight, and what all else.
EARLY, LATER = bytes(range(32, 64)), bytes(range(64, 96))


def session(ends: Endpoints, secret: bytes = SECRET, key_update_records: int = 0) -> SmtSession:
    params = SessionParams(key_update_records=key_update_records)
    return SmtSession(TrafficSecrets(secret, ends, params.cipher).keys, params)


class Ends:
    """Two endpoints whose sessions the test makes, and a wire it controls."""

    def __init__(self, params: TransportParams | None = None,
                 keys: Callable[[], KeyStore] = Fake, profile: str = "smt") -> None:
        self.fakes: list[KeyStore] = [keys(), keys()]
        policy = ContextPolicy.PER_QUEUE
        self.client = Side(CLIENT, CLIENT_PORT, profile, self.fakes[0], params, None, policy, None)
        self.server = Side(SERVER, SERVER_PORT, profile, self.fakes[1], params, None, policy, None)
        self.now = 0
        self.wire: Callable[[bytes], list[bytes]] = lambda frame: [frame]
        #: Frames by who sent them: the client (True) or the server.
        self.frames: dict[bool, list[bytes]] = {True: [], False: []}
        self.asked: dict[Rpc, bytes] = {}
        self.ended: dict[Rpc, list[Event]] = {}
        self.delivered: list[bytes] = []
        self.requests: list[Request] = []
        self.answers = True

    @property
    def fake(self) -> Fake:
        """The client's negotiator."""
        assert isinstance(self.fakes[0], Fake)
        return self.fakes[0]

    def ask(self, data: bytes, from_client: bool = True) -> Rpc:
        side = self.client if from_client else self.server
        peer = (SERVER, SERVER_PORT) if from_client else (CLIENT, CLIENT_PORT)
        rpc = side.endpoint.send_request(*peer, data, self.now, "cookie")
        assert rpc.cookie == "cookie"
        self.asked[rpc] = data
        self.ended[rpc] = []
        return rpc

    def install(self, at_client: bool, made: SmtSession | None = None, early: bool = False,
                max_message: int = MAX_MESSAGE) -> None:
        side, peer, ends = ((self.client, (SERVER, SERVER_PORT), FORWARD) if at_client else
                            (self.server, (CLIENT, CLIENT_PORT), BACK))
        side.endpoint.install(*peer, made or session(ends), self.now, max_message=max_message, early=early)

    def move(self) -> bool:
        """All frames both ways, once."""
        moved = False
        for side, other in ((self.client, self.server), (self.server, self.client)):
            moved |= side.post(self.now)
            for frame in side.nic.process():
                moved = True
                self.frames[side is self.client].append(frame)
                for arrived in self.wire(frame):
                    other.endpoint.handle_packet(arrived, self.now)
            self.events(side)
            self.events(other)
        return moved

    def events(self, side: Side) -> None:
        while (event := side.endpoint.next_event()) is not None:
            if not isinstance(event, Request):
                self.ended[event.rpc].append(event)
                continue
            self.delivered.append(event.data)
            self.requests.append(event)
            if self.answers:
                side.endpoint.send_reply(event.rpc, event.data[::-1], self.now)

    def run(self, ticks: int = 0) -> None:
        """Until nothing moves and no timer is left; with ``ticks``: for so long."""
        end = self.now + ticks * TICK
        for _step in range(100_000):
            if self.move():
                continue
            due = [t for s in (self.client, self.server) if (t := s.endpoint.next_timeout()) is not None]
            if not due or (ticks and min(due) > end):
                self.now = max(self.now, end)
                return
            self.now = max(self.now + 1, min(due))
            for side in (self.client, self.server):
                side.endpoint.handle_timeout(self.now)
        raise AssertionError("still busy")

    def end_of(self, rpc: Rpc) -> Event:
        event, = self.ended[rpc]
        return event

    def failure(self, rpc: Rpc) -> tuple[Reason, str]:
        event = self.end_of(rpc)
        assert isinstance(event, Failed)
        return event.reason, event.detail

    def empty(self) -> None:
        """Nothing is left at either end."""
        for side in (self.client, self.server):
            state = side.endpoint.snapshot()
            assert not {k: v for k, v in state.items() if v and k != "peers"}, state


# -- waiting -----------------------------------------------------------------------------------------------


def test_requests_wait_and_start_in_order():
    ends = Ends()
    rpcs = [ends.ask(b"request %d" % n) for n in range(5)]
    ends.run(ticks=1000)
    assert ends.fake.wanted == [(SERVER, SERVER_PORT)]
    assert ends.frames[True] == []
    assert {rpc.state for rpc in rpcs} == {State.WAITING}
    assert {rpc.id for rpc in rpcs} == {0}
    assert ends.client.endpoint.snapshot()["rpcs"] == ends.client.endpoint.snapshot()["waiting"] == 5
    ends.install(False)
    ends.install(True)
    ends.run()
    assert [e.data for rpc in rpcs if isinstance(e := ends.end_of(rpc), Response)] == [
        (b"request %d" % n)[::-1] for n in range(5)]
    assert ends.delivered == [b"request %d" % n for n in range(5)]
    assert [rpc.id for rpc in rpcs] == [2, 4, 6, 8, 10]
    ends.empty()


def test_a_refusal_ends_what_waits_and_says_why():
    ends = Ends()
    rpcs = [ends.ask(b"x%d" % n) for n in range(3)]
    ends.client.endpoint.refuse(SERVER, SERVER_PORT, "the certificate expired", ends.now)
    ends.run()
    assert {ends.failure(rpc) for rpc in rpcs} == {(Reason.NO_SESSION, "the certificate expired")}
    assert ends.frames[True] == []
    assert ends.client.endpoint.counters.failed == 3
    ends.empty()
    # The next request begins anew.
    ends.ask(b"again")
    assert ends.fake.wanted == [(SERVER, SERVER_PORT)] * 2


def test_the_answer_may_come_before_want_returns():
    for early in (False, True):
        ends = Ends()
        ends.fake.on_want = lambda e=ends, early=early: e.install(True, early=early)  # type: ignore[misc]
        rpc = ends.ask(b"at once")
        assert rpc.state is State.OUTGOING
    ends = Ends()
    ends.fake.on_want = lambda: ends.client.endpoint.refuse(SERVER, SERVER_PORT, "no certificate", 0)
    rpc = ends.ask(b"never")
    assert rpc.state is State.DEAD
    ends.run()
    assert ends.failure(rpc) == (Reason.NO_SESSION, "no certificate")


def test_a_waiting_request_can_be_aborted():
    ends = Ends()
    first, second = ends.ask(b"first"), ends.ask(b"second")
    ends.client.endpoint.abort(first)
    ends.client.endpoint.abort(first)
    ends.install(False)
    ends.install(True)
    ends.run()
    assert ends.failure(first) == (Reason.ABORTED, "")
    assert isinstance(ends.end_of(second), Response)
    assert ends.delivered == [b"second"]
    ends.empty()


def test_waiting_has_no_deadline_of_its_own_and_starts_with_fresh_timers():
    ends = Ends()
    rpc = ends.ask(b"patient")
    ends.run(ticks=10_000)
    assert ends.ended[rpc] == []
    ends.install(True)  # the server's is still missing
    ends.run(ticks=20)
    ends.install(False)
    ends.run()
    assert isinstance(ends.end_of(rpc), Response)


@pytest.mark.parametrize("size", [0, 1_000_001])
def test_impossible_lengths_are_refused_at_once(size):
    ends = Ends()
    with pytest.raises(LocalError, match="1 to 1000000"):
        ends.client.endpoint.send_request(SERVER, SERVER_PORT, bytes(size), 0)
    assert ends.fake.wanted == []
    ends.empty()


# -- what was agreed on ------------------------------------------------------------------------------------


def test_a_session_has_its_own_longest_message():
    ends = Ends()
    waiting = ends.ask(bytes(2001))
    ends.install(False, max_message=2000)
    ends.install(True, max_message=2000)
    ends.run()
    reason, detail = ends.failure(waiting)
    assert reason is Reason.NOT_SENT
    assert "2001 bytes; 1 to 2000 are possible with 10.0.0.2:2000" in detail
    with pytest.raises(LocalError, match=r"1 to 2000 are possible with 10\.0\.0\.2:2000"):
        ends.ask(bytes(2001))
    assert ends.frames[True] == []
    ends.answers = False
    rpc = ends.ask(bytes(2000))
    ends.run(ticks=5)
    request, = ends.requests
    with pytest.raises(LocalError, match=r"1 to 2000 are possible with 10\.0\.0\.1:32768"):
        ends.server.endpoint.send_reply(request.rpc, bytes(2001), ends.now)
    ends.server.endpoint.send_reply(request.rpc, bytes(2000), ends.now)
    ends.run()
    assert isinstance(ends.end_of(rpc), Response)
    ends.empty()


@pytest.mark.parametrize("size", [500, 3000, 200_000])
def test_a_peer_that_breaks_the_agreement_is_not_believed(size):
    """Longer than agreed, whole in a packet, in several, or by a length no sealing explains."""
    ends = Ends()
    ends.install(False, max_message=400)
    ends.install(True, max_message=300_000)
    rpc = ends.ask(bytes(size))
    ends.run()
    assert ends.delivered == []
    assert ends.failure(rpc) == (Reason.TIMEOUT, "")
    assert ends.server.endpoint.counters.too_long > 0
    ends.empty()
    ends = Ends()
    ends.install(False, max_message=300_000)
    ends.install(True, max_message=400)
    ends.answers = False
    rpc = ends.ask(b"short")
    ends.run(ticks=1)
    ends.server.endpoint.send_reply(ends.requests[0].rpc, bytes(size), ends.now)
    ends.run()
    assert ends.failure(rpc)[0] is (Reason.TIMEOUT if size == 200_000 else Reason.TOO_LONG)
    assert ends.client.endpoint.counters.too_long > 0
    ends.empty()


def test_workers_that_share_a_session_do_not_ask():
    ends = Ends()
    waiting = ends.ask(b"waits", from_client=False)
    shared = session(BACK)
    shared.may_ask = False
    ends.install(False, shared)
    ends.install(True)
    ends.run()
    reason, detail = ends.failure(waiting)
    assert reason is Reason.NOT_SENT
    assert "shares its sessions" in detail
    with pytest.raises(LocalError, match="shares its sessions"):
        ends.ask(b"asks", from_client=False)
    assert ends.frames[False] == []
    rpc = ends.ask(b"answers")
    ends.run()
    assert isinstance(ends.end_of(rpc), Response)


# -- 0-RTT -------------------------------------------------------------------------------------------------


def early_sessions() -> tuple[SmtSession, SmtSession]:
    """A client's before the answer, and the server's."""
    params = SessionParams()
    client = SmtSession(EarlySecrets(EARLY, b"", FORWARD, params.cipher, True).keys, params)
    server = SmtSession(EarlySecrets(EARLY, LATER, BACK, params.cipher, False).keys, params)
    server.update_keys()
    return client, server


def complete(client: SmtSession) -> None:
    client.complete(EarlySecrets(EARLY, LATER, FORWARD, client.params.cipher, True).keys)
    client.update_keys()


@pytest.mark.parametrize("size", [50, 5000, 40_000])
@pytest.mark.parametrize("answer_first", [False, True])
def test_early_data_and_the_responses_to_it(size, answer_first):
    ends = Ends()
    client, server = early_sessions()
    first = ends.ask(bytes(size))
    ends.install(True, client, early=True)
    second = ends.ask(b"also early")
    ends.run(ticks=3)  # the server knows nothing of the session
    assert ends.delivered == []
    assert ends.frames[False] == []
    assert ends.server.endpoint.counters.frames_held > 0
    ends.install(False, server)
    if answer_first:
        complete(client)
        ends.install(True, client)
    ends.run(ticks=3)  # responses come, and stay closed
    if not answer_first:
        assert not ends.ended[first] + ends.ended[second]
        assert ends.client.endpoint.counters.frames_held > 0
        complete(client)
        ends.install(True, client)
    third = ends.ask(b"late")
    asks = ends.ask(b"the server asks", from_client=False)
    ends.run()
    assert all(isinstance(ends.end_of(rpc), Response) for rpc in (first, second, third, asks))
    epochs = {frame[44] for frame in ends.frames[True] if frame[47] == homa.DATA}
    assert epochs == {0, 1}
    # Whatever the server asks, and the answers to that, are forward-secret.
    assert asks.key >> 64 == third.key >> 64 == 1
    ends.empty()


def test_early_rpcs_are_patient_and_ask_again_when_the_answer_is_there():
    ends = Ends()
    client, server = early_sessions()
    rpc = ends.ask(b"early")
    ends.wire = lambda frame: []
    ends.install(True, client, early=True)
    ends.run(ticks=500)
    assert ends.ended[rpc] == []
    assert len(ends.frames[True]) == 1  # no RESEND: no answer could be opened
    ends.wire = lambda frame: [frame]
    ends.install(False, server)
    complete(client)
    ends.install(True, client)
    ends.run()
    assert isinstance(ends.end_of(rpc), Response)
    ends.empty()


def test_refused_early_data():
    ends = Ends()
    client, _server = early_sessions()
    key = client.current.tx
    rpcs = [ends.ask(b"waits first")]
    ends.install(True, client, early=True)
    rpcs.append(ends.ask(b"never waited"))
    ends.run(ticks=3)
    ends.client.endpoint.refuse(SERVER, SERVER_PORT, "the ticket was revoked", ends.now)
    ends.server.endpoint.refuse(CLIENT, CLIENT_PORT, "", ends.now)
    ends.run()
    assert {ends.failure(rpc) for rpc in rpcs} == {(Reason.NO_SESSION, "the ticket was revoked")}
    assert ends.delivered == []
    assert key.retired
    assert client.current.tx is NO_KEYS
    with pytest.raises(LocalError, match="session is over"):
        client.schedule(1)
    ends.empty()


def test_an_early_session_that_another_replaces_is_not_sent_again():
    ends = Ends()
    client, _server = early_sessions()
    early = ends.ask(b"may have been executed")
    ends.install(True, client, early=True)
    ends.install(False)
    ends.install(True)
    late = ends.ask(b"under the other")
    ends.run()
    assert ends.failure(early)[0] is Reason.SESSION_ENDED
    assert isinstance(ends.end_of(late), Response)
    assert ends.delivered == [b"under the other"]
    ends.empty()


def test_no_answer_is_opened_and_no_key_updated_before_the_handshake_ends():
    client, _server = early_sessions()
    client.update_keys()
    assert client.begin_rpc()[0].epoch == 0
    client.next_id = client.id_limit
    with pytest.raises(LocalError, match="handshake has not ended"):
        client.begin_rpc()
    assert client.request_keys(1) is None


# -- held frames -------------------------------------------------------------------------------------------


def test_held_frames_are_forgotten_in_time():
    ends = Ends(TransportParams(held_ticks=50))
    ends.install(True)
    ends.ask(b"to a server that does not know us")
    ends.run(ticks=10)
    server = ends.server.endpoint
    assert server.snapshot()["held"] == server.counters.frames_held > 0
    ends.run()
    assert server.snapshot()["held"] == 0
    assert server.counters.frames_held_dropped == server.counters.frames_held
    assert server.counters.packets_received == server.counters.frames_held


def test_held_frames_have_a_bound_and_the_oldest_go_first():
    ends = Ends(TransportParams(max_held_bytes=20_000, link_mbps=100_000))
    ends.install(True)
    for number in range(100):
        ends.ask(b"%4d" % number + bytes(796))
    while ends.move():
        pass
    server = ends.server.endpoint
    held = server.snapshot()["held"]
    assert 0 < held <= 20_000 // 1100
    assert held + server.counters.frames_held_dropped == 100
    received = server.counters.packets_received
    ends.install(False)
    assert server.counters.packets_received == received  # counted once
    ends.move()
    assert [int(d[:4]) for d in ends.delivered] == list(range(100 - held, 100))
    ends.run()
    assert all(isinstance(ends.end_of(rpc), Response) for rpc in ends.asked)
    ends.empty()


def test_strangers_displace_frames_but_leave_no_state():
    ends = Ends(TransportParams(max_held_bytes=100_000))
    ends.install(True)
    ends.ask(b"x")
    ends.client.post(0)
    frame, = ends.client.nic.process()
    rng = Random(1)
    for _ in range(2000):
        forged = frame[:26] + rng.randbytes(4) + frame[30:34] + rng.randbytes(2) + frame[36:]
        ends.server.endpoint.handle_packet(forged, 0)
    state = ends.server.endpoint.snapshot()
    assert state.pop("held") <= 100_000 // 256
    assert not any(state.values())


# -- ends of sessions --------------------------------------------------------------------------------------


def test_an_ended_session_takes_its_rpcs_along():
    ends = Ends()
    ends.install(False)
    ends.install(True)
    ends.answers = False
    client, server = (s.endpoint for s in (ends.client, ends.server))
    rpcs = [ends.ask(b"never answered"), ends.ask(bytes(50_000))]
    ends.run(ticks=2)
    kept = client._table.peers[SERVER << 16 | SERVER_PORT].session
    key = kept.current.tx
    client.end_session(SERVER, SERVER_PORT, "closed by us", ends.now)
    server.end_session(CLIENT, CLIENT_PORT, "closed by the peer", ends.now)
    assert server.send_reply(ends.requests[0].rpc, b"too late", ends.now) is False
    ends.run()
    assert {ends.failure(rpc) for rpc in rpcs} == {(Reason.SESSION_ENDED, "closed by us")}
    assert client.snapshot()["peers"] == server.snapshot()["peers"] == 0
    assert not client._table.hosts
    assert key.retired
    assert {rpc.keys.tx for rpc in rpcs} == {NO_KEYS}  # nor does who holds the RPC have them
    ends.empty()
    ends.ask(b"anew")
    assert ends.fake.wanted == [(SERVER, SERVER_PORT)]


def test_a_new_session_replaces_the_old():
    ends = Ends()
    ends.install(False)
    ends.install(True)
    ends.answers = False
    old = ends.ask(b"under the old")
    ends.run(ticks=1)
    ends.answers = True
    for side in (True, False):
        ends.install(side, session(FORWARD if side else BACK, bytes(32)))
    new = ends.ask(b"under the new")
    ends.run()
    assert ends.failure(old)[0] is Reason.SESSION_ENDED
    assert isinstance(ends.end_of(new), Response)
    # The same once more changes nothing.
    current = ends.client.endpoint._table.peers[SERVER << 16 | SERVER_PORT].session
    ends.install(True, current, max_message=7)  # type: ignore[arg-type]
    with pytest.raises(LocalError, match="1 to 7"):
        ends.ask(bytes(8))
    ends.empty()


def test_a_peer_that_stops_answering_is_reported_once():
    ends = Ends()
    ends.install(False)
    ends.install(True)
    rpcs = [ends.ask(b"%d" % n) for n in range(3)]
    ends.wire = lambda frame: []
    ends.run()
    assert {ends.failure(rpc)[0] for rpc in rpcs} == {Reason.TIMEOUT}
    assert ends.fake.lost_peers == [(SERVER, SERVER_PORT)]
    # Not for a session that has gone already.
    ends.ask(b"3")
    ends.client.endpoint.end_session(SERVER, SERVER_PORT, "", ends.now)
    ends.run()
    assert len(ends.fake.lost_peers) == 1


def test_a_peer_that_answers_others_is_not_lost():
    ends = Ends()
    ends.install(False)
    ends.install(True)
    rpc = ends.ask(b"nobody hears this")
    ends.wire = lambda frame: [] if int.from_bytes(frame[54:62], "big") | 1 == rpc.id | 1 else [frame]
    others = []
    for number in range(10):
        others.append(ends.ask(b"%d" % number))
        ends.run(ticks=10)
    assert ends.failure(rpc)[0] is Reason.TIMEOUT
    assert all(isinstance(ends.end_of(other), Response) for other in others)
    assert ends.fake.lost_peers == []
    # Asked in the tick of the last answer, and never answered.
    ends.ask(b"x")
    ends.move()
    ends.wire = lambda frame: []
    ends.ask(b"y")
    ends.run()
    assert ends.fake.lost_peers == [(SERVER, SERVER_PORT)]


def test_many_sessions_leave_nothing_behind():
    params = TransportParams()
    endpoint = Endpoint(SERVER, SERVER_PORT, "smt", Fake(), params)
    for n in range(2000):
        ends = Endpoints(SERVER, SERVER_PORT, CLIENT + n % 50, 0x8000 + n)
        made = session(ends)
        endpoint.install(ends.peer_ip, ends.peer_port, made, 0, max_message=1000)
        endpoint.send_request(ends.peer_ip, ends.peer_port, b"x", 0)
        made.update_keys()
        endpoint.send_request(ends.peer_ip, ends.peer_port, b"y", 0)
    assert endpoint.snapshot()["peers"] == 2000
    for n in range(2000):
        endpoint.end_session(CLIENT + n % 50, 0x8000 + n, "", 0)
    while endpoint.next_event() is not None or endpoint.poll_transmit(1 << 40) is not None:
        pass
    assert endpoint.next_timeout() is None
    table = endpoint._table
    assert not any((table.hosts, table.peers, table.opening, table._unproven, table._doubted, table._client_rpcs,
                    table.key_timers._watched, endpoint._held._by_peer))


# -- the handshake plane -----------------------------------------------------------------------------------


def flagged(frame: bytes) -> bytes:
    return frame[:FLAGS_AT] + bytes((frame[FLAGS_AT] | homa.HANDSHAKE,)) + frame[FLAGS_AT + 1:]


@pytest.mark.parametrize("kind", [homa.DATA, homa.RESEND, homa.ACK])
def test_flagged_frames_are_the_negotiators_and_nobody_elses(kind):
    source = Ends(keys=PlainKeys, profile="homa")
    source.ask(b"plain")
    source.client.post(0)
    frame, = source.client.nic.process()
    if kind != homa.DATA:
        packet = (homa.Resend(CLIENT_PORT, SERVER_PORT, 2, 0, 100, 7) if kind == homa.RESEND else
                  homa.Ack(CLIENT_PORT, SERVER_PORT, 2, (), 0, bytes(16)))
        frame = frame[:16] + (20 + len(packet.pack())).to_bytes(2, "big") + frame[18:34] + packet.pack()
    assert not is_handshake(frame)
    assert is_handshake(flagged(frame))
    ends = Ends()
    fake = ends.fakes[1]
    assert isinstance(fake, Fake)
    for installed in (False, True):
        fake.heard.clear()
        ends.server.endpoint.handle_packet(flagged(frame), 0)
        assert list(fake.heard) == [flagged(frame)]
        state = ends.server.endpoint.snapshot()
        assert state.pop("peers") == installed
        assert not any(state.values())
        ends.install(False)
    wrong = flagged(frame[:33] + bytes((frame[33] ^ 1,)) + frame[34:])  # another address
    ends.server.endpoint.handle_packet(wrong, 0)
    assert len(fake.heard) == 1
    for other in (Ends(keys=PlainKeys, profile="homa"),):
        other.server.endpoint.handle_packet(flagged(frame), 0)
        assert other.server.endpoint.counters.handshakes_unexpected == 1
        assert other.server.endpoint.snapshot()["peers"] == 0


def test_the_negotiators_segments_go_first_and_its_timers_run():
    ends = Ends()
    ends.install(True)
    ends.ask(b"data")
    hello = Segment(SERVER, 0, bytes(40), b"hello")
    ends.fake.outgoing.append(hello)
    assert ends.client.endpoint.poll_transmit(0) is hello
    assert ends.client.endpoint.poll_transmit(0) is not None
    assert ends.client.endpoint.poll_transmit(0) is None
    assert ends.client.endpoint.next_timeout() == 15 * TICK
    ends.fake.wake = 3
    assert ends.client.endpoint.next_timeout() == 3
    ends.client.endpoint.handle_timeout(4)
    assert ends.fake.fired == [4]


# -- any order ---------------------------------------------------------------------------------------------

MARK = b"this must never be seen on the wire"

steps = st.one_of(
    st.tuples(st.just("ask"), st.booleans(), st.sampled_from([20, 1000, 1419, 9000, 40_000])),
    st.tuples(st.just("install"), st.booleans(), st.integers(0, 2)),
    st.tuples(st.just("early"), st.booleans(), st.integers(0, 2)),
    st.tuples(st.just("refuse"), st.booleans(), st.just(0)),
    st.tuples(st.just("end"), st.booleans(), st.just(0)),
    st.tuples(st.just("abort"), st.booleans(), st.integers(0, 20)),
    st.tuples(st.just("update"), st.booleans(), st.just(0)),
    st.tuples(st.just("move"), st.booleans(), st.integers(1, 3)),
    st.tuples(st.just("wait"), st.booleans(), st.sampled_from([1, 16, 60, 500])),
)


class Play:
    """Random changes of sessions under random traffic, and what must hold all the time."""

    def __init__(self, seed: int, loss: float, keys: Callable[[], KeyStore] = Fake, profile: str = "smt") -> None:
        self.ends = ends = Ends(keys=keys, profile=profile)
        rng = Random(seed)
        ends.wire = lambda frame: [] if rng.random() < loss else [frame]
        self.sessions: dict[bool, list[SmtSession]] = {True: [], False: []}
        #: Installed by side and number.
        self.counts: Counter[tuple[bool, int]] = Counter()
        #: Number of a session that is early still.
        self.begun = {True: -1, False: -1}
        self.ready = {True: False, False: False}

    def step(self, what: str, side: bool, number: int) -> None:
        """One of ``steps``. Until a side was given a session, it must not send."""
        ends = self.ends
        if what == "ask":
            text = b"%d " % len(ends.asked) + MARK
            ends.ask((text * (number // len(text) + 1))[:max(number, len(text))], side)
        elif what in ("install", "early"):
            if what == "install" and self.begun[side] == number:
                made = self.sessions[side][-1]  # the end of the handshake that was begun
            else:
                # No secret twice at one side; the other may come to the same, or not.
                secret = bytes((number, self.counts[side, number])) * 16
                self.counts[side, number] += 1
                made = session(FORWARD if side else BACK, secret, key_update_records=8)
                self.sessions[side].append(made)
            self.begun[side] = number if what == "early" else -1
            self.ready[side] = True
            ends.install(side, made, early=what == "early")
        elif what == "abort":
            own = [rpc for rpc in ends.asked if rpc.peer.host.ip == (SERVER if side else CLIENT)]
            if own:
                self.endpoint(side).abort(own[number % len(own)])
                ends.events(ends.client if side else ends.server)
        elif what == "update":
            for made in self.sessions[side][-1:]:
                made.update_keys()
        elif what == "move":
            for _ in range(number):
                ends.move()
        elif what == "wait":
            ends.run(ticks=number)
        else:
            endpoint = self.endpoint(side)
            peer = (SERVER, SERVER_PORT) if side else (CLIENT, CLIENT_PORT)
            (endpoint.refuse if what == "refuse" else endpoint.end_session)(*peer, "so", ends.now)
            if what == "refuse":
                self.begun[side] = -1
        for who in (True, False):
            assert self.ready[who] or not ends.frames[who]

    def endpoint(self, at_client: bool) -> Endpoint:
        return (self.ends.client if at_client else self.ends.server).endpoint

    def finish(self) -> None:
        """Whatever is open is refused; then all must come to its end."""
        ends = self.ends
        for side, peer in ((True, (SERVER, SERVER_PORT)), (False, (CLIENT, CLIENT_PORT))):
            self.endpoint(side).refuse(*peer, "over", ends.now)
        ends.run()
        for rpc, events in ends.ended.items():
            assert len(events) == 1, f"{rpc} ended {len(events)} times: {events}"
            if isinstance(events[0], Response):
                assert events[0].data == ends.asked[rpc][::-1]
        asked = list(ends.asked.values())
        assert all(ends.delivered.count(data) <= 1 and data in asked for data in ends.delivered)
        for endpoint in (ends.client.endpoint, ends.server.endpoint):
            state = endpoint.snapshot()
            # A request that its server has answered stays until the client says so, or is silent for long.
            assert not {k: v for k, v in state.items() if v and k != "peers"}, state

    def seen_in_clear(self) -> bool:
        """Whether any frame shows what was asked."""
        return any(MARK[:20] in frame or MARK[:20][::-1] in frame for sent in self.ends.frames.values()
                   for frame in sent)


@given(script=st.lists(steps, max_size=40), seed=st.integers(0, 999), loss=st.sampled_from([0.0, 0.1, 0.5]))
def test_any_order_of_requests_sessions_and_losses(script: list[tuple[str, bool, int]], seed: int,
                                                   loss: float) -> None:
    play = Play(seed, loss)
    for step in script:
        play.step(*step)
    play.finish()
    assert not play.seen_in_clear()


def test_what_that_looks_for_would_be_found():
    play = Play(1, 0.0, PlainKeys, "homa")
    play.step("ask", True, 20)
    with pytest.raises(AssertionError):
        play.step("move", True, 3)  # sent, and there never was a session
    assert play.seen_in_clear()
