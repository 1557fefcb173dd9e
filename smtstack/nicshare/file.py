"""The shared-memory file of one interface's smart NIC: header, settings, a slot for every endpoint.

Everything is in 64-bit words in the machine's own order. Who changes the header, the settings or who owns
which slot holds ``flock``; an endpoint writes its own slot without a lock. An endpoint is alive as long as
it holds the lock on its slot's number (an open-file-description lock, which the kernel takes back whatever
ends the process), so no process id has to be believed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import re
import stat
import struct
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path

from smtstack.errors import ConfigError, Unsupported
from smtstack.io import namespaces
from smtstack.io.namespaces import Census, Namespace
from smtstack.nic import counters as nic_counters
from smtstack.nic.device import ALL_FEATURES
from smtstack.nicshare.settings import Settings
from smtstack.rings import counters as ring_counters
from smtstack.transport import counters as transport_counters

FOLDER = Path("/run/smtnet")
#: What an endpoint counts; ``impaired_*`` are frames that the impairments of its NIC hit.
COUNTERS = (*nic_counters.NAMES, *transport_counters.NAMES, "socket_received", "socket_dropped",
            "socket_send_drops", "unresolved", "impaired_dropped", "impaired_duplicated", "impaired_reordered",
            "impaired_corrupted", "settings_refused", "tap_errors", *ring_counters.NAMES)
#: Endpoints of one interface that can be seen; more work all the same.
SLOTS = 64

_MAGIC = int.from_bytes(b"smtnic\0\1", "big")
#: Changes with the meaning of any word.
_LAYOUT = zlib.crc32(repr((COUNTERS, ALL_FEATURES, SLOTS, 2)).encode())

# Words of the header.
_AT_MAGIC, _AT_LAYOUT, GENERATION, _AT_KEPT, _AT_BOOT, _AT_INODE, _AT_PIDS, _AT_SIZE = range(8)
_SETTINGS_AT, _SETTINGS_END = 64, 8192
# Words of a slot; counters follow. The address is 0 in a slot that nobody owns.
PID, ADDRESS, PORT, PROTOCOL, PROFILE, ON, APPLIED, CONTEXTS = range(8)
SLOT_WORDS = 8 + len(COUNTERS)
#: The first slot adds up the counters of endpoints that are gone.
_GONE = 0
_FILE_SIZE = -(-(_SETTINGS_END + 8 * SLOT_WORDS * (1 + SLOTS)) // mmap.PAGESIZE) * mmap.PAGESIZE

_NAME = re.compile(r"\d+-.+")
_LOCK = struct.Struct("hhqqi4x")


class StateFile:
    """One such file, mapped. Made by :func:`open_file`; close it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._fd = descriptor
        self._map = mmap.mmap(descriptor, _FILE_SIZE)
        self.words = memoryview(self._map).cast("Q")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else changes settings or slots meanwhile."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    # -- settings; callers hold the lock ------------------------------------------------------------------

    def read_settings(self) -> Settings:
        """Raises :class:`ConfigError` if they are damaged."""
        size = self.words[_AT_SIZE]
        if not size:
            return Settings()
        return Settings.unpack(self._map[_SETTINGS_AT:min(_SETTINGS_AT + size, _SETTINGS_END)])

    def write_settings(self, settings: Settings) -> None:
        """Raises :class:`ConfigError` if they do not fit."""
        data = settings.pack() if settings != Settings() else b""
        if len(data) > _SETTINGS_END - _SETTINGS_AT:
            raise ConfigError(f"the NIC's settings take {len(data)} bytes, too many; is a path very long?")
        self._map[_SETTINGS_AT:_SETTINGS_AT + len(data)] = data
        self.words[_AT_SIZE] = len(data)
        self.words[GENERATION] += 1

    def try_settings(self) -> tuple[int, Settings] | None:
        """(generation, settings), or None while somebody changes them: never waits. Takes the lock itself."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        try:
            return self.words[GENERATION], self.read_settings()
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    @property
    def kept(self) -> bool:
        """Whether it stays when the last endpoint leaves: a link wants it to, or something is set."""
        return bool(self.words[_AT_KEPT] or self.words[_AT_SIZE])

    def keep(self, on: bool) -> None:
        """A link wants it to stay, or not any more."""
        self.words[_AT_KEPT] = on

    # -- slots; callers hold the lock ---------------------------------------------------------------------

    def slot(self, number: int) -> memoryview:
        """Words of slot 1 to :data:`SLOTS`."""
        at = _SETTINGS_END // 8 + number * SLOT_WORDS
        return self.words[at:at + SLOT_WORDS]

    def claim(self) -> int:
        """Number of a slot that is ours from now on; 0 if none is free."""
        self.fold()
        for number in range(1, SLOTS + 1):
            if not self.slot(number)[ADDRESS] and self._lock_slot(number, fcntl.F_WRLCK):
                return number
        return 0

    def release(self, number: int) -> None:
        """Give our slot back; its counters stay in the total."""
        self._lock_slot(number, fcntl.F_UNLCK)
        self.fold()

    def alive(self, number: int, count: int = 1) -> bool:
        """Whether another open file holds one of ``count`` slots."""
        asked = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, number, count, 0)
        return bool(_LOCK.unpack(fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK)

    def in_use(self) -> bool:
        """Whether another open file than this one holds any slot."""
        return self.alive(1, SLOTS)

    def fold(self) -> None:
        """Add the counters of endpoints that are gone to the total; their slots are free then."""
        for number in range(1, SLOTS + 1):
            slot = self.slot(number)
            if slot[ADDRESS] and not self.alive(number):
                self.add_gone(slot[SLOT_WORDS - len(COUNTERS):])
                slot[:] = array("Q", bytes(8 * SLOT_WORDS))

    def add_gone(self, counters: memoryview | array[int]) -> None:
        """Add counters, in the order of :data:`COUNTERS`, to those of endpoints that are gone."""
        gone = self.slot(_GONE)[SLOT_WORDS - len(COUNTERS):]
        for n, value in enumerate(counters):
            gone[n] = gone[n] + value & (1 << 64) - 1

    def totals(self) -> list[int]:
        """Every counter, in the order of :data:`COUNTERS`, over all endpoints there are and were."""
        slots = [self.slot(number)[SLOT_WORDS - len(COUNTERS):] for number in range(SLOTS + 1)]
        return [sum(column) for column in zip(*slots, strict=True)]

    def _lock_slot(self, number: int, kind: int) -> bool:
        with contextlib.suppress(BlockingIOError):
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _LOCK.pack(kind, os.SEEK_SET, number, 1, 0))
            return True
        return False

    # -- life --------------------------------------------------------------------------------------------

    def unlink_unless_needed(self) -> None:
        """Remove the file if no endpoint but ours uses it and nothing keeps it; under the lock."""
        if not self.kept and not self.in_use():
            self.unlink()

    def unlink(self) -> None:
        """Remove the file; those who have it open keep what they see."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def close(self) -> None:
        """Views of slots that others still hold keep the memory, not the descriptor."""
        os.close(self._fd)
        with contextlib.suppress(BufferError):
            self.words.release()
            self._map.close()

    # -- a file's first moments, and its last --------------------------------------------------------------

    def describe_as(self, namespace: Namespace) -> None:
        """Fill in the header of a fresh file."""
        words = self.words
        words[_AT_LAYOUT], words[GENERATION], words[_AT_BOOT] = _LAYOUT, 1, _boot()
        words[_AT_INODE], words[_AT_PIDS] = namespace.inode, namespaces.pid_namespace()
        words[_AT_MAGIC] = _MAGIC

    def valid(self) -> bool:
        """Whether this version of smtnet made it since the machine started."""
        words = self.words
        return words[_AT_MAGIC] == _MAGIC and words[_AT_LAYOUT] == _LAYOUT and words[_AT_BOOT] == _boot()

    def namespace_gone(self, census: Census) -> bool:
        """Whether its network is known not to exist any more; only who sees the same processes can know."""
        return self.words[_AT_PIDS] == namespaces.pid_namespace() and not census.knows(self.words[_AT_INODE])


