"""``smtnet demo``: the echo comparison of all transports, on a cable and behind a switch, in two minutes."""

from __future__ import annotations

import textwrap
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

from smtstack import compiled
from smtstack.errors import Unsupported
from topo.link_options import LinkOptions
from topo.network import open_network
from workloads import transports
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.fleet.fleet import Fleet
from workloads.fleet.setup import Setup
from workloads.load.loops import Load
from workloads.options.common import QuotedResults
from workloads.options.declare import group, option
from workloads.options.hosting import Hosting
from workloads.results.compared import what_is_compared
from workloads.results.folder import ResultFolder
from workloads.results.points import points
from workloads.results.progress import Progress
from workloads.results.row import Row
from workloads.transports.table import INLINE, systems

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


@dataclass(frozen=True)
class Options:
    """What ``smtnet demo`` takes on its command line."""

    quick: bool = option("--quick", action="store_true", help="one trial of each point instead of three")
    nics: Hosting = group(Hosting)
    end: QuotedResults = group(QuotedResults)


@dataclass(frozen=True)
class Plan:
    """What is compared."""

    compared: list[Setup]
    skipped: list[str]
    """What is not, and why."""
    loads: list[Load]
    trials: int
    hosting: str


def setups(hosting: str = INLINE) -> tuple[list[Setup], list[str]]:
    """(what is compared, what is not and why)."""
    wanted = [Setup(transport, nic) for transport, nic in systems("demo", hosting)]
    found, skipped = [], []
    for setup in wanted:
        try:
            transports.check(setup.transport)
        except Unsupported as e:
            skipped.append(f"{setup.transport} skipped: {e}")
        else:
            found.append(setup)
    return found, skipped


def check(asked: Options) -> Plan:
    """What this machine can do."""
    loads = [timed(size, UNLOADED_S) for size in SIZES]
    loads += [timed(LOADED_SIZE, LOADED_S, c) for c in CONCURRENCIES]
    hosting = asked.nics.hosting
    return Plan(*setups(hosting), loads, 1 if asked.quick else TRIALS, hosting)


def measure(plan: Plan, running: Running) -> Outcome:
    """A row for each topology, load, transport and trial."""
    rows: list[Row] = []
    links = LinkOptions(hosting=plan.hosting)
    for topo in TOPOLOGIES:
        rows += compare(topo, links, plan.compared, plan.loads, plan.trials, running.folder,
                        running.progress)
    failed = [point for point in points(rows) if point.failed]
    why = f"{len(failed)} points failed: {failed[0].quoted.get('first_error', 'wrong content')}" if failed else ""
    return Outcome(
        rows, {"ok": not failed, "skipped": plan.skipped, "points": rows},
        textwrap.fill(what_is_compared(rows, compiled.description()), 110), failed=why,
        parameters={"topologies": TOPOLOGIES, "trials": plan.trials, "skipped": plan.skipped},
        remarks=[f"smtnet: {line}" for line in plan.skipped])


def timed(size: int, seconds: float, concurrency: int = 1) -> Load:
    """A load of as many RPCs as begin within ``seconds``."""
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
                    rows.append(cast(Row, measured.row | labels))
                    how = measured.row["poll"].replace(" ", "-")
                    folder.save_raw(f"{place}-{fleet.setup.transport}-{fleet.setup.nic}-{load.size}-"
                                    f"x{load.concurrency}-{how}-trial{trial}", measured.rtt_ns)
    return rows


EXPERIMENT = Experiment(
    "demo", command="", help="compare all transports, with a table, plots and a report", examples=_EXAMPLES,
    description="The echo comparison of all transports on back2back and star. Needs root.",
    options=Options, check=check, measure=measure,
    steps=lambda plan: ("demo", len(TOPOLOGIES) * len(plan.compared) * len(plan.loads) * plan.trials))
