"""``smtnet reproduce all``: every published figure and table there is, one after another, restartable."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from smtstack import quantities
from smtstack.exit_codes import EXIT_INTERRUPTED
from workloads.batch import host_file, page
from workloads.batch.reproduction import Reproduction
from workloads.batch.state import Member, State
from workloads.batch.steps import Step, chosen, steps
from workloads.options.declare import add_command, option
from workloads.results.plots import require_matplotlib
from workloads.results.report import PAGE

_EXAMPLES = """examples:
  smtnet reproduce all --list
  smtnet reproduce all --quick
  smtnet reproduce all --quick --only fig6,table2
  smtnet reproduce all --again fig12

Ctrl-C stops it, and the same command goes on: what is finished is not done again (--again STEP does one again,
--new begins a new folder). Results are in results/<UTC time>-reproduce/, with --quick -reproduce-quick/:
index.html, summary.txt, state.json, and under steps/ what every step leaves. What is particular to a machine is
read from hosts/<its name>.toml; docs/reproduce.md has an example.
exit code: 0 all done, 1 a step failed twice, 3 this machine lacks something for a step, 4 a step was not faithful,
           130 interrupted
"""


def _names(text: str) -> list[str]:
    """``fig6,table2``."""
    return [name.strip() for name in text.split(",") if name.strip()]


@dataclass(frozen=True)
class Options:
    """What ``smtnet reproduce all`` takes on its command line."""

    quick: bool = option("--quick", action="store_true", help="the short form of every step")
    only: list[list[str]] = option("--only", type=_names, action="append", default=[], metavar="STEP,...",
                                   help="these steps alone (repeatable)")
    redo: list[list[str]] = option("--again", type=_names, action="append", default=[], metavar="STEP,...",
                                   help="also those of these that are finished (repeatable)")
    new: bool = option("--new", action="store_true", help="begin anew, in a new folder")
    show: bool = option("--list", action="store_true", help="only say which steps there are, and what is finished")
    hosts: Path = option("--hosts", type=Path, default=Path("hosts"), metavar="DIR",
                         help="where <name of this machine>.toml is (default: %(default)s)")
    timeout: float | None = option("--timeout", type=quantities.SECONDS, metavar="S",
                                   help="a step that takes longer has failed (default: an hour, quick: 10 min)")
    results: Path = option("--results", type=Path, default=Path("results"), metavar="DIR",
                           help="where the result folder is made, or found again (default: %(default)s)")
    json: bool = option("--json", action="store_true", help="one JSON object on stdout")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``all`` to the figures."""
    add_command(commands, "all", Options, run, help="every figure and table there is; restartable",
                description="Every experiment that stands beside something published, one after another, each in "
                            "a process of its own.", epilog=_EXAMPLES)


def run(asked: Options) -> int:
    """The subcommand."""
    known = steps(asked.quick)
    only, again = ([name for names in found for name in names] for found in (asked.only, asked.redo))
    picked = chosen(known, [*only, *again] if only else [])
    chosen(known, again)
    host = host_file.read(asked.hosts, [step.name for step in known])
    if asked.timeout is not None:
        host = host_file.with_timeout(host, asked.timeout)
    settings = {"quick": asked.quick, "host": host.name}
    name = "reproduce-quick" if asked.quick else "reproduce"
    if asked.show:
        return _show(asked, State.look(asked.results, name, settings), known)
    require_matplotlib()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    with State.open(asked.results, name, settings, asked.new) as state:
        work = Reproduction(state, known, host, asked.quick)
        try:
            work.run(picked, again)
        except KeyboardInterrupt:
            left = [step.name for step in picked if not work.finished(step)]
            print(f"smtnet: interrupted; the same command goes on with {', '.join(left)}", file=sys.stderr)
            return EXIT_INTERRUPTED
        finally:
            made = page.make(state, known, host, work.environment)
        code = work.exit_code(picked)
        _tell(asked, state, known, code)
        print(f"report: {made}", file=sys.stderr)
        return code


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _show(asked: Options, state: State | None, known: Sequence[Step]) -> int:
    """``--list``."""
    members = {} if state is None else state.members
    if asked.json:
        print(json.dumps({"folder": None if state is None else str(state.folder.path), "steps": [
            {"name": step.name, "title": step.title, "published": step.published.source,
             "command": shlex.join(["smtnet", *step.words]), "needs_root": step.needs_root,
             "status": members.get(step.name, Member()).status.value} for step in known]}))
    else:
        print(page.table(members, known))
        if state is not None:
            print(f"so far: {state.folder.path}", file=sys.stderr)
    return 0


def _tell(asked: Options, state: State, known: Sequence[Step], code: int) -> None:
    if asked.json:
        found: list[dict[str, Any]] = []
        for step in known:
            member = state.members.get(step.name, Member())
            found.append({"name": step.name, "status": member.status.value, "seconds": member.seconds,
                          "tries": member.tries, "reasons": member.reasons, "folder": member.folder})
        print(json.dumps({"folder": str(state.folder.path), "page": str(state.folder.path / PAGE), "code": code,
                          "steps": found}))
    else:
        print(page.table(state.members, known))
