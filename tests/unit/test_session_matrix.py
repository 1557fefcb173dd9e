"""All that must not become a session, in one table: real managers and endpoints at both ends, in virtual time.

Of every cause the same is asked (tests/handshakes.py, ``fails``): the client says why, the server says why, and
both count it; no byte of what the application sent is delivered, and none is in clear in any frame. Each has its
control (``works``): with the cause gone the same requests are answered, and in profile homa the search for clear
text finds them. Mistakes in settings, and what comes after a failure: test_session_failures.py.

On a real interface: replays to the same worker, to other workers and after a restart in
tests/net/test_sessions.py; certificates and a DNS server that is gone in tests/net/test_run_sessions.py; a ticket
that is revoked under a running server in tests/net/test_dns.py.
"""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtstack.session.established import MODES
from smtstack.session.flights import VERSION, Flight, Kind
from smtstack.session.hello import EarlyClient
from smtstack.session.identity import Identity
from smtstack.session.manager import Role
from smtstack.session.offer import Agreement, Offer
from smtstack.session.state import MemoryState
from smtstack.session.tickets import Ticket
from smtstack.session_io.state_file import SqliteState
from smtstack.sim.pair import SERVER_IP, SERVER_PORT, make_side
from smtstack.transport.events import Reason
from smtstack.wire.frame import PAYLOAD_AT, TYPE_AT, is_handshake
from smtstack.wire.homa import DATA
from tests.certificates import HOUR, IP_B, NAMES, UTC, A, Authority, B, Leaf
from tests.handshakes import (
    CLIENT_ID,
    EARLY,
    IMPATIENT,
    PSK,
    SERVER_ID,
    SIZES,
    TICKET,
    TLS,
    Hosts,
    SessionRig,
    ask,
    fails,
    in_clear,
    to_server,
    works,
)
from tests.rig import Rig, Tamper

AUTHORITY, OTHERS = Authority(), Authority(name="others")


def test_the_search_for_clear_text_finds_it():
    """The control of all that follows: profile homa, which seals nothing."""
    rig = Rig("homa")
    ask(rig)
    rig.run()
    assert rig.answered() == len(SIZES)
    # In every packet of data, whoever sent it.
    data = sum(frame[TYPE_AT] == DATA for _from_client, frame in rig.sent_frames)
    assert in_clear(rig) == data > 2 * len(SIZES)


# -- certificates ------------------------------------------------------------------------------------------

#: What is wrong: a certificate, whom the other side believes, what it says after "the peer's certificate is not".
CERTIFICATES = {
    "wrong authority": (Leaf(), [OTHERS], "accepted: unable to get local issuer certificate"),
    "expired": (Leaf(after=UTC - 1), [], "accepted: certificate has expired"),
    "not yet valid": (Leaf(before=UTC + 1), [], "accepted: certificate is not yet valid"),
    "wrong name": (Leaf(dns=["c"]), [], "for {name} ({ip}), but for {ip}, c"),
    "wrong address": (Leaf(ips=["10.0.0.9"]), [], "for {ip}, but for 10.0.0.9, {name}"),
}
#: Addresses have no names, so certificates must be for addresses.
NAMELESS = ("wrong address",)


def of_certificate(text: str, name: str, ip: str) -> str:
    return "the peer's certificate is not " + text.format(name=name, ip=ip)


def client_of(cause: str, leaf: Leaf, trust: list[Authority]) -> Identity:
    return AUTHORITY.identity("a", A, leaf, {} if cause in NAMELESS else NAMES, trust)


def server_of(cause: str, leaf: Leaf, trust: list[Authority]) -> Identity:
    return AUTHORITY.identity("b", B, leaf, {} if cause in NAMELESS else NAMES, trust)


@pytest.mark.parametrize("mode", TLS + TICKET)
@pytest.mark.parametrize("cause", CERTIFICATES)
def test_the_servers_certificate(cause, mode):
    leaf, trust, text = CERTIFICATES[cause]
    hosts = Hosts(mode, client_of(cause, Leaf(), trust), server_of(cause, leaf, []))
    # Who has a ticket needs to ask nobody to see that it will not do. (Nor does its server, which does not publish
    # it: test_ticket_dns.py.)
    fails(hosts, of_certificate(text, "b", B), "" if mode in TICKET else "the client refuses the handshake: ")
    works(Hosts(mode, client_of(cause, Leaf(), []), server_of(cause, Leaf(), [])))


