"""Was this run faithful? What the machine and our socket lost while something was measured.

An emulator shares its processor with everything else. A figure taken while the hypervisor took the
processor away, while tasks queued for it or while frames were thrown away for want of buffer is a figure
of that, not of the transport. Every result carries the verdict and the numbers behind it.
"""

from __future__ import annotations

import gc
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import psutil

from workloads.results.row import RingCounts, Times, Verdict

#: Share of all processor time the hypervisor took away. Steal comes in slices of milliseconds, thousands
#: of times a round trip here: 2 % of the time can be all of a 99th percentile.
MAX_STEAL = 0.02
#: Share of wall time in which one of our processes was ready to run and had no processor. Up to a fifth is what
#: client and server of one machine do to each other; beyond, they or others compete.
MAX_RUN_DELAY = 0.20
#: The same of any task of the machine (PSI "some"), where the kernel does not tell it of each.
MAX_PSI_CPU_SOME = 0.20
#: Frames our own sockets lost. The emulated link loses frames by order, the host never may.
MAX_DROPS = 0
#: Ticks of the transport that its timers may be late, and microseconds of a tick where nobody says: a peer waits
#: 10 ticks between RESENDs, and later than that, our silence looks like loss to it. Slow links have longer ticks.
MAX_LATE_TICKS, TICK_US = 10, 1_000.0

#: Share of all samples beyond a figure; the smallest and the mean have none.
TAILS = {"p50": 0.5, "p90": 0.1, "p99": 0.01, "p999": 0.001, "max": 0.0}
#: The figures that a run is judged by. The extremes stand beside them, marked, and decide nothing: of a thousand
#: round trips p999 is one.
QUOTED = ("p50", "p90", "p99", "mean", "rpc_per_s")
#: A wait for a processor disturbs a figure if it is such a part of it. A client that shares a processor with its
#: server waits in every RPC until that has done its part, a quarter of a short round trip: that is no disturbance.
DISTURBS = 0.5
#: How many of the samples beyond a figure may be disturbed. A quarter by what the client sees, as the server, of
#: which it sees nothing, waits as it does: half of them, and p99 is p98 at worst.
MAX_DISTURBED = 0.25
#: Time that the hypervisor took, by the share beyond a figure.
MAX_STEAL_OF_TAIL = 1.0
#: How much of a mean may be waiting.
MAX_OF_MEAN = 0.2
#: A tail as short as this is moved by one moment.
_SHORT_TAIL = 0.01
_LATE, _WAITED = "a timer was", "a process of the run waited"

#: New objects before the collector looks at these; how many such looks before it looks at older ones, and at all.
#: By default the first is 700. A few dozen RPCs under way have more: it then looks at live ones again and again.
COLLECTIONS = (10_000, 10, 10)
_PSI_TOTAL = re.compile(r"^some .*total=(\d+)", re.MULTILINE)
PSI_CPU = Path("/proc/pressure/cpu")


def psi_cpu_some_us(path: Path = PSI_CPU) -> int | None:
    """Microseconds since boot in which some task waited for a processor; None if the kernel has no PSI."""
    try:
        found = _PSI_TOTAL.search(path.read_text())
    except OSError:
        return None
    return int(found[1]) if found else None


