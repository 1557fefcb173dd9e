"""``smtnet kv``: one command, or a prompt, for key-value servers over any transport; as ``redis-cli`` has it."""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from smtstack import quantities
from smtstack.errors import ConfigError, PeerError
from smtstack.exit_codes import EXIT_FAILED
from workloads.commands import kv_file
from workloads.kv.client import RETRIES, TIMEOUT_S, Arg, KvClient, KvError, is_error
from workloads.kv.resp import RespError, split_arguments
from workloads.kv.text import as_json, formatted, raw
from workloads.options import common as options
from workloads.options.common import parse_address
from workloads.transports import PACKET_TRANSPORTS

#: Where the prompt's lines are kept, and how many.
HISTORY = Path("~/.smtnet_kv_history")
_HISTORY_LINES = 1000
#: Commands whose bytes are values; those of all others are a status, or both look alike.
_VALUES = frozenset({"GET", "ECHO", "HGET", "GETSET", "GETDEL", "GETEX", "ZSCORE"})
#: Arguments of what is about transactions, the name included; -n: at least n.
_TRANSACTION = {"MULTI": 1, "EXEC": 1, "DISCARD": 1, "WATCH": -2, "UNWATCH": 1}
#: Ports of clients: those of SMT and Homa begin here.
_CLIENT_PORTS = range(0x8000, 0x10000)

_EXAMPLES = """examples:
  smtnet kv --transport smt --iface va --addr 10.9.0.1 --certs certs/a --peer 10.9.0.2:2000 SET foo bar
  smtnet kv --transport smt --iface va --addr 10.9.0.1 --certs certs/a --peer 10.9.0.2:2000 GET foo
  smtnet kv --transport tcp --peer 10.9.0.2:6379
  printf 'INCR hits\\nGET hits\\n' | smtnet kv --transport tcp --peer 10.9.0.2:6379

  smtnet kv check store.aof --storage-key store.key      # what a server keeps: kv check, dump, key --help

Without a command: a prompt, or (no terminal) commands line by line from stdin. Options go before the command.
A command that changes something is sent once: if no reply comes, it may have been carried out or not, and the
error says so. Commands that only read are tried again (--retries).
MULTI begins a transaction: what follows is kept here and sent as one by EXEC, over every transport. WATCH in front
of it has EXEC do nothing if one of its keys was changed meanwhile.
exit code: 0 ok, 1 the server says it is an error or did not answer, 2 usage, 3 something is missing

docs/kv.md is the how-to.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``kv``."""
    parser = commands.add_parser(
        "kv", help="a shell for key-value servers", epilog=_EXAMPLES,
        description="Commands for a key-value server over any transport. smt, homa, linux, upstream need root; "
                    "--addr may leave the port out: then it is one that nobody had before, as a server wants it.")
    options.add_transport_options(parser)
    parser.add_argument("--peer", metavar="IP:PORT", help="the server; without it: check, dump, key")
    parser.add_argument("--timeout", type=quantities.SECONDS, default=TIMEOUT_S, metavar="S",
                        help="seconds to wait for a reply (default: %(default)s)")
    parser.add_argument("--retries", type=options.not_negative, default=RETRIES, metavar="N",
                        help="how often a command that only reads is sent again (default: %(default)s)")
    parser.add_argument("--db", type=options.not_negative, metavar="N",
                        help="the database, as SELECT N has it for what follows (default: 0)")
    parser.add_argument("--raw", action="store_true", help="values as they are, also on a terminal")
    parser.add_argument("--json", action="store_true", help="each reply as a line of JSON")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND", help="as GET foo")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The subcommand."""
    if args.peer is None:
        if args.words and args.words[0] in kv_file.WORDS:
            return kv_file.run(args.words)
        raise ConfigError("--peer IP:PORT is needed: the server; without one there are: smtnet kv "
                          f"{', '.join(kv_file.WORDS)}")
    peer = parse_address(args.peer)
    if args.transport in PACKET_TRANSPORTS and args.addr is not None and ":" not in args.addr:
        # Message ids start over with each process: to a server that remembers, the same port is the old client.
        args.addr = f"{args.addr}:{random.SystemRandom().choice(_CLIENT_PORTS)}"
    with KvClient(options.settings(args), peer, args.timeout, args.retries,
                  args.db) as client:
        shell = Shell(client, args)
        if args.words:
            failed = shell.carry_out([word.encode(errors="surrogateescape") for word in args.words])
            return EXIT_FAILED if failed else 0
        failed = False
        lines = (_prompt(f"{args.transport} {args.peer}> ") if sys.stdin.isatty() else
                 (line.rstrip(b"\r\n") for line in sys.stdin.buffer))
        for line in lines:
            failed = shell.line(line) or failed
        # At a prompt people have seen it.
        return EXIT_FAILED if failed and not sys.stdin.isatty() else 0


