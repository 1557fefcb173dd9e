"""Which tests run on both builds of the hot modules, compiled and interpreted (smtstack/compiled.py).

``make test`` runs everything with the build that people get, then what is marked ``both`` or ``interpreted``
with the sources. The rule for ``both``: files of tests/unit and tests/sim that import a hot module, or a helper of
the tests that does (the rig of the engine tests, the fuzzers, ...): what they hold must hold for either build.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from smtstack import compiled

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT / "tests" / "unit", ROOT / "tests" / "sim")


def mark(items: list[pytest.Item]) -> None:
    """Mark what runs on both builds; skip, on the compiled one, what is of the sources."""
    for item in items:
        if touches(item.path):
            item.add_marker("both")
        own = item.get_closest_marker("interpreted")
        if own is not None and compiled.is_compiled():
            reason = f"marked interpreted: {own.args[0]}; make test runs it with the sources"
            item.add_marker(pytest.mark.skip(reason=reason))


@cache
def touches(path: Path) -> bool:
    """Whether this file of tests is of those that run on both builds."""
    return path.parent in FOLDERS and bool(_reached(path) & hot())


@cache
def hot() -> frozenset[str]:
    """Names of the modules that are compiled."""
    return frozenset(path.removesuffix(".py").replace("/", ".") for path in compiled.hot_sources())


def _reached(path: Path) -> set[str]:
    """What a file imports, and what the helpers beside it that it imports do."""
    names: set[str] = set()
    wanted, seen = [path], set()
    while wanted:
        seen.add(here := wanted.pop())
        new = _imports(here)
        names |= new
        helpers = ((ROOT / name.replace(".", "/")).with_suffix(".py") for name in new if name.startswith("tests."))
        wanted += [helper for helper in helpers if helper not in seen and helper.exists()]
    return names


@cache
def _imports(path: Path) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        match node:
            case ast.Import(names=aliases):
                names.update(alias.name for alias in aliases)
            case ast.ImportFrom(module=str(module), names=aliases, level=0):
                names.update({module, *(f"{module}.{alias.name}" for alias in aliases)})
    return frozenset(names)
