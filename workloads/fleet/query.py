"""Servers and one client host that queries them on a network: a :class:`Fleet`, with traffic behind it if wanted.

Its rows are :class:`QueryRow`.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from topo.backlog import Backlog
from topo.network import SmtNet
from workloads.fleet.fleet import Fleet, Measured, Trial
from workloads.fleet.setup import Setup
from workloads.load.loops import Load
from workloads.load.measure import rtt_summary
from workloads.load.queries import LEAVES_SUFFIX, QueryLoad
from workloads.results.fidelity import doubted
from workloads.results.points import label
from workloads.results.row import Answered, Row, Times

#: Seconds of traffic before queries begin in it, and in which they have to be over after the last one has begun;
#: to look at every host before they begin takes time, too.
LEAD_S, TRAIL_S, LOOK_S = 1.0, 1.0, 0.05


class QueryRow(Row, total=False):
    """One trial of queries. ``size``: bytes of an answer; ``concurrency``: leaves; ``rpcs`` and ``rpc_per_s`` are
    of leaves, ``errors`` queries without all answers."""

    request_bytes: int
    queries: int
    """Queries that succeeded."""
    goodput_mbps: float
    """Bytes of answers by the time of the queries."""
    query_rate: float
    """Queries/s that were asked for; 0: the next one when the last is over."""
    system: str
    """The system as tables and curves call it."""
    control: str
    """Which control it is of, and so no point of a curve; "": none."""
    leaf_us: Times
    """Times of the leaves, from when a query was due, as ``rtt_us`` is of whole queries."""
    queue_peak_bytes: int | None
    """Most that was seen to wait in one priority's buffer of the port to the client; None: it has no such
    buffers."""
    background: Mapping[str, Any]
    """Some fields of the row of the traffic meanwhile."""
    ideal_us: float
    """What a query would take if the client's link never rested ..."""
    ideal_mbps: float
    """... and its goodput."""
    rate_mbps: float
    """The rate of the link to the client."""
    buffer_bytes: int
    """Bytes that each priority of a port may queue."""
    resend_ms: float
    """How long our transports wait before they ask again."""
    load_text: str
    """What was asked for, for people."""
    p99_if_independent_us: float | None
    """99th percentile that queries would have if their leaves were late independently of each other; None: there
    are too few samples for it."""


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

    @property
    def system(self) -> str:
        """The system as tables and curves call it."""
        row = {"transport": self.setup.transport, "nic": self.setup.nic if self.setup.uses_nic else None}
        return ", ".join(filter(None, (label(row), self.variant)))

    def measure_in(self, background: Background, load: Load, trial: int = 1) -> Measured[QueryRow]:
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
        measured.row["background"] = {name: value for name, value in behind.items() if name in names}
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

    def collect(self, trial: Trial) -> Measured[QueryRow]:
        watch, self._watch = self._watch, None
        try:
            measured = cast("Measured[QueryRow]", super().collect(trial))
        finally:
            peak = None if watch is None else watch.stop()
        measured.row["queue_peak_bytes"] = peak
        measured.row["leaf_us"] = rtt_summary(measured.tags)
        if not measured.row.get("open_loop", {}).get("kept_up", True):
            measured.row["fidelity"] = doubted(
                measured.row["fidelity"], "queries came faster than they were answered: their times are of the "
                                          "queue, and grow with the length of the run")
        return measured

    def _row(self, load: Load, trial: int, done: list[dict[str, Any]], samples: array[int]) -> Answered:
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
        return cast(QueryRow, {
            **row, "mode": self._mode, "variant": self.variant, "size": load.response_size,
            "concurrency": load.leaves, "request_bytes": int(load.size), "queries": row["rpcs"],
            "rpcs": row["rpcs"] * each, "rpc_per_s": round(rate, 1), "goodput_mbps": round(goodput, 3),
            "system": self.system, "control": "", "query_rate": load.rate})
