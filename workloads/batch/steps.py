"""The steps of ``smtnet reproduce all``: every experiment that says it stands beside something published."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from smtstack.errors import ConfigError
from workloads import experiments
from workloads.experiments.experiment import Experiment
from workloads.options import declare
from workloads.results.published import Published


@dataclass(frozen=True, slots=True)
class Step:
    """One figure or table."""

    name: str
    title: str
    words: tuple[str, ...]
    """The command line after ``smtnet``, without where results go."""
    published: Published
    needs_root: bool


def steps(quick: bool) -> list[Step]:
    """All that there are, in the order of --help: experiments of ``smtnet reproduce``, then others that say what
    they stand beside."""
    found = [experiment for experiment in experiments.load()
             if experiment.command == "reproduce" or experiment.published is not None]
    found.sort(key=lambda experiment: experiment.command != "reproduce")
    return [_step(experiment, quick) for experiment in found]


def _step(experiment: Experiment[Any, Any], quick: bool) -> Step:
    published = experiment.published or Published()
    words = published.words
    if quick:
        flags = {flag for _name, flags, _words in declare.flat(experiment.options) for flag in flags}
        shorter = (*words, "--quick") if "--quick" in flags else words
        words = shorter if published.quick is None else published.quick
    command = filter(None, (experiment.command, experiment.name))
    return Step(experiment.name, experiment.help, (*command, *words), published, experiment.sandboxed)


def chosen(known: list[Step], names: Collection[str]) -> list[Step]:
    """The steps of these names; all if there are none. Raises :class:`ConfigError` for a name that no step has."""
    by_name = {step.name: step for step in known}
    for name in names:
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(f"there is no step {name!r}; {hint}there are {', '.join(by_name)}")
    return [step for step in known if not names or step.name in names]
