"""``smtnet bench wire``: SMT beside TLS, and Homa beside TCP, on a cable: ratios within one run.

Every system's processes stay up, and trials take turns, so a slow moment of the machine hits all of them; the
ratio of a trial is to the yardstick's same trial, and the median of these ratios is printed.
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from smtstack import quantities
from smtstack.waiting import MODES, Waiting
from smtstack.wire.overlay import NONE, TCP
from topo.link_options import LinkOptions
from workloads.experiments.demo import compare, timed
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.fleet.setup import Setup
from workloads.load.loops import Load
from workloads.options.common import PlainResults
from workloads.options.declare import group, option
from workloads.options.hosting import Hosting
from workloads.options.overlay import Overlay
from workloads.results.environment import environment
from workloads.results.points import label, metric, size_text
from workloads.results.row import Row
from workloads.transports.table import INLINE, TABLE, system_label, systems

#: What is compared, and whose figures are divided by whose.
SYSTEMS = systems("wire")


def pairs_of(compared: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """(system, the one that its figures are divided by) of those that have one."""
    return [(system_label(name, nic), TABLE[name].beside) for name, nic in compared if TABLE[name].beside]


RATIOS = pairs_of(SYSTEMS)
UNLOADED_SIZES = (64, 1024, 8192, 65536)
LOADED_SIZES = (64, 1024, 8192)
#: One at a time is the unloaded round trip, measured anyway.
CONCURRENCIES = (50, 150)
BULK_SIZE, BULK_CONCURRENCY = 1_000_000, 4
UNLOADED_S, LOADED_S, BULK_S = 0.3, 0.5, 1.0
_UNLOADED = [timed(size, UNLOADED_S) for size in UNLOADED_SIZES]
_LOADED = [timed(size, LOADED_S, c) for size in LOADED_SIZES for c in CONCURRENCIES]
_BULK = [timed(BULK_SIZE, BULK_S, BULK_CONCURRENCY)]


class Part(NamedTuple):
    """What is measured on a network of its own."""

    loads: list[Load]
    wait: Waiting | None = None
    """How all wait; None: each as it does by default."""
    tso: str = "on"
    overlay: Overlay = Overlay(NONE)

    @property
    def variant(self) -> str:
        """What tells its rows from others'."""
        return f"tso {self.tso}" if self.overlay.overlay == NONE else f"overlay {self.overlay.overlay}"


#: All that is measured.
PARTS: Final = (Part(_UNLOADED + _LOADED), *(Part(_UNLOADED, Waiting(mode)) for mode in MODES),
                Part(_BULK), Part(_BULK, tso="off"), Part(_BULK, overlay=Overlay(TCP)))


@dataclass(frozen=True)
class Options:
    """What ``smtnet bench wire`` takes on its command line."""

    trials: int = option("--trials", type=quantities.POSITIVE, default=5, metavar="N",
                         help="the median of their ratios counts (default: %(default)s)")
    nics: Hosting = group(Hosting)
    end: PlainResults = group(PlainResults)

    @property
    def compared(self) -> list[tuple[str, str]]:
        """The systems."""
        return systems("wire", self.nics.hosting)


def rows_of(compared: Sequence[tuple[str, str]], trials: int, running: Running,
            hosting: str = INLINE) -> list[Row]:
    """A row for each load, system and trial of :data:`PARTS`; ``hosting`` of the hosts' NICs."""
    rows: list[Row] = []
    for part in PARTS:
        setups = [Setup(transport, nic, wait=part.wait, options=part.overlay.words(transport))
                  for transport, nic in compared]
        links = LinkOptions(tso=part.tso, nic=() if part.tso == "on" else ("tso=off",), hosting=hosting)
        rows += compare("back2back", links, setups, part.loads, trials, running.folder, running.progress,
                        variant=part.variant)
    return rows


def failure(rows: Sequence[Row]) -> str:
    """How many trials failed, and why the first did; empty: none did."""
    failed = [row for row in rows if row["errors"] or not row["content_ok"]]
    return f"{len(failed)} trials failed, first: {failed[0].get('first_error', 'wrong content')}" if failed else ""


