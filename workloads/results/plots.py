"""Pictures of a run: round trip by message size, throughput by RPCs under way.

A mark is the middle trial, its bar reaches from the lowest to the highest. Colours are those of Okabe and
Ito, which people who see few colours tell apart; marker and line say the same once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smtstack.errors import Unsupported
from workloads.results import kinds
from workloads.results.points import QuotedPoint, grouped, points, size_text
from workloads.results.row import Row
from workloads.transports.table import TABLE

#: By system. Any other gets one of _OTHERS.
_STYLES = {kind.label(nic): look for kind in TABLE.values() for nic, look in kind.looks.items()}
_OTHERS = (("#000000", "X", ":"), ("#7F7F7F", "*", ":"), ("#8C6D31", "<", ":"), ("#5254A3", ">", ":"))
_FIX = "pictures need matplotlib: make venv, or pip install matplotlib"
#: Inches of one panel, and of the legend and the caption beside and below.
WIDTH, HEIGHT, LEGEND, CAPTION = 4.2, 3.4, 1.3, 0.5
DPI = 110
#: How far one system's marks stand from the next one's, by the axis.
_DODGE = 0.008


def require_matplotlib() -> None:
    """Raises :class:`Unsupported` where there is none: better before a long run than after it."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise Unsupported(_FIX) from None


def color_of(transport: str) -> str:
    """The colour of a transport: that of its system when software seals, so that pictures of one run agree."""
    for label in (transport, f"{transport}-sw"):
        if label in _STYLES:
            return _STYLES[label][0]
    return _OTHERS[0][0]


def rtt_by_size(rows: Sequence[Row], path: Path) -> bool:
    """The unloaded round trip, both axes logarithmic; a panel for each topology (and way of waiting).
    False: no such rows, no file."""
    found = [p for p in _of_rpcs(rows) if p.quoted["mode"] == "unloaded" and not isinstance(p.quoted["size"], str)]
    sizes = sorted({_bytes(p) for p in found})
    return _draw(
        path, found, panel_of=lambda p: (p.panel[0], *p.panel[2:]), x_of=_bytes,
        ticks={size: (math.log2(size), size_text(size)) for size in sizes},
        x_label="bytes of the request, and of the reply", y_label="median round trip (µs)", log=True)


def _bytes(point: QuotedPoint) -> int:
    return int(point.quoted["size"])


def throughput_by_concurrency(rows: Sequence[Row], path: Path) -> bool:
    """RPC/s from zero on; a panel for each topology and message size. False: no such rows, no file."""
    found = [p for p in _of_rpcs(rows) if p.quoted["mode"] == "loaded"]
    counts = sorted({p.column.concurrency for p in found})
    return _draw(
        path, found, panel_of=lambda p: (p.panel[0], *p.panel[2:], size_text(p.column.size)),
        x_of=lambda p: p.column.concurrency, ticks={n: (float(i), str(n)) for i, n in enumerate(counts)},
        x_label="RPCs under way", y_label="RPCs per second", across=len({p.column.size for p in found}))


def _of_rpcs(rows: Sequence[Row]) -> list[QuotedPoint]:
    return [point for point in points(rows) if not kinds.apart(point.quoted)]


