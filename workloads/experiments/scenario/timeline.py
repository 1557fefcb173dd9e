"""What a load met over time: figures of each interval, of each fault and of the time without one.

Times are seconds from the beginning; round trips are nanoseconds where they are raw, else microseconds.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypedDict

from workloads.experiments.scenario.schedule import Span, intervals, outside
from workloads.load.measure import percentile
from workloads.results.folder import csv_text
from workloads.results.row import Row


class Happened(TypedDict):
    """A fault, as it was."""

    what: str
    """``h2: loss 5%``."""
    begin_s: float
    """When it had taken effect ..."""
    end_s: float
    """... and when its end began: between the two it held."""
    asked_begin_s: float
    asked_end_s: float


class Figures(TypedDict):
    """Figures of a part of the time."""

    begin_s: float
    end_s: float
    rpcs: int
    """RPCs that ended in it."""
    rpc_per_s: float
    p50_us: float | None
    """Median round trip; of an interval: of those; of a fault: of all that were under way meanwhile; of the time
    without one: of those that began and ended in it. None: there were none, as of the next one."""
    p99_us: float | None
    errors: int
    sent_again: int
    """Packets (tcp, tls, ktls: segments) that all hosts sent again, whichever load they were of. Of a fault: in
    the intervals that it met."""


class Within(Figures):
    """Figures of the time of one fault, or of all the time without one, the load's own."""

    fault: str
    """Name of the fault; "": none."""


class ScenarioRow(Row):
    """One load of one trial."""

    load: str
    scenario: str
    interval_s: float
    timeline: Sequence[Figures]
    faults: Sequence[Happened]
    within: Sequence[Within]
    """Figures of each fault that met the load, in order, and then of the time without a fault."""


@dataclass(frozen=True)
class Measured:
    """What is known of one load."""

    rtt_ns: Sequence[int]
    ended: Sequence[float]
    """When each of these ended."""
    failed: Sequence[float]
    """When RPCs failed."""
    span: Span
    """In which its RPCs began."""

    def during(self, part: Span, sent_again: int) -> Figures:
        """Figures of a fault's time: round trips of all RPCs that were under way in it, whenever they ended."""
        rtt = array("Q", (rtt for rtt, end in self._rpcs() if part.meets(Span(end - rtt / 1e9, end))))
        return self._of([part], rtt, sent_again)

    def undisturbed(self, parts: Sequence[Span], sent_again: int) -> Figures:
        """Figures of the parts without a fault: round trips of RPCs that began and ended in one."""
        rtt = array("Q", (rtt for rtt, end in self._rpcs()
                          if any(part.begin <= end - rtt / 1e9 and end < part.end for part in parts)))
        return self._of(parts, rtt, sent_again)

    def _rpcs(self) -> Iterable[tuple[int, float]]:
        return zip(self.rtt_ns, self.ended, strict=True)

    def _of(self, parts: Sequence[Span], rtt_ns: array[int], sent_again: int) -> Figures:
        """Rate and errors are of what ended in these parts."""
        rpcs, errors = (sum(part.begin <= at < part.end for at in times for part in parts)
                        for times in (self.ended, self.failed))
        seconds = sum(part.end - part.begin for part in parts)
        return _figures(parts[0].begin, parts[-1].end, seconds, rpcs, rtt_ns, errors, sent_again)

    def timeline(self, width: float, until: float, again: Sequence[int]) -> list[Figures]:
        """Figures of all intervals to the last RPC's end. ``again``: what was sent again in each, as far as it is
        known."""
        last = max(until, max(self.ended, default=0.0), max(self.failed, default=0.0))
        order = sorted(range(len(self.ended)), key=self.ended.__getitem__)
        ends = [self.ended[index] for index in order]
        failed = sorted(self.failed)
        found = []
        for number, span in enumerate(intervals(width, last)):
            first, after = bisect_left(ends, span.begin), bisect_left(ends, span.end)
            rtt = array("Q", (self.rtt_ns[order[index]] for index in range(first, after)))
            errors = bisect_left(failed, span.end) - bisect_left(failed, span.begin)
            found.append(_figures(*span, width, after - first, rtt, errors,
                                  again[number] if number < len(again) else 0))
        return found

    def within(self, faults: Sequence[Happened], timeline: Sequence[Figures]) -> list[Within]:
        """Figures of each fault that the load met, and of the time in which there was none."""
        whole = Span(self.span.begin, max(self.span.end, max(self.ended, default=0.0)))
        spans = [(fault["what"], Span(fault["begin_s"], fault["end_s"])) for fault in faults]
        found: list[Within] = []
        for what, span in spans:
            if span.meets(whole):
                part = Span(max(span.begin, whole.begin), min(span.end, whole.end))
                found.append({**self.during(part, _again(timeline, [part], some=True)), "fault": what})
        # Beyond its span no RPCs begin, and the last ones only peter out.
        if free := outside([span for _what, span in spans], self.span):
            found.append({**self.undisturbed(free, _again(timeline, free, some=False)), "fault": ""})
        return found


