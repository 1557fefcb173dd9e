"""Curves of queries over the number of leaves: goodput and the tail of incast, the tail of a fan-out.

A mark is the median of the trials, its bar reaches from the lowest to the highest; hollow is what was not faithful
or failed. Systems look as in plots.py.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from workloads.fleet.query import QueryRow
from workloads.results.plots import Mark, curve, finish, line_keys, new_figure, styles_of, trials_text, y_axis
from workloads.results.points import grouped, size_text
from workloads.results.row import Row

#: Inches.
_WIDTH, _HEIGHT, _LEGEND = 4.6, 3.1, 2.0
#: Samples below which a percentile is the largest or nearly: it is not drawn.
LEAST = {"p50": 1, "p99": 100, "p999": 1000}
_NAMES = {"p50": "median", "p99": "99th percentile", "p999": "99.9th percentile"}
#: How far one system's marks stand from the next one's.
_DODGE = 0.05

Value = Callable[[QueryRow], float | None]


@dataclass(frozen=True, slots=True)
class Spot:
    """All trials of one system at one number of leaves."""

    system: str
    leaves: int
    rows: tuple[QueryRow, ...]

    @property
    def weak(self) -> bool:
        """Not faithful, or failed."""
        return not faithful(self.rows) or any(row["errors"] or not row["content_ok"] for row in self.rows)

    def values(self, value: Value) -> list[float]:
        """The figure in each trial that has it, in ascending order."""
        return sorted(found for row in self.rows if (found := value(row)) is not None)


def spots(rows: Sequence[Row], mode: str) -> list[Spot]:
    """The points of the curves, in ascending order of leaves; controls are none."""
    own = [row for row in cast(Sequence[QueryRow], rows) if row["mode"] == mode and not row.get("control")]
    by_point = grouped(own, lambda row: (row["system"], row["concurrency"]))
    return sorted((Spot(*key, tuple(trials)) for key, trials in by_point.items()), key=lambda spot: spot.leaves)


def time_ms(name: str) -> Value:
    """Percentile ``name`` in milliseconds; None if there are too few samples for it."""
    def value(row: QueryRow) -> float | None:
        found = row["rtt_us"][name]
        return None if row["queries"] < LEAST[name] or found is None else found / 1000

    return value


def lost(row: Row) -> int:
    """Frames that full queues of the network lost."""
    return int(row["drops"]["queues"])


def faithful(rows: Sequence[Row]) -> bool:
    """Whether all of them are."""
    return all(bool(row["fidelity"]["ok"]) for row in rows)


def incast(rows: Sequence[Row], path: Path) -> bool:
    """Goodput, 99th percentile of the rounds and lost frames over the number of servers. False: no such rows, no
    file."""
    found = spots(rows, "incast")
    if not found:
        return False
    figure, grid = _figure(3)
    one = found[0].rows[0]
    ideal = {spot.leaves: spot.rows[0] for spot in found}
    _panel(grid[0], found, lambda row: row["goodput_mbps"], "goodput (Mbit/s)")
    _ideal(grid[0], {leaves: row["ideal_mbps"] for leaves, row in ideal.items()})
    y_axis(grid[0], log=False)
    grid[0].locator_params(axis="y", integer=True)
    # Of few rounds the slowest: what a time-out costs must not be left out.
    tail = "p99" if one["queries"] >= LEAST["p99"] else "max"
    _panel(grid[1], found, lambda row: (found := row["rtt_us"][tail]) and found / 1000,
           f"{_NAMES.get(tail, 'slowest')} of the rounds (ms)")
    _ideal(grid[1], {leaves: row["ideal_us"] / 1000 for leaves, row in ideal.items()})
    _logarithmic(grid[1])
    _panel(grid[2], found, lost, "frames lost in full queues")
    grid[2].set_yscale("symlog", linthresh=1)
    grid[2].set_ylim(bottom=0)
    return _finish(figure, path, found, "servers that answer at the same moment",
                   f"{size_text(one['size'])} from each\n{one['rate_mbps']:g} Mbit/s\n"
                   f"buffers of {one['buffer_bytes']:,} B\nRESEND after {one['resend_ms']:g} ms,\n"
                   "TCP's RTO 200 ms and more\n")


def fanout(rows: Sequence[Row], path: Path) -> bool:
    """Median and tail of whole queries over the number of leaves. False: no such rows, no file."""
    found = spots(rows, "fanout")
    if not found:
        return False
    names = [name for name in LEAST if any(spot.values(time_ms(name)) for spot in found)]
    figure, grid = _figure(max(1, len(names)))
    one = found[0].rows[0]
    for axes, name in zip(grid, names, strict=False):
        _panel(axes, found, time_ms(name), f"{_NAMES[name]} of the queries (ms)")
        if name == "p50":
            _ideal(axes, {spot.leaves: spot.rows[0]["ideal_us"] / 1000 for spot in found
                          if spot.rows[0]["ideal_us"]})
        _logarithmic(axes)
    return _finish(figure, path, found, "leaves of a query",
                   f"{size_text(one['size'])} from each, {one['load_text']}".replace(", ", "\n"))


def _figure(panels: int) -> tuple[Any, list[Any]]:
    figure = new_figure(panels * _WIDTH + _LEGEND, _HEIGHT + 0.6)
    return figure, list(figure.subplots(1, panels, squeeze=False).flat)


def _panel(axes: Any, found: list[Spot], value: Value, label: str) -> None:
    """A curve of each system."""
    places = {leaves: index for index, leaves in enumerate(dict.fromkeys(spot.leaves for spot in found))}
    systems = list(dict.fromkeys(spot.system for spot in found))
    styles = styles_of(systems)
    for number, system in enumerate(systems):
        shift = (number - (len(systems) - 1) / 2) * _DODGE
        curve(axes, styles[system], [
            Mark(places[spot.leaves] + shift, statistics.median(values), values[0], values[-1], spot.weak)
            for spot in found if spot.system == system and (values := spot.values(value))])
    axes.set_xticks(list(places.values()), [str(leaves) for leaves in places])
    axes.set_xlim(-0.4, len(places) - 0.6)
    axes.set_title(label, fontsize=10)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=9)


def _ideal(axes: Any, by_leaves: dict[int, float]) -> None:
    axes.plot(range(len(by_leaves)), list(by_leaves.values()), color="0.4", linestyle=(0, (1, 1)), linewidth=1.2,
              zorder=1)


def _logarithmic(axes: Any) -> None:
    axes.set_yscale("log")
    y_axis(axes, log=True)


def _finish(figure: Any, path: Path, found: list[Spot], label: str, title: str) -> bool:
    from matplotlib.lines import Line2D

    handles = line_keys(list(dict.fromkeys(spot.system for spot in found)))
    handles.append(Line2D([], [], color="0.4", linestyle=(0, (1, 1)), linewidth=1.2, label="the link, never idle"))
    said = trials_text(max(len(spot.rows) for spot in found), "mark: median", "bar")
    if weak := sum(spot.weak for spot in found):
        said += f"; hollow: not faithful, or queries failed ({weak} of {len(found)} points)"
    return finish(figure, path, handles, label, said=said, alignment="left", title=title,
                  title_fontsize=9)
