"""How long our process was ready to run and had no processor, wait by wait, and how many RPCs were under way then.

The kernel has a sum only (``/proc/PID/schedstat``). Read each time the loop comes back, at 2 us a time, its growth
is one wait, or a few short ones: so what a busy machine does to a tail can be told from what it does to a median.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from pathlib import Path

SCHEDSTAT = Path("/proc/thread-self/schedstat")
#: Shorter ones are everybody's way of waking up, and no more than what measuring costs.
_SHORTEST_NS = 16_000
#: Significant bits of a wait: what is kept is at most a sixteenth below the truth.
_BITS = 5


class Waits:
    """How long the thread that makes it waits for a processor. ``counts``: RPCs by the wait in us (rounded down)
    that happened to them."""

    def __init__(self, path: Path = SCHEDSTAT) -> None:
        self.counts: Counter[int] = Counter()
        self._file: int | None = None
        with contextlib.suppress(OSError):
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._last = self._read()

    @property
    def known(self) -> bool:
        """Whether the kernel tells."""
        return self._file is not None

    def note(self, under_way: int) -> None:
        """Whatever we waited since the last call happened to so many RPCs."""
        if self._file is None:
            return
        now = self._read()
        waited, self._last = now - self._last, now
        if waited >= _SHORTEST_NS and under_way:
            self.counts[rounded_us(waited)] += under_way

    def _read(self) -> int:
        if self._file is None:
            return 0
        try:
            return int(os.pread(self._file, 64, 0).split()[1])
        except (OSError, IndexError, ValueError):
            self.close()
            return 0

    def close(self) -> None:
        """From now on nothing is noted."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def rounded_us(ns: int) -> int:
    """In us, rounded down to :data:`_BITS` significant bits: few different ones, whatever comes."""
    us = ns // 1000
    shift = max(0, us.bit_length() - _BITS)
    return us >> shift << shift
