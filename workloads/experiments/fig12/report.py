"""The paper's Fig. 12 from rows: medians by way to begin a session, what each saves, and the paper's claims."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workloads.results import plots
from workloads.results.folder import csv_text
from workloads.results.points import grouped, points, size_text
from workloads.results.published import Beside
from workloads.results.row import Row

#: Ways to begin a session, as the paper names them. ``+ DNS``: with the ticket's lookup and check in the time.
ONE_RTT, INIT, INIT_FS, RSMP, RSMP_FS = "Init-1RTT", "Init", "Init-FS", "Rsmp", "Rsmp-FS"
INIT_DNS, INIT_FS_DNS = "Init + DNS", "Init-FS + DNS"
#: An RPC of a session that exists.
BASE = "established"
#: The session mode of each way, and whether its ticket is looked up in the measured time.
WAYS = {ONE_RTT: ("tls", False), INIT: ("ticket", False), INIT_FS: ("ticket-fs", False), RSMP: ("psk", False),
        RSMP_FS: ("psk-fs", False), INIT_DNS: ("ticket", True), INIT_FS_DNS: ("ticket-fs", True)}
#: What the paper's text says is saved of Init-1RTT, as shares (smt-paper Fig. 12).
PAPER_SAVED = {INIT: (0.52, 0.55), INIT_FS: (0.37, 0.44)}
#: Microseconds that Rsmp-FS takes more than Rsmp, by its text; and of its bars, read off the figure.
PAPER_FS_COST_US = (338, 387)
PAPER_US = {ONE_RTT: 2130, INIT_FS: 1255, INIT: 970, RSMP_FS: 958, RSMP: 632}
#: An RPC of 64 B there (Fig. 6, SMT).
PAPER_RPC_US = 20
MODE = "first"

_COLORS = {ONE_RTT: "#D55E00", INIT_FS: "#0072B2", INIT: "#56B4E9", RSMP_FS: "#009E73", RSMP: "#CC79A7",
           INIT_FS_DNS: "#8C6D31", INIT_DNS: "#7F7F7F", BASE: "#000000"}
_DRAWN = (ONE_RTT, INIT_FS, INIT, RSMP_FS, RSMP)


def comparison(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One entry for each size: ``us`` and ``quartiles_us`` of every way (the middle trial), what is ``saved`` of
    Init-1RTT (the median over the trials), ``above_base_us`` what beginning the session adds to an RPC, the share
    of that which is saved, and what forward secrecy costs when resuming."""
    measured = [row for row in rows if row["mode"] == MODE]
    by_point = grouped(measured, lambda row: (int(row["size"]), row["transport"]))
    out = []
    for size in sorted({size for size, _way in by_point}):
        own = {way: trials for (found, way), trials in by_point.items() if found == size}
        middle = {way: _answered(points(trials)[0].quoted) for way, trials in own.items()}
        medians = {way: [_answered(row)["p50"] for row in trials] for way, trials in own.items()}
        above = {way: [value - base for value, base in zip(values, medians[BASE], strict=True)]
                 for way, values in medians.items() if way != BASE}
        out.append({
            "size": size, "us": {way: round(found["p50"], 1) for way, found in middle.items()},
            "quartiles_us": {way: [round(found[name], 1) for name in ("p25", "p75")]
                             for way, found in middle.items()},
            "saved": {way: _saved(values, medians[ONE_RTT]) for way, values in medians.items()
                      if way not in (ONE_RTT, BASE)},
            "above_base_us": {way: round(statistics.median(values), 1) for way, values in above.items()},
            "above_base_saved": {way: _saved(values, above[ONE_RTT]) for way, values in above.items()
                                 if way != ONE_RTT},
            "resume_fs_cost_us": round(statistics.median(
                fs - plain for fs, plain in zip(medians[RSMP_FS], medians[RSMP], strict=True)), 1)})
    return out


def _answered(row: Row) -> dict[str, float]:
    """Times of a trial in which all was answered, else there would be no row; with quartiles, ``p25``, ``p75``."""
    return {name: us for name, us in row["rtt_us"].items() if us is not None}


def _saved(ours: Sequence[float], yardstick: Sequence[float]) -> float | None:
    """The share of the yardstick's time that is not needed: the median over the trials. None: there is no such
    share, as the yardstick took no time at all."""
    shares = [1 - own / theirs for own, theirs in zip(ours, yardstick, strict=True) if theirs > 0]
    return round(statistics.median(shares), 3) if shares else None


def beside(table: Sequence[dict[str, Any]]) -> list[Beside]:
    """Times of the smallest request, and what is saved."""
    first = table[0]
    title = f"first RPC of {size_text(first['size'])} (us)"
    out = [Beside(title, "here and there", way, first["us"][way], value, bars=True)
           for way, value in PAPER_US.items() if way in first["us"]]
    for way, (low, high) in PAPER_SAVED.items():
        out += [Beside("share of Init-1RTT that is saved", way, size_text(entry["size"]), entry["saved"].get(way),
                       low=low, high=high) for entry in table]
    return out