def _figures(begin: float, end: float, seconds: float, rpcs: int, rtt_ns: array[int], errors: int,
             sent_again: int) -> Figures:
    ordered = array("Q", sorted(rtt_ns))
    p50, p99 = (percentile(ordered, share) / 1000 if ordered else None for share in (0.5, 0.99))
    return {"begin_s": round(begin, 6), "end_s": round(end, 6), "rpcs": rpcs,
            "rpc_per_s": round(rpcs / seconds, 1) if seconds else 0.0, "p50_us": p50, "p99_us": p99,
            "errors": errors, "sent_again": sent_again}


def _again(timeline: Sequence[Figures], parts: Sequence[Span], *, some: bool) -> int:
    """What was sent again in the intervals that have ``some`` of these parts, or else lie in them whole."""
    def counts(one: Figures) -> bool:
        span = Span(one["begin_s"], one["end_s"])
        return any(span.meets(part) if some else part.begin <= span.begin and span.end <= part.end
                   for part in parts)

    return sum(one["sent_again"] for one in timeline if counts(one))


def spread(samples: Sequence[tuple[float, int]], width: float, until: float) -> list[int]:
    """Growth of a counter by interval, from looks at it, (when, value), in order: at the beginning, at the end of
    each interval, and once more when all was over. What came between two looks is of the interval that ended with
    the second one."""
    found = [0] * sum(1 for _span in intervals(width, until))
    for (_before, old), (at, value) in pairwise(samples):
        number = max(0, min(len(found) - 1, round(at / width) - 1))
        found[number] += value - old
    return found


def met(faults: Iterable[Happened], begin: float, end: float) -> list[str]:
    """Names of the faults of that time."""
    return [fault["what"] for fault in faults if Span(begin, end).meets(Span(fault["begin_s"], fault["end_s"]))]


_COLUMNS = ("system", "trial", "load", "kind", "begin_s", "end_s", "rpcs", "rpc_per_s", "p50_us", "p99_us",
            "errors", "sent_again", "faults", "asked_begin_s", "asked_end_s")


def as_csv(rows: Iterable[tuple[str, ScenarioRow]]) -> str:
    """Rows with their system: a line for every interval, and (``kind`` is fault) one for every fault."""
    lines = []
    for system, row in rows:
        common = {**dict.fromkeys(_COLUMNS, ""), "system": system, "trial": row["trial"], "load": row["load"]}
        for fault in row["faults"]:
            times = {name: value for name, value in fault.items() if name != "what"}
            lines.append({**common, "kind": "fault", **times, "faults": fault["what"]})
        for one in row["timeline"]:
            names = met(row["faults"], one["begin_s"], one["end_s"])
            lines.append({**common, "kind": "interval", **one, "faults": "; ".join(names)})
    return csv_text(lines)


def table(rows: Iterable[tuple[str, ScenarioRow]]) -> str:
    """For people: of each load of each system, the time without a fault and each fault."""
    head = ("load", "system", "trial", "while", "from s", "to s", "RPC/s", "p50 us", "p99 us", "errors",
            "sent again")
    lines = [head]
    for system, row in rows:
        for one in (*row["within"][-1:], *row["within"][:-1]):
            none = not one["fault"]
            lines.append((row["load"], system, str(row["trial"]), one["fault"] or "no fault",
                          "" if none else f"{one['begin_s']:.2f}", "" if none else f"{one['end_s']:.2f}",
                          f"{one['rpc_per_s']:,.0f}", _time(one["p50_us"]), _time(one["p99_us"]),
                          str(one["errors"]), str(one["sent_again"])))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) if column in (0, 1, 3) else cell.rjust(width)
                               for column, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
                     for line in lines)


def _time(us: float | None) -> str:
    return "-" if us is None else f"{us:,.0f}"


def without_times(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as results.csv has it: what is in timeline.csv is not."""
    return {name: value for name, value in row.items() if name not in ("timeline", "faults", "within")}
