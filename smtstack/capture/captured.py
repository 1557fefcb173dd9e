"""What a capture file gives: packets, and remarks about the file."""

from __future__ import annotations

from collections import Counter
from typing import BinaryIO, NamedTuple

from smtstack.errors import BadPacket

#: How the name of an interface ends whose packets never were on a wire: what a driver posts to its NIC.
HOST_SIDE = " host"
#: What its frames are called where they are counted.
HOST_SEGMENTS = "segments of the host side, before the NIC"

#: Bytes of the longest packet read; tcpdump's largest snap length is a quarter of it.
MAX_PACKET = 1 << 20
#: Bytes of all secrets that one file may hold.
MAX_SECRETS = 1 << 30
NS = 1_000_000_000
_MAX_TIME = (1 << 64) - 1
_CHUNK = 1 << 16


class Captured(NamedTuple):
    """One packet of a capture file."""

    #: Nanoseconds since 1970; 0 where the file has no time (pcapng simple packets).
    timestamp_ns: int
    #: ``LINKTYPE_`` number: what ``frame`` begins with.
    link_type: int
    frame: bytes
    #: Name of the interface, where the file has one (pcapng).
    interface: str = ""
    #: What is noted with the packet (pcapng), line by line.
    comment: str = ""
    #: Whether it left or entered; None: the file does not say (pcapng).
    outwards: bool | None = None
    #: Bytes at the end of the packet that the capture did not keep (its snap length).
    missing: int = 0


class Remarks:
    """What is to be said about a file beside its packets, as far as it was read."""

    def __init__(self) -> None:
        #: Packets (at most one) that the end of the file cut off; they are not delivered.
        self.truncated = 0
        #: Delivered packets of which the capture kept the beginning only (its snap length).
        self.shortened = 0
        #: Packets of more than :data:`MAX_PACKET` bytes; they are not delivered.
        self.oversized = 0
        #: Contents of the blocks with TLS secrets met so far, in the format of NSS (pcapng).
        self.tls_secrets: list[bytes] = []
        #: Blocks that hold something we do not read, by name (pcapng). Those that never hold packets of a network
        #: (statistics, names of hosts) are not among them.
        self.passed_over: Counter[str] = Counter()


def bounded_time(nanoseconds: int) -> int:
    """A time that fits the 64 bits of pcapng, whatever the file says."""
    return min(max(nanoseconds, 0), _MAX_TIME)


def skip_untrusted(stream: BinaryIO, size: int) -> None:
    """Read past ``size`` bytes without keeping them; raises :class:`BadPacket` where the file ends before."""
    left = size
    while left:
        read = len(stream.read(min(left, _CHUNK)))
        if not read:
            raise BadPacket(f"damaged capture: {size} bytes are announced, and the file ends before")
        left -= read
