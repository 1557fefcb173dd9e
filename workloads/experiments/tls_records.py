"""``smtnet reproduce tls-records``: throughput and processor time by the size of a record, for plain TCP, TLS in
user space, and our kernel TLS by software and in the NIC; beside the talk that proposed TLS offload for Linux.

The talk's figures (Pismenny, Lesokhin and Liss, Netdev 1.2, 2016) are of a proof of concept, with one processor at
its limit and small records. They are its captions, read from a transcript.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

from topo.link_options import LinkOptions
from topo.network import open_network
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.experiments.offload import figures, pictures
from workloads.experiments.offload.figures import Line
from workloads.experiments.offload.hosts import StreamRow, Transfer, open_pairs
from workloads.experiments.offload.senders import KTLS_NIC, KTLS_SW, PLAIN, SYSTEMS, TLS, How
from workloads.options.common import QuotedResults, positive
from workloads.options.declare import group, option
from workloads.results.folder import csv_text
from workloads.results.kinds import Mode, Picture
from workloads.results.points import size_text
from workloads.results.published import Beside, Published
from workloads.results.row import Row
from workloads.results.table import aligned

MODE = "records"
TOPO = "back2back"
SIZES, QUICK_SIZES = (256, 1024, 4096, 16_384), (1024, 16_384)
TRIALS, SECONDS, QUICK_SECONDS = 5, 0.5, 0.1
#: Bytes that are tried first, and the most that are sent.
_FIRST, _MOST = 512 * 1024, 128 << 20

#: Gbit/s of the talk, by what stands for it here.
TALK = {PLAIN: ("TCP", 23.0), TLS: ("GnuTLS", 5.0), KTLS_SW: ("kTLS", 4.0), KTLS_NIC: ("kTLS, offload", 8.0)}

_EXAMPLES = """examples:
  smtnet reproduce tls-records --quick
  smtnet reproduce tls-records --trials 7 --json

Writes results/<UTC time>-tls-records/: tls-records.csv, tls-records.png, and what every run leaves. Takes a minute
(--quick: ten seconds). Needs root, and what --nic-hosting tap needs ('smtnet doctor').
"""


@dataclass(frozen=True)
class Options:
    """What ``smtnet reproduce tls-records`` takes on its command line."""

    quick: bool = option("--quick", action="store_true", help="one short trial of two sizes")
    end: QuotedResults = group(QuotedResults)
    trials: int | None = option("--trials", type=positive, metavar="N",
                                help=f"the median of their ratios counts (default: {TRIALS})")


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often."""

    sizes: tuple[int, ...]
    """Bytes of a write."""
    trials: int
    seconds: float
    """About as long as a trial takes."""


def check(asked: Options) -> Plan:
    """What the user left open, filled in."""
    return Plan(QUICK_SIZES if asked.quick else SIZES, asked.trials or (1 if asked.quick else TRIALS),
                QUICK_SECONDS if asked.quick else SECONDS)


def measure(plan: Plan, running: Running) -> Outcome:
    """A row for each system, size and trial; all systems on the same network, taking turns."""
    rows: list[StreamRow] = []
    with open_network(TOPO, LinkOptions(hosting="tap"), progress=running.progress.say) as net, \
            open_pairs(net, TOPO, _MOST, 1, running.folder.path) as pairs:
        transfers = []
        for size in plan.sizes:
            for system in SYSTEMS:
                running.progress.say(f"{system}, writes of {size} B, warm-up")
                transfers.append(pairs.enough(Transfer(system, How(system), _FIRST, size), plan.seconds))
        for trial in range(1, plan.trials + 1):
            for transfer in transfers:
                running.progress.step(f"{transfer.name}, writes of {transfer.record} B, trial {trial}")
                rows.append(pairs.measure(transfer, trial, MODE))
    table = figures.lines(rows, TLS)
    beside = talk(figures.lines(rows, KTLS_SW))
    text = "\n".join([figures.as_text(table, TLS, "record"), figures.NOTE, "", talk_text(beside)])
    return Outcome(rows, {"points": table, "talk": beside}, text, table=False, published=published_values(beside),
                   files={"tls-records.csv": csv_text(figures.as_csv_rows(table))},
                   parameters={"trials": plan.trials, "sizes": plan.sizes})


