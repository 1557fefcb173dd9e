"""Where a target keeps its blocks, by what a user typed."""

from __future__ import annotations

from pathlib import Path

from smtstack.errors import ConfigError
from smtstack.storage.device import SECTOR, BlockDevice, FileDevice, MemoryDevice

#: What ``--store`` takes.
STORES = {"memory": "in the target's memory, gone with it",
          "file:PATH": "a file, or a block device, locked for the target"}
#: Blocks of a store that is new, by default: 16 MiB.
BLOCKS = 4096


def open_store(text: str, blocks: int | None) -> BlockDevice:
    """A device; with ``blocks`` a file is made at least so long. Raises :class:`ConfigError`."""
    kind, _, path = text.partition(":")
    if text == "memory":
        return MemoryDevice(blocks or BLOCKS)
    if kind != "file" or not path:
        raise ConfigError(f"--store {text}; there are {', '.join(STORES)}")
    try:
        new = None if Path(path).exists() else BLOCKS
        device = FileDevice(Path(path), blocks or new)
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}") from None
    if not device.sectors:
        device.close()
        raise ConfigError(f"{path}: shorter than a block of {SECTOR} bytes; --blocks N makes it longer")
    return device
