"""``smtnet reproduce slowdown``: Homa's slowdown under load, in virtual time, beside the curve of its paper.

The run of ``smtnet slowdown`` (:mod:`workloads.experiments.slowdown`), with what it leaves in a result folder.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from smtstack import quantities
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.experiments.slowdown import report
from workloads.experiments.slowdown.report import Bucket
from workloads.experiments.slowdown.simulation import LoadRun, Setting, unloaded_ns
from workloads.load.distributions import WORKLOADS, find
from workloads.options.common import QuotedResults
from workloads.options.declare import group, option
from workloads.results.folder import csv_text
from workloads.results.published import Beside, Published
from workloads.results.row import Verdict

PROFILES = ("smt", "homa")
MESSAGES, QUICK_MESSAGES = 20_000, 3_000
#: Of the published curve of Homa at 80 % load (SIGCOMM 2018, its Fig. 12), by workload: percentile of message
#: size, median and 99th percentile of slowdown, as docs/slowdown.md has them.
CURVES = {
    "w3": ((10, 1.49, 2.21), (20, 1.48, 2.17), (30, 1.47, 2.14), (40, 1.45, 2.1), (50, 1.42, 2.02), (60, 1.41,
           1.99), (70, 1.39, 1.94), (80, 1.39, 2.0), (90, 1.23, 1.68), (95, 1.29, 2.21), (99, 1.8, 4.29),
           (99.9, 3.54, 8.85), (100, 12.72, 22.55)),
    "w4": ((10, 1.42, 2.04), (20, 1.4, 2.01), (30, 1.37, 1.92), (40, 1.36, 1.89), (50, 1.33, 1.85), (60, 1.29,
           1.73), (70, 1.18, 1.66), (80, 1.3, 2.36), (90, 1.34, 2.89), (95, 1.52, 3.37), (99, 2.84, 7.59),
           (99.9, 5.92, 25.61), (100, 5.92, 25.61)),
}
LOAD = 0.8

_EXAMPLES = """examples:
  smtnet reproduce slowdown --quick
  smtnet reproduce slowdown --workload w3 --json

Writes results/<UTC time>-slowdown/: slowdown.csv, slowdown.json, slowdown.png. Needs no root and no network: time
is virtual. Takes some minutes (--quick: half a minute). smtnet slowdown has all options.
"""


@dataclass(frozen=True)
class Options:
    """What ``smtnet reproduce slowdown`` takes on its command line."""

    quick: bool = option("--quick", action="store_true", help=f"{QUICK_MESSAGES} messages of each profile")
    end: QuotedResults = group(QuotedResults)
    workload: str = option("--workload", choices=tuple(WORKLOADS), default="w4",
                           help="message sizes (default: %(default)s)")
    messages: int | None = option("--messages", type=quantities.POSITIVE, metavar="N",
                                  help=f"measured messages of each profile (default: {MESSAGES})")
    reference: Path | None = option("--reference", type=Path, metavar="CSV",
                                    help="the whole published curve, to print beside (default: some points of it)")
    seed: int = option("--seed", type=quantities.NOT_NEGATIVE, default=1, help="of the arrivals (default: 1)")


@dataclass(frozen=True)
class Plan:
    """What is simulated."""

    workload: str
    setting: Setting
    curve: report.Published


def check(asked: Options) -> Plan:
    """What the user left open, filled in."""
    curve = ({float(percent): (median, p99) for percent, median, p99 in CURVES.get(asked.workload, ())}
             if asked.reference is None else report.load_published(asked.reference, asked.workload, LOAD))
    messages = asked.messages or (QUICK_MESSAGES if asked.quick else MESSAGES)
    return Plan(asked.workload, Setting(load=LOAD, messages=messages, seed=asked.seed), curve)


def measure(plan: Plan, running: Running) -> Outcome:
    """Each profile once; there are no rows."""
    sizes = find(plan.workload)
    results = []
    for profile in PROFILES:
        running.progress.step(f"{plan.workload}, {profile}")
        results.append(LoadRun(plan.setting, profile, sizes).run())
    unloaded = unloaded_ns(plan.setting, plan.setting.params(sizes), {size for r in results for size in r.sizes})
    messages = {result.profile: report.simulated(result, unloaded) for result in results}
    buckets = [bucket for profile, found in messages.items()
               for bucket in report.buckets(profile, found, plan.curve)]
    means = {profile: round(report.mean_slowdown(found), 4) for profile, found in messages.items()}
    lost = [f"{result.profile}: {result.undelivered} not delivered, {result.failed} RPCs failed"
            for result in results if result.undelivered or result.failed]
    title = f"{plan.workload.upper()}, {LOAD:.0%} load, {plan.setting.hosts} hosts, one switch"
    report.plot(running.folder.path / "slowdown.png", buckets, title)
    faithful: Verdict = {"ok": True, "reasons": []}
    table = [asdict(bucket) for bucket in buckets]
    return Outcome(result={"workload": plan.workload, "mean_slowdown": means, "buckets": table},
                   text=report.table(buckets), table=False, failed="; ".join(lost), seed=plan.setting.seed,
                   fidelity=faithful, published=beside(buckets),
                   parameters={"workload": plan.workload, "messages": plan.setting.messages, "load": LOAD},
                   files={"slowdown.csv": csv_text(table), "slowdown.json": json.dumps(table, indent=1) + "\n"})


def beside(buckets: Sequence[Bucket]) -> list[Beside]:
    """Median and 99th percentile of each bucket of sizes, by profile; the published ones are Homa's."""
    out = []
    for what, here, there in (("slowdown, median", "median", "published_median"),
                              ("slowdown, 99th percentile", "p99", "published_p99")):
        out += [Beside(what, bucket.transport, f"{bucket.label} %", getattr(bucket, here),
                       getattr(bucket, there) if bucket.transport == "homa" else None)
                for bucket in buckets if bucket.from_pct < bucket.to_pct]
    return out


EXPERIMENT = Experiment(
    "slowdown", command="reproduce", help="slowdown of messages under load, in virtual time",
    description=textwrap.fill(
        "Slowdown by message size of smt and homa at 80 % load, all to all among ten hosts, in a "
        "deterministic simulation of the real transport, beside the curve of Homa's paper.", 100),
    examples=_EXAMPLES, options=Options, check=check, measure=measure,
    steps=lambda plan: ("slowdown", len(PROFILES)), sandboxed=False, needs_pictures=True, ends_with="results",
    place=60,
    published=Published(
        "Homa (SIGCOMM 2018), Fig. 12: simulation at 80 % load",
        modelled="the network and time: links, switch, host delays are those of the paper's simulation, in "
                 "virtual time; the transport is the real code. Encryption and host software take no time",
        not_comparable="the topology: one switch and ten hosts here, 144 hosts in leaf and spine there; "
                       "and sizes come from a digest of the tables"))