class TalkLine(TypedDict):
    """What the talk has of a system, and its ratios to kernel TLS by software there and here."""

    system: str
    published: str
    """The talk's name of it."""
    published_gbit_per_s: float
    published_ratio: float
    ratios: dict[int, float | None]
    """Throughput here, by that of ktls-sw, by bytes of a record."""
    host_ratios: dict[int, float | None]
    """Processor time of the host for each byte, the same way."""


def talk(table: Sequence[Line]) -> list[TalkLine]:
    """Lines, whose yardstick is ktls-sw, beside the talk's."""
    _name, base = TALK[KTLS_SW]
    return [{"system": system, "published": name, "published_gbit_per_s": rate,
             "published_ratio": round(rate / base, 2),
             "ratios": {line["size"]: line["ratio"] for line in table if line["system"] == system},
             "host_ratios": {line["size"]: line["host_ratio"] for line in table if line["system"] == system}}
            for system, (name, rate) in TALK.items()]


def published_values(beside: Sequence[TalkLine]) -> list[Beside]:
    """Throughput by that of kernel TLS in software, here by size of a record; the talk has one size, untold."""
    return [Beside("throughput by that of kernel TLS in software", f"records of {size_text(size)}", line["system"],
                   ratio, line["published_ratio"], note=line["published"], bars=True)
            for line in beside for size, ratio in line["ratios"].items()]


def talk_text(beside: Sequence[TalkLine]) -> str:
    """For people."""
    sizes = sorted(beside[0]["ratios"])
    grid = [["by kernel TLS in software", "there", "Gbit/s", "ratio",
             *(f"here, {size_text(size)}" for size in sizes), *(f"host, {size_text(size)}" for size in sizes)]]
    for line in beside:
        shares = [found.get(size) for found in (line["ratios"], line["host_ratios"]) for size in sizes]
        grid.append([line["system"], line["published"], f"{line['published_gbit_per_s']:g}",
                     f"{line['published_ratio']:.2f}", *("-" if s is None else f"{s:.2f}" for s in shares)])
    return aligned(grid, left=2) + "\nhere: throughput; host: processor time of the host for each byte."


def picture(rows: Sequence[Row], path: Path) -> bool:
    """Curves over the size of a record. False: no such rows, no file."""
    found = [cast(StreamRow, row) for row in rows if row["mode"] == MODE]
    return bool(found) and pictures.by_size(figures.lines(found, TLS), path)


EXPERIMENT = Experiment(
    "tls-records", command="reproduce", help="TLS in user space, in our kernel TLS and in the NIC, by record size",
    description=textwrap.fill(
        "Throughput and processor time for each byte (host and NIC apart) by the size of a write, so of a record, "
        "of plain TCP, OpenSSL in user space, our kernel TLS by software, and by the NIC.", 100),
    examples=_EXAMPLES, options=Options, check=check, measure=measure, needs_pictures=True, place=70,
    published=Published(
        "TLS Offload to Network Devices (Pismenny, Lesokhin, Liss; Netdev 1.2, 2016), by its transcript",
        "two hosts on a cable: network namespaces on one machine; the NIC is a process that owns the interface",
        not_comparable="Gbit/s, and what the NIC brings: here it seals on the same processors, so the host's time "
                       "for each byte is what shows it. The talk's records are small, of a size it does not tell"),
    steps=lambda plan: ("tls-records", plan.trials * len(plan.sizes) * len(SYSTEMS)),
    kinds=(Mode(MODE, heading="transfers per second"),
           Picture("tls-records.png", picture, "Streams by the size of a record")))