def open_file(interface: str, namespace: Namespace, create: bool, folder: Path | None = None) -> StateFile | None:
    """The file of an interface, *locked* by flock; None: there is none and ``create`` is false.

    Raises :class:`Unsupported` where the folder cannot be used, :class:`ConfigError` if endpoints of another
    version of smtnet use the file.
    """
    folder = folder or FOLDER
    path = folder / f"{namespace.cookie}-{interface}"
    try:
        if create:
            _make_folder(folder)
        while True:
            file = _try_open(path, create)
            if file is None:
                return None
            if file.valid():
                return file
            if file.words[_AT_MAGIC] == 0:
                file.describe_as(namespace)
                return file
            if file.in_use():
                file.close()
                raise ConfigError(f"{path} belongs to endpoints of another version of smtnet; end them first")
            # Not in place: somebody may have it mapped, and a file that shrinks kills those.
            file.unlink()
            file.close()
    except OSError as e:
        needs = "; needs root: run with sudo" if isinstance(e, PermissionError) else ""
        raise Unsupported(f"{folder}, where NICs' settings and counters are: {e.strerror}{needs}") from None


def _try_open(path: Path, create: bool) -> StateFile | None:
    """The file, locked and of the right size, or None; raises OSError."""
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0), 0o600)
        except FileNotFoundError:
            if create:
                raise
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            status = os.fstat(fd)
            if not status.st_nlink:
                # Its last user removed it between our two calls.
                os.close(fd)
                continue
            if status.st_size < _FILE_SIZE:
                os.ftruncate(fd, _FILE_SIZE)
            return StateFile(path, fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(fd)
            raise


def _make_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise Unsupported(f"{folder} is not ours alone: others could write what we believe; remove it")


def sweep(folder: Path | None = None, networks: bool = True) -> None:
    """Remove files whose endpoints were killed, and (``networks``) those of networks that are no more."""
    folder = folder or FOLDER
    with contextlib.suppress(OSError):
        paths = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
        census = Census() if networks and paths else None
        for path in paths:
            _sweep_one(path, census)


def _sweep_one(path: Path, census: Census | None) -> None:
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            # Busy: then somebody is there.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(fd)
            file = StateFile(path, os.dup(fd)) if status.st_nlink and status.st_size >= _FILE_SIZE else None
            if status.st_nlink and not status.st_size:
                # Who made it has not got this lock yet, if he lives: he will see that it is gone.
                path.unlink()
        finally:
            os.close(fd)
        if file is None:
            return
        try:
            if not file.in_use() and (not file.valid() or not file.kept
                                      or (census is not None and file.namespace_gone(census))):
                file.unlink()
        finally:
            file.close()


def _boot() -> int:
    """A number of this run of the machine."""
    try:
        return zlib.crc32(Path("/proc/sys/kernel/random/boot_id").read_bytes())
    except OSError:
        return 0
