"""Protected storage on command lines: which key, which mode, which trusted state (docs/storage.md)."""

from __future__ import annotations

import argparse
from pathlib import Path

from smtstack.errors import ConfigError
from smtstack.storage.files import Protection
from smtstack.storage.keys import make_key_file, read_key_file, read_passphrase_file
from smtstack.storage.layout import FRESHNESS, MODES

#: What --storage-mode has besides: the plain append-only file.
FILE = "file"
DEFAULT_MODE = "aead"
_KINDS = [kind for kind in FRESHNESS if kind != "none"]


def add_storage_options(parser: argparse.ArgumentParser) -> None:
    """Add them."""
    group = parser.add_argument_group(
        "protected storage (docs/storage.md)", "what is kept is encrypted, and whoever changes it is found out")
    key = group.add_mutually_exclusive_group()
    key.add_argument("--storage-key", type=Path, metavar="FILE",
                     help="its key file, readable by its owner only; 'smtnet kv key FILE' makes one")
    key.add_argument("--storage-passphrase", type=Path, metavar="FILE",
                     help="its key comes from the first line of this file, by scrypt")
    group.add_argument("--storage-mode", choices=(FILE, *MODES),
                       help=f"how sectors are sealed; {FILE}: not at all, an append-only file as it is (default: "
                            f"{DEFAULT_MODE} with a key, else {FILE})")
    group.add_argument("--storage-state", type=Path, metavar="FILE",
                       help="also find an older file that was put back: this file knows which one is the latest, "
                            "and must be kept elsewhere")
    group.add_argument("--storage-freshness", choices=_KINDS,
                       help="what --storage-state knows: the root of a hash tree, or only a count (default: "
                            f"{_KINDS[0]})")


def protection(args: argparse.Namespace) -> Protection | None:
    """What these options say; None: a plain file. Raises :class:`ConfigError`."""
    mode, state, kind = args.storage_mode, args.storage_state, args.storage_freshness
    keyed = args.storage_key is not None or args.storage_passphrase is not None
    if mode == FILE or not (keyed or mode or state or kind):
        if keyed or state or kind:
            raise ConfigError(f"--storage-mode {FILE} is a plain file: it has no key and no state")
        return None
    if kind and state is None:
        raise ConfigError("--storage-freshness needs --storage-state FILE")
    if not keyed:
        raise ConfigError("protected storage needs --storage-key FILE or --storage-passphrase FILE; a new key: "
                          "smtnet kv key FILE")
    secret = (read_key_file(args.storage_key) if args.storage_key is not None
              else read_passphrase_file(args.storage_passphrase))
    return Protection(secret, mode or DEFAULT_MODE, state, kind or _KINDS[0])


def own_protection(path: Path) -> Protection:
    """How a file is protected where that is the default and the user said nothing: by a key file beside it, which
    is made, and a trusted state. They protect where the file goes without them. Raises :class:`ConfigError`."""
    key, state = path.with_name(f"{path.name}.key"), path.with_name(f"{path.name}.state")
    if not key.exists():
        try:
            make_key_file(key)
        except OSError as e:
            raise ConfigError(f"storage key file {key}: {e.strerror}") from None
    return Protection(read_key_file(key), DEFAULT_MODE, state, _KINDS[0])