@pytest.mark.parametrize("mode", ["mtls", *TICKET])
@pytest.mark.parametrize("cause", CERTIFICATES)
def test_the_clients_certificate(cause, mode):
    """Its requests leave with the last flight, or behind the hello: they are held, and never opened."""
    leaf, trust, text = CERTIFICATES[cause]
    hosts = Hosts(mode, client_of(cause, leaf, []), server_of(cause, Leaf(), trust))
    said, code = of_certificate(text, "a", A), "certificate" if mode in TICKET else "tls"
    rig = fails(hosts, f"the server refuses ({code}): {said}", said)
    assert rig.server.endpoint.counters.frames_held > 0
    works(Hosts(mode, client_of(cause, Leaf(), []), server_of(cause, Leaf(), [])))


def test_a_client_that_shows_no_certificate():
    hosts = Hosts("tls", server={"mode": "mtls"})
    text = "peer did not return a certificate"
    fails(hosts, f"the server refuses (tls): TLS: {text}", text)
    hosts.client["mode"] = "mtls"
    works(hosts)


@pytest.mark.parametrize("mode", EARLY)
def test_a_client_that_never_showed_a_certificate(mode):
    """It has what a server gave that asked for none; the server asks for one now."""
    hosts = Hosts(mode, client={"client_auth": False}, server={"client_auth": False})
    if mode in TICKET:
        hosts.publish(client_auth=False)
    hosts.resumable()
    works(hosts)
    hosts.server["client_auth"] = True
    text = ("the client shows no certificate, and this server wants one" if mode in TICKET else
            "the client of the first session showed no certificate")
    fails(hosts, f"the server refuses (certificate): {text}", text)
    hosts.psks.drop(*to_server())
    hosts.client["client_auth"] = True
    hosts.publish() if mode in TICKET else hosts.resumable()
    works(hosts)


# -- tickets and PSKs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", TICKET)
def test_a_revoked_ticket(mode):
    hosts = Hosts(mode)
    works(hosts)
    hosts.state.revoke(hosts.state.tickets()[0].ticket.ticket_id)
    fails(hosts, "the server refuses (ticket revoked): the ticket was revoked", "the ticket was revoked")
    hosts.publish()
    works(hosts)


@pytest.mark.parametrize("mode", TICKET)
def test_a_ticket_older_than_its_life(mode):
    hosts = Hosts(mode)
    hosts.clock.utc += HOUR
    works(hosts)
    hosts.clock.utc += 1
    fails(hosts, "the ticket expired 1 s ago", "")
    # A client that does not look, or whose clock is behind, hears it from the server.
    hosts.shelf.verifies = False
    fails(hosts, "the server refuses (ticket expired): the ticket expired 1 s ago", "the ticket expired 1 s ago")
    hosts.clock.utc -= 1
    hosts.publish()
    works(hosts)


@pytest.mark.parametrize("mode", TICKET)
def test_a_ticket_of_the_future(mode):
    hosts = Hosts(mode)
    hosts.publish(utc=UTC + 61)
    ticket = hosts.shelf.tickets[to_server()]
    fails(hosts, "the ticket is not yet valid", "")
    hosts.shelf.verifies = False
    fails(hosts, "the server refuses (ticket expired): the ticket is not yet valid", "the ticket is not yet valid")
    hosts.shelf.tickets[to_server()] = ticket
    hosts.clock.utc += 1
    works(hosts)


@pytest.mark.parametrize("mode", PSK)
def test_a_resumption_older_than_its_life(mode):
    hosts = Hosts(mode).resumable()
    psk = hosts.psks.get(*to_server(), UTC)
    assert psk is not None
    hosts.clock.utc = psk.not_after + 1
    hosts.psks.put(*to_server(), replace(psk, not_after=psk.not_after + HOUR))
    fails(hosts, "the server refuses (ticket expired): the resumption expired 1 s ago", "the resumption expired")
    hosts.psks.put(*to_server(), psk)
    hosts.clock.utc -= 1
    works(hosts)


@pytest.mark.parametrize("mode", PSK)
def test_resumptions_of_resumptions_end(mode):
    """A day after certificates were shown they are shown again: then the one that expired is noticed."""
    authority = Authority(utc=UTC + 12 * HOUR)
    server = authority.identity("b", B, Leaf(after=UTC + 30 * HOUR))
    hosts = Hosts(mode, authority.identity("a", A, Leaf(after=UTC + HOUR)), server).resumable()
    for _hour in range(24):
        works(hosts)
        hosts.clock.utc += HOUR
    hosts.clock.utc += 1
    fails(hosts, "certificate has expired", "certificate has expired")


