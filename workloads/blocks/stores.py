"""Where a target keeps its blocks, by what a user typed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from smtstack.errors import ConfigError
from smtstack.storage.device import SECTOR, BlockDevice, FileDevice, MemoryDevice
from smtstack.storage.files import Protected, Protection, create, is_protected, open_file

#: What ``--store`` takes.
STORES = {"memory": "in the target's memory, gone with it",
          "file:PATH": "a file, or a block device, locked for the target; protected with a key"}
#: Blocks of a store that is new, by default: 16 MiB.
BLOCKS = 4096


def open_store(text: str, blocks: int | None, protection: Protection | None = None) -> Store:
    """A store; with ``blocks`` a file is made at least so long. Raises :class:`ConfigError`; AuthError where a
    protected one was changed."""
    kind, _, path = text.partition(":")
    if text == "memory":
        if protection is not None:
            raise ConfigError("--store memory has nothing to protect: take file:PATH")
        return Store(MemoryDevice(blocks or BLOCKS))
    if kind != "file" or not path:
        raise ConfigError(f"--store {text}; there are {', '.join(STORES)}")
    try:
        store = _plain(Path(path), blocks) if protection is None else _protected(Path(path), blocks, protection)
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}") from None
    if not store.device.sectors:
        store.close()
        raise ConfigError(f"{path}: shorter than a block of {SECTOR} bytes; --blocks N makes it longer")
    return store


@dataclass(frozen=True, slots=True)
class Store:
    """An open store."""

    device: BlockDevice
    protected: Protected | None = None
    """What is written stays in memory until it is flushed: killed, the target would lose it."""

    def close(self) -> None:
        """Give all back."""
        (self.protected or self.device).close()


def _plain(path: Path, blocks: int | None) -> Store:
    if is_protected(path):
        raise ConfigError(f"{path} is protected: --storage-key FILE or --storage-passphrase FILE")
    return Store(FileDevice(path, blocks or (None if path.exists() else BLOCKS)))


def _protected(path: Path, blocks: int | None, protection: Protection) -> Store:
    if not path.exists():
        made = create(path, protection, blocks or BLOCKS)
        return Store(made.device, made)
    found = open_file(path, protection)
    if blocks is not None and found.device.sectors < blocks:
        found.device.resize(blocks)
        found.device.flush()
    return Store(found.device, found)
