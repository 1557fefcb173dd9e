"""What a change of route came to: gaps in goodput, and the picture of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypedDict

from workloads.experiments.offload.figures import COLOURS
from workloads.experiments.offload.hosts import StreamRow
from workloads.results import plots
from workloads.results.points import grouped
from workloads.results.table import aligned

MODE = "route"
#: Seconds after a change in which a gap is its.
WINDOW_S = 0.25
#: Within so many seconds a NIC tells its counters.
PUBLISH_S = 0.1
#: Seconds of a step of the picture.
BIN_S = 0.01
#: Of policies, beside the colour of the system.
_LOOKS = {"ktls-nic, linux": COLOURS["ktls-nic"], "ktls-nic, freebsd": "#009E73"}


class RouteRow(StreamRow):
    """One transfer while the route changed."""

    flips_s: Sequence[float]
    """When it changed, in seconds since the receiver asked."""
    gaps_ms: Sequence[float]
    """After each of these, the longest time without a byte."""
    usual_gap_ms: float
    """The longest one at any other time."""
    goodput: Sequence[float]
    """Mbit/s in each :data:`BIN_S`."""


class RouteLine(TypedDict):
    """All trials of one system; times are in milliseconds."""

    system: str
    trials: int
    gap_ms: float | None
    """The median over all changes of route of the longest time without a byte; None: all was over before any."""
    worst_gap_ms: float | None
    usual_gap_ms: float
    """The median over trials of the longest time without a byte when nothing changed."""
    resent: int
    """Bytes that TCP sent again; the median over trials."""
    software: int
    """Packets that a NIC's software sealed, of all trials."""
    dropped: int
    """Packets that a NIC dropped for want of a context, of all trials."""
    retagged: int
    """Contexts that moved to another NIC (``ifnet.reset``), of all trials."""
    faithful: bool


def gaps_ms(trace: Sequence[Sequence[float]], flips: Sequence[float]) -> tuple[list[float], float]:
    """(after each flip the longest time without a byte, the longest at other times), in milliseconds. ``trace``:
    (seconds, bytes by then)."""
    times = [0.0, *(entry[0] for entry in trace)]
    after = [0.0] * len(flips)
    usual = 0.0
    for began, ended in pairwise(times):
        own = [index for index, flip in enumerate(flips) if began < flip + WINDOW_S and ended > flip]
        for index in own:
            after[index] = max(after[index], ended - began)
        if not own:
            usual = max(usual, ended - began)
    return [round(1000 * gap, 3) for gap in after], round(1000 * usual, 3)


def goodput(trace: Sequence[Sequence[float]]) -> list[float]:
    """Mbit/s in each :data:`BIN_S`."""
    if not trace:
        return []
    bins = [0.0] * (int(trace[-1][0] / BIN_S) + 1)
    had = 0.0
    for seconds, count in trace:
        bins[int(seconds / BIN_S)] += count - had
        had = count
    return [round(count * 8e-6 / BIN_S, 1) for count in bins]


def lines(rows: Sequence[RouteRow]) -> list[RouteLine]:
    """A line for each system."""
    out: list[RouteLine] = []
    for system, trials in grouped(rows, lambda row: row["transport"]).items():
        gaps = [gap for row in trials for gap in row["gaps_ms"]]
        out.append({
            "system": system, "trials": len(trials), "gap_ms": round(statistics.median(gaps), 2) if gaps else None,
            "worst_gap_ms": max(gaps, default=None),
            "usual_gap_ms": round(statistics.median(row["usual_gap_ms"] for row in trials), 2),
            "resent": round(statistics.median(row["sender"]["resent"] for row in trials)),
            "software": _sum(trials, "tx_tls_fallback"), "dropped": _sum(trials, "tx_tls_drop_bypass_req"),
            "retagged": _sum(trials, "ifnet_reset"), "faithful": all(row["fidelity"]["ok"] for row in trials)})
    return out


def _sum(rows: Sequence[Mapping[str, Mapping[str, int]]] | Sequence[RouteRow], name: str) -> int:
    return sum(int(row["counters"].get(name, 0)) for row in rows)


def as_text(table: Sequence[RouteLine]) -> str:
    """For people."""
    grid = [["system", "gap (ms)", "worst", "usual", "sent again (B)", "by software", "dropped", "re-tagged"]]
    grid += [[line["system"], _ms(line["gap_ms"]) + ("" if line["faithful"] else "~"),
              _ms(line["worst_gap_ms"]), f"{line['usual_gap_ms']:.1f}", f"{line['resent']:,}",
              f"{line['software']:,}", f"{line['dropped']:,}", str(line["retagged"])] for line in table]
    return aligned(grid) + (
        f"\ngap: the longest time without a byte within {WINDOW_S * 1000:.0f} ms of a change of route; usual: at "
        "any other time.\nPackets are of all trials.")


def _ms(gap: float | None) -> str:
    return "-" if gap is None else f"{gap:.1f}"


def picture(rows: Sequence[RouteRow], path: Path) -> bool:
    """Goodput over time of the first trial, a panel for each system. False: no rows, no file."""
    first = [row for row in rows if row["trial"] == 1]
    if not first:
        return False
    figure = plots.new_figure(7.6, 1.5 * len(first) + 0.6)
    grid = figure.subplots(len(first), 1, squeeze=False, sharex=True)[:, 0]
    for axes, row in zip(grid, first, strict=True):
        system = row["transport"]
        colour = _LOOKS.get(system, COLOURS.get(system, "black"))
        bins = row["goodput"]
        axes.step([BIN_S * number for number in range(len(bins))], bins, where="post", color=colour, linewidth=1)
        for flip, gap in zip(row["flips_s"], row["gaps_ms"], strict=True):
            axes.axvline(flip, color="black", linestyle=":", linewidth=1)
            axes.annotate(f"{gap:.0f} ms", (flip, axes.get_ylim()[1]), fontsize=8, va="top", xytext=(3, -2),
                          textcoords="offset points")
        axes.set_title(system, fontsize=9, loc="left")
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    grid[-1].set_xlabel("seconds; dotted: the route changes, and changes back", fontsize=9)
    figure.supylabel(f"Mbit/s, in steps of {BIN_S * 1000:.0f} ms", fontsize=9)
    figure.savefig(path, dpi=plots.DPI)
    return True