# -- DNS ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", TICKET)
def test_dns_is_gone(mode):
    pytest.importorskip("dns", reason="dnspython is not installed")
    from smtstack.errors import PeerError
    from smtstack.session_io.ticket_dns import DnsTickets, TicketPublisher
    from smtstack.session_io.tsig_file import make_tsig
    from tests.unit.test_ticket_dns import answering, encoded, given

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.1", 0))
        gone = s.getsockname()
    text = f"no DNS server answers at 127.0.0.1:{gone[1]}"
    hosts = Hosts(mode)
    shelf = hosts.shelf
    hosts.shelf = DnsTickets(CLIENT_ID, gone)  # type: ignore[assignment]
    fails(hosts, text, "")
    # The server's side of it: a new ticket cannot be published.
    publisher = TicketPublisher(SERVER_ID, MemoryState(), IP_B, SERVER_PORT, Offer(), server=gone, key=make_tsig(),
                                forward_secret_only=mode == "ticket-fs", client_auth=True)
    with pytest.raises(PeerError, match=text):
        publisher.publish(UTC)
    assert publisher.failure.startswith("the ticket could not be published: ")
    assert text in publisher.failure
    assert publisher.current is None
    with answering(given(encoded(shelf.tickets[to_server()]))) as server:
        hosts.shelf = DnsTickets(CLIENT_ID, server.address)  # type: ignore[assignment]
        works(hosts)


# -- replays -----------------------------------------------------------------------------------------------


class Snapshot:
    """Makes a client's hello once: the second time it is another copy of the same client that says the same."""

    def __init__(self) -> None:
        self.first: EarlyClient | None = None

    def __call__(self, *args, **settings) -> EarlyClient:
        if self.first is None:
            self.first = EarlyClient(*args, **settings)
        return self.first


