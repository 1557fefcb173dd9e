"""``smtnet kv check``, ``kv dump``, ``kv key``: what a key-value server keeps, looked at without one."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smtstack.errors import ConfigError, SmtError
from smtstack.storage.files import is_protected
from smtstack.storage.keys import make_key_file
from workloads.kv.aof import replay
from workloads.kv.aof_file import EntryReader, encode
from workloads.kv.aof_log import ReadOnlyLog
from workloads.kv.aof_protected import ProtectedLog
from workloads.kv.store import DATABASES, MAX_DATABASES, Keyspace, open_databases
from workloads.kv.text import as_json
from workloads.options.storage import add_storage_options, protection

#: First words of a command line without --peer.
WORDS = ("check", "dump", "key")

_EXAMPLES = """examples:
  smtnet kv key store.key
  smtnet kv check store.aof --storage-key store.key
  smtnet kv dump store.aof --storage-key store.key | redis-cli --pipe

exit code: 0 ok, 1 it is damaged, 2 usage
"""


def parser() -> argparse.ArgumentParser:
    """What reads these words."""
    top = argparse.ArgumentParser(prog="smtnet kv", epilog=_EXAMPLES, description="What a server keeps by --aof.",
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = top.add_subparsers(dest="action", required=True)
    check = actions.add_parser("check", help="read all of it, change nothing; say what is there or wrong")
    check.add_argument("--json", action="store_true", help="as a line of JSON")
    dump = actions.add_parser("dump", help="its contents as commands, in RESP, for redis-cli --pipe")
    dump.add_argument("--json", action="store_true", help="a line of JSON for each command")
    for one in (check, dump):
        one.add_argument("file", type=Path, metavar="FILE", help="what --aof names; no server may be using it")
        add_storage_options(one)
    key = actions.add_parser("key", help="make a key file for --storage-key")
    key.add_argument("file", type=Path, metavar="FILE")
    return top


def run(words: Sequence[str]) -> int:
    """The subcommand. Raises SmtError."""
    args = parser().parse_args(words)
    if args.action == "key":
        try:
            make_key_file(args.file)
        except OSError as e:
            raise ConfigError(f"{args.file}: {e.strerror}") from None
        return 0
    try:
        keys = open_databases(DATABASES)
        found = _load(args, keys)
    except ConfigError as e:
        if "--databases" not in str(e):
            raise
        keys = open_databases(MAX_DATABASES)
        found = _load(args, keys)
    if args.action == "check":
        found["keys"] = sum(map(len, keys.databases.all))
        if args.json:
            print(json.dumps(found))
        else:
            print("\n".join(f"{name:<10} {value}" for name, value in found.items()))
        return 0
    if args.json:
        for database, command in keys.databases.snapshot():
            print(json.dumps({"db": database, "command": json.loads(as_json(command))}))
        return 0
    selected = 0
    for database, command in keys.databases.snapshot():
        select = [[b"SELECT", b"%d" % database]] if database != selected else []
        selected = database
        sys.stdout.buffer.write(b"".join(encode([*select, command])))
    sys.stdout.buffer.flush()
    return 0


def _load(args: argparse.Namespace, keys: Keyspace) -> dict[str, Any]:
    """Read it into ``keys``; what is to be said of it."""
    path, how = args.file, protection(args)
    try:
        if is_protected(path) != (how is not None):
            raise ConfigError(f"{path} is protected: --storage-key FILE or --storage-passphrase FILE"
                              if how is None else f"{path} is not protected: leave the --storage options out")
        log = ReadOnlyLog(path) if how is None else ProtectedLog.open(path, how, read_only=True)
        try:
            found = log.describe()
            with log.reading() as source:
                reader = EntryReader(path, source, log.size)
                found["commands"], found["entries"] = replay(reader, keys, str(path))
            found["bytes"] = log.size
            found["cut off"] = log.size - reader.whole
            return found
        finally:
            log.close()
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}") from None
    except ConfigError as e:
        if "damaged" in str(e):
            # Usage it is not.
            raise SmtError(str(e)) from None
        raise
