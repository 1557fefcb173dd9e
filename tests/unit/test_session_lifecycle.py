"""From a session's beginning to its end: what was agreed on, what replaces it, what ends with it; in any order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtstack.crypto.epochs import NO_KEYS, SmtSession
from smtstack.crypto.keys import Endpoints, KeyStore, PlainKeys
from smtstack.errors import LocalError
from smtstack.transport.endpoint import Endpoint
from smtstack.transport.events import Reason, Response
from smtstack.transport.params import TransportParams
from tests.ends import BACK, FORWARD, Ends, session
from tests.fake_negotiator import Fake
from tests.pair import CLIENT, CLIENT_PORT, SERVER, SERVER_PORT

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
    ends = Ends(params=TransportParams(stalled_ticks=80))
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


def test_a_peer_that_dies_is_lost_whatever_it_answered_before():
    """An RPC that began before the last answer fails with the rest: the next must not wait as long again."""
    ends = Ends()
    ends.install(False)
    ends.install(True)
    early = ends.ask(b"never answered")
    ends.wire = lambda frame: [] if int.from_bytes(frame[54:62], "big") | 1 == early.id | 1 else [frame]
    ends.run(ticks=3)
    answered = ends.ask(b"answered")
    ends.run(ticks=3)
    assert isinstance(ends.end_of(answered), Response)
    ends.wire = lambda frame: []
    ends.run()
    assert ends.failure(early)[0] is Reason.TIMEOUT
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
    assert not any((table.hosts, table.peers, table.pending, table._unproven, table._doubted, table._client_rpcs,
                    table.key_timers._watched, endpoint._held._by_peer))


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
