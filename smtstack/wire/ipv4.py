"""IPv4 header (RFC 791) as Homa and SMT use it: 20 bytes, no options, never fragmented.

The identification field is protocol state: it counts the packets of a TSO segment
(``reference: SMT paper §4.3``), so it is always under our control and DF is always set.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from smtstack.errors import BadPacket

HEADER_LEN: Final = 20
#: Where fields begin.
TOS_OFFSET: Final = 1
TOTAL_LENGTH_OFFSET: Final = 2
IDENTIFICATION_OFFSET: Final = 4
PROTOCOL_OFFSET: Final = 9
SRC_OFFSET: Final = 12
DST_OFFSET: Final = 16
VERSION_IHL: Final = 0x45
FLAG_DF: Final = 0x4000
#: MF flag and fragment offset: any bit of these set means a fragment.
FRAGMENT_MASK: Final = 0x3FFF
DEFAULT_TTL: Final = 64
#: IANA's number of TCP.
PROTO_TCP: Final = 6

_HEADER: Final = struct.Struct("!BBHHHBBHII")


@dataclass(frozen=True, slots=True)
class IPv4:
    """One header. ``src`` and ``dst`` are 32-bit integers; ``tos`` holds the priority in its top 3 bits."""

    src: int
    dst: int
    protocol: int
    total_length: int
    identification: int = 0
    tos: int = 0
    ttl: int = DEFAULT_TTL
    flags_fragment: int = FLAG_DF

    def pack(self) -> bytes:
        """The 20 header bytes with a correct checksum."""
        fields = (self.flags_fragment, self.ttl, self.protocol)
        bare = _HEADER.pack(VERSION_IHL, self.tos, self.total_length, self.identification, *fields, 0,
                            self.src, self.dst)
        return _HEADER.pack(VERSION_IHL, self.tos, self.total_length, self.identification, *fields,
                            checksum(bare), self.src, self.dst)


def checksum(header: bytes) -> int:
    """RFC 1071 checksum of an even number of bytes whose checksum field is zero.

    A ones' complement sum is the big-endian number modulo 65535, which Python computes in one step.
    """
    folded = int.from_bytes(header, "big") % 0xFFFF
    # A sum of -0 (0xFFFF) looks like +0 here; both give 0.
    return (0xFFFF - folded) % 0xFFFF


def checksum_ok(header: bytes) -> bool:
    """Whether the 20 bytes, checksum included, sum to (ones' complement) zero."""
    return int.from_bytes(header, "big") % 0xFFFF == 0


def parse_untrusted(buf: bytes) -> IPv4:
    """Header at the start of ``buf``; raises :class:`BadPacket` for anything Homa would not send."""
    if len(buf) < HEADER_LEN:
        raise BadPacket(f"{len(buf)} bytes are too few for an IPv4 header")
    vihl, tos, total, ident, frag, ttl, proto, _sum, src, dst = _HEADER.unpack_from(buf)
    if vihl != VERSION_IHL:
        raise BadPacket(f"IP version/IHL byte {vihl:#04x}, expected 0x45 (IPv4 without options)")
    if frag & FRAGMENT_MASK:
        raise BadPacket("IP fragment: Homa packets always carry DF")
    if not HEADER_LEN <= total <= len(buf):
        raise BadPacket(f"IP total length {total} in a buffer of {len(buf)}")
    if not checksum_ok(buf[:HEADER_LEN]):
        raise BadPacket("IP header checksum is wrong")
    return IPv4(src, dst, proto, total, ident, tos, ttl, frag)


@lru_cache(maxsize=1024)
def address(text: str) -> int:
    """``"10.0.0.1"`` as a 32-bit integer; raises ValueError for anything else."""
    parts = text.split(".")
    numbers = [int(p) for p in parts if p.isascii() and p.isdigit()]
    # "010" is 8 to some tools and 10 to others.
    if len(parts) != 4 or [str(n) for n in numbers] != parts or max(numbers) > 255:
        raise ValueError(f"{text!r} is no IPv4 address")
    return int.from_bytes(bytes(numbers), "big")


def format_address(value: int) -> str:
    """Dotted quad of a 32-bit integer."""
    return ".".join(str(b) for b in value.to_bytes(4, "big"))
