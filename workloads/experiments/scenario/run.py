"""``smtnet run scenario FILE.toml``: loads and faults over time, as a file says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from topo.topologies import SmtTopo
from workloads.experiments.experiment import Experiment, Outcome, Running, Subparsers
from workloads.experiments.experiment import run as run_experiment
from workloads.experiments.scenario import picture
from workloads.experiments.scenario.file import Scenario, read
from workloads.experiments.scenario.play import play
from workloads.experiments.scenario.schedule import What
from workloads.experiments.scenario.schedule import steps as schedule
from workloads.experiments.scenario.timeline import ScenarioRow, as_csv, table, without_times
from workloads.options import common as options
from workloads.options import declare
from workloads.options.common import JudgedResults
from workloads.options.declare import group, option
from workloads.results.kinds import Mode, Picture
from workloads.results.points import first_error

_EXAMPLES = """examples:
  smtnet run scenario examples/scenarios/lossy-minute.toml
  smtnet run scenario examples/scenarios/flap.toml --check
  smtnet run scenario examples/scenarios/flap.toml --trials 3 --seed 7 --json

Every transport of the file has the same schedule in turn. Tables and keys: docs/scenarios.md. Results are in
results/<UTC time>-scenario/: timeline.csv, scenario.png, scenario.toml (the file) and what every run leaves.
exit code: 0 ok, 1 an RPC failed or an answer was wrong, 2 usage or a wrong file, 3 the machine lacks something
           ('smtnet doctor' says what), 4 the run was not faithful (--allow-unfaithful: 0 then)
"""


@dataclass(frozen=True)
class Options:
    """Options of ``smtnet run scenario``."""

    file: Path = option(type=Path, metavar="FILE", help="the scenario, in TOML")
    check: bool = option("--check", action="store_true",
                         help="only read the file, and print its schedule; needs no root")
    trials: int | None = option("--trials", type=options.positive, metavar="N", help="instead of the file's")
    seed: int | None = option("--seed", type=options.positive, metavar="S", help="instead of the file's")
    end: JudgedResults = group(JudgedResults)


@dataclass(frozen=True)
class Plan:
    """The options, and what the file says."""

    asked: Options
    scenario: Scenario
    topo: SmtTopo


def check(asked: Options) -> Plan:
    """Everything that can be seen before a network is made."""
    scenario = read(asked.file, asked.seed, asked.trials)
    filled = replace(asked, seed=scenario.head.seed, trials=scenario.head.trials)
    return Plan(filled, scenario, scenario.topology())


def steps(plan: Plan) -> tuple[str, int]:
    """For progress."""
    head = plan.scenario.head
    return f"run scenario {plan.scenario.name}", len(head.transports) * head.trials


def measure(plan: Plan, running: Running) -> Outcome:
    """A row for each trial, transport and load."""
    scenario, head = plan.scenario, plan.scenario.head
    rows: list[ScenarioRow] = []
    # One name for the network in rows, whatever wires its links have.
    with running.network(scenario.network.network, plan.topo, head.seed) as net:
        for trial in range(1, head.trials + 1):
            for transport in head.transports:
                running.progress.step(f"{scenario.system(transport)}, trial {trial}: {scenario.seconds:g} s")
                rows += play(scenario, net, transport, trial, len(rows), running.folder)
    named = [(scenario.system(row["transport"]), row) for row in rows]
    wrong = sum(not row["content_ok"] for row in rows)
    errors = sum(row["errors"] for row in rows)
    failed = ""
    if wrong or (errors and not head.may_fail):
        failed = first_error(rows) or f"{errors} RPCs failed"
    return Outcome(
        rows, {"scenario": scenario.name, "errors": errors, "content_ok": not wrong, "points": [
            {"system": system, **{name: value for name, value in row.items() if name in _QUOTED}}
            for system, row in named]},
        table(named), table=False, failed=failed,
        files={"timeline.csv": as_csv(named), "scenario.toml": scenario.text},
        flat=[without_times(row) for row in rows], parameters=plan.asked,
        setting={"scenario": scenario.name, "transports": head.transports}, seed=head.seed)


#: Of a row, in the JSON.
_QUOTED = ("transport", "nic", "load", "trial", "rpcs", "errors", "content_ok", "rpc_per_s",
                            "rtt_us", "within", "faults")


def lines(scenario: Scenario) -> Iterator[str]:
    """The schedule for people."""
    head = scenario.head
    yield (f"{scenario.name}: {', '.join(scenario.system(name) for name in head.transports)} on "
           f"{scenario.network.topo}, {scenario.seconds:g} s each, trials {head.trials}, seed {head.seed}")
    for step in schedule([load.span for load in scenario.loads], [fault.span for fault in scenario.faults]):
        if step.what is What.LOAD_BEGINS:
            load = scenario.loads[step.number]
            many = f"{load.rate:g} RPC/s" if load.rate else f"{load.concurrency} under way"
            yield f"{step.at:9.3f} s  {load.name} begins: {load.size} B, {many}, for {load.seconds:g} s"
        else:
            what = "begins" if step.what is What.FAULT_BEGINS else "ends"
            yield f"{step.at:9.3f} s  {scenario.faults[step.number].text()} {what}"
    yield f"{scenario.seconds:9.3f} s  no more RPCs begin"


class _FromFile(Experiment[Options, Plan]):
    """Can be asked what it would do."""

    def add(self, commands: Subparsers) -> None:
        declare.add_command(commands, self.name, self.options, self._call, help=self.help,
                            description=self.description, epilog=self.examples)

    def _call(self, asked: Options) -> int:
        if not asked.check:
            return run_experiment(self, asked)
        print("\n".join(lines(self.check(asked).scenario)))
        return 0


EXPERIMENT = _FromFile(
    "scenario", help="loads and faults over time, as a file says", examples=_EXAMPLES,
    description="A network, transports, loads and faults over time, as a TOML file says. RPC/s and latency over "
                "time; every answer is compared.",
    options=Options, check=check, measure=measure, steps=steps, place=60,
    kinds=(Mode(picture.MODE, "p99", "99th percentile in us, faults and all"),
           Picture("scenario.png", picture.draw, "RPC/s and latency over time")))
