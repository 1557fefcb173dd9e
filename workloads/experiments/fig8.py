"""``smtnet reproduce fig8``: the paper's Redis and YCSB figure, measured here, beside what the paper has.

Server and clients on a cable, as in the paper; all systems' processes stay up, and their trials take turns.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from smtstack.errors import SmtError
from topo.link_options import LinkOptions
from topo.network import open_network
from workloads.experiments.bench_wire import RATIOS, pairs_of, ratios
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.experiments.ycsb_picture import KINDS
from workloads.fleet.kv import KvFleet
from workloads.fleet.setup import Setup
from workloads.kv.client import require_hiredis
from workloads.load.ycsb_load import LOAD_PHASE, YcsbLoad
from workloads.options.common import QuotedResults, positive
from workloads.options.declare import group, option
from workloads.options.hosting import Hosting
from workloads.results.folder import csv_text
from workloads.results.points import label, size_text
from workloads.results.row import Row
from workloads.transports.table import INLINE, systems

TOPO = "back2back"
VALUES = (64, 1024, 4096)
#: D is the last one: it inserts, and the others are to find as many records as were loaded.
WORKLOADS = ("a", "b", "c", "f", "d")
#: The paper's YCSB client has 32 threads.
CLIENTS = 32
TRIALS, RECORDS, SECONDS = 3, 10_000, 2.0
QUICK_TRIALS, QUICK_RECORDS, QUICK_SECONDS = 1, 2_000, 0.5
#: Insertions under way while the records are loaded.
_LOADING = 32


def claim(name: str, value: int) -> tuple[float, float] | None:
    """What the paper has for a ratio of :data:`RATIOS`: over all workloads, as read off its Fig. 8."""
    if name == "smt-sw/tls":
        return 1.05, 1.24
    if name == "homa/tcp":
        return (0.98, 1.03) if value >= 4096 else (1.03, 1.13)
    # Its SMT with offload stands beside kernel TLS with offload.
    return None


_EXAMPLES = """examples:
  smtnet reproduce fig8 --quick
  smtnet reproduce fig8 --json
  smtnet reproduce fig8 --trials 5 --clients 32

Writes results/<UTC time>-fig8/: fig8.csv, workloads.png, and what every run leaves. Takes some four minutes
(--quick: one).
"""


@dataclass(frozen=True)
class Options:
    """What ``smtnet reproduce fig8`` takes on its command line."""

    quick: bool = option("--quick", action="store_true",
                         help="one short trial of each point, and fewer records")
    nics: Hosting = group(Hosting)
    end: QuotedResults = group(QuotedResults)
    trials: int | None = option("--trials", type=positive, metavar="N",
                                help=f"the median of their ratios counts (default: {TRIALS})")
    clients: int = option("--clients", type=positive, default=CLIENTS, metavar="N",
                          help="operations under way: YCSB's threads (default: %(default)s)")
    processes: int | None = option(
        "--processes", type=positive, metavar="P",
        help="client processes (default: one for each processor beyond the server's, at most 4)")


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often."""

    setups: list[Setup]
    trials: int
    clients: int
    processes: int
    records: int
    seconds: float
    quick: bool
    values: tuple[int, ...]
    workloads: tuple[str, ...]
    hosting: str = INLINE


def check(asked: Options) -> Plan:
    """What the user left open, filled in."""
    require_hiredis()
    quick = asked.quick
    processes = asked.processes or min(4, max(1, len(os.sched_getaffinity(0)) - 1))
    hosting = asked.nics.hosting
    setups = [Setup(transport, nic, "one", processes) for transport, nic in systems("wire", hosting)]
    return Plan(setups, asked.trials or (QUICK_TRIALS if quick else TRIALS), asked.clients, processes,
                QUICK_RECORDS if quick else RECORDS, QUICK_SECONDS if quick else SECONDS, quick, VALUES, WORKLOADS,
                hosting)


