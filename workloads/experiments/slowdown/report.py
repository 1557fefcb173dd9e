"""What experiments say of slowdown, simulated or measured: buckets of message sizes, as text, CSV and picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from smtstack.errors import ConfigError
from workloads.experiments.slowdown.simulation import Result
from workloads.results.plots import color_of, new_figure
from workloads.results.table import aligned

#: Ends of the buckets in percent of messages by size: those of the published curves.
EDGES = (10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0, 99.9, 100.0)
#: Samples from which a 99th percentile is good, and below which there is none.
FIRM_SAMPLES, MIN_SAMPLES = 1000, 200
_PUBLISHED = "Homa"
#: Of a slowdown axis, where they are on it.
_TICKS = (0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000, 2000, 5000, 10_000)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Slowdown of the messages between two percentiles of size, by one transport."""

    transport: str
    """In the simulation: the profile."""
    from_pct: float
    to_pct: float
    """Equal to ``from_pct`` in the bucket of all messages of the largest size."""
    min_bytes: int
    max_bytes: int
    samples: int
    mean: float
    median: float
    p99: float | None
    """None: fewer than :data:`MIN_SAMPLES`."""
    p99_firm: bool
    """At least :data:`FIRM_SAMPLES` stand behind it."""
    published_median: float | None = None
    """Homa's median for messages of size percentile ``to_pct``, SIGCOMM'18; None: not asked for or not there."""
    published_p99: float | None = None

    @property
    def label(self) -> str:
        """``80-90``, ``largest``."""
        return f"{self.from_pct:g}-{self.to_pct:g}" if self.from_pct < self.to_pct else "largest"

    def p99_text(self) -> str:
        """The 99th percentile with a ``~`` where few samples stand behind it, or nothing."""
        return "" if self.p99 is None else f"{'' if self.p99_firm else '~'}{self.p99:.2f}"


class Message(NamedTuple):
    """A message that arrived."""

    quantile: float
    """Place of its size in the distribution, 0 to 1."""
    size: int
    """Bytes."""
    slowdown: float
    """Time of the message, as a multiple of the time it takes alone."""


#: (median, p99) by percentile of message size.
Published = Mapping[float, tuple[float, float]]


