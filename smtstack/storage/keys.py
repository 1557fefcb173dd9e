"""The key of a protected device: from a passphrase, or from a key file. What is derived from it.

A key file holds 32 random bytes as 64 hex digits and is its owner's alone (mode 0600). A passphrase goes through
scrypt, whose salt and costs stand in the device's superblock.
"""

from __future__ import annotations

import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from smtstack.errors import ConfigError

KEY_SIZE: Final = 32
#: Stands in for a key where there is none (mode plain without freshness): codes are checksums then.
NO_KEY: Final = bytes(KEY_SIZE)


@dataclass(frozen=True, slots=True)
class ScryptCost:
    """What a guess costs: 2**``log_n`` blocks of 128 * ``r`` bytes, ``p`` times (RFC 7914)."""

    log_n: int = 15
    r: int = 8
    p: int = 1

    def check(self) -> None:
        """Raises :class:`ConfigError` for costs that no device of ours has: somebody else's bytes say so."""
        if not (1 <= self.log_n <= 20 and 1 <= self.r <= 16 and 1 <= self.p <= 4):
            raise ConfigError(f"scrypt with N=2^{self.log_n}, r={self.r}, p={self.p}: no device of ours has that")


DEFAULT_COST: Final = ScryptCost()


@dataclass(frozen=True, slots=True)
class Secret:
    """What a device is opened with: exactly one of both."""

    key: bytes = b""
    passphrase: bytes = b""

    def master(self, salt: bytes, cost: ScryptCost) -> bytes:
        """The 32 bytes everything is derived from."""
        if self.key:
            return self.key
        cost.check()
        return Scrypt(salt, KEY_SIZE, 2 ** cost.log_n, cost.r, cost.p).derive(self.passphrase)


def derive(master: bytes, device: bytes, purpose: bytes, size: int = KEY_SIZE) -> bytes:
    """A key for one purpose of one device (its 16 random bytes), by HKDF with SHA-256."""
    return HKDF(hashes.SHA256(), size, salt=device, info=b"smtnet storage " + purpose).derive(master)


def make_key_file(path: Path) -> None:
    """A new key; raises OSError, FileExistsError too."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(secrets.token_hex(KEY_SIZE) + "\n")
        file.flush()
        os.fsync(fd)


def read_key_file(path: Path) -> Secret:
    """Raises :class:`ConfigError` that says what is wrong with it."""
    text = _private(path, "storage key file").strip()
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != KEY_SIZE:
        raise ConfigError(f"storage key file {path}: it must hold {2 * KEY_SIZE} hex digits; a new one: "
                          f"smtnet kv key {path}")
    return Secret(key=key)


def read_passphrase_file(path: Path) -> Secret:
    """A passphrase: the first line of a private file."""
    line = _private(path, "passphrase file").split(b"\n")[0]
    if not line:
        raise ConfigError(f"passphrase file {path}: its first line is empty")
    return Secret(passphrase=line)


def _private(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigError(f"{what} {path} can be read by others (mode {mode & 0o777:03o}); "
                                  f"chmod 600 {path}")
            return file.read(65_536)
    except OSError as e:
        raise ConfigError(f"{what} {path}: {e.strerror}; a new key: smtnet kv key {path}") from None
