"""Bytes upon a protected device: a file that grows as it is written."""

from __future__ import annotations

import io
from typing import Any, Final

from smtstack.storage.device import SECTOR
from smtstack.storage.protected import ProtectedDevice

#: Sectors that a file grows by at most at once, of what it has at other times: 64 MiB.
_MOST_GROWTH: Final = 1 << 14
#: Sectors that are read or zeroed together.
_PIECE: Final = 256


class BlockFile:
    """The first ``size`` bytes of ``device``. Writes, sizes and all else become durable by ``device.flush()``."""

    def __init__(self, device: ProtectedDevice) -> None:
        self.device = device
        #: The sector written last, and what it holds: appending needs it again.
        self._last = (-1, b"")

    @property
    def size(self) -> int:
        """In bytes."""
        return self.device.length

    def read(self, at: int, size: int) -> bytes:
        """What is there, shorter at the end. Raises OSError, AuthError."""
        size = min(size, self.size - at)
        if size <= 0:
            return b""
        first, offset = divmod(at, SECTOR)
        return self.device.read(first, -(-(offset + size) // SECTOR))[offset:offset + size]

    def write(self, at: int, data: bytes) -> None:
        """Write over what is there, or beyond: what is between the end and that is zeros. Raises OSError."""
        if not data:
            return
        end = at + len(data)
        self._grow(-(-end // SECTOR))
        first, offset = divmod(at, SECTOR)
        if offset:
            data = self._sector(first)[:offset] + data
        over = len(data) % SECTOR
        if over:
            last = first + len(data) // SECTOR
            data += self._sector(last)[over:]
        self.device.write(first, data)
        last = first + len(data) // SECTOR - 1
        self._last = (last, data[-SECTOR:])
        if end > self.size:
            self.device.length = end

    def append(self, data: bytes) -> None:
        """Write at the end. Raises OSError."""
        self.write(self.size, data)

    def truncate(self, size: int) -> None:
        """Make it so long; what is cut off, or new, reads as zeros. Raises OSError."""
        old = self.size
        if size < old:
            first, offset = divmod(size, SECTOR)
            if offset:
                self.device.write(first, self._sector(first)[:offset].ljust(SECTOR, b"\0"))
                first += 1
            end = -(-old // SECTOR)
            for at in range(first, end, _PIECE):
                self.device.write(at, bytes(min(_PIECE, end - at) * SECTOR))
        self._grow(-(-size // SECTOR))
        self._last = (-1, b"")
        self.device.length = size

    def _sector(self, number: int) -> bytes:
        return self._last[1] if number == self._last[0] else self.device.read(number, 1)

    def _grow(self, wanted: int) -> None:
        have = self.device.sectors
        if wanted > have:
            self.device.resize(max(wanted, have + min(have, _MOST_GROWTH)))


class BlockReader(io.RawIOBase):
    """A file to be read as Python's files are; put a BufferedReader around it."""

    def __init__(self, file: BlockFile) -> None:
        super().__init__()
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self._file.read(self._at, min(len(view), _PIECE * SECTOR))
        view[:len(data)] = data
        self._at += len(data)
        return len(data)
