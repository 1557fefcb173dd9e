"""Virtual time: a heap of events. Whatever is due at one instant runs in the order it was scheduled in."""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from smtstack.errors import LocalError

#: What an event calls.
Action = Callable[..., Any]


class Clock:
    """Time in integer nanoseconds from 0, and what is to happen when."""

    __slots__ = ("_count", "_heap", "now")

    def __init__(self) -> None:
        #: The present, in ns.
        self.now = 0
        self._count = 0
        self._heap: list[tuple[int, int, Action, tuple[Any, ...]]] = []

    def schedule(self, at: int, action: Action, *args: Any) -> None:
        """Call ``action(*args)`` at time ``at`` (ns); raises :class:`LocalError` if that is in the past."""
        if at < self.now:
            raise LocalError(f"an event at {at} ns was scheduled at {self.now} ns")
        # The count decides between events of one instant, so that actions are never compared.
        self._count += 1
        heappush(self._heap, (at, self._count, action, args))

    def run(self, until: int | None = None) -> None:
        """Run every event up to and at time ``until`` (ns), which is then the present.

        Without ``until``: run until nothing is left to happen; the present is then the last event's time.
        """
        heap = self._heap
        last = math.inf if until is None else until
        while heap and heap[0][0] <= last:
            self.now, _count, action, args = heappop(heap)
            action(*args)
        if until is not None:
            self.now = max(self.now, until)

    def __len__(self) -> int:
        """Events still to come."""
        return len(self._heap)
