"""What Python 3.10 lacks is not imported: only hosted machines run one, and all others would pass."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: What came with Python 3.11 to 3.13, of modules that we use. Of typing, "typing_extensions" has it, for mypy.
NEWER = {
    "asyncio": {"Barrier", "Runner", "TaskGroup", "timeout", "timeout_at"},
    "contextlib": {"chdir"},
    "copy": {"replace"},
    "datetime": {"UTC"},
    "enum": {"EnumCheck", "ReprEnum", "StrEnum", "member", "nonmember", "property", "verify"},
    "hashlib": {"file_digest"},
    "inspect": {"getmembers_static", "markcoroutinefunction"},
    "itertools": {"batched"},
    "math": {"cbrt", "exp2", "fma", "sumprod"},
    "operator": {"call"},
    "typing": {"LiteralString", "Never", "NotRequired", "ReadOnly", "Required", "Self", "TypeAliasType", "TypeIs",
               "TypeVarTuple", "Unpack", "assert_never", "assert_type", "dataclass_transform", "get_overloads",
               "override", "reveal_type"},
}


def too_new(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines that take such a name from its module."""
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), names=names, level=0):
                yield from ((node.lineno, f"{module}.{name.name}") for name in names
                            if name.name in NEWER.get(module, ()))
            case ast.Attribute(value=ast.Name(id=module), attr=name) if name in NEWER.get(module, ()):
                yield node.lineno, f"{module}.{name}"


def test_nothing_is_newer_than_the_oldest_python():
    found = [f"{path.relative_to(ROOT)}:{line}: {name}"
             for folder in ("smtstack", "topo", "controllers", "workloads", "tests", "examples", "docs")
             for path in (ROOT / folder).rglob("*.py") for line, name in too_new(ast.parse(path.read_text()))]
    assert found == []


def test_it_would_be_found():
    text = "from typing import Any, Self\nimport asyncio\nasyncio.timeout(1)\nfrom datetime import UTC\n"
    assert list(too_new(ast.parse(text))) == [(1, "typing.Self"), (4, "datetime.UTC"), (3, "asyncio.timeout")]
