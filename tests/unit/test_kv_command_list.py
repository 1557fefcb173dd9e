"""The documentation lists the commands that there are."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from workloads.kv.command_list import BEGIN, END, render, update
from workloads.kv.commands import COMMANDS
from workloads.kv.limits import OPTIONS, Limits

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kv.md"


def test_the_page_has_the_list_that_the_table_gives():
    text = PAGE.read_text()
    assert update(text) == text, "run: .venv/bin/python -m workloads.kv.command_list docs/kv.md"
    listed = re.findall(r"`([A-Z._]+)[^`]*`", text.partition(BEGIN)[2].partition(END)[0])
    assert sorted(listed) == sorted(name.upper() for name in COMMANDS)


def test_every_command_says_how_it_is_called():
    for entry in COMMANDS.values():
        assert re.match(r"[A-Z._]+( |$)", entry.usage), entry.name
        # As many words as it needs; what can be left out stands in brackets.
        assert len(entry.usage.split()) >= abs(entry.arity) or "[" in entry.usage, entry.name
    assert "| lists |" in render() or "| strings |" in render()


@pytest.mark.parametrize(("name", "arity", "keys"), [
    ("get", 2, (1, 1, 1)), ("set", -3, (1, 1, 1)), ("mget", -2, (1, -1, 1)), ("mset", -3, (1, -1, 2)),
    ("rename", 3, (1, 2, 1)), ("move", 3, (1, 1, 1)), ("lmove", 5, (1, 2, 1)), ("blmove", 6, (1, 2, 1)),
    ("blpop", -3, (1, -2, 1)), ("hset", -4, (1, 1, 1)), ("zadd", -4, (1, 1, 1)), ("zrange", -4, (1, 1, 1)),
    ("watch", -2, (1, -1, 1)), ("smt.watch", -3, (1, -1, 2)), ("swapdb", 3, (0, 0, 0)), ("scan", -2, (0, 0, 0)),
    ("eval", -3, (0, 0, 0)), ("auth", -2, (0, 0, 0)), ("hello", -1, (0, 0, 0)), ("quit", -1, (0, 0, 0)),
    ("config", -2, (0, 0, 0)), ("client", -2, (0, 0, 0)), ("command", -1, (0, 0, 0)), ("time", 1, (0, 0, 0))])
def test_what_its_usage_says_of_a_command(name, arity, keys):
    """By Redis's COMMAND INFO of each, but for our own."""
    assert (COMMANDS[name].arity, COMMANDS[name].keys) == (arity, keys)


def test_the_page_has_every_limit():
    text = PAGE.read_text()
    assert set(OPTIONS) == {field.name for field in fields(Limits)} - {"message"}
    for name, (option, _what) in OPTIONS.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `--{option}` |")]
        assert f"{getattr(Limits(), name):,}" in row
    assert "max_message_length" in text