class Shell:
    """Carries out commands and prints replies."""

    def __init__(self, client: KvClient, args: argparse.Namespace) -> None:
        self._client = client
        self._json = args.json
        self._raw = args.raw or not sys.stdout.isatty()
        #: Commands since MULTI.
        self._queue: list[Sequence[Arg]] | None = None

    def line(self, line: bytes) -> bool:
        """A line as people type it; whether it failed. Prints errors."""
        try:
            words: list[bytes] = split_arguments(line)
            return bool(words) and self.carry_out(words)
        except RespError:
            print("smtnet: invalid argument(s): quotes do not match", file=sys.stderr)
        except PeerError as e:
            print(f"smtnet: {e}", file=sys.stderr)
        return True

    def carry_out(self, words: Sequence[Arg]) -> bool:
        """One command; whether the server says it failed. Raises SmtError."""
        first = words[0]
        name = (first.decode("latin-1") if isinstance(first, bytes) else str(first)).upper()
        try:
            reply = self._reply(name, words)
        except KvError as e:
            reply = e
        self._print(reply, name)
        return is_error(reply) or isinstance(reply, KvError)

    def _reply(self, name: str, words: Sequence[Arg]) -> Any:
        """What a command gives; a transaction is kept until it is whole. Raises SmtError."""
        arity = _TRANSACTION.get(name)
        if arity is not None and len(words) != arity and (arity > 0 or len(words) < -arity):
            raise KvError(f"ERR wrong number of arguments for '{name.lower()}' command")
        queue = self._queue
        if name == "MULTI":
            if queue is not None:
                raise KvError("ERR MULTI calls can not be nested")
            self._queue = []
        elif name in {"EXEC", "DISCARD"}:
            if queue is None:
                raise KvError(f"ERR {name} without MULTI")
            self._queue = None
            if name == "EXEC":
                return self._client.transaction(queue)
            self._client.unwatch()
        elif name == "WATCH" and queue is not None:
            raise KvError("ERR WATCH inside MULTI is not allowed")
        elif queue is not None:
            queue.append(words)
            return b"QUEUED"
        elif name == "WATCH":
            self._client.watch(*words[1:])
        elif name == "UNWATCH":
            self._client.unwatch()
        elif name == "SELECT" and len(words) == 2:
            self._client.select(words[1])
        else:
            return self._client.pipeline([words])[0]
        return b"OK"

    def _print(self, reply: Any, name: str) -> None:
        if self._json:
            print(as_json(reply), flush=True)
        elif self._raw:
            sys.stdout.buffer.write(raw(reply) + b"\n")
            sys.stdout.buffer.flush()
        else:
            print(formatted(reply, status=name not in _VALUES), flush=True)


def _prompt(text: str) -> Iterator[bytes]:
    """Lines with history, until the end of input, ``quit`` or ``exit``."""
    with _history():
        while True:
            try:
                line = input(text).strip()
            except (EOFError, KeyboardInterrupt):
                print()
                return
            if line.lower() in ("quit", "exit"):
                return
            if line:
                yield line.encode(errors="surrogateescape")


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Arrow keys, and lines of earlier days."""
    try:
        import readline
    except ImportError:
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(HISTORY.expanduser())
    readline.set_history_length(_HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            readline.write_history_file(HISTORY.expanduser())
