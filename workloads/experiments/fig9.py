"""``smtnet reproduce fig9``: the paper's NVMe-oF figure, measured here, beside what the paper has.

Target and initiator on a cable, as in the paper; all systems' processes stay up, and their trials take turns.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from topo.network import open_network
from workloads.experiments.block_figure import (
    DEPTHS,
    KINDS,
    LINES,
    PAPER_PATTERN,
    as_text,
    beside,
    block_points,
    quoted,
    table,
)
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.experiments.paper_echo.figure import Chosen, choose
from workloads.fleet.blocks import BlockFleet, BlockRow
from workloads.fleet.setup import Setup
from workloads.load.blocks import BlockLoad
from workloads.options.common import QuotedResults, positive
from workloads.options.declare import group, option
from workloads.results import published
from workloads.results.folder import csv_text
from workloads.results.points import first_error
from workloads.results.published import Published

TOPO = "back2back"
#: The paper has reads by depth 1 to 8.
PATTERNS, ALL_DEPTHS = (PAPER_PATTERN, "randwrite"), (*DEPTHS, 16, 32)
TRIALS, SECONDS = 3, 0.8
QUICK_TRIALS, QUICK_SECONDS, QUICK_DEPTHS = 1, 0.3, (1, 8, 32)
BLOCKS = 2048
#: Whose times are divided by whose, by the paper's names.
RATIOS = (("SMT-sw", "kTLS-sw"), ("SMT-hw", "kTLS-sw"), ("Homa", "TCP"), ("SMT-sw", "Homa"))

_EXAMPLES = """examples:
  smtnet reproduce fig9 --quick
  smtnet reproduce fig9 --json

Writes results/<UTC time>-fig9/: published.json, iodepth.csv, iodepth.png, and what every run leaves. Takes some
four minutes (--quick: half a minute). Needs root.
"""


@dataclass(frozen=True)
class Options:
    """What ``smtnet reproduce fig9`` takes on its command line."""

    quick: bool = option("--quick", action="store_true", help="one short trial of each point, and fewer depths")
    end: QuotedResults = group(QuotedResults)
    trials: int | None = option("--trials", type=positive, metavar="N",
                                help=f"the middle one is quoted (default: {TRIALS})")


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often."""

    chosen: list[Chosen]
    missing: list[str]
    """Lines that are not here, and why."""
    loads: list[BlockLoad]
    trials: int
    quick: bool


def check(asked: Options) -> Plan:
    """What the user left open, filled in."""
    seconds, depths = (QUICK_SECONDS, QUICK_DEPTHS) if asked.quick else (SECONDS, ALL_DEPTHS)
    loads = [BlockLoad(pattern=pattern, count=None, seconds=seconds, concurrency=depth)
             for pattern in PATTERNS for depth in depths]
    return Plan(*choose(LINES), loads, asked.trials or (QUICK_TRIALS if asked.quick else TRIALS), asked.quick)


def measure(plan: Plan, running: Running) -> Outcome:
    """A row for each system, pattern, depth and trial; stops at one that failed."""
    rows: list[BlockRow] = []
    remarks = [f"smtnet: {text}" for text in (*plan.missing, *(
        f"{one.series}, for {one.line.paper}: {one.line.note}" for one in plan.chosen if one.stands_in))]
    parameters = {"trials": plan.trials, "quick": plan.quick, "missing": plan.missing}
    with open_network(TOPO, progress=running.progress.say) as net, ExitStack() as stack:
        fleets = [stack.enter_context(BlockFleet(net, TOPO, Setup(one.transport, one.nic, "one"),
                                                 running.folder.path / "hosts", number, blocks=BLOCKS))
                  for number, one in enumerate(plan.chosen)]
        for trial in range(1, plan.trials + 1):
            for load in plan.loads:
                for one, fleet in zip(plan.chosen, fleets, strict=True):
                    name = f"{one.series}-{load.pattern}-x{load.concurrency}-trial{trial}"
                    running.progress.step(name)
                    measured = fleet.measure(replace(load, seed=trial), trial)
                    rows.append(measured.row)
                    running.folder.save_raw(name, measured.rtt_ns)
                    if measured.row["errors"] or not measured.row["content_ok"]:
                        return Outcome(rows, parameters=parameters, remarks=remarks,
                                       failed=f"{name}: {first_error([measured.row]) or 'wrong blocks'}")
    entries = table(rows)
    values = beside(entries)
    for what in dict.fromkeys(value.what for value in values):
        own = [value for value in values if value.what == what]
        for pair in _pairs(plan.chosen):
            values += published.ratios(own, *pair, f"ratio of the {what.replace(' (us)', '')}")
    return Outcome(rows, {"points": entries, "missing": plan.missing}, _text(rows, values), table=False,
                   files={"iodepth.csv": csv_text(entries)}, parameters=parameters, remarks=remarks,
                   published=values)


def _pairs(chosen: Sequence[Chosen]) -> list[tuple[str, str]]:
    """The systems of :data:`RATIOS` that are here."""
    by_line = {one.line.paper: one.series for one in chosen}
    return [(by_line[ours], by_line[theirs]) for ours, theirs in RATIOS if ours in by_line and theirs in by_line]


def _text(rows: Sequence[BlockRow], values: Sequence[published.Beside]) -> str:
    weak = sum(not point.faithful for point in block_points(rows))
    of = len({(point.label, quoted(point)["variant"], point.column) for point in block_points(rows)})
    said = f"{weak} of {of} points were not faithful: --strict says why\n" if weak else ""
    return f"{as_text(table(rows))}\n{said}\n{published.text(values)}"


EXPERIMENT = Experiment(
    "fig9", command="reproduce", help="NVMe-oF: a remote block store by depth of the queue and transport",
    description=textwrap.fill(
        "The SMT paper's Fig. 9: random commands of 4 KB on a remote block store, by depth of the queue and "
        "transport; medians and 99th percentiles of reads beside the paper's, and the ratios of both.", 100),
    examples=_EXAMPLES, options=Options, check=check, measure=measure,
    steps=lambda plan: ("fig9", len(plan.chosen) * len(plan.loads) * plan.trials),
    needs_pictures=True, place=10, kinds=KINDS,
    published=Published(
        "SMT paper (IEEE S&P 2026), Fig. 9",
        "two hosts on a cable: network namespaces on one machine. The block store has NVMe-oF's shape, target "
        "and initiator are Python in place of the kernel's NVMe driver and fio; the NIC is smtnet's emulated one",
        not_comparable="absolute values: the paper's target has an NVMe drive, whose time is most of its round "
                       "trip; here it is memory. So transports differ more here than there, and what costs Python "
                       "for each packet pays for it. The paper has reads up to depth 8; writes and deeper queues "
                       "are ours alone, and its kTLS-hw is not measured"))
