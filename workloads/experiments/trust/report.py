"""What ``smtnet reproduce trust`` says of its rows: all normalised to native, within the same trial, and the price
of the checks."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from workloads.experiments.trust.ends import BLAST, CALL, ECHO, WAITS
from workloads.experiments.trust.interfaces import (
    EXIT,
    NATIVE,
    QUEUE,
    RING,
    RKT_IO,
    SETTINGS,
    UNCHECKED,
    ZERO_COPY,
)
from workloads.experiments.trust.measures import AES, AES_OFF, AES_ON, FILE, KV_SMT, KV_TCP, WORKERS
from workloads.experiments.trust.price import Price
from workloads.results import plots
from workloads.results.points import metric
from workloads.results.published import Beside
from workloads.results.row import Row
from workloads.results.table import aligned, number

#: Of RAKIS' abstract: UDP by RAKIS, by that of Gramine-SGX; the same of four programs on average.
UDP_CLAIM, PROGRAMS_CLAIM = 4.6, 2.8
#: Of rkt-io's abstract: networks and storage, by those of host-based and library-OS systems.
RKT_NETWORK_CLAIM, RKT_STORAGE_CLAIM = 9.0, 7.0
_WHAT = {BLAST: "UDP {} B", KV_SMT: "KV over SMT", KV_TCP: "KV over TCP", FILE: "file, blocks of {} B"}
_COLOURS = {NATIVE: "#000000", EXIT: "#D55E00", "exit-modelled": "#E69F00", QUEUE: "#CC79A7", RING: "#0072B2",
            UNCHECKED: "#56B4E9", ZERO_COPY: "#009E73"}


class Line(NamedTuple):
    """A workload, and by interface: what it came to, and that by native of the same trial, medians."""

    what: str
    values: dict[str, float]
    """Datagrams, operations, blocks a second."""
    ratios: dict[str, float]
    checks: float | None
    """What checking costs: processor time of both ends for each operation with checks, by that without, less 1.
    Other programs disturb it less than a rate. None: not both were measured."""
    faithful: bool


def lines(rows: Sequence[Row]) -> list[Line]:
    """RAKIS' table: a line for each workload."""
    found: dict[tuple[str, Any], list[Row]] = {}
    for row in rows:
        if row["mode"] in _WHAT:
            found.setdefault((row["mode"], row["size"] if row["mode"] in (BLAST, FILE) else ""), []).append(row)
    return [_line(_WHAT[mode].format(size), own) for (mode, size), own in found.items()]


def _line(what: str, rows: Sequence[Row]) -> Line:
    by = {(row["variant"], row.get("trial", 1)): metric(row) for row in rows}
    names = list(dict.fromkeys(row["variant"] for row in rows))

    def against(name: str, other: str) -> list[float]:
        return [value / base for (variant, trial), value in by.items()
                if variant == name and value and (base := by.get((other, trial)))]

    values = {name: statistics.median([value or 0.0 for (variant, _trial), value in by.items() if variant == name])
              for name in names}
    ratios = {name: statistics.median(found) for name in names if (found := against(name, NATIVE))}
    spent = {(row["variant"], row.get("trial", 1)): _spent(row) for row in rows}
    checks = [cost / base for (variant, trial), cost in spent.items()
              if variant == RING and (base := spent.get((UNCHECKED, trial)))]
    return Line(what, values, ratios, statistics.median(checks) - 1 if checks else None,
                all(row["fidelity"]["ok"] for row in rows))


def _spent(row: Row) -> float:
    """Processor time of both ends, in seconds an operation."""
    return (row["cpu"].get("client_s", 0.0) + row["cpu"].get("server_s", 0.0)) / max(row["rpcs"], 1)


def text(rows: Sequence[Row], effect: float | None, price: Price | None = None) -> str:
    """All tables."""
    alone = "" if price is None else (
        f"Rings alone, in memory: {price.checked:.2f} us of processor a packet with checks, "
        f"{price.unchecked:.2f} us without: {price.share:+.0%}")
    parts = [_rakis(lines(rows)), alone, _calls(rows), _waits(rows), _optimisations(rows, effect),
             _beside_text(rows)]
    return "\n\n".join(part for part in parts if part)


def _rakis(table: Sequence[Line]) -> str:
    names = [name for name in (*SETTINGS, QUEUE, ZERO_COPY) if any(name in line.values for line in table)]
    grid = [["by native (median of trials)", "native/s", *names[1:], "ring / exit", "checks cost"]]
    for line in table:
        by_exit = line.ratios.get(RING, 0.0) / line.ratios[EXIT] if line.ratios.get(EXIT) else None
        grid.append([line.what + ("" if line.faithful else " ~"), number(line.values.get(NATIVE)),
                     *(f"{line.ratios[name]:.2f}" if name in line.ratios else "" for name in names[1:]),
                     "" if by_exit is None else f"{by_exit:.2f}",
                     "" if line.checks is None else f"{line.checks:+.0%}"])
    return "RAKIS' settings\n" + aligned(grid)


def _calls(rows: Sequence[Row]) -> str:
    grid = [["a call that sends (us)", "rkt-io's", "p50", "p90", "p99"]]
    for name, theirs in RKT_IO.items():
        own = [row for row in rows if row["mode"] == CALL and row["variant"] == name]
        if own:
            grid.append([name, theirs, *(f"{statistics.median([r['rtt_us'][p] or 0.0 for r in own]):.1f}"
                                         for p in ("p50", "p90", "p99"))])
    return "rkt-io's figure 1a: each call\n" + aligned(grid, left=2) if len(grid) > 1 else ""


