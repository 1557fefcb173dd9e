"""``smtnet bench aims``: what this project wants to reach in speed, and how far it is today, in one table.

What is compared is Python in user space (smt) with C in the kernel and in OpenSSL (tls over tcp), under one
harness; aioquic is Python, too. Ratios are of one run, in which systems take turns.
"""

from __future__ import annotations

import os
import statistics
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

import psutil

from smtstack import compiled, quantities
from smtstack.errors import SmtError
from topo.network import open_network
from workloads.experiments import bench_wire, fig8
from workloads.experiments.bench_wire import BULK_SIZE
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.experiments.slowdown.simulation import LoadRun, Setting
from workloads.fleet.fleet import Fleet
from workloads.fleet.setup import Setup
from workloads.kv.client import require_hiredis
from workloads.load import memory_echo
from workloads.load.distributions import workload
from workloads.options.common import PlainResults
from workloads.options.declare import group, option
from workloads.results.environment import environment
from workloads.results.points import size_text
from workloads.results.row import BY_DEFAULT, Row

OURS: Final = "smt-sw"
PARTS: Final = {
    "rtt": "round trips and rates on a cable beside tls, and beside quic where aioquic is installed",
    "ycsb": "YCSB A to D beside tls",
    "memory": "the protocol code alone",
    "sim": "the simulator",
    "hosts": "servers and clients of many hosts: their start, and their memory",
}
_QUIC: Final = "workloads.transports.quic"
_PAIRS: Final = ((OURS, "tls"),)
_QUIC_PAIRS: Final = ((OURS, "tls"), (OURS, "quic"))
_ROUNDS: Final = 5
#: RPCs of a round in memory; messages of a simulated run of so many hosts.
_SMALL, _BULK = 20_000, 100
_SIM_HOSTS, _SIM_MESSAGES = 100, 2_000
_STAR: Final = "star,64"


@dataclass(frozen=True)
class Options:
    """What ``smtnet bench aims`` takes on its command line."""

    part: list[str] | None = option(
        "--part", action="append", choices=tuple(PARTS), metavar="PART",
        help="leave out the others; may be repeated: "
             + "; ".join(f"{name}: {what}" for name, what in PARTS.items()))
    trials: int = option("--trials", type=quantities.POSITIVE, default=5, metavar="N",
                         help="the median of their ratios counts (default: %(default)s)")
    end: PlainResults = group(PlainResults)


@dataclass(frozen=True)
class Aim:
    """One line of the table."""

    part: str
    what: str
    bound: float
    least: bool
    """``bound`` is the least that it should be, not the most."""
    value: float
    before: float | None = None
    """What it was on 2026-11-27 (hosts: two days later), on two cores, interpreted or compiled, whichever people
    got then."""

    @property
    def reached(self) -> bool:
        """Whether it is as it should be."""
        return self.value >= self.bound if self.least else self.value <= self.bound


def check(asked: Options) -> Options:
    """What a part lacks."""
    if "ycsb" in _parts(asked):
        require_hiredis()
    return asked


def _add_quic() -> bool:
    """Where aioquic is installed, quic is a transport from here on, for us and for the programs on hosts."""
    if find_spec("aioquic") is None:
        return False
    import_module(_QUIC)
    names = [name for name in os.environ.get("SMTNET_TRANSPORTS", "").split(",") if name]
    os.environ["SMTNET_TRANSPORTS"] = ",".join(dict.fromkeys([*names, _QUIC]))
    return True


def _parts(asked: Options) -> Sequence[str]:
    return asked.part or tuple(PARTS)


