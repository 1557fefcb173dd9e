"""Messages of the handshake plane, each the request or response of an RPC. Nothing here is authenticated,
but for what has a proof (``refusals``).

A message is ``version(1) kind(1)`` and then its fields in order, each as ``length(2) bytes``. What a field holds
is for TLS, ``offer`` or ``early`` to judge; parsing raises :class:`BadPacket` and nothing else.

=========== ========= ================================ ==========================================
kind        direction fields                           meaning
=========== ========= ================================ ==========================================
CLIENT_HELLO  request  handshake id, offer, TLS flight  begin a TLS 1.3 handshake
SERVER_HELLO  response choice, TLS flight               its answer
CLIENT_FINISH request  handshake id, TLS flight         Finished and what follows
SERVER_DONE   response TLS flight, proof                the session is there
EARLY_HELLO   request  hello                            begin with a ticket or PSK: 0-RTT
EARLY_ANSWER  response answer                           the session is there
CLOSE         request  proof                            forget the session
CLOSED        response                                  done, or there was none
REFUSED       response code, text, TLS flight, proof    no session, and why
=========== ========= ================================ ==========================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from smtstack.errors import BadPacket
from smtstack.transport.params import MIN_MTU

#: 2: offers name an MTU, and refusals are signed.
VERSION = 2
#: Longest message of the plane, in bytes: a chain of several certificates fits.
MAX_FLIGHT = 1 << 16
ID_LEN = 16
PROOF_LEN = 32
_MAX_TEXT = 300


class Kind(IntEnum):
    """Second byte of every message."""

    CLIENT_HELLO = 1
    SERVER_HELLO = 2
    CLIENT_FINISH = 3
    SERVER_DONE = 4
    EARLY_HELLO = 5
    EARLY_ANSWER = 6
    CLOSE = 7
    CLOSED = 8
    REFUSED = 9


_FIELDS = {Kind.CLIENT_HELLO: 3, Kind.SERVER_HELLO: 2, Kind.CLIENT_FINISH: 2, Kind.SERVER_DONE: 2,
           Kind.EARLY_HELLO: 1, Kind.EARLY_ANSWER: 1, Kind.CLOSE: 1, Kind.CLOSED: 0, Kind.REFUSED: 4}


class Refusal(IntEnum):
    """Why there is no session; what the client is told."""

    BAD_FLIGHT = 1
    TLS = 2
    PARAMETERS = 3
    NOT_ACCEPTED = 4
    CERTIFICATE = 5
    TICKET_UNKNOWN = 6
    TICKET_EXPIRED = 7
    TICKET_REVOKED = 8
    REPLAYED = 9
    BUSY = 10
    NO_HANDSHAKE = 11
    CROSSED = 12


@dataclass(frozen=True, slots=True)
class Flight:
    """One message: its kind and fields, in the order of the table above."""

    kind: Kind
    fields: tuple[bytes, ...] = ()
    #: Bytes of the IP packets that its receiver is known to take.
    mtu: int = field(default=MIN_MTU, compare=False)

    def pack(self) -> bytes:
        """The bytes of the RPC's message."""
        return bytes((VERSION, self.kind)) + b"".join(len(f).to_bytes(2, "big") + f for f in self.fields)


def refused(code: Refusal, text: str, tls: bytes = b"") -> Flight:
    """A refusal, without proof."""
    return Flight(Kind.REFUSED, (bytes((code,)), text.encode()[:_MAX_TEXT], tls, b""))


def parse_untrusted(data: bytes) -> Flight:
    """The message in ``data``; raises :class:`BadPacket`."""
    if len(data) < 2:
        raise BadPacket("a flight is cut short")
    if data[0] != VERSION:
        raise BadPacket(f"a flight of version {data[0]}; this is version {VERSION}: both ends need the same "
                        "release of smtnet")
    try:
        kind = Kind(data[1])
    except ValueError:
        raise BadPacket(f"unknown kind of flight {data[1]}") from None
    fields: list[bytes] = []
    at = 2
    while at < len(data):
        if len(data) - at < 2:
            raise BadPacket(f"{kind.name} is cut short")
        size = int.from_bytes(data[at:at + 2], "big")
        at += 2
        if size > len(data) - at:
            raise BadPacket(f"{kind.name} is cut short")
        fields.append(data[at:at + size])
        at += size
    if len(fields) != _FIELDS[kind]:
        raise BadPacket(f"{kind.name} has {len(fields)} fields, not {_FIELDS[kind]}")
    if kind in (Kind.CLIENT_HELLO, Kind.CLIENT_FINISH) and len(fields[0]) != ID_LEN:
        raise BadPacket(f"{kind.name} has a handshake id of {len(fields[0])} bytes, not {ID_LEN}")
    if kind is Kind.SERVER_DONE and len(fields[1]) != PROOF_LEN:
        raise BadPacket("the proof in SERVER_DONE is cut short")
    if kind is Kind.REFUSED and len(fields[0]) != 1:
        raise BadPacket("REFUSED without a code")
    return Flight(kind, tuple(fields))


def refusal_text(flight: Flight) -> str:
    """What a REFUSED says, for people: printable, and marked as the other side's word."""
    code, text, _tls, _proof = flight.fields
    try:
        name = Refusal(code[0]).name.lower().replace("_", " ")
    except ValueError:
        name = f"code {code[0]}"
    said = "".join(c if c.isprintable() else "?" for c in text.decode("utf-8", "replace"))
    return f"the server refuses ({name}): {said}"
