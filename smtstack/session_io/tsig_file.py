"""The zone of the tickets in DNS, the key that lets servers publish there (TSIG, RFC 8945), and its file.

The file has one line, ``hmac-sha256:name:secret in base64``, as ``nsupdate -y`` and ``knsupdate -y`` take it, and
mode 600.
"""

from __future__ import annotations

import base64
import os
import secrets
import stat
import string
from dataclasses import dataclass, field
from pathlib import Path

from smtstack.errors import ConfigError

#: Where tickets are, if nothing else is said.
ZONE = "smtnet.test"
DNS_PORT = 53
#: Name of the key's file in the folder of a host's credentials.
TSIG = "tsig.key"
#: IPv4 address and port of a DNS server.
DnsAddress = tuple[str, int]
ALGORITHM = "hmac-sha256"
NAME_CHARACTERS = frozenset(string.ascii_letters + string.digits + "-_.")
_NAME = "smtnet"
_SECRET_LEN = 32
_MAX_LINE = 4096


@dataclass(frozen=True, slots=True)
class TsigKey:
    """A key (TSIG) whose holders may change the zone."""

    name: str
    secret: bytes = field(repr=False)

    def secret_text(self) -> str:
        """The secret in base64, as DNS servers' configurations have it."""
        return base64.b64encode(self.secret).decode()


def make_tsig() -> TsigKey:
    """A fresh key."""
    return TsigKey(_NAME, secrets.token_bytes(_SECRET_LEN))


def write_tsig(path: Path, key: TsigKey) -> None:
    """Into a new file; raises :class:`ConfigError`, also where there is one."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as e:
        raise ConfigError(f"TSIG key {path}: {e.strerror}") from None
    with os.fdopen(descriptor, "w") as f:
        f.write(f"{ALGORITHM}:{key.name}:{key.secret_text()}\n")


def read_tsig(path: Path) -> TsigKey:
    """The key in a file that only its owner can read; raises :class:`ConfigError`."""
    try:
        with path.open() as f:
            mode = os.fstat(f.fileno()).st_mode
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigError(f"TSIG key {path} can be read by others (mode {mode & 0o777:03o}); "
                                  f"chmod 600 {path}")
            algorithm, name, secret = f.readline(_MAX_LINE).strip().split(":")
        key = TsigKey(name, base64.b64decode(secret, validate=True))
    except OSError as e:
        raise ConfigError(f"TSIG key {path}: {e.strerror}; 'smtnet ca --publisher HOST' makes one for a host that "
                          "may publish tickets") from None
    except ValueError:
        raise ConfigError(f"{path} is no TSIG key: one line, {ALGORITHM}:name:secret in base64") from None
    if algorithm != ALGORITHM or not key.secret or not name or not set(name) <= NAME_CHARACTERS:
        raise ConfigError(f"{path} is no TSIG key for {ALGORITHM}")
    return key
