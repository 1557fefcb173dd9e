"""``smtnet demo``: the experiment that is a command of its own."""

from __future__ import annotations

import argparse

from workloads.experiments.demo import EXPERIMENT


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``demo``."""
    EXPERIMENT.add(commands)
