"""SMT-tickets: what a client must know of a server to seal its first packet (paper §4.5).

A ticket is the server's long-term X25519 share, what the server would agree to, until when, and for which
address, with the server's certificate and a signature over all of it. It is public: DNS hands it out
(``session_io/ticket_dns.py``). The private half stays in the server's state (``state.py``).

On the wire, all numbers big-endian::

    version(1) id(16) share(32) ip(4) port(2) flags(1) not_before(8) not_after(8)
    name: length(1) bytes; offer: length(2) bytes; certificates: count(1), each length(2) bytes
    signature: length(2) bytes, over everything before it
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from dataclasses import dataclass, field, replace
from enum import IntFlag
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from smtstack.errors import BadPacket, ConfigError, HandshakeError
from smtstack.session.identity import Identity, verify_signature
from smtstack.session.offer import Offer
from smtstack.session.pool import SHARE_LEN, make_key
from smtstack.session.reader import Reader, pack_chain, vector
from smtstack.wire.ipv4 import format_address

VERSION = 2
ID_LEN = 16
#: Longest life of a ticket in seconds (paper §4.5: at most an hour).
MAX_LIFE_S = 3600
#: Seconds by which the clock of whoever made a ticket may be ahead of ours.
SKEW_S = 60
#: Longest ticket in bytes: a chain of several certificates fits, and a DNS answer holds it.
MAX_TICKET = 16_384
_CONTEXT = b"smtnet ticket 1"
_FIXED = struct.Struct(f"!B{ID_LEN}s{SHARE_LEN}sIHBQQ")


class TicketFlags(IntFlag):
    """What the server says of the sessions that begin with the ticket."""

    FS_REQUIRED = 1
    """Only with a forward-secret key after the first flight."""
    CLIENT_AUTH = 2
    """Only clients that show a certificate."""


_ALL_FLAGS = int(TicketFlags.FS_REQUIRED | TicketFlags.CLIENT_AUTH)


@dataclass(frozen=True, slots=True)
class Ticket:
    """One ticket. Times are Unix seconds; ``name`` is the host's, as its certificate has it."""

    ticket_id: bytes
    share: bytes
    ip: int
    port: int
    flags: TicketFlags
    not_before: int
    not_after: int
    name: str
    offer: Offer
    #: Certificates in DER, the server's own first.
    chain: tuple[bytes, ...]
    signature: bytes = b""

    def signed_part(self) -> bytes:
        """What the signature is over."""
        name, offer = self.name.encode(), self.offer.pack()
        return (_FIXED.pack(VERSION, self.ticket_id, self.share, self.ip, self.port, self.flags, self.not_before,
                            self.not_after)
                + bytes((len(name),)) + name + vector(offer) + pack_chain(self.chain))

    def pack(self) -> bytes:
        """Bytes of the ticket as DNS has it."""
        return self.signed_part() + vector(self.signature)

    def digest(self) -> bytes:
        """Names the ticket, down to the last bit, in a hello: 32 bytes."""
        return hashlib.sha256(self.pack()).digest()

    @property
    def forward_secret_only(self) -> bool:
        """Whether sessions that stay under the ticket's key are refused."""
        return bool(self.flags & TicketFlags.FS_REQUIRED)

    @property
    def wants_client(self) -> bool:
        """Whether a client must show a certificate."""
        return bool(self.flags & TicketFlags.CLIENT_AUTH)

    def verify(self, identity: Identity, ip: int, port: int, utc: int) -> str:
        """The name of the server at ``ip``, ``port``, whose ticket this is.

        Raises :class:`HandshakeError` where it is not, or not now, or not by somebody we trust.
        """
        if (self.ip, self.port) != (ip, port):
            raise HandshakeError(f"the ticket is for {format_address(self.ip)}:{self.port}, not for "
                                 f"{format_address(ip)}:{port}")
        if self.not_after - self.not_before > MAX_LIFE_S:
            raise HandshakeError(f"the ticket's life of {self.not_after - self.not_before} s is too long: "
                                 f"at most {MAX_LIFE_S} s are allowed")
        if utc > self.not_after:
            raise HandshakeError(f"the ticket expired {utc - self.not_after} s ago")
        if utc < self.not_before - SKEW_S:
            raise HandshakeError(f"the ticket is not yet valid: it begins in {self.not_before - utc} s "
                                 "(are both clocks right?)")
        name = identity.verify(self.chain, ip, utc, server=True)
        if self.name.lower() != name.lower():
            raise HandshakeError(f"the ticket names host {self.name!r}, its certificate {name!r}")
        verify_signature(self.chain[0], _CONTEXT, self.signed_part(), self.signature)
        return name


