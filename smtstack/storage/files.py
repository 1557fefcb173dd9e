"""Protected devices as files: made at once or not at all, opened with what was given for them, put in place of
another.

A file that is being made is ``NAME.new`` until all of it is there. A device with freshness has its trusted state
in a file of its own, which should lie where the disk's owner cannot put back an old one.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from smtstack.errors import AuthError, ConfigError
from smtstack.storage.device import SECTOR, BlockDevice, FileDevice
from smtstack.storage.keys import DEFAULT_COST, ScryptCost, Secret
from smtstack.storage.layout import MAGIC, Superblock
from smtstack.storage.protected import (
    JOURNAL_SECTORS,
    ProtectedDevice,
    device_sectors,
    format_device,
    key_of,
    new_superblock,
)
from smtstack.storage.recovery import read_superblock
from smtstack.storage.trusted import SLOTS, TrustedState

#: Sectors of a new file's data; it grows.
FIRST_SECTORS = 1024


@dataclass(frozen=True, slots=True)
class Protection:
    """How a file is protected. ``state``: the file with the trusted state; None: no freshness."""

    secret: Secret
    mode: str = "aead"
    state: Path | None = None
    kind: str = "sealed"
    """sealed or counter: what the trusted state knows."""
    journal: int = JOURNAL_SECTORS
    cost: ScryptCost = DEFAULT_COST

    @property
    def freshness(self) -> str:
        """What the superblock says of it."""
        return self.kind if self.state is not None else "none"


@dataclass(slots=True, eq=False)
class Protected:
    """An open one."""

    path: Path
    below: BlockDevice
    device: ProtectedDevice
    master: bytes
    trusted: TrustedState | None

    def fileno(self) -> int:
        """The descriptor of the file."""
        assert isinstance(self.below, FileDevice)
        return self.below.fileno()

    def close(self) -> None:
        """Give all back. What was not committed is dropped."""
        self.device.close()
        if self.trusted is not None:
            self.trusted.close()


def is_protected(path: Path) -> bool:
    """Whether a file is one of ours. Raises OSError; no file: it is not."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        slots = file.read(2 * SECTOR)
        return MAGIC in (slots[:len(MAGIC)], slots[SECTOR:SECTOR + len(MAGIC)])
    return False


def new_path(path: Path) -> Path:
    """The file that is being made. Whoever has the lock of ``path`` may delete it."""
    return path.with_name(f"{path.name}.new")


def create(path: Path, protection: Protection, sectors: int = FIRST_SECTORS, *,
           autocommit: bool = True) -> Protected:
    """A new protected file. Raises OSError, FileExistsError too; AuthError if one was there that is gone."""
    if path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    making = make_unnamed(path, protection, sectors, autocommit=autocommit)
    with closing_on_error(making):
        take_place(making, None, protection)
    return making


def make_unnamed(path: Path, protection: Protection, sectors: int = FIRST_SECTORS, *,
                 like: Protected | None = None, autocommit: bool = True) -> Protected:
    """What is to be ``path``, still as :func:`new_path`, without a trusted state. ``like``: has the same key as
    that one. Raises OSError."""
    new_path(path).unlink(missing_ok=True)
    block = new_superblock(protection.mode, protection.freshness, sectors, protection.journal,
                           protection.cost if protection.secret.passphrase else None)
    if like is not None:
        block = replace(block, salt=like.device.block.salt, cost=like.device.block.cost)
    master = like.master if like is not None else key_of(block, protection.secret)
    size = device_sectors(block.mode, block.freshness, sectors, block.journal)
    below = FileDevice(new_path(path), size, new=True)
    try:
        format_device(below, block, master)
        device = ProtectedDevice(below, master, vouched=True, autocommit=autocommit)
        return Protected(path, below, device, master, None)
    except BaseException:
        below.close()
        raise


def open_unnamed(path: Path, like: Protected) -> Protected:
    """What :func:`make_unnamed` made, closed meanwhile: the caller vouches for it. Raises as ProtectedDevice."""
    below = FileDevice(new_path(path))
    try:
        return Protected(path, below, ProtectedDevice(below, like.master, vouched=True), like.master, None)
    except BaseException:
        below.close()
        raise


def take_place(new: Protected, old: Protected | None, protection: Protection) -> None:
    """Give ``new`` its name and trusted state. ``old``: which had both, holds no more than ``new`` does, and is
    not written any more; None: there was none.

    Raises OSError: then it may have the name, or not. AuthError: there was one, says the trusted state.
    """
    new.device.flush()
    trusted = old.trusted if old is not None else open_state(protection, new.master)
    new.trusted = trusted
    if trusted is not None:
        if old is not None:
            old.trusted = None
            old.device.retire()
        elif not trusted.empty:
            raise AuthError(f"{new.path} is gone: the trusted state {protection.state} is about such a file. "
                            f"Delete that to begin anew")
        new.device.trust(trusted)
    give_name(new.path)


def open_file(path: Path, protection: Protection, *, read_only: bool = False,
              autocommit: bool = True) -> Protected:
    """Open what is there. Raises OSError; :class:`ConfigError`, :class:`AuthError` that name it."""
    _finish_naming(path, protection)
    below = FileDevice(path)
    trusted = None
    try:
        block = read_superblock(below)
        _compare(path, block, protection)
        master = key_of(block, protection.secret)
        trusted = open_state(protection, master, make=False)
        device = ProtectedDevice(below, master, trusted, read_only=read_only, autocommit=autocommit)
        return Protected(path, below, device, master, trusted)
    except BaseException as e:
        below.close()
        if trusted is not None:
            trusted.close()
        if isinstance(e, (AuthError, ConfigError)):
            raise type(e)(f"{path}: {e}") from None
        raise


def _compare(path: Path, block: Superblock, protection: Protection) -> None:
    """Whoever has the disk must not choose how much of it is checked."""
    if block.mode != protection.mode:
        raise ConfigError(f"its mode is {block.mode}, not {protection.mode}")
    if block.freshness != protection.freshness:
        raise ConfigError(f"its freshness is {block.freshness}, not {protection.freshness}")


def open_state(protection: Protection, master: bytes, make: bool = True) -> TrustedState | None:
    """The trusted state, or one that is made; None: no freshness. Raises AuthError, ConfigError, OSError."""
    if protection.state is None:
        return None
    if not make and not protection.state.exists():
        raise AuthError(f"the trusted state {protection.state} is gone: whether this is the latest, nobody knows")
    device = FileDevice(protection.state, SLOTS)
    try:
        return TrustedState(device, master, protection.kind)
    except BaseException:
        device.close()
        raise


def _finish_naming(path: Path, protection: Protection) -> None:
    """A crash between the trusted state and the name of a new file leaves the latter to be given."""
    state = protection.state
    if state is not None and state.exists() and not path.exists() and new_path(path).exists():
        give_name(path)


def give_name(path: Path) -> None:
    """Rename what is new, so that it is found after a crash. Raises OSError."""
    os.rename(new_path(path), path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def closing_on_error(made: Protected) -> Iterator[None]:
    """Whatever is raised within, it is closed."""
    try:
        yield
    except BaseException:
        made.close()
        raise
