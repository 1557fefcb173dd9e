"""The append-only file: every change of the keyspace, so that a restarted server has what it had.

Its entries (:mod:`workloads.kv.aof_file`) hold commands that give the same whenever they are replayed: times are
absolute, the end of a key is a DEL. What a crash cuts off is at the end: an entry that is not whole there is
dropped, with a warning. Anything else that is wrong is damage, and nothing is served from such a file.
"""

from __future__ import annotations

import fcntl
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from smtstack.errors import ConfigError, SmtError
from workloads.kv import aof_file
from workloads.kv.aof_file import FORMAT, EntryReader, EntryWriter
from workloads.kv.arguments import Session
from workloads.kv.commands import execute
from workloads.kv.resp import Command, CommandParser
from workloads.kv.store import Keyspace

FSYNC = ("always", "everysec", "no")
_SECOND_NS = 1_000_000_000
#: A file is written anew at the start when it is so long, and so much longer than it need be.
_LONG = 1 << 20
_WORTH = 2


class AofError(SmtError):
    """The file cannot be written any more. What it does not hold was not acknowledged."""


class Aof:
    """An open file, locked against a second server. ``fsync``: ``always`` (before a change is acknowledged),
    ``everysec`` (each second, by a thread) or ``no`` (when the kernel likes).

    Raises :class:`ConfigError` naming the file, and the offset where it is damaged.
    """

    def __init__(self, path: Path, fsync: str, keys: Keyspace) -> None:
        self._path = path
        self._fsync = fsync
        self._dirty = False
        self._synced_at = 0
        self._thread: ThreadPoolExecutor | None = None
        self._syncing: Future[None] | None = None
        #: What happened at the start, for people.
        self.warnings: list[str] = []
        self.loaded = self.entries = self.bytes = self.syncs = 0
        try:
            self._file = _open(path)
        except OSError as e:
            raise ConfigError(f"--aof {path}: {e.strerror}") from None
        try:
            self._writer = EntryWriter(self._file.fileno())
            if self._load(keys) or self._is_long(keys):
                self._write_anew(keys)
            os.fsync(self._file.fileno())
            _sync_folder(path)
        except OSError as e:
            self._file.close()
            raise ConfigError(f"--aof {path}: {e.strerror}") from None
        except ConfigError:
            self._file.close()
            raise

    # -- while it runs ---------------------------------------------------------------------------------------

    def write(self, journal: list[Command], now_ns: int) -> None:
        """Append what a turn has changed, as one group that is replayed as a whole or not at all.

        With ``always`` it is on the disk then. Raises :class:`AofError`. ``now_ns`` is a
        ``time.monotonic_ns()``; an empty journal is how time passes.
        """
        try:
            if journal:
                before = self._writer.size
                self._writer.append(journal)
                self.bytes += self._writer.size - before
                self.entries += 1
                self._dirty = True
            if not self._dirty or self._fsync == "no":
                return
            if self._fsync == "always":
                os.fdatasync(self._file.fileno())
                self.syncs += 1
                self._dirty = False
            elif now_ns - self._synced_at >= _SECOND_NS:
                self._sync_aside(now_ns)
        except OSError as e:
            raise AofError(f"--aof {self._path}: {e.strerror}; changes since were not acknowledged") from None

    def _sync_aside(self, now_ns: int) -> None:
        if self._syncing is not None:
            if not self._syncing.done():
                return
            self._syncing.result()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "aof")
        self._syncing = self._thread.submit(os.fdatasync, self._file.fileno())
        self._synced_at = now_ns
        self.syncs += 1
        self._dirty = False

    def counters(self) -> dict[str, int]:
        """What was loaded, and written since."""
        return {"aof_loaded": self.loaded, "aof_entries": self.entries, "aof_bytes": self.bytes,
                "aof_syncs": self.syncs}

    def close(self) -> None:
        """Everything is on the disk after this, unless the policy is ``no``. Raises :class:`AofError`."""
        try:
            if self._thread is not None:
                self._thread.shutdown()
            if self._dirty and self._fsync != "no":
                os.fdatasync(self._file.fileno())
        except OSError as e:
            raise AofError(f"--aof {self._path}: {e.strerror}") from None
        finally:
            self._file.close()

    # -- at the start ----------------------------------------------------------------------------------------

    def _load(self, keys: Keyspace) -> bool:
        """Replay what is there; whether an older version wrote it."""
        size = os.fstat(self._file.fileno()).st_size
        session = Session()
        with open(self._path, "rb") as source:
            reader = EntryReader(self._path, source, size)
            reader.head()
            for at, body in reader.entries():
                # The parser's limits are for clients; what we wrote may be as long as a client's APPENDs made it.
                commands, wrong = CommandParser(len(body)).take(body)
                # Nothing expires while time stands still: what did is in the file as DEL.
                replies = [execute(keys, args, session, now=0) for args in commands]
                failed = wrong is not None or any(reply.startswith(b"-") for reply in replies)
                if failed:
                    raise ConfigError(f"--aof {self._path}: the entry at offset {at} cannot be replayed: another "
                                      f"version wrote it; start with another file")
                self.loaded += len(commands)
        if reader.whole < size:
            if reader.whole:
                self.warnings.append(f"--aof {self._path}: the last entry, at offset {reader.whole}, is not "
                                     f"whole: {size - reader.whole} bytes dropped")
            os.ftruncate(self._file.fileno(), reader.whole)
        self._writer = EntryWriter(self._file.fileno(), reader.crc, reader.whole)
        if not reader.whole:
            self._writer.begin()
        keys.now = 0
        return reader.form is not FORMAT

    def _is_long(self, keys: Keyspace) -> bool:
        """Whether most of the file is about what is not there any more."""
        if self._writer.size < _LONG:
            return False
        needed = sum(sum(map(len, entry)) + 6 * len(entry) for entry in keys.snapshot())
        return self._writer.size >= _WORTH * needed

    def _write_anew(self, keys: Keyspace) -> None:
        temporary = self._path.with_name(f"{self._path.name}.new")
        temporary.unlink(missing_ok=True)
        file = _open(temporary)
        writer = EntryWriter(file.fileno())
        for _entry in aof_file.write_snapshot(writer, keys.snapshot()):
            pass
        os.fsync(file.fileno())
        os.rename(temporary, self._path)
        self._file.close()
        self._file, self._writer = file, writer


def _sync_folder(path: Path) -> None:
    """So that the file is found by its name after a crash."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _open(path: Path) -> BinaryIO:
    """For appending, unbuffered, locked; raises OSError, or ConfigError if somebody else has it."""
    file = open(path, "ab", buffering=0)  # noqa: SIM115 - it stays open as long as the server runs
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever had it may have put another file in its place meanwhile.
        if os.fstat(file.fileno()).st_ino != path.stat().st_ino:
            raise BlockingIOError
    except BlockingIOError:
        file.close()
        raise ConfigError(f"--aof {path}: another server is using it; name another file") from None
    return file
