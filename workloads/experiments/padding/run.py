"""``smtnet reproduce padding``: what hiding the lengths of messages costs, by policy.

Bytes are computed for W1 to W5 and, as a check, counted at the client's interface; round trips and RPC/s are
measured in the same run, with every policy's processes up and their trials taking turns.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack

from smtstack.errors import SmtError
from smtstack.exit_codes import EXIT_UNFAITHFUL
from topo import sandbox
from topo.commands import run as run_tool
from topo.host import SmtHost
from topo.network import open_network
from workloads.experiments.demo import timed
from workloads.experiments.padding.model import POLICIES, costs, sent_bytes
from workloads.experiments.padding.report import as_csv, as_text, comparison
from workloads.experiments.paper import new_figure
from workloads.fleet.fleet import Fleet, Measured
from workloads.fleet.setup import Setup
from workloads.load.loops import Load
from workloads.options import common as options
from workloads.results import plots, report
from workloads.results.environment import environment
from workloads.results.progress import Progress
from workloads.results.rows import ResultFolder, Row, overall
from workloads.results.table import print_table

TOPO = "back2back"
#: Bytes: at a power of two, above one, and above what goes into one packet.
UNLOADED_SIZES = (64, 100, 1100, 9000)
LOADED_SIZE, CONCURRENCY = 100, 50
#: RPCs of each workload, and how many under way: with a count, every policy gets the same messages.
MIXES = (("w1", 1500), ("w2", 1500), ("w3", 800), ("w4", 120), ("w5", 60))
MIX_CONCURRENCY = 8
TRIALS, UNLOADED_S, LOADED_S = 5, 0.5, 1.0
#: Of --quick: seconds of a load, and by what the mixes are divided.
QUICK_S, QUICK_SHARE = 0.1, 20

_EXAMPLES = """examples:
  smtnet reproduce padding --quick
  smtnet reproduce padding --trials 7 --json

Writes results/<UTC time>-padding/: padding.csv, padding.png, and what every run leaves. Takes some two minutes
(--quick: twenty seconds). Needs root.
"""


def add_figure(figures: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``padding``."""
    parser = new_figure(
        figures, "padding", "length concealment: bytes and time by padding policy",
        "Bytes that padding adds to the messages of W1 to W5, what an onlooker still learns from a length, and "
        "echo round trips and RPC/s, for the policies none, power-of-two and buckets.", _EXAMPLES,
        quick="one short trial of each point")
    parser.add_argument("--trials", type=options.positive, metavar="N",
                        help=f"the median of their ratios counts (default: {TRIALS})")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The subcommand."""
    plots.require_matplotlib()
    if not sandbox.inside():
        return sandbox.run(sys.argv[1:])
    trials = args.trials or (1 if args.quick else TRIALS)
    folder = ResultFolder.create("padding", args.results)
    loads = _loads(args.quick)
    with Progress("padding", len(POLICIES) * len(loads) * trials) as progress:
        rows = _measure(loads, trials, folder, progress)
        verdict = overall(rows)
        folder.write_run({"trials": trials, "quick": args.quick, "policies": list(POLICIES)}, environment(), 1,
                         verdict, rows)
        folder.write_csv(rows)
        table = comparison(costs(), rows)
        folder.write("padding.csv", as_csv(table["bytes"]))
        report.make(folder)
        folder.hand_over()
    if args.json:
        print(json.dumps({**table, "fidelity": verdict, "results": str(folder.path)}))
    else:
        print_table(rows)
        print("\n" + as_text(table))
    print(f"report: {folder.path / report.PAGE}", file=sys.stderr)
    return EXIT_UNFAITHFUL if args.strict and not verdict["ok"] else 0


def _loads(quick: bool) -> list[Load]:
    share = QUICK_SHARE if quick else 1
    loads = [timed(size, QUICK_S if quick else UNLOADED_S) for size in UNLOADED_SIZES]
    loads.append(timed(LOADED_SIZE, QUICK_S if quick else LOADED_S, CONCURRENCY))
    return loads + [Load(name, count=count // share, concurrency=MIX_CONCURRENCY, timeout=60.0)
                    for name, count in MIXES]


def _measure(loads: list[Load], trials: int, folder: ResultFolder, progress: Progress) -> list[Row]:
    """A row for each trial; raises SmtError for one that failed."""
    rows: list[Row] = []
    with open_network(TOPO, progress=progress.say) as net, ExitStack() as stack:
        fleets = [stack.enter_context(Fleet(net, TOPO, Setup("smt", options=("--padding", policy)),
                                            folder.path / "hosts", number))
                  for number, policy in enumerate(POLICIES)]
        client = net.flows[0][0]
        for trial in range(1, trials + 1):
            for load in loads:
                for policy, fleet in zip(POLICIES, fleets, strict=True):
                    progress.step(f"{load.size}, {policy}, trial {trial}")
                    prepared = fleet.prepare(load, trial)
                    before = octets(client)
                    fleet.begin(prepared)
                    measured = fleet.collect(prepared)
                    row = _row(measured, load, policy, octets(client) - before)
                    if row["errors"] or not row["content_ok"]:
                        raise SmtError(f"{load.size}, {policy}: {row.get('first_error', 'wrong content')}")
                    rows.append(row)
                    name = policy.partition(":")[0]
                    folder.save_raw(f"{load.size}-x{load.concurrency}-{name}-trial{trial}", measured.rtt_ns)
    return rows


def octets(host: SmtHost) -> int:
    """Bytes its interface has sent and received, from the Ethernet header on."""
    command = ["ip", "-j", "-s", "link", "show", "dev", str(host.defaultIntf())]
    (entry,) = json.loads(run_tool(command, where=host.name, pid=host.pid))
    return int(entry["stats64"]["tx"]["bytes"]) + int(entry["stats64"]["rx"]["bytes"])


def _row(measured: Measured, load: Load, policy: str, moved: int) -> Row:
    row = measured.row | {"transport": f"smt, {policy}", "nic": None, "policy": policy}
    sizes = list(measured.tags) or [int(load.size)] * row["rpcs"]
    # Requests and replies are alike.
    return row | {"wire": {"bytes": moved, "data": 2 * sent_bytes(sizes, policy), "plain": 2 * sum(sizes)}}
