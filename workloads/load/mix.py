"""Open-loop traffic of which only the middle is measured: at either end the network is not as full as meant."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smtstack.errors import ConfigError
from workloads.load import measure
from workloads.load.loops import Load, Tally
from workloads.transports import Settings


@dataclass(frozen=True)
class MixLoad(Load):
    """``seconds`` of an open loop. Or, without ``rate``, what a :class:`Load` is."""

    before: float = 0.0
    """Seconds at the beginning whose RPCs load the network and are not measured."""
    after: float = 0.0
    """Seconds at the end whose RPCs load the network and are not measured."""

    def __post_init__(self) -> None:
        super().__post_init__()
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


class MixSeries(measure.Series):
    """Traffic on one caller."""

    LOAD = MixLoad

    def result(self, settings: Settings, load: Load, point: measure.Point) -> dict[str, Any]:
        """What echo's has; of an open loop also ``due`` and ``done``: RPCs by request bytes that were due, and
        that were answered, in the time that is measured."""
        answer, tally = super().result(settings, load, point), point.tally
        if tally.late_ns:
            assert isinstance(load, MixLoad)
            due: Counter[int] = Counter()
            done: Counter[int] = Counter()
            for ended, rtt, size in zip(tally.ended_ns, tally.rtt_ns, tally.sizes, strict=True):
                at = ended - tally.began_ns
                due[size] += load.measured(at - rtt)
                done[size] += load.measured(at)
            answer |= {"due": due, "done": done}
        return answer

    def write_raw(self, path: Path, load: Load, tally: Tally) -> None:
        """The round trips that are measured, and their sizes."""
        if not tally.late_ns:
            measure.write_raw(path, load, tally)
            return
        assert isinstance(load, MixLoad)
        kept = [index for index, (ended, rtt) in enumerate(zip(tally.ended_ns, tally.rtt_ns, strict=True))
                if load.measured(ended - rtt - tally.began_ns)]
        for ending, values in (("", tally.rtt_ns), (measure.SIZES_SUFFIX, tally.sizes)):
            measure.write_values(path.with_name(path.name + ending), array("Q", (values[index] for index in kept)))
