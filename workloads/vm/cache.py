"""Where images are kept: each whole or not there at all, made by one process at a time."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smtstack.errors import ConfigError

#: Of files that make an image; the last one to be written says that it is whole, so it is looked for.
RECORD = "image.json"
_BUILDING = "building-"
_LOCK = "lock"


def default_folder() -> Path:
    """``$XDG_CACHE_HOME/smtnet/vm``, or that below ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "smtnet" / "vm"


class Cache:
    """A folder with images, each a folder by its recipe's name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, name: str) -> Path | None:
        """The folder of an image, or None: it is not here."""
        return self.folder / name if (self.folder / name / RECORD).is_file() else None

    def images(self) -> list[Path]:
        """The folders of all images."""
        return sorted(record.parent for record in self.folder.glob(f"*/{RECORD}")
                      if not record.parent.name.startswith(_BUILDING))

    @contextmanager
    def building(self, name: str) -> Iterator[Path]:
        """A folder to make an image in, which gets its ``name`` at the end, and goes if that is not reached.

        Others who would build wait meanwhile. What one that was killed has left goes first."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise ConfigError(f"images cannot be kept in {self.folder}: {e.strerror}; set XDG_CACHE_HOME to a "
                              "folder that can be written") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._sweep()
            folder = self.folder / f"{_BUILDING}{os.getpid()}-{name}"
            folder.mkdir()
            try:
                yield folder
                if self.find(name) is None:
                    folder.rename(self.folder / name)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)

    def clean(self) -> int:
        """Remove all images, and what builds have left; the number of bytes that were freed. Waits for a build."""
        if not self.folder.is_dir():
            return 0
        lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._sweep()
            freed = 0
            for image in self.images():
                freed += size_of(image)
                # First what says that it is whole: cut short here, it is no image.
                (image / RECORD).unlink()
                shutil.rmtree(image)
            return freed
        finally:
            os.close(lock)

    def _sweep(self) -> None:
        for left in self.folder.glob(f"{_BUILDING}*"):
            shutil.rmtree(left, ignore_errors=True)


def size_of(folder: Path) -> int:
    """Bytes on the disk, holes not counted."""
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())
