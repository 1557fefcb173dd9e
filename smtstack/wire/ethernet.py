"""Ethernet II header (IEEE 802.3): no VLAN tags, no jumbo magic."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Final

from smtstack.errors import BadPacket, ConfigError

ETHERTYPE_IPV4: Final = 0x0800
HEADER_LEN: Final = 14
ETHERTYPE_OFFSET: Final = 12
#: Bytes a frame costs a link beyond what we store: preamble 8, FCS 4, inter-frame gap 12.
FRAME_OVERHEAD: Final = 24
#: Shortest frame without FCS; links count shorter ones as this long.
MIN_FRAME: Final = 60
#: Paths a host can be reached by: :func:`path_mac` tells so many apart.
MAX_PATHS: Final = 255

_HEADER: Final = struct.Struct("!6s6sH")
_MAC: Final = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")


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


def path_mac(mac: bytes, path: int) -> bytes:
    """The address that leads to the host ``mac`` by path 0 to :data:`MAX_PATHS` - 1, if switches know it.

    Byte 1 is changed: byte 0 says that the address is a single host's and locally administered, the others
    tell hosts apart. The last switch puts the host's own address back.
    """
    return bytes((mac[0], mac[1] ^ path + 1)) + mac[2:]


def path_of(mac: bytes, address: bytes) -> int | None:
    """The path that ``address`` names to the host ``mac``; None if it is that host's own or another's address."""
    path = (mac[1] ^ address[1]) - 1
    return path if path >= 0 and path_mac(mac, path) == address else None


def parse_mac(text: str) -> bytes:
    """The six bytes of ``02:00:0a:00:00:01``. Raises :class:`ConfigError` for anything else."""
    if not _MAC.fullmatch(text):
        raise ConfigError(f"{text!r} is no MAC address, as 02:00:00:00:00:01")
    return bytes.fromhex(text.replace(":", ""))
