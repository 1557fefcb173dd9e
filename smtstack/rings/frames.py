"""Who has which frame of the shared memory: each is in exactly one place."""

from __future__ import annotations

from typing import Final

#: Ours; with the host to be received into (in the fill ring, the host's hands, or the receive ring); with the host
#: to be sent.
FREE: Final = 0
RECEIVING: Final = 1
SENDING: Final = 2


class FrameOwners:
    """The map of owners. It is in memory of our own, and only our own decisions change it."""

    __slots__ = ("_free", "_givings", "_owner", "_serial", "_size_bits", "_umem_bytes", "count", "held")

    def __init__(self, count: int, frame_size: int) -> None:
        self.count = count
        self._size_bits = frame_size.bit_length() - 1
        self._umem_bytes = count * frame_size
        self._owner = [FREE] * count
        #: Which giving each frame was taken by, and how many there were.
        self._serial = [0] * count
        self._givings = 0
        self._free = list(range(count - 1, -1, -1))
        #: How many frames each owner has.
        self.held = [count, 0, 0]

    def take(self, owner: int) -> int:
        """A free frame, given to ``owner``; -1: there is none."""
        if not self._free:
            return -1
        frame = self._free.pop()
        self._owner[frame] = owner
        self._givings += 1
        self._serial[frame] = self._givings
        self.held[FREE] -= 1
        self.held[owner] += 1
        return frame

    def give_back(self, frame: int, owner: int) -> bool:
        """Set a frame free that is ``owner``'s; whether it was."""
        if owner == FREE or not 0 <= frame < self.count or self._owner[frame] != owner:
            return False
        self._owner[frame] = FREE
        self._free.append(frame)
        self.held[owner] -= 1
        self.held[FREE] += 1
        return True

    def owner(self, frame: int) -> int:
        """Whose it is."""
        return self._owner[frame]

    def serial(self, frame: int) -> int:
        """By which giving it got where it is: a number that never repeats."""
        return self._serial[frame]

    def frame_of(self, address: int, length: int) -> int:
        """The frame that all of [``address``, ``address + length``) is in; -1: no single one, or no byte at all.

        No number wraps here, and none is taken modulo anything.
        """
        if length < 1 or address < 0 or address + length > self._umem_bytes:
            return -1
        frame = address >> self._size_bits
        return frame if (address + length - 1) >> self._size_bits == frame else -1

    def owned_by(self, owner: int) -> list[int]:
        """All frames of one owner."""
        return [frame for frame, whose in enumerate(self._owner) if whose == owner]

    def check(self) -> None:
        """Raises AssertionError unless every frame is in exactly one place."""
        assert sorted(self._free) == self.owned_by(FREE), "the free list is not what the map says"
        assert self.held == [self._owner.count(owner) for owner in (FREE, RECEIVING, SENDING)], "miscounted"
        assert sum(self.held) == self.count, "a frame is nowhere, or in two places"
