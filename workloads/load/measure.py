"""One point: warm up, put a load on, say what came of it as the JSON object that results are made of."""

from __future__ import annotations

import ctypes
import resource
import sys
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smtstack.errors import ConfigError
from workloads.load.loops import ClosedLoop, Load, Loop, OpenLoop, Requests, Source, Tally, size_name
from workloads.results.fidelity import FidelityMonitor, combined, judge_figures
from workloads.results.row import Verdict
from workloads.transports import Settings
from workloads.transports.contract import Caller
from workloads.transports.sessions import summary

#: Of round trips: exact, over every sample.
PERCENTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999))
#: Seconds after the last RPC in which a server may ask for acknowledgements; it asks after 2 ms.
LINGER_S = 0.02
#: Beside a file of round trips, where messages are of different sizes: theirs.
SIZES_SUFFIX = ".sizes"
#: Linux <linux/prctl.h>.
_PR_SET_TIMERSLACK = 29
#: Connections of an open loop, if nobody says how many: calls beyond share them.
OPEN_LOOP_CONNECTIONS = 50


@dataclass(slots=True)
class Point:
    """What one process measured."""

    tally: Tally
    seconds: float
    cpu: dict[str, float]
    fidelity: Verdict


class Series:
    """Loads on one caller, one after the other. No two requests of a series are alike."""

    #: What a load is described by, and the loops that put it on.
    LOAD: type[Load] = Load
    CLOSED: type[ClosedLoop] = ClosedLoop
    OPEN: type[OpenLoop] = OpenLoop

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        #: Among how many a request's peer is drawn.
        self._peers = len(caller.peers)
        self._number = 0

    def measure(self, load: Load, barrier: Callable[[], None] | None = None) -> Point:
        """Warm up, wait for ``barrier`` if there is one, measure. Failures are in the tally.

        Raises ConfigError (no key for a peer) and, if a peer cannot be reached at all, PeerError.
        """
        caller = self._caller
        caller.prepare(OPEN_LOOP_CONNECTIONS if load.rate else load.concurrency)
        concurrency = 1 if load.rate else load.concurrency
        warm = self.CLOSED(caller, concurrency, load.timeout, load.response_size).run(
            self._requests(load, False)[0], load.warm_up)
        requests, total = self._requests(load, True)
        loop: Loop
        if load.rate:
            # Timers of this process are no longer late on purpose: by default Linux adds up to 50 us.
            ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1))
            loop = self.OPEN(caller, load.rate, load.timeout, load.response_size, load.seed)
        else:
            loop = self.CLOSED(caller, load.concurrency, load.timeout, load.response_size)
        monitor = FidelityMonitor(caller)
        # Others are waited for even if there is nothing to measure: they wait for us.
        if barrier is not None:
            barrier()
            # Timers that were due while we waited are late for no fault of the run's.
            caller.poll()
        if warm.errors or warm.wrong:
            return Point(warm, 0.0, {}, monitor.stop())
        monitor.start()
        before = resource.getrusage(resource.RUSAGE_SELF)
        start = time.perf_counter()
        tally = loop.run(requests, total, load.seconds)
        seconds = time.perf_counter() - start
        cpu = _cpu(before, resource.getrusage(resource.RUSAGE_SELF), seconds)
        self._number += len(tally.rtt_ns) + tally.errors + tally.wrong
        waits = None if tally.waits is None else {str(us): n for us, n in sorted(tally.waits.items())}
        return Point(tally, seconds, cpu, monitor.stop() | {"waits": waits})

    def result(self, settings: Settings, load: Load, point: Point) -> dict[str, Any]:
        """The JSON object of one point."""
        return {**result(settings, load, point), **summary(settings.session_mode, [self._caller.counters()])}

    def write_raw(self, path: Path, load: Load, tally: Tally) -> None:
        """Every round trip, and what has to be known of each, into files."""
        write_raw(path, load, tally)

    def _requests(self, load: Load, others: bool) -> tuple[Source, int | None]:
        """(the requests, how many there are; None: no end); without ``others`` those of the warm-up."""
        requests = Requests(load, self._peers, self._number, others)
        if not others:
            self._number += load.warm_up
        return requests, requests.total


