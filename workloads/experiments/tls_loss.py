"""``smtnet reproduce tls-loss``: what loss costs a NIC that seals TCP's stream, and one that seals messages.

The NIC of the sender loses packets behind the device, so that each one sent again is one that the device has to
get back to: for TCP by the bytes of its record before it (DUMP), or not at all (next record: software seals until
one begins). FreeBSD gives the NIC up where more than 2 % of the bytes are sent again. SMT's segments are whole
records: its resync is a number. In SMT what is sent again is sealed by software, and its bytes are counted, too.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from smtstack import quantities
from smtstack.errors import ConfigError
from smtstack.nic.tls_flow import NEXT_RECORD
from smtstack.nicshare.state import NicState
from topo.link_options import LinkOptions
from topo.network import open_network
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.experiments.offload import figures, loss_report
from workloads.experiments.offload.hosts import COUNTERS, StreamRow, Transfer, open_pairs
from workloads.experiments.offload.loss_report import GIVEN_UP, IN_NIC, MODE, NEXT, SMT, YARDSTICK
from workloads.experiments.offload.senders import COPIES, KTLS_NIC, KTLS_SW, How
from workloads.fleet.fleet import Fleet
from workloads.fleet.setup import Setup
from workloads.load.loops import Load
from workloads.options.common import QuotedResults, positive
from workloads.options.declare import group, option
from workloads.results.folder import csv_text
from workloads.results.kinds import Mode, Picture
from workloads.results.published import Published
from workloads.results.row import Row

TOPO = "back2back"
#: Per cent of the sender's packets.
LOSSES, QUICK_LOSSES = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0), (0.0, 2.0)
TRIALS, BYTES, QUICK_BYTES = 3, 24_000_000, 4_000_000
SYSTEMS = {YARDSTICK: How(KTLS_SW), IN_NIC: How(KTLS_NIC), GIVEN_UP: How(KTLS_NIC, disable_pct=2),
           NEXT: How(KTLS_NIC, resync=NEXT_RECORD)}
#: Answers of SMT: four full records and more each, and how many are under way.
_ANSWER, _UNDER_WAY = 100_000, 4

_EXAMPLES = """examples:
  smtnet reproduce tls-loss --quick
  smtnet reproduce tls-loss --trials 5 --bytes 100MB --json
  smtnet reproduce tls-loss --record 1024

Writes results/<UTC time>-tls-loss/: tls-loss.csv, tls-loss.png, and what every run leaves. Takes two minutes
(--quick: fifteen seconds). Needs root, and what --nic-hosting tap needs ('smtnet doctor').
"""


@dataclass(frozen=True)
class Options:
    """What ``smtnet reproduce tls-loss`` takes on its command line."""

    quick: bool = option("--quick", action="store_true", help="one short trial, without loss and with 2 %%")
    end: QuotedResults = group(QuotedResults)
    trials: int | None = option("--trials", type=positive, metavar="N",
                                help=f"the median counts (default: {TRIALS})")
    bytes: int | None = option("--bytes", type=quantities.BYTES, metavar="B",
                               help=f"of each transfer (default: {BYTES // 1_000_000}MB; --quick: "
                                    f"{QUICK_BYTES // 1_000_000}MB)")
    record: int | None = option("--record", type=loss_report.RECORD, metavar="B",
                                help="of each write, so of a record of the systems on TCP (default: a file, in "
                                     "records of 16 KB)")


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often."""

    losses: tuple[float, ...]
    trials: int
    bytes: int
    record: int
    """Bytes of a write; 0: what is sent is a file."""


def check(asked: Options) -> Plan:
    """What the user left open, filled in."""
    quick = asked.quick
    if asked.bytes is not None and asked.bytes < loss_report.LEAST_BYTES:
        raise ConfigError(f"--bytes {asked.bytes}: no rate can be read from less than "
                          f"{loss_report.LEAST_BYTES // 1_000_000}MB")
    return Plan(QUICK_LOSSES if quick else LOSSES, asked.trials or (1 if quick else TRIALS),
                asked.bytes or (QUICK_BYTES if quick else BYTES), asked.record or 0)


def measure(plan: Plan, running: Running) -> Outcome:
    """A row for each system, loss and trial: first those on TCP, then SMT on a network of its own, as its NIC is
    part of its processes."""
    rows = _on_tcp(plan, running) + _smt(plan, running)
    table = figures.lines(rows, YARDSTICK)
    return Outcome(rows, {"points": table}, loss_report.as_text(table) + "\n" + figures.NOTE, table=False,
                   files={"tls-loss.csv": csv_text(figures.as_csv_rows(table))},
                   parameters={"trials": plan.trials, "losses": plan.losses, "bytes": plan.bytes,
                               "record": plan.record})


