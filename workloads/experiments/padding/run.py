"""``smtnet reproduce padding``: what hiding the lengths of messages costs, by policy.

Bytes are computed for W1 to W5 and, as a check, counted at the client's interface; round trips and RPC/s are
measured in the same run, with every policy's processes up and their trials taking turns.
"""

from __future__ import annotations

import json
import textwrap
from contextlib import ExitStack
from dataclasses import dataclass

from smtstack.errors import SmtError
from topo.commands import run as run_tool
from topo.host import SmtHost
from topo.network import open_network
from workloads.experiments.demo import timed
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.experiments.padding.model import POLICIES, costs, sent_bytes
from workloads.experiments.padding.report import PaddingRow, Wire, as_csv, as_text, comparison, picture
from workloads.fleet.fleet import Fleet, Measured
from workloads.fleet.setup import Setup
from workloads.load.loops import Load
from workloads.options.common import QuotedResults, positive
from workloads.options.declare import group, option
from workloads.results.kinds import Picture
from workloads.results.published import Published
from workloads.results.row import Row

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


@dataclass(frozen=True)
class Options:
    """What ``smtnet reproduce padding`` takes on its command line."""

    quick: bool = option("--quick", action="store_true", help="one short trial of each point")
    end: QuotedResults = group(QuotedResults)
    trials: int | None = option("--trials", type=positive, metavar="N",
                                help=f"the median of their ratios counts (default: {TRIALS})")


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often."""

    loads: list[Load]
    trials: int
    quick: bool


def check(asked: Options) -> Plan:
    """What the user left open, filled in."""
    quick = asked.quick
    loads = [timed(size, QUICK_S if quick else UNLOADED_S) for size in UNLOADED_SIZES]
    loads.append(timed(LOADED_SIZE, QUICK_S if quick else LOADED_S, CONCURRENCY))
    loads += [Load(name, count=count // (QUICK_SHARE if quick else 1), concurrency=MIX_CONCURRENCY, timeout=60.0)
              for name, count in MIXES]
    return Plan(loads, asked.trials or (1 if quick else TRIALS), quick)


def measure(plan: Plan, running: Running) -> Outcome:
    """A row for each trial; raises SmtError for one that failed."""
    rows: list[PaddingRow] = []
    folder, progress = running.folder, running.progress
    with open_network(TOPO, progress=progress.say) as net, ExitStack() as stack:
        fleets = [stack.enter_context(Fleet(net, TOPO, Setup("smt", options=("--padding", policy)),
                                            folder.path / "hosts", number))
                  for number, policy in enumerate(POLICIES)]
        client = net.flows[0][0]
        for trial in range(1, plan.trials + 1):
            for load in plan.loads:
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
    table = comparison(costs(), rows)
    return Outcome(rows, table, "\n" + as_text(table), files={"padding.csv": as_csv(table["bytes"])},
                   parameters={"trials": plan.trials, "quick": plan.quick, "policies": list(POLICIES)})


def octets(host: SmtHost) -> int:
    """Bytes its interface has sent and received, from the Ethernet header on."""
    command = ["ip", "-j", "-s", "link", "show", "dev", str(host.defaultIntf())]
    (entry,) = json.loads(run_tool(command, where=host.name, pid=host.pid))
    return int(entry["stats64"]["tx"]["bytes"]) + int(entry["stats64"]["rx"]["bytes"])


def _row(measured: Measured[Row], load: Load, policy: str, moved: int) -> PaddingRow:
    sizes = list(measured.tags) or [int(load.size)] * measured.row["rpcs"]
    # Requests and replies are alike.
    wire: Wire = {"bytes": moved, "data": 2 * sent_bytes(sizes, policy), "plain": 2 * sum(sizes)}
    return {**measured.row, "transport": f"smt, {policy}", "nic": None, "policy": policy, "wire": wire}


EXPERIMENT = Experiment(
    "padding", command="reproduce", help="length concealment: bytes and time by padding policy",
    description=textwrap.fill(
        "Bytes that padding adds to the messages of W1 to W5, what an onlooker still learns from a "
        "length, and echo round trips and RPC/s, for the policies none, power-of-two and buckets.", 100),
    examples=_EXAMPLES, options=Options, check=check, measure=measure,
    steps=lambda plan: ("padding", len(POLICIES) * len(plan.loads) * plan.trials), needs_pictures=True, place=40,
    published=Published(
        emulated="two hosts on a cable: network namespaces on one machine",
        modelled="bytes of W1 to W5 are computed from the published message sizes, and counted on the wire "
                 "as a check",
        not_comparable="anything published: the paper names length concealment (its section 6) and measures none"),
    kinds=(Picture("padding.png", picture, "Bytes that padding adds, by workload"),))