def run_delay_ns(pid: int) -> int | None:
    """Nanoseconds in which a process was ready and had no processor (``Documentation/scheduler/sched-stats.rst``);
    None if the kernel does not count it, or the process has ended."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None


def shorten_pauses() -> None:
    """For a process that is about to serve or to measure: the collector of cycles need not look at what it has by
    now, which stays, and looks less often at what comes. It stopped a server for 89 ms, more than a client waits.

    Cycles that come later are still found; the engine leaves none (tests/unit/test_engine_memory.py).
    """
    # Or what is garbage already would stay, too.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTIONS)


class Watched(Protocol):
    """What can be asked what it lost: every transport."""

    def drops(self) -> tuple[int, int]:
        """(received, sent) frames lost for want of buffer since it was opened."""

    def take_late_ns(self) -> int:
        """Most that a timer was late since this was asked last."""


class FidelityMonitor:
    """From :meth:`start` to :meth:`stop`: what was lost. ``transport`` is ours to watch, if there is one;
    ``pids`` are the processes that what is measured depends on, by default this one.

    There is no bound for idle time: a closed loop takes all it can get, and the run delay says whether somebody
    had to wait for it.
    """

    def __init__(self, transport: Watched | None = None, pids: Sequence[int] | None = None) -> None:
        self._transport = transport
        self._pids = [os.getpid()] if pids is None else list(pids)
        self._delays: dict[int, int | None] = {}
        self._cpu = psutil.cpu_times()
        self._psi: int | None = None
        self._drops = (0, 0)
        self._clock = 0.0

    def start(self) -> None:
        """Everything before this does not count."""
        if self._transport is not None:
            self._drops = self._transport.drops()
            self._transport.take_late_ns()
        self._delays = {pid: run_delay_ns(pid) for pid in self._pids}
        self._psi = psi_cpu_some_us()
        self._cpu = psutil.cpu_times()
        self._clock = time.monotonic()

    def stop(self) -> Verdict:
        """The verdict since :meth:`start`: ``ok``, ``reasons`` (what was not faithful) and the numbers."""
        before, now = self._cpu, psutil.cpu_times()
        total = sum(now[:8]) - sum(before[:8])  # guest time, the rest, is counted in user already
        wall_us = max(1.0, (time.monotonic() - self._clock) * 1e6)
        psi = psi_cpu_some_us()
        some = None if psi is None or self._psi is None else round((psi - self._psi) / wall_us, 4)
        drops, late = self._drops, 0
        if self._transport is not None:
            drops, late = self._transport.drops(), self._transport.take_late_ns()
        dropped, unsent = (n - o for n, o in zip(drops, self._drops, strict=True))
        return verdict({
            "steal": _share(getattr(now, "steal", 0.0) - getattr(before, "steal", 0.0), total),
            "idle": _share(now.idle - before.idle, total),
            "run_delay": self._run_delay(wall_us),
            "psi_cpu_some": some,
            "receive_drops": dropped,
            "send_drops": unsent,
            "timer_late_us": round(late / 1000, 1),
        })

    def _run_delay(self, wall_us: float) -> float | None:
        """Share of the time in which the process that waited most had no processor; None: not known."""
        delays = [(after - before) / 1000 / wall_us for pid, before in self._delays.items()
                  if before is not None and (after := run_delay_ns(pid)) is not None]
        return round(max(delays), 4) if delays else None


def verdict(numbers: Mapping[str, Any]) -> Verdict:
    """``numbers`` as :meth:`FidelityMonitor.stop` has them, judged. A number that is None judges nothing."""
    reasons = []
    if numbers["steal"] is not None and numbers["steal"] > MAX_STEAL:
        reasons.append(f"the hypervisor took {numbers['steal']:.1%} of the processor time away "
                       f"(at most {MAX_STEAL:.0%})")
    delay = numbers.get("run_delay")
    if delay is not None and delay > MAX_RUN_DELAY:
        reasons.append(f"{_WAITED} for a processor {delay:.0%} of the time "
                       f"(at most {MAX_RUN_DELAY:.0%})")
    if delay is None and numbers["psi_cpu_some"] is not None and numbers["psi_cpu_some"] > MAX_PSI_CPU_SOME:
        reasons.append(f"tasks waited for a processor {numbers['psi_cpu_some']:.0%} of the time "
                       f"(at most {MAX_PSI_CPU_SOME:.0%})")
    for name, what in (("receive_drops", "received frames were dropped for want of buffer"),
                       ("send_drops", "frames were given up because the transmit queue stayed full"),
                       ("path_drops", "frames were lost by a switch or wire that was too slow")):
        if numbers.get(name, 0) > MAX_DROPS:
            reasons.append(f"{numbers[name]} {what}")
    most_us = MAX_LATE_TICKS * numbers.get("tick_us", TICK_US)
    if numbers["timer_late_us"] > most_us:
        reasons.append(f"{_LATE} {numbers['timer_late_us'] / 1000:.1f} ms late "
                       f"(at most {most_us / 1000:.0f} ms)")
    return cast(Verdict, {"ok": not reasons, "reasons": reasons, **numbers})


def judge_figures(fidelity: Verdict, rtt_us: Times, rpcs: int) -> Verdict:
    """A verdict that says of each figure whether it can stand: ``figures`` (true or false, by name: those of
    ``rtt_us``, and ``rpc_per_s``) and ``figure_reasons`` (why not).

    ``waits`` in ``fidelity`` are the RPCs by the us that the client waited for a processor while they were under
    way, None where the kernel does not tell. A wait disturbs a figure if it is as long as :data:`DISTURBS` of it.
    The q-quantile stands if of those beyond it, ``1 - q`` of all, at most :data:`MAX_DISTURBED` were disturbed:
    otherwise it could as well be a figure of the waits. What makes a whole run unfaithful holds for every figure;
    a timer that was late, for the tail: it is one moment, and no median. ``ok`` is of :data:`QUOTED`.
    """
    reasons = list(fidelity.get("reasons", ()))
    late = [reason for reason in reasons if reason.startswith(_LATE)]
    waited = [reason for reason in reasons if reason.startswith(_WAITED) and fidelity.get("waits") is not None]
    whole = [reason for reason in reasons if reason not in late and reason not in waited]
    figures: dict[str, bool] = {}
    why: dict[str, str] = {}
    for name in ("rpc_per_s", *rtt_us):
        found = list(whole)
        value, share = rtt_us.get(name), TAILS.get(name)
        if value is not None and share is not None and not whole:
            found += _disturbed(fidelity, name, value, max(share, 1 / max(rpcs, 1)), rpcs)
            if share <= _SHORT_TAIL:
                found += late
            # Of the time, disturbed RPCs have more than their share.
            if (delay := fidelity.get("run_delay")) is not None and delay > share:
                found += waited
        elif value is not None and name == "mean" and not whole:
            found += waited or _moved(fidelity, value, rpcs)
        elif name == "rpc_per_s":
            found += waited
        figures[name] = not found
        if found:
            why[name] = "; ".join(found)
    reasons += [text for name in QUOTED if name in why and not whole for text in why[name].split("; ")
                if text not in reasons]
    return {**fidelity, "ok": not reasons, "reasons": reasons, "figures": figures, "figure_reasons": why}


def _disturbed(fidelity: Verdict, name: str, value: float, tail: float, rpcs: int) -> list[str]:
    """Why a quantile with a share of ``tail`` beyond it cannot stand."""
    found = []
    steal = fidelity.get("steal")
    if steal is not None and MAX_STEAL >= steal > tail * MAX_STEAL_OF_TAIL:
        found.append(f"{name} cannot stand: the hypervisor took {steal:.2%} of the processor time away (at most "
                     f"{tail * MAX_STEAL_OF_TAIL:.2%})")
    waits = fidelity.get("waits")
    if waits is None:
        some = fidelity.get("psi_cpu_some")
        if some is not None and MAX_PSI_CPU_SOME >= some > tail:
            found.append(f"{name} cannot stand: tasks waited for a processor {some:.1%} of the time (at most "
                         f"{tail:.1%})")
        return found
    least = DISTURBS * value
    # One RPC may wait several times.
    hit = min(rpcs, sum(count for wait, count in waits.items() if int(wait) >= least))
    if hit > tail * MAX_DISTURBED * rpcs:
        found.append(f"{name} cannot stand: {hit} of {rpcs} RPCs waited {least:.0f} us or more for a processor, "
                     f"half of it (at most {int(tail * MAX_DISTURBED * rpcs)})")
    return found


def _moved(fidelity: Verdict, mean: float, rpcs: int) -> list[str]:
    """Why a mean cannot stand."""
    total = sum(int(wait) * count for wait, count in (fidelity.get("waits") or {}).items())
    if total > MAX_OF_MEAN * mean * rpcs:
        return [f"mean cannot stand: {total / (mean * rpcs):.0%} of it is waiting for a processor (at most "
                f"{MAX_OF_MEAN:.0%})"]
    return []


def add_waits(parts: Iterable[Mapping[str, Any]]) -> dict[str, int] | None:
    """The waits of several clients' verdicts together; None if one does not know."""
    total: Counter[str] = Counter()
    for part in parts:
        if part.get("waits") is None:
            return None
        total.update({str(wait): count for wait, count in part["waits"].items()})
    return dict(sorted(total.items(), key=lambda item: int(item[0])))


