"""What the quick run leaves out: the list of slow tests."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests import slow

ROOT = Path(__file__).resolve().parents[2]


def test_what_the_list_names_is_there():
    """A test that is renamed or moved would be quick without anybody having said so."""
    names = slow.listed()
    assert names
    assert names == sorted(set(names))
    for name in names:
        file, _, function = name.partition("::")
        tree = ast.parse((ROOT / file).read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name


def test_no_slow_test_needs_root():
    """Those marked root are chosen by that alone, so the list need not know them."""
    assert not [name for name in slow.listed() if name.startswith("tests/net/")]


@pytest.mark.parametrize("case", [1, 2])
def test_all_cases_of_a_function_are_marked(case, request, tmp_path, monkeypatch):
    assert request.node.get_closest_marker("slow") is None
    function = slow.function_of(request.node.nodeid)
    listing = tmp_path / "slow.txt"
    listing.write_text(f"# why\n{function}\n")
    monkeypatch.setattr(slow, "LIST", listing)
    slow.mark([request.node])
    assert request.node.get_closest_marker("slow") is not None


def test_the_list_is_made_by_measuring(tmp_path, monkeypatch):
    """What became quick leaves the list, what became slow enters it, what did not run stays."""
    listing = tmp_path / "slow.txt"
    listing.write_text("# why\nx.py::did_not_run\nx.py::was_slow\n")
    monkeypatch.setattr(slow, "LIST", listing)
    renewal = slow.Renewal()

    def report(name: str, seconds: float) -> pytest.TestReport:
        return pytest.TestReport(f"x.py::{name}", ("x.py", 1, name), {}, "passed", None, "teardown",
                                 user_properties=[(slow.NEED, seconds)])

    for one in (report("was_slow", 0.1), report("is_slow[1]", 0.3), report("is_slow[2]", 0.3)):
        renewal.pytest_runtest_logreport(one)
    renewal.write()
    assert listing.read_text() == "# why\nx.py::did_not_run\nx.py::is_slow\n"
