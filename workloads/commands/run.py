"""``smtnet run``."""

from workloads.experiments.echo import add_parser

__all__ = ["add_parser"]