def rows_of(plan: Plan, running: Running, place: str = "hosts") -> list[Row]:
    """A row for each trial; raises SmtError for one that failed. ``place``: the folder of what hosts leave."""
    rows: list[Row] = []
    links = LinkOptions(hosting=plan.hosting)
    with open_network(TOPO, links, progress=running.progress.say) as net, ExitStack() as stack:
        fleets = [stack.enter_context(KvFleet(net, TOPO, setup, running.folder.path / place, number))
                  for number, setup in enumerate(plan.setups)]
        for value in plan.values:
            size: dict[str, Any] = {"size": str(value), "records": plan.records}
            for fleet in fleets:
                running.progress.step(f"{size_text(value)}, {_name(fleet)}: loading {plan.records} records")
                fleet.load(YcsbLoad(phase=LOAD_PHASE, count=plan.records, warm_up=0, concurrency=_LOADING, **size))
            for workload in plan.workloads:
                for trial in range(1, plan.trials + 1):
                    for fleet in fleets:
                        name = f"{size_text(value)}, {workload.upper()}, {_name(fleet)}, trial {trial}"
                        running.progress.step(name)
                        load = YcsbLoad(workload=workload, count=None, seconds=plan.seconds,
                                        concurrency=plan.clients, seed=trial, **size)
                        measured = fleet.measure(load, trial)
                        rows.append(measured.row)
                        if measured.row["errors"] or not measured.row["content_ok"]:
                            raise SmtError(f"{name}: {measured.row.get('first_error', 'wrong values')}")
                        running.folder.save_raw(f"{workload}-{value}-{_name(fleet)}-trial{trial}", measured.rtt_ns)
    return rows


def measure(plan: Plan, running: Running) -> Outcome:
    """All values and workloads."""
    rows = rows_of(plan, running)
    table = comparison(rows, pairs_of([(setup.transport, setup.nic) for setup in plan.setups]))
    return Outcome(rows, {"points": table, "ratios": summary(table)}, "\n" + as_text(table),
                   files={"fig8.csv": as_csv(table)},
                   parameters={"trials": plan.trials, "clients": plan.clients, "processes": plan.processes,
                               "quick": plan.quick})


def _name(fleet: KvFleet) -> str:
    return label({"transport": fleet.setup.transport, "nic": fleet.setup.nic if fleet.setup.uses_nic else None})


def comparison(rows: list[Row], pairs: Sequence[tuple[str, str]] = RATIOS) -> list[dict[str, Any]]:
    """One entry for each value size and workload: median operations/s of every system, the median of the trials'
    ratios, and the paper's."""
    out = []
    for point in ratios(rows, pairs):
        value = point["size"]
        out.append({"value_bytes": value, "workload": point["variant"].split()[-1], "ops_per_s": point["median"],
                    "ratio": point["ratio"],
                    "paper": {name: claim(name, value) for name in point["ratio"] if claim(name, value)}})
    return sorted(out, key=lambda p: (p["value_bytes"], p["workload"]))


def summary(table: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Lowest and highest of each ratio."""
    out = {}
    for name in table[0]["ratio"]:
        found = [point["ratio"][name] for point in table]
        out[name] = {"min": min(found), "max": max(found)}
    return out


def as_csv(table: list[dict[str, Any]]) -> str:
    """fig8.csv: a line for each value size and workload."""
    return csv_text([{
        "value_bytes": point["value_bytes"], "workload": point["workload"],
        **{f"{system} ops_per_s": rate for system, rate in point["ops_per_s"].items()}, **point["ratio"],
        **{f"{name} paper {end}": point["paper"].get(name, ("", ""))[index]
           for name in point["ratio"] for index, end in enumerate(("low", "high"))}} for point in table])


def as_text(table: list[dict[str, Any]]) -> str:
    """Ratios for people; in brackets the paper's."""
    names = list(table[0]["ratio"])
    lines = [f"{'ratio of operations/s':<24}" + "".join(f"{name:>24}" for name in names)]
    for point in table:
        cells = []
        for name in names:
            claim = point["paper"].get(name)
            beside = f" (paper {claim[0]:.2f}-{claim[1]:.2f})" if claim else ""
            cells.append(f"{point['ratio'][name]:.2f}{beside}")
        head = f"{point['workload'].upper()}, {size_text(point['value_bytes'])}"
        lines.append(f"{head:<24}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


EXPERIMENT = Experiment(
    "fig8", command="reproduce", help="Redis and YCSB: throughput by workload, value size and transport",
    description=textwrap.fill(
        "Throughput of YCSB A, B, C, D and F with values of 64 B, 1 KB and 4 KB over smt (records sealed by "
        "software and by the emulated NIC), tls, homa and tcp; ratios beside the paper's.", 100),
    examples=_EXAMPLES, options=Options, check=check, measure=measure,
    steps=lambda plan: ("fig8", len(VALUES) * len(plan.setups) * (1 + len(WORKLOADS) * plan.trials)),
    needs_pictures=True, place=10,
    kinds=KINDS)
