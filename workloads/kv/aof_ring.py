"""The append-only file as an untrusted host's file, by rings: the same bytes as a plain one."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from smtstack.errors import ConfigError
from smtstack.ringio.files import ProxyFile
from smtstack.ringio.queue import IoRing
from smtstack.storage.device import SECTOR
from smtstack.storage.layout import MAGIC
from workloads.kv.aof_file import EntryWriter
from workloads.kv.aof_log import Rewriting
from workloads.kv.aof_rewrite import RewriteFailed
from workloads.kv.store import Keyspace

_NOT_ANEW = "an untrusted host's file is not written anew; do that by a start without --nic-hosting ring"
_BUFFER = 1 << 16


class RingWriter(EntryWriter):
    """Appends entries to a host's file."""

    def __init__(self, file: ProxyFile, crc: int = 0, size: int = 0) -> None:
        super().__init__(-1, crc, size)
        self._file = file

    def _put(self, pieces: list[bytes]) -> None:
        self.size += self._file.pwrite(b"".join(pieces), self.size)


class _Reader(io.RawIOBase):
    """Reads the file from its beginning on."""

    def __init__(self, file: ProxyFile) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.pread(len(buffer), self._at)
        buffer[:len(data)] = data
        self._at += len(data)
        return len(data)


class RingLog:
    """A file of entries that ``ring`` reads and writes; it is synced by ``syncing``, another thread's. Raises
    OSError, :class:`ConfigError` if another server has it or it is a protected one."""

    outdated = False

    def __init__(self, path: Path, ring: IoRing, syncing: IoRing) -> None:
        self._file = ProxyFile(ring, path.absolute())
        self._syncing = syncing
        try:
            try:
                self._file.lock()
            except BlockingIOError:
                raise ConfigError(f"--aof {path}: another server is using it; name another file") from None
            slots = self._file.pread(2 * SECTOR, 0)
            if MAGIC in (slots[:len(MAGIC)], slots[SECTOR:SECTOR + len(MAGIC)]):
                raise ConfigError(f"--aof {path}: this file is protected; a protected one is not read by rings")
        except BaseException:
            self._file.close()
            raise
        self.writer: EntryWriter = RingWriter(self._file)

    @property
    def size(self) -> int:
        return self._file.size()

    @contextlib.contextmanager
    def reading(self) -> Iterator[BinaryIO]:
        # Of the type it names it has all that is used.
        yield cast(BinaryIO, io.BufferedReader(_Reader(self._file), _BUFFER))

    def start(self, crc: int, whole: int) -> None:
        if whole < self.size:
            self._file.truncate(whole)
        self.writer = RingWriter(self._file, crc, whole)
        if not whole:
            self.writer.begin()
        self._file.fsync()

    def put(self) -> None:
        """The host has it already."""

    def sync(self) -> None:
        self._file.fdatasync(self._syncing)

    def anew(self, keys: Keyspace) -> RingLog:
        raise ConfigError(_NOT_ANEW)

    def rewriting(self, keys: Keyspace) -> Rewriting:
        raise RewriteFailed(_NOT_ANEW)

    def close(self) -> None:
        self._file.close()
