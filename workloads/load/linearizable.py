"""Is a history of one register linearizable? Exact, in n log n, where each write has a value of its own.

A history is writes and reads with the times at which they began and ended. It is linearizable if each can be given
a moment between these at which it happened, so that each read gives what the last write before it wrote. As values
are different, a write belongs together with the reads of its value: a *cluster*. By Gibbons and Korach ("Testing
shared memories", SIAM J. Comput. 26(4), 1997) that is so exactly if

- no read of a cluster ends before its write begins;
- of each cluster take the earliest end and the latest begin: if they come in this order, the value must have been
  there from the one to the other (a *forward* zone). No two forward zones overlap;
- otherwise all of the cluster can happen at one moment between them (a *backward* zone): that zone is not within a
  forward one.

tests/unit/test_linearizable.py compares this with all orders tried one by one.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

#: The end of what had no answer: it may happen at any time after it began, or never.
NEVER: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Operation:
    """A write of ``value``, or a read that gave it. Values of writes are all different."""

    write: bool
    value: int
    begin: int
    end: int = NEVER


@dataclass(slots=True)
class _Cluster:
    value: int
    write_begin: int
    first_end: int
    last_begin: int


def violation(history: Iterable[Operation], initial: int = 0) -> str:
    """Why a register that held ``initial`` at first cannot have had this history; empty: it can.

    Reads without an answer say nothing, so leave them out.
    """
    clusters = {initial: _Cluster(initial, -1, -1, -1)}
    operations = sorted(history, key=lambda one: not one.write)
    unread = set()
    for one in operations:
        if one.write:
            if one.value in clusters:
                return f"{one.value} was written twice"
            clusters[one.value] = _Cluster(one.value, one.begin, one.end, one.begin)
            if one.end == NEVER:
                unread.add(one.value)
            continue
        cluster = clusters.get(one.value)
        if cluster is None:
            return f"{one.value} was read, and nobody wrote it"
        if one.end < cluster.write_begin:
            return f"{one.value} was read before it was written"
        unread.discard(one.value)
        cluster.first_end = min(cluster.first_end, one.end)
        cluster.last_begin = max(cluster.last_begin, one.begin)
    # A write that had no answer and that nobody has seen may never have happened.
    zones = [cluster for value, cluster in clusters.items() if value not in unread]
    return _overlap([(c.first_end, c.last_begin, c.value) for c in zones if c.first_end < c.last_begin],
                    [(c.last_begin, c.first_end, c.value) for c in zones if c.first_end >= c.last_begin])


def _overlap(forward: list[tuple[int, int, int]], backward: Sequence[tuple[int, int, int]]) -> str:
    forward.sort()
    for before, after in itertools.pairwise(forward):
        if after[0] < before[1]:
            return f"{before[2]} was there until {before[1]}, {after[2]} from {after[0]} on"
    starts = [start for start, _end, _value in forward]
    for start, end, value in backward:
        at = bisect_right(starts, start) - 1
        if at >= 0 and start > forward[at][0] and end < forward[at][1]:
            return f"{value} was there at some time from {start} to {end}, but {forward[at][2]} was all that time"
    return ""
