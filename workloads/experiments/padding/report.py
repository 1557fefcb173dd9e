"""What padding cost in a run: tables and a picture, from its rows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from workloads.experiments.padding.model import POLICIES, Cost, costs
from workloads.results import plots
from workloads.results.folder import csv_text
from workloads.results.points import grouped, metric, size_text
from workloads.results.row import Row


class Wire(TypedDict):
    """What the messages of a trial were on the wire, both ways, in bytes."""

    bytes: int
    """Counted at the client's interface, with Ethernet's headers."""
    data: int
    """Computed: the frames of exactly these messages."""
    plain: int
    """The messages themselves."""


class PaddingRow(Row):
    """One trial with one padding policy."""

    policy: str
    wire: Wire


def comparison(computed: Sequence[Cost], rows: Sequence[PaddingRow]) -> dict[str, list[dict[str, Any]]]:
    """``bytes``: by workload and policy what is computed, and what was counted; ``times``: by load and policy the
    median figure and the median of the trials' ratios to no padding."""
    by_point = grouped(rows, lambda row: (row["size"], row["concurrency"], row["policy"]))
    counted = [{**asdict(cost), "measured_share": _wire_share(by_point, cost.workload, cost.policy)}
               for cost in computed]
    times = []
    for (size, concurrency, policy), trials in by_point.items():
        plain = by_point[size, concurrency, POLICIES[0]]
        values = [metric(row) or 0.0 for row in trials]
        shares = [value / base for value, row in zip(values, plain, strict=True) if (base := metric(row))]
        times.append({"size": size, "concurrency": concurrency, "policy": policy, "mode": trials[0]["mode"],
                      "median": round(statistics.median(values), 1),
                      "ratio": round(statistics.median(shares), 3) if shares else None})
    return {"bytes": counted, "times": times}


def _wire_share(by_point: dict[tuple[Any, ...], list[PaddingRow]], workload: str,
                policy: str) -> dict[str, float] | None:
    """Bytes that padding adds to the frames, as shares. ``counted``: at the interface, with grants,
    acknowledgements and what was sent again; ``computed``: for exactly the messages of these trials;
    ``beside_data``: what was counted beyond the frames of the messages. None: not measured."""
    def total(of: str, field: Literal["bytes", "data"]) -> int:
        return sum(row["wire"][field] for (size, _x, name), rows in by_point.items() for row in rows
                   if size == workload and name == of)

    plain, plain_data = total(POLICIES[0], "bytes"), total(POLICIES[0], "data")
    counted, data = total(policy, "bytes"), total(policy, "data")
    if not (plain and plain_data and data):
        return None
    return {"counted": round(counted / plain - 1, 4), "computed": round(data / plain_data - 1, 4),
            "beside_data": round(counted / data - 1, 4)}


def as_csv(table: Sequence[dict[str, Any]]) -> str:
    """padding.csv: a line for each workload and policy."""
    names = ("mean_bytes", "message_share", "wire_share", "lengths", "entropy_bits")
    return csv_text([
        {"workload": line["workload"], "policy": line["policy"], **{name: round(line[name], 4) for name in names},
         **{column: (line["measured_share"] or {}).get(name)
            for column, name in (("counted_share", "counted"), ("computed_share_of_run", "computed"))}}
        for line in table])


def as_text(table: dict[str, list[dict[str, Any]]]) -> str:
    """Both tables for people."""
    lines = [f"{'bytes added':<5}{'':<21}{'messages':>10}{'frames':>10}{'computed*':>11}{'counted*':>10}"
             f"{'lengths':>9}{'entropy':>9}"]
    for line in table["bytes"]:
        found = line["measured_share"]
        here = f"{found['computed']:>10.1%} {found['counted']:>9.1%} " if found else f"{'':>21}"
        lines.append(f"{line['workload'].upper():<5}{line['policy']:<27}{line['message_share']:>9.1%} "
                     f"{line['wire_share']:>9.1%} {here}{line['lengths']:>8}{line['entropy_bits']:>7.1f} b")
    lines += ["* of the messages of this run; counted at the client's interface, with control packets and what "
              "was sent again", "", f"{'echo':<32}{'median':>12}{'ratio to none':>16}"]
    for line in table["times"]:
        unit = "us" if line["mode"] == "unloaded" else "RPC/s"
        many = f" x{line['concurrency']}" if line["concurrency"] > 1 else ""
        ratio = "-" if line["ratio"] is None else f"{line['ratio']:.2f}"
        lines.append(f"{size_text(line['size']) + many:<11}{line['policy']:<21}{line['median']:>8,.0f} {unit:<5}"
                     f"{ratio:>14}")
    return "\n".join(lines)


def picture(rows: Sequence[Row], path: Path) -> bool:
    """Bytes added by workload, computed (bars) and counted (marks). False: no such rows, no file."""
    found = cast(list[PaddingRow], [row for row in rows if "wire" in row and isinstance(row["size"], str)])
    if not found:
        return False
    table = [line for line in comparison(costs(), found)["bytes"] if line["policy"] != POLICIES[0]]
    policies = list(dict.fromkeys(line["policy"] for line in table))
    names = list(dict.fromkeys(line["workload"] for line in table))
    figure = plots.new_figure(6.4, 3.6)
    axes = figure.subplots()
    width = 0.8 / len(policies)
    for index, (policy, color) in enumerate(zip(policies, ("#0072B2", "#E69F00"), strict=False)):
        own = [line for line in table if line["policy"] == policy]
        places = [names.index(line["workload"]) + (index - (len(policies) - 1) / 2) * width for line in own]
        axes.bar(places, [100 * line["wire_share"] for line in own], width, color=color, label=policy)
        counted = [(place, 100 * line["measured_share"]["counted"])
                   for place, line in zip(places, own, strict=True) if line["measured_share"]]
        axes.plot([p for p, _v in counted], [v for _p, v in counted], linestyle="", marker="D", color="black",
                  markersize=4, label="counted in this run" if index == 0 else None)
    axes.set_xticks(range(len(names)), [name.upper() for name in names])
    axes.set_yscale("symlog", linthresh=10)
    axes.set_yticks([0, 5, 10, 20, 50, 100, 200], ["0", "5", "10", "20", "50", "100", "200"])
    axes.set_ylabel("bytes of frames added (%)")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=9)
    figure.savefig(path, dpi=110)
    return True
