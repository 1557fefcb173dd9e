"""What happens when: pure arithmetic on times in seconds from the beginning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple


class Span(NamedTuple):
    """From ``begin`` on, up to ``end``."""

    begin: float
    end: float

    def meets(self, other: Span) -> bool:
        """Whether they have a moment in common; two that only touch have none."""
        return self.begin < other.end and other.begin < self.end


class What(IntEnum):
    """What is to be done, in the order in which it is done at one moment: a fault that ends makes room for the
    one that begins, and a load that begins meets it."""

    FAULT_ENDS = 0
    FAULT_BEGINS = 1
    LOAD_BEGINS = 2


class Step(NamedTuple):
    """One thing to do."""

    at: float
    what: What
    number: int
    """Which load or fault, from 0."""


def steps(loads: Sequence[Span], faults: Sequence[Span]) -> list[Step]:
    """Everything there is to do, in order."""
    found = [Step(load.begin, What.LOAD_BEGINS, number) for number, load in enumerate(loads)]
    for number, fault in enumerate(faults):
        found += [Step(fault.begin, What.FAULT_BEGINS, number), Step(fault.end, What.FAULT_ENDS, number)]
    return sorted(found)


def intervals(width: float, until: float) -> Iterator[Span]:
    """Spans of ``width`` side by side, the last one reaching ``until`` or beyond; at least one."""
    number = 0
    while number == 0 or round(number * width, 9) < until:
        yield Span(round(number * width, 9), round((number + 1) * width, 9))
        number += 1


def outside(faults: Sequence[Span], whole: Span) -> list[Span]:
    """The parts of ``whole`` in which there is no fault, in order."""
    free, at = [], whole.begin
    for fault in sorted(faults):
        if fault.begin > at:
            free.append(Span(at, min(fault.begin, whole.end)))
        at = max(at, fault.end)
    if at < whole.end:
        free.append(Span(at, whole.end))
    return [span for span in free if span.begin < span.end]
