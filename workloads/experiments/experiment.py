"""What an experiment is, and the one way in which all of them run.

An experiment is one module of this folder with an ``EXPERIMENT``; nothing else has to be edited::

    @dataclass(frozen=True)
    class Options:
        count: int = option("--count", type=quantities.POSITIVE, default=9, metavar="N", help="RPCs (default: 9)")
        network: Network = group(Network)
        end: JudgedResults = group(JudgedResults)

    def check(options: Options) -> Options:           # before a network is made: ConfigError, Unsupported
        options.network.check("star,4")
        return options

    def measure(options: Options, running: Running) -> Outcome:
        with running.network(options.network, "star,4") as net:
            rows = [...]                              # one for each trial: workloads/results/row.py
        return Outcome(rows, result={"points": ...}, text="for people", files={"toy.csv": ...})

    EXPERIMENT = Experiment(
        "toy", command="run", help="a toy", description="What it measures.", examples="examples:\\n ...",
        options=Options, check=check, measure=measure,
        kinds=(Mode("toy", "p99", "99th percentile in us"), Picture("toy.png", draw, "A toy")))

- ``options`` (:mod:`workloads.options.declare`) is a frozen dataclass, one group of which is a
  :class:`~workloads.options.common.Reported`: where results go, and what exit code an unfaithful run has.
- ``check`` makes of it the plan, whatever ``measure`` wants to be told; what the user left open is filled in here
  (``dataclasses.replace``). It runs again in the sandbox.
- ``measure`` measures, and says what has come out: an :class:`Outcome`. SmtErrors end the run, with their exit
  code.
- ``published`` (:mod:`workloads.results.published`) says which published figure it is; ``smtnet reproduce all``
  takes it among its steps then.
- ``kinds`` (:mod:`workloads.results.kinds`) is what a report must know of its rows: how a mode is judged,
  pictures, texts.

:func:`run` does everything else: the sandbox, the folder, progress, run.json, results.csv, the page with the
pictures, what is printed, the exit code.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from smtstack import compiled
from smtstack.exit_codes import EXIT_FAILED, EXIT_UNFAITHFUL
from topo import sandbox
from topo.network import SmtNet
from topo.topologies import SmtTopo
from workloads.options import declare
from workloads.options.common import Reported
from workloads.options.network import Network
from workloads.results import plots, published, report
from workloads.results.environment import environment
from workloads.results.folder import DIRECTORY, REPEATS, ResultFolder
from workloads.results.kinds import Kind, register
from workloads.results.points import overall
from workloads.results.progress import Progress
from workloads.results.published import Beside, Published
from workloads.results.row import Row, Verdict
from workloads.results.table import print_table

O = TypeVar("O")  # noqa: E741 - options
P = TypeVar("P")
Subparsers = argparse._SubParsersAction


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out of an experiment."""

    rows: Sequence[Row] = ()
    """A row for each trial. Without any there is no results.csv and no page."""
    result: Mapping[str, Any] = field(default_factory=dict)
    """``--json``; the verdict of fidelity and the folder are added."""
    text: str = ""
    """What people get in place of ``--json``, below the table of the rows."""
    table: bool = True
    """Whether people get the table of the rows."""
    failed: str = ""
    """What failed, in a line; then the exit code is 1."""
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    """Contents of further files of the result folder, by their names."""
    flat: Sequence[Mapping[str, Any]] | None = None
    """The rows as results.csv has them, where they do not fit it as they are."""
    parameters: Any = None
    """What run.json has under ``parameters``: the options as they were filled in, or a mapping instead of them.
    None: the options as they were read."""
    setting: Mapping[str, Any] = field(default_factory=dict)
    """Stands in run.json beside the parameters."""
    seed: int | None = 1
    fidelity: Verdict | None = None
    """The verdict, if it is not that of the rows."""
    remarks: Sequence[str] = ()
    """What else is to be said on stderr, a line each."""
    published: Sequence[Beside] = ()
    """The experiment's values beside published ones: published.json of the folder."""


@dataclass(frozen=True, slots=True)
class Running:
    """What a measurement is given."""

    folder: ResultFolder
    progress: Progress

    def network(self, network: Network, topo: str | SmtTopo, seed: int = 1) -> AbstractContextManager[SmtNet]:
        """A network of these options that runs; ``seed`` is of its faults."""
        return network.open(topo, seed, self.folder, self.progress)