def load_published(path: Path, workload: str, load: float) -> Published:
    """Homa's curve out of a CSV with the columns workload, load, transport, cum_pct_msgs, median_slowdown
    and p99_slowdown; raises :class:`ConfigError` for another file. Empty if there is no such load."""
    try:
        with path.open(newline="") as f:
            return {float(row["cum_pct_msgs"]): (float(row["median_slowdown"]), float(row["p99_slowdown"]))
                    for row in csv.DictReader(f)
                    if row["workload"].lower() == workload and row["transport"] == _PUBLISHED
                    and math.isclose(float(row["load"]), load)}
    except OSError as e:
        raise ConfigError(f"reference {path}: {e.strerror}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise ConfigError(f"reference {path}: not a table of slowdowns ({type(e).__name__}: {e})") from None


def rank(ordered: list[float], share: float) -> float:
    """Nearest-rank percentile of a sorted list."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def buckets(transport: str, messages: Iterable[Message], published: Published) -> list[Bucket]:
    """``messages`` in the order of sizes; empty buckets left out."""
    known = [Message(message.quantile * 100, message.size, message.slowdown) for message in messages]
    largest = max((message.size for message in known), default=0)
    out = []
    for low, high in pairwise((0.0, *EDGES, EDGES[-1])):
        if low == high:
            chosen = [message for message in known if message.size == largest]
        else:
            chosen = [message for message in known if low <= message.quantile < high]
        if not chosen:
            continue
        ordered = sorted(message.slowdown for message in chosen)
        count = len(ordered)
        median, p99 = published.get(high, (None, None)) if low < high else (None, None)
        out.append(Bucket(
            transport, low, high, min(message.size for message in chosen), max(message.size for message in chosen),
            count, sum(ordered) / count, rank(ordered, 0.5), rank(ordered, 0.99) if count >= MIN_SAMPLES else None,
            count >= FIRM_SAMPLES, median, p99))
    return out


def _place(row: Bucket) -> tuple[bool, float]:
    """By size, the largest of all at the end."""
    return row.from_pct == row.to_pct, row.from_pct


def simulated(result: Result, unloaded: Mapping[int, int]) -> list[Message]:
    """The messages of the simulation that were delivered, against the unloaded times by size (ns)."""
    return [Message(quantile, size, time / unloaded[size])
            for quantile, size, time in zip(result.quantiles, result.sizes, result.times_ns, strict=True)
            if time >= 0]


def mean_slowdown(messages: Sequence[Message]) -> float:
    """nan if there are none."""
    return sum(message.slowdown for message in messages) / len(messages) if messages else math.nan


def table(rows: list[Bucket]) -> str:
    """For people: median and p99 of every transport in columns, the published ones last."""
    transports = list(dict.fromkeys(row.transport for row in rows))
    published = any(row.published_p99 is not None for row in rows)
    head = ["messages %", "bytes", "samples", *(f"{t} {what}" for t in transports for what in ("p50", "p99"))]
    if published:
        head += ["published p50", "p99"]
    lines = [head]
    for label in dict.fromkeys(row.label for row in sorted(rows, key=_place)):
        found = {row.transport: row for row in rows if row.label == label}
        first = next(iter(found.values()))
        sizes = f"{first.min_bytes}-{first.max_bytes}"
        line = [label, sizes if first.min_bytes < first.max_bytes else str(first.max_bytes), str(first.samples)]
        for transport in transports:
            row = found.get(transport)
            line += [f"{row.median:.2f}", row.p99_text()] if row else ["", ""]
        if published:
            line += ["" if value is None else f"{value:.2f}"
                     for value in (first.published_median, first.published_p99)]
        lines.append(line)
    return aligned(lines, left=0)


def write_csv(path: Path, rows: list[Bucket]) -> None:
    """One line a bucket and transport, columns named as in :class:`Bucket`."""
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, [field.name for field in fields(Bucket)])
        writer.writeheader()
        for row in rows:
            writer.writerow({name: f"{value:.4f}" if isinstance(value, float) else value
                             for name, value in asdict(row).items()})


def plot(path: Path, rows: list[Bucket], title: str) -> None:
    """Slowdown over message size; x counts messages, not bytes, so every decile has its room.

    A hollow mark is a 99th percentile of fewer than :data:`FIRM_SAMPLES`.
    """
    order = list(dict.fromkeys(row.transport for row in rows))
    rows = sorted((row for row in rows if row.from_pct < row.to_pct), key=_place)
    columns: dict[str, Bucket] = {}
    for row in rows:
        columns.setdefault(row.label, row)
    places = {label: x for x, label in enumerate(columns)}
    figure = new_figure(9, 5)
    axes = figure.add_subplot()
    curves: dict[str, list[Bucket]] = {name: [] for name in order}
    for row in rows:
        curves[row.transport].append(row)
    for transport, curve in curves.items():
        color = color_of(transport)
        _draw(axes, color, transport, [(places[row.label], row.median, row.p99) for row in curve])
        weak = [(places[row.label], row.p99) for row in curve if row.p99 is not None and not row.p99_firm]
        if weak:
            axes.plot(*zip(*weak, strict=True), "o", color=color, markerfacecolor="white", markersize=5)
    _draw(axes, "0.45", "Homa, SIGCOMM'18",
          [(places[label], row.published_median, row.published_p99) for label, row in columns.items()])
    axes.set_yscale("log")
    # A measured message may be a little faster than the median of those alone.
    axes.set_ylim(bottom=min([1.0, *(row.median for row in rows)]))
    low, high = axes.get_ylim()
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xticks(list(places.values()),
                    [f"{columns[label].to_pct:g} %\n{_short(columns[label].max_bytes)}" for label in places])
    axes.set_xlabel("messages up to this share by size, and the largest of them "
                    f"(hollow: fewer than {FIRM_SAMPLES} samples)")
    axes.set_ylabel("slowdown")
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    figure.savefig(path, dpi=110)


def _draw(axes: Any, color: str, name: str, points: list[tuple[int, float | None, float | None]]) -> None:
    for what, style, marker, index in (("p99", "-", "o", 2), ("median", "--", ".", 1)):
        known = [(point[0], point[index]) for point in points if point[index] is not None]
        if known:
            axes.plot(*zip(*known, strict=True), style, marker=marker, color=color, label=f"{name} {what}",
                      markersize=4)


def _short(size: int) -> str:
    for unit, factor in (("MB", 1_000_000), ("KB", 1000)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} B"
