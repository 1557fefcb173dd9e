"""One transport has the whole schedule: loads begin, faults come and go, all is noted when it was so."""

from __future__ import annotations

import signal
import time
from array import array
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, cast

import psutil

from smtstack.errors import SmtError
from topo.cli_verbs import find_link, link_name, wire_of
from topo.network import SmtNet
from topo.wire import SIDES
from workloads.experiments.scenario.file import Fault, LoadTable, Scenario, impaired
from workloads.experiments.scenario.picture import MODE
from workloads.experiments.scenario.schedule import What, intervals, steps
from workloads.experiments.scenario.timeline import Happened, Measured, ScenarioRow, spread
from workloads.fleet import fleet
from workloads.fleet.fleet import Fleet
from workloads.fleet.setup import Setup
from workloads.load.loops import Load
from workloads.load.timed import ENDED_SUFFIX
from workloads.results.folder import ResultFolder
from workloads.results.row import Answered

#: Seconds for a process to be stopped, which the kernel does at once.
_PATIENCE_S = 2.0


class TimedFleet(Fleet):
    """A fleet that knows when each RPC ended, and when each failed."""

    CALLS = "timed"
    TAGS = ENDED_SUFFIX

    def __init__(self, net: SmtNet, topo: str, setup: Setup, folder: Path, number: int, load: LoadTable) -> None:
        super().__init__(net, topo, setup, folder, number)
        self.load = load
        self.failed_ns: list[int] = []

    def __enter__(self) -> TimedFleet:
        super().__enter__()
        return self

    def _row(self, load: Load, trial: int, done: list[dict[str, Any]], samples: array[int]) -> Answered:
        self.failed_ns = [at for answer in done for at in answer["failed_ns"]]
        return {**super()._row(load, trial, done, samples), "mode": MODE, "variant": self.load.name}


class Faults:
    """The faults of a network that are there now. They are gone at the end of ``with``."""

    def __init__(self, net: SmtNet, faults: Sequence[Fault], fleets: Sequence[Fleet]) -> None:
        self._net = net
        self._faults = faults
        self._fleets = fleets
        self._active: set[int] = set()

    def __enter__(self) -> Faults:
        return self

    def __exit__(self, *_error: object) -> None:
        for number in sorted(self._active):
            # What is broken already says so itself; stopped processes must go on, or nobody could end them.
            with suppress(SmtError, psutil.NoSuchProcess):
                self.end(number)

    def begin(self, number: int) -> None:
        """Back when it has taken effect."""
        self._active.add(number)
        self._apply(self._faults[number])

    def end(self, number: int) -> None:
        """Back when it has no effect any more."""
        self._active.discard(number)
        self._apply(self._faults[number])

    def _apply(self, fault: Fault) -> None:
        """What holds now where ``fault`` is, by all that are there."""
        now = [self._faults[number] for number in sorted(self._active)]
        if fault.ends is None:
            stopped = any(other.ends is None and other.table.host == fault.table.host for other in now)
            self._stop(fault.table.host, stopped)
            return
        link = find_link(self._net, "-".join(fault.ends))
        wire = wire_of(link)
        if wire is None:
            raise SmtError(f"link {link_name(link)} has no wire")
        here = [other.table for other in now if other.ends == fault.ends]
        # Frames towards the right are those that the left end sends.
        for side, options in zip(reversed(SIDES), link.ends, strict=True):
            wire.set_rates(side, impaired(options, here))

    def _stop(self, host: str, stop: bool) -> None:
        pids = [pid for found in self._fleets for pid in found.server_pids(host)]
        processes = [psutil.Process(pid) for pid in pids]
        for process in processes:
            process.send_signal(signal.SIGSTOP if stop else signal.SIGCONT)
        end = time.monotonic() + _PATIENCE_S
        while any((process.status() == psutil.STATUS_STOPPED) != stop for process in processes):
            if time.monotonic() > end:
                raise SmtError(f"{host}: its servers do not {'stop' if stop else 'go on'}")
            time.sleep(0.0005)


