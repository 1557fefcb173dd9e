"""Options of a command as a frozen dataclass: each field declares its option, and what is read is of its type.

A field made by :func:`option` is one option of the command line, named as in a Namespace; a field made by
:func:`group` is another such dataclass, whose options stand in its place::

    @dataclass(frozen=True)
    class Options:
        count: int = option("--count", type=quantities.POSITIVE, default=3, metavar="N", help="RPCs (default: 3)")
        network: Network = group(Network, rate_mbps=100.0)

:func:`add` declares them to argparse, in the order of the fields, and :func:`read` makes an instance of what
argparse found. No two options of a command may have one name, however deep they stand.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
_KEY = "option"


@dataclass(frozen=True, slots=True)
class _Option:
    """``words`` are add_argument()'s; ``title`` is the heading it stands under in --help, ``either`` a name that
    options have in common of which one at most may be given."""

    flags: tuple[str, ...]
    words: dict[str, Any]
    title: str
    either: str

    def default(self) -> Any:
        """The default as argparse has it: a text is read as if it had been typed."""
        default = self.words.get("default", False if self.words.get("action") == "store_true" else None)
        kind = self.words.get("type")
        if default is argparse.SUPPRESS:
            return None
        if isinstance(default, list):
            return list(default)
        return kind(default) if isinstance(default, str) and kind is not None else default


@dataclass(frozen=True, slots=True)
class _Group:
    kind: type
    defaults: dict[str, Any]


def option(*flags: str, title: str = "", either: str = "", **words: Any) -> Any:
    """One option, with the words of ``argparse.add_argument``. ``title``: under which heading of --help, if not
    under the general one; ``either``: at most one of those with the same word may be given."""
    declared = _Option(flags, words, title, either)
    return field(default_factory=declared.default, metadata={_KEY: declared})


def group(kind: type[T], **defaults: Any) -> T:
    """The options of another dataclass, with other defaults where that is said, by their names."""
    made: T = field(default_factory=lambda: _build(kind, {}, defaults), metadata={_KEY: _Group(kind, defaults)})
    return made


def add(kind: type, parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``kind`` to ``parser``, in the order of its fields."""
    titled: dict[str, argparse._ArgumentGroup] = {}
    either: dict[str, argparse._MutuallyExclusiveGroup] = {}
    _add(kind, parser, titled, either)
    parser.set_defaults(**_overridden(kind))


def _add(kind: type, parser: argparse.ArgumentParser, titled: dict[str, argparse._ArgumentGroup],
         either: dict[str, argparse._MutuallyExclusiveGroup]) -> None:
    for name, declared in _declared(kind):
        if isinstance(declared, _Group):
            _add(declared.kind, parser, titled, either)
            continue
        place: argparse._ActionsContainer = parser
        if declared.title:
            if declared.title not in titled:
                titled[declared.title] = parser.add_argument_group(declared.title)
            place = titled[declared.title]
        if declared.either:
            if declared.either not in either:
                either[declared.either] = place.add_mutually_exclusive_group()
            place = either[declared.either]
        place.add_argument(*declared.flags, dest=name, **declared.words)


def read(kind: type[T], found: argparse.Namespace) -> T:
    """What :func:`add` had argparse find."""
    return _build(kind, vars(found), {})


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, kind: type[T],
                call: Callable[[T], int], **words: Any) -> None:
    """A (sub)command that takes these options and calls ``call`` with them, which has the exit code. ``words`` are
    its parser's: help, description, epilog; lines stay as they are."""
    parser = commands.add_parser(name, formatter_class=argparse.RawDescriptionHelpFormatter, **words)
    add(kind, parser)

    def run(found: argparse.Namespace) -> int:
        return call(read(kind, found))

    # Whoever asks what a command is asks for the module that knows.
    run.__module__ = call.__module__
    parser.set_defaults(run=run)


def as_dict(options: Any) -> dict[str, Any]:
    """All options by their names, for run.json: groups are taken apart, paths are text, and an option that stands
    for others (``--link``) is what it stands for."""
    found: dict[str, Any] = {}
    for name, declared in _declared(type(options)):
        value = getattr(options, name)
        if isinstance(declared, _Group):
            found.update(as_dict(value))
        elif declared.words.get("default") is argparse.SUPPRESS:
            found.update(value or {})
        else:
            found[name] = str(value) if isinstance(value, Path) else value
    return found


def part(options: Any, kind: type[T]) -> T | None:
    """The group of options that is a ``kind``, wherever it stands; None: there is none."""
    if isinstance(options, kind):
        return options
    for name, declared in _declared(type(options)):
        if isinstance(declared, _Group) and (found := part(getattr(options, name), kind)) is not None:
            return found
    return None


def flat(kind: type) -> Iterator[tuple[str, tuple[str, ...], dict[str, Any]]]:
    """Every option, also those of groups: its name, its flags and the words of ``argparse.add_argument``; the
    default is the one that holds here."""
    overridden = _overridden(kind)

    def each(inner: type) -> Iterator[tuple[str, tuple[str, ...], dict[str, Any]]]:
        for name, declared in _declared(inner):
            if isinstance(declared, _Group):
                yield from each(declared.kind)
            else:
                known = {"default": overridden[name]} if name in overridden else {}
                yield name, declared.flags, {**declared.words, **known}

    return each(kind)


def _declared(kind: type) -> Iterator[tuple[str, _Option | _Group]]:
    assert is_dataclass(kind), kind
    return ((own.name, own.metadata[_KEY]) for own in fields(kind) if _KEY in own.metadata)


def _overridden(kind: type) -> dict[str, Any]:
    """Defaults that groups are given, the outermost last."""
    found: dict[str, Any] = {}
    for _name, declared in _declared(kind):
        if isinstance(declared, _Group):
            found.update({**_overridden(declared.kind), **declared.defaults})
    return found


def _build(kind: type[T], found: dict[str, Any], defaults: dict[str, Any]) -> T:
    """``found`` is what was read, else there are the defaults."""
    values: dict[str, Any] = {}
    for name, declared in _declared(kind):
        if isinstance(declared, _Group):
            values[name] = _build(declared.kind, found, {**declared.defaults, **defaults})
        else:
            values[name] = found[name] if name in found else defaults.get(name, declared.default())
    make: Callable[..., T] = kind
    return make(**values)
