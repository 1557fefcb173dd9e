"""``smtnet report``: the report of a result folder, made again from its run.json."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from workloads import experiments
from workloads.results.folder import LATEST, ResultFolder
from workloads.results.points import overall, points
from workloads.results.report import make
from workloads.results.table import print_table

_EXAMPLES = """examples:
  smtnet report                                    # the newest run
  smtnet report results/20261120T121530Z-demo --json
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``report``."""
    parser = commands.add_parser(
        "report", help="pictures and page of a result folder, again", epilog=_EXAMPLES,
        description="Draw the pictures and write the page of a result folder from its run.json. Needs no root "
                    "and measures nothing.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("results", LATEST), metavar="DIR",
                        help="a folder that smtnet run, demo or bench wrote (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The subcommand; 0 also for a run that was not faithful: the page says it."""
    experiments.load()
    folder = ResultFolder.open(args.folder)
    page, pictures, missing = make(folder)
    if missing:
        print(f"smtnet: {missing}", file=sys.stderr)
    rows = folder.read_run().results
    if args.json:
        print(json.dumps({"folder": str(folder.path), "page": str(page), "pictures": [str(p) for p in pictures],
                          "fidelity": overall(rows), "failed": sum(point.failed for point in points(rows))}))
    else:
        print_table(rows)
        print(f"{page}", file=sys.stderr)
    return 0
