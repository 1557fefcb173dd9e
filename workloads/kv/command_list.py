"""The list of commands in the documentation, made from the table. After a change of the table::

    .venv/bin/python -m workloads.kv.command_list docs/kv.md
"""

from __future__ import annotations

import sys
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from workloads.kv.commands import COMMANDS

BEGIN, END = "<!-- commands: made by workloads/kv/command_list.py -->", "<!-- end of commands -->"


def render() -> str:
    """A table in Markdown: what the commands are about, and how each is called."""
    lines = ["| about | commands |", "|---|---|"]
    about = attrgetter("about")
    for title, entries in groupby(sorted(COMMANDS.values(), key=about), key=about):
        calls = ", ".join(f"`{entry.usage}`" for entry in entries)
        lines.append(f"| {title} | {calls.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def update(text: str) -> str:
    """A page with the list in its place. Raises ValueError if it has none."""
    before, begin, rest = text.partition(BEGIN)
    _old, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{render()}\n{END}{after}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(update(page.read_text()))
