"""Key files: made, written, read.

A key file is JSON, readable by its owner only::

    {"smtnet_keys": 1,
     "cipher": "AES-128-GCM", "index_bits": 16, "padding": "none",
     "pairs": [{"hosts": ["10.0.0.1", "10.0.0.2"], "secret": "<64 hex digits>"}],
     "linux": {"client": {"key": "<32 hex>", "salt": "<8 hex>"},
               "server": {"key": "<32 hex>", "salt": "<8 hex>"}}}

``pairs`` serves profile ``smt``: one secret for each pair of hosts, from which every pair of ports and
every direction and epoch gets a key of its own. ``linux`` serves profile ``linux``. Either may be
missing. docs/protocol.md, "Key schedule", is the specification. An id must never be used twice under one
key: processes that share a key file start their ids with :func:`fresh_first_id`.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any

from smtstack.crypto.aead import AES_128_GCM, Cipher
from smtstack.crypto.epochs import FIRST_ID, SessionParams
from smtstack.crypto.keys import (
    FILE_VERSION,
    SECRET_LEN,
    KeyStore,
    LinuxNoKeys,
    PlainKeys,
    UpstreamKeys,
    demo_keys,
    keys_from,
)
from smtstack.errors import ConfigError

#: Instead of a file: no keys, everything in clear.
IN_CLEAR = "none"
#: 2025-01-01 00:00 UTC in milliseconds of Unix time.
_2025_MS = 1_735_689_600_000
#: Of the first id of a process in profile ``upstream``, which has 64.
_RANDOM_ID_BITS = 62


def generate(hosts: list[tuple[str, str]], cipher: Cipher = AES_128_GCM) -> dict[str, Any]:
    """Contents of a fresh key file for these pairs of hosts, for both protected profiles."""
    def role() -> dict[str, str]:
        return {"key": secrets.token_hex(AES_128_GCM.key_len), "salt": secrets.token_hex(4)}

    return {"smtnet_keys": FILE_VERSION, "cipher": cipher.name,
            "pairs": [{"hosts": list(pair), "secret": secrets.token_hex(SECRET_LEN)} for pair in hosts],
            "linux": {"client": role(), "server": role()}}


def write_key_file(path: Path, content: dict[str, Any]) -> None:
    """Write a key file only its owner can read; refuses to overwrite one."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w") as f:
        json.dump(content, f, indent=1)


def load(source: str, profile: str, first_id: int = FIRST_ID) -> KeyStore:
    """Keys for ``profile`` from ``demo``, ``none`` or a key file; raises :class:`ConfigError` naming the fix.

    ``none`` is profile ``linux`` in clear, and no other profile.
    ``first_id``: where ids for our requests start. Whoever may run again with these keys gives
    :func:`fresh_first_id`.
    """
    if profile == "homa":
        return PlainKeys(first_id)
    if profile == "upstream":
        # Not by the clock: a module knows an RPC by address and id, so no two processes of a host may share any.
        return UpstreamKeys(secrets.randbits(_RANDOM_ID_BITS) + 1 << 1)
    if source == IN_CLEAR:
        if profile != "linux":
            raise ConfigError("keys 'none' are for profile linux, which then speaks plain Homa; profile "
                              f"{profile} is never in clear: a file of that name is ./none")
        return LinuxNoKeys(first_id)
    if source == "demo":
        return demo_keys(profile, SessionParams(first_id=first_id), first_id)
    content = _read_private(Path(source))
    try:
        return keys_from(content, profile, first_id)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise ConfigError(f"key file {source}: {type(e).__name__}: {e}; see docs/protocol.md, "
                          "'Key file'") from None


def fresh_first_id(unix_ns: int) -> int:
    """A first id that no earlier process used: the milliseconds since 2025, with room for 512 RPCs in each.

    Fits the 48 bits of the default split until 2033. A clock that is set back breaks the promise, and so
    does a split with fewer bits for ids; such keys are for one run.
    """
    return max(FIRST_ID, (unix_ns // 1_000_000 - _2025_MS) << 10)


def _read_private(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as f:
            mode = os.fstat(f.fileno()).st_mode
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigError(f"key file {path} can be read by others (mode {mode & 0o777:03o}); "
                                  f"chmod 600 {path}")
            content = json.load(f)
    except OSError as e:
        raise ConfigError(f"key file {path}: {e.strerror}; 'smtnet keys' makes such files") from None
    except ValueError as e:
        raise ConfigError(f"key file {path} is not JSON: {e}") from None
    if not isinstance(content, dict) or content.get("smtnet_keys") != FILE_VERSION:
        raise ConfigError(f"{path} is no key file: it lacks \"smtnet_keys\": {FILE_VERSION}")
    return content
