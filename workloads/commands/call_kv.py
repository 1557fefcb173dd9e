"""``smtnet call kv``: YCSB against a key-value server, from one process on any interface."""

from __future__ import annotations

import argparse
import json
from typing import Any

from smtstack.errors import SmtError
from workloads.experiments.ycsb_options import Ycsb, say_unused, ycsb_loads
from workloads.kv import client as kv_client
from workloads.load import kinds
from workloads.load.measure import LINGER_S
from workloads.load.ycsb_load import YcsbSeries
from workloads.options import common as options
from workloads.options import declare
from workloads.options.common import add_caller_options, parse_address

_EXAMPLES = """examples:
  smtnet call kv --iface va --addr 10.9.0.1:40000 --peer 10.9.0.2:2000 --certs certs/a --workload a --clients 16
  smtnet call kv --transport tcp --peer 127.0.0.1:6379 --workload mine.properties -p recordcount=10000 --clients 8
  smtnet call kv --transport tcp --peer 127.0.0.1:6379 --workload d --value 64 --records 10000 --seconds 5 --json

Empties the store and loads the records first (--loaded: does not).
exit code: 0 ok, 1 an operation failed or a value was wrong, 2 usage, 3 the environment lacks something (root),
           4 the run was not faithful (see "fidelity")

docs/kv.md is the how-to.
"""


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``kv`` to the subcommands of ``call``."""
    parser = actions.add_parser(
        "kv", help="YCSB against a key-value server", epilog=_EXAMPLES,
        description="YCSB's core workloads; every value read is verified. smt, homa, linux, upstream need root.")
    add_caller_options(parser)
    declare.add(Ycsb, parser)
    parser.add_argument("--loaded", action="store_true",
                        help="the records are there already, of the same --records, --value and --fields")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(run=run_kv)


def run_kv(args: argparse.Namespace) -> int:
    """The subcommand."""
    peers = [parse_address(text) for text in args.peer]
    asked = declare.read(Ycsb, args)
    loading, running = ycsb_loads(asked)
    settings = options.settings(args)
    say_unused(asked)
    with kv_client.open_caller(settings, peers[:1], args.connections) as caller:
        series = YcsbSeries(caller)
        if not args.loaded:
            loaded = series.measure(loading).tally
            if loaded.errors or loaded.wrong:
                raise SmtError(f"loading records failed: {loaded.first_error}")
        result = series.result(settings, running, series.measure(running))
        caller.linger(LINGER_S)
    if args.json:
        print(json.dumps(result))
    elif result["rpcs"]:
        _print_kinds(result)
    return kinds.conclude(result, "operations failed")


def _print_kinds(result: dict[str, Any]) -> None:
    print(f"workload {result['workload']}, {result['value_bytes']} B: {result['rpc_per_s']:,.0f} operations/s")
    print(kinds.text(result["ops"]))