def as_csv(table: Sequence[dict[str, Any]]) -> str:
    """fig12.csv: a line for each size and way."""
    return csv_text([
        {"size": entry["size"], "way": way, "median_us": value,
         **dict(zip(("q1_us", "q3_us"), entry["quartiles_us"][way], strict=True)),
         "saved_of_1rtt": entry["saved"].get(way),
         **dict(zip(("paper_saved_low", "paper_saved_high"), PAPER_SAVED.get(way, ("", "")), strict=True)),
         "above_base_us": entry["above_base_us"].get(way), "saved_above_base": entry["above_base_saved"].get(way),
         "paper_us": PAPER_US.get(way)}
        for entry in table for way, value in entry["us"].items()])


def as_text(table: Sequence[dict[str, Any]]) -> str:
    """For people: times, and what is saved."""
    ways = [*WAYS, BASE]
    lines = [f"{'median us (quartiles)':<18}" + "".join(f"{size_text(entry['size']):>22}" for entry in table)
             + f"{'paper':>8}"]
    for way in ways:
        cells = []
        for entry in table:
            low, high = entry["quartiles_us"][way]
            cells.append(f"{entry['us'][way]:,.0f} ({low:,.0f}-{high:,.0f})")
        lines.append(f"{way:<18}" + "".join(f"{cell:>22}" for cell in cells) + f"{PAPER_US.get(way, ''):>8}")
    lines += ["", f"{'saved of Init-1RTT':<18}" + "".join(f"{size_text(entry['size']):>22}" for entry in table)
              + f"{'paper':>8}", "(in brackets: of what it adds to an RPC of an established session)"]
    for way in list(WAYS)[1:]:
        claim = PAPER_SAVED.get(way)
        beside = f"{claim[0]:.0%}-{claim[1]:.0%}" if claim else ""
        cells = [_saved_cell(entry, way) for entry in table]
        lines.append(f"{way:<18}" + "".join(f"{cell:>22}" for cell in cells) + f"{beside:>9}")
    low_us, high_us = PAPER_FS_COST_US
    lines += ["", "Rsmp-FS takes longer than Rsmp by " + ", ".join(
        f"{entry['resume_fs_cost_us']:,.0f} us ({size_text(entry['size'])})" for entry in table)
        + f"; in the paper by {low_us}-{high_us} us"]
    return "\n".join(lines)


def _saved_cell(entry: dict[str, Any], way: str) -> str:
    above = entry["above_base_saved"].get(way)
    return f"{entry['saved'][way]:.0%}" + ("" if above is None else f" ({above:.0%})")


def reading(table: Sequence[dict[str, Any]]) -> str:
    """Why our shares are not the paper's, with our numbers in it."""
    first = table[0]
    base, one_rtt = first["us"][BASE], first["us"][ONE_RTT]
    return (f"Of Init-1RTT's {one_rtt:,.0f} us ({size_text(first['size'])}), an RPC alone takes {base:,.0f} us "
            f"here and some {PAPER_RPC_US} us in the paper: packets cost more in Python, while cryptography "
            "is C in both, and faster here ('smtnet reproduce table2'). So a round trip saved counts for "
            "more here, and what key pairs and signatures take for less.")


def picture(rows: Sequence[Row], path: Path) -> bool:
    """Bars by size, quartiles as whiskers; a dash in Init-1RTT's proportion is where the paper has it. False: no
    such rows, no file."""
    if not any(row["mode"] == MODE for row in rows):
        return False
    table = comparison(rows)
    figure = plots.new_figure(1.9 * len(table) + 2.6, 3.8)
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    axes = figure.subplots()
    width = 0.84 / len(_DRAWN)
    for place, entry in enumerate(table):
        yardstick = entry["us"][ONE_RTT] / PAPER_US[ONE_RTT]
        for index, way in enumerate(_DRAWN):
            at = place + (index - (len(_DRAWN) - 1) / 2) * width
            value, (low, high) = entry["us"][way], entry["quartiles_us"][way]
            axes.bar([at], [value], width, color=_COLORS[way], yerr=([value - low], [high - value]), capsize=2)
            if way != ONE_RTT:
                share = PAPER_US[way] * yardstick
                axes.plot([at - width / 2, at + width / 2], [share, share], color="black", linewidth=2)
        axes.plot([place - 0.45, place + 0.45], [entry["us"][BASE]] * 2, color=_COLORS[BASE], linestyle=":")
    axes.set_xticks(range(len(table)), [size_text(entry["size"]) for entry in table])
    axes.set_xlabel("bytes of the request, and of the reply")
    axes.set_ylabel("first RPC of a session (µs)")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    marks = [Line2D([], [], color="black", linewidth=2, label="the paper's ratio"),
             Line2D([], [], color=_COLORS[BASE], linestyle=":", label="RPC of a session\nthat exists")]
    return plots.finish(figure, path, [*(Patch(color=_COLORS[way], label=way) for way in _DRAWN), *marks])
