"""``smtnet run storage``: what protected storage costs the key-value store, and SQLite.

The store's server keeps each change on the disk before it is acknowledged, in every way there is; all servers stay
up and their trials take turns, so a ratio is of figures of the same minutes. SQLite does its speed test in this
process, on the same disk.
"""

from __future__ import annotations

import sqlite3
import statistics
import tempfile
import textwrap
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from smtstack import quantities
from smtstack.errors import ConfigError, SmtError, Unsupported
from smtstack.storage.files import Protection
from smtstack.storage.keys import make_key_file, read_key_file
from workloads import transports
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.fleet.kv import KvFleet
from workloads.fleet.kv_storage import NONE, STORAGE
from workloads.fleet.setup import Setup
from workloads.kv.aof import FSYNC
from workloads.kv.client import require_hiredis
from workloads.load import sqlite_speed
from workloads.load.ycsb_load import LOAD_PHASE, YcsbLoad
from workloads.options.common import PlainResults, positive
from workloads.options.declare import group, option
from workloads.options.network import Network
from workloads.results.folder import csv_text
from workloads.results.kinds import Mode, Picture
from workloads.results.plots import HEIGHT, new_figure, y_axis
from workloads.results.published import Published
from workloads.results.row import Row

MODE = "storage"
#: Whose figures the others are divided by.
YARDSTICK = "plain"
#: A value that all records hold a piece of.
_CANARY = b"field0"

_EXAMPLES = """examples:
  smtnet run storage --quick
  smtnet run storage --trials 5 --fsync always --json
  smtnet run storage --storage plain,aead+fresh --transport tcp --sqlite-rows 0

Writes results/<UTC time>-storage/: storage.csv, storage.png, and what every run leaves. The logs are in that
folder while it runs: their disk is what is measured.
"""


def _names(text: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(text.split(",")))
    unknown = [name for name in found if name not in STORAGE]
    if unknown:
        raise ConfigError(f"--storage {unknown[0]}: there are {', '.join(STORAGE)}")
    return found