def measure(asked: Options, running: Running) -> Outcome:
    """All systems."""
    rows = rows_of(asked.compared, asked.trials, running, asked.nics.hosting)
    parameters = {"trials": asked.trials, "hosting": asked.nics.hosting}
    if failed := failure(rows):
        return Outcome(rows, parameters=parameters, failed=failed)
    table = ratios(rows, pairs_of(asked.compared))
    return Outcome(rows, {"ratios": table, "environment": environment()}, as_text(table), table=False,
                   parameters=parameters)


def ratios(rows: list[Row], pairs: Sequence[tuple[str, str]] = RATIOS) -> list[dict[str, Any]]:
    """One entry for each point: median figure of every system, processor time of both ends for an RPC
    (``cpu_us``; ``nic_us``: of NICs that own their interfaces), and median ratio for each of ``pairs``.

    A round trip's ratio is good below 1, a rate's above.
    """
    points: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    cpu: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    nic: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    for row in rows:
        value = metric(row)
        assert value is not None  # a failed trial ended the run
        key = (row["variant"], row["poll"], row["mode"], row["size"], row["concurrency"])
        points.setdefault(key, {}).setdefault(label(row), []).append(value)
        cpu.setdefault(key, {}).setdefault(label(row), []).append(row["cpu"].get("us_per_rpc") or 0.0)
        if "nic_s" in row["cpu"]:
            nic.setdefault(key, {}).setdefault(label(row), []).append(row["cpu"].get("nic_us_per_rpc") or 0.0)
    out = []
    for key, by_system in points.items():
        variant, poll, mode, size, concurrency = key
        median = {name: statistics.median(values) for name, values in by_system.items()}
        shares = {f"{ours}/{theirs}": statistics.median(a / b for a, b in zip(by_system[ours], by_system[theirs],
                                                                             strict=True))
                  for ours, theirs in pairs}
        out.append({"variant": variant, "poll": poll, "mode": mode, "size": size, "concurrency": concurrency,
                    "median": {name: round(value, 1) for name, value in median.items()},
                    "cpu_us": {name: round(statistics.median(values), 1) for name, values in cpu[key].items()},
                    **({"nic_us": {name: round(statistics.median(values), 1) for name, values in nic[key].items()}}
                       if key in nic else {}),
                    "ratio": {name: round(value, 3) for name, value in shares.items()}})
    return out


def as_text(table: list[dict[str, Any]]) -> str:
    """For people."""
    here = environment()
    names, pairs = list(table[0]["median"]), list(table[0]["ratio"])
    lines = [f"echo on a cable, {here['protocol_code']}, {here['cpu']}",
             f"{'':>42}" + "".join(f"{name:>10}" for name in names)
             + "".join(f"{pair:>18}" for pair in pairs)]
    for point in table:
        what = "RTT us" if point["mode"] == "unloaded" else "RPC/s"
        scale = 1.0
        if point["size"] == BULK_SIZE:
            what, scale = "MB/s", 2 * BULK_SIZE / 1e6
        many = f" x{point['concurrency']}" if point["concurrency"] > 1 else ""
        variant = f", {point['variant']}" if point["size"] == BULK_SIZE else ""
        head = f"{what} {size_text(point['size'])}{many}, {point['poll']}{variant}"
        lines.append(f"{head:>42}" + "".join(f"{point['median'][name] * scale:>10,.1f}" for name in names)
                     + "".join(f"{point['ratio'][pair]:>18.2f}" for pair in pairs))
        lines.append(f"{'processor us an RPC':>42}"
                     + "".join(f"{point['cpu_us'][name]:>10,.1f}" for name in names))
        if "nic_us" in point:
            lines.append(f"{'of the NICs':>42}" + "".join(f"{point['nic_us'][name]:>10,.1f}" for name in names))
    return "\n".join(lines)


EXPERIMENT = Experiment(
    "wire", command="bench", folder="bench", help="smt beside tls, homa beside tcp, on a cable",
    description=textwrap.fill(
        "Round trips, RPC/s and MB/s of echo between two hosts on a cable, and the ratios smt / tls "
        "and homa / tcp. Takes some minutes and root.", 98),
    examples="example: smtnet bench wire --trials 3 --json", options=Options, check=lambda asked: asked,
    measure=measure,
    steps=lambda asked: ("bench wire",
                         len(asked.compared) * asked.trials * sum(len(part.loads) for part in PARTS)),
    ends_with="results")
