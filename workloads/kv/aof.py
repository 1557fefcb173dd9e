"""The append-only file: every change of the keyspace, so that a restarted server has what it had.

The file is a head and entries. An entry is what one turn of the event loop has changed, as RESP commands that give
the same whenever they are replayed (times are absolute, the end of a key is a DEL)::

    head    "smtnet kv 1\\n"
    entry   length of the commands, CRC-32 of them, CRC-32 of the two before: 32 bits each, big-endian
            the commands

Each CRC goes on from that of the entry before, so an entry that is missing is noticed as well as one that was
changed. What a crash cuts off is at the end: an entry that is not whole there is dropped, with a warning. Anything
else that is wrong is damage, and nothing is served from such a file.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from smtstack.errors import ConfigError, SmtError
from workloads.kv import resp
from workloads.kv.arguments import Session
from workloads.kv.commands import execute
from workloads.kv.resp import Command, CommandParser
from workloads.kv.store import Keyspace

HEAD = b"smtnet kv 1\n"
_ENTRY = struct.Struct("!III")
FSYNC = ("always", "everysec", "no")
_SECOND_NS = 1_000_000_000
#: Bytes of an entry of a file that is written anew.
_BATCH = 1 << 20
#: A file is written anew when it is so much longer than it need be.
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
        self._crc = 0
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
            self._load(keys)
            self._shorten(keys)
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
        """Append what a turn has changed; with ``always`` it is on the disk then. Raises :class:`AofError`.

        ``now_ns`` is a ``time.monotonic_ns()``; an empty journal is how time passes.
        """
        try:
            if journal:
                body = b"".join([resp.array([resp.bulk(arg) for arg in entry]) for entry in journal])
                self._append(self._file, body)
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

    def _append(self, file: BinaryIO, body: bytes) -> None:
        crc = zlib.crc32(body, self._crc)
        start = _ENTRY.pack(len(body), crc, 0)[:8]
        data = memoryview(b"".join((start, zlib.crc32(start, self._crc).to_bytes(4, "big"), body)))
        while data:
            written = file.write(data)
            self.bytes += written
            data = data[written:]
        self._crc = crc

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

    def _load(self, keys: Keyspace) -> None:
        size = os.fstat(self._file.fileno()).st_size
        session = Session()
        with open(self._path, "rb") as source:
            whole = len(HEAD)
            for at, body in self._entries(source, size):
                # The parser's limits are for clients; what we wrote may be as long as a client's APPENDs made it.
                commands, wrong = CommandParser(len(body)).take(body)
                # Nothing expires while time stands still: what did is in the file as DEL.
                replies = [execute(keys, args, session, now=0) for args in commands]
                failed = wrong is not None or any(reply.startswith(b"-") for reply in replies)
                if failed:
                    raise ConfigError(f"--aof {self._path}: the entry at offset {at} cannot be replayed: another "
                                      f"version wrote it; start with another file")
                self.loaded += len(commands)
                whole = at + _ENTRY.size + len(body)
        if whole < size:
            self.warnings.append(f"--aof {self._path}: the last entry, at offset {whole}, is not whole: "
                                 f"{size - whole} bytes dropped")
            os.ftruncate(self._file.fileno(), whole)
        keys.now = 0

    def _entries(self, source: BinaryIO, size: int) -> Iterator[tuple[int, bytes]]:
        """Offset and commands of each entry; ends before one that is not whole. Raises :class:`ConfigError`."""
        if size < len(HEAD):
            head = source.read()
            if not HEAD.startswith(head):
                raise ConfigError(f"--aof {self._path}: this is no append-only file of smtnet; name another")
            os.ftruncate(self._file.fileno(), 0)
            self._file.write(HEAD)
            return
        if source.read(len(HEAD)) != HEAD:
            raise ConfigError(f"--aof {self._path}: this is no append-only file of smtnet; name another")
        at = len(HEAD)
        while size - at >= _ENTRY.size:
            start = source.read(_ENTRY.size)
            length, crc, check = _ENTRY.unpack(start)
            if zlib.crc32(start[:8], self._crc) != check:
                # A file system may have made the file longer before it wrote what belongs there.
                if not any(start) and not any(source.read()):
                    return
                raise self._damaged(at)
            end = at + _ENTRY.size + length
            body = source.read(length)
            if len(body) < length:
                return
            if zlib.crc32(body, self._crc) != crc:
                if end == size:
                    return
                raise self._damaged(at)
            self._crc = crc
            yield at, body
            at = end

    def _damaged(self, at: int) -> ConfigError:
        return ConfigError(f"--aof {self._path}: damaged at offset {at}; to go on with what is before that, keep "
                           f"a copy and run: truncate -s {at} {self._path}")

    def _shorten(self, keys: Keyspace) -> None:
        """Write the file anew, if most of it is about what is not there any more."""
        size = os.fstat(self._file.fileno()).st_size
        needed = sum(sum(map(len, entry)) + 6 * len(entry) for entry in keys.snapshot())
        if size < _BATCH or size < _WORTH * needed:
            return
        temporary = self._path.with_name(f"{self._path.name}.new")
        temporary.unlink(missing_ok=True)
        file = _open(temporary)
        file.write(HEAD)
        self._crc = 0
        for body in _batches(keys.snapshot()):
            self._append(file, body)
        os.fsync(file.fileno())
        os.rename(temporary, self._path)
        self._file.close()
        self._file = file
        self.bytes = 0


def _batches(entries: Iterable[Command]) -> Iterator[bytes]:
    batch: list[bytes] = []
    size = 0
    for entry in entries:
        data = resp.array([resp.bulk(arg) for arg in entry])
        batch.append(data)
        size += len(data)
        if size >= _BATCH:
            yield b"".join(batch)
            batch, size = [], 0
    if batch:
        yield b"".join(batch)


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
