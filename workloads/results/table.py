"""The table of a run, for the terminal and for summary.txt: medians, ratios to tls, lowest and highest trial."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

from workloads.results import kinds
from workloads.results.points import Column, QuotedPoint, grouped, overall, points, ratio, ring_lines, size_text
from workloads.results.row import Row
from workloads.transports.table import BASELINE

#: Behind a figure: not faithful, and RPCs failed.
UNFAITHFUL, FAILED = "~", "!"


def heading(panel: tuple[str, str, str, str]) -> str:
    """``back2back, unloaded, interrupt: median round trip in us``."""
    topo, mode, *rest = panel
    return f"{', '.join((topo, mode, *filter(None, rest)))}: {kinds.mode(mode).heading or kinds.rate(panel[3])}"


def column_name(column: Column, mode: str) -> str:
    """``64 B``, or under load ``64 B x50``: fifty of them at a time."""
    size, concurrency = size_text(column.size), column.concurrency
    return size if kinds.mode(mode).alone and concurrency == 1 else f"{size} x{concurrency}"


def number(value: float | None) -> str:
    """Three digits at least, thousands apart."""
    if value is None:
        return "none"
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def marks(point: QuotedPoint) -> str:
    """What has to be said beside the figure."""
    return UNFAITHFUL * (not point.faithful) + FAILED * point.failed


def figure(point: QuotedPoint, among: Iterable[QuotedPoint]) -> str:
    """``93.7~ (0.78)``: the value, what has to be said, and the ratio to tls."""
    share = ratio(point, among)
    return number(point.value) + marks(point) + (f" ({share:.2f})" if share else "")


def panels(found: Iterable[QuotedPoint]) -> dict[tuple[str, str, str, str], list[QuotedPoint]]:
    """The points by what may stand in one table."""
    return grouped(found, lambda point: point.panel)


def _columns(found: list[QuotedPoint], labels: list[str]) -> list[tuple[int | str, list[str]]]:
    """A column for each load, with the message size it is of: its name, then for each system the figure and
    under it the lowest and the highest trial."""
    several = any(point.trials > 1 for point in found)
    out = []
    for column in sorted({point.column for point in found}, key=Column.order):
        by_label = {point.label: point for point in found if point.column == column}
        cells = [column_name(column, found[0].panel[1])]
        for label in labels:
            point = by_label.get(label)
            cells.append(figure(point, found) if point else "")
            if several:
                cells.append(f"{number(point.low)}-{number(point.high)}" if point else "")
        out.append((column.size, cells))
    return out


def _grids(rows: Sequence[Row], width: int, gap: int) -> Iterator[tuple[str, list[list[str]]]]:
    """Each panel's heading and lines of cells: the first names the columns. What is wider than ``width`` with
    ``gap`` characters between columns is broken into several, if possible where the message size changes."""
    for panel, found in panels(points(rows)).items():
        labels = list(dict.fromkeys(point.label for point in found))
        columns = _columns(found, labels)
        height = (len(columns[0][1]) - 1) // len(labels)
        left = ["", *(label if line == 0 else "" for label in labels for line in range(height))]
        room = width - max(map(len, left))
        taken = [max(map(len, cells)) + gap for _size, cells in columns]
        by_size = sum(taken) > room
        grid: list[list[str]] = []
        used, size = 0, columns[0][0]
        for (of_size, cells), needed in zip(columns, taken, strict=True):
            if grid and (used + needed > room or (by_size and of_size != size)):
                yield heading(panel), _lines(left, grid)
                grid, used = [], 0
            grid.append(cells)
            used, size = used + needed, of_size
        yield heading(panel), _lines(left, grid)


def _lines(left: list[str], columns: list[list[str]]) -> list[list[str]]:
    return [list(line) for line in zip(left, *columns, strict=True)]


def notes(rows: Sequence[Row]) -> list[str]:
    """How the table is to be read, and what was wrong with the run."""
    found = points(rows)
    out = []
    trials = max((point.trials for point in found), default=0)
    ratios = f"in brackets: ratio to {BASELINE}" if any(point.label == BASELINE for point in found) else ""
    spread = f"middle of {trials} trials, below it the lowest and the highest" if trials > 1 else ""
    if ratios or spread:
        out.append("; ".join(filter(None, (spread, ratios))))
    out += ring_lines(rows)
    verdict = overall(rows)
    if not verdict["ok"]:
        out.append(f"{UNFAITHFUL} not faithful: {verdict['unfaithful']} of {verdict['trials']} trials; they "
                   "measured the machine as well:")
        out += [f"  {reason}" for reason in verdict["reasons"]]
    failed = [point for point in found if point.failed]
    if failed:
        errors = sum(point.errors for point in failed)
        wrong = sum(not point.content_ok for point in failed)
        out.append(f"{FAILED} failed: {errors} RPCs without an answer"
                   + (f", wrong bytes at {wrong} points" if wrong else ""))
    return out


def aligned(lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Lines of cells as columns, of which so many stand on the left of their room, and the others on the right."""
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) if index < left else cell.rjust(width) for index, (cell, width) in
                               enumerate(zip(line, widths, strict=True))).rstrip() for line in lines)


def text(rows: Sequence[Row], width: int = 110) -> str:
    """Plain text, for files and pipes."""
    out = []
    for title, lines in _grids(rows, width, gap=2):
        out += [title, aligned(lines), ""]
    return "\n".join([*out, *notes(rows)]).rstrip() + "\n"


def print_table(rows: Sequence[Row], file: TextIO | None = None) -> None:
    """On a terminal with rich, if it is there; else plain. ``file``: stdout by default."""
    file = file or sys.stdout
    if file.isatty():
        try:
            from rich.console import Console
        except ImportError:
            pass
        else:
            _print_rich(rows, Console(file=file, highlight=False))
            return
    file.write(text(rows))


def _print_rich(rows: Sequence[Row], console: Any) -> None:
    from rich.table import Table
    from rich.text import Text

    for title, (head, *lines) in _grids(rows, console.width - 2, gap=3):
        # As Text: in plain strings rich would take square brackets for its own.
        table = Table(title=Text(title, "bold"), title_justify="left", header_style="bold", box=None,
                      padding=(0, 1))
        for index, name in enumerate(head):
            table.add_column(Text(name), justify="right" if index else "left", no_wrap=True)
        for line in lines:
            style = "" if line[0] else "dim"
            table.add_row(*(Text(cell, "yellow" if UNFAITHFUL in cell or FAILED in cell else style)
                            for cell in line))
        console.print(table)
        console.print()
    for note in notes(rows):
        console.print(Text(note, "yellow" if note[0] in (UNFAITHFUL, FAILED, " ") else "dim"))
