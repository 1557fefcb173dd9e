"""What is common to runs of the block store: the paper's Fig. 9, the table and the picture by depth of the
queue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from workloads.experiments.paper_echo.figures import Line
from workloads.fleet.blocks import MODE, BlockRow
from workloads.results.kinds import Kind, Mode, Picture
from workloads.results.plots import Mark, caption, curve, finish, line_keys, new_figure, styles_of, y_axis
from workloads.results.points import QuotedPoint, grouped, points
from workloads.results.published import Beside
from workloads.results.row import Row
from workloads.transports.table import system_label

#: Depths of the queue in the paper's figure.
DEPTHS = (1, 2, 4, 6, 8)
#: Values of a line, by percentile: microseconds at each of these depths.
P50, P99 = 50, 99
_KTLS = "the paper has kernel TLS; where this kernel has none, TLS of OpenSSL in user space stands in"
#: Random reads of 4 KB, read off the paper's Fig. 9 (SMT, IEEE S&P 2026): fio on NVMe over Fabrics.
LINES = (
    Line("TCP", (("tcp", "sw"),),
         {P50: (99.6, 102.1, 109.1, 127.3, 129.3), P99: (114.0, 119.5, 146.4, 182.5, 186.6)}),
    Line("kTLS-sw", (("ktls-sw", "sw"), ("ktls", "sw"), ("tls", "sw")),
         {P50: (112.1, 114.2, 122.6, 144.8, 147.7), P99: (126.5, 132.1, 187.4, 226.3, 232.4)}, _KTLS),
    Line("Homa", (("homa", "sw"),),
         {P50: (101.9, 107.0, 113.2, 121.3, 121.3), P99: (114.2, 134.1, 158.7, 177.1, 175.1)}),
    Line("SMT-sw", (("smt", "sw"),),
         {P50: (107.0, 114.2, 120.3, 130.6, 132.1), P99: (121.3, 142.3, 162.8, 181.2, 183.3)}),
    Line("SMT-hw", (("smt", "hw"),),
         {P50: (106.0, 113.2, 117.2, 126.5, 129.5), P99: (119.3, 140.3, 160.8, 177.1, 181.2)}))
#: Its other line, which needs NICs that seal the kernel's TCP: ``run blocks`` has it beside, ``reproduce fig9``
#: not.
KTLS_HW = Line("kTLS-hw", (("ktls-nic", "sw"), ("ktls-nic", "hw")),
               {P50: (106.2, 108.0, 115.2, 136.2, 138.2), P99: (119.3, 134.6, 171.8, 209.1, 215.7)})
#: The only pattern that the figure has.
PAPER_PATTERN = "randread"
#: Inches.
_WIDTH, _HEIGHT, _LEGEND = 3.9, 2.9, 2.0
_DODGE = 0.05


def line_of(system: str) -> Line | None:
    """The paper's line of a system; None: it has none."""
    known = {system_label(*one): line for line in (*LINES, KTLS_HW) for one in line.systems}
    return known.get(system)


def block_points(rows: Iterable[Row]) -> list[QuotedPoint]:
    """The points of block runs."""
    return points(row for row in rows if row["mode"] == MODE)


def quoted(point: QuotedPoint) -> BlockRow:
    """The middle trial."""
    return cast(BlockRow, point.quoted)


