"""Servers and one client host that queries them on a network: a :class:`Fleet`, with traffic behind it if wanted.

A row is as results.py says; of queries it has

- ``mode`` (``incast``, ``fanout``), ``size`` (bytes of an answer), ``concurrency`` (leaves), ``request_bytes``,
- ``queries`` that succeeded, ``rpcs`` and ``rpc_per_s`` of their leaves, ``rtt_us`` of whole queries,
  ``leaf_us`` of the leaves, both from when a query was due; ``errors``: queries without all answers,
- ``queue_peak_bytes``: most that was seen to wait in one priority's buffer of the port to the client,
- ``goodput_mbps``: bytes of answers by the time of the queries,
- ``resent_packets``, ``resends`` or ``retransmits``, ``timeouts`` (retransmissions.py), ``drops`` by reason,
- ``system`` as curves call it, ``control`` for what is no point of a curve.
"""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topo.backlog import Backlog
from topo.network import SmtNet
from workloads.fleet.fleet import Fleet, Measured, Trial
from workloads.fleet.setup import Setup
from workloads.load.loops import Load
from workloads.load.queries import LEAVES_SUFFIX, QueryLoad
from workloads.load.rtt import rtt_summary
from workloads.results.fidelity import doubted
from workloads.results.rows import label

#: Seconds of traffic before queries begin in it, and in which they have to be over after the last one has begun;
#: to look at every host before they begin takes time, too.
LEAD_S, TRAIL_S, LOOK_S = 1.0, 1.0, 0.05


@dataclass(frozen=True, slots=True)
class Background:
    """Traffic while queries are measured."""

    fleet: Fleet
    load: Load
    """At a rate, and longer than the queries: see :func:`lasting`."""


def lasting(seconds: float, hosts: int) -> float:
    """How long traffic between so many hosts has to go on for queries of ``seconds`` to be in it."""
    return LEAD_S + seconds + TRAIL_S + hosts * LOOK_S


class QueryFleet(Fleet):
    """The first host of ``net`` asks, all others answer. ``mode`` and ``variant`` are fields of every row, the
    second beside the system's name."""

    CALLS = "query"
    TAGS = LEAVES_SUFFIX

    def __init__(self, net: SmtNet, topo: str, setup: Setup, folder: Path, number: int = 0, *, mode: str,
                 variant: str = "") -> None:
        super().__init__(net, topo, setup, folder, number)
        self._mode = mode
        self.variant = variant
        self._watch: Backlog | None = None

    def __enter__(self) -> QueryFleet:
        super().__enter__()
        return self

    @property
    def system(self) -> str:
        """The system as tables and curves call it."""
        row = {"transport": self.setup.transport, "nic": self.setup.nic if self.setup.uses_nic else None}
        return ", ".join(filter(None, (label(row), self.variant)))

    def measure_in(self, background: Background, load: Load, trial: int = 1) -> Measured:
        """Measure while another fleet's traffic goes on. The other's row is in ours, as ``background``."""
        seconds = background.load.seconds
        assert seconds is not None
        prepared = self.prepare(load, trial)
        traffic = background.fleet.prepare(background.load, trial)
        background.fleet.begin(traffic)
        time.sleep(LEAD_S)
        self.begin(prepared)
        measured = self.collect(prepared)
        over = time.perf_counter() - traffic.start
        behind = background.fleet.collect(traffic).row
        names = ("size", "rpcs", "errors", "content_ok", "rpc_per_s", "rtt_us", "open_loop", "first_error")
        measured.row["background"] = {name: behind[name] for name in names if name in behind}
        reasons = [f"background: {reason}" for reason in behind["fidelity"]["reasons"]]
        if over > seconds:
            reasons.append(f"the background was over after {seconds:.1f} s, the queries after {over:.1f} s")
        measured.row["fidelity"] = doubted(measured.row["fidelity"], *reasons)
        if behind["errors"] or not behind["content_ok"]:
            measured.row["errors"] += behind["errors"]
            measured.row["content_ok"] &= behind["content_ok"]
            measured.row.setdefault("first_error", f"background: {behind.get('first_error', 'wrong content')}")
        return measured

    def begin(self, trial: Trial) -> None:
        # All answers have to go through the switch's end of the client's link.
        link = self.net.hosts[0].defaultIntf().link
        (port,) = (end for end in (link.intf1, link.intf2) if end.node is not self.net.hosts[0])
        if port.pid is None and link.options.rate_mbps is not None:
            self._watch = Backlog(port.name)
            self._watch.start()
        super().begin(trial)

    def collect(self, trial: Trial) -> Measured:
        watch, self._watch = self._watch, None
        try:
            measured = super().collect(trial)
        finally:
            peak = None if watch is None else watch.stop()
        measured.row["queue_peak_bytes"] = peak
        measured.row["leaf_us"] = rtt_summary(measured.tags)
        if not measured.row.get("open_loop", {}).get("kept_up", True):
            measured.row["fidelity"] = doubted(
                measured.row["fidelity"], "queries came faster than they were answered: their times are of the "
                                          "queue, and grow with the length of the run")
        return measured

    def _row(self, load: Load, trial: int, done: list[dict[str, Any]], samples: array[int]) -> dict[str, Any]:
        assert isinstance(load, QueryLoad)
        assert load.response_size is not None
        row = super()._row(load, trial, done, samples)
        each = 1 if load.in_turn else load.leaves
        rate = row["rpc_per_s"] * each
        mean_us = rtt_summary(samples)["mean"]
        if load.in_turn or not mean_us:
            goodput = rate * load.response_size * 8e-6
        else:
            goodput = each * load.response_size * 8 / mean_us
        return {**row, "mode": self._mode, "variant": self.variant, "size": load.response_size,
                "concurrency": load.leaves, "request_bytes": int(load.size), "queries": row["rpcs"],
                "rpcs": row["rpcs"] * each, "rpc_per_s": round(rate, 1), "goodput_mbps": round(goodput, 3),
                "system": self.system, "control": "", "query_rate": load.rate}