def measure(asked: Options, running: Running) -> Outcome:
    """A line for each aim of the parts that were asked for."""
    rows: list[Row] = []
    aims: list[Aim] = []
    for part in _parts(asked):
        if part == "rtt":
            quic = _add_quic()
            compared = [("smt", "sw"), ("tls", "sw"), *([("quic", "sw")] if quic else [])]
            found = bench_wire.rows_of(compared, asked.trials, running)
            if failed := bench_wire.failure(found):
                raise SmtError(failed)
            rows += found
            aims += wire_aims(bench_wire.ratios(found, _QUIC_PAIRS if quic else _PAIRS))
        elif part == "ycsb":
            setups = [Setup(transport, "sw", "one", 1) for transport in ("smt", "tls")]
            plan = fig8.Plan(setups, asked.trials, fig8.CLIENTS, 1, fig8.QUICK_RECORDS, fig8.QUICK_SECONDS, True,
                             (64, 1024), ("a", "b", "c", "d"))
            found = fig8.rows_of(plan, running, "hosts-ycsb")
            rows += found
            aims += ycsb_aims(fig8.comparison(found, _PAIRS))
        elif part == "memory":
            aims += memory_aims(running)
        elif part == "hosts":
            aims += hosts_aims(running)
        else:
            aims.append(_simulator(running))
    return Outcome(rows, {"aims": [asdict(aim) | {"reached": aim.reached} for aim in aims],
                          "environment": environment()},
                   as_text(aims), table=False, parameters={"trials": asked.trials, "parts": list(_parts(asked))})


#: (sizes, how all wait, at most, what it was before): round trips of one RPC after the other.
_ROUND_TRIPS: Final = (
    ((64, 1024), BY_DEFAULT, 0.5, None), ((64, 1024), "interrupt", 1.0, 1.75), ((64, 1024), "hybrid", 1.3, None),
    ((8192,), BY_DEFAULT, 0.9, None), ((65536,), BY_DEFAULT, 1.1, None))
#: (sizes, RPCs under way, at least, what it was before).
_RATES: Final = (((64, 1024), 50, 1.41, 0.6), ((64, 1024), 150, 1.41, 0.75), ((8192,), 50, 1.0, 0.3))


def wire_aims(table: Sequence[Mapping[str, Any]]) -> Iterator[Aim]:
    """The aims on a cable; ``table`` is what :func:`workloads.experiments.bench_wire.ratios` makes."""
    name = f"{OURS}/tls"

    def point(size: int, poll: str, concurrency: int, variant: str = "tso on") -> Mapping[str, Any]:
        return next(p for p in table if (p["size"], p["poll"], p["concurrency"], p["variant"]) ==
                    (size, poll, concurrency, variant))

    for sizes, poll, most, before in _ROUND_TRIPS:
        for size in sizes:
            how = "each as by default" if poll == BY_DEFAULT else f"both {poll}"
            yield Aim("rtt", f"RTT {size_text(size)}, {how}, {name}", most, False,
                      point(size, poll, 1)["ratio"][name], before)
    for sizes, many, least, before in _RATES:
        for size in sizes:
            yield Aim("rtt", f"RPC/s {size_text(size)} x{many}, {name}", least, True,
                      point(size, BY_DEFAULT, many)["ratio"][name], before)
    for variant, least, before in (("tso on", 1.0, 0.41), ("tso off", 0.5, None), ("overlay tcp", 1.0, None)):
        bulk = point(BULK_SIZE, BY_DEFAULT, bench_wire.BULK_CONCURRENCY, variant)
        yield Aim("rtt", f"MB/s 1 MB, {variant}, {name}", least, True, bulk["ratio"][name], before)
    quic = f"{OURS}/quic"
    if quic in table[0]["ratio"]:
        trip = point(64, BY_DEFAULT, 1)["ratio"][quic]
        yield Aim("rtt", "RTT 64 B, aioquic/smt", 5, True, round(1 / trip, 1), 3.7)
        yield Aim("rtt", f"RPC/s 64 B x50, {quic}", 15, True, point(64, BY_DEFAULT, 50)["ratio"][quic], 11)
        bulk = point(BULK_SIZE, BY_DEFAULT, bench_wire.BULK_CONCURRENCY)
        yield Aim("rtt", f"MB/s 1 MB, {quic}", 15, True, bulk["ratio"][quic], 5.4)


