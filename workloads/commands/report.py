"""``smtnet report``."""

from workloads.results.report import add_parser

__all__ = ["add_parser"]