@dataclass
class Replay:
    """A server's state in a file, and a session that was recorded."""

    mode: str
    path: Path
    hosts: Hosts = field(init=False)
    rig: SessionRig = field(init=False)
    frames: list[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.hosts = Hosts(self.mode, state=SqliteState(self.path))  # type: ignore[arg-type]
        self.hosts.resumable()
        if self.mode in PSK:
            # One that the second copy of the client has, too.
            self.kept = self.hosts.psks.get(*to_server(), UTC)
        self.rig = works(self.hosts)
        self.frames = of_client(self.rig)
        self.rig.managers[0].close(*to_server(), self.rig.now)
        self.rig.run()
        assert self.rig.managers[1].counters()["sessions"] == 0

    def again(self, where: str) -> None:
        """The client is another copy; the server is the same, another process, or one that started anew."""
        hosts, old = self.hosts, self.rig
        kept = hosts.state
        if where == "other worker":
            # The first has the file open meanwhile.
            hosts.state = SqliteState(self.path)  # type: ignore[assignment]
        elif where == "after restart":
            kept.close()  # type: ignore[attr-defined]
            hosts.state = SqliteState(self.path)  # type: ignore[assignment]
        if self.mode in PSK:
            assert self.kept is not None
            hosts.psks.put(*to_server(), self.kept)
        self.rig = hosts.rig(params=IMPATIENT)
        if where == "same worker":
            self.rig.server = old.server
            self.rig.managers = self.rig.managers[0], old.managers[1]
            self.rig.now = old.now


def of_client(rig: SessionRig) -> list[bytes]:
    """All that a client has sent."""
    return [f for from_client, f in rig.sent_frames if from_client]


def send_again(rig: SessionRig, frames: list[bytes]) -> None:
    for number, frame in enumerate(frames):
        rig.inject(True, frame, number * 1000)
    rig.run()


WHERE = ("same worker", "other worker", "after restart")
REPLAYED = "this hello was here before"


@pytest.fixture
def same_hello(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # A first session by PSK has none, and so comes before.
    snapshot = Snapshot()
    monkeypatch.setattr("smtstack.session.client.EarlyClient", snapshot)
    yield
    assert snapshot.first is not None


@pytest.mark.usefixtures("same_hello")
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("mode", EARLY)
def test_a_hello_that_was_there_before(mode, where, tmp_path):
    """A client that was copied, hello and keys and all, and whose copy asks the same."""
    replay = Replay(mode, tmp_path / "state")
    delivered = replay.rig.server.endpoint.counters.requests_delivered
    replay.again(where)
    rig = replay.rig
    ask(rig)
    rig.run()
    client, server = rig.managers
    assert {f.detail for f in rig.failures()} == {f"the server refuses (replayed): {REPLAYED}"}
    assert len(rig.failures()) == len(SIZES)
    assert REPLAYED in client.last_failure
    assert REPLAYED in server.last_failure
    assert server.counters()["early_refused"] == client.counters()["early_refused"] == 1
    assert rig.delivered == []
    assert rig.server.endpoint.counters.requests_delivered == (delivered if where == "same worker" else 0)
    assert in_clear(rig) == 0


@pytest.mark.usefixtures("same_hello")
@pytest.mark.parametrize("by", ["a copy of the client", "frames sent again"])
@pytest.mark.parametrize("mode", EARLY)
def test_it_is_the_memory_of_hellos_that_refuses_it(mode, by, tmp_path):
    """The control of all tests of replays: nothing else stops them."""
    replay = Replay(mode, tmp_path / "state")
    replay.hosts.state.close()  # type: ignore[attr-defined]
    with sqlite3.connect(replay.path) as db:
        db.execute("DELETE FROM hellos")
    db.close()
    replay.again("after restart")
    if by == "frames sent again":
        send_again(replay.rig, replay.frames)
    else:
        ask(replay.rig)
        replay.rig.run()
    assert replay.rig.delivered


@pytest.mark.parametrize(("mode", "where"), [
    *((m, w) for m in EARLY for w in (*WHERE, "follower")),
    # A server has no memory of TLS handshakes, and needs none.
    *((m, w) for m in TLS for w in ("same worker", "after restart"))])
def test_frames_that_are_sent_again(mode, where, tmp_path):
    """Somebody on the path sends again what the client sent, with and without the hello."""
    replay = Replay(mode, tmp_path / "state")
    replay.again("other worker" if where == "follower" else where)
    rig = replay.rig
    if where == "follower":
        # One that the kernel gives no handshakes, and whom nobody told of a session.
        manager = replay.hosts.server_manager(role=Role.FOLLOWER)
        rig.server = make_side(SERVER_IP, SERVER_PORT, "smt", manager, IMPATIENT, None)
        rig.managers = rig.managers[0], manager
    counters = rig.server.endpoint.counters
    before, dropped = counters.requests_delivered, counters.frames_held_dropped
    for frames in (replay.frames, [f for f in replay.frames if not is_handshake(f)]):
        send_again(rig, frames)
    assert rig.delivered == []
    assert counters.requests_delivered == before
    assert counters.frames_held_dropped > dropped
    assert in_clear(rig) == 0
    if mode in EARLY and where != "follower":
        assert REPLAYED in rig.managers[1].last_failure
        assert rig.managers[1].counters()["early_refused"] == 1
        # Whoever sent it reads why.
        assert any(REPLAYED.encode() in frame for from_client, frame in rig.sent_frames if not from_client)


@pytest.mark.parametrize("mode", MODES)
def test_frames_that_are_sent_again_while_the_session_lasts(mode):
    rig = works(Hosts(mode).resumable())
    frames = of_client(rig)
    send_again(rig, frames)
    send_again(rig, [f for f in frames if not is_handshake(f)])
    assert len(rig.delivered) == len(SIZES)
    rig.request(b"it lasts")
    rig.run()
    assert rig.answered() == len(SIZES) + 1
    assert rig.managers[1].counters()["sessions_begun"] == 1


@settings(max_examples=40)
@given(mode=st.sampled_from(MODES), order=st.randoms(use_true_random=False), copies=st.integers(1, 3))
def test_frames_that_are_sent_again_in_any_order(mode, order, copies):
    """After a restart, some of them more than once."""
    hosts = Hosts(mode).resumable()
    frames = of_client(works(hosts)) * copies
    order.shuffle(frames)
    rig = hosts.rig(params=IMPATIENT)
    send_again(rig, frames)
    assert rig.delivered == []


# -- downgrades --------------------------------------------------------------------------------------------

#: The first wish is the stronger, of the same length on the wire.
STRONG, WEAK = (Offer(("AES-256-GCM", "AES-128-GCM"), index_bits=20).within(1500),
                Offer(("AES-128-GCM", "AES-256-GCM"), index_bits=20).within(1500))
CHANGED = "the session's parameters were changed on the way"
FS_ONLY = "this server takes forward-secret sessions only"
FS_SHARE = "a hello with a key share of 32 bytes"


def swapped(old: bytes, new: bytes, of_client: bool = True) -> Tamper:
    """On the way of handshakes, in one direction, one thing in place of another; nothing else is touched."""
    def tamper(from_client: bool, frame: bytes) -> list[bytes]:
        if is_handshake(frame) and from_client is of_client:
            return [frame[:PAYLOAD_AT] + frame[PAYLOAD_AT:].replace(old, new)]
        return [frame]

    assert len(old) == len(new)
    return tamper


def without_fs(from_client: bool, frame: bytes) -> list[bytes]:
    """The hello's flag that asks for forward secrecy is gone."""
    if is_handshake(frame) and from_client and frame.startswith(bytes((VERSION, Kind.EARLY_HELLO)), PAYLOAD_AT):
        changed = bytearray(frame)
        changed[PAYLOAD_AT + 6] &= ~1
        return [bytes(changed)]
    return [frame]


def choice(cipher: str, **changes) -> bytes:
    return replace(Agreement(cipher, 20, mtu=1500), **changes).pack()


DOWNGRADES: dict[str, tuple[tuple[str, ...], Tamper, str, str]] = {
    "offer": (TLS, swapped(STRONG.pack(), WEAK.pack()), CHANGED, CHANGED),
    "index": (TLS, swapped(STRONG.pack(), replace(STRONG, index_bits=19).pack()),
              "the server chose 19 index bits", "the client did not finish its handshake"),
    "choice": (TLS, swapped(choice("AES-256-GCM"), choice("AES-128-GCM"), False), CHANGED, CHANGED),
    "choice not offered": (TLS, swapped(choice("AES-256-GCM"), choice("CHACHA20-POLY1305"), False),
                           "which we did not offer", "the client did not finish its handshake"),
    "length": (TLS, swapped(choice("AES-256-GCM"), choice("AES-256-GCM", max_message=70_000), False), CHANGED,
               CHANGED),
    "offer of a hello": (EARLY, swapped(STRONG.pack(), WEAK.pack()), "do not follow from both sides' offers",
                         "do not follow from both sides' offers"),
    "choice of a hello": (EARLY, swapped(choice("AES-256-GCM"), choice("AES-128-GCM")),
                          "do not follow from both sides' offers", "do not follow from both sides' offers"),
    "all of a hello": (EARLY, lambda c, f: swapped(STRONG.pack(), WEAK.pack())(
        c, swapped(choice("AES-256-GCM"), choice("AES-128-GCM"))(c, f)[0]),
        "was changed on its way", "was changed on its way"),
    "forward secrecy of a ticket": (("ticket-fs",), without_fs, f"the server refuses (parameters): {FS_ONLY}",
                                    FS_ONLY),
    "forward secrecy of a PSK": (("psk-fs",), without_fs, f"the server refuses (bad flight): {FS_SHARE}",
                                 FS_SHARE),
}


@pytest.mark.parametrize(("what", "mode"), [(w, m) for w, row in DOWNGRADES.items() for m in row[0]])
def test_parameters_that_are_downgraded_on_the_way(what, mode):
    _modes, tamper, at_client, at_server = DOWNGRADES[what]
    hosts = Hosts(mode, client={"offer": STRONG}, server={"offer": Offer(index_bits=19)}).resumable()
    rig = works(hosts)
    info = rig.managers[0].info(*to_server())
    assert info is not None
    assert (info.agreement.cipher, info.agreement.index_bits) == ("AES-256-GCM", 20)
    hosts.client["handshake_ns"] = hosts.server["handshake_ns"] = 500_000_000
    fails(hosts, at_client, at_server, tamper)


@pytest.mark.parametrize("kind", ["ticket", "psk"])
def test_a_server_that_leaves_the_choice_notices_lost_forward_secrecy_too(kind):
    """It would take a session without; but not from a client that asked for one with."""
    hosts = Hosts(kind, client={"mode": f"{kind}-fs"})
    if kind == "psk":
        hosts.resumable()
    works(hosts)
    text = FS_SHARE if kind == "psk" else "was changed on its way"
    fails(hosts, text, text, without_fs)


@pytest.mark.parametrize("kind", ["ticket", "psk"])
def test_a_client_that_wants_less_than_the_server_demands(kind):
    hosts = Hosts(f"{kind}-fs").resumable()
    hosts.client["mode"] = kind
    fails(hosts, "the server demands forward-secret sessions", "")
    del hosts.client["mode"]
    works(hosts)
    # Nor does it help not to look.
    hosts.client["mode"] = kind
    if kind == "ticket":
        ticket: Ticket = hosts.shelf.tickets[to_server()]
        hosts.shelf.tickets[to_server()] = replace(ticket, flags=ticket.flags & ~1)
        hosts.shelf.verifies = False
    else:
        psk = hosts.psks.get(*to_server(), UTC)
        assert psk is not None
        hosts.psks.put(*to_server(), replace(psk, forward_secret_only=False))
    fails(hosts, f"the server refuses (parameters): {FS_ONLY}", FS_ONLY)


# -- truncated flights -------------------------------------------------------------------------------------


def cut(monkeypatch: pytest.MonkeyPatch, kind: Kind, keep: Callable[[bytes], bytes], inside: bool) -> None:
    """From now on flights of this kind come cut: as they are, or what is in their last field."""
    whole = Flight.pack

    def pack(flight: Flight) -> bytes:
        if flight.kind is not kind:
            return whole(flight)
        if inside:
            flight = Flight(kind, (*flight.fields[:-1], keep(flight.fields[-1])))
        return whole(flight) if inside else keep(whole(flight))

    monkeypatch.setattr(Flight, "pack", pack)


KEEPS: dict[str, Callable[[bytes], bytes]] = {
    "nearly all": lambda b: b[:-1], "half": lambda b: b[:len(b) // 2], "a little": lambda b: b[:5]}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize(("kind", "mode"), [
    *((k, m) for k in (Kind.CLIENT_HELLO, Kind.SERVER_HELLO, Kind.CLIENT_FINISH) for m in TLS),
    *((Kind.EARLY_HELLO, m) for m in EARLY)])
def test_a_flight_that_is_cut_short(monkeypatch, kind, mode, keep, inside):
    settings = {"handshake_ns": 500_000_000}
    hosts = Hosts(mode, client=settings, server=dict(settings)).resumable()
    works(hosts)
    with monkeypatch.context() as m:
        cut(m, kind, KEEPS[keep], inside)
        # What is no flight belongs to no handshake: that one ends when its time is over.
        unfinished = kind is Kind.SERVER_HELLO or (kind is Kind.CLIENT_FINISH and not inside)
        rig = fails(hosts, "cut short", "the client did not finish its handshake" if unfinished else "cut short")
        if kind is not Kind.SERVER_HELLO and not inside:
            assert rig.managers[1].counters()["flights_bad"] == 1
    hosts.publish() if mode in TICKET else hosts.resumable()
    works(hosts)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize(("kind", "mode"), [*((Kind.SERVER_DONE, m) for m in TLS),
                                            *((Kind.EARLY_ANSWER, m) for m in EARLY)])
def test_a_last_flight_that_is_cut_short(monkeypatch, kind, mode, keep, inside):
    """By then the server knows its client and has its requests: once, and sealed. The client believes nothing."""
    hosts = Hosts(mode).resumable()
    works(hosts)
    cut(monkeypatch, kind, KEEPS[keep], inside)
    rig = hosts.rig(params=IMPATIENT)
    ask(rig)
    rig.run()
    assert rig.answered() == 0
    assert {f.reason for f in rig.failures()} == {Reason.NO_SESSION}
    assert all("cut short" in f.detail for f in rig.failures())
    assert "cut short" in rig.managers[0].last_failure
    assert rig.managers[0].counters()["handshakes_failed"] == 1
    assert rig.managers[0].counters()["sessions"] == 0
    assert rig.client.endpoint.counters.responses_delivered == 0
    assert in_clear(rig) == 0


@pytest.mark.parametrize("mode", TLS + EARLY)
def test_frames_that_are_cut_short(mode):
    """Every packet of the handshake loses its end: nobody understands anything, and both ends end it."""
    def shorten(_from_client: bool, frame: bytes) -> list[bytes]:
        return [frame[:-1]] if is_handshake(frame) else [frame]

    hosts = Hosts(mode, client={"handshake_ns": 500_000_000}).resumable()
    works(hosts)
    rig = hosts.rig(params=IMPATIENT, tamper=shorten)
    ask(rig)
    rig.run()
    assert rig.answered() == 0
    assert {f.reason for f in rig.failures()} == {Reason.NO_SESSION}
    assert rig.details() == {"the handshake took longer than 0.5 s"}
    assert rig.delivered == []
    # The server cannot know what it was; that something came, and was no good, it counts.
    assert rig.server.endpoint.counters.bad_packets > 0
    assert in_clear(rig) == 0
