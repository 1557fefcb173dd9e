"""``smtnet reproduce``: figures and tables of the SMT paper, measured here, each beside what the paper has."""

from __future__ import annotations

import argparse

from workloads import experiments


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser], only: str | None = None) -> None:
    """Add ``reproduce`` and its figures, or of those the one asked for."""
    parser = commands.add_parser("reproduce", help="figures of the paper, measured here",
                                 description="Figures and claims of the SMT paper, measured here. Most need root.")
    figures = parser.add_subparsers(dest="figure", required=True, metavar="FIGURE")
    for experiment in experiments.asked("reproduce", only):
        experiment.add(figures)
