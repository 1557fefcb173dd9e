"""People's own workloads: the property files of YCSB, in the syntax of Java's ``Properties``.

Every property is one of: done, done where it has the one value we have, refused, or without effect on the load and
then named. None is silently left out.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smtstack.errors import ConfigError
from workloads.load.ycsb_choice import DISTRIBUTIONS, LENGTHS

#: What a file that does not say otherwise gets from YCSB's core workload (CoreWorkload, 0.17).
DEFAULTS = {
    "readproportion": "0.95", "updateproportion": "0.05", "insertproportion": "0", "scanproportion": "0",
    "readmodifywriteproportion": "0", "requestdistribution": "uniform", "hotspotdatafraction": "0.2",
    "hotspotopnfraction": "0.8", "exponential.percentile": "95", "exponential.frac": "0.8571428571",
    "minscanlength": "1", "maxscanlength": "1000", "scanlengthdistribution": "uniform", "readallfields": "true",
    "writeallfields": "false", "minfieldlength": "1", "fieldlengthdistribution": "constant",
    "insertorder": "hashed", "zeropadding": "1", "insertstart": "0",
}
#: The size of a load, and the option that says the same.
SIZES = {"recordcount": "--records", "operationcount": "--ops", "maxexecutiontime": "--seconds",
         "threadcount": "--clients", "target": "--rate", "fieldcount": "--fields", "fieldlength": "--value",
         "insertcount": ""}
#: Options that say the same as other properties.
_OPTIONS = {"requestdistribution": "--distribution"}
#: What can only be as it is here, and why.
_ONLY = {
    "core_workload_insertion_retry_limit": ("0", "a write is sent once: it may have been carried out"),
    "readallfieldsbyname": ("false", "HGETALL reads all fields"),
    "fieldnameprefix": ("field", "captures are searched for that name"),
    "dotransactions": ("true", "the load phase is run before, or left out with --loaded"),
}
_CLASSES = ("site.ycsb.workloads.CoreWorkload", "com.yahoo.ycsb.workloads.CoreWorkload")
#: Without effect on the load: measurements and their output, YCSB's own connections.
_UNUSED = re.compile(r"(measurement|histogram|hdrhistogram|timeseries|status|redis|basicdb)(\.[.\w]+)?|exporter|"
                     r"exportfile|measurementtype|db|label|table|core_workload_insertion_retry_interval|"
                     r"fieldlengthhistogram|reportlatencyforeacherror|latencytrackederrors")
_COMMENT = re.compile(r"[#!]")
#: A name ends at the first "=", ":" or blank that has no backslash before it.
_NAME = re.compile(r"((?:\\.|[^\\=: \t\f])*)[ \t\f]*[=:]?[ \t\f]*", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:u(.{0,4})|(.?))", re.DOTALL)
_CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


@dataclass(frozen=True, slots=True)
class Property:
    """One that was given."""

    value: str
    where: str
    """File and line, or the option."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A workload with what was given for it."""

    name: str
    """For results."""
    properties: Mapping[str, str]
    """All that has an effect."""
    unused: Sequence[str] = ()
    """Names of those without."""
    where: Mapping[str, str] = field(default_factory=dict)
    """Where each property was given: file and line, or the option."""

    def number(self, name: str) -> int | None:
        """A size of the load; None: not given. Raises :class:`ConfigError`."""
        return parsed(name, self.properties[name], self.where[name]) if name in self.properties else None


def read(path: Path) -> dict[str, Property]:
    """The properties of a file. Raises :class:`ConfigError`, with file and line."""
    try:
        # As Java reads them: any byte is a character.
        text = path.read_text(encoding="latin-1")
    except OSError as e:
        raise ConfigError(f"workload {path}: {e.strerror}") from None
    return parse(text.removeprefix("ï»¿"), str(path))


def parse(text: str, where: str) -> dict[str, Property]:
    """Java's syntax: "#" and "!" begin comments, "=", ":" or blanks end a name, a backslash at the end of a line
    joins the next one to it, and before a character takes its meaning away."""
    found: dict[str, Property] = {}
    logical, first = "", 0
    lines = re.split(r"\r\n|\n|\r", text)
    for number, line in enumerate(lines, 1):
        said = line.lstrip(" \t\f")
        if not logical:
            if not said or _COMMENT.match(said):
                continue
            first = number
        logical += said
        slashes = len(logical) - len(logical.rstrip("\\"))
        if slashes % 2 and number < len(lines):
            logical = logical[:-1] or " "
            continue
        name = _NAME.match(logical.strip(" \t\f"))
        assert name is not None, "it matches everything"
        at = f"{where}, line {first}"
        key = _unescaped(name[1], at)
        found[key] = Property(_unescaped(logical.strip(" \t\f")[name.end():], at).strip(), at)
        logical = ""
    return found


def _unescaped(text: str, where: str) -> str:
    def one(found: re.Match[str]) -> str:
        if found[1] is None:
            return _CONTROLS.get(found[2], found[2])
        if not re.fullmatch("[0-9a-fA-F]{4}", found[1]):
            raise ConfigError(f"{where}: \\u{found[1]}: four hexadecimal digits follow \\u")
        return chr(int(found[1], 16))

    return _ESCAPE.sub(one, text)


