"""What the rows of ``smtnet run mix`` say: a table and a picture of slowdown by message size.

The last trial of each transport has the messages of all trials before it, so it stands for the transport.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from workloads.experiments.mix.fleet import MixRow
from workloads.experiments.slowdown import report as slowdown
from workloads.experiments.slowdown.report import FIRM_SAMPLES, MIN_SAMPLES, Bucket, Message, Published
from workloads.results.row import Row
from workloads.transports.table import BASELINE

#: Messages are short up to this percentile of size.
_SHORT = 0.5
#: What was sent again, as rows have it, for people.
_AGAIN = {"resent_packets": "packets sent again", "resends": "RESENDs", "retransmits": "segments sent again",
          "timeouts": "retransmission timeouts"}


def entry(transport: str, messages: Sequence[Message], published: Published, title: str) -> dict[str, Any]:
    """``slowdown`` of a row: of all ``messages`` of that transport so far."""
    short = sorted(message.slowdown for message in messages if message.quantile < _SHORT)
    return {"title": title, "samples": len(messages),
            "mean": slowdown.mean_slowdown(messages) if messages else None,
            "short_half_p99": slowdown.rank(short, 0.99) if len(short) >= MIN_SAMPLES else None,
            "buckets": [asdict(bucket) for bucket in slowdown.buckets(transport, messages, published)]}


def _traffic(rows: Iterable[Row]) -> list[MixRow]:
    return [cast(MixRow, row) for row in rows if "slowdown" in row]


def _last(rows: Iterable[Row]) -> dict[str, MixRow]:
    """The row that stands for each transport."""
    return {row["transport"]: row for row in _traffic(rows)}


def buckets_of(rows: Iterable[Row]) -> list[Bucket]:
    """The slowdown of all transports, by message size."""
    return [Bucket(**bucket) for row in _last(rows).values() for bucket in row["slowdown"]["buckets"]]


def outcome(rows: Iterable[Row], transport: str) -> dict[str, Any]:
    """All trials of a transport in one: sums, of loads the mean, of lags the worst."""
    own = [row for row in _traffic(rows) if row["transport"] == transport]
    drops: Counter[str] = Counter()
    for row in own:
        drops.update(row["drops"])
    facts: list[Mapping[str, Any]] = [*own]
    mean = {name: round(sum(row[name] for row in facts) / len(own), 4)
            for name in ("offered_load", "achieved_load")}
    again = {name: sum(row[name] for row in facts) for name in _AGAIN if name in own[0]}
    return {"transport": transport, "nic": own[0]["nic"], "connections": own[0]["connections"], "trials": len(own),
            **{name: sum(row[name] for row in facts) for name in ("rpcs", "errors")},
            "content_ok": all(row["content_ok"] for row in own), **mean, **again, "drops": dict(drops),
            "lag_p99_us": max(row["lag_us"]["p99"] for row in own),
            "faithful": all(row["fidelity"]["ok"] for row in own), **own[-1]["slowdown"]}


def text(rows: Sequence[Row]) -> str:
    """The table, and a line for each transport; "" where no mix was measured."""
    last = _last(rows)
    if not last:
        return ""
    lines = [next(iter(last.values()))["slowdown"]["title"] + ": slowdown", slowdown.table(buckets_of(rows)), "",
             f"p99: nearest rank; ~ stands for {MIN_SAMPLES} to {FIRM_SAMPLES - 1} samples, fewer give none"]
    outcomes = [outcome(rows, transport) for transport in last]
    lines += [_line(found) for found in outcomes]
    short = {found["transport"]: found["short_half_p99"] for found in outcomes}
    base = short.get(BASELINE)
    if base:
        lines.append("p99 of the shortest half, times below " + BASELINE + "'s: " + ", ".join(
            f"{name} {base / value:.1f}" for name, value in short.items() if value and name != BASELINE))
    return "\n".join(lines)


def _line(found: dict[str, Any]) -> str:
    """One transport in words."""
    names = {"mean": "mean", "short_half_p99": "p99 of the shortest half"}
    known = [f"{what} {found[name]:.2f}" for name, what in names.items() if found[name] is not None]
    lost = [f"{number} lost ({name})" for name, number in found["drops"].items() if number]
    again = [f"{found[name]} {what}" for name, what in _AGAIN.items() if found.get(name)]
    wrong = "" if found["content_ok"] else ", WRONG ANSWERS"
    parts = [", ".join(known) or "nothing measured",
             f"load offered {found['offered_load']:.3f}, achieved {found['achieved_load']:.3f}",
             f"{found['rpcs']:,} RPCs, {found['errors']} failed{wrong}",
             ", ".join([*lost, *again]) or "nothing lost or sent again",
             f"began at most {found['lag_p99_us'] / 1000:.1f} ms late (p99)"]
    if found["connections"]:
        parts.append(f"{found['connections']} connections to each server")
    return (f"{found['transport']}: " + "; ".join(parts) + ("" if found["faithful"] else "; NOT FAITHFUL"))


def picture(rows: Sequence[Row], path: Path) -> bool:
    """Slowdown by message size. False: no such rows, no file."""
    found = buckets_of(rows)
    if not found:
        return False
    slowdown.plot(path, found, next(iter(_last(rows).values()))["slowdown"]["title"])
    return True
