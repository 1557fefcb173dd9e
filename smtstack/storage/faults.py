"""Disks that fail as told: a power cut at any byte, what an unflushed cache loses, errors. All of it repeats.

One :class:`PowerSupply` feeds any number of disks, so that a cut hits all of them at the same moment::

    supply = PowerSupply()
    disk = FaultyDevice(MemoryDevice(100), supply)
    supply.cut_after(5000)                    # the write that crosses the 5000th byte from now on is torn there
    try:
        ...                                   # raises PowerCutError
    finally:
        disk.lose(Random(1))                  # of what was not flushed any part is gone, sector by sector
        supply.restore()
"""

from __future__ import annotations

import errno
import os
from random import Random
from typing import Final

from smtstack.storage.device import SECTOR, MemoryDevice, check_range

_FOREVER: Final = 1 << 62


class PowerCutError(Exception):
    """The power is gone. No error of a disk: whoever catches OSError must not go on."""


class PowerSupply:
    """Counts the bytes that go to the disks, and what they are asked."""

    def __init__(self) -> None:
        self.written = 0
        self._end = _FOREVER
        self.off = False
        #: Errno of a write or flush, by how many writes and flushes there were before.
        self.errors: dict[int, int] = {}
        self.operations = 0

    def cut_after(self, size: int) -> None:
        """The power goes once ``size`` more bytes are on the disks, in the middle of a write if need be; a flush
        counts as one byte, so that it can be hit as well."""
        self._end = self.written + size

    def restore(self) -> None:
        """There is power again."""
        self.off, self._end = False, _FOREVER

    def take(self, size: int) -> int:
        """How much of ``size`` bytes gets through."""
        if self.off:
            raise PowerCutError
        done = min(size, self._end - self.written)
        self.written += done
        self.off = done < size
        return done

    def operation(self) -> None:
        """A write or flush begins. Raises the OSError that was asked for."""
        number = self.errors.get(self.operations)
        self.operations += 1
        if number is not None:
            raise OSError(number, os.strerror(number))


class FaultyDevice:
    """A disk in memory with a cache. ``room``: how many of its sectors can be written at all before it is full."""

    def __init__(self, memory: MemoryDevice, supply: PowerSupply, room: int | None = None) -> None:
        self.memory = memory
        self._supply = supply
        self._room = room
        self._used: set[int] = set()
        #: What sectors held at the last flush and after each write since.
        self._versions: dict[int, list[bytes]] = {}

    @property
    def sectors(self) -> int:
        return self.memory.sectors

    def read(self, sector: int, count: int) -> bytes:
        if self._supply.off:
            raise PowerCutError
        return self.memory.read(sector, count)

    def write(self, sector: int, data: bytes) -> None:
        check_range(self, sector, len(data))
        self._supply.operation()
        for at in range(0, len(data), SECTOR):
            self._write_one(sector + at // SECTOR, data[at:at + SECTOR])

    def _write_one(self, sector: int, data: bytes) -> None:
        if self._room is not None and sector not in self._used:
            if len(self._used) >= self._room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._used.add(sector)
        done = self._supply.take(SECTOR)
        before = self.memory.read(sector, 1)
        after = data[:done] + before[done:]
        self._versions.setdefault(sector, [before]).append(after)
        self.memory.write(sector, after)
        if self._supply.off:
            raise PowerCutError

    def flush(self) -> None:
        self._supply.operation()
        if not self._supply.take(1):
            raise PowerCutError
        self._versions.clear()

    def lose(self, random: Random) -> None:
        """Lose any part of what was written since the last flush: each sector is as some write left it, or torn
        between two of these."""
        for sector, versions in self._versions.items():
            older, newer = random.choice(versions), random.choice(versions)
            torn = random.choice((0, SECTOR, random.randrange(SECTOR)))
            self.memory.write(sector, newer[:torn] + older[torn:])
        self._versions.clear()

    def close(self) -> None:
        pass

    def resize(self, sectors: int) -> None:
        self.memory.resize(sectors)
