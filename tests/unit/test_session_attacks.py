"""Who is on the path, or claims to be somebody: forged flights, floods. Replays are in test_session_matrix.py."""

from __future__ import annotations

import dataclasses
import gc
import os
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtstack.crypto.keys import demo_keys
from smtstack.session import plane
from smtstack.session.established import MODES
from smtstack.session.flights import Flight, Kind, Refusal, refused
from smtstack.session.manager import SessionManager
from smtstack.session.offer import Offer
from smtstack.session.plane import Plane
from smtstack.session.tls import TlsClient
from smtstack.sim.pair import CLIENT_IP, SERVER_IP, SERVER_PORT, make_side
from smtstack.stack import Stack, make_stack
from smtstack.transport.events import Request
from smtstack.transport.params import TransportParams
from smtstack.wire.frame import is_handshake
from tests.certificates import UTC, A, Authority
from tests.handshakes import CLIENT_ID, IMPATIENT, Hosts, SessionRig, to_client


class Forger:
    """Sends flights in somebody's name."""

    def __init__(self, ip: int, port: int) -> None:
        self.plane = Plane(ip, port, TransportParams(), 1_000_000_000)
        self._stack = make_stack(ip, port, "homa", demo_keys("homa"), None, None, bytes(6), lambda _ip: bytes(6))

    def ask(self, flight: Flight, now: int = 0) -> list[bytes]:
        """The frames of a request to the server."""
        self.plane.ask(SERVER_IP, SERVER_PORT, flight, None, now)
        while (segment := self.plane.poll_transmit(now)) is not None:
            self._stack.add(segment)
        return self._stack.transmit(now)


def hello(handshake_id: bytes, offer: Offer | None = None) -> Flight:
    """The first flight of somebody who has nothing."""
    offer = offer or Offer()
    tls = TlsClient(CLIENT_ID, offer, SERVER_IP, UTC, True)
    return Flight(Kind.CLIENT_HELLO, (handshake_id, offer.pack(), tls.hello()))


def established(mode: str) -> SessionRig:
    """A rig with a session, that has carried one request."""
    rig = Hosts(mode).resumable().rig(params=IMPATIENT)
    rig.request(b"before")
    rig.run()
    assert rig.answered() == 1
    return rig


def still_works(rig: SessionRig) -> None:
    """The session is the one that was there."""
    before = [m.counters()["sessions_begun"] for m in rig.managers]
    good = rig.answered()
    rig.request(b"after %d" % good)
    rig.run()
    assert rig.answered() == good + 1
    assert [m.counters()["sessions_begun"] for m in rig.managers] == before


# -- forged flights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_close_without_proof_closes_nothing(mode):
    rig = established(mode)
    for proof in (bytes(32), b"", b"x" * 100):
        for frame in Forger(*to_client(rig)).ask(Flight(Kind.CLOSE, (proof,))):
            rig.inject(True, frame)
    rig.run()
    assert rig.managers[1].counters()["closes_forged"] == 3
    still_works(rig)


def test_a_handshake_that_does_not_authenticate_replaces_nothing():
    """Somebody else's certificate, at the client's address."""
    rig = established("mtls")
    others = Authority(name="others").identity("a", A)
    offer = Offer()
    tls = TlsClient(others, offer, SERVER_IP, UTC, True)
    forger = Forger(*to_client(rig))
    for frame in forger.ask(Flight(Kind.CLIENT_HELLO, (bytes(16), offer.pack(), tls.hello()))):
        rig.inject(True, frame)
    rig.run()
    assert rig.managers[1].snapshot()["half_open"] == 0  # it took too long
    assert "did not finish" in rig.managers[1].last_failure
    still_works(rig)


def test_answers_to_what_was_not_asked_are_nothing():
    rig = established("mtls")
    for kind in (Kind.SERVER_HELLO, Kind.SERVER_DONE, Kind.EARLY_ANSWER, Kind.CLOSED):
        fields = (b"",) * {Kind.SERVER_HELLO: 2, Kind.CLOSED: 0}.get(kind, 1)
        for frame in Forger(*to_client(rig)).ask(Flight(kind, fields)):
            rig.inject(True, frame)
    for frame in Forger(*to_client(rig)).ask(refused(Refusal.BUSY, "go away")):
        rig.inject(True, frame)
    rig.run()
    assert rig.managers[1].counters()["flights_bad"] == 5
    still_works(rig)


@settings(max_examples=60)
@given(kind=st.sampled_from((Kind.CLIENT_HELLO, Kind.CLIENT_FINISH, Kind.EARLY_HELLO, Kind.CLOSE)),
       junk=st.binary(max_size=300), handshake_id=st.binary(min_size=16, max_size=16), early=st.booleans())
def test_flights_of_junk_do_no_harm(kind, junk, handshake_id, early):
    rig = established("ticket-fs" if early else "mtls")
    fields = {Kind.CLIENT_HELLO: (handshake_id, Offer().pack() if early else junk, junk),
              Kind.CLIENT_FINISH: (handshake_id, junk)}.get(kind, (junk,))
    for frame in Forger(*to_client(rig)).ask(Flight(kind, fields)):
        rig.inject(True, frame)
    rig.run()
    still_works(rig)


