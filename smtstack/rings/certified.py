"""Certified rings: what RAKIS (EuroSys'25) calls so. The peer may write anything to the memory at any time.

Sizes and places are copied here when the ring is made, after :mod:`smtstack.rings.checker`. Our own index is
private, and only published. The peer's is read once; what it says is believed if no more entries wait, modulo
the width of an index, than the ring has. Else nothing has moved. It may move backwards within that: then the peer
has fooled itself.

A peer that has lied to itself or to us for a while, and stops, may be where the ring cannot be, for good: RAKIS
has no way out of that. ``restart`` is one: the ring is empty where the peer says that it is.
"""

from __future__ import annotations

from typing import Final

from smtstack.rings.layout import XSK_PLACES, Places
from smtstack.rings.memory import SharedMemory

#: Bits of an index of Linux'.
WIDTH: Final = 32


def entries_between(producer: int, consumer: int, size: int, index_mask: int) -> int:
    """Entries that wait in a ring of ``size``; -1: no ring can have these two indices."""
    waiting = (producer - consumer) & index_mask
    return waiting if waiting <= size else -1


class ConsumerRing:
    """A ring that the host fills and we empty. ``certified=False`` believes the host: a control, and the price of
    the checks."""

    __slots__ = ("_certified", "_entries_at", "_entry_len", "_index_mask", "_left", "_memory", "_own", "_own_at",
                 "_peer_at", "_slot_mask", "possible", "rejected", "size")

    def __init__(self, memory: SharedMemory, size: int, entry_len: int, certified: bool = True,
                 width: int = WIDTH, first: int = 0, places: Places = XSK_PLACES) -> None:
        self._memory = memory
        self.size = size
        self._slot_mask = size - 1
        self._entry_len = entry_len
        self._certified = certified
        self._index_mask = (1 << width) - 1
        self._own = first
        self._own_at, self._peer_at = places.consumer, places.producer
        self._entries_at = places.entries
        #: Entries seen by the last look that are not taken yet.
        self._left = 0
        #: Whether the peer's index could be when it was looked at last, and the times that it could not.
        self.possible = True
        self.rejected = 0

    def available(self) -> int:
        """How many entries wait, by one look at the peer's index."""
        waiting = (self._memory.load(self._peer_at) - self._own) & self._index_mask
        self.possible = waiting <= self.size or not self._certified
        if not self.possible:
            self.rejected += 1
            self._left = 0
            return 0
        self._left = waiting
        return waiting

    def next(self) -> int:
        """Byte at which the next of these entries is; it is taken then. Raises IndexError behind the last."""
        if self._left <= 0:
            raise IndexError("no entry that was seen is left")
        at = self._entries_at + (self._own & self._slot_mask) * self._entry_len
        self._own = (self._own + 1) & self._index_mask
        self._left -= 1
        return at

    def resume(self) -> None:
        """Go on where this side said last that it is: for a host whose process was replaced."""
        self._own = self._memory.load(self._own_at) & self._index_mask

    def restart(self) -> None:
        """Go on as if everything up to the peer's index, read once, were taken: nothing of it is looked at."""
        self._own = self._memory.load(self._peer_at) & self._index_mask
        self._left = 0
        self.publish()

    def publish(self) -> None:
        """Say what was taken. Again whenever the peer may have overwritten it."""
        self._memory.store(self._own_at, self._own)


class ProducerRing:
    """A ring that we fill and the host empties. ``certified=False``: as above."""

    __slots__ = ("_certified", "_entries_at", "_entry_len", "_index_mask", "_memory", "_own", "_own_at",
                 "_peer_at", "_room", "_slot_mask", "possible", "rejected", "size")

    def __init__(self, memory: SharedMemory, size: int, entry_len: int, certified: bool = True,
                 width: int = WIDTH, first: int = 0, places: Places = XSK_PLACES) -> None:
        self._memory = memory
        self.size = size
        self._slot_mask = size - 1
        self._entry_len = entry_len
        self._certified = certified
        self._index_mask = (1 << width) - 1
        self._own = first
        self._own_at, self._peer_at = places.producer, places.consumer
        self._entries_at = places.entries
        #: Entries that fit by what was seen last, none at first.
        self._room = 0
        #: As of the other kind.
        self.possible = True
        self.rejected = 0

    def room(self) -> int:
        """How many entries fit, by one look at the peer's index. One that cannot be leaves it as it was."""
        waiting = (self._own - self._memory.load(self._peer_at)) & self._index_mask
        self.possible = waiting <= self.size or not self._certified
        if self.possible:
            self._room = self.size - waiting
        else:
            self.rejected += 1
        return self._room

    def waiting(self) -> int:
        """How many entries the peer has not taken, by what was seen last."""
        return self.size - self._room

    def next(self) -> int:
        """Byte at which the next entry goes. Raises IndexError where none fits."""
        if self._room <= 0:
            raise IndexError("no entry fits")
        at = self._entries_at + (self._own & self._slot_mask) * self._entry_len
        self._own = (self._own + 1) & self._index_mask
        self._room -= 1
        return at

    def resume(self) -> None:
        """Go on where this side said last that it is: for a host whose process was replaced."""
        self._own = self._memory.load(self._own_at) & self._index_mask

    def restart(self) -> None:
        """Go on as if the peer had taken everything, and were where it says, by its index, read once."""
        self._own = self._memory.load(self._peer_at) & self._index_mask
        self._room = self.size
        self.publish()

    def slot(self, back: int = 0) -> int:
        """Number of the slot of the next entry, or of one so many before it."""
        return (self._own - back) & self._slot_mask

    def publish(self) -> None:
        """Say what was written, all of it at once. Again whenever the peer may have overwritten it."""
        self._memory.store(self._own_at, self._own)
