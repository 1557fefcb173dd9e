"""Pictures of a run: round trip by message size, throughput by RPCs under way.

A mark is the middle trial, its bar reaches from the lowest to the highest. Colours are those of Okabe and
Ito, which people who see few colours tell apart; marker and line say the same once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from smtstack.errors import Unsupported
from workloads.results import kinds
from workloads.results.points import QuotedPoint, points, size_text
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
    require_matplotlib()
    from matplotlib.figure import Figure

    panels: dict[tuple[str, ...], list[QuotedPoint]] = {}
    for point in found:
        panels.setdefault(panel_of(point), []).append(point)
    labels = list(dict.fromkeys(point.label for point in found))
    styles = styles_of(labels)
    across = min(len(panels), max(across, 2))
    down = -(-len(panels) // across)
    # A Figure of its own, not pyplot's: no display, no state shared with a caller's.
    figure = Figure(figsize=(across * WIDTH + LEGEND, down * HEIGHT + CAPTION), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharey="row")
    for axes, (panel, members) in zip(grid.flat, panels.items(), strict=False):
        axes.set_title(", ".join(filter(None, panel)), fontsize=10)
        axes.set_xticks([place for place, _name in ticks.values()], [name for _place, name in ticks.values()])
        axes.set_xmargin(0.08)
        if log:
            axes.set_yscale("log")
        for number, label in enumerate(labels):
            curve = sorted((p for p in members if p.label == label), key=x_of)
            # Side by side, or the last would hide the others.
            places = [place for place, _name in ticks.values()]
            shift = (number - (len(labels) - 1) / 2) * _DODGE * (max(places) - min(places))
            _curve(axes, styles[label], curve, [ticks[x_of(p)][0] + shift for p in curve])
        y_axis(axes, log)
    for unused in list(grid.flat)[len(panels):]:
        unused.set_visible(False)
    figure.supxlabel(x_label, fontsize=10)
    figure.supylabel(y_label, fontsize=10)
    figure.legend(handles=_legend(labels, styles), loc="outside right upper", fontsize=9, frameon=False)
    figure.suptitle(caption(found), fontsize=8.5, color="0.25", x=0.01, ha="left")
    figure.savefig(path, dpi=DPI)
    return True


def styles_of(labels: list[str]) -> dict[str, tuple[str, str, str]]:
    """Colour, marker and line of each, also of systems nobody knows."""
    others = [label for label in labels if label not in _STYLES]
    return {**_STYLES, **{label: _OTHERS[i % len(_OTHERS)] for i, label in enumerate(others)}}


def _curve(axes: Any, style: tuple[str, str, str], curve: list[QuotedPoint], places: list[float]) -> None:
    color, marker, line = style
    ys = [p.value or 0.0 for p in curve]
    below = [y - (p.low or y) for y, p in zip(ys, curve, strict=True)]
    above = [(p.high or y) - y for y, p in zip(ys, curve, strict=True)]
    axes.errorbar(places, ys, yerr=(below, above), color=color, linestyle=line, linewidth=1.4, capsize=2.5,
                  elinewidth=1)
    for place, y, point in zip(places, ys, curve, strict=True):
        weak = point.failed or not point.faithful
        # Above every line: a hollow mark that a line crosses looks filled.
        axes.plot([place], [y], marker=marker, color=color, markersize=6, zorder=5,
                  markerfacecolor="white" if weak else color)


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


def _legend(labels: list[str], styles: Mapping[str, tuple[str, str, Any]]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], color=color, marker=marker, linestyle=line, linewidth=1.4, label=label)
            for label in labels for color, marker, line in [styles[label]]]


def caption(found: list[QuotedPoint], middle: str = "mark", spread: str = "bar") -> str:
    """How a picture of ``found`` is to be read: ``middle`` shows the middle trial, ``spread`` reaches
    from the lowest to the highest; what is hollow is not faithful, or RPCs failed."""
    trials = max(point.trials for point in found)
    text = f"{middle}: middle of {trials} trials; {spread}: lowest to highest" if trials > 1 else "one trial each"
    weak = sum(not point.faithful for point in found)
    failed = sum(point.failed for point in found)
    if weak or failed:
        text += "; hollow: " + " or ".join(filter(None, (
            f"run not faithful ({weak} of {len(found)} points)" if weak else "",
            f"RPCs failed ({failed} of {len(found)})" if failed else "")))
    return text
