"""The pictures drawn from the code are the ones in docs/img, and what is written of a table is the table."""

from __future__ import annotations

import ast
import re
from xml.etree import ElementTree

import pytest

from docs import draw
from smtstack.transport.states import State
from tests.command_lines import ROOT
from tests.test_layers import RANK


@pytest.mark.parametrize("name", list(draw.PICTURES))
def test_a_picture_is_what_would_be_drawn(name):
    assert (draw.IMG / name).read_text() == draw.PICTURES[name](), "python -m docs.draw writes it anew"


def test_the_docstring_says_what_the_table_says():
    """All that changes a state; DEAD for any reason of our own is not in the table."""
    # Of the source: a compiled module has none.
    text = ast.get_docstring(ast.parse((ROOT / "smtstack/transport/states.py").read_text()))
    assert text
    said = re.findall(r"^(client|server) +([A-Z_]+) +(.+?) +([A-Z]+(?:_[A-Z]+)?)$", text, re.MULTILINE)
    table = [(side, before.name, draw.WORDS[side][what], after.name) for side in draw.TABLES
             for before, what, after in draw.moves(side) if before is not after]
    assert sorted(said) == sorted(table)


@pytest.mark.parametrize("side", list(draw.TABLES))
def test_the_picture_of_an_rpc_has_every_state_and_every_input(side):
    texts = "|".join(element.text or "" for element in ElementTree.fromstring(draw.rpc()).iter())  # noqa: S314
    for before, what, _after in draw.moves(side):
        assert before.name in texts
        assert draw.WORDS[side][what] in texts
    assert {state for side in draw.TABLES for state in draw.states(side)} == set(State)


def test_the_map_has_every_unit_and_points_down():
    lines = draw.reduced(draw.edges())
    assert {unit for line in lines for unit in line} == set(RANK)
    assert all(RANK[a] > RANK[b] for a, b in lines)


def test_arrows_that_others_stand_for_are_left_out():
    a, b, c = "smtstack.transport", "smtstack.crypto", "smtstack.wire"
    assert draw.reduced({(a, b), (b, c), (a, c)}) == [(b, c), (a, b)]
    assert draw.reduced({(a, c), (c, a)}) == [(a, c)]


def test_imports_are_read_from_the_code():
    assert ("smtstack.crypto", "smtstack.wire") in draw.edges()
    assert ("smtstack.wire", "smtstack.crypto") not in draw.edges()


def test_docs_show_the_pictures():
    shown = re.findall(r"\(img/([\w.-]+)\)", "".join(page.read_text() for page in (ROOT / "docs").glob("*.md")))
    assert set(draw.PICTURES) <= set(shown)
    assert {path.name for path in draw.IMG.iterdir()} == set(shown)


def test_the_drawer_imports_nothing_to_draw_with():
    tree = ast.parse((ROOT / "docs/draw.py").read_text())
    names = {n.module.partition(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    assert names <= {"__future__", "collections", "functools", "html", "itertools", "pathlib", "smtstack", "tests"}
