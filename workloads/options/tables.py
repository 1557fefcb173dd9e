"""Options in a table of a TOML file: the same declarations, names, units and checks as on a command line.

The options of a dataclass (:mod:`workloads.options.declare`) are the table's keys: ``--max-queue-size`` is
``max-queue-size``. Each is read by argparse, as if ``--max-queue-size=50`` had been typed, so a table can say what
a command line can, and is refused what a command line is refused.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from smtstack.errors import ConfigError
from workloads.options import declare

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
_ARGUMENT = re.compile(r"argument [^:]*: ")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(_ARGUMENT.sub("", message, count=1))


def load(path: Path) -> dict[str, Any]:
    """What is in a TOML file. Raises :class:`ConfigError` with the line."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: no TOML: {e}") from None


def keys(kind: type) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key of a table, also those that mean the same as another, and the words of ``argparse.add_argument``
    it is declared by."""
    for _name, flags, words in declare.flat(kind):
        yield from ((flag.removeprefix("--"), words) for flag in flags if flag.startswith("--"))


def read(kind: type[T], table: Mapping[str, Any], where: str, needed: Collection[str] = ()) -> T:
    """The table as options. ``where``: file and table, for errors; ``needed``: keys that must be there.

    Raises :class:`ConfigError`, which names the key, and for one that nobody knows the nearest.
    """
    known = dict(keys(kind))
    parser = _Parser(add_help=False, allow_abbrev=False)
    declare.add(kind, parser)
    found = parser.parse_args([])
    given: dict[str, str] = {}
    for key, value in table.items():
        if key not in known:
            raise unknown(where, key, known)
        (name,) = (name for name, flags, _words in declare.flat(kind) if f"--{key}" in flags)
        if name in given:
            raise ConfigError(f"{where}, {key}: {given[name]} has said it already; they mean the same")
        given[name] = key
        try:
            for words in _words(key, value, known[key]):
                parser.parse_args([words], found)
        except ConfigError as e:
            raise ConfigError(f"{where}, {key}: {e}") from None
    for key in needed:
        if key not in table:
            raise ConfigError(f"{where}: {key} is missing")
    return declare.read(kind, found)


def unknown(where: str, key: str, known: Collection[str]) -> ConfigError:
    """The error for a key that nobody knows."""
    near = difflib.get_close_matches(key.replace("_", "-"), known, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    return ConfigError(f"{where}: there is no key {key!r}; {hint}there are {', '.join(known)}")


def _words(key: str, value: Any, declared: Mapping[str, Any]) -> list[str]:
    """The words that would be typed. Raises :class:`ConfigError` for a value that is none of that kind."""
    if declared.get("action") == "store_true":
        if not isinstance(value, bool):
            raise ConfigError(f"{value!r} is neither true nor false")
        return [f"--{key}"] if value else []
    values, several = [value], declared.get("action") == "append"
    if isinstance(declared.get("default"), list):
        if not isinstance(value, list) or not value:
            raise ConfigError(f"{value!r} is no list, as [\"...\", \"...\"]")
        values = value
    for one in values:
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            raise ConfigError(f"{one!r} is neither a text nor a number")
        if not isinstance(one, str) and declared.get("type") is None:
            raise ConfigError(f"{one!r} is no text, as \"...\"")
    texts = [str(one) for one in values]
    return [f"--{key}={text}" for text in (texts if several else [",".join(texts)])]