def table(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """An entry for each point: median and 99th percentile in microseconds, commands a second, and the paper's."""
    out = []
    for point in block_points(rows):
        row = quoted(point)
        entry: dict[str, Any] = {
            "system": point.label, "variant": row["variant"], "pattern": row["pattern"], "store": row["store"],
            "iodepth": row["concurrency"],
            "p50_us": row["rtt_us"]["p50"], "p99_us": row["rtt_us"]["p99"], "iops": row["rpc_per_s"],
            "commands": row["rpcs"], "errors": point.errors, "content_ok": point.content_ok,
            "sent_again": row["sent_again"], "kills": row["kills"], "faithful": point.faithful}
        line = line_of(point.label)
        if line is not None and row["pattern"] == PAPER_PATTERN and row["concurrency"] in DEPTHS:
            at = DEPTHS.index(row["concurrency"])
            entry |= {"paper_p50_us": line.values[P50][at], "paper_p99_us": line.values[P99][at]}
        out.append(entry)
    return out


def as_text(entries: Sequence[dict[str, Any]]) -> str:
    """For people."""
    lines = [f"{'system':<10} {'pattern':<20}{'iodepth':>8}{'P50 us':>10}{'P99 us':>10}{'commands/s':>12}"
             f"{'paper P50':>11}{'paper P99':>11}"]
    for entry in entries:
        times = "".join(f"{'-' if entry[name] is None else format(entry[name], '.1f'):>10}"
                        for name in ("p50_us", "p99_us"))
        paper = "".join(f"{entry.get(name, ''):>11}" for name in ("paper_p50_us", "paper_p99_us"))
        lines.append(f"{entry['system']:<10} {entry['variant']:<20}{entry['iodepth']:>8}{times}"
                     f"{entry['iops']:>12,.0f}{paper}".rstrip())
    return "\n".join(lines)


def beside(entries: Iterable[dict[str, Any]]) -> list[Beside]:
    """Reads here beside the paper's."""
    out = []
    for name, what in (("p50_us", "median of random reads of 4 KB (us)"),
                       ("p99_us", "99th percentile of random reads of 4 KB (us)")):
        for entry in entries:
            if f"paper_{name}" in entry and entry["store"] == "memory":
                line = line_of(entry["system"])
                assert line is not None
                stands_in = line.note and entry["system"] == "tls"
                out.append(Beside(what, entry["system"], f"iodepth {entry['iodepth']}", entry[name],
                                  entry[f"paper_{name}"], note=f"for {line.paper}" if stands_in else ""))
    return out


def by_depth(rows: Sequence[Row], path: Path) -> bool:
    """Median, 99th percentile and commands per second over the depth of the queue, a line of panels for each
    pattern, below them what the paper has. False: no such rows, no file."""
    found = [point for point in block_points(rows) if point.value is not None]
    if not found:
        return False
    systems = list(dict.fromkeys(point.label for point in found))
    paper = {system: line for system in systems if (line := line_of(system)) is not None}
    if all(quoted(point)["pattern"] != PAPER_PATTERN for point in found):
        paper = {}
    panels = grouped(found, lambda point: quoted(point)["variant"])
    down = len(panels) + bool(paper)
    figure = new_figure(3 * _WIDTH + _LEGEND, down * _HEIGHT + 0.6)
    grid = figure.subplots(down, 3, squeeze=False)
    styles = styles_of(systems)
    for line, (variant, members) in zip(grid, panels.items(), strict=False):
        for axes, (name, what) in zip(line, (("p50", "median (µs)"), ("p99", "99th percentile (µs)"),
                                             ("", "commands per second")), strict=True):
            depths = {depth: place for place, depth in enumerate(
                sorted({quoted(point)["concurrency"] for point in members}))}
            for number, system in enumerate(systems):
                shift = (number - (len(systems) - 1) / 2) * _DODGE
                curve(axes, styles[system], [
                    Mark(depths[row["concurrency"]] + shift, value, value, value,
                         point.failed or not point.faithful)
                    for point in members if point.label == system for row in [quoted(point)]
                    if (value := row["rtt_us"][name] if name else row["rpc_per_s"]) is not None])
            _finish(axes, f"{variant}: {what}", list(depths))
    if paper:
        stands_in = " (tls: its kTLS-sw)" if "tls" in paper else ""
        for axes, share, what in zip(grid[-1], (P50, P99), ("median (µs)", "99th percentile (µs)"), strict=False):
            for system, line in paper.items():
                curve(axes, styles[system], [Mark(place, value, value, value, False)
                                             for place, value in enumerate(line.values[share])])
            _finish(axes, f"the paper{stands_in}, random reads: {what}", list(DEPTHS))
        grid[-1][2].set_visible(False)
    return finish(figure, path, line_keys(systems), "depth of the queue", said=caption(found, "mark", "no bar"))


def _finish(axes: Any, title: str, depths: Sequence[int]) -> None:
    axes.set_xticks(range(len(depths)), [str(depth) for depth in depths])
    axes.set_title(title, fontsize=9)
    y_axis(axes, log=False)


#: What a report must know of the rows of block runs.
KINDS: tuple[Kind, ...] = (
    Mode(MODE, "p50", "median of a command in us"),
    Picture("iodepth.png", by_depth, "Commands of the block store, by depth of the queue"))
