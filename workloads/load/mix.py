"""Open-loop traffic of which only the middle is measured: at either end the network is not as full as meant."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smtstack.errors import ConfigError
from workloads.load import measure
from workloads.load.loops import Load, OpenLoop, Tally
from workloads.load.measure import SIZES_SUFFIX, Point, Series
from workloads.transports import Settings
from workloads.transports.contract import Call


@dataclass(frozen=True, slots=True)
class MixLoad(Load):
    """``seconds`` of an open loop. Or, without ``rate``, what a :class:`Load` is."""

    before: float = 0.0
    """Seconds at the beginning whose RPCs load the network and are not measured."""
    after: float = 0.0
    """Seconds at the end whose RPCs load the network and are not measured."""

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is made anew, and super() knows the first one.
        Load.__post_init__(self)
        if self.rate and self.seconds is None:
            raise ConfigError("traffic at a rate goes on for some seconds, not for a count")
        if self.before < 0 or self.after < 0 or (self.seconds is not None
                                                 and self.before + self.after >= self.seconds):
            raise ConfigError(f"of {self.seconds} s of traffic nothing is measured: {self.before} s before and "
                              f"{self.after} s after")

    def measured(self, at_ns: int) -> bool:
        """Whether ``at_ns`` after the start is in the part that is measured."""
        assert self.seconds is not None
        return self.before * 1e9 <= at_ns < (self.seconds - self.after) * 1e9


@dataclass(slots=True)
class MixTally(Tally):
    """A tally that knows when each RPC was due as well."""

    due_ns: array[int] = field(default_factory=lambda: array("Q"))
    """Since the start, of each round trip."""


class MixLoop(OpenLoop):
    """An open loop that notes when its RPCs were due."""

    TALLY = MixTally
    _start = 0

    def _begin_series(self) -> int:
        self._start = super()._begin_series()
        return self._start

    def _record(self, tally: Tally, call: Call) -> None:
        assert isinstance(tally, MixTally)
        super()._record(tally, call)
        tally.due_ns.append(call.started - self._start)


class MixSeries(Series):
    """Traffic on one caller."""

    LOAD = MixLoad
    OPEN = MixLoop

    def result(self, settings: Settings, load: Load, point: Point) -> dict[str, Any]:
        """What echo's has; of an open loop also ``due`` and ``done``: RPCs by request bytes that were due, and
        that were answered, in the time that is measured."""
        answer = super().result(settings, load, point)
        tally = point.tally
        if isinstance(tally, MixTally):
            assert isinstance(load, MixLoad)
            due: Counter[int] = Counter()
            done: Counter[int] = Counter()
            for at, rtt, size in zip(tally.due_ns, tally.rtt_ns, tally.sizes, strict=True):
                due[size] += load.measured(at)
                done[size] += load.measured(at + rtt)
            answer |= {"due": due, "done": done}
        return answer

    def write_raw(self, path: Path, load: Load, tally: Tally) -> None:
        """The round trips that are measured, and their sizes."""
        if not isinstance(tally, MixTally):
            measure.write_raw(path, load, tally)
            return
        assert isinstance(load, MixLoad)
        kept = [index for index, at in enumerate(tally.due_ns) if load.measured(at)]
        for name, values in ((path, tally.rtt_ns), (path.with_name(path.name + SIZES_SUFFIX), tally.sizes)):
            measure.write_values(name, array("Q", (values[index] for index in kept)))
