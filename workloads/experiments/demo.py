"""``smtnet demo``: the echo comparison of all transports, on a cable and behind a switch, in two minutes."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from smtstack.errors import Unsupported
from smtstack.exit_codes import EXIT_FAILED, EXIT_UNFAITHFUL
from topo import sandbox
from topo.link_options import LinkOptions
from topo.network import open_network
from workloads import transports
from workloads.fleet.fleet import Fleet
from workloads.fleet.setup import Setup
from workloads.load.loops import Load
from workloads.results import report
from workloads.results.environment import environment
from workloads.results.progress import Progress
from workloads.results.rows import ResultFolder, Row, overall, points
from workloads.results.table import print_table
from workloads.transports.table import systems

TOPOLOGIES = ("back2back", "star,3")
#: One RPC at a time: request bytes.
SIZES = (64, 1024, 8192, 65536)
#: Many at a time: how many, of how many bytes.
CONCURRENCIES = (10, 50, 150)
LOADED_SIZE = 64
TRIALS = 3
#: Seconds a trial takes.
UNLOADED_S, LOADED_S = 0.25, 0.4

_EXAMPLES = """examples:
  smtnet demo
  smtnet demo --quick
  smtnet demo --json --strict

Runs echo over smt (records sealed by software and by the emulated NIC), homa, tcp, tls and, where the kernel
has it, ktls. Writes results/<UTC time>-demo/ with CSV, JSON, PNG and index.html. 'smtnet doctor' says what this
machine can do.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``demo``."""
    parser = commands.add_parser(
        "demo", help="compare all transports, with a table, plots and a report", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="The echo comparison of all transports on back2back and star. Needs root.")
    parser.add_argument("--quick", action="store_true", help="one trial of each point instead of three")
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR",
                        help="where the result folder goes (default: %(default)s)")
    parser.add_argument("--strict", action="store_true", help="exit 4 if any trial was not faithful")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(run=run)


def setups() -> tuple[list[Setup], list[str]]:
    """(what is compared, what is not and why)."""
    wanted = [Setup(transport, nic) for transport, nic in systems("demo")]
    found, skipped = [], []
    for setup in wanted:
        try:
            transports.check(setup.transport)
        except Unsupported as e:
            skipped.append(f"{setup.transport} skipped: {e}")
        else:
            found.append(setup)
    return found, skipped


def run(args: argparse.Namespace) -> int:
    """The subcommand."""
    if not sandbox.inside():
        return sandbox.run(sys.argv[1:])
    compared, skipped = setups()
    trials = 1 if args.quick else TRIALS
    folder = ResultFolder.create("demo", args.results)
    loads = [timed(size, UNLOADED_S) for size in SIZES]
    loads += [timed(LOADED_SIZE, LOADED_S, c) for c in CONCURRENCIES]
    rows: list[Row] = []
    steps = len(TOPOLOGIES) * len(compared) * len(loads) * trials
    with Progress("demo", steps) as progress:
        for topo in TOPOLOGIES:
            rows += compare(topo, LinkOptions(), compared, loads, trials, folder, progress)
        progress.say("plots and report")
        verdict = overall(rows)
        folder.write_run({"topologies": TOPOLOGIES, "trials": trials, "skipped": skipped}, environment(), 1,
                         verdict, rows)
        folder.write_csv(rows)
        report.make(folder)
        folder.hand_over()
    failed = [point for point in points(rows) if point.failed]
    if args.json:
        print(json.dumps({"ok": not failed, "fidelity": verdict, "skipped": skipped, "results": str(folder.path),
                          "points": rows}))
    else:
        print_table(rows)
    for line in skipped:
        print(f"smtnet: {line}", file=sys.stderr)
    print(f"report: {folder.path / report.PAGE}", file=sys.stderr)
    if failed:
        print(f"smtnet: {len(failed)} points failed: {failed[0].quoted.get('first_error', 'wrong content')}",
              file=sys.stderr)
        return EXIT_FAILED
    return EXIT_UNFAITHFUL if args.strict and not verdict["ok"] else 0


def timed(size: int, seconds: float, concurrency: int = 1) -> Load:
    """As many RPCs as begin within ``seconds``."""
    return Load(str(size), count=None, seconds=seconds, concurrency=concurrency)


def compare(topo: str, links: LinkOptions, compared: list[Setup], loads: list[Load], trials: int,
            folder: ResultFolder, progress: Progress, **labels: Any) -> list[Row]:
    """The rows of every load over every transport, taking turns: a slow moment of the machine hits all alike.

    ``labels`` are further fields of every row.
    """
    rows: list[Row] = []
    hosts = folder.path / "hosts"
    hosts.mkdir(exist_ok=True)
    # Numbered, as a run may compare on the same network more than once.
    place = "-".join([str(len(list(hosts.iterdir())) + 1), topo.replace(",", ""),
                      *(str(value).replace(" ", "") for value in labels.values())])
    with open_network(topo, links, progress=progress.say) as net, ExitStack() as stack:
        progress.say(f"{topo}: starting servers and clients")
        fleets = [stack.enter_context(Fleet(net, topo, setup, hosts / place, number))
                  for number, setup in enumerate(compared)]
        for trial in range(1, trials + 1):
            for load in loads:
                for fleet in fleets:
                    size = f"{load.size} B" + (f" x{load.concurrency}" if load.concurrency > 1 else "")
                    progress.step(f"{topo}, {fleet.setup.transport} {fleet.setup.nic}, {size}, trial {trial}")
                    measured = fleet.measure(load, trial)
                    rows.append(measured.row | labels)
                    folder.save_raw(f"{place}-{fleet.setup.transport}-{fleet.setup.nic}-{load.size}-"
                                    f"x{load.concurrency}-poll{fleet.setup.poll_us}-trial{trial}", measured.rtt_ns)
    return rows