def ycsb_aims(table: Sequence[Mapping[str, Any]]) -> Iterator[Aim]:
    """The aims of YCSB; ``table`` is what :func:`workloads.experiments.fig8.comparison` makes."""
    for point in table:
        what = f"YCSB {point['workload'].upper()}, {size_text(point['value_bytes'])}, {OURS}/tls"
        yield Aim("ycsb", what, 1.24, True, point["ratio"][f"{OURS}/tls"])


def memory_aims(running: Running) -> Iterator[Aim]:
    """Both ends, their devices and AES-GCM on one core, with no kernel between."""
    for size, count, what, least in ((64, _SMALL, "RPC/s 64 B in memory", 130_000.0),
                                     (BULK_SIZE, _BULK, "MB/s 1 MB in memory", 600.0)):
        running.progress.say(what)
        rates = [memory_echo.measure(OURS, size, count, 1)[0] for _round in range(_ROUNDS)]
        scale = 1.0 if size < BULK_SIZE else 2 * size / 1e6
        yield Aim("memory", what, least, True, round(statistics.median(rates) * scale))


def _simulator(running: Running) -> Aim:
    """Frames that reach an end of a link, by second of processor time."""
    running.progress.say(f"simulating {_SIM_HOSTS} hosts")
    run = LoadRun(Setting(hosts=_SIM_HOSTS, messages=_SIM_MESSAGES), "smt", workload("w4"))
    start = time.process_time()
    result = run.run()
    if not result.drained:
        raise SmtError(f"{result.undelivered} simulated messages did not arrive")
    rate = result.frames / (time.process_time() - start)
    return Aim("sim", f"simulated frames/s, {_SIM_HOSTS} hosts", 100_000, True, round(rate), 36_000)


def hosts_aims(running: Running) -> Iterator[Aim]:
    """One host serves and all others are about to ask it, with nothing started before. A receive ring stands for
    memory of a NIC, so it is not a program's own."""
    running.progress.say(f"starting {_STAR}")
    with open_network(_STAR, progress=running.progress.say) as net:
        fleet = Fleet(net, _STAR, Setup("smt", "sw", "one", 1), running.folder.path / "hosts-many")
        start = time.perf_counter()
        with fleet:
            seconds = time.perf_counter() - start
            memory = [_private_bytes(process) for process in fleet.processes()]
    yield Aim("hosts", f"s until all of {_STAR} serve or can ask", 5, False, round(seconds, 2), 12.3)
    yield Aim("hosts", "MB of its own each, receive ring apart", 10, False,
              round(statistics.median(memory) / 1e6, 1), 20.6)


def _private_bytes(process: psutil.Process) -> int:
    """Memory that nobody shares with it, but receive rings."""
    return sum(part.private_clean + part.private_dirty for part in process.memory_maps()
               if not part.path.startswith("socket:"))


def as_text(aims: Sequence[Aim]) -> str:
    """For people."""
    here = environment()
    lines = [f"Aims and figures of today, {compiled.description()}, {here['cpu']}, "
             f"{here['cores_usable']} cores.",
             "smt is Python in user space, tls is OpenSSL over the kernel's TCP, both C; aioquic is Python.", "",
             f"{'':<44}{'aim':>12}{'today':>12}{'before':>12}"]
    for aim in aims:
        bound = f"{'>=' if aim.least else '<='} {aim.bound:,.5g}" if aim.bound < 1e5 else f">= {aim.bound:,.0f}"
        before = "" if aim.before is None else _figure(aim.before)
        lines.append(f"{aim.what:<44}{bound:>12}{_figure(aim.value):>12}{before:>12}"
                     f"  {'reached' if aim.reached else 'not reached'}")
    return "\n".join(lines)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


EXPERIMENT = Experiment(
    "aims", command="bench", folder="bench", help="what speed is aimed at, and today's figures beside it",
    description=textwrap.fill(
        "The speeds that this project wants to reach, as ratios to OpenSSL over the kernel's TCP and to aioquic, "
        "each beside what this machine does today. Takes some minutes and root.", 98),
    examples="examples:\n  smtnet bench aims\n  smtnet bench aims --part memory --part sim --json",
    options=Options, check=check, measure=measure, ends_with="results")
