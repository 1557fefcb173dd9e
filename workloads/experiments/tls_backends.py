"""``smtnet reproduce tls-backends``: who seals a file that is served, beside FreeBSD's figures of 2019.

These are of nginx with AES256-GCM, 100 Gbit/s and one or four workers (Baldwin, vBSDCon 2019). Here everything but
AES is Python, the machine is another, and the NIC is a process: what can be compared is the order of the backends
that compute in the host, each by the one with AES-NI of the same trial, and what the host has to do for the NIC.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from topo.link_options import LinkOptions
from topo.network import open_network
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.experiments.offload import figures, pictures
from workloads.experiments.offload.figures import Line
from workloads.experiments.offload.hosts import StreamRow, Transfer, open_pairs
from workloads.experiments.offload.senders import KTLS_NIC, KTLS_SW, PLAIN, TLS, How
from workloads.options.common import QuotedResults, positive
from workloads.options.declare import group, option
from workloads.results.folder import csv_text
from workloads.results.kinds import Mode, Picture
from workloads.results.published import Beside, Published
from workloads.results.row import Row
from workloads.results.table import aligned

MODE = "backends"
TOPO = "back2back"


class Kind(NamedTuple):
    """One line of the table."""

    how: How
    theirs: str
    """What FreeBSD's table calls it."""
    published: tuple[float, float] | None
    """Gbit/s there, with one worker and with four."""
    first: int = 1 << 20
    """Bytes that are tried first."""


#: By the names of our backends.
KINDS = {
    "plain": Kind(How(PLAIN), "", None),
    "user TLS": Kind(How(TLS, "slides"), "userland OpenSSL", (7.9, 30.0)),
    "purepy": Kind(How(KTLS_SW, "slides", "purepy"), "cryptosoft", (2.9, 2.8), 1 << 16),
    "openssl-noaesni": Kind(How(KTLS_SW, "slides", "openssl-noaesni"), "", None),
    "openssl": Kind(How(KTLS_SW, "slides", "openssl"), "aesni", (36.0, 36.0)),
    "coproc": Kind(How(KTLS_SW, "slides", "coproc"), "ccr (co-processor)", (36.0, 35.0)),
    "batched": Kind(How(KTLS_SW, "slides", "batched"), "ISA-L", (48.0, 48.0)),
    "nic": Kind(How(KTLS_NIC, "slides"), "T6 (NIC)", (72.0, 64.0)),
}
YARDSTICK = "openssl"
WORKERS, QUICK_WORKERS = (1, 4), (1,)
TRIALS, SECONDS, QUICK_SECONDS = 5, 0.4, 0.1
_MOST = 128 << 20

_EXAMPLES = """examples:
  smtnet reproduce tls-backends --quick
  smtnet reproduce tls-backends --trials 7 --json

Writes results/<UTC time>-tls-backends/: tls-backends.csv, tls-backends.png, and what every run leaves. Takes two
minutes (--quick: fifteen seconds). Needs root, and what --nic-hosting tap needs ('smtnet doctor').
"""


@dataclass(frozen=True)
class Options:
    """What ``smtnet reproduce tls-backends`` takes on its command line."""

    quick: bool = option("--quick", action="store_true", help="one short trial with one worker")
    end: QuotedResults = group(QuotedResults)
    trials: int | None = option("--trials", type=positive, metavar="N",
                                help=f"the median of their ratios counts (default: {TRIALS})")


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often."""

    workers: tuple[int, ...]
    """Sending processes, with a connection each."""
    trials: int
    seconds: float


def check(asked: Options) -> Plan:
    """What the user left open, filled in."""
    quick = asked.quick
    return Plan(QUICK_WORKERS if quick else WORKERS, asked.trials or (1 if quick else TRIALS),
                QUICK_SECONDS if quick else SECONDS)


def measure(plan: Plan, running: Running) -> Outcome:
    """A row for each backend, number of workers and trial; all on the same network, taking turns."""
    rows: list[StreamRow] = []
    with open_network(TOPO, LinkOptions(hosting="tap"), progress=running.progress.say) as net, \
            open_pairs(net, TOPO, _MOST, 1, running.folder.path, plan.workers[-1]) as pairs:
        transfers = []
        for workers in plan.workers:
            for name, kind in KINDS.items():
                running.progress.say(f"{name} x{workers}, warm-up")
                first = Transfer(name, kind.how, kind.first, connections=workers)
                transfers.append(pairs.enough(first, plan.seconds / workers))
        for trial in range(1, plan.trials + 1):
            for transfer in transfers:
                running.progress.step(f"{transfer.name} x{transfer.connections}, trial {trial}")
                rows.append(pairs.measure(transfer, trial, MODE))
    table = lines(rows)
    text = as_text(table) + "\n" + figures.NOTE
    return Outcome(rows, {"points": [_beside(line) for line in table]}, text, table=False, published=beside(table),
                   files={"tls-backends.csv": csv_text([_flat(line) for line in table])},
                   parameters={"trials": plan.trials, "workers": plan.workers})


def lines(rows: Sequence[StreamRow]) -> list[Line]:
    """A line for each backend and number of workers. Files differ in size, by what each does in some time: that is
    no difference in what is compared."""
    return figures.lines([cast(StreamRow, {**row, "size": 0}) for row in rows], YARDSTICK)


def theirs(line: Line) -> tuple[float, float] | None:
    """(Gbit/s, its ratio to aesni) in FreeBSD's table; None: not in it."""
    published, base = KINDS[line["system"]].published, KINDS[YARDSTICK].published
    if published is None or base is None or line["connections"] not in WORKERS:
        return None
    place = WORKERS.index(line["connections"])
    return published[place], round(published[place] / base[place], 2)


