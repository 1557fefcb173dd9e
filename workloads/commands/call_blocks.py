"""``smtnet call blocks``: commands on a block target, from one process on any interface, every block verified."""

from __future__ import annotations

import argparse
import json
from typing import Any

from smtstack import quantities
from workloads.blocks import initiator
from workloads.load import kinds
from workloads.load.blocks import PATTERNS, BlockLoad, BlockSeries
from workloads.load.measure import LINGER_S
from workloads.options import common as options
from workloads.options.common import add_caller_options, parse_address, positive

_EXAMPLES = """examples:
  smtnet call blocks --transport tcp --peer 127.0.0.1:4420 --pattern randrw --iodepth 8 --commands 10000
  smtnet call blocks --iface va --addr 10.9.0.1:40000 --peer 10.9.0.2:4420 --certs certs/a --seconds 5 --json

Writes every block of the namespace first: what was on it is gone.
exit code: 0 ok, 1 a command failed or a block was wrong, 2 usage, 3 the environment lacks something (root),
           4 the run was not faithful (see "fidelity")

docs/blocks.md is the how-to.
"""


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``blocks`` to the subcommands of ``call``."""
    parser = actions.add_parser(
        "blocks", help="commands on a block target, every block verified", epilog=_EXAMPLES,
        description="Random commands on a block target; what is read is compared with a model. smt, homa, linux "
                    "and upstream need root.")
    add_caller_options(parser)
    parser.add_argument("--pattern", choices=PATTERNS, default="randrw", help="(default: %(default)s)")
    parser.add_argument("--iodepth", type=positive, default=1, metavar="N",
                        help="commands under way (default: %(default)s)")
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument("--commands", type=positive, metavar="N", help="how many (default: 1000)")
    limit.add_argument("--seconds", type=quantities.SECONDS, metavar="S", help="for how long")
    parser.add_argument("--timeout", type=quantities.SECONDS, default=30.0, metavar="S",
                        help="give up a command after this long, with all that was sent again (default: 30)")
    parser.add_argument("--seed", type=positive, default=1, help="of the commands (default: 1)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(run=run_blocks)


def run_blocks(args: argparse.Namespace) -> int:
    """The subcommand."""
    settings = options.settings(args)
    count = None if args.seconds else args.commands or 1000
    load = BlockLoad(pattern=args.pattern, count=count, seconds=args.seconds, concurrency=args.iodepth,
                     timeout=args.timeout, seed=args.seed)
    peers = [parse_address(text) for text in args.peer]
    with initiator.open_caller(settings, peers, args.connections) as caller:
        series = BlockSeries(caller)
        result = series.result(settings, load, series.measure(load))
        caller.linger(LINGER_S)
    if args.json:
        print(json.dumps(result))
    elif result["rpcs"]:
        _print_kinds(args, result)
    return kinds.conclude(result, "commands failed")


def _print_kinds(args: argparse.Namespace, result: dict[str, Any]) -> None:
    again = f", {result['sent_again']} sent again" if result["sent_again"] else ""
    print(f"{args.pattern}, iodepth {args.iodepth}: {result['rpc_per_s']:,.0f} commands/s{again}")
    print(kinds.text(result["ops"]))