@dataclass(frozen=True)
class Options:
    """What ``smtnet run storage`` takes on its command line."""

    storage: str = option("--storage", default=",".join(STORAGE), metavar="NAME,...",
                          help="; ".join(f"{name}: {about}" for name, (*_how, about) in STORAGE.items())
                          + " (default: all)")
    transport: str = option("--transport", choices=transports.NAMES, default="smt",
                            help="(default: %(default)s)")
    fsync: str = option("--fsync", choices=FSYNC, default="always",
                        help="when changes must be on the disk (default: %(default)s, before they are "
                             "acknowledged)")
    workload: str = option("--workload", default="a", metavar="X", help="YCSB's (default: %(default)s)")
    clients: int = option("--clients", type=positive, default=16, metavar="N",
                          help="operations under way (default: %(default)s)")
    trials: int | None = option("--trials", type=positive, metavar="N",
                                help="the median of their ratios counts (default: 3)")
    sqlite_rows: int | None = option("--sqlite-rows", type=quantities.NOT_NEGATIVE, metavar="N",
                                     help="rows of a table in SQLite's speed test; 0: none (default: 5000)")
    quick: bool = option("--quick", action="store_true", help="one short trial, small tables")
    network: Network = group(Network)
    end: PlainResults = group(PlainResults)


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often."""

    asked: Options
    names: tuple[str, ...]
    trials: int
    records: int
    seconds: float
    sqlite_rows: int


def check(asked: Options) -> Plan:
    """Fill in what the user left open."""
    require_hiredis()
    names = _names(asked.storage)
    asked.network.check("back2back")
    rows = asked.sqlite_rows if asked.sqlite_rows is not None else 500 if asked.quick else 5000
    if rows:
        _require_apsw()
    return Plan(asked, names, asked.trials or (1 if asked.quick else 3), 200 if asked.quick else 2000,
                0.5 if asked.quick else 3.0, rows)


def _require_apsw() -> None:
    try:
        import apsw
    except ImportError:
        raise Unsupported("SQLite on protected storage needs apsw: make venv, or pip install apsw; without: "
                          "--sqlite-rows 0") from None
    del apsw


def measure(plan: Plan, running: Running) -> Outcome:
    """Everything."""
    rows, facts = _kv(plan, running)
    kv = _compared({name: [row["rpc_per_s"] for row in rows if row["variant"] == name] for name in plan.names})
    speed = _sqlite(plan, running) if plan.sqlite_rows else {}
    sqlite = _compared({name: [1 / sum(trial.values()) for trial in trials] for name, trials in speed.items()})
    table = [{"of": "kv", "storage": name, "per_s": round(figure, 1), "ratio": ratio, **facts[name]}
             for name, (figure, ratio) in kv.items()]
    table += [{"of": "sqlite", "storage": name, "per_s": round(figure, 4), "ratio": ratio}
              for name, (figure, ratio) in sqlite.items()]
    seconds = {name: {part: round(statistics.median(trial[part] for trial in trials), 4) for part in trials[0]}
               for name, trials in speed.items()}
    columns = list(dict.fromkeys(name for line in table for name in line))
    files: dict[str, str | bytes] = {
        "storage.csv": csv_text([{name: line.get(name, "") for name in columns} for line in table])}
    return Outcome(rows, {"points": table, "sqlite_seconds": seconds}, as_text(table, seconds), table=False,
                   files=files, setting={"yardstick": YARDSTICK},
                   parameters={"storage": plan.names, "trials": plan.trials, "fsync": plan.asked.fsync,
                               "transport": plan.asked.transport, "clients": plan.asked.clients,
                               "workload": plan.asked.workload, "sqlite_rows": plan.sqlite_rows})


def _kv(plan: Plan, running: Running) -> tuple[list[Row], dict[str, dict[str, Any]]]:
    """A row for each trial; and what is to be said of each log."""
    asked = plan.asked
    rows: list[Row] = []
    facts: dict[str, dict[str, Any]] = {}
    setup = Setup(asked.transport, "sw", "one", 1)
    size: dict[str, Any] = {"size": "1024", "records": plan.records}
    with running.network(asked.network, "back2back") as net, ExitStack() as stack:
        hosts = running.folder.path / "hosts"
        fleets = [stack.enter_context(KvFleet(net, "back2back", setup, hosts / name, number, storage=name,
                                              fsync=asked.fsync)) for number, name in enumerate(plan.names)]
        for fleet in fleets:
            running.progress.step(f"{fleet.storage}: loading {plan.records} records")
            fleet.load(YcsbLoad(phase=LOAD_PHASE, count=plan.records, warm_up=0, concurrency=16, **size))
        for trial in range(1, plan.trials + 1):
            for fleet in fleets:
                name = f"{fleet.storage}, trial {trial}"
                running.progress.step(name)
                load = YcsbLoad(workload=asked.workload, count=None, seconds=plan.seconds,
                                concurrency=asked.clients, seed=trial, **size)
                measured = fleet.measure(load, trial)
                row = cast("dict[str, Any]", measured.row)
                row["mode"], row["variant"] = MODE, fleet.storage
                rows.append(measured.row)
                if row["errors"] or not row["content_ok"]:
                    raise SmtError(f"{name}: {row.get('first_error', 'wrong values')}")
        for fleet in fleets:
            kept = fleet.kept
            facts[fleet.storage] = {} if kept is None else {
                "log_mb": round(kept.size() / 1e6, 2), "readable": kept.holds(_CANARY)}
    return rows, facts


def _sqlite(plan: Plan, running: Running) -> dict[str, list[dict[str, float]]]:
    """Seconds of each part, by storage and trial."""
    from smtstack.storage.sqlite import open_database

    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(dir=running.folder.path) as folder:
        key = Path(folder) / "key"
        make_key_file(key)
        for trial in range(plan.trials):
            for name in plan.names:
                if name == NONE:
                    continue
                running.progress.step(f"SQLite, {name}, trial {trial + 1}")
                mode, freshness, _about = STORAGE[name]
                path, state = Path(folder) / f"{name}-{trial}.db", Path(folder) / f"{name}-{trial}.state"
                if name == "file":
                    connection: Any = sqlite3.connect(path, isolation_level=None)
                else:
                    connection = open_database(path, Protection(
                        read_key_file(key), mode, state if freshness else None, freshness or "sealed"))
                try:
                    found.setdefault(name, []).append(sqlite_speed.run(connection, plan.sqlite_rows))
                finally:
                    connection.close()
                path.unlink()
    return found


def _compared(figures: dict[str, list[float]]) -> dict[str, tuple[float, float | None]]:
    """By name: the median, and the median of the trials' ratios to the yardstick's same trials."""
    yardstick = figures.get(YARDSTICK)
    return {name: (statistics.median(values), None if yardstick is None else round(statistics.median(
        a / b for a, b in zip(values, yardstick, strict=True)), 3)) for name, values in figures.items()}


def as_text(table: Sequence[dict[str, Any]], seconds: dict[str, dict[str, float]]) -> str:
    """For people."""
    lines = [f"{'':<20}{'operations/s':>14}{'of plain':>10}{'log MB':>10}  readable on the disk"]
    for line in table:
        if line["of"] == "kv":
            ratio = "" if line["ratio"] is None else f"{line['ratio']:.2f}"
            readable = {True: "yes", False: "no", None: ""}[line.get("readable")]
            lines.append(f"kv, {line['storage']:<16}{line['per_s']:>14,.0f}{ratio:>10}{line.get('log_mb', ''):>10}"
                         f"  {readable}")
    if seconds:
        names = list(seconds)
        lines.append(f"{'SQLite, seconds':<28}" + "".join(f"{name:>16}" for name in names))
        lines += [f"{part:<28}" + "".join(f"{seconds[name][part]:>16.3f}" for name in names)
                  for part in seconds[names[0]]]
        ratios = {line["storage"]: line["ratio"] for line in table if line["of"] == "sqlite"}
        lines.append(f"{'speed, of plain':<28}" + "".join(f"{ratios[name] or 0:>16.2f}" for name in names))
    return "\n".join(lines)


def draw(rows: Sequence[Row], path: Path) -> bool:
    """Operations per second of the store, by storage. False: no such rows, no file."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["mode"] == MODE:
            found.setdefault(str(row["variant"]), []).append(row["rpc_per_s"])
    if not found:
        return False
    figure = new_figure(8, HEIGHT)
    axes = figure.subplots()
    for place, values in enumerate(found.values()):
        middle = statistics.median(values)
        axes.bar([place], [middle], 0.7, yerr=[[middle - min(values)], [max(values) - middle]], capsize=3)
    axes.set_xticks(range(len(found)), list(found), fontsize=8)
    axes.set_ylabel("operations per second")
    y_axis(axes, log=False)
    figure.suptitle("bar: middle trial; line: lowest to highest", fontsize=8.5, color="0.25", x=0.01, ha="left")
    figure.savefig(path)
    return True


EXPERIMENT = Experiment(
    "storage", help="what protected storage costs the key-value store and SQLite",
    description=textwrap.fill(
        "YCSB against a key-value server that keeps what it has in memory, in a plain file, or on protected "
        "storage in all modes, and SQLite's speed test on the same: operations per second, as ratios to blocks "
        "without encryption. docs/storage.md says what each mode protects from.", 100),
    examples=_EXAMPLES, options=Options, check=check, measure=measure, place=60, ends_with="results",
    steps=lambda plan: ("run storage", len(plan.names) * (1 + 2 * plan.trials)),
    published=Published(
        "rkt-io (EuroSys 2021), Fig. 7: SQLite's speed test, and Redis under YCSB A",
        "the encrypted disk is a file of ours in sectors of 4 KB; where rkt-io has AES-XTS alone by default, "
        "integrity and freshness are here in steps",
        not_comparable="seconds and operations: there the database is in an SGX enclave on NVMe. Its values are "
                       "not quoted: what stands here is by how much each mode slows the same disk"),
    kinds=(Mode(MODE, heading="operations/s"), Picture("storage.png", draw, "Operations per second, by storage")))
