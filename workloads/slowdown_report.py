"""What the slowdown experiment says: buckets of message sizes, as text, CSV and picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from smtstack.errors import ConfigError, Unsupported
from workloads.slowdown_run import Result

#: Ends of the buckets in percent of messages by size: those of the published curves.
EDGES = (10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0, 99.9, 100.0)
#: Samples from which a 99th percentile is good, and below which there is none.
FIRM_SAMPLES, MIN_SAMPLES = 1000, 200
_PUBLISHED = "Homa"


@dataclass(frozen=True, slots=True)
class Bucket:
    """Slowdown of the messages between two percentiles of size, in one profile."""

    profile: str
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
    """Of Homa for messages of size percentile ``to_pct``, SIGCOMM'18; None: not asked for or not there."""
    published_p99: float | None = None

    @property
    def label(self) -> str:
        """``80-90``, ``largest``."""
        return f"{self.from_pct:g}-{self.to_pct:g}" if self.from_pct < self.to_pct else "largest"

    def p99_text(self) -> str:
        """The 99th percentile with a ``~`` where few samples stand behind it, or nothing."""
        return "" if self.p99 is None else f"{'' if self.p99_firm else '~'}{self.p99:.2f}"


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


def buckets(result: Result, unloaded: Mapping[int, int], published: Published) -> list[Bucket]:
    """``result`` against the unloaded times by size (ns), in the order of sizes; empty buckets left out."""
    messages = [(quantile * 100, size, time / unloaded[size])
                for quantile, size, time in zip(result.quantiles, result.sizes, result.times_ns, strict=True)
                if time >= 0]
    largest = max((size for _q, size, _s in messages), default=0)
    out = []
    for low, high in _ranges():
        if low == high:
            chosen = [(size, slowdown) for _q, size, slowdown in messages if size == largest]
        else:
            chosen = [(size, slowdown) for q, size, slowdown in messages if low <= q < high]
        if not chosen:
            continue
        ordered = sorted(slowdown for _size, slowdown in chosen)
        count = len(ordered)
        median, p99 = published.get(high, (None, None)) if low < high else (None, None)
        out.append(Bucket(
            result.profile, low, high, min(chosen)[0], max(chosen)[0], count, sum(ordered) / count,
            rank(ordered, 0.5), rank(ordered, 0.99) if count >= MIN_SAMPLES else None, count >= FIRM_SAMPLES,
            median, p99))
    return out


def _ranges() -> Iterator[tuple[float, float]]:
    low = 0.0
    for high in EDGES:
        yield low, high
        low = high
    yield low, low


def mean_slowdown(result: Result, unloaded: Mapping[int, int]) -> float:
    """Over all measured messages that were delivered; nan if none was."""
    slowdowns = [time / unloaded[size]
                 for size, time in zip(result.sizes, result.times_ns, strict=True) if time >= 0]
    return sum(slowdowns) / len(slowdowns) if slowdowns else math.nan


def table(rows: list[Bucket]) -> str:
    """For people: median and p99 of every profile in columns, the published ones last."""
    profiles = list(dict.fromkeys(row.profile for row in rows))
    published = any(row.published_p99 is not None for row in rows)
    head = ["messages %", "bytes", "samples", *(f"{p} {what}" for p in profiles for what in ("p50", "p99"))]
    if published:
        head += ["published p50", "p99"]
    lines = [head]
    for label in dict.fromkeys(row.label for row in rows):
        by_profile = {row.profile: row for row in rows if row.label == label}
        first = next(iter(by_profile.values()))
        sizes = f"{first.min_bytes}-{first.max_bytes}"
        line = [label, sizes if first.min_bytes < first.max_bytes else str(first.max_bytes), str(first.samples)]
        for profile in profiles:
            row = by_profile.get(profile)
            line += [f"{row.median:.2f}", row.p99_text()] if row else ["", ""]
        if published:
            line += ["" if value is None else f"{value:.2f}"
                     for value in (first.published_median, first.published_p99)]
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
                     for line in lines)


def write_csv(path: Path, rows: list[Bucket]) -> None:
    """One line a bucket and profile, columns named as in :class:`Bucket`."""
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, [field.name for field in fields(Bucket)])
        writer.writeheader()
        for row in rows:
            writer.writerow({name: f"{value:.4f}" if isinstance(value, float) else value
                             for name, value in asdict(row).items()})


def require_matplotlib() -> None:
    """Raises :class:`Unsupported` where there is none: better before a long run than after it."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise Unsupported("--out draws a picture and needs matplotlib: pip install matplotlib") from None


def plot(path: Path, rows: list[Bucket], title: str) -> None:
    """Slowdown over message size; x counts messages, not bytes, so every decile has its room.

    A hollow mark is a 99th percentile of fewer than :data:`FIRM_SAMPLES`.
    """
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.from_pct < row.to_pct]
    labels = list(dict.fromkeys(row.label for row in rows))
    places = {label: x for x, label in enumerate(labels)}
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    curves: dict[str, list[Bucket]] = {}
    for row in rows:
        curves.setdefault(row.profile, []).append(row)
    for color, (profile, curve) in zip(("tab:red", "tab:blue", "tab:green"), curves.items(), strict=False):
        _draw(axes, color, profile, [(places[row.label], row.median, row.p99) for row in curve])
        weak = [(places[row.label], row.p99) for row in curve if row.p99 is not None and not row.p99_firm]
        if weak:
            axes.plot(*zip(*weak, strict=True), "o", color=color, markerfacecolor="white", markersize=5)
    first = next(iter(curves.values()))
    _draw(axes, "0.45", "Homa, SIGCOMM'18",
          [(places[row.label], row.published_median, row.published_p99) for row in first])
    axes.set_yscale("log")
    axes.set_ylim(bottom=1)
    ticks = [tick for tick in (1, 1.5, 2, 3, 5, 10, 20, 30, 50, 100) if tick <= axes.get_ylim()[1]]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xticks(range(len(labels)), [f"{row.to_pct:g} %\n{_short(row.max_bytes)}" for row in first])
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