@settings(max_examples=60)
@given(mode=st.sampled_from(MODES), number=st.integers(0, 5), at=st.integers(0, 5000), bit=st.integers(0, 7))
def test_flights_that_are_changed_on_the_way_make_no_session_with_other_keys(mode, number, at, bit):
    """A flipped bit in a frame of the plane: there is a session in the end that works, or there is none."""
    seen = [0]

    def flip(from_client: bool, frame: bytes) -> list[bytes]:
        if is_handshake(frame):
            seen[0] += 1
            if seen[0] == number + 1:
                place = 34 + at % (len(frame) - 34)
                return [frame[:place] + bytes((frame[place] ^ 1 << bit,)) + frame[place + 1:]]
        return [frame]

    hosts = Hosts(mode, client={"handshake_ns": 500_000_000}).resumable()
    rig = hosts.rig(params=IMPATIENT, tamper=flip)
    rig.request(b"once")
    rig.run()
    rig.answered()
    client, server = rig.managers
    if client.counters()["sessions"] and server.counters()["sessions"]:
        still_works(rig)


# -- floods ----------------------------------------------------------------------------------------------


def test_a_flood_of_hellos_displaces_itself(monkeypatch):
    monkeypatch.setattr(plane, "MAX_ANSWERS", 200)
    monkeypatch.setattr(plane, "MAX_PEERS", 400)
    hosts = Hosts("mtls", server={"max_handshakes": 50})
    rig = hosts.rig()
    one = hello(bytes(16))
    for n in range(600):
        for frame in Forger(CLIENT_IP + 1 + n % 7, 1 + n).ask(
                dataclasses.replace(one, fields=(n.to_bytes(16, "big"), *one.fields[1:]))):
            rig.server.receive([frame], rig.now)
        rig.server.transmit(rig.now)
    server = rig.managers[1]
    assert server.snapshot()["half_open"] == 50
    assert server.counters()["handshakes_displaced"] == 600 - 50
    assert 0 < server.snapshot()["plane_server_rpcs"] <= 200
    assert 0 < server.snapshot()["plane_peers"] <= 400
    # Somebody who does finish gets in.
    rig.request(b"hello")
    rig.run()
    assert rig.answered() == 1
    assert {n: v for n, v in server.snapshot().items() if v} == {}


def test_a_hello_under_a_false_address_brings_it_little():
    """Whoever names somebody else's address has us send there: the answer, and few packets about it."""
    rig = Hosts("mtls").rig()
    asked = Forger(CLIENT_IP, 7).ask(hello(bytes(16)))
    rig.server.receive(asked, 0)
    sent = []
    for now in range(0, 20_000_000_000, 1_000_000):
        rig.server.endpoint.handle_timeout(now)
        sent += rig.server.transmit(now)
    assert 1 <= len(sent) <= 8
    assert sum(map(len, sent)) < 6 * sum(map(len, asked))
    assert rig.managers[1].snapshot()["half_open"] == 0


def test_a_session_costs_little_and_nothing_once_it_is_over():
    """Memory of a server. SMTNET_SESSIONS=10000 does it with so many."""
    count = int(os.environ.get("SMTNET_SESSIONS", "100"))
    during, after = session_memory(count)
    assert max(during) < count * 40_000, (during, after)
    # What stays of a session stays of each, in every round. What Python itself keeps comes once: frames of
    # functions and blocks of deques (up to 3.10), compiled expressions.
    assert flat(count, after), (during, after)


#: Rounds in which Python has kept what it will.
ROUNDS = 8


def flat(count: int, after: list[int]) -> bool:
    """The last round finds all as the one before left it."""
    return len(after) > 1 and after[-1] - after[-2] < count * 20


def session_memory(count: int) -> tuple[list[int], list[int]]:
    """Bytes of a server with so many sessions, and after their end; the same for more rounds until one is flat."""
    hosts = Hosts("mtls")
    server = make_side(SERVER_IP, SERVER_PORT, "smt", hosts.server_manager(), None, None)
    manager = server.endpoint._negotiator
    assert isinstance(manager, SessionManager)
    during, after = [], []
    tracemalloc.start()
    try:
        for now in range(0, ROUNDS * 100_000_000_000, 100_000_000_000):
            for n in range(count):
                stack = client(hosts, n)
                stack.endpoint.send_request(SERVER_IP, SERVER_PORT, b"x", now)
                exchange(server, stack, now)
            # The plane remembers for a while.
            server.endpoint.handle_timeout(now + 20_000_000_000)
            server.transmit(now)
            assert manager.counters()["sessions"] == count
            del stack
            gc.collect()
            during.append(tracemalloc.get_traced_memory()[0])
            manager.close_all(now)
            for wait in range(0, 60, 5):
                server.endpoint.handle_timeout(now + wait * 1_000_000_000)
                server.transmit(now + wait * 1_000_000_000)
            assert {n: v for n, v in {**manager.snapshot(), **server.endpoint.snapshot()}.items() if v} == {}
            gc.collect()
            after.append(tracemalloc.get_traced_memory()[0])
            if flat(count, after):
                break
    finally:
        tracemalloc.stop()
    return during, after


def client(hosts: Hosts, n: int) -> Stack:
    """A client of its own port, with a device of its own."""
    return make_side(CLIENT_IP, 10_000 + n, "smt", hosts.client_manager(), IMPATIENT, None)


def exchange(server: Stack, client: Stack, now: int) -> None:
    """Frames between the two until none moves; the server answers."""
    while True:
        frames = client.transmit(now)
        server.receive(frames, now)
        while (event := server.endpoint.next_event()) is not None:
            assert isinstance(event, Request)
            server.endpoint.send_reply(event.rpc, event.data, now)
        back = server.transmit(now)
        client.receive(back, now)
        while client.endpoint.next_event() is not None:
            pass
        if not frames and not back:
            return