@dataclass(frozen=True, slots=True)
class TicketSecret:
    """A ticket as its server has it."""

    ticket: Ticket
    #: 32 bytes: the private half of its share.
    private: bytes = field(repr=False)
    revoked: bool = False

    def key(self) -> X25519PrivateKey:
        """The private half, to compute with."""
        return X25519PrivateKey.from_private_bytes(self.private)


class TicketSource(Protocol):
    """Where a client gets tickets."""

    def ticket(self, ip: int, port: int, utc: int) -> Ticket | None:
        """A verified ticket of that server; None: it is being looked up, and who does so says when to ask again
        (``SessionManager.tickets_came``). Never waits. Raises :class:`PeerError`."""

    def forget(self, ip: int, port: int) -> None:
        """The server did not take the ticket we had: ask again the next time."""


def issue(identity: Identity, ip: int, port: int, offer: Offer, *, forward_secret_only: bool, client_auth: bool,
          utc: int, life_s: int = MAX_LIFE_S) -> TicketSecret:
    """A new ticket for our server at ``ip``, ``port``. Raises :class:`ConfigError`."""
    if not 0 < life_s <= MAX_LIFE_S:
        raise ConfigError(f"a ticket's life is 1 to {MAX_LIFE_S} s, not {life_s}")
    key, share = make_key()
    flags = (TicketFlags.FS_REQUIRED if forward_secret_only else TicketFlags(0)) | (
        TicketFlags.CLIENT_AUTH if client_auth else TicketFlags(0))
    text = format_address(ip)
    ticket = Ticket(secrets.token_bytes(ID_LEN), share, ip, port, flags, utc, utc + life_s,
                    identity.names.get(text, text), offer, identity.chain)
    ticket = replace(ticket, signature=identity.sign(_CONTEXT, ticket.signed_part()))
    if len(ticket.pack()) > MAX_TICKET:
        raise ConfigError(f"the certificate chain is too long for a ticket of {MAX_TICKET} bytes")
    return TicketSecret(ticket, key.private_bytes_raw())


def parse_untrusted(data: bytes) -> Ticket:
    """The ticket in ``data``, not yet verified; raises :class:`BadPacket`."""
    if len(data) > MAX_TICKET:
        raise BadPacket(f"a ticket of {len(data)} bytes; {MAX_TICKET} are allowed")
    if data[:1] != bytes((VERSION,)):
        raise BadPacket(f"a ticket of version {data[0] if data else 'nothing'}; this is version {VERSION}")
    reader = Reader(data, "a ticket")
    _version, ticket_id, share, ip, port, flags, not_before, not_after = _FIXED.unpack(reader.take(_FIXED.size))
    if flags & ~_ALL_FLAGS:
        raise BadPacket(f"a ticket with unknown flags {flags:#x}")
    if not_after < not_before:
        raise BadPacket("a ticket that ends before it begins")
    try:
        name = reader.vector(1).decode("ascii")
    except UnicodeDecodeError:
        raise BadPacket("a ticket's name is not ASCII") from None
    if not name or not name.isprintable():
        raise BadPacket("a ticket's name is not printable")
    packed = reader.vector(2)
    offer = Offer.parse_untrusted(packed)
    if offer.pack() != packed:
        # The signature is over what we would write.
        raise BadPacket("a ticket's offer has parts that we do not know")
    chain = reader.chain()
    signature = reader.vector(2)
    reader.end()
    return Ticket(ticket_id, share, ip, port, TicketFlags(flags), not_before, not_after, name, offer, chain,
                  signature)


class TicketSchedule:
    """When a server makes its next ticket: every half life, so that each client finds one with half of it left."""

    #: Seconds until a publication that failed is tried again; twice as many after each, up to the second number.
    RETRY_S, MAX_RETRY_S = 5, 60

    def __init__(self, life_s: int = MAX_LIFE_S) -> None:
        if not 1 < life_s <= MAX_LIFE_S:
            raise ConfigError(f"a ticket's life is 2 to {MAX_LIFE_S} s, not {life_s}")
        self.life_s = life_s
        self._tried: int | None = None
        self._wait = 0
        self._retry = self.RETRY_S

    @property
    def next_due(self) -> int:
        """Unix seconds; 0: now."""
        return 0 if self._tried is None else self._tried + self._wait

    def due(self, utc: int) -> bool:
        """Whether it is time; also where the clock was set back to before the last ticket."""
        return self._tried is None or not self._tried <= utc < self._tried + self._wait

    def published(self, utc: int) -> None:
        """A ticket was."""
        self._tried, self._wait = utc, self.life_s // 2
        self._retry = self.RETRY_S

    def failed(self, utc: int) -> None:
        """A ticket could not be."""
        self._tried, self._wait = utc, min(self._retry, self.life_s // 2)
        self._retry = min(2 * self._retry, self.MAX_RETRY_S)

    def revoked(self) -> None:
        """The last one is of no use any more."""
        self._tried = None