@dataclass(frozen=True, kw_only=True)
class Experiment(Generic[O, P]):
    """One experiment; see the module on how to write it."""

    name: str = field(kw_only=False)
    help: str
    options: type[O]
    check: Callable[[O], P]
    """Everything that can be checked before a network is made, and the plan of it. Raises
    :class:`~smtstack.errors.ConfigError`, :class:`~smtstack.errors.Unsupported`."""
    measure: Callable[[P, Running], Outcome]
    command: str = "run"
    description: str = ""
    examples: str = ""
    kinds: tuple[Kind, ...] = ()
    """What a report must know of its rows."""
    steps: Callable[[P], tuple[str, int | None]] | None = None
    """(what progress is of, how many steps it has); by default its name, and nobody knows."""
    folder: str = ""
    """What its result folders are called, if not by its name."""
    sandboxed: bool = True
    """Whether it makes networks, so needs root and namespaces of its own."""
    needs_pictures: bool = False
    """Without matplotlib it is refused beforehand."""
    ends_with: str = "report"
    """What stderr names at the end: ``report``, the page, or ``results``, the folder."""
    place: int = 100
    """In --help, lowest first."""
    published: Published | None = None
    """What it stands beside. Who says so is a step of ``smtnet reproduce all``, as is every experiment of command
    ``reproduce``."""

    def __post_init__(self) -> None:
        register(*self.kinds)

    def add(self, commands: Subparsers) -> None:
        """Add it to the (sub)commands."""
        declare.add_command(commands, self.name, self.options, lambda options: run(self, options),
                            help=self.help, description=self.description or self.help, epilog=self.examples)


def run(experiment: Experiment[O, P], options: O) -> int:
    """From options to the exit code."""
    end = declare.part(options, Reported)
    assert end is not None, f"{experiment.name}: no group of its options is a Reported"
    if experiment.needs_pictures:
        plots.require_matplotlib()
    plan = experiment.check(options)
    if experiment.sandboxed and not sandbox.inside():
        code = sandbox.enter()
        if code is not None:
            return code
    folder = ResultFolder.create(experiment.folder or experiment.name, end.results)
    title = f"{experiment.command} {experiment.name}".strip()
    what, steps = experiment.steps(plan) if experiment.steps else (title, None)
    with Progress(what, steps) as progress:
        outcome = experiment.measure(plan, Running(folder, progress))
        progress.say("pictures and report")
        verdict = save(experiment, options, outcome, folder)
    return conclude(experiment, outcome, folder, verdict, end)


def save(experiment: Experiment[O, P], options: O, outcome: Outcome, folder: ResultFolder) -> Verdict:
    """Everything that stays, in ``folder``, handed over to the user; the verdict on the whole run. Without rows
    there is no results.csv and no report."""
    for name, content in outcome.files.items():
        folder.write(name, content)
    if outcome.published:
        folder.write(published.FILE, published.as_json(outcome.published))
    asked = outcome.parameters
    if not isinstance(asked, Mapping):
        words = {"command": experiment.command, "action": experiment.name}
        asked = {**words, **declare.as_dict(options if asked is None else asked)}
    verdict = overall(outcome.rows) if outcome.fidelity is None else outcome.fidelity
    repeats = os.environ.get(REPEATS)
    folder.write_run({**asked, **outcome.setting, **({"repeats": repeats} if repeats else {})},
                     {**environment(), DIRECTORY: str(Path.cwd())}, outcome.seed, verdict, outcome.rows)
    if outcome.rows:
        folder.write_csv(outcome.rows if outcome.flat is None else outcome.flat)
        report.make(folder)
    folder.hand_over()
    return verdict


def conclude(experiment: Experiment[O, P], outcome: Outcome, folder: ResultFolder, verdict: Verdict,
             end: Reported) -> int:
    """Say what came out, on stdout and stderr; the exit code."""
    if end.json:
        print(json.dumps({**outcome.result, "fidelity": verdict,
                          "protocol_code": compiled.description(), "results": str(folder.path)}))
    else:
        if outcome.table:
            print_table(outcome.rows)
        if outcome.text:
            print(outcome.text)
        print(f"protocol code: {compiled.description()}", file=sys.stderr)
    for line in outcome.remarks:
        print(line, file=sys.stderr)
    place = folder.path / report.PAGE if experiment.ends_with == "report" else folder.path
    print(f"{experiment.ends_with}: {place}", file=sys.stderr)
    if outcome.failed:
        print(f"smtnet: {outcome.failed}", file=sys.stderr)
        return EXIT_FAILED
    for reason in () if verdict["ok"] else verdict["reasons"]:
        print(f"smtnet: not faithful: {reason}", file=sys.stderr)
    return EXIT_UNFAITHFUL if end.judged and not verdict["ok"] else 0
