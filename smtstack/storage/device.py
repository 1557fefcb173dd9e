"""Block devices: the one interface, a device in memory and one in a file.

A device is an array of sectors of 4096 bytes. What was written is read back at once; it is sure to survive a power
cut only once a :meth:`BlockDevice.flush` that began after the write has returned. Until then a cut leaves any part
of it, in any order. Errors of the system are OSError with their errno (ENOSPC, EIO); an access outside of the
device is OSError EINVAL.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Final, Protocol

from smtstack.errors import ConfigError

#: Bytes of a sector.
SECTOR: Final = 4096


class BlockDevice(Protocol):
    """Sectors of 4096 bytes, by number from 0."""

    @property
    def sectors(self) -> int:
        """How many there are."""

    def read(self, sector: int, count: int) -> bytes:
        """``count`` sectors from ``sector`` on: exactly ``count * SECTOR`` bytes, zeros where none was written.

        Raises OSError; and :class:`~smtstack.errors.AuthError` where a device that protects them finds them
        changed.
        """

    def write(self, sector: int, data: bytes) -> None:
        """Replace whole sectors from ``sector`` on by ``data``. Raises OSError; what is there then is unknown."""

    def flush(self) -> None:
        """All that was written before this is on stable storage when it returns.

        Raises OSError. What it should have made sure is lost or not: nobody knows, and trying again does not help.
        """

    def close(self) -> None:
        """Give it back. Flushes nothing that a ``flush`` did not."""


class ResizableDevice(BlockDevice, Protocol):
    """A device that can become longer."""

    def resize(self, sectors: int) -> None:
        """Make it so long; what is new reads as zeros. Raises OSError."""


def check_range(device: BlockDevice, sector: int, size: int) -> int:
    """How many sectors ``size`` bytes from ``sector`` on are. Raises OSError EINVAL if they are not all there."""
    count, rest = divmod(size, SECTOR)
    if rest or sector < 0 or count < 0 or sector + count > device.sectors:
        raise OSError(errno.EINVAL, f"sectors {sector} to {sector + count} of {device.sectors}, {rest} bytes over")
    return count


class MemoryDevice:
    """A device in memory, of zeros at first."""

    def __init__(self, sectors: int) -> None:
        self.data = bytearray(sectors * SECTOR)

    @property
    def sectors(self) -> int:
        return len(self.data) // SECTOR

    def read(self, sector: int, count: int) -> bytes:
        check_range(self, sector, count * SECTOR)
        return bytes(self.data[sector * SECTOR:(sector + count) * SECTOR])

    def write(self, sector: int, data: bytes) -> None:
        check_range(self, sector, len(data))
        self.data[sector * SECTOR:sector * SECTOR + len(data)] = data

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def resize(self, sectors: int) -> None:
        size = sectors * SECTOR
        if size > len(self.data):
            self.data.extend(bytes(size - len(self.data)))
        else:
            del self.data[size:]


class FileDevice:
    """A file, or a real block device, locked against everybody else who opens it so.

    ``sectors``: make the file so long if it is shorter; it takes room on the disk only where it is written
    (ENOSPC comes then). A length that is no multiple of a sector counts to the last whole one. ``new``: there must
    be none of that name yet. It is made readable for its owner only.
    Raises :class:`ConfigError` if somebody else has it, OSError for what else is wrong.
    """

    def __init__(self, path: Path, sectors: int | None = None, new: bool = False) -> None:
        create = (os.O_CREAT if sectors is not None else 0) | (os.O_EXCL if new else 0)
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | create, 0o600)
        try:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"{path}: another process is using it; name another file") from None
            self._is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)
            self._sectors = os.lseek(self._fd, 0, os.SEEK_END) // SECTOR
            if sectors is not None and self._sectors < sectors:
                self.resize(sectors)
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def sectors(self) -> int:
        return self._sectors

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def read(self, sector: int, count: int) -> bytes:
        check_range(self, sector, count * SECTOR)
        data = os.pread(self._fd, count * SECTOR, sector * SECTOR)
        while len(data) < count * SECTOR:
            more = os.pread(self._fd, count * SECTOR - len(data), sector * SECTOR + len(data))
            if not more:
                raise OSError(errno.EIO, f"{self.path}: it ends before sector {sector + count}: cut off meanwhile")
            data += more
        return data

    def write(self, sector: int, data: bytes) -> None:
        check_range(self, sector, len(data))
        left, at = memoryview(data), sector * SECTOR
        while left:
            done = os.pwrite(self._fd, left, at)
            left, at = left[done:], at + done

    def flush(self) -> None:
        os.fdatasync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def resize(self, sectors: int) -> None:
        if not self._is_file:
            raise OSError(errno.ENOSPC, f"{self.path}: a block device of {self._sectors} sectors")
        os.ftruncate(self._fd, sectors * SECTOR)
        self._sectors = sectors