def _on_tcp(plan: Plan, running: Running) -> list[StreamRow]:
    rows: list[StreamRow] = []
    with open_network(TOPO, LinkOptions(hosting="tap"), progress=running.progress.say) as net, \
            open_pairs(net, TOPO, plan.bytes, 1, running.folder.path / "tcp") as pairs:
        for name, how in SYSTEMS.items():
            pairs.measure(Transfer(name, how, min(plan.bytes, 1_000_000), plan.record), 0, MODE)
        for trial in range(1, plan.trials + 1):
            for loss in plan.losses:
                with _lossy(pairs.nic, loss, trial):
                    for name, how in SYSTEMS.items():
                        running.progress.step(f"{name}, {loss:g} % lost, trial {trial}")
                        transfer = Transfer(name, how, plan.bytes, plan.record)
                        rows.append(pairs.measure(transfer, trial, MODE, loss_report.variant(loss)))
    return rows


def _smt(plan: Plan, running: Running) -> list[StreamRow]:
    rows: list[StreamRow] = []
    setup = Setup("smt", "hw", server_options=("--response-size", str(_ANSWER)))
    with open_network(TOPO, progress=running.progress.say) as net:
        server = net.flows[0][1]
        nic = NicState.open(str(server.defaultIntf()), pid=server.pid)
        with Fleet(net, TOPO, setup, running.folder.path / "smt" / "hosts") as fleet:
            for trial in range(1, plan.trials + 1):
                for loss in plan.losses:
                    running.progress.step(f"{SMT}, {loss:g} % lost, trial {trial}")
                    load = Load("64", count=-(-plan.bytes // _ANSWER), concurrency=_UNDER_WAY, seed=trial,
                                response_size=_ANSWER)
                    with _lossy(nic, loss, trial):
                        prepared = fleet.prepare(load, trial)
                        before = nic.counters()
                        fleet.begin(prepared)
                        row = fleet.collect(prepared).row
                        now = nic.counters()
                    counted = {name: now[name] - before[name] for name in now}
                    rows.append(smt_row(row, counted, loss))
    return rows


def smt_row(row: Row, counted: dict[str, int], loss: float) -> StreamRow:
    """The row of an echo of SMT as one of a stream: its answers are what is sent, ``counted`` what their sender's
    NIC and engine counted meanwhile. The NIC is in the server's process, so its time is the host's."""
    payload = row["rpcs"] * _ANSWER
    mean = counted["tx_bytes"] / max(1, counted["tx_packets"])
    return cast(StreamRow, {
        **row, "transport": SMT, "nic": None, "mode": MODE, "variant": loss_report.variant(loss), "size": _ANSWER,
        "concurrency": 1, "bytes": payload, "mbit_per_s": round(row["rpc_per_s"] * _ANSWER * 8e-6, 2),
        "sender": {"host_s": row["cpu"]["server_s"], "device_s": 0.0,
                   "copies": dict.fromkeys(COPIES, 0), "sent": counted["tx_bytes"],
                   "resent": round(counted["packets_resent"] * mean), "disabled": 0},
        "counters": {name: counted[name] for name in COUNTERS if name in counted}})


@contextmanager
def _lossy(nic: NicState, per_cent: float, seed: int) -> Iterator[None]:
    """The NIC loses so many of the packets that it sends; none: it handles each by itself all the same, so that
    what is compared differs in nothing but loss."""
    before = nic.settings()
    nic.restore(before.assign(f"loss={per_cent}%").assign(f"seed={seed}"))
    nic.wait_applied()
    try:
        yield
    finally:
        nic.restore(before)
        nic.wait_applied()


def picture(rows: Sequence[Row], path: Path) -> bool:
    """Curves over loss. False: no such rows, no file."""
    found = [cast(StreamRow, row) for row in rows if row["mode"] == MODE]
    return bool(found) and loss_report.picture(figures.lines(found, YARDSTICK), path)


EXPERIMENT = Experiment(
    "tls-loss", command="reproduce", help="what loss costs a NIC that seals a stream, or messages",
    description=textwrap.fill(
        "Throughput, and the bytes a NIC has to read again for each byte of payload, by loss: both ways to "
        "resync, with and without FreeBSD's rule that gives the NIC up; SMT's resyncs beside them.", 100),
    examples=_EXAMPLES, options=Options, check=check, measure=measure, needs_pictures=True, place=71,
    published=Published(
        emulated="two hosts on a cable: network namespaces on one machine; the NIC is a process that owns the "
                 "interface",
        not_comparable="anything published: Linux documents the rules and FreeBSD the switch that gives a NIC up, "
                       "and neither has a figure of it"),
    steps=lambda plan: ("tls-loss", plan.trials * len(plan.losses) * (len(SYSTEMS) + 1)),
    kinds=(Mode(MODE, heading="transfers per second"),
           Picture("tls-loss.png", picture, "What loss costs: throughput, bytes read again, resyncs")))