def _waits(rows: Sequence[Row]) -> str:
    grid = [["echo, waiting by", "interface", "p50 (us)", "p99 (us)", "processor (us an echo)"]]
    for name in (NATIVE, RING):
        for wait in WAITS:
            own = [r for r in rows if r["mode"] == ECHO and r["variant"] == name and r["poll"] == wait]
            if own:
                cpu = statistics.median([r["cpu"]["client_s"] / max(r["rpcs"], 1) * 1e6 for r in own])
                grid.append([wait, name, *(f"{statistics.median([r['rtt_us'][p] or 0.0 for r in own]):.1f}"
                                           for p in ("p50", "p99")), f"{cpu:.1f}"])
    return "Polling, events, or first the one, then the other\n" + aligned(grid, left=2) if len(grid) > 1 else ""


def _optimisations(rows: Sequence[Row], effect: float | None) -> str:
    grid = [["rkt-io's figure 5", "RPC/s", "by the first"]]
    groups = [[f"{name} x{n}" for n in (1, 2, 4)] for name in (NATIVE, RING)] + [[AES_ON, AES_OFF]]
    for names in groups:
        values = [(name, [metric(r) or 0.0 for r in rows if r["mode"] in (WORKERS, AES) and r["variant"] == name])
                  for name in names]
        known = [(name, statistics.median(found)) for name, found in values if found]
        grid += [[name, number(value), f"{value / known[0][1]:.2f}"] for name, value in known if known[0][1]]
    said = "AES-NI: not measured" if effect is None else (
        f"with AES masked a record of 16 KB takes {effect:.1f} times as long")
    return "Workers, and AES by the processor\n" + aligned(grid) + "\n" + said if len(grid) > 1 else ""


def _median(table: Sequence[Line], what: str, name: str, other: str) -> float | None:
    found = [line.ratios[name] / line.ratios[other] for line in table
             if line.what.startswith(what) and line.ratios.get(other) and name in line.ratios]
    return statistics.median(found) if found else None


def beside(rows: Sequence[Row]) -> list[Beside]:
    """What stands beside published values, as ratios."""
    table = lines(rows)
    note = "exit: a hop to another process; there: SGX"
    longest = max((line.what for line in table if line.what.startswith("UDP")), default="UDP",
                  key=lambda what: int(what.split()[1]) if len(what.split()) > 1 else 0)
    others = [value for what in ("KV over SMT", "KV over TCP", "file")
              if (value := _median(table, what, RING, EXIT)) is not None]
    calls = {name: [row["rtt_us"]["p50"] or 0.0 for row in rows if row["mode"] == CALL and row["variant"] == name]
             for name in RKT_IO}
    network = (statistics.median(calls[EXIT]) / statistics.median(calls[RING])
               if calls[EXIT] and calls[RING] and statistics.median(calls[RING]) else None)
    return [
        Beside("ring by exits", "ring", "UDP, longest", _median(table, longest, RING, EXIT), UDP_CLAIM, note=note,
               bars=True),
        Beside("ring by exits", "ring", "programs", statistics.mean(others) if others else None, PROGRAMS_CLAIM,
               note="KV over SMT, files; there Memcached, Curl, Redis, MCrypt", bars=True),
        Beside("ring by exits", "ring", "a call", network, RKT_NETWORK_CLAIM,
               note="time of a call; there throughput against SCONE and SGX-LKL", bars=True),
        Beside("ring by exits", "ring", "files", _median(table, "file", RING, EXIT), RKT_STORAGE_CLAIM,
               note="io_uring by a monitor; there SPDK against SCONE and SGX-LKL", bars=True)]


def _beside_text(rows: Sequence[Row]) -> str:
    grid = [["ring by exits", "here", "published", "what stands beside what"]]
    grid += [[b.at, "-" if b.here is None else f"{b.here:.2f}", f"{b.published:g}", b.note]
             for b in beside(rows)]
    return aligned(grid) + (
        "\nOnly whether a ring is faster than exits can be compared, not how many times: no SGX is here, an exit\n"
        "is a change of process, and all but AES is Python.")


def picture(rows: Sequence[Row], path: Path) -> bool:
    """RAKIS' table as bars by native. False: no such rows."""
    table = lines(rows)
    if not table:
        return False
    names = [name for name in _COLOURS if any(name in line.ratios for line in table)]
    figure = plots.new_figure(9, 1.2 + 0.55 * len(table))
    axes = figure.subplots()
    height = 0.8 / len(names)
    for number_, name in enumerate(names):
        places = [at for at, line in enumerate(table) if name in line.ratios]
        axes.barh([at - 0.4 + (number_ + 0.5) * height for at in places],
                  [table[at].ratios[name] for at in places], height, color=_COLOURS[name], label=name)
    axes.set_yticks(range(len(table)), [line.what for line in table], fontsize=8)
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    handles, _labels = axes.get_legend_handles_labels()
    return plots.finish(figure, path, handles, "throughput by that of native sockets")


def calls_picture(rows: Sequence[Row], path: Path) -> bool:
    """How long calls take: the share that took at most so long, by percentiles. False: no such rows."""
    own = [row for row in rows if row["mode"] == CALL]
    if not own:
        return False
    figure = plots.new_figure(6, 3.4)
    axes = figure.subplots()
    shares = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
    for name in RKT_IO:
        found = [row for row in own if row["variant"] == name]
        if found:
            axes.plot([statistics.median([row["rtt_us"][p] or 0.0 for row in found]) for p in shares],
                      list(shares.values()), marker="o", color=_COLOURS[name], label=f"{name}: {RKT_IO[name]}")
    axes.set_xscale("log")
    axes.grid(alpha=0.3)
    handles, _labels = axes.get_legend_handles_labels()
    return plots.finish(figure, path, handles, "microseconds of a call that sends", "share of calls")
