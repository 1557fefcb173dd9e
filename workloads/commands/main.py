"""The ``smtnet`` command: one module a subcommand, each with ``add_parser``.

Results go to stdout (``--json``: one object), everything for people to stderr. Exit codes: 0 ok,
1 failed, 2 usage or configuration, 3 the environment lacks something, 4 the run was not faithful; 141 nobody read
the result to its end (:mod:`smtstack.io.standard_streams`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from smtstack import __version__, compiled
from smtstack.errors import SmtError, Unsupported
from smtstack.exit_codes import EXIT_ENVIRONMENT, EXIT_INTERRUPTED, EXIT_USAGE, exit_code
from smtstack.io.standard_streams import run_program

_EXAMPLES = """examples:
  smtnet doctor
  smtnet demo
  smtnet run echo --topo star,4 --transport smt --size 1024 --count 10000
  smtnet run kv --topo star,4 --transport smt --workload a --value 1024 --clients 12 --seconds 5
  smtnet run incast --senders 1,8,32 --size 10000 --transport smt,tls
  smtnet run fanout --leaves 1,4,16 --size 1000 --background w4
  smtnet run mix --workload w4 --load 0.8 --hosts 8
  smtnet run scenario examples/scenarios/lossy-minute.toml --check
  smtnet run --again results/latest --trials 5
  smtnet plan fattree,4 --multipath message
  smtnet kv --transport tcp --peer 10.0.0.2:6379 GET foo
  smtnet reproduce fig8 --quick
  smtnet run echo --topo star,4 --session ticket-fs
  smtnet pcap decrypt capture.pcap open.pcapng --keylog run.keylog
  smtnet trace client.sqlog server.sqlog --rpc 42
  smtnet slowdown --workload w4 --load 0.8
  smtnet ca certs --host a=10.0.0.1 --host b=10.0.0.2
  smtnet serve echo --iface veth1 --addr 10.0.0.2:2000 --certs certs/b
  smtnet call echo --iface veth0 --addr 10.0.0.1:40000 --peer 10.0.0.2:2000 --certs certs/a --size 64 --count 1000
  smtnet interop --iface eth0 --addr 10.8.0.2:40000 --peer 10.8.0.1:2500
  smtnet bench memory
  smtnet hostile --mutations 10000
  smtnet vectors smt-vectors.json
  smtnet vm test
"""


#: Subcommand and its module in this folder.
COMMANDS = {
    "doctor": "doctor", "demo": "demo", "run": "run", "report": "report", "serve": "serve", "call": "call",
    "nic": "nic", "ca": "ca", "keys": "keys", "tickets": "tickets", "pcap": "pcap", "vectors": "vectors",
    "slowdown": "slowdown", "bench": "bench", "kv": "kv", "reproduce": "reproduce", "plan": "plan",
    "trace": "trace", "interop": "interop", "sweep": "sweep", "cluster": "cluster", "hostile": "hostile",
    "vm": "vm",
}


#: What an installation may lack: a package's name to import, what it is called where it comes from, our extra.
EXTRAS = {"OpenSSL": ("pyOpenSSL", "session"), "dns": ("dnspython", "session"), "hiredis": ("hiredis", "kv"),
          "lupa": ("lupa", "kv"), "apsw": ("apsw", "sqlite"), "aioquic": ("aioquic", "quic"),
          "distributed": ("distributed", "sweep"), "dask": ("distributed", "sweep"),
          "matplotlib": ("matplotlib", "plot"), "rich": ("rich", "ui")}

#: Those that import but what the word after them needs: their ``add_parser`` takes it, too.
_CHOOSY = ("run", "reproduce", "serve", "call")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage; lines of its help stay as they are written. Those of
    subcommands are of this class, too."""

    def __init__(self, **words: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **words})

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit code 2."""
        text = " ".join(message.split())
        self.exit(EXIT_USAGE, f"{self.prog}: {text} ('{self.prog} --help' has all options)\n")


def build_parser(only: str | None = None, what: str | None = None) -> argparse.ArgumentParser:
    """The whole command line; with ``only`` that subcommand's part of it, or none if it is no subcommand; with
    ``what``, the word after it, perhaps no more of that than what it needs.

    Hosts start many of these processes, and Mininet alone takes half a second to import: so only what is
    asked for is.
    """
    parser = _Parser(
        prog="smtnet", description="Network emulator for encrypted message transports (SMT, Homa).",
        epilog=_EXAMPLES)
    parser.add_argument("--version", action="version",
                        version=f"smtnet {__version__} ({compiled.description()})")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS if only is None else {only} & COMMANDS.keys():
        add = import_module(f"workloads.commands.{COMMANDS[command]}").add_parser
        add(commands, *[what] * (command in _CHOOSY))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, by default this process's own; the exit code. Every expected error is one line on stderr,
    without a traceback."""
    return run_program(lambda: _run(sys.argv[1:])) if argv is None else _run(argv)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """What a command line says; the program ends with a message where it says nothing."""
    known = bool(argv) and argv[0] in (*COMMANDS, "--version")
    return build_parser(*argv[:2] if known else ()).parse_args(argv)


def _run(argv: Sequence[str]) -> int:
    try:
        if compiled.BUILD.error:
            raise Unsupported(compiled.BUILD.error)
        args = parse(argv)
        if getattr(args, "again", None):
            from workloads.commands import again

            return again.run(args.again, parse)
        code: int = args.run(args)
        return code
    except SmtError as e:
        print(f"smtnet: {e}", file=sys.stderr)
        return exit_code(e)
    except ModuleNotFoundError as e:
        package, extra = EXTRAS.get((e.name or "").partition(".")[0], ("", ""))
        if not extra:
            raise
        print(f"smtnet: {' '.join(argv[:2])} needs {package}, which is not installed: "
              f"{sys.executable} -m pip install 'smtnet[{extra}]' (or {package} alone)", file=sys.stderr)
        return EXIT_ENVIRONMENT
    except KeyboardInterrupt:
        print("smtnet: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
