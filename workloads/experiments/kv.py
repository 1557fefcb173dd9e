"""``smtnet run kv``: YCSB against a key-value server on an emulated topology."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from contextlib import nullcontext
from typing import Any

from topo import sandbox
from workloads import transports
from workloads.experiments.echo import add_experiment_options, conclude, transport_words
from workloads.experiments.ycsb_options import add_ycsb_options, say_unused, ycsb_loads
from workloads.fleet import kv as kv_fleet
from workloads.fleet.captures import Captures
from workloads.fleet.kv import STORES, KvFleet
from workloads.fleet.setup import Setup
from workloads.load.ycsb_load import KINDS_SUFFIX, YcsbLoad
from workloads.options.network import check_network, open_net
from workloads.results.progress import Progress
from workloads.results.rows import ResultFolder, Row

#: A name that every record has: captures of encrypted transports must not show it.
_CANARY = b"field0"
#: Requests of redis-benchmark, at least.
_YARDSTICK_OPS = 10_000

_EXAMPLES = """examples:
  smtnet run kv --topo star,4 --transport smt --workload a --value 1024 --records 10000 --clients 12 --seconds 5
  smtnet run kv --topo star,5 --transport smt --nic hw --value 64 --clients 32 --ops 1000000 --trials 1
  smtnet run kv --transport tls --store redis --workload c --clients 16 --seconds 5 --json
  smtnet run kv --transport tcp --store redis --direct --workload a --clients 50 --seconds 5

The first host serves, all others ask. Every value read is verified.
exit code: 0 ok, 1 an operation failed or a value was wrong, 2 usage, 3 the machine lacks something
           ('smtnet doctor' says what), 4 the run was not faithful (--allow-unfaithful: 0 then)

docs/kv.md is the how-to.
"""


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``kv`` to the subcommands of ``run``."""
    parser = actions.add_parser(
        "kv", help="YCSB against a key-value server", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="YCSB's core workloads against a key-value server on a topology: the records are loaded once, "
                    "then every trial runs the workload on them.")
    parser.add_argument("--store", choices=STORES, default="embedded",
                        help="; ".join(f"{name}: {what}" for name, what in STORES.items())
                        + " (default: %(default)s)")
    parser.add_argument("--direct", action="store_true",
                        help="with --store redis --transport tcp: clients ask Redis itself, and redis-benchmark, "
                             "if it is installed, is run as an outside yardstick")
    add_ycsb_options(parser)
    add_experiment_options(parser)
    parser.set_defaults(run=run_kv)


def run_kv(args: argparse.Namespace) -> int:
    """The subcommand: checks everything that can be checked, then goes on in namespaces of its own."""
    setup = Setup(args.transport, args.nic, "one", args.processes, connections=args.connections,
                  poll_us=args.poll_us, session=args.session or "", options=transport_words(args))
    loads = ycsb_loads(args)
    check_network(args)
    transports.check(args.transport)
    kv_fleet.check(args.transport, args.store, args.direct)
    if not sandbox.inside():
        return sandbox.run(sys.argv[1:])
    say_unused(args)
    folder = ResultFolder.create("kv", args.results)
    title = f"run kv, workload {args.workload}, {args.transport} on {args.topo}"
    with Progress(title, args.trials + 1) as progress:
        rows, more, judged = _measure(args, setup, loads, folder, progress)
    return conclude(args, folder, rows, judged, **more)


def _measure(args: argparse.Namespace, setup: Setup, loads: tuple[YcsbLoad, YcsbLoad],
             folder: ResultFolder, progress: Progress) -> tuple[list[Row], dict[str, Any], dict[str, Any] | None]:
    """(a row for each trial, what else there is to say, what the captures prove)."""
    rows: list[Row] = []
    more: dict[str, Any] = {}
    loading, running = loads
    with open_net(args, folder, progress) as net:
        captures = Captures(net, folder.path / "pcap") if args.capture else nullcontext()
        with captures, KvFleet(net, args.topo, setup, folder.path / "hosts", store=args.store, direct=args.direct,
                               keep_keys=args.capture or args.keylog) as fleet:
            progress.step(f"loading {loading.count} records")
            loaded = fleet.load(loading)
            more["load_phase"] = {name: loaded[name] for name in ("rpcs", "rpc_per_s", "rtt_us")}
            for trial in range(1, args.trials + 1):
                progress.step(f"trial {trial} of {args.trials}")
                measured = fleet.measure(dataclasses.replace(running, seed=args.seed + trial - 1), trial)
                rows.append(measured.row)
                folder.save_raw(f"trial{trial}", measured.rtt_ns)
                folder.save_raw(f"trial{trial}{KINDS_SUFFIX}", measured.tags)
                if measured.row["errors"] or not measured.row["content_ok"]:
                    break
            if args.direct:
                progress.say("redis-benchmark")
                count = max(running.count or 0, _YARDSTICK_OPS)
                more["redis_benchmark"] = fleet.yardstick(running.concurrency, int(running.size), count)
        folder.write("counters.json", json.dumps(fleet.counters, indent=1) + "\n")
    judged = None
    if isinstance(captures, Captures):
        progress.say("verifying the captures")
        judged = captures.judge(fleet, _CANARY)
    return rows, more, judged
