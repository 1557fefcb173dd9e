"""``smtnet demo``."""

from workloads.experiments.demo import add_parser

__all__ = ["add_parser"]