def combined(machine: Mapping[str, Any], programs: Sequence[Mapping[str, Any]], **further: Any) -> Verdict:
    """The verdict over a machine's numbers (a verdict's, which is judged anew) and what several ``programs`` lost
    meanwhile, by the verdict of each; ``further`` numbers, as ``path_drops``, stand above all these."""
    numbers = {name: value for name, value in machine.items() if name not in ("ok", "reasons")}
    if programs:
        for name, add in (("receive_drops", sum), ("send_drops", sum), ("timer_late_us", max)):
            numbers[name] = add(program[name] for program in programs)
        if any("waits" in program for program in programs):
            numbers["waits"] = add_waits(programs)
    return verdict(numbers | further)


def doubted(fidelity: Verdict, *reasons: str) -> Verdict:
    """A verdict with further reasons, if any, why it was not faithful."""
    if not reasons:
        return fidelity
    found: Verdict = {**fidelity, "ok": False, "reasons": [*fidelity["reasons"], *reasons]}
    if "figures" in found:
        found["figures"] = dict.fromkeys(found["figures"], False)
        found["figure_reasons"] = {name: "; ".join(filter(None, (fidelity["figure_reasons"].get(name), *reasons)))
                                   for name in found["figures"]}
    return found


def ring_doubts(counts: RingCounts) -> list[str]:
    """Why what went by rings cannot stand: the host of a run is honest, so whatever is refused of it is a fault,
    of the ring or of the checks."""
    found = (("rejected_indices", "indices of an honest host were rejected"),
             ("invalid_frames", "frames of an honest host were invalid"))
    return [f"{count} {what}" for name, what in found if (count := cast(dict[str, int], counts)[name])]


def _share(part: float, total: float) -> float | None:
    """None for runs shorter than a jiffy: nothing was counted."""
    return round(part / total, 4) if total > 0 else None
