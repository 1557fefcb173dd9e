"""``smtnet reproduce fig6``, ``fig7``, ``fig10``, ``fig11``: the SMT paper's figures of echo, beside its values.

One experiment, of which a figure is a record (:mod:`workloads.experiments.paper_echo.figures`): all systems'
processes stay up on a cable, and their trials take turns. What this machine lacks, as kernel TLS, is left out or
another system stands in; both are said.
"""

from __future__ import annotations

import os
import shlex
import textwrap
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from smtstack.errors import Unsupported
from smtstack.nicshare.state import NicState
from topo.link_options import LinkOptions
from topo.network import SmtNet, open_network
from workloads import transports
from workloads.experiments.bench_wire import failure
from workloads.experiments.demo import timed
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.experiments.paper_echo.figures import Figure, Line
from workloads.fleet.fleet import Fleet
from workloads.fleet.setup import Setup
from workloads.load.loops import Load
from workloads.options.common import QuotedResults, positive
from workloads.options.declare import group, option
from workloads.results import published
from workloads.results.points import points, size_text
from workloads.results.published import Beside
from workloads.results.row import Row
from workloads.transports.table import INLINE, TABLE, system_label

TOPO = "back2back"
TRIALS, SECONDS = 5, 0.5
QUICK_TRIALS, QUICK_SECONDS = 1, 0.2
#: Of transports that are in no list unasked: the module that brings each, and the package that it needs.
_BRING = {"quic": ("workloads.transports.quic", "aioquic")}


@dataclass(frozen=True)
class Options:
    """What ``smtnet reproduce fig6`` takes on its command line, and the others."""

    quick: bool = option("--quick", action="store_true", help="one short trial of each point, and fewer sizes")
    end: QuotedResults = group(QuotedResults)
    trials: int | None = option("--trials", type=positive, metavar="N",
                                help=f"the middle one is quoted (default: {TRIALS})")


@dataclass(frozen=True, slots=True)
class Chosen:
    """A line of the figure, with the system that it is here."""

    line: Line
    transport: str
    nic: str

    @property
    def series(self) -> str:
        """What tables call it."""
        name = system_label(self.transport, self.nic)
        return f"{name}, {self.line.variant}" if self.line.variant else name

    @property
    def hosting(self) -> str:
        """How the hosts' NICs have to be."""
        return TABLE[self.transport].hosting or INLINE

    @property
    def stands_in(self) -> bool:
        """Whether it is another system than the paper's."""
        return bool(self.line.note) and (len(self.line.systems) == 1
                                         or (self.transport, self.nic) != self.line.systems[0])


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often."""

    figure: Figure
    chosen: list[Chosen]
    missing: list[str]
    """Lines that are not here, and why."""
    loads: list[Load]
    trials: int
    quick: bool


def check(figure: Figure, asked: Options) -> Plan:
    """Which systems there are here, and what the user left open."""
    chosen, missing = choose(figure.lines)
    seconds = QUICK_SECONDS if asked.quick else SECONDS
    loads = [timed(size, seconds, many) for many in figure.under_way
             for size in (figure.quick_sizes if asked.quick else figure.sizes)]
    trials = asked.trials or (QUICK_TRIALS if asked.quick else TRIALS)
    return Plan(figure, chosen, missing, loads, trials, asked.quick)


def choose(lines: Sequence[Line]) -> tuple[list[Chosen], list[str]]:
    """(what stands for each line here, which lines are not here and why)."""
    chosen, missing = [], []
    for line in lines:
        reasons = []
        for transport, nic in line.systems:
            try:
                _require(transport)
            except Unsupported as e:
                reasons.append(f"{transport}: {e}")
            else:
                chosen.append(Chosen(line, transport, nic))
                break
        else:
            missing.append(f"{line.paper} is left out ({'; '.join(reasons)})")
    return chosen, missing


def _require(transport: str) -> None:
    """Raises :class:`Unsupported` for a transport that cannot be here."""
    if transport in TABLE:
        transports.check(transport)
    elif transport not in _BRING:
        raise Unsupported(f"there is no transport {transport}")
    elif find_spec(_BRING[transport][1]) is None:
        raise Unsupported(f"{transport} needs {_BRING[transport][1]}: pip install 'smtnet[{transport}]'")


def _bring(chosen: Sequence[Chosen]) -> None:
    """Have all of them in the table: here, in the sandbox, and in the programs that are started from here."""
    for one in chosen:
        if one.transport not in TABLE:
            module = _BRING[one.transport][0]
            import_module(module)
            known = os.environ.get("SMTNET_TRANSPORTS", "")
            os.environ["SMTNET_TRANSPORTS"] = ",".join(filter(None, (known, module)))


def measure(plan: Plan, running: Running) -> Outcome:
    """A row for each load, line and trial."""
    _bring(plan.chosen)
    rows: list[Row] = []
    # What needs a NIC of another hosting has a network of its own.
    for hosting in dict.fromkeys(one.hosting for one in plan.chosen):
        rows += _on_network(plan, [one for one in plan.chosen if one.hosting == hosting], hosting, running)
    remarks = [f"smtnet: {text}" for text in (*plan.missing, *(
        f"{one.series}, for {one.line.paper}: {one.line.note}" for one in plan.chosen if one.stands_in))]
    parameters = {"figure": plan.figure.name, "trials": plan.trials, "quick": plan.quick, "missing": plan.missing}
    if failed := failure(rows):
        return Outcome(rows, parameters=parameters, failed=failed, remarks=remarks)
    values = beside(plan.figure, plan.chosen, rows)
    return Outcome(rows, {"points": [value_of(value) for value in values], "missing": plan.missing},
                   published.text(values), table=False, parameters=parameters, remarks=remarks, published=values)


def _on_network(plan: Plan, chosen: Sequence[Chosen], hosting: str, running: Running) -> list[Row]:
    rows: list[Row] = []
    with open_network(TOPO, LinkOptions(hosting=hosting), progress=running.progress.say) as net, \
            ExitStack() as stack:
        systems = list(dict.fromkeys((one.transport, one.nic) for one in chosen))
        hosts = running.folder.path / "hosts" / hosting
        fleets = {system: stack.enter_context(Fleet(net, TOPO, Setup(*system), hosts, number))
                  for number, system in enumerate(systems)}
        for trial in range(1, plan.trials + 1):
            for tso in dict.fromkeys(one.line.tso for one in chosen):
                if tso:
                    _set(net, f"tso={tso}")
                for load in plan.loads:
                    rows += [_row(fleets[one.transport, one.nic], one, load, trial, running)
                             for one in chosen if one.line.tso == tso]
    return rows


def _set(net: SmtNet, setting: str) -> None:
    """On all hosts' NICs, and wait until it holds."""
    for host in net.hosts:
        nic = NicState.open(host.defaultIntf().name, pid=host.pid)
        nic.assign(setting)
        nic.wait_applied()


