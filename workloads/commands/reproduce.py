"""``smtnet reproduce``: published figures and tables, measured here, each beside what was published."""

from __future__ import annotations

import argparse

from workloads import experiments
from workloads.commands import reproduce_all


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser], only: str | None = None) -> None:
    """Add ``reproduce`` and its figures, or of those the one asked for."""
    parser = commands.add_parser(
        "reproduce", help="published figures, measured here",
        description="Published figures and claims, measured here; 'all' is one after another. Most need root.")
    figures = parser.add_subparsers(dest="figure", required=True, metavar="FIGURE")
    found = experiments.asked("reproduce", only)
    for experiment in found:
        experiment.add(figures)
    if only not in [experiment.name for experiment in found]:
        reproduce_all.add_parser(figures)
