"""``smtnet keys``: a fresh key file for one run."""

from __future__ import annotations

import argparse
from pathlib import Path

from smtstack.crypto import aead
from smtstack.errors import ConfigError
from smtstack.io import key_file
from smtstack.wire.ipv4 import address

_EXAMPLES = """examples:
  smtnet keys run.keys --pair 10.9.0.1,10.9.0.2
  smtnet keys run.keys --pair 10.0.0.1,10.0.0.2 --pair 10.0.0.1,10.0.0.3 --cipher AES-256-GCM

One key file is for one run, and both hosts of a pair get the same file: message ids start over with a new
process, and no id may be used twice under one key.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``keys``."""
    parser = commands.add_parser(
        "keys", help="make a key file", epilog=_EXAMPLES,
        description="Write a fresh key file (mode 600, never over another file) for profiles smt and linux.")
    parser.add_argument("file", type=Path, help="the file to make")
    parser.add_argument("--pair", action="append", required=True, metavar="IP,IP",
                        help="two hosts that may talk; once for each pair")
    parser.add_argument("--cipher", default=aead.AES_128_GCM.name, metavar="NAME",
                        help=f"of profile smt: {', '.join(aead.CIPHERS)} (default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write ``args.file``."""
    pairs = [_pair(text) for text in args.pair]
    content = key_file.generate(pairs, aead.cipher_named(args.cipher))
    try:
        key_file.write_key_file(args.file, content)
    except FileExistsError:
        raise ConfigError(f"{args.file} is there already; keys are never overwritten: "
                          "remove it or name another file") from None
    except OSError as e:
        raise ConfigError(f"{args.file}: {e.strerror}") from None
    return 0


def _pair(text: str) -> tuple[str, str]:
    hosts = text.split(",")
    try:
        if len(hosts) != 2 or address(hosts[0]) == address(hosts[1]):
            raise ConfigError(f"--pair {text!r}: two different hosts, as in 10.0.0.1,10.0.0.2")
    except ValueError as e:
        raise ConfigError(f"--pair {text!r}: {e}") from None
    return hosts[0], hosts[1]
