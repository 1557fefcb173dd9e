"""Where the entries of the append-only file are: a plain file, or one on protected storage (aof_protected.py)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from workloads.kv.aof_file import EntryWriter, write_snapshot
from workloads.kv.aof_rewrite import Rewrite, new_path, open_locked, sync_folder
from workloads.kv.store import Keyspace


class Rewriting(Protocol):
    """A log that is being written anew by a process of its own. It raises
    :class:`~workloads.kv.aof_rewrite.RewriteFailed` when there will be none."""

    pid: int
    """The process."""

    def is_written(self) -> bool:
        """Whether :meth:`finish` can be called; called once a turn until it can."""

    def finish(self, old: EntryWriter) -> Log:
        """Put the new log in the place of what ``old`` writes. OSError: nobody knows which one it is."""

    def abort(self) -> None:
        """Give it up."""


class Log(Protocol):
    """An open file of entries, locked against others. Errors are OSError."""

    writer: EntryWriter
    """Appends entries; there is one after :meth:`start`."""
    outdated: bool
    """Whether it should become another kind of log by :meth:`anew`."""

    @property
    def size(self) -> int:
        """Bytes of entries, head included."""

    def reading(self) -> contextlib.AbstractContextManager[BinaryIO]:
        """From the first byte on."""

    def start(self, crc: int, whole: int) -> None:
        """Append after so many bytes from now on; what is behind them goes."""

    def put(self) -> None:
        """What was appended survives the end of this process."""

    def sync(self) -> None:
        """And the machine's."""

    def anew(self, keys: Keyspace) -> Log:
        """A log of nothing but these contents has taken its place; this one is closed."""

    def rewriting(self, keys: Keyspace) -> Rewriting:
        """Begin to write it anew. Raises :class:`~workloads.kv.aof_rewrite.RewriteFailed`."""

    def close(self) -> None:
        """What was not put may be gone."""


class ReadOnlyLog:
    """A plain file that is only looked at."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb")  # noqa: SIM115 - until it is closed
        self.size = os.fstat(self._file.fileno()).st_size

    def describe(self) -> dict[str, Any]:
        """What ``smtnet kv check`` says of it."""
        return {"storage": "file"}

    def reading(self) -> contextlib.AbstractContextManager[BinaryIO]:
        return contextlib.nullcontext(self._file)

    def close(self) -> None:
        self._file.close()


class PlainLog:
    """A plain file, opened by :func:`~workloads.kv.aof_rewrite.open_locked`."""

    outdated = False

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self.writer = EntryWriter(file.fileno())

    @property
    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    @contextlib.contextmanager
    def reading(self) -> Iterator[BinaryIO]:
        with open(self._path, "rb") as source:
            yield source

    def start(self, crc: int, whole: int) -> None:
        if whole < self.size:
            os.ftruncate(self._file.fileno(), whole)
        self.writer = EntryWriter(self._file.fileno(), crc, whole)
        if not whole:
            self.writer.begin()
        os.fsync(self._file.fileno())
        sync_folder(self._path)
        # Of a server that ended while it wrote that.
        new_path(self._path).unlink(missing_ok=True)

    def put(self) -> None:
        """The kernel has it already."""

    def sync(self) -> None:
        os.fdatasync(self._file.fileno())

    def anew(self, keys: Keyspace) -> PlainLog:
        temporary = new_path(self._path)
        temporary.unlink(missing_ok=True)
        file = open_locked(temporary)
        writer = EntryWriter(file.fileno())
        for _entry in write_snapshot(writer, keys.databases.snapshot()):
            pass
        os.fsync(file.fileno())
        os.rename(temporary, self._path)
        sync_folder(self._path)
        self._file.close()
        new = PlainLog(self._path, file)
        new.writer = writer
        return new

    def rewriting(self, keys: Keyspace) -> Rewriting:
        return _PlainRewriting(self._path, Rewrite(self._path, keys, self.writer))

    def close(self) -> None:
        self._file.close()


class _PlainRewriting:
    def __init__(self, path: Path, rewrite: Rewrite) -> None:
        self._path = path
        self._rewrite = rewrite
        self.is_written = rewrite.is_written
        self.abort = rewrite.abort
        self.pid = rewrite.pid

    def finish(self, old: EntryWriter) -> PlainLog:
        file, writer = self._rewrite.finish(old)
        log = PlainLog(self._path, file)
        log.writer = writer
        return log
