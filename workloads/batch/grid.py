"""The file of a sweep: which command, with which options, over which grid; docs/sweep.md has all of it."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from smtstack import quantities
from smtstack.errors import ConfigError, Unsupported
from workloads import experiments
from workloads.experiments.experiment import Experiment
from workloads.options import declare, tables
from workloads.options.declare import option

MOST_POINTS = 100_000
TABLES = ("fixed", "grid")
SEED = "seed"
#: What the sweep itself says to every command.
_OURS = ("results", "json", SEED)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Head:
    """What stands before the first table."""

    command: str = option("--command", metavar="C", help="the command whose options the tables have, as run echo")
    name: str = option("--name", default="", metavar="N", help="what it is called (default: the file's name)")
    seed: int = option("--seed", type=quantities.NOT_NEGATIVE, default=1,
                       help="of which every point's own seed is made (default: %(default)s)")
    repeats: int = option("--repeats", type=quantities.POSITIVE, default=1, metavar="N",
                          help="how often each point is run, each time with another seed (default: %(default)s)")
    same_seed: list[str] = option("--same-seed", action="append", default=[], metavar="AXIS",
                                  help="an axis along which the seed stays the same, as transport (repeatable)")
    columns: list[str] = option("--columns", action="append", default=[], metavar="NAME",
                                help="what tables for people show, as rtt_us.p50 (default: numbers that differ)")
    timeout: float = option("--timeout", type=quantities.SECONDS, default=600.0, metavar="S",
                            help="a point that takes longer has failed (default: %(default)s)")


@dataclass(frozen=True, slots=True)
class Point:
    """One run."""

    values: dict[str, Any]
    """Where it is: a value for each axis."""
    repeat: int
    """From 1."""
    seed: int | None
    """None: the command has no option for it."""
    words: tuple[str, ...]
    """The command line after ``smtnet``, without where results go."""

    @property
    def key(self) -> str:
        """The point's name in the state: it changes with the command line, and with nothing else."""
        return hashlib.sha256(json.dumps([self.words, self.repeat]).encode()).hexdigest()[:16]

    def text(self) -> str:
        """For people."""
        where = ", ".join(f"{axis} {_text(value)}" for axis, value in self.values.items())
        return f"{where or 'the one point'}, repeat {self.repeat}" if self.repeat > 1 else where or "the one point"


@dataclass(frozen=True, slots=True)
class Sweep:
    """What the file says."""

    name: str
    head: Head
    axes: dict[str, list[Any]]
    points: list[Point]
    text: str = field(repr=False)
    """The file."""


def read(path: Path) -> Sweep:
    """The file, and every point's command line checked by the command's own options. Raises
    :class:`ConfigError`."""
    found = tables.load(path)
    known = dict(tables.keys(Head))
    for key, value in found.items():
        if key in TABLES:
            if not isinstance(value, dict):
                raise ConfigError(f"{path}: {key} is a table, under [{key}]")
        elif key not in known:
            raise tables.unknown(str(path), key, (*known, *TABLES))
    head = tables.read(Head, {key: value for key, value in found.items() if key not in TABLES}, str(path),
                       ["command"])
    name = head.name or path.stem
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{path}, name: {name!r} is none: letters, digits, '.', '_' and '-'")
    experiment, rest = _command(head.command, str(path))
    fixed: dict[str, Any] = found.get("fixed", {})
    axes: dict[str, Any] = found.get("grid", {})
    flags = {key for key, _words in tables.keys(experiment.options)}
    for where, table in (("fixed", fixed), ("grid", axes)):
        for key in table:
            if key not in flags:
                raise tables.unknown(f"{path}, [{where}]", key, sorted(flags - set(_OURS)))
            if key in _OURS:
                raise ConfigError(f"{path}, [{where}], {key}: the sweep says that to every point")
    for key, value in axes.items():
        if key in fixed:
            raise ConfigError(f"{path}, [grid], {key}: it is fixed")
        if not isinstance(value, list) or not value:
            raise ConfigError(f"{path}, [grid], {key}: {value!r} is no list of values, as [1, 2]")
        if len({json.dumps(one) for one in value}) < len(value):
            raise ConfigError(f"{path}, [grid], {key}: a value is there twice")
    for key in head.same_seed:
        if key not in axes:
            raise ConfigError(f"{path}, same-seed: {key!r} is no axis of [grid]")
    points = list(_points(head, experiment, rest, fixed, axes, SEED in flags, str(path)))
    return Sweep(name, head, axes, points, path.read_text(encoding="utf-8"))


def _command(text: str, where: str) -> tuple[Experiment[Any, Any], list[str]]:
    """The experiment, and further words of its command line."""
    words = shlex.split(text)
    for experiment in experiments.load():
        head = [word for word in (experiment.command, experiment.name) if word]
        if words[:len(head)] == head:
            return experiment, words[len(head):]
    names = ", ".join(" ".join(filter(None, (e.command, e.name))) for e in experiments.load())
    raise ConfigError(f"{where}, command: {text!r} is no experiment; there are {names}")


def _points(head: Head, experiment: Experiment[Any, Any], rest: list[str], fixed: Mapping[str, Any],
            axes: Mapping[str, list[Any]], seeded: bool, where: str) -> Iterator[Point]:
    count = head.repeats
    for axis in axes.values():
        count *= len(axis)
    if count > MOST_POINTS:
        raise ConfigError(f"{where}: {count} points are more than {MOST_POINTS}")
    start = [word for word in (experiment.command, experiment.name) if word]
    parser = _parser(experiment)
    for chosen in itertools.product(*axes.values()):
        values: dict[str, Any] = dict(zip(axes, chosen, strict=True))
        words = [*rest]
        for key, value in {**fixed, **values}.items():
            words += _words(key, value, where)
        for repeat in range(1, head.repeats + 1):
            seed = None
            if seeded:
                apart = [[key, value] for key, value in values.items() if key not in head.same_seed]
                seed = derived(head.seed, apart, repeat)
            own = [*words, *(() if seed is None else ("--seed", str(seed)))]
            point = Point(values, repeat, seed, (*start, *own))
            if repeat == 1:
                _check(experiment, parser, own, f"{where}: {point.text()}")
            yield point


def derived(seed: int, place: object, repeat: int) -> int:
    """A point's own seed, 1 to 2**31 - 1: the same whatever other points there are."""
    digest = hashlib.sha256(json.dumps([seed, place, repeat]).encode()).digest()
    return int.from_bytes(digest[:8], "big") % (2**31 - 1) + 1


def _words(key: str, value: Any, where: str) -> list[str]:
    if isinstance(value, bool):
        return [f"--{key}"] if value else []
    many = value if isinstance(value, list) else [value]
    for one in many:
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            raise ConfigError(f"{where}, {key}: {one!r} is neither a text nor a number")
    return [f"--{key}={one}" for one in many]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _parser(experiment: Experiment[Any, Any]) -> argparse.ArgumentParser:
    parser = _Parser(add_help=False, allow_abbrev=False)
    declare.add(experiment.options, parser)
    return parser


def _check(experiment: Experiment[Any, Any], parser: argparse.ArgumentParser, words: list[str],
           where: str) -> None:
    """What the command would refuse before it makes a network. What this machine lacks, another may have."""
    try:
        experiment.check(declare.read(experiment.options, parser.parse_args(words)))
    except ConfigError as e:
        raise ConfigError(f"{where}: {e}") from None
    except Unsupported:
        pass