def _row(fleet: Fleet, one: Chosen, load: Load, trial: int, running: Running) -> Row:
    many = f" x{load.concurrency}" if load.concurrency > 1 else ""
    running.progress.step(f"{one.series}, {size_text(int(load.size))}{many}, trial {trial}")
    measured = fleet.measure(load, trial)
    name = one.series.replace(", ", "-").replace(" ", "-")
    running.folder.save_raw(f"{name}-{load.size}-x{load.concurrency}-trial{trial}", measured.rtt_ns)
    row = measured.row
    return row | {"variant": one.line.variant} if one.line.variant else row


def beside(figure: Figure, chosen: Sequence[Chosen], rows: Sequence[Row]) -> list[Beside]:
    """The middle trials beside the paper's values, then ratios of the two."""
    middle = {(point.label, point.quoted.get("variant") or "", int(point.column.size), point.column.concurrency):
              point.value for point in points(rows)}
    out: list[Beside] = []
    for many in figure.under_way:
        panel = figure.axis if many == 1 else f"{figure.axis}, {many} under way"
        own = []
        for one in chosen:
            system = system_label(one.transport, one.nic)
            for size, value in zip(figure.sizes, one.line.values.get(many, ()), strict=True):
                here = middle.get((system, one.line.variant, size, many))
                if here is not None:
                    note = f"for {one.line.paper}" if one.stands_in else ""
                    own.append(Beside(panel, one.series, size_text(size), here, value, note=note))
        shares: list[Beside] = []
        for ours, theirs in figure.ratios:
            pairs = [(a.series, b.series) for a in chosen for b in chosen
                     if (a.line.paper, b.line.paper) == (ours, theirs)]
            for pair in pairs:
                shares += published.ratios(own, *pair, f"ratio of {panel.replace(' (us)', '')}")
        out += [*own, *shares]
    return out


def value_of(value: Beside) -> dict[str, object]:
    """For ``--json``."""
    return {"what": value.what, "series": value.series, "at": value.at, "here": value.here,
            "published": value.published, "note": value.note}


def experiment(figure: Figure) -> Experiment[Options, Plan]:
    """The experiment of a record."""
    examples = [shlex.join(["smtnet", "reproduce", figure.name, word]) for word in ("--quick", "--json")]
    return Experiment(
        figure.name, command="reproduce", help=figure.title, options=Options,
        description=textwrap.fill(
            f"The SMT paper's Fig. {figure.number}: {figure.title}, over {_names(figure)}, echo between two hosts "
            "on a cable; medians beside the values of the paper, and the ratios of both.", 100),
        examples="\n  ".join(["examples:", *examples]) + f"\n\nWrites results/<UTC time>-{figure.name}/: "
                 "published.json and what every run leaves. Needs root.\n",
        check=lambda asked: check(figure, asked), measure=measure,
        steps=lambda plan: (figure.name, len(plan.chosen) * len(plan.loads) * plan.trials),
        place=figure.place, published=figure.published)


def _names(figure: Figure) -> str:
    return ", ".join(dict.fromkeys(" or ".join(transport for transport, _nic in line.systems)
                                   for line in figure.lines))

