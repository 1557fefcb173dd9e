"""``smtnet run priorities``: are the priorities of an emulated switch port strict? Measured, class by class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from smtstack import quantities
from smtstack.errors import ConfigError
from smtstack.wire.ethernet import FRAME_OVERHEAD, HEADER_LEN
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.experiments.priorities import report as priority_report
from workloads.experiments.priorities.arithmetic import MODE, Shares, all_classes, classes, named
from workloads.experiments.priorities.port import OnePort, PriorityPort, PriorityRow
from workloads.experiments.queries import as_text
from workloads.options.common import JudgedResults, positive
from workloads.options.declare import group, option
from workloads.options.network import Network
from workloads.results.folder import csv_text
from workloads.results.kinds import Mode, Picture
from workloads.results.points import first_error

RATE_MBPS = 20.0
OFFERED = 0.3
#: Beside all eight: one that leaves the other a part, one that leaves it nothing, and two neighbours.
PAIRS = ({7: 0.75, 0: 0.75}, {7: 1.25, 0: 0.75}, {5: 0.75, 4: 0.75})
#: Seconds that the port needs for each class's buffer, unless --buffer says otherwise.
BUFFER_S = 0.1
#: Of a class, in the time that counts: with fewer, one frame more or less would say too much.
_LEAST_FRAMES = 100

_EXAMPLES = """examples:
  smtnet run priorities
  smtnet run priorities --rate-mbps 100 --switch bridge
  smtnet run priorities --controller fanout --offered 50% --json
  smtnet run priorities --classes 6:0.75,2:0.75 --classes 7:1.05,6:10% --seconds 10

h2 and h3 send full frames of IP protocol 253 at steady rates to h1; only the link to h1 has the rate. h1 counts
what arrives, the port what it sends and drops. Classes take turns to be sent by h2 and h3, from the highest on.
Priorities are strict if no class gets what a higher one is denied. Half a percent of the port is not held against
it: frames under way when the time begins and ends, the one frame that HTB lets every class send by right (one a
minute), and what it lends while a higher class's sender is late.
Results are in results/<UTC time>-priorities/: priorities.csv, priorities.png and what every run leaves.
exit code: 0 ok, 1 priorities were not strict, 2 usage, 3 the machine lacks something ('smtnet doctor' says what),
           4 the run was not faithful (--allow-unfaithful: 0 then): also if a sender was late or too slow
"""


@dataclass(frozen=True)
class Options:
    """What ``smtnet run priorities`` takes on its command line."""

    offered: float = option(
        "--offered", type=quantities.FRACTION, default=OFFERED, metavar="P", either="what",
        help=(f"share of the port's rate that each of all eight classes is offered (default: "
              f"{OFFERED:.0%}); pairs of classes follow: "
              f"{' '.join(map(named, PAIRS))}").replace("%", "%%"))
    classes: list[Shares] | None = option(
        "--classes", type=classes, action="append", metavar="C:P[,C:P...]", either="what",
        help="these instead, as 7:75%%,0:0.75 (repeatable)")
    seconds: float = option("--seconds", type=quantities.SECONDS, default=5.0, metavar="S",
                            help="that count of each trial, after one in which buffers fill (default: 5)")
    trials: int = option("--trials", type=positive, default=3, metavar="N", help="(default: %(default)s)")
    network: Network = group(Network, rate_mbps=RATE_MBPS)
    end: JudgedResults = group(JudgedResults)


@dataclass(frozen=True)
class Plan:
    """What is to be measured."""

    asked: Options
    """With the buffer filled in."""
    scenarios: Sequence[Shares]


def check(asked: Options) -> Plan:
    """Raises :class:`ConfigError` for whatever can be seen now."""
    asked.network.check(OnePort.example)
    links = asked.network.links()
    if links.has_wire:
        raise ConfigError("run priorities: delay, loss and the like change what arrives; leave them out")
    if not asked.offered:
        raise ConfigError("--offered is 0: nothing to measure; e.g. --offered 30%")
    assert links.rate_mbps is not None, "there is a default"
    todo = asked.classes or [all_classes(asked.offered), *PAIRS]
    frame = links.mtu + HEADER_LEN
    rate = links.rate_mbps * 1e6 / 8 / (frame + FRAME_OVERHEAD)
    for offered in todo:
        number = min(offered, key=lambda n: offered[n])
        frames = offered[number] * rate * asked.seconds
        if frames < _LEAST_FRAMES:
            raise ConfigError(f"class {number} is offered {frames:.0f} frames of {frame} bytes in "
                              f"{asked.seconds:g} s, which say little; at least {_LEAST_FRAMES}: --seconds "
                              f"{math.ceil(asked.seconds * _LEAST_FRAMES / frames)} would do")
    buffer = asked.network.buffer or max(10 * frame, round(BUFFER_S * links.rate_mbps * 1e6 / 8))
    return Plan(replace(asked, network=replace(asked.network, buffer=buffer)), todo)


def measure(plan: Plan, running: Running) -> Outcome:
    """A row for each trial and scenario."""
    asked = plan.asked
    rows: list[PriorityRow] = []
    hosts = running.folder.path / "hosts"
    with running.network(asked.network, OnePort()) as net, PriorityPort(net, hosts) as port:
        for trial in range(1, asked.trials + 1):
            for offered in plan.scenarios:
                running.progress.step(f"{named(offered)}, trial {trial} of {asked.trials}")
                rows.append(port.measure(offered, asked.seconds, trial))
    return outcome_of(asked, rows)


def outcome_of(asked: Options, rows: Sequence[PriorityRow]) -> Outcome:
    """Failed is a run in which a class got what a higher one was denied."""
    table, wrong = priority_report.table(rows), first_error(rows)
    # Nothing here is random; a network wants a seed all the same.
    return Outcome(rows, {"classes": table, "strict": not wrong}, as_text(table), table=False,
                   files={"priorities.csv": csv_text(table)}, parameters=asked,
                   setting={"seed": 1, "topo": OnePort.example}, failed=wrong)


EXPERIMENT = Experiment(
    "priorities", help="whether a port's eight priorities are strict", examples=_EXAMPLES,
    description="Offer a switch port more than it can send, in several of its eight priorities by DSCP, and "
                "compare what each gets with what strict priority would give it. Rates are those of the "
                "cable, 24 bytes a frame included.",
    options=Options, check=check, measure=measure,
    steps=lambda plan: ("run priorities", len(plan.scenarios) * plan.asked.trials), place=60,
    kinds=(Mode(MODE, heading="frames/s through the port"),
           Picture("priorities.png", priority_report.picture, "Strict priorities at a port: what each class got")))
