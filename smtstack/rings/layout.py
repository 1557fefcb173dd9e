"""How AF_XDP lays out its rings, and how large ours are (Linux ``af_xdp.rst``, ``<linux/if_xdp.h>``).

A ring is a page or more: the producer's index, the consumer's, flags, each in a cache line of its own, then the
entries. Memory of our own (where a kernel has no AF_XDP, and in tests) is laid out the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from smtstack.rings.memory import ADDRESS_LEN, DESCRIPTOR_LEN

# struct xdp_ring of Linux, with cache lines of 64 bytes in pairs.
PRODUCER_AT: Final = 0
CONSUMER_AT: Final = 128
FLAGS_AT: Final = 196
ENTRIES_AT: Final = 320


@dataclass(frozen=True, slots=True)
class Places:
    """Where a ring's two indices are in its memory, and its first entry, in bytes."""

    producer: int
    consumer: int
    entries: int


XSK_PLACES: Final = Places(PRODUCER_AT, CONSUMER_AT, ENTRIES_AT)

FILL: Final = "fill"
COMPLETION: Final = "completion"
RX: Final = "rx"
TX: Final = "tx"
#: All rings of a socket, in one order everywhere.
RINGS: Final = (FILL, COMPLETION, RX, TX)
#: Bytes of an entry: an address of a frame, or a descriptor.
ENTRY_LEN: Final = {FILL: ADDRESS_LEN, COMPLETION: ADDRESS_LEN, RX: DESCRIPTOR_LEN, TX: DESCRIPTOR_LEN}
#: Name of the memory in which frames are.
UMEM: Final = "umem"
#: Bytes before a packet that the kernel keeps for itself (XDP_PACKET_HEADROOM); we leave as many.
HEADROOM: Final = 256


@dataclass(frozen=True, slots=True)
class RingConfig:
    """Sizes of one socket's memory, computed here and believed of nobody. The defaults are libxdp's, as RAKIS has
    them."""

    frames: int = 8192
    frame_size: int = 2048
    """Bytes, a power of two."""
    entries: int = 2048
    """Places in the receive, transmit and completion ring; the fill ring has twice as many."""

    def ring_entries(self, ring: str) -> int:
        """Entries of a ring."""
        return 2 * self.entries if ring == FILL else self.entries

    def ring_bytes(self, ring: str) -> int:
        """Bytes of a ring's memory."""
        return ENTRIES_AT + self.ring_entries(ring) * ENTRY_LEN[ring]

    @property
    def umem_bytes(self) -> int:
        """Bytes of the memory of frames."""
        return self.frames * self.frame_size
