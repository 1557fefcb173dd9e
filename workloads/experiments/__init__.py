"""Experiments: a module here that has an ``EXPERIMENT``, or the ``run`` of a folder that has one, is a command.
Who has several, in ``EXPERIMENTS``, is as many.

Nothing lists them. One that is called as its file or folder is found without a look at the others. How to write
one is in :mod:`workloads.experiments.experiment`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workloads.experiments.experiment import Experiment


def load(command: str | None = None) -> list[Experiment[Any, Any]]:
    """Every experiment, or those of one command (``run``, ``reproduce``), in the order of --help.

    Imports all of them: for commands that need an experiment, and for who reads any experiment's results.
    """
    found = (experiment for module in _modules() for experiment in _experiments(module))
    return sorted((experiment for experiment in found if command in (None, experiment.command)),
                  key=lambda experiment: (experiment.place, experiment.name))


def asked(command: str, name: str | None) -> list[Experiment[Any, Any]]:
    """What a command has to know, ``name`` being the word after it: the experiment in the file or folder of that
    name; every one of the command if there is none. All of them take half as long again to import."""
    for module in _modules():
        if name is not None and name in module.split(".")[2:3]:
            for experiment in _experiments(module):
                if (experiment.command, experiment.name) == (command, name):
                    return [experiment]
    return load(command)


def _experiments(module: str) -> Sequence[Experiment[Any, Any]]:
    found = import_module(module)
    own = getattr(found, "EXPERIMENT", None)
    several: Sequence[Experiment[Any, Any]] = getattr(found, "EXPERIMENTS", ())
    return several if own is None else [own, *several]


def _modules() -> Iterator[str]:
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        if not module.ispkg:
            yield module.name
            continue
        folder = import_module(module.name)
        yield from (inner.name for inner in pkgutil.iter_modules(folder.__path__, f"{module.name}.")
                    if inner.name == f"{module.name}.run")
