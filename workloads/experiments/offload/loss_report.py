"""Tables and pictures of streams over lossy wires."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from smtstack import quantities
from workloads.experiments.offload.figures import COLOURS, Line
from workloads.results import plots
from workloads.results.table import aligned

MODE = "loss"
#: Systems, by their names in rows.
YARDSTICK, IN_NIC, SMT = "ktls-sw", "ktls-nic", "smt-hw"
GIVEN_UP, NEXT = "ktls-nic, given up at 2 %", "ktls-nic, next record"
#: What a rate can be read from.
LEAST_BYTES = 1_000_000
RECORD = replace(quantities.BYTES, most=16_384)
_LINES = {GIVEN_UP: "--", NEXT: ":"}


def variant(loss: float) -> str:
    """How rows name a loss, in per cent: ``2% lost``."""
    return f"{loss:g}% lost"


def loss_of(line: Line) -> float:
    """The loss that :func:`variant` named."""
    return float(line["variant"].partition("%")[0])


def as_text(table: Sequence[Line]) -> str:
    """For people: by loss and system."""
    grid = [["lost", "system", "Mbit/s", "low-high", f"/ {YARDSTICK}", "sent again", "DUMP B/B", "resyncs/MB",
             "host ns/B", "device ns/B", "given up"]]
    grid += [_cells(line) for line in sorted(table, key=loss_of)]
    return aligned(grid, left=2) + (
        "\nDUMP: bytes of records that the device reads again to get back to its state, by byte of payload.\n"
        f"{SMT}: its NIC is in the host's process, and its resync is a number, without bytes.")


def _cells(line: Line) -> list[str]:
    return [f"{loss_of(line):g} %", line["system"], f"{line['mbit_per_s']:,.0f}{'' if line['faithful'] else '~'}",
            f"{line['low']:,.0f}-{line['high']:,.0f}", "-" if line["ratio"] is None else f"{line['ratio']:.2f}",
            f"{line['resent_share']:.2%}", f"{line['dump_per_byte']:.3f}", f"{line['resyncs_per_mb']:.1f}",
            f"{line['host_ns_per_byte']:.2f}", f"{line['device_ns_per_byte']:.2f}",
            f"{line['disabled']} of {line['trials']}" if line["system"] == GIVEN_UP else ""]


def picture(table: Sequence[Line], path: Path) -> bool:
    """Throughput, bytes read again and resyncs over loss."""
    from matplotlib.lines import Line2D

    names = list(dict.fromkeys(line["system"] for line in table))
    losses = sorted({loss_of(line) for line in table})
    figure = plots.new_figure(3 * 3.4 + 2.0, 3.4)
    grid = figure.subplots(1, 3)
    panels: tuple[tuple[Callable[[Line], float], str], ...] = (
        (lambda line: line["mbit_per_s"], "Mbit/s"),
        (lambda line: 100 * line["dump_per_byte"], "DUMP (% of payload)"),
        (lambda line: line["resyncs_per_mb"], "resyncs for each MB"))
    for axes, (value, label) in zip(grid, panels, strict=True):
        for name in names:
            own = sorted((line for line in table if line["system"] == name), key=loss_of)
            axes.plot([losses.index(loss_of(line)) for line in own], [value(line) for line in own], marker="o",
                      markersize=4, linewidth=1.4, **_look(name))
        axes.set_xticks(range(len(losses)), [f"{loss:g}" for loss in losses])
        axes.set_xlabel("packets lost (%)", fontsize=9)
        axes.set_ylabel(label, fontsize=9)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
    keys = [Line2D([], [], marker="o", markersize=4, label=name.replace(", ", ",\n"), **_look(name))
            for name in names]
    most = max(line["trials"] for line in table)
    return plots.finish(figure, path, keys, said=plots.trials_text(most, "mark: median", "in the table"))


def _look(name: str) -> dict[str, Any]:
    return {"color": COLOURS.get(name, COLOURS[name.partition(",")[0]]), "linestyle": _LINES.get(name, "-")}
