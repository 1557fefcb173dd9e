"""Whose word counts for an update of the zone: only what is signed by the key we signed with, for what we sent.

All answers come from somebody between, over loopback. What of this dnspython would notice by itself depends on its
release.
"""

from __future__ import annotations

import hmac
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("dns", reason="dnspython is not installed")
import dns.message
import dns.name
import dns.query

from smtstack.errors import PeerError
from smtstack.session.state import MemoryState
from smtstack.session_io import dns_exchange
from smtstack.session_io.tsig_file import TsigKey, make_tsig
from tests.tickets import PORT_B, make_ticket

KEY = make_tsig()
TICKET = make_ticket(MemoryState())
#: From an update, on the wire, to the answer.
Answer = Callable[[bytes], bytes]
REFUSED, BADSIG, BADTIME = 5, 16, 18


@contextmanager
def answering(answer: Answer) -> Iterator[tuple[str, int]]:
    """A DNS server for one update."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def serve() -> None:
            connection, _peer = listener.accept()
            with connection:
                size = struct.unpack("!H", connection.recv(2, socket.MSG_WAITALL))[0]
                said = answer(connection.recv(size, socket.MSG_WAITALL))
                connection.sendall(struct.pack("!H", len(said)) + said)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()
        thread.join(10)


def unsigned(update: bytes, code: int = 0, additional: int = 0) -> bytes:
    """A header alone: that the update was made, or why not (RFC 2136 §2.2)."""
    return update[:2] + struct.pack("!5H", 0xA800 | code, 0, 0, 0, additional)


def signed(update: bytes, *, key: TsigKey = KEY, algorithm: str = "hmac-sha256", code: int = 0, error: int = 0,
           of: bytes = b"", ago: int = 0, mac_len: int | None = None, changed: int = 0) -> bytes:
    """An answer with a TSIG record as RFC 8945 §4.2 and §4.3 have it, but for what is said."""
    asked = dns.message.from_wire(update, keyring={dns.name.from_text(KEY.name): KEY.secret}).mac
    assert asked is not None
    request = of or struct.pack("!H", len(asked)) + asked
    name, names = (dns.name.from_text(n).to_wire() or b"" for n in (key.name, algorithm))
    when = int(time.time()) - ago
    times = struct.pack("!HIH", when >> 32, when & 0xFFFFFFFF, 300)
    content = (request + unsigned(update, code) + name + struct.pack("!HI", 255, 0) + names + times
               + struct.pack("!HH", error, 0))
    mac = hmac.digest(key.secret, content, algorithm.removeprefix("hmac-"))[:mac_len]
    rdata = names + times + struct.pack("!H", len(mac)) + mac + update[:2] + struct.pack("!HH", error, 0)
    return (unsigned(update, code ^ changed, additional=1) + name
            + struct.pack("!HHIH", 250, 255, 0, len(rdata)) + rdata)


ANOTHER = make_tsig()
NOT_OURS: dict[str, Answer] = {
    "nobody": unsigned,
    "nobody, and refused": lambda u: unsigned(u, REFUSED),
    "a key of our key's name": lambda u: signed(u, key=ANOTHER),
    "a key of another name": lambda u: signed(u, key=TsigKey("other", ANOTHER.secret)),
    "our key by another name": lambda u: signed(u, key=TsigKey("other", KEY.secret)),
    "another algorithm": lambda u: signed(u, algorithm="hmac-sha512"),
    "a weak algorithm": lambda u: signed(u, algorithm="hmac-md5"),
    "the answer to another update": lambda u: signed(u, of=struct.pack("!H", 32) + bytes(32)),
    "an answer to no update": lambda u: signed(u, of=struct.pack("!H", 0)),
    "yesterday": lambda u: signed(u, ago=86_400),
    "a refusal made a consent": lambda u: signed(u, code=REFUSED, changed=REFUSED),
    "no signature in the record": lambda u: signed(u, mac_len=0),
    "a byte of a signature": lambda u: signed(u, mac_len=1),
    "half a signature": lambda u: signed(u, mac_len=15),
    "an error that is unsigned": lambda u: signed(u, error=BADSIG, mac_len=0),
    "an error in the record": lambda u: signed(u, error=BADTIME),
}


def publish(server: tuple[str, int]) -> None:
    dns_exchange.publish(TICKET, server, KEY)


def withdraw(server: tuple[str, int]) -> None:
    dns_exchange.withdraw("b", PORT_B, server, KEY)


@pytest.mark.parametrize("change", [publish, withdraw])
@pytest.mark.parametrize("who", NOT_OURS)
def test_a_consent_that_our_key_did_not_sign_is_none(who, change):
    with answering(NOT_OURS[who]) as server, pytest.raises(PeerError, match=r"DNS server 127\.0\.0\.1:\d+ "):
        change(server)


@pytest.mark.parametrize("change", [publish, withdraw])
def test_what_our_key_signs_counts(change):
    """The control."""
    with answering(signed) as server:
        change(server)
    with answering(lambda u: signed(u, code=REFUSED)) as server, \
            pytest.raises(PeerError, match=r"does not let us change smtnet\.test: REFUSED"):
        change(server)


@pytest.mark.parametrize("change", [publish, withdraw])
def test_a_library_that_looks_at_no_signature_changes_nothing(change, monkeypatch):
    """Whatever its release takes for an answer."""
    monkeypatch.setattr(dns.query, "tcp", lambda u, *_where: dns.message.from_wire(unsigned(u.to_wire())))
    with pytest.raises(PeerError, match="it does not sign its answer"):
        change(("127.0.0.1", 53))
