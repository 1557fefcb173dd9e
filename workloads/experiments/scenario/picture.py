"""scenario.png: RPC/s and latency over time, faults shaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from workloads.experiments.scenario.timeline import Figures, ScenarioRow
from workloads.results import plots
from workloads.results.points import label
from workloads.results.row import Row

MODE = "scenario"
#: Inches of one panel, and of the legend beside.
_WIDTH, _HEIGHT, _LEGEND = 7.0, 2.6, 1.3
_SHADE = "0.88"


def draw(rows: Sequence[Row], path: Path) -> bool:
    """A column for each load: RPC/s above, p50 and p99 below, a line for each system (further trials are pale).
    False: no such rows, no file."""
    found = [cast(ScenarioRow, row) for row in rows if row["mode"] == MODE and "timeline" in row]
    if not found:
        return False
    plots.require_matplotlib()
    from matplotlib.figure import Figure

    loads = list(dict.fromkeys(row["load"] for row in found))
    systems = list(dict.fromkeys(label(row) for row in found))
    styles = plots.styles_of(systems)
    figure = Figure(figsize=(_WIDTH * len(loads) + _LEGEND, 2 * _HEIGHT), layout="constrained")
    grid = figure.subplots(2, len(loads), squeeze=False, sharex=True)
    for column, load in enumerate(loads):
        rate, latency = grid[0][column], grid[1][column]
        rate.set_title(load, fontsize=10)
        for row in (row for row in found if row["load"] == load):
            color = styles[label(row)][0]
            pale = 1.0 if row["trial"] == 1 else 0.35
            name = label(row) if row["trial"] == 1 else None
            at = [(one["begin_s"] + one["end_s"]) / 2 for one in row["timeline"]]
            rate.plot(at, [one["rpc_per_s"] for one in row["timeline"]], color=color, alpha=pale, label=name,
                      linewidth=1.2)
            for which, line in (("p50_us", "-"), ("p99_us", ":")):
                latency.plot(at, _milliseconds(row["timeline"], which), color=color, alpha=pale, linestyle=line,
                             linewidth=1.2)
        _shade((rate, latency), next(row for row in found if row["load"] == load))
        latency.set_yscale("log")
        latency.set_xlabel("seconds", fontsize=9)
        plots.y_axis(rate, log=False)
        plots.y_axis(latency, log=True)
    grid[0][0].set_ylabel("RPC/s", fontsize=9)
    grid[1][0].set_ylabel("p50, p99 (dotted), ms", fontsize=9)
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside right upper", fontsize=9, frameon=False)
    figure.suptitle(f"{found[0]['scenario']}: faults shaded, each interval {found[0]['interval_s']:g} s",
                    fontsize=8.5, color="0.25", x=0.01, ha="left")
    figure.savefig(path, dpi=110)
    return True


def _milliseconds(timeline: Sequence[Figures], which: str) -> list[float]:
    values = (cast(Any, one)[which] for one in timeline)
    return [float("nan") if us is None else us / 1000 for us in values]


def _shade(panels: Sequence[Any], row: ScenarioRow) -> None:
    """The faults of one row: those of the others are at the same times, but for milliseconds."""
    for number, fault in enumerate(row["faults"]):
        for axes in panels:
            axes.axvspan(fault["begin_s"], fault["end_s"], color=_SHADE, zorder=0)
        panels[0].text(fault["begin_s"], 0.98 - 0.09 * (number % 3), f" {fault['what']}", fontsize=7, va="top",
                       transform=panels[0].get_xaxis_transform(),
                       bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5})