def beside(table: Sequence[Line]) -> list[Beside]:
    """Throughput by that of AES-NI in the host, here and in FreeBSD's table."""
    out = []
    for line in table:
        found = theirs(line)
        many = "one worker" if line["connections"] == 1 else f"{line['connections']} workers"
        note = KINDS[line["system"]].theirs
        out.append(Beside(f"throughput by that of {YARDSTICK} (AES-NI)", many, line["system"], line["ratio"],
                          found[1] if found else None, note=note, bars=True))
    return out


def _beside(line: Line) -> dict[str, Any]:
    found = theirs(line)
    return {**line, "published": KINDS[line["system"]].theirs, "published_gbit_per_s": found and found[0],
            "published_ratio": found and found[1]}


def _flat(line: Line) -> dict[str, Any]:
    (flat,) = figures.as_csv_rows([line])
    return {**_beside(line), **flat}


def as_text(table: Sequence[Line]) -> str:
    """For people: ours beside theirs."""
    grid = [["backend", "FreeBSD's", "workers", "Mbit/s", "low-high", "/ openssl", "host ns/B", "device ns/B",
             "copies/B", "Gbit/s there", "/ aesni there"]]
    grid += [_cells(line) for line in table]
    return aligned(grid, left=2)


def _cells(line: Line) -> list[str]:
    found = theirs(line)
    return [line["system"], KINDS[line["system"]].theirs, str(line["connections"]),
            f"{line['mbit_per_s']:,.0f}{'' if line['faithful'] else '~'}",
            f"{line['low']:,.0f}-{line['high']:,.0f}", "-" if line["ratio"] is None else f"{line['ratio']:.2f}",
            f"{line['host_ns_per_byte']:.2f}", f"{line['device_ns_per_byte']:.2f}",
            f"{sum(line['copies_per_byte'].values()):.2f}", f"{found[0]:g}" if found else "",
            f"{found[1]:.2f}" if found else ""]


def picture(rows: Sequence[Row], path: Path) -> bool:
    """Bars by backend. False: no such rows, no file."""
    found = [cast(StreamRow, row) for row in rows if row["mode"] == MODE]
    colours = {name: figures.COLOURS[kind.how.system] for name, kind in KINDS.items()}
    return bool(found) and pictures.by_path(lines(found), path, colours)


EXPERIMENT = Experiment(
    "tls-backends", command="reproduce", help="who seals files that are served, beside FreeBSD's",
    description=textwrap.fill(
        "Files served over TLS 1.2 with AES256-GCM by each backend of our kernel TLS, by OpenSSL in user space "
        "and by the NIC, with one worker and with four, beside FreeBSD's published figures.", 100),
    examples=_EXAMPLES, options=Options, check=check, measure=measure, needs_pictures=True, place=72,
    published=Published(
        "FreeBSD in-kernel TLS (Baldwin, vBSDCon 2019), table of nginx over HTTPS",
        "two hosts on a cable: network namespaces on one machine; the NIC is a process that owns the interface, "
        "the co-processor another one",
        not_comparable="Gbit/s, and the NIC's line: there a T6 at 100 Gbit/s seals, here a process on the same "
                       "processors does. Of the backends that compute in the host the order stands beside theirs"),
    steps=lambda plan: ("tls-backends", plan.trials * len(plan.workers) * len(KINDS)),
    kinds=(Mode(MODE, heading="files per second"),
           Picture("tls-backends.png", picture, "Who seals what is served")))
