"""A docstring is read alone, in an editor: none begins with a word that points at its neighbour."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("smtstack", "topo", "controllers", "workloads")
RIDDLE = re.compile(r"(As|Of|That|These|Those|It|Its|Them|Such|Likewise|Also|Ditto|The same)\b")


def riddles(source: str) -> list[tuple[int, str]]:
    """(line, first words) of docstrings, attributes' included, that cannot be understood alone."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for at, child in enumerate(node.body):
            follows = at == 0 or isinstance(node.body[at - 1], ast.Assign | ast.AnnAssign)
            match child:
                case ast.Expr(value=ast.Constant(value=str(text))) if follows and RIDDLE.match(text.lstrip()):
                    found.append((child.lineno, text.strip()[:40]))
    return sorted(found)


def test_docstrings_can_be_read_alone():
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 100
    problems = [f"{path.relative_to(ROOT)}:{line}: {text}" for path in files
                for line, text in riddles(path.read_text(encoding="utf-8"))]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("source", [
    '"""Of smt, why."""', 'def f():\n    """As :meth:`g`."""',
    'class C:\n    x: int\n    """The same, over all."""',
    'class C:\n    def f(self):\n        """That; and more."""', 'async def f():\n    """\n    These do."""',
])
def test_a_riddle_is_reported(source):
    assert len(riddles(source)) == 1


@pytest.mark.parametrize("source", [
    '"""Assembles."""', 'def f():\n    """Often."""', 'class C:\n    x: int\n    """The samples."""', "x = 1\n",
    'def f():\n    call()\n    "It is no docstring."',
])
def test_what_is_no_riddle(source):
    assert riddles(source) == []


def strangers(text: str, files: set[str]) -> list[str]:
    """Modules named as files in a text that are not there."""
    return [name for name in re.findall(r"[\w/]+\.py\b", text)
            if not any(file == name or file.endswith(f"/{name}") for file in files)]


def test_modules_that_are_named_are_there():
    ours = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    files = {path.relative_to(ROOT).as_posix()
             for path in (*ours, *(ROOT / "tests").rglob("*.py"), *(ROOT / "docs").glob("*.py"),
                          ROOT / "setup.py")}
    wrong = {path.relative_to(ROOT).as_posix(): found for path in ours
             if (found := strangers(path.read_text(encoding="utf-8"), files))}
    assert wrong == {}


def test_a_module_that_is_gone_is_seen():
    assert strangers("see gone.py and fleet/fleet.py", {"workloads/fleet/fleet.py"}) == ["gone.py"]
