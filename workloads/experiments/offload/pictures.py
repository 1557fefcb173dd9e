"""Pictures of streams: bars by path, curves over the size of a record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workloads.experiments.offload.figures import COLOURS, COPY_COLOURS, Line
from workloads.experiments.offload.senders import COPIES
from workloads.results import plots
from workloads.results.points import size_text

_DEVICE = "#BBBBBB"
#: Where the longest bar is so many times the shortest, they are drawn by logarithms.
_FAR = 50


def _time(line: Line) -> float:
    return line["host_ns_per_byte"] + line["device_ns_per_byte"]


def by_path(table: Sequence[Line], path: Path, colours: Mapping[str, str] = COLOURS) -> bool:
    """Throughput, processor time (host first, device behind it) and copies of each byte, as bars by system; a row
    of panels for each number of connections."""
    from matplotlib.patches import Patch

    counts = sorted({line["connections"] for line in table})
    names = list(dict.fromkeys(line["system"] for line in table))
    figure = plots.new_figure(3 * 3.4 + 1.6, 2.6 * len(counts) + 0.3)
    grid = figure.subplots(len(counts), 3, squeeze=False, sharex="col")
    for (rate, time, copies), count in zip(grid, counts, strict=True):
        own = {line["system"]: line for line in table if line["connections"] == count}
        for place, name in enumerate(names):
            if (line := own.get(name)) is None:
                continue
            colour = colours.get(name, "black")
            rate.barh(place, line["mbit_per_s"], color=colour, xerr=[[line["mbit_per_s"] - line["low"]],
                                                                    [line["high"] - line["mbit_per_s"]]])
            host = line["host_ns_per_byte"]
            time.barh(place, host + line["device_ns_per_byte"], color=_DEVICE, hatch="//", edgecolor="white")
            time.barh(place, host, color=colour)
            left = 0.0
            for kind in COPIES:
                value = line["copies_per_byte"][kind]
                copies.barh(place, value, left=left, color=COPY_COLOURS[kind], edgecolor="white")
                left += value
        if max(map(_time, own.values())) > _FAR * min(map(_time, own.values())):
            time.set_xscale("log")
        for axes in (rate, time, copies):
            axes.set_yticks(range(len(names)), names if axes is rate else [""] * len(names))
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.grid(axis="x", alpha=0.3)
            axes.set_axisbelow(True)
            axes.tick_params(labelsize=8)
        rate.set_title(f"{count} connection{'s' if count > 1 else ''}", fontsize=9, loc="left")
    for axes, label in zip(grid[-1], ("Mbit/s", "processor time (ns a byte)", "copies of each byte"), strict=True):
        axes.set_xlabel(label, fontsize=9)
    keys = [Patch(facecolor=_DEVICE, hatch="//", edgecolor="white", label="NIC's process"),
            *(Patch(color=COPY_COLOURS[kind], label=f"copy: {kind}") for kind in COPIES)]
    most = max(line["trials"] for line in table)
    return plots.finish(figure, path, keys, said=plots.trials_text(most, "bar: median", "whisker"))


def by_size(table: Sequence[Line], path: Path) -> bool:
    """Throughput and processor time of host, and of host and device together, over the bytes of a write."""
    from matplotlib.lines import Line2D

    names = list(dict.fromkeys(line["system"] for line in table))
    sizes = sorted({line["size"] for line in table})
    figure = plots.new_figure(3 * 3.4 + 1.5, 3.4)
    rate, host, both = figure.subplots(1, 3)
    panels: tuple[tuple[Any, Callable[[Line], float], str], ...] = (
        (rate, lambda line: line["mbit_per_s"], "Mbit/s"),
        (host, lambda line: line["host_ns_per_byte"], "host (ns a byte)"),
        (both, _time, "host and NIC's process (ns a byte)"))
    for axes, value, label in panels:
        for name in names:
            own = sorted((line for line in table if line["system"] == name), key=lambda line: line["size"])
            axes.plot([line["size"] for line in own], [value(line) for line in own], marker="o", markersize=4,
                      color=COLOURS.get(name, "black"), linewidth=1.4)
            if axes is rate:
                axes.vlines([line["size"] for line in own], [line["low"] for line in own],
                            [line["high"] for line in own], color=COLOURS.get(name, "black"), linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sizes, [size_text(size) for size in sizes], fontsize=7, rotation=30)
        axes.set_xlabel("bytes of a write, so of a record", fontsize=9)
        axes.set_ylabel(label, fontsize=9)
        axes.grid(alpha=0.3, which="both")
    # Both are read against each other.
    low, high = (f(axes.get_ylim()[end] for axes in (host, both)) for f, end in ((min, 0), (max, 1)))
    for axes in (host, both):
        axes.set_ylim(low, high)
    keys = [Line2D([], [], color=COLOURS.get(name, "black"), marker="o", markersize=4, label=name)
            for name in names]
    most = max(line["trials"] for line in table)
    return plots.finish(figure, path, keys, said=plots.trials_text(most, "mark: median", "line"))
