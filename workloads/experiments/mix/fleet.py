"""Traffic of a mix on a network: every host is client and server of every other."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from topo.network import SmtNet
from workloads.experiments.mix.arithmetic import Mix, lag, shortfall
from workloads.experiments.slowdown.simulation import REPLY_BYTES
from workloads.fleet.fleet import Fleet, Measured
from workloads.fleet.setup import Setup
from workloads.load.loops import Load
from workloads.load.measure import OPEN_LOOP_CONNECTIONS
from workloads.load.mix import MixLoad
from workloads.results.fidelity import doubted
from workloads.results.row import Answered, Row

#: Of the rows of traffic.
MODE = "mix"
#: RPCs before a size is measured alone, if they take no longer than this in seconds; else fewer.
_WARM_UP, _WARM_UP_S = 10, 0.2


class MixRow(Row, total=False):
    """One trial of a mix; ``concurrency`` is the number of hosts. What is measured alone has no further fields."""

    samples: int
    """Round trips that count."""
    measured_s: float
    connections: int | None
    """Connections of each client to each server; None: this transport has none."""
    offered_load: float
    """Share of every host's link, in each direction, that what was due takes."""
    achieved_load: float
    """Share of every host's link, in each direction, that what was answered took."""
    lag_us: Mapping[str, float]
    """How late RPCs began, of the client that did worst: p50, p99, max."""
    slowdown: Mapping[str, Any]
    """Slowdown of all messages of this transport so far (:func:`workloads.experiments.mix.report.entry`)."""


class MixFleet(Fleet):
    """One transport; the loads it gets are :meth:`traffic` and :meth:`alone`."""

    CALLS = "mix"

    def __init__(self, net: SmtNet, topo: str, setup: Setup, mix: Mix, folder: Path, number: int = 0) -> None:
        super().__init__(net, topo, setup, folder, number)
        self._mix = mix

    def traffic(self, measured_s: float, timeout: float, seed: int) -> MixLoad:
        """The mix at its load, of which ``measured_s`` seconds count."""
        seconds, before, after = self._mix.seconds(measured_s)
        return MixLoad(self._mix.workload, count=None, seconds=seconds, rate=self._mix.rpc_per_s, timeout=timeout,
                       seed=seed, response_size=REPLY_BYTES, before=before, after=after)

    def alone(self, size: int, count: int, timeout: float, seed: int) -> MixLoad:
        """``count`` messages of ``size`` bytes, one after the other, while nothing else is under way."""
        warm_up = max(1, min(_WARM_UP, int(_WARM_UP_S / self._mix.unloaded_s(size))))
        return MixLoad(str(size), count=count, timeout=timeout, warm_up=warm_up, seed=seed,
                       response_size=REPLY_BYTES)

    def measure(self, load: Load, trial: int = 1) -> Measured[MixRow]:
        """One trial."""
        return cast("Measured[MixRow]", super().measure(load, trial))

    def _row(self, load: Load, trial: int, done: list[dict[str, Any]], samples: array[int]) -> Answered:
        row = super()._row(load, trial, done, samples)
        if not load.rate:
            return row
        mix = self._mix
        assert isinstance(load, MixLoad)
        assert load.seconds is not None
        measured = load.seconds - load.before - load.after
        offered, achieved = (mix.load_of(_counts(done, name), measured) for name in ("due", "done"))
        late = [answer["open_loop"]["late_us"] for answer in done if "open_loop" in answer]
        connections = None if self.setup.uses_nic else self.setup.connections or OPEN_LOOP_CONNECTIONS
        lag_us = {name: max((entry[name] for entry in late), default=0.0) for name in ("p50", "p99", "max")}
        return cast(MixRow, {
            **row, "mode": MODE, "variant": f"{mix.load:.0%} load", "concurrency": mix.hosts,
            "samples": len(samples), "measured_s": round(measured, 3), "connections": connections,
            "offered_load": round(offered, 4), "achieved_load": round(achieved, 4), "lag_us": lag_us})


def _counts(done: list[dict[str, Any]], name: str) -> Counter[int]:
    """RPCs by request bytes, over all clients."""
    counts: Counter[int] = Counter()
    for answer in done:
        counts.update({int(size): number for size, number in answer.get(name, {}).items()})
    return counts


def judge(row: MixRow, mix: Mix) -> None:
    """Add to a row's verdict whether it was the open loop it was meant to be."""
    reasons = filter(None, (shortfall(mix, row["offered_load"], row["achieved_load"], row["measured_s"]),
                            lag(mix, row["lag_us"]["p99"])))
    row["fidelity"] = doubted(row["fidelity"], *reasons)
