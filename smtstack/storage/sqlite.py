"""SQLite on protected storage, by a VFS of its own (apsw, the extra ``sqlite``)::

    connection = open_database(Path("store.db"), Protection(read_key_file(key)))
    connection.execute("create table t(x)")

The database file is a protected device; SQLite's sync is its flush, which is atomic. So a transaction is on the
disk as a whole or not at all without a rollback journal there: that, and what else SQLite keeps beside a database,
stays in memory, whatever ``journal_mode`` says. A transaction may change as many pages as the device's journal has
room for; beyond, SQLite says that the disk is full. One connection at a time has a database. There is no WAL mode,
which would take away what a sync means.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from smtstack.errors import AuthError, ConfigError, SmtError, Unsupported
from smtstack.storage.block_file import BlockFile
from smtstack.storage.device import SECTOR
from smtstack.storage.files import Protected, Protection, create, is_protected, open_file

try:
    import apsw
except ImportError:
    raise Unsupported("SQLite on protected storage needs apsw: make venv, or pip install apsw") from None

#: Sectors of a database's journal, 64 MiB: what a transaction can change.
JOURNAL_SECTORS: Final = 1 << 14
#: What a file of its kind promises: a sync of one never comes before a write that was before it (SQLite's "seq.").
_SEQUENTIAL: Final = 0x400
_numbers = itertools.count()


def open_database(path: Path, protection: Protection) -> apsw.Connection:
    """A connection to a protected database, made if there is none. Raises :class:`ConfigError`, OSError,
    :class:`AuthError`; later what is wrong is an ``apsw.Error``."""
    protection = replace(protection, journal=JOURNAL_SECTORS)

    def open_one(name: str) -> Protected:
        file = Path(name)
        if not file.exists():
            return create(file, protection, autocommit=False)
        if not is_protected(file):
            raise ConfigError(f"{file}: this database is not protected; copy it by the shell's .dump")
        return open_file(file, protection, autocommit=False)

    return connect(path, open_one)


def connect(path: Path, open_one: Callable[[str], Protected]) -> apsw.Connection:
    """A connection to what ``open_one`` opens for the database's name. Raises what that does."""
    vfs = _Vfs(f"smtnet-{next(_numbers)}", open_one)
    try:
        connection = apsw.Connection(str(path.absolute()), vfs=vfs.name)
    except apsw.Error:
        if vfs.error is not None:
            raise vfs.error from None
        raise
    # Where it would be written to a file of the system's.
    connection.pragma("temp_store", "memory")
    return connection


class _Vfs(apsw.VFS):
    """Opens one protected database; other files are in memory. It lives as long as its connections do."""

    def __init__(self, name: str, open_one: Callable[[str], Protected]) -> None:
        self.name = name
        self.error: SmtError | OSError | None = None
        self._open_one = open_one
        self._others: dict[str, bytearray] = {}
        super().__init__(name, "")

    def xOpen(self, name: Any, flags: list[int]) -> Any:  # noqa: N802 - SQLite's name
        if flags[0] & apsw.SQLITE_OPEN_WAL:
            raise apsw.CantOpenError("protected storage has no WAL mode")
        if not flags[0] & apsw.SQLITE_OPEN_MAIN_DB:
            content = bytearray()
            if name is not None:
                content = self._others.setdefault(_text(name), content)
            return _InMemory(content)
        try:
            return _Database(self._open_one(_text(name)))
        except (SmtError, OSError) as e:
            self.error = e
            raise apsw.CantOpenError(str(e)) from None

    def xAccess(self, pathname: str, flags: int) -> bool:  # noqa: N802
        return pathname in self._others

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        self._others.pop(filename, None)

    def xFullPathname(self, name: str) -> str:  # noqa: N802
        return str(Path(name).absolute())


def _text(name: Any) -> str:
    return name if isinstance(name, str) else str(name.filename())


class _File:
    """What all files have in common: nobody else has them."""

    def xLock(self, level: int) -> None:  # noqa: N802
        """There is nobody to lock out: the device is."""

    def xUnlock(self, level: int) -> None:  # noqa: N802
        """Likewise."""

    def xCheckReservedLock(self) -> bool:  # noqa: N802
        return False

    def xSectorSize(self) -> int:  # noqa: N802
        return SECTOR

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        return _SEQUENTIAL

    def xFileControl(self, op: int, ptr: int) -> bool:  # noqa: N802
        return False


class _InMemory(_File):
    """A journal, or a temporary file."""

    def __init__(self, content: bytearray) -> None:
        self._content = content

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        return bytes(self._content[offset:offset + amount])

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        content = self._content
        if len(content) < offset:
            content.extend(bytes(offset - len(content)))
        content[offset:offset + len(data)] = data

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        del self._content[newsize:]

    def xFileSize(self) -> int:  # noqa: N802
        return len(self._content)

    def xSync(self, flags: int) -> None:  # noqa: N802
        """It need not survive anything."""

    def xClose(self) -> None:  # noqa: N802
        """What has a name stays until it is deleted."""


class _Database(_File):
    """The database itself."""

    def __init__(self, protected: Protected) -> None:
        self._protected = protected
        self._file = BlockFile(protected.device)

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        data: bytes = _guarded(lambda: self._file.read(offset, amount))
        return data

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        _guarded(lambda: self._file.write(offset, bytes(data)))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        _guarded(lambda: self._file.truncate(newsize))

    def xFileSize(self) -> int:  # noqa: N802
        return self._file.size

    def xSync(self, flags: int) -> None:  # noqa: N802
        _guarded(self._protected.device.flush)

    def xClose(self) -> None:  # noqa: N802
        # SQLite has rolled back what was not committed. With synchronous=off nothing was synced.
        try:
            _guarded(self._protected.device.flush)
        finally:
            self._protected.close()


def _guarded(do: Callable[[], Any]) -> Any:
    """Errors as SQLite knows them."""
    try:
        return do()
    except AuthError as e:
        raise apsw.CorruptError(str(e)) from None
    except OSError as e:
        raise (apsw.FullError if e.errno == errno.ENOSPC else apsw.IOError)(str(e)) from None
