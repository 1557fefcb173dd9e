"""``smtnet run``: experiments on emulated topologies."""

from __future__ import annotations

import argparse

from workloads import experiments


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``run`` and its experiments."""
    parser = commands.add_parser("run", help="experiments on emulated topologies",
                                 description="Experiments on emulated topologies. Need root.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="WHAT")
    for experiment in experiments.load("run"):
        experiment.add(actions)
