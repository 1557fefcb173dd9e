"""Experiments: a module here that has an ``EXPERIMENT``, or the ``run`` of a folder that has one, is a command.

Nothing lists them. How to write one is in :mod:`workloads.experiments.experiment`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workloads.experiments.experiment import Experiment


def load(command: str | None = None) -> list[Experiment[Any, Any]]:
    """Every experiment, or those of one command (``run``, ``reproduce``), in the order of --help.

    Imports all of them: for commands that need an experiment, and for who reads any experiment's results.
    """
    found = [experiment for module in _modules()
             if (experiment := getattr(import_module(module), "EXPERIMENT", None)) is not None]
    return sorted((experiment for experiment in found if command in (None, experiment.command)),
                  key=lambda experiment: (experiment.place, experiment.name))


def _modules() -> Iterator[str]:
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        if not module.ispkg:
            yield module.name
            continue
        folder = import_module(module.name)
        yield from (inner.name for inner in pkgutil.iter_modules(folder.__path__, f"{module.name}.")
                    if inner.name == f"{module.name}.run")