def _cpu(before: resource.struct_rusage, now: resource.struct_rusage, seconds: float) -> dict[str, float]:
    """Processor time that our process took. ``share`` is of one processor."""
    user, system = now.ru_utime - before.ru_utime, now.ru_stime - before.ru_stime
    return {"user_s": round(user, 4), "system_s": round(system, 4), "wall_s": round(seconds, 4),
            "share": round((user + system) / seconds, 4) if seconds else 0.0,
            "sleeps": now.ru_nvcsw - before.ru_nvcsw, "preemptions": now.ru_nivcsw - before.ru_nivcsw}


def merge(points: list[Point]) -> Point:
    """What processes measured at the same time, as if one had."""
    first = points[0]
    for other in points[1:]:
        first.tally.merge(other.tally)
    cpu = {name: round(sum(p.cpu.get(name, 0) for p in points), 4) for name in first.cpu}
    seconds = max(p.seconds for p in points)
    if cpu:
        cpu["wall_s"] = round(seconds, 4)
    return Point(first.tally, seconds, cpu, merge_fidelity([p.fidelity for p in points]))


def merge_fidelity(parts: list[Verdict]) -> Verdict:
    """The verdict over several processes: of the machine's numbers each saw the same; the rest adds up."""
    waited = [delay for part in parts if (delay := part["run_delay"]) is not None]
    return combined(parts[0], parts, run_delay=max(waited, default=None))


def result(settings: Settings, load: Load, point: Point) -> dict[str, Any]:
    """The JSON object of one point."""
    tally = point.tally
    rtt_us = rtt_summary(tally.rtt_ns)
    answer: dict[str, Any] = {
        "transport": settings.transport, "nic": settings.nic_used, "encrypted": settings.encrypted,
        "size": size_name(load.size), "rpcs": len(tally.rtt_ns),
        "errors": tally.errors, "content_ok": not tally.wrong,
        "rpc_per_s": round(len(tally.rtt_ns) / point.seconds, 1) if point.seconds else 0.0,
        "rtt_us": rtt_us, "cpu": point.cpu,
        "fidelity": judge_figures(point.fidelity, rtt_us, len(tally.rtt_ns)) if tally.rtt_ns else point.fidelity,
        "concurrency": tally.most_under_way, "bytes": sum(tally.sizes),
    }
    if load.rate and tally.late_ns:
        late = array("Q", sorted(tally.late_ns))
        answer["open_loop"] = {
            "rate": load.rate, "kept_up": tally.kept_up, "drain_ms": round(tally.drain_ns / 1e6, 3),
            "late_us": {"p50": percentile(late, 0.5) / 1000, "p99": percentile(late, 0.99) / 1000,
                        "max": late[-1] / 1000}}
    if tally.first_error:
        answer["error"] = tally.first_error
    return answer


def write_raw(path: Path, load: Load, tally: Tally) -> None:
    """Round trips in ns, in order of their end, as little-endian u64. Different sizes go to ``path``.sizes."""
    files = {path: tally.rtt_ns}
    if load.also or not load.size.isdecimal():
        files[path.with_name(path.name + SIZES_SUFFIX)] = tally.sizes
    for name, values in files.items():
        write_values(name, values)


def write_values(path: Path, values: array[int]) -> None:
    """Write numbers as little-endian u64. Raises ConfigError."""
    ordered = array("Q", values)
    if sys.byteorder == "big":
        ordered.byteswap()
    try:
        with path.open("wb") as f:
            ordered.tofile(f)
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}") from None


def percentile(ordered: array[int], share: float) -> int:
    """Nearest rank: the smallest value that at least ``share`` of all do not exceed. Exact, not a bucket."""
    # In integers of 1/1000: a float product just above a whole number would take the next rank.
    rank = -(-len(ordered) * round(share * 1000) // 1000)
    return ordered[max(rank, 1) - 1]


def rtt_summary(rtt_ns: array[int]) -> dict[str, float | None]:
    """min, percentiles, max and mean in microseconds; None if nothing was measured."""
    names = ("min", *(name for name, _share in PERCENTILES), "max", "mean")
    if not rtt_ns:
        return dict.fromkeys(names)
    ordered = array("Q", sorted(rtt_ns))
    values = (ordered[0], *(percentile(ordered, share) for _name, share in PERCENTILES), ordered[-1],
              sum(ordered) / len(ordered))
    return {name: round(value / 1000, 3) for name, value in zip(names, values, strict=True)}
