"""What the rows of ``smtnet run priorities`` say: a table, and a picture of what each class got."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal, cast

from workloads.experiments.priorities.arithmetic import MODE
from workloads.experiments.priorities.port import PriorityRow
from workloads.results.plots import finish, new_figure, trials_text, y_axis
from workloads.results.points import grouped
from workloads.results.row import Row

#: Inches, of a class's bars and of what is beside them.
_CLASS, _LEAST, _HEIGHT = 0.42, 2.0, 3.2
_WIDTH = 0.36
_OFFERED, _GOT = "#BBBBBB", "#0072B2"


def scenarios(rows: Sequence[Row]) -> dict[str, list[PriorityRow]]:
    """The trials of each, in the order they were measured in."""
    own = [row for row in cast(Sequence[PriorityRow], rows) if row["mode"] == MODE]
    return grouped(own, lambda row: row["variant"])


def table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A line for each scenario and class: Mbit/s on the cable, medians of the trials; frames that the port sent
    and dropped in all of them, from the first to the last."""
    lines = []
    for name, trials in scenarios(rows).items():
        rate = trials[0]["rate_mbps"]
        for number in trials[0]["classes"]:
            of = [row["classes"][number] for row in trials]
            got = sorted(entry["got"] * rate for entry in of)
            lines.append({
                "scenario": name, "class": int(number), "trials": len(trials),
                "offered_mbps": round(median(entry["offered"] for entry in of) * rate, 3),
                "expected_mbps": round(median(entry["expected"] for entry in of) * rate, 3),
                "got_mbps": round(median(got), 3), "lowest": round(got[0], 3), "highest": round(got[-1], 3),
                "port_sent": sum(entry["port_sent"] for entry in of),
                "port_dropped": sum(entry["port_dropped"] for entry in of),
                "strict": not any(row["errors"] for row in trials),
                "faithful": all(row["fidelity"]["ok"] for row in trials)})
    return lines


def picture(rows: Sequence[Row], path: Path) -> bool:
    """Offered and got by class, a panel for each scenario. False: no such rows, no file."""
    found = scenarios(rows)
    if not found:
        return False
    widths = [max(_LEAST, _CLASS * (1 + len(trials[0]["classes"]))) for trials in found.values()]
    figure = new_figure(sum(widths) + 1.8, _HEIGHT + 0.5)
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    grid = figure.subplots(1, len(found), squeeze=False, sharey=True, width_ratios=widths)
    for axes, (name, trials) in zip(grid.flat, found.items(), strict=True):
        _panel(axes, name, trials)
    measured = [row for trials in found.values() for row in trials]
    one = measured[0]
    most = max(max(entry["offered"], entry["got"]) for row in measured for entry in row["classes"].values())
    grid[0, 0].set_ylim(0, 1.05 * most * one["rate_mbps"])
    grid[0, 0].set_ylabel("Mbit/s on the cable", fontsize=10)
    said = trials_text(max(map(len, found.values())), "bar: median", "line")
    if weak := sum(not row["fidelity"]["ok"] or bool(row["errors"]) for row in measured):
        said += f"; hollow: not faithful, or not strict ({weak} of {len(measured)} trials)"
    handles = [Patch(color=_OFFERED, label="offered"), Patch(facecolor=_GOT, edgecolor=_GOT, label="got"),
               Line2D([], [], color="black", linewidth=1.4, label="strict priority")]
    return finish(figure, path, handles, "class: the upper three bits of the DSCP, 7 the highest",
                  said=said, alignment="left",
                  title=f"port of {one['rate_mbps']:g} Mbit/s\n{one['switch']}", title_fontsize=9)


def _panel(axes: Any, name: str, trials: list[PriorityRow]) -> None:
    rate = trials[0]["rate_mbps"]
    weak = not all(row["fidelity"]["ok"] for row in trials) or any(row["errors"] for row in trials)
    for place, number in enumerate(trials[0]["classes"]):
        def middle(what: Literal["offered", "got", "expected"], of: str = number) -> float:
            return float(median(row["classes"][of][what] for row in trials)) * rate

        got = sorted(row["classes"][number]["got"] * rate for row in trials)
        axes.bar([place - _WIDTH / 2], [middle("offered")], _WIDTH, color=_OFFERED)
        axes.bar([place + _WIDTH / 2], [middle("got")], _WIDTH, color="white" if weak else _GOT, edgecolor=_GOT,
                 yerr=[[middle("got") - got[0]], [got[-1] - middle("got")]] if len(got) > 1 else None, capsize=2)
        axes.hlines([middle("expected")], [place], [place + _WIDTH], color="black", linewidth=1.4)
    axes.set_xticks(range(len(trials[0]["classes"])), list(trials[0]["classes"]))
    axes.set_xlim(-0.7, len(trials[0]["classes"]) - 0.3)
    axes.set_title(name, fontsize=10)
    y_axis(axes, log=False)
    axes.set_axisbelow(True)