def play(scenario: Scenario, net: SmtNet, transport: str, trial: int, first: int,
         folder: ResultFolder) -> list[ScenarioRow]:
    """A row for each load. ``first``: the number of the first of its fleets, of those of the whole run."""
    place = folder.path / "hosts"
    with ExitStack() as stack:
        fleets = [stack.enter_context(TimedFleet(net, scenario.network.topo, scenario.setup(transport, load),
                                                 place, first + number, load))
                  for number, load in enumerate(scenario.loads)]
        faults = stack.enter_context(Faults(net, scenario.faults, fleets))
        trials = [one.prepare(scenario.load(number, trial), trial) for number, one in enumerate(fleets)]
        for one, prepared in zip(fleets, trials, strict=True):
            one.watch(prepared)
        clock = Clock()
        looks = [(0.0, fleets[0].sent_again())]
        begun: dict[int, float] = {}
        ended: dict[int, float] = {}
        ticks = [span.end for span in intervals(scenario.head.interval, scenario.seconds)]
        for step in steps([load.span for load in scenario.loads], [fault.span for fault in scenario.faults]):
            while ticks and ticks[0] <= step.at:
                _look(clock, ticks.pop(0), fleets[0], looks)
            clock.sleep_until(step.at)
            match step.what:
                case What.LOAD_BEGINS:
                    fleets[step.number].let_go(trials[step.number])
                case What.FAULT_BEGINS:
                    faults.begin(step.number)
                    begun[step.number] = clock.now()
                case What.FAULT_ENDS:
                    # Before: what a stopped server answers once it goes on is not of the time in which it stood.
                    ended[step.number] = clock.now()
                    faults.end(step.number)
        for tick in ticks:
            _look(clock, tick, fleets[0], looks)
        measured = [one.collect(prepared) for one, prepared in zip(fleets, trials, strict=True)]
        looks.append((clock.now(), fleets[0].sent_again()))
    happened: list[Happened] = [
        {"what": fault.text(), "begin_s": round(begun[number], 6), "end_s": round(ended[number], 6),
         "asked_begin_s": fault.span.begin, "asked_end_s": fault.span.end}
        for number, fault in enumerate(scenario.faults)]
    rows = []
    for one, found in zip(fleets, measured, strict=True):
        known = Measured(found.rtt_ns, [clock.at(at) for at in found.tags], [clock.at(at) for at in one.failed_ns],
                         one.load.span)
        until = max(scenario.seconds, max(known.ended, default=0.0), max(known.failed, default=0.0))
        timeline = known.timeline(scenario.head.interval, until, spread(looks, scenario.head.interval, until))
        rows.append(cast(ScenarioRow, {
            **found.row, "load": one.load.name, "scenario": scenario.name, "interval_s": scenario.head.interval,
            "timeline": timeline, "faults": happened, "within": known.within(happened, timeline)}))
        name = f"trial{trial}-{scenario.system(transport)}-load{len(rows)}"
        folder.save_raw(name, found.rtt_ns)
        folder.save_raw(f"{name}.ended", array("Q", (at - clock.origin_ns for at in found.tags)))
    return rows


class Clock:
    """Seconds since it was made, on the clock of :mod:`workloads.load.timed`."""

    def __init__(self) -> None:
        self.origin_ns = time.perf_counter_ns()

    def at(self, ns: int) -> float:
        """When that was."""
        return (ns - self.origin_ns) / 1e9

    def now(self) -> float:
        """The time."""
        return self.at(time.perf_counter_ns())

    def sleep_until(self, at: float) -> None:
        """Not at all if it is past."""
        time.sleep(max(0.0, at - self.now()))


def _look(clock: Clock, at: float, one: fleet.Fleet, looks: list[tuple[float, int]]) -> None:
    clock.sleep_until(at)
    looks.append((at, one.sent_again()))