def overriding(texts: Sequence[str]) -> dict[str, Property]:
    """``-p NAME=VALUE``. Raises :class:`ConfigError`."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"-p {text}: NAME=VALUE, as -p readproportion=0.9")
        found[name.strip()] = Property(value.strip(), f"-p {text}")
    return found


def choose(name: str, properties: Mapping[str, Property]) -> Chosen:
    """What of the ``properties`` counts. Raises :class:`ConfigError` for one that we do not do, do not know, or
    that has no such value."""
    counts: dict[str, str] = {}
    unused = []
    for key, given in properties.items():
        if key in _KINDS:
            parsed(key, given.value, given.where)
            counts[key] = given.value
        elif key == "workload":
            if given.value not in _CLASSES:
                raise ConfigError(f"{given.where}: workload class {given.value}: only {_CLASSES[0]} is done")
        elif key in _ONLY:
            only, why = _ONLY[key]
            if given.value.lower() != only:
                raise ConfigError(f"{given.where}: {key}={given.value}: only {only} is possible: {why}")
        elif _UNUSED.fullmatch(key):
            unused.append(key)
        else:
            near = difflib.get_close_matches(key, [*_KINDS, *_ONLY], 1)
            hint = f"; did you mean {near[0]}?" if near else "; docs/kv.md has those there are"
            raise ConfigError(f"{given.where}: no property {key!r} of YCSB's core workload is known here{hint}")
    where = {key: given.where for key, given in properties.items()}
    return Chosen(name, counts, unused, where)


def refuse_twice(chosen: Chosen, options: Mapping[str, Any]) -> None:
    """An option and ``-p`` that say the same. ``options``: by name, what was given. Raises ConfigError."""
    for key, option in {**SIZES, **_OPTIONS}.items():
        if chosen.where.get(key, "").startswith("-p ") and options.get(option):
            raise ConfigError(f"{option} and {chosen.where[key]} say the same; leave one out")


def parsed(name: str, text: str, where: str = "") -> Any:
    """The value of a property. Raises :class:`ConfigError`."""
    kind, meaning = _KINDS[name]
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"{where or 'workload'}: {name} is {meaning}, not {text[:60]!r}") from None


def _holding(holds: Callable[[Any], bool], read: Callable[[str], Any] = str) -> Callable[[str], Any]:
    """Reads values that must be so. It raises ValueError."""
    def checked(text: str) -> Any:
        value = read(text)
        if not holds(value):
            raise ValueError(text)
        return value

    return checked


def _whole(text: str) -> int:
    if not re.fullmatch(r"\+?[0-9]+", text):
        raise ValueError(text)
    return int(text)


def _at_least(least: int, most: int = 1 << 62) -> Callable[[str], Any]:
    return _holding(lambda number: least <= number <= most, _whole)


def _real(least: float, most: float) -> Callable[[str], Any]:
    return _holding(lambda number: least <= number <= most, float)


def _one_of(*names: str) -> Callable[[str], Any]:
    return _holding(names.__contains__)


def _yes(text: str) -> bool:
    return _one_of("true", "false")(text.lower()) == "true"


_WHOLE, _FROM_0 = (_at_least(1), "a whole number from 1"), (_at_least(0), "a whole number from 0")
_SHARE = _real(0, 1), "0 to 1"
_WEIGHT = _real(0, 1e9), "a number from 0"
_BOOLEAN = _yes, "true or false"
_KINDS: dict[str, tuple[Callable[[str], Any], str]] = {
    "recordcount": _WHOLE, "operationcount": _WHOLE, "insertstart": _FROM_0, "insertcount": _WHOLE,
    "threadcount": _WHOLE, "target": _FROM_0, "maxexecutiontime": _FROM_0,
    "fieldcount": _WHOLE, "fieldlength": _WHOLE, "minfieldlength": _WHOLE,
    "fieldlengthdistribution": (_one_of(*LENGTHS, "constant"), f"constant, {' or '.join(LENGTHS)}"),
    "dataintegrity": _BOOLEAN, "readallfields": _BOOLEAN, "writeallfields": _BOOLEAN,
    "readproportion": _WEIGHT, "updateproportion": _WEIGHT, "insertproportion": _WEIGHT, "scanproportion": _WEIGHT,
    "readmodifywriteproportion": _WEIGHT,
    "requestdistribution": (_one_of(*DISTRIBUTIONS), f"one of {', '.join(DISTRIBUTIONS)}"),
    "hotspotdatafraction": _SHARE, "hotspotopnfraction": _SHARE,
    "exponential.percentile": (_holding(lambda number: 0 < number < 100, float), "above 0 and below 100"),
    "exponential.frac": (_real(1e-9, 1e9), "a number above 0"),
    "minscanlength": _WHOLE, "maxscanlength": _WHOLE,
    "scanlengthdistribution": (_one_of(*LENGTHS), " or ".join(LENGTHS)),
    "insertorder": (_one_of("hashed", "ordered"), "hashed or ordered"),
    "zeropadding": (_at_least(0, 1000), "a whole number to 1000"),
}
