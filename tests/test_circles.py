"""Imports make no circle: no module needs itself by way of others, not even for a type checker."""

from __future__ import annotations

import ast
from collections.abc import Iterable

import pytest

from tests.test_layers import imports, module_files

#: Circles that are known, each by its modules in order. There are to be none: this may shrink, and not grow.
KNOWN: set[tuple[str, ...]] = {
    ("controllers.multipath", "controllers.rest"),  # for types only
    ("workloads.kv.databases", "workloads.kv.store"),  # for types only
}


def arrows(sources: dict[str, tuple[str, bool]]) -> dict[str, set[str]]:
    """Which modules each of ``sources`` (name: text, whether it is a package's ``__init__``) imports."""
    out: dict[str, set[str]] = {}
    for module, (source, is_package) in sources.items():
        found: set[str] = set()
        for _line, name in imports(ast.parse(source), module, is_package):
            # "from a.b import c" may mean the module a.b.c or something in a.b.
            target = name if name in sources else name.rpartition(".")[0]
            if target in sources and target != module:
                found.add(target)
        out[module] = found
    return out


def circles(graph: dict[str, set[str]]) -> set[tuple[str, ...]]:
    """Groups of modules each of which reaches all others of its group, in order of name."""
    reach = {module: _reached(graph, module) for module in graph}
    return {tuple(sorted(other for other in reach[module] if module in reach[other]))
            for module in graph if module in reach[module]}


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    left: list[str] = [*graph[start]]
    while left:
        module = left.pop()
        if module not in seen:
            seen.add(module)
            left += graph[module]
    return seen


def read(modules: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    return arrows({name: (source, False) for name, source in modules})


def test_there_is_no_circle():
    files = {module: (path.read_text(encoding="utf-8"), is_package) for path, module, is_package in module_files()}
    graph = arrows(files)
    assert sum(map(len, graph.values())) > 500, "found no arrows to check"
    found = circles(graph)
    assert found <= KNOWN, "\n".join(" - ".join(circle) for circle in sorted(found - KNOWN))
    assert found == KNOWN, f"mended: take it from the list: {KNOWN - found}"


@pytest.mark.parametrize("modules", [
    (("p.a", "import p.b"), ("p.b", "import p.a")),
    (("p.a", "from p import b"), ("p.b", "from p.a import x")),
    (("p.a", "from . import b"), ("p.b", "from .a import x")),
    (("p.a", "from p.b import x"), ("p.b", "if TYPE_CHECKING:\n    from p.a import X")),
    (("p.a", "from p.b import x"), ("p.b", "def f():\n    from p.a import x")),
    (("p.a", "import p.b"), ("p.b", "import p.c"), ("p.c", "import p.a")),
])
def test_a_circle_is_reported(modules):
    assert circles(read(modules)) == {tuple(sorted(name for name, _source in modules))}


def test_what_is_no_circle():
    assert circles(read([("p.a", "import p.b, p.c"), ("p.b", "import p.c"), ("p.c", "import os")])) == set()
    # A package whose __init__ imports one of its own modules, which imports a sibling.
    graph = arrows({"p": ("from p.a import x", True), "p.a": ("from p import b", False), "p.b": ("", False)})
    assert circles(graph) == set()
