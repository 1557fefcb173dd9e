"""Fragments of IPv4 packets, put together within bounds of memory.

A packet is known by (source, destination, protocol, identification): by less than that, as by the identification
alone, two senders' fragments would be mixed. A fragment that says the same again is ignored; one that overlaps
others and is not the same ends the packet, of which nothing is believed any more (RFC 5722 for IPv6; Linux does it
for IPv4, too).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from smtstack.udp.wire import Piece

#: RFC 1122 wants a fixed time of at least a minute, for the whole internet; Linux takes 30 s.
PATIENCE_NS: Final = 30_000_000_000
MAX_PACKETS: Final = 128
MAX_BYTES: Final = 1 << 20
#: What each fragment costs beside its bytes, so that many small ones are bounded, too.
OVERHEAD: Final = 64

_Key = tuple[int, int, int, int]


@dataclass(slots=True)
class _Partial:
    """A packet of which fragments are missing."""

    until: int
    parts: dict[int, Piece] = field(default_factory=dict)
    """By their offset."""
    have: int = 0
    """Bytes of all parts."""
    length: int = -1
    """Bytes of the whole; -1: the last one has not come."""
    dead: bool = False
    """Fragments contradicted each other: what comes of it still is dropped."""

    @property
    def cost(self) -> int:
        """Bytes of memory."""
        return self.have + OVERHEAD * (1 + len(self.parts))


class Reassembly:
    """Fragments of all packets under way. Of those that are more than the bounds the oldest goes."""

    def __init__(self, max_packets: int = MAX_PACKETS, max_bytes: int = MAX_BYTES) -> None:
        self._max_packets = max_packets
        self._max_bytes = max_bytes
        self._partial: dict[_Key, _Partial] = {}
        #: Bytes of memory taken, at most ``max_bytes``.
        self.taken = 0
        self.timeouts = self.overlaps = self.evicted = self.duplicates = 0

    def __len__(self) -> int:
        return len(self._partial)

    def add(self, piece: Piece, now: int) -> Piece | None:
        """A fragment came at ``now`` (ns): the whole packet, if it was the last that was missing."""
        self._expire(now)
        key = (piece.src, piece.dst, piece.protocol, piece.identification)
        partial = self._partial.get(key)
        if partial is None:
            partial = self._partial[key] = _Partial(now + PATIENCE_NS)
            self.taken += partial.cost
        elif partial.dead:
            self.overlaps += 1
            return None
        before = partial.cost
        known = partial.parts.get(piece.offset)
        if known is not None and known == piece:
            self.duplicates += 1
            return None
        if not self._fits(partial, piece):
            self.overlaps += 1
            partial.parts.clear()
            partial.have, partial.dead = 0, True
            self.taken += partial.cost - before
            return None
        partial.parts[piece.offset] = piece
        partial.have += len(piece.payload)
        if not piece.more:
            partial.length = piece.offset + len(piece.payload)
        self.taken += partial.cost - before
        if partial.have == partial.length:
            self._forget(key)
            whole = b"".join(partial.parts[at].payload for at in sorted(partial.parts))
            return replace(piece, offset=0, more=False, payload=whole)
        while self.taken > self._max_bytes or len(self._partial) > self._max_packets:
            self.evicted += 1
            self._forget(next(iter(self._partial)))
        return None

    @staticmethod
    def _fits(partial: _Partial, piece: Piece) -> bool:
        start, end = piece.offset, piece.offset + len(piece.payload)
        if partial.length >= 0 and (not piece.more or end > partial.length):
            return False
        if not piece.more and any(at + len(part.payload) > end for at, part in partial.parts.items()):
            return False
        return all(at >= end or at + len(part.payload) <= start for at, part in partial.parts.items()) and (
            start not in partial.parts)

    def _expire(self, now: int) -> None:
        # In the order in which they began, and all have the same patience.
        while self._partial and (first := next(iter(self._partial.values()))).until <= now:
            self.timeouts += not first.dead
            self._forget(next(iter(self._partial)))

    def _forget(self, key: _Key) -> None:
        self.taken -= self._partial.pop(key).cost
