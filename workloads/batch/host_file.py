"""What is particular to one machine, in a file named after it: ``hosts/<name>.toml``.

For example::

    skip = ["sessions"]
    timeout = 1800                      # seconds that a step may take

    [environment]
    SMTNET_COMPILED = "no"

    [options]
    fig8 = ["--clients", "16"]          # further words of a step's command line
"""

from __future__ import annotations

import socket
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from smtstack import quantities
from smtstack.errors import ConfigError
from workloads.options import tables

_KEYS = ("skip", "timeout", "environment", "options")


@dataclass(frozen=True, slots=True)
class HostFile:
    """What it says; nothing where there is none."""

    name: str
    """This machine's."""
    path: Path
    text: str = ""
    skip: tuple[str, ...] = ()
    timeout_s: float | None = None
    environment: dict[str, str] = field(default_factory=dict)
    options: dict[str, tuple[str, ...]] = field(default_factory=dict)


def read(folder: Path, steps: Collection[str], name: str | None = None) -> HostFile:
    """The file of this machine (or of ``name``) in ``folder``. Raises :class:`ConfigError`, which names file and
    key."""
    name = name or socket.gethostname()
    path = folder / f"{name}.toml"
    if not path.exists():
        return HostFile(name, path)
    found = tables.load(path)
    for key in found:
        if key not in _KEYS:
            raise tables.unknown(str(path), key, _KEYS)
    environment, options = (_table(path, found, key) for key in ("environment", "options"))
    skip = _texts(f"{path}, skip", found.get("skip", []))
    for where, names in (("skip", skip), ("[options]", options)):
        for step in names:
            if step not in steps:
                raise tables.unknown(f"{path}, {where}", step, list(steps))
    timeout = found.get("timeout")
    return HostFile(
        name, path, path.read_text(encoding="utf-8"), skip,
        None if timeout is None else quantities.SECONDS.read(f"{path}, timeout", timeout),
        {key: str(value) for key, value in environment.items()},
        {step: _texts(f"{path}, [options], {step}", words) for step, words in options.items()})


def with_timeout(host: HostFile, timeout_s: float) -> HostFile:
    """What was typed wins."""
    return replace(host, timeout_s=timeout_s)


def _table(path: Path, found: dict[str, Any], key: str) -> dict[str, Any]:
    table = found.get(key, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {key} is a table, under [{key}]")
    return table


def _texts(where: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ConfigError(f"{where}: {value!r} is no list of texts, as [\"...\", \"...\"]")
    return tuple(value)
