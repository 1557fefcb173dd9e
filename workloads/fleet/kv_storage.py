"""What a fleet's key-value server keeps on the disk, and how that is protected."""

from __future__ import annotations

import contextlib
from pathlib import Path

from smtstack.storage.keys import make_key_file

#: By name: mode and freshness of ``smtnet serve kv``; and what it is, for --help.
STORAGE = {
    "none": ("", "", "nothing"),
    "file": ("file", "", "the plain append-only file"),
    "plain": ("plain", "", "blocks and a journal, no encryption"),
    "xts": ("xts", "", "AES-256-XTS"),
    "xts+hmac": ("xts+hmac", "", "and a code for each sector"),
    "xts+hmac+fresh": ("xts+hmac", "sealed", "and a hash tree, whose root is kept apart"),
    "aead": ("aead", "", "AES-256-GCM"),
    "aead+fresh": ("aead", "sealed", "and a hash tree"),
}
#: Where sessions are mtls and nobody says otherwise.
PROTECTED = "aead+fresh"
NONE = "none"


class Kept:
    """The files of one server: its log in ``folder``, key and trusted state in ``private``."""

    def __init__(self, name: str, folder: Path, private: Path, host: str, fsync: str) -> None:
        self._mode, self._freshness, _about = STORAGE[name]
        self._fsync = fsync
        self._log = folder / f"{host}-store.aof"
        self._key = private / f"{host}-store.key"
        #: On the same disk as the log: a sync of it is to cost what it costs.
        self._state = folder / f"{host}-store.state"

    def words(self) -> list[str]:
        """Options for ``smtnet serve kv``; makes the key."""
        if not self._mode:
            return []
        self.remove()
        found = ["--aof", str(self._log), "--fsync", self._fsync, "--storage-mode", self._mode]
        if self._mode != "file":
            make_key_file(self._key)
            found += ["--storage-key", str(self._key)]
        if self._freshness:
            found += ["--storage-state", str(self._state), "--storage-freshness", self._freshness]
        return found

    def size(self) -> int:
        """Bytes that the log takes on the disk."""
        with contextlib.suppress(FileNotFoundError):
            return self._log.stat().st_blocks * 512
        return 0

    def holds(self, text: bytes) -> bool:
        """Whether whoever has the disk can read this in the log."""
        with contextlib.suppress(FileNotFoundError):
            return text in self._log.read_bytes()
        return False

    def remove(self) -> None:
        """They were for one run."""
        for path in (self._log, self._key, self._state):
            path.unlink(missing_ok=True)
