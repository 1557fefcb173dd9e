"""The append-only file on protected storage: the same entries, as bytes upon a protected device.

An entry is whole or not there after a crash, as in a plain file, and a change is acknowledged by the same rules.
What is more: nobody who has the disk reads it, or changes it unnoticed; docs/storage.md says what each mode
promises.

It is written anew by a process of its own, too. That one writes the contents to a new device; what the server has
appended meanwhile the server itself copies, a bounded piece each turn, since only it can read its device.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import os
import signal
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from smtstack.errors import ConfigError, SmtError
from smtstack.storage.block_file import BlockFile, BlockReader
from smtstack.storage.files import (
    Protected,
    Protection,
    create,
    is_protected,
    make_unnamed,
    new_path,
    open_file,
    open_unnamed,
    take_place,
)
from workloads.kv.aof_file import BATCH, EntryReader, EntryWriter, write_snapshot
from workloads.kv.aof_log import Log, PlainLog
from workloads.kv.aof_rewrite import RewriteFailed, close_all_but, copy_entries, open_locked
from workloads.kv.store import Keyspace

_REPORT = struct.Struct("=iI")
#: So much is copied in the last turn, and in each before.
_LITTLE, _PIECE = 65_536, BATCH


class BlockWriter(EntryWriter):
    """Appends entries to a file upon a protected device."""

    def __init__(self, file: BlockFile, crc: int = 0) -> None:
        super().__init__(-1, crc, file.size)
        self.file = file

    def _put(self, pieces: list[bytes]) -> None:
        data = b"".join(pieces)
        self.file.append(data)
        self.size += len(data)


def opener(protection: Protection, upgrade: bool) -> Callable[[Path], Log]:
    """What opens an append-only file on protected storage, or makes a new one. ``upgrade``: a plain file that is
    there is taken over, and protected from then on."""
    def open_log(path: Path) -> Log:
        if not path.exists() or is_protected(path):
            return ProtectedLog.open(path, protection)
        if not upgrade:
            # Whoever has the disk could put one there.
            raise ConfigError(f"--aof {path}: this file is not protected; to take over what is in it, start once "
                              f"with --aof-upgrade")
        return PlainToProtected(path, open_locked(path), protection)
    return open_log


def plain_opener(path: Path) -> Log:
    """Opens a plain file, and says what is missing for a protected one."""
    if is_protected(path):
        raise ConfigError(f"--aof {path}: this file is protected: give its --storage-key or --storage-passphrase")
    return PlainLog(path, open_locked(path))


class ProtectedLog:
    """A file on protected storage."""

    outdated = False

    def __init__(self, made: Protected, protection: Protection) -> None:
        self._made = made
        self._protection = protection
        self._file = BlockFile(made.device)
        self.writer: EntryWriter = BlockWriter(self._file)

    @classmethod
    def open(cls, path: Path, protection: Protection, read_only: bool = False) -> ProtectedLog:
        """Open it, or make it if there is none."""
        if path.exists() or read_only or (protection.state is not None and new_path(path).exists()):
            return cls(open_file(path, protection, read_only=read_only), protection)
        return cls(create(path, protection), protection)

    @property
    def size(self) -> int:
        return self._file.size

    def describe(self) -> dict[str, Any]:
        """What ``smtnet kv check`` says of it."""
        device = self._made.device
        return {"storage": device.block.mode, "freshness": device.block.freshness, "sectors": device.sectors,
                "in journal": device.in_journal}

    @contextlib.contextmanager
    def reading(self) -> Iterator[BinaryIO]:
        # Of the type it names it has all that is used.
        yield cast(BinaryIO, io.BufferedReader(BlockReader(self._file), 1 << 16))

    def start(self, crc: int, whole: int) -> None:
        if whole < self.size:
            self._file.truncate(whole)
        self.writer = BlockWriter(self._file, crc)
        if not whole:
            self.writer.begin()
        self._made.device.flush()
        new_path(self._made.path).unlink(missing_ok=True)

    def put(self) -> None:
        self._made.device.commit()

    def sync(self) -> None:
        self._made.device.flush()

    def anew(self, keys: Keyspace) -> ProtectedLog:
        made = make_unnamed(self._made.path, self._protection, like=self._made)
        return _filled(made, self._made, self._protection, keys, self.close)

    def rewriting(self, keys: Keyspace) -> ProtectedRewriting:
        return ProtectedRewriting(self, self._made, self._protection, keys)

    def close(self) -> None:
        self._made.close()


class PlainToProtected(PlainLog):
    """A plain file that becomes a protected one once it is read."""

    outdated = True

    def __init__(self, path: Path, file: BinaryIO, protection: Protection) -> None:
        super().__init__(path, file)
        self._protection = protection

    def anew(self, keys: Keyspace) -> Log:  # type: ignore[override]
        made = make_unnamed(self._path, self._protection)
        return _filled(made, None, self._protection, keys, self.close)


def _filled(made: Protected, old: Protected | None, protection: Protection, keys: Keyspace,
            close_old: Callable[[], None]) -> ProtectedLog:
    """A log of these contents, in its place."""
    try:
        log = ProtectedLog(made, protection)
        for _entry in write_snapshot(log.writer, keys.databases.snapshot()):
            pass
        log.sync()
        take_place(made, old, protection)
    except BaseException:
        made.close()
        raise
    close_old()
    return log


class ProtectedRewriting:
    """A log that is being written anew; see the module. Raises :class:`RewriteFailed`."""

    def __init__(self, log: ProtectedLog, made: Protected, protection: Protection, keys: Keyspace) -> None:
        self.pid = 0
        self._old = made
        self._log = log
        self._protection = protection
        self._new: ProtectedLog | None = None
        #: What of the old log is in the new one.
        self._whole, self._crc = log.writer.size, log.writer.crc
        parent = os.getpid()
        pipe: tuple[int, ...] = ()
        try:
            made_new = make_unnamed(made.path, protection, like=made)
            try:
                pipe = reading, writing = os.pipe()
                with warnings.catch_warnings():
                    # That a thread may hold a lock: the new process takes none of these.
                    warnings.simplefilter("ignore", DeprecationWarning)
                    self.pid = os.fork()
                if not self.pid:
                    _new_process(made_new, writing, keys, parent)
            finally:
                made_new.close()
        except OSError as e:
            for fd in pipe:
                os.close(fd)
            new_path(made.path).unlink(missing_ok=True)
            raise RewriteFailed(e.strerror) from None
        os.close(writing)
        os.set_blocking(reading, False)
        self._report = reading

    def is_written(self) -> bool:
        try:
            if self._new is None and not self._take_over():
                return False
            return self._copy() <= _LITTLE
        except (OSError, SmtError) as e:
            self._drop()
            raise RewriteFailed(e.strerror if isinstance(e, OSError) else str(e)) from None

    def _take_over(self) -> bool:
        """Whether the process is done; then the new log is ours."""
        try:
            told = os.read(self._report, _REPORT.size)
        except BlockingIOError:
            return False
        self._wait()
        if len(told) < _REPORT.size:
            raise OSError(errno.EIO, "the process that wrote it has ended")
        number, crc = _REPORT.unpack(told)
        if number:
            raise OSError(number, os.strerror(number))
        self._new = ProtectedLog(open_unnamed(self._old.path, self._old), self._protection)
        self._new.writer.crc = crc
        return True

    def _copy(self) -> int:
        """Copy a piece of what was appended to the old log; how much is left."""
        assert self._new is not None
        end = self._log.writer.size
        with self._log.reading() as source:
            reader = EntryReader(self._old.path, source, end)
            reader.go_on(self._whole, self._crc, end)
            copy_entries(reader, self._new.writer, _PIECE)
            self._whole, self._crc = reader.whole, reader.crc
        self._new.put()
        return end - self._whole

    def finish(self, old: EntryWriter) -> ProtectedLog:
        new = self._new
        assert new is not None
        try:
            while self._copy():
                pass
            new.sync()
        except (OSError, SmtError) as e:
            self._drop()
            raise RewriteFailed(e.strerror if isinstance(e, OSError) else str(e)) from None
        take_place(new._made, self._old, self._protection)
        return new

    def abort(self) -> None:
        if self._new is None:
            os.kill(self.pid, signal.SIGKILL)
            self._wait()
        self._drop()

    def _wait(self) -> None:
        os.close(self._report)
        os.waitpid(self.pid, 0)

    def _drop(self) -> None:
        if self._new is not None:
            self._new.close()
        new_path(self._old.path).unlink(missing_ok=True)


def _new_process(made: Protected, report: int, keys: Keyspace, parent: int) -> NoReturn:
    """Write the contents and say what became of it; it has no descriptors of the server's."""
    try:
        gc.disable()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        close_all_but(made.fileno(), report)
        try:
            writer = BlockWriter(BlockFile(made.device))
            for _entry in write_snapshot(writer, keys.databases.snapshot()):
                if os.getppid() != parent:
                    os._exit(1)
                made.device.commit()
            made.device.flush()
            made.device.checkpoint()
            told = _REPORT.pack(0, writer.crc)
        except OSError as e:
            told = _REPORT.pack(e.errno or errno.EIO, 0)
        os.write(report, told)
    finally:
        os._exit(0)
