"""Load of which it is known when each RPC ended, for experiments in which something happens meanwhile.

Times are those of ``time.perf_counter_ns``, which on Linux is one clock for all processes of a machine, whatever
namespaces they are in.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workloads.load import loops
from workloads.load.loops import Load, Tally
from workloads.load.measure import Point, Series, write_values
from workloads.transports import Settings
from workloads.transports.contract import Call

#: Beside a file of round trips: when each ended.
ENDED_SUFFIX = ".ended"
#: A load goes on while nobody can be reached, but for ever it need not: that many RPCs may fail.
MOST_FAILURES = 100_000


@dataclass(slots=True)
class TimedTally(Tally):
    """What came of a series, and when."""

    failed_ns: array[int] = field(default_factory=lambda: array("Q"))
    """When each RPC failed, or was answered wrongly."""


class _Timed(loops.Loop):
    TALLY = TimedTally

    def _begin_series(self) -> int:
        self._failed_ns = array("Q")
        return super()._begin_series()

    def _note_failure(self, call: Call) -> None:
        """Nothing but failures is what a fault may bring: no reason to stop."""
        self._failed_ns.append(call.ended)
        self._hopeless = len(self._failed_ns) >= MOST_FAILURES

    def _end_series(self, tally: Tally) -> Tally:
        assert isinstance(tally, TimedTally)
        tally.failed_ns = self._failed_ns
        return super()._end_series(tally)


class TimedClosedLoop(_Timed, loops.ClosedLoop):
    """RPCs under way, and when each ended."""


class TimedOpenLoop(_Timed, loops.OpenLoop):
    """RPCs at random times, and when each ended."""


class TimedSeries(Series):
    """Loads on one caller, with times."""

    CLOSED = TimedClosedLoop
    OPEN = TimedOpenLoop

    def result(self, settings: Settings, load: Load, point: Point) -> dict[str, Any]:
        """The JSON object of echo, and ``failed_ns``: when RPCs failed."""
        tally = point.tally
        assert isinstance(tally, TimedTally)
        return {**super().result(settings, load, point), "failed_ns": tally.failed_ns.tolist()}

    def write_raw(self, path: Path, load: Load, tally: Tally) -> None:
        """Round trips, and when they ended."""
        assert isinstance(tally, TimedTally)
        # Of a warm-up that failed nothing is measured.
        write_values(path, tally.rtt_ns)
        write_values(path.with_name(path.name + ENDED_SUFFIX), tally.ended_ns)
