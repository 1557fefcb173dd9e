"""The list of commands in the documentation, made from the table. After a change of the table::

    .venv/bin/python -m workloads.kv.command_list docs/kv.md
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

from workloads.kv.commands import COMMANDS, Entry

BEGIN, END = "<!-- commands: made by workloads/kv/command_list.py -->", "<!-- end of commands -->"
_TITLES = {"clients": "connections", "ranges": "ranges of sorted sets", "sorted": "sorted sets",
           "persistence": "append-only file"}


def render() -> str:
    """A table in Markdown: what the commands are about, and how each is called."""
    lines = ["| about | commands |", "|---|---|"]
    for title, entries in groupby(sorted(COMMANDS.values(), key=_title), key=_title):
        calls = ", ".join(f"`{_usage(entry)}`" for entry in entries)
        lines.append(f"| {title} | {calls.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def _title(entry: Entry) -> str:
    name = entry.handler.__module__.rpartition(".")[2].removeprefix("commands_")
    if name == "commands":  # They need the table themselves.
        return "server" if entry.local else "transactions"
    return _TITLES.get(name, name)


def _usage(entry: Entry) -> str:
    """What its handler says; of several names for one command each has its own."""
    said = (entry.handler.__doc__ or "").partition("\n")[0].partition(":")[0]
    return " ".join([entry.name.upper(), *said.split(" ")[1:]])


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
