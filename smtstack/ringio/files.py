"""A file of the host's, read and written by a ring: what ``os`` has for files of our own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from smtstack.ringio.queue import IoRing
from smtstack.rings.uring_layout import CLOSE, DATA_ONLY, FSYNC, LOCK, OPENAT, READ, SIZE, TRUNCATE, WRITE

#: In place of a folder's descriptor: the process' own (Linux <linux/fcntl.h>).
_HERE: Final = -100


class ProxyFile:
    """An open file. What is read is what the host says that it is: who needs more protects it
    (docs/storage.md). All raise OSError, and :class:`~smtstack.ringio.queue.HostRefused` for answers that cannot
    be."""

    def __init__(self, ring: IoRing, path: Path | str, flags: int = os.O_RDWR | os.O_CREAT,
                 mode: int = 0o600) -> None:
        """Open ``path``, an absolute one that the host was told to allow; ``flags`` and ``mode`` are those of
        :func:`os.open`. By an exit."""
        self._ring = ring
        self.path = Path(path)
        self.descriptor = ring.call(OPENAT, _HERE, data=os.fsencode(self.path), offset=mode, flags=flags).result
        self._closed = False

    def pread(self, size: int, offset: int) -> bytes:
        """Bytes from ``offset`` on: so many, or those up to the end of the file."""
        ring, parts = self._ring, []
        while size > 0:
            data = ring.call(READ, self.descriptor, min(size, ring.buffer_size), offset=offset).data
            if not data:
                break
            parts.append(data)
            size -= len(data)
            offset += len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def pwrite(self, data: bytes, offset: int) -> int:
        """Write all of ``data`` at ``offset``; how many bytes that are."""
        ring, most, at = self._ring, self._ring.buffer_size, 0
        while at < len(data):
            at += ring.call(WRITE, self.descriptor, data=data[at:at + most], offset=offset + at).result
        return at

    def fsync(self) -> None:
        """Have the host put the file on its disk; that it did is the host's word. Raises OSError."""
        self._ring.call(FSYNC, self.descriptor)

    def fdatasync(self, ring: IoRing | None = None) -> None:
        """Have the host put the file's bytes and length on its disk, not its times. ``ring``: another thread's.
        Raises OSError."""
        (ring or self._ring).call(FSYNC, self.descriptor, flags=DATA_ONLY)

    def size(self) -> int:
        """Bytes that it has. By an exit."""
        return self._ring.call(SIZE, self.descriptor).result

    def truncate(self, size: int) -> None:
        """Cut it, or make it longer by zeros. By an exit."""
        self._ring.call(TRUNCATE, self.descriptor, offset=size)

    def lock(self) -> None:
        """Have it for ourselves; raises BlockingIOError if somebody else has it. By an exit."""
        self._ring.call(LOCK, self.descriptor)

    def close(self) -> None:
        """Close it; may be called twice."""
        if not self._closed:
            self._closed = True
            self._ring.call(CLOSE, self.descriptor)

    def __enter__(self) -> ProxyFile:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()
