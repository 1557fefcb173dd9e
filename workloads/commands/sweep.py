"""``smtnet sweep FILE``: a grid of experiments by Dask, here or on a cluster, restartable, as one table."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from smtstack import quantities
from smtstack.exit_codes import EXIT_INTERRUPTED
from workloads.batch import sweep_page
from workloads.batch.grid import Sweep, read
from workloads.batch.state import State, exit_code
from workloads.batch.sweeping import Sweeping, cluster, require_dask
from workloads.options.declare import add_command, option
from workloads.results.progress import Progress
from workloads.results.report import PAGE

_EXAMPLES = """examples:
  smtnet sweep examples/sweeps/loss.toml --check
  smtnet sweep examples/sweeps/slowdown.toml --workers 2
  smtnet sweep examples/sweeps/loss.toml --scheduler tcp://10.0.0.1:8786

The file names a command, options that are fixed, and a grid of others (docs/sweep.md). Each point is a process of
its own. Ctrl-C stops it, and the same command goes on: what is finished is not done again. Results are in
results/<UTC time>-sweep-<name>/: sweep.csv, sweep.json, index.html, and under points/ what every point leaves.
exit code: 0 all done, 1 a point failed twice, 2 usage or a wrong file, 3 a machine lacks something, 4 a point was
           not faithful, 130 interrupted
"""


@dataclass(frozen=True)
class Options:
    """What ``smtnet sweep`` takes on its command line."""

    file: Path = option(type=Path, metavar="FILE", help="the sweep, in TOML")
    check: bool = option("--check", action="store_true", help="only read the file, and print every point")
    workers: int | None = option(
        "--workers", type=quantities.POSITIVE, metavar="N", either="where",
        help="points at a time on this machine (default: half of its processors; more disturb each other where "
             "time is measured)")
    scheduler: str | None = option("--scheduler", metavar="ADDR", either="where",
                                   help="a cluster's scheduler of Dask, as tcp://10.0.0.1:8786")
    new: bool = option("--new", action="store_true", help="begin anew, in a new folder")
    results: Path = option("--results", type=Path, default=Path("results"), metavar="DIR",
                           help="where the result folder is made, or found again (default: %(default)s)")
    json: bool = option("--json", action="store_true", help="one JSON object on stdout")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``sweep``."""
    add_command(commands, "sweep", Options, run, help="a grid of experiments, here or on a cluster, as one table",
                description="Run every point of a grid, as a TOML file says, by Dask.", epilog=_EXAMPLES)


def run(asked: Options) -> int:
    """The subcommand."""
    sweep = read(asked.file)
    if asked.check:
        return _show(asked, sweep)
    require_dask()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    settings = {"name": sweep.name, "command": sweep.head.command}
    with State.open(asked.results, f"sweep-{sweep.name}", settings, asked.new) as state, \
            Progress(f"sweep {sweep.name}", len(sweep.points)) as progress:
        work = Sweeping(sweep, state, progress)
        waiting = work.waiting()
        print(f"{len(sweep.points)} points, {len(sweep.points) - len(waiting)} finished; results: "
              f"{state.folder.path}", file=sys.stderr)
        interrupted = False
        try:
            if waiting:
                local = asked.workers or max(1, len(os.sched_getaffinity(0)) // 2)
                with cluster(local, asked.scheduler) as client:
                    work.run(client)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            whole = work.save()
        if interrupted:
            print(f"smtnet: interrupted after {whole['finished']} of {whole['points']} points; the same command "
                  "goes on", file=sys.stderr)
            return EXIT_INTERRUPTED
        print(json.dumps(whole) if asked.json else sweep_page.text(sweep, state))
        for point in sweep.points:
            member = state.member(point.key)
            if not member.status.finished:
                why = "; ".join(member.reasons)
                print(f"smtnet: {point.text()}: {member.status.value}: {why}", file=sys.stderr)
        print(f"report: {state.folder.path / PAGE}", file=sys.stderr)
        return exit_code(state.member(point.key) for point in sweep.points)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _show(asked: Options, sweep: Sweep) -> int:
    """``--check``."""
    if asked.json:
        print(json.dumps({"name": sweep.name, "points": [
            {**point.values, "repeat": point.repeat, "seed": point.seed,
             "command": shlex.join(["smtnet", *point.words])} for point in sweep.points]}))
    else:
        for point in sweep.points:
            print(shlex.join(["smtnet", *point.words]))
        print(f"{sweep.name}: {len(sweep.points)} points", file=sys.stderr)
    return 0