def _draw(path: Path, found: list[QuotedPoint], panel_of: Callable[[QuotedPoint], tuple[str, ...]],
          x_of: Callable[[QuotedPoint], int], ticks: Mapping[int, tuple[float, str]], x_label: str, y_label: str,
          across: int = 1, log: bool = False) -> bool:
    """``ticks``: for every x its place and its name; ``across``: panels that belong in one line."""
    found = [point for point in found if point.value is not None]
    if not found:
        return False
    panels = grouped(found, panel_of)
    labels = list(dict.fromkeys(point.label for point in found))
    styles = styles_of(labels)
    across = min(len(panels), max(across, 2))
    down = -(-len(panels) // across)
    figure = new_figure(across * WIDTH + LEGEND, down * HEIGHT + CAPTION)
    grid = figure.subplots(down, across, squeeze=False, sharey="row")
    for axes, (panel, members) in zip(grid.flat, panels.items(), strict=False):
        axes.set_title(", ".join(filter(None, panel)), fontsize=10)
        axes.set_xticks([place for place, _name in ticks.values()], [name for _place, name in ticks.values()])
        axes.set_xmargin(0.08)
        if log:
            axes.set_yscale("log")
        for number, label in enumerate(labels):
            own = sorted((p for p in members if p.label == label), key=x_of)
            # Side by side, or the last would hide the others.
            places = [place for place, _name in ticks.values()]
            shift = (number - (len(labels) - 1) / 2) * _DODGE * (max(places) - min(places))
            curve(axes, styles[label], [
                Mark(ticks[x_of(p)][0] + shift, p.value or 0.0, p.low or p.value or 0.0, p.high or p.value or 0.0,
                     p.failed or not p.faithful) for p in own])
        y_axis(axes, log)
    for unused in list(grid.flat)[len(panels):]:
        unused.set_visible(False)
    return finish(figure, path, line_keys(labels), x_label, y_label, caption(found))


def new_figure(width: float, height: float) -> Any:
    """A picture of so many inches. Raises :class:`Unsupported` without matplotlib."""
    require_matplotlib()
    from matplotlib.figure import Figure

    # A Figure of its own, not pyplot's: no display, no state shared with a caller's.
    return Figure(figsize=(width, height), layout="constrained")


def finish(figure: Any, path: Path, handles: Sequence[Any], x_label: str = "", y_label: str = "", said: str = "",
           **legend: Any) -> bool:
    """The legend beside the panels, labels of all of them, what is said above them, and the file; True."""
    figure.supxlabel(x_label, fontsize=10)
    figure.supylabel(y_label, fontsize=10)
    figure.legend(handles=handles, loc="outside right upper", fontsize=9, frameon=False, **legend)
    figure.suptitle(said, fontsize=8.5, color="0.25", x=0.01, ha="left")
    figure.savefig(path, dpi=DPI)
    return True


def styles_of(labels: list[str]) -> dict[str, tuple[str, str, str]]:
    """Colour, marker and line of each, also of systems nobody knows."""
    others = [label for label in labels if label not in _STYLES]
    return {**_STYLES, **{label: _OTHERS[i % len(_OTHERS)] for i, label in enumerate(others)}}


class Mark(NamedTuple):
    """A point of a curve, with a bar from the lowest to the highest trial."""

    x: float
    y: float
    low: float
    high: float
    weak: bool
    """Hollow: not faithful, or failed."""


def curve(axes: Any, style: tuple[str, str, str], marks: Sequence[Mark]) -> None:
    """A system's line, with its marks."""
    color, marker, line = style
    axes.errorbar([m.x for m in marks], [m.y for m in marks],
                  yerr=([m.y - m.low for m in marks], [m.high - m.y for m in marks]), color=color, linestyle=line,
                  linewidth=1.4, capsize=2.5, elinewidth=1)
    for mark in marks:
        # Above every line: a hollow mark that a line crosses looks filled.
        axes.plot([mark.x], [mark.y], marker=marker, color=color, markersize=6, zorder=5,
                  markerfacecolor="white" if mark.weak else color)


def y_axis(axes: Any, log: bool) -> None:
    """Ticks that can be read, from zero on if it is not logarithmic."""
    if log:
        low, high = axes.get_ylim()
        if high < 1.5 * low:
            # One value, or nearly: limits that differ by rounding only would leave no room for a tick.
            low, high = low / 1.5, high * 1.5
            axes.set_ylim(low, high)
        steps = (1, 2, 3, 5) if high / low < 30 else (1, 3)
        ticks = [m * 10.0**e for e in range(-1, 8) for m in steps if low <= m * 10.0**e <= high]
        axes.set_yticks(ticks, [f"{t:,.0f}" if t >= 1 else f"{t:g}" for t in ticks])
        axes.minorticks_off()
    else:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=9)


def line_keys(labels: list[str]) -> list[Any]:
    """The legend's entries of systems that are lines."""
    from matplotlib.lines import Line2D

    styles: Mapping[str, tuple[str, str, Any]] = styles_of(labels)
    return [Line2D([], [], color=color, marker=marker, linestyle=line, linewidth=1.4, label=label)
            for label in labels for color, marker, line in [styles[label]]]


def trials_text(trials: int, middle: str, spread: str) -> str:
    """What stands for how many trials: ``mark: middle of 3 trials; bar: lowest to highest``."""
    return f"{middle} of {trials} trials; {spread}: lowest to highest" if trials > 1 else "one trial each"


def caption(found: list[QuotedPoint], middle: str = "mark", spread: str = "bar") -> str:
    """How a picture of ``found`` is to be read: ``middle`` shows the middle trial, ``spread`` reaches
    from the lowest to the highest; what is hollow is not faithful, or RPCs failed."""
    text = trials_text(max(point.trials for point in found), f"{middle}: middle", spread)
    weak = sum(not point.faithful for point in found)
    failed = sum(point.failed for point in found)
    if weak or failed:
        text += "; hollow: " + " or ".join(filter(None, (
            f"run not faithful ({weak} of {len(found)} points)" if weak else "",
            f"RPCs failed ({failed} of {len(found)})" if failed else "")))
    return text
