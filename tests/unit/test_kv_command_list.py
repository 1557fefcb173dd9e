"""The documentation lists the commands that there are."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

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
        assert re.match(r"[A-Z.]+( |:|$)", entry.handler.__doc__ or ""), entry.name
        words = (entry.handler.__doc__ or "").partition(":")[0].split()
        # As many words as it needs; what can be left out stands in brackets.
        assert len(words) >= abs(entry.arity) or "[" in str(words), entry.name
    assert "| lists |" in render() or "| strings |" in render()


def test_the_page_has_every_limit():
    text = PAGE.read_text()
    assert set(OPTIONS) == {field.name for field in fields(Limits)} - {"message"}
    for name, (option, _what) in OPTIONS.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `--{option}` |")]
        assert f"{getattr(Limits(), name):,}" in row
    assert "max_message_length" in text
