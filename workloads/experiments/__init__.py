"""Experiments: a module here that has an ``EXPERIMENT``, or the ``run`` of a folder that has one, is a command.

Nothing lists them. One that is called as its file or folder is found without a look at the others. How to write
one is in :mod:`workloads.experiments.experiment`.
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
    found = (_experiment(module) for module in _modules())
    return sorted((experiment for experiment in found
                   if experiment is not None and command in (None, experiment.command)),
                  key=lambda experiment: (experiment.place, experiment.name))


def asked(command: str, name: str | None) -> list[Experiment[Any, Any]]:
    """What a command has to know, ``name`` being the word after it: the experiment in the file or folder of that
    name (with ``_`` for ``-``); every one of the command if there is none. All of them take half as long again to
    import."""
    for module in _modules():
        if name is not None and name.replace("-", "_") in module.split(".")[2:3]:
            experiment = _experiment(module)
            if experiment is not None and (experiment.command, experiment.name) == (command, name):
                return [experiment]
    return load(command)


def _experiment(module: str) -> Experiment[Any, Any] | None:
    return getattr(import_module(module), "EXPERIMENT", None)


def _modules() -> Iterator[str]:
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        if not module.ispkg:
            yield module.name
            continue
        folder = import_module(module.name)
        yield from (inner.name for inner in pkgutil.iter_modules(folder.__path__, f"{module.name}.")
                    if inner.name == f"{module.name}.run")
