"""Ethernet II header (IEEE 802.3): no VLAN tags, no jumbo magic."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from smtstack.errors import BadPacket

ETHERTYPE_IPV4 = 0x0800
HEADER_LEN = 14
#: Bytes a frame costs a link beyond what we store: preamble 8, FCS 4, inter-frame gap 12.
FRAME_OVERHEAD = 24
#: Shortest frame without FCS; links count shorter ones as this long.
MIN_FRAME = 60

_HEADER = struct.Struct("!6s6sH")


@dataclass(frozen=True, slots=True)
class Ethernet:
    """Destination and source MAC (6 bytes each) and EtherType."""

    dst: bytes
    src: bytes
    ethertype: int = ETHERTYPE_IPV4

    def pack(self) -> bytes:
        """The 14 header bytes."""
        return _HEADER.pack(self.dst, self.src, self.ethertype)


def parse_untrusted(frame: bytes) -> Ethernet:
    """Header of ``frame``; raises :class:`BadPacket` when it is cut short."""
    if len(frame) < HEADER_LEN:
        raise BadPacket(f"frame of {len(frame)} bytes is shorter than an Ethernet header")
    dst, src, ethertype = _HEADER.unpack_from(frame)
    return Ethernet(dst, src, ethertype)


def format_mac(mac: bytes) -> str:
    """``02:00:0a:00:00:01`` for six bytes."""
    return ":".join(f"{b:02x}" for b in mac)
