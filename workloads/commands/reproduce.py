"""``smtnet reproduce``: figures and tables of the SMT paper, measured here, each beside what the paper has."""

from __future__ import annotations

import argparse

from workloads.experiments import fig8
from workloads.experiments.fig12 import run as fig12
from workloads.experiments.padding import run as padding_cost
from workloads.experiments.sessions import run as sessions
from workloads.experiments.table2 import run as handshake_cost


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``reproduce`` and its subcommands."""
    parser = commands.add_parser("reproduce", help="figures of the paper, measured here",
                                 description="Figures and claims of the SMT paper, measured here. Most need root.")
    figures = parser.add_subparsers(dest="figure", required=True, metavar="FIGURE")
    for figure in (fig8, fig12, handshake_cost, padding_cost, sessions):
        figure.add_figure(figures)
