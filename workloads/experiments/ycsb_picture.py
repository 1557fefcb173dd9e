"""The picture of key-value stores: operations per second by YCSB workload, the systems as bars side by side.

A bar is the middle trial, its line reaches from the lowest to the highest; colours are those of plots.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from workloads.fleet.kv import KvRow
from workloads.results.kinds import Kind, Picture, Variant
from workloads.results.plots import CAPTION, HEIGHT, LEGEND, WIDTH, caption, finish, new_figure, styles_of, y_axis
from workloads.results.points import QuotedPoint, grouped, points, size_text
from workloads.results.row import Row

#: How much of the room between two workloads their bars take.
_BARS = 0.82


def throughput_by_workload(rows: Sequence[Row], path: Path) -> bool:
    """Operations per second of key-value stores, a panel for each value size. False: no such rows, no file."""
    found = [p for p in points(rows) if "workload" in p.quoted and p.quoted["mode"] == "loaded" and p.value]
    if not found:
        return False
    panels = grouped(sorted(found, key=lambda p: _stored(p)["value_bytes"]), lambda p: (
        p.quoted["topo"], p.quoted.get("poll") or "", size_text(_stored(p)["value_bytes"])))
    labels = list(dict.fromkeys(point.label for point in found))
    letters = sorted({_stored(point)["workload"] for point in found})
    styles = styles_of(labels)
    width = _BARS / len(labels)
    figure = new_figure(len(panels) * WIDTH + LEGEND, HEIGHT + CAPTION)
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)
    for axes, (panel, members) in zip(grid.flat, panels.items(), strict=True):
        axes.set_title(", ".join(filter(None, panel)), fontsize=10)
        axes.set_xticks(range(len(letters)), [letter.upper() for letter in letters])
        for point in members:
            place = float(letters.index(_stored(point)["workload"]))
            place += (labels.index(point.label) - (len(labels) - 1) / 2) * width
            value = point.value or 0.0
            weak = point.failed or not point.faithful
            spread = [value - (point.low or value)], [(point.high or value) - value]
            axes.bar([place], [value], width, color="white" if weak else styles[point.label][0],
                     edgecolor=styles[point.label][0], yerr=spread if point.trials > 1 else None, capsize=2)
        y_axis(axes, log=False)
        axes.set_axisbelow(True)
    from matplotlib.patches import Patch

    return finish(figure, path, [Patch(color=styles[label][0], label=label) for label in labels], "YCSB workload",
                  "operations per second", caption(found, "bar", "line"))


def _stored(point: QuotedPoint) -> KvRow:
    return cast(KvRow, point.quoted)


#: What a report must know of the rows of stores (:mod:`workloads.fleet.kv`).
KINDS: tuple[Kind, ...] = (
    Variant("ycsb", "operations/s"),
    Picture("workloads.png", throughput_by_workload, "Operations per second, by YCSB workload"))
