"""The end of every experiment: its results in their folder, and what it exits with."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from smtstack.exit_codes import EXIT_FAILED, EXIT_UNFAITHFUL
from workloads.results import report
from workloads.results.environment import environment
from workloads.results.folder import ResultFolder
from workloads.results.points import overall
from workloads.results.row import Row, Verdict

#: Of run.json's environment: the folder in which the command was typed, from which its paths are.
DIRECTORY = "directory"
#: Set while a run is repeated, to the folder of the first one; "repeats" of run.json's parameters.
REPEATS = "SMTNET_REPEATS"


def save(parameters: Mapping[str, Any], folder: ResultFolder, rows: Sequence[Row], seed: int | None, *,
         flat: Sequence[Mapping[str, Any]] | None = None, verdict: Verdict | None = None) -> Verdict:
    """run.json, results.csv and the report, handed over to the user; the verdict on the whole run, by default that
    of the rows. Without rows there is no results.csv and no report.

    ``flat`` are the rows as results.csv has them, where they do not fit it as they are. Other files have to be
    there before, for the report to name them.
    """
    verdict = overall(rows) if verdict is None else verdict
    repeats = os.environ.get(REPEATS)
    folder.write_run({**parameters, **({"repeats": repeats} if repeats else {})},
                     {**environment(), DIRECTORY: str(Path.cwd())}, seed, verdict, rows)
    if rows:
        folder.write_csv(rows if flat is None else flat)
        report.make(folder)
    folder.hand_over()
    return verdict


def first_error(rows: Iterable[Row]) -> str:
    """What the first client said that had one; "": none did, however wrong the answers were."""
    return next((str(row["first_error"]) for row in rows if row.get("first_error")), "")


def session_lines(rows: Iterable[Row]) -> list[str]:
    """How the sessions of smt began since the clients were started, a line for each way; there may be none."""
    last = {(row["session"]["mode"], row.get("variant")): row for row in rows if "session" in row}
    lines = []
    for row in last.values():
        counts = dict(row["session"])
        mode = counts.pop("mode")
        said = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.items() if count)
        where = f"; tickets from the DNS server on {row['dns']}" if "dns" in row else ""
        lines.append(f"sessions: {mode}; {said}{where}")
    return list(dict.fromkeys(lines))


def exit_code(verdict: Mapping[str, Any], failed: str, judged: bool) -> int:
    """Says on stderr what ``failed``, or else why the run was not faithful; if ``judged``, it has failed then."""
    if failed:
        print(f"smtnet: {failed}", file=sys.stderr)
        return EXIT_FAILED
    if verdict["ok"]:
        return 0
    for reason in verdict["reasons"]:
        print(f"smtnet: not faithful: {reason}", file=sys.stderr)
    return EXIT_UNFAITHFUL if judged else 0
