"""Tickets by DNS, on loopback: a server that answers whatever a test says. (knotd: tests/net/test_dns.py.)"""

from __future__ import annotations

import base64
import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("dns", reason="dnspython is not installed")
import dns.flags
import dns.message
import dns.rcode
import dns.rrset

from smtstack.errors import ConfigError, HandshakeError, PeerError
from smtstack.session.offer import Offer
from smtstack.session.state import MemoryState, StateError
from smtstack.session.tickets import Ticket
from smtstack.session_io import dns_exchange
from smtstack.session_io.ticket_dns import MARGIN_S, DnsTickets, TicketPublisher
from smtstack.session_io.tsig_file import TsigKey, make_tsig, read_tsig, write_tsig
from tests.certificates import IP_B, UTC, Authority, B, Leaf
from tests.patience import FACTOR
from tests.tickets import CLIENT, PORT_B, SERVER, make_ticket

NAME = "_2000._smt.b.smtnet.test."
#: Seconds for what should not be answered.
SHORT = 0.3

#: What follows the id in an answer to an update that says that it was made, and is not signed (RFC 2136 §2.2).
_UPDATED = struct.pack("!5H", 0xA800, 0, 0, 0, 0)
#: From a query to what is sent back, one after the other. The second argument: whether it came over TCP.
Answer = Callable[[dns.message.Message, bool], "list[bytes]"]


