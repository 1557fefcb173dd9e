"""Writing the append-only file anew while it is served, as short as its contents allow.

A process of its own does it, made by fork as Redis does: it has the keyspace as it was at that moment, and its
time is not the event loop's. (To do it in the loop, bit by bit, every command would have to save what it is about
to change.) It writes the contents to ``FILE.new``, then what the server has appended to ``FILE`` since, and syncs.
The server copies the little that came after that, syncs, and gives the new file its name. Until then the old file
has everything, so at whatever moment either of them ends, nothing that was acknowledged is lost.

What the loop waits for: the fork (page tables: see docs/kv.md), and at the end a sync of little. What it costs:
pages that both processes touch are copied, up to as much memory again.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import signal
import struct
import warnings
from pathlib import Path
from typing import BinaryIO, NoReturn

from smtstack.errors import ConfigError
from workloads.kv.aof_file import BATCH, EntryReader, EntryWriter, write_snapshot
from workloads.kv.store import Keyspace

#: errno, CRC and size of the new file, up to where the old one is in it, and the CRC there.
_REPORT = struct.Struct("=iIQQI")
#: The new process is done when so little was appended meanwhile, or after so many rounds.
_LITTLE = 65_536
_MOST_ROUNDS = 20


class RewriteFailed(Exception):
    """There is no new file; the old one goes on. The text says why."""


class Rewrite:
    """A file that is being written anew. ``old``: what writes it, with everything about ``keys`` written.

    Raises :class:`RewriteFailed`.
    """

    def __init__(self, path: Path, keys: Keyspace, old: EntryWriter) -> None:
        self._path = path
        self.pid = 0
        self._told = b""
        new = new_path(path)
        try:
            new.unlink(missing_ok=True)
            self._file = open_locked(new)
        except (OSError, ConfigError) as e:
            raise RewriteFailed(e.strerror if isinstance(e, OSError) else str(e)) from None
        parent = os.getpid()
        pipe: tuple[int, ...] = ()
        try:
            pipe = reading, writing = os.pipe()
            with warnings.catch_warnings():
                # That a thread may hold a lock: the new process takes none.
                warnings.simplefilter("ignore", DeprecationWarning)
                self.pid = os.fork()
        except OSError as e:
            for fd in pipe:
                os.close(fd)
            self._drop()
            raise RewriteFailed(e.strerror) from None
        if not self.pid:
            _new_process(path, self._file.fileno(), writing, keys, old, parent)
        os.close(writing)
        os.set_blocking(reading, False)
        self._report = reading

    def is_written(self) -> bool:
        """Whether :meth:`finish` can be called. Raises :class:`RewriteFailed`."""
        try:
            self._told = os.read(self._report, _REPORT.size)
        except BlockingIOError:
            return False
        self._wait()
        if len(self._told) < _REPORT.size:
            self._drop()
            raise RewriteFailed("the process that wrote it has ended")
        number = _REPORT.unpack(self._told)[0]
        if number:
            self._drop()
            raise RewriteFailed(os.strerror(number))
        return True

    def finish(self, old: EntryWriter) -> tuple[BinaryIO, EntryWriter]:
        """Put the new file in the place of what ``old`` writes. Raises :class:`RewriteFailed`.

        OSError: it is in that place, but nobody knows for how long.
        """
        _number, crc, size, whole, old_crc = _REPORT.unpack(self._told)
        writer = EntryWriter(self._file.fileno(), crc, size)
        try:
            with open(self._path, "rb") as source:
                reader = EntryReader(self._path, source, old.size)
                reader.go_on(whole, old_crc, old.size)
                copy_entries(reader, writer)
            os.fsync(writer.fd)
            # Before the name is given: afterwards nothing must fail for want of descriptors.
            folder = _open_folder(self._path)
        except (OSError, ConfigError) as e:
            self._drop()
            raise RewriteFailed(e.strerror if isinstance(e, OSError) else str(e)) from None
        try:
            try:
                os.rename(new_path(self._path), self._path)
            except OSError as e:
                self._drop()
                raise RewriteFailed(e.strerror) from None
            os.fsync(folder)
        finally:
            os.close(folder)
        return self._file, writer

    def abort(self) -> None:
        """Give it up."""
        os.kill(self.pid, signal.SIGKILL)
        self._wait()
        self._drop()

    def _wait(self) -> None:
        os.close(self._report)
        os.waitpid(self.pid, 0)

    def _drop(self) -> None:
        self._file.close()
        new_path(self._path).unlink(missing_ok=True)


def _new_process(path: Path, fd: int, report: int, keys: Keyspace, old: EntryWriter, parent: int) -> NoReturn:
    """Write the file and say what became of it.

    These are its only descriptors: the server's locks and ports must not outlive the server.
    """
    try:
        gc.disable()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        close_all_but(fd, report)
        try:
            writer = EntryWriter(fd)
            for _entry in write_snapshot(writer, keys.databases.snapshot()):
                if os.getppid() != parent:
                    os._exit(1)
            whole, crc = _catch_up(path, writer, old)
            told = _REPORT.pack(0, writer.crc, writer.size, whole, crc)
        except OSError as e:
            told = _REPORT.pack(e.errno or errno.EIO, 0, 0, 0, 0)
        os.write(report, told)
    finally:
        os._exit(0)


def close_all_but(*kept: int) -> None:
    """For a new process: no other descriptors, and nothing behind the first three."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    last = 2
    for fd in sorted(kept):
        os.closerange(last + 1, fd)
        last = fd
    os.closerange(last + 1, os.sysconf("SC_OPEN_MAX"))


def _catch_up(path: Path, writer: EntryWriter, old: EntryWriter) -> tuple[int, int]:
    """Copy what is appended to the old file; up to where, and the CRC there. All is synced."""
    whole, crc = old.size, old.crc
    with open(path, "rb") as source:
        for _round in range(_MOST_ROUNDS):
            before = whole
            reader = EntryReader(path, source, os.fstat(source.fileno()).st_size)
            reader.go_on(whole, crc, os.fstat(source.fileno()).st_size)
            try:
                copy_entries(reader, writer)
            except ConfigError:
                # Perhaps it is being written just now. The server knows, and goes on from here.
                break
            finally:
                whole, crc = reader.whole, reader.crc
            os.fsync(writer.fd)
            if whole - before <= _LITTLE:
                return whole, crc
    os.fsync(writer.fd)
    return whole, crc


def copy_entries(reader: EntryReader, writer: EntryWriter, most: int | None = None) -> None:
    """Write the entries that are left again, or at least ``most`` bytes of them; small ones together, which keeps
    each of them whole."""
    bodies: list[bytes] = []
    size = total = 0
    damaged = None
    try:
        for _at, body in reader.entries():
            bodies.append(body)
            size += len(body)
            total += len(body)
            if most is not None and total >= most:
                break
            if size >= BATCH:
                writer.append_encoded(bodies)
                bodies, size = [], 0
    except ConfigError as e:
        damaged = e
    if bodies:
        writer.append_encoded(bodies)
    if damaged is not None:
        raise damaged


def new_path(path: Path) -> Path:
    """The file that is being written. Whoever has the lock of ``path`` may delete it."""
    return path.with_name(f"{path.name}.new")


def sync_folder(path: Path) -> None:
    """So that the file is found by its name after a crash."""
    folder = _open_folder(path)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _open_folder(path: Path) -> int:
    return os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)


def open_locked(path: Path) -> BinaryIO:
    """For appending, unbuffered; raises OSError, or ConfigError if somebody else has it."""
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