class FakeDns:
    """Answers as told until it is stopped; keeps the queries."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.queries: list[tuple[dns.message.Message, bool]] = []
        self._tcp = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._tcp.getsockname()
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(self.address)
        self._threads = [threading.Thread(target=self._serve_udp), threading.Thread(target=self._serve_tcp)]
        for thread in self._threads:
            thread.start()

    def _reply(self, wire: bytes, by_tcp: bool) -> list[bytes]:
        try:
            query = dns.message.from_wire(wire)
        except dns.message.UnknownTSIGKey:  # an update
            return [wire[:2] + _UPDATED]
        self.queries.append((query, by_tcp))
        return self._answer(query, by_tcp)

    def _serve_udp(self) -> None:
        while True:
            data, peer = self._udp.recvfrom(65_535)
            if not data:
                return
            for reply in self._reply(data, False):
                self._udp.sendto(reply, peer)

    def _serve_tcp(self) -> None:
        while True:
            connection, _peer = self._tcp.accept()
            with connection:
                connection.settimeout(5)
                size = connection.recv(2)
                if not size:
                    return
                for reply in self._reply(connection.recv(int.from_bytes(size, "big")), True):
                    connection.sendall(struct.pack("!H", len(reply)) + reply)

    def stop(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.sendto(b"", self.address)
        socket.create_connection(self.address).close()
        for thread in self._threads:
            thread.join(10)
        self._tcp.close()
        self._udp.close()


@contextmanager
def answering(answer: Answer) -> Iterator[FakeDns]:
    server = FakeDns(answer)
    try:
        yield server
    finally:
        server.stop()


def response(query: dns.message.Message, *texts: bytes, ttl: int = 60, name: str = NAME) -> dns.message.Message:
    """TXT records with these contents, in pieces."""
    answer = dns.message.make_response(query)
    for text in texts:
        pieces = " ".join(f'"{text[i:i + 255].decode()}"' for i in range(0, len(text), 255))
        answer.answer.append(dns.rrset.from_text(name, ttl, "IN", "TXT", pieces))
    return answer


def encoded(ticket: Ticket) -> bytes:
    return base64.b64encode(ticket.pack())


def given(*texts: bytes, ttl: int = 60, name: str = NAME) -> Answer:
    return lambda query, _tcp: [response(query, *texts, ttl=ttl, name=name).to_wire(max_size=65_535)]


TICKET = make_ticket(MemoryState())
AUTHORITY = Authority()


def test_a_ticket_is_found_verified_and_kept():
    with answering(given(encoded(TICKET), ttl=30)) as server:
        source = DnsTickets(CLIENT, server.address)
        assert source.ticket(IP_B, PORT_B, UTC) == TICKET
        assert source.ticket(IP_B, PORT_B, UTC + 29) == TICKET
        assert (len(server.queries), source.lookups) == (1, 1)
        assert str(server.queries[0][0].question[0].name) == NAME
        source.ticket(IP_B, PORT_B, UTC + 30)
        assert len(server.queries) == 2
        source.forget(IP_B, PORT_B)
        source.ticket(IP_B, PORT_B, UTC + 31)
        assert len(server.queries) == 3


def test_a_ticket_is_kept_no_longer_than_it_lives():
    ticket = make_ticket(MemoryState(), life_s=20)
    with answering(given(encoded(ticket), ttl=60)) as server:
        source = DnsTickets(CLIENT, server.address)
        source.ticket(IP_B, PORT_B, UTC)
        source.ticket(IP_B, PORT_B, UTC + 19 - MARGIN_S)
        assert source.lookups == 1
        source.ticket(IP_B, PORT_B, UTC + 20 - MARGIN_S)
        assert source.lookups == 2
        with pytest.raises(HandshakeError, match="expired"):
            source.ticket(IP_B, PORT_B, UTC + 21)


def test_a_long_answer_comes_over_tcp():
    def answer(query: dns.message.Message, by_tcp: bool) -> list[bytes]:
        whole = response(query, encoded(TICKET))
        if not by_tcp:
            whole.answer.clear()
            whole.flags |= dns.flags.TC
        return [whole.to_wire()]

    with answering(answer) as server:
        assert DnsTickets(CLIENT, server.address).ticket(IP_B, PORT_B, UTC) == TICKET
        assert [by_tcp for _query, by_tcp in server.queries] == [False, True]


def test_forged_answers_do_not_hide_the_true_one():
    def answer(query: dns.message.Message, _tcp: bool) -> list[bytes]:
        true = response(query, encoded(TICKET)).to_wire()
        wrong_id = bytes((true[0] ^ 1,)) + true[1:]
        other_name = dns.message.make_query("_2000._smt.c.smtnet.test.", "TXT", id=query.id)
        return [b"", b"junk", wrong_id, response(other_name, b"AAAA").to_wire(), true]

    with answering(answer) as server:
        assert DnsTickets(CLIENT, server.address).ticket(IP_B, PORT_B, UTC) == TICKET


def test_a_lost_question_is_asked_again():
    seen = []

    def answer(query: dns.message.Message, _tcp: bool) -> list[bytes]:
        seen.append(query.id)
        return [] if len(seen) == 1 else [response(query, encoded(TICKET)).to_wire()]

    with answering(answer) as server:
        ticket, ttl = dns_exchange.lookup("b", PORT_B, server.address, timeout=3)
        assert (ticket, ttl) == (TICKET, 60)
        assert len(seen) == 2


def test_of_several_the_last_that_ends_is_taken():
    early, late = make_ticket(MemoryState(), life_s=10), make_ticket(MemoryState(), life_s=20)
    with answering(given(b"!", encoded(early), encoded(late))) as server:
        assert dns_exchange.lookup("b", PORT_B, server.address)[0] == late


def failing(code: dns.rcode.Rcode) -> Answer:
    def answer(query: dns.message.Message, _tcp: bool) -> list[bytes]:
        said = dns.message.make_response(query)
        said.set_rcode(code)
        return [said.to_wire()]
    return answer


BAD: dict[str, tuple[Answer, str]] = {
    "no such name": (failing(dns.rcode.NXDOMAIN), r"host b has no ticket at _2000\._smt\.b\.smtnet\.test\."),
    "no such record": (given(), "host b has no ticket at"),
    "record of another": (given(encoded(TICKET), name="_2000._smt.c.smtnet.test."), "host b has no ticket at"),
    "server fails": (failing(dns.rcode.SERVFAIL), "answers SERVFAIL for _2000"),
    "server refuses": (failing(dns.rcode.REFUSED), "answers REFUSED for"),
    "not base64": (given(b"~~~~"), "has no ticket at .*, but: a record that is not base64"),
    "not a ticket": (given(base64.b64encode(b"hello")), "has no ticket at .*, but: a ticket of version"),
    "too long": (given(base64.b64encode(bytes(17_000))), "has no ticket at .*, but: a record too long"),
    "silence": (lambda _query, _tcp: [], r"no DNS server answers at 127\.0\.0\.1:\d+ \(no answer\)"),
    "nonsense": (lambda _query, _tcp: [b"\xff" * 20], "answers what is no DNS"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_dns_does_wrong_is_said(what: str):
    answer, text = BAD[what]
    timeout = SHORT if what == "silence" else dns_exchange.TIMEOUT_S * FACTOR
    with answering(answer) as server, pytest.raises(PeerError, match=text):
        dns_exchange.lookup("b", PORT_B, server.address, timeout=timeout)


def test_nobody_there_is_noticed_at_once():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.1", 0))
        address = s.getsockname()
    with pytest.raises(PeerError, match=r"no DNS server answers at 127\.0\.0\.1:\d+ \(Connection refused\)"):
        DnsTickets(CLIENT, address).ticket(IP_B, PORT_B, UTC)
    publisher = make_publisher(address, make_tsig())
    with pytest.raises(PeerError, match=r"no DNS server answers at 127\.0\.0\.1:\d+ \(Connection refused\)"):
        publisher.publish(UTC)


def test_dns_cannot_slip_in_a_ticket():
    forged = make_ticket(MemoryState(), Authority(name="another").identity("b", B))
    with answering(given(encoded(forged))) as server:
        source = DnsTickets(CLIENT, server.address)
        with pytest.raises(HandshakeError, match="unable to get local issuer"):
            source.ticket(IP_B, PORT_B, UTC)
        with pytest.raises(HandshakeError, match="unable to get local issuer"):
            source.ticket(IP_B, PORT_B, UTC)
        assert source.lookups == 2


@pytest.mark.parametrize("host", ["", "a b", "x" * 64, "ä", "a..b"])
def test_names_dns_cannot_have(host: str):
    with pytest.raises(ConfigError, match="is no name of a host in DNS"):
        dns_exchange.record_name(host, 2000)


# -- publishing -------------------------------------------------------------------------------------------------


def make_publisher(address: tuple[str, int], key: TsigKey, state: MemoryState | None = None,
                   life_s: int = 100) -> TicketPublisher:
    return TicketPublisher(SERVER, state or MemoryState(), IP_B, PORT_B, Offer(), forward_secret_only=False,
                           client_auth=True, server=address, key=key, life_s=life_s)


def test_what_could_not_be_published_is_tried_again_with_the_same_ticket():
    state = MemoryState()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = s.getsockname()
        publisher = make_publisher(address, make_tsig(), state)
        assert publisher.due(UTC)
        for utc in (UTC, UTC + 5, UTC + 15):
            assert publisher.due(utc)
            with pytest.raises(PeerError):
                publisher.publish(utc)
            assert not publisher.due(utc)
        assert len(state.tickets()) == 1
        # A quarter of its life is gone: a fresh one.
        with pytest.raises(PeerError):
            publisher.publish(UTC + 35)
        assert len(state.tickets()) == 2
        assert publisher.current is None


def tended(publisher: TicketPublisher, utc: int) -> None:
    """Until what it began is over."""
    publisher.tend(utc)
    assert publisher._thread is not None
    publisher._thread.join(10)
    publisher.tend(utc)


def test_a_server_that_runs_never_waits_for_dns(monkeypatch: pytest.MonkeyPatch):
    state, go, sent = MemoryState(), threading.Event(), []
    publisher = make_publisher(("127.0.0.1", 53), make_tsig(), state)

    def publish(ticket: Ticket, *_where: object) -> None:
        assert go.wait(10)
        sent.append(ticket)
        if len(sent) == 2:
            raise dns_exchange.NoDns("nobody there")

    monkeypatch.setattr(dns_exchange, "publish", publish)
    publisher.tend(UTC)
    for _ in range(3):
        publisher.tend(UTC)
    assert (publisher.current, len(state.tickets())) == (None, 1)
    go.set()
    assert publisher._thread is not None
    publisher._thread.join(10)
    publisher.tend(UTC)
    assert publisher.current == sent[0] == state.tickets()[0].ticket
    assert publisher.next_due == UTC + 50
    publisher.tend(UTC + 49)
    assert len(state.tickets()) == 1
    # The second fails, and is tried again.
    tended(publisher, UTC + 50)
    assert publisher.failure == "the ticket could not be published: nobody there"
    assert (publisher.next_due, publisher.current) == (UTC + 55, sent[0])
    tended(publisher, UTC + 55)
    assert publisher.failure == ""
    assert publisher.current == sent[2] == sent[1]
    # Revoked, it is replaced at once.
    state.revoke(sent[2].ticket_id)
    tended(publisher, UTC + 56)
    assert publisher.current == sent[3] != sent[2]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_update_that_breaks_off_published_nothing(monkeypatch: pytest.MonkeyPatch):
    publisher = make_publisher(("127.0.0.1", 53), make_tsig(), MemoryState())

    def publish(*_args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(dns_exchange, "publish", publish)
    tended(publisher, UTC)
    assert publisher.current is None
    assert publisher.failure == "the ticket could not be published: the update broke off"
    monkeypatch.setattr(dns_exchange, "publish", lambda *_args: None)
    tended(publisher, UTC + 5)
    assert (publisher.current is not None, publisher.failure) == (True, "")


def test_state_that_cannot_be_written_publishes_nothing(monkeypatch: pytest.MonkeyPatch):
    state = MemoryState()
    publisher = make_publisher(("127.0.0.1", 53), make_tsig(), state)

    def fail(*_args: object) -> None:
        raise StateError("disk is gone")

    monkeypatch.setattr(state, "add_ticket", fail)
    monkeypatch.setattr(dns_exchange, "publish", lambda *_args: pytest.fail("published all the same"))
    publisher.tend(UTC)
    assert publisher._thread is None
    assert publisher.failure == "the ticket could not be published: disk is gone"
    assert publisher.next_due == UTC + 5


@pytest.mark.parametrize(("leaf", "text"), [
    (Leaf(after=UTC - 1), "our certificate is not accepted: certificate has expired"),
    (Leaf(before=UTC + 1), "our certificate is not accepted: certificate is not yet valid"),
    (Leaf(dns=["c"]), r"our certificate is not for b \(10\.0\.0\.2\), but for 10\.0\.0\.2, c"),
])
def test_a_ticket_that_no_client_would_take_is_not_published(leaf: Leaf, text: str):
    """Clients see it without asking the server, who would never know."""
    for identity, wrong in ((AUTHORITY.identity("b", B, leaf), text), (AUTHORITY.identity("b", B), "")):
        state = MemoryState()
        with answering(lambda _query, _tcp: []) as server:
            publisher = TicketPublisher(identity, state, IP_B, PORT_B, Offer(), forward_secret_only=False,
                                        client_auth=True, server=server.address, key=make_tsig())
            with pytest.raises(ConfigError if wrong else PeerError, match=wrong or "does not sign its answer"):
                publisher.publish(UTC)
            assert len(state.tickets()) == (0 if wrong else 1)
            # One that runs says so and runs on.
            publisher.tend(UTC)
            if wrong:
                assert re.search(f"could not be published: no client would take our ticket: {wrong}",
                                 publisher.failure)


def test_a_silent_server_is_not_asked_by_everybody():
    with answering(lambda _query, _tcp: []) as server:
        source = DnsTickets(CLIENT, server.address)
        with pytest.MonkeyPatch.context() as m:
            m.setattr(dns_exchange, "TIMEOUT_S", SHORT)
            m.setattr(dns_exchange.lookup, "__kwdefaults__", {"timeout": SHORT})
            for _ in range(3):
                with pytest.raises(PeerError, match="no answer"):
                    source.ticket(IP_B, PORT_B, UTC)
        assert source.lookups == 1


def test_an_unsigned_consent_is_none():
    """Somebody between says that the update was made."""
    with answering(given()) as server, pytest.raises(PeerError, match=r"does not let us change smtnet\.test"):
        make_publisher(server.address, make_tsig()).publish(UTC)


# -- the key's file ---------------------------------------------------------------------------------------------


def test_a_tsig_key_in_a_file(tmp_path: Path):
    key, path = make_tsig(), tmp_path / "tsig.key"
    assert make_tsig() != key
    write_tsig(path, key)
    assert read_tsig(path) == key
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() == f"hmac-sha256:smtnet:{key.secret_text()}\n"
    with pytest.raises(ConfigError, match="File exists"):
        write_tsig(path, make_tsig())
    assert read_tsig(path) == key
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=r"can be read by others \(mode 644\); chmod 600"):
        read_tsig(path)
    with pytest.raises(ConfigError, match=r"absent: No such file .*; 'smtnet ca --publisher HOST' makes one"):
        read_tsig(tmp_path / "absent")
    assert key.secret_text() not in repr(key)


@pytest.mark.parametrize("text", ["", "x", "hmac-sha256:a:!!", "hmac-md5:a:AAAA", "hmac-sha256::AAAA",
                                  "hmac-sha256:a b:AAAA", "hmac-sha256:a:", 'hmac-sha256:a";:AAAA'])
def test_files_that_are_no_tsig_key(tmp_path: Path, text: str):
    path = tmp_path / "tsig.key"
    path.touch(0o600)
    path.write_text(text)
    os.chmod(path, 0o600)
    with pytest.raises(ConfigError, match="is no TSIG key"):
        read_tsig(path)
