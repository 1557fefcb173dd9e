"""``smtnet reproduce trust``: what it costs not to trust the host, in RAKIS' settings, by rkt-io's interfaces."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from smtstack import quantities
from topo.link_options import LinkOptions
from topo.network import open_network
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.experiments.trust import price, report
from workloads.experiments.trust.ends import KINDS, WAITS, open_ends
from workloads.experiments.trust.interfaces import EXIT_US, NATIVE, QUEUE, RING, RKT_IO, SETTINGS, ZERO_COPY
from workloads.experiments.trust.measures import (
    AES,
    FILE,
    KV_SMT,
    KV_TCP,
    LEAST_EFFECT,
    WORKERS,
    Measures,
    aes_effect,
)
from workloads.options.common import QuotedResults, positive
from workloads.options.declare import group, option
from workloads.results.folder import csv_text
from workloads.results.kinds import Mode, Picture
from workloads.results.published import Published
from workloads.results.row import Row

TOPO = "star,8"
#: RAKIS' sizes of iperf3, and blocks of MCrypt.
SIZES, QUICK_SIZES = (16, 32, 64, 128, 256, 512, 1024, 1460), (64, 1460)
BLOCKS, QUICK_BLOCKS = (512, 4096, 16384), (4096,)
TRIALS = 3
_WORKERS, _QUICK_WORKERS = (1, 2, 4), (1, 2)

_EXAMPLES = f"""examples:
  smtnet reproduce trust --quick
  smtnet reproduce trust --trials 5 --exit-us 7 --json

Writes results/<UTC time>-trust/: trust.csv, trust.png, trust-calls.png, and what every run leaves. Takes some ten
minutes (--quick: two). 'exit-modelled' adds {EXIT_US:g} us to each exit, which nobody has measured here: a model.
"""


@dataclass(frozen=True)
class Options:
    """What ``smtnet reproduce trust`` takes on its command line."""

    quick: bool = option("--quick", action="store_true", help="one short trial of fewer sizes")
    exit_us: float = option("--exit-us", type=quantities.MICROSECONDS, default=EXIT_US, metavar="US",
                            help="exit-modelled: what leaving an enclave is said to cost (default: %(default)s)")
    trials: int | None = option("--trials", type=positive, metavar="N",
                                help=f"the median of their ratios counts (default: {TRIALS})")
    end: QuotedResults = group(QuotedResults)


@dataclass(frozen=True)
class Plan:
    """What is measured, and how much of it."""

    exit_us: float
    trials: int
    sizes: tuple[int, ...]
    blocks: tuple[int, ...]
    workers: tuple[int, ...]
    seconds: float
    """Time of a blast."""
    count: int
    """RPCs, operations, calls, echoes of a trial, more or less."""


def check(asked: Options) -> Plan:
    """What the user left open, filled in."""
    if asked.quick:
        return Plan(asked.exit_us, asked.trials or 1, QUICK_SIZES, QUICK_BLOCKS, _QUICK_WORKERS, 0.2, 200)
    return Plan(asked.exit_us, asked.trials or TRIALS, SIZES, BLOCKS, _WORKERS, 0.5, 2000)


def measure(plan: Plan, running: Running) -> Outcome:
    """A row for each workload, interface and trial; interfaces take turns on one network, whose links have
    rings."""
    rows: list[Row] = []
    effect = aes_effect()
    cost = price.measure()
    say = running.progress.step
    with open_network(TOPO, LinkOptions(hosting="ring"), "bridge", progress=running.progress.say) as net:
        measures = Measures(net, TOPO, running.folder.path, plan.exit_us)
        number = 0
        for trial in range(1, plan.trials + 1):
            for name in (*SETTINGS, QUEUE, ZERO_COPY):
                say(f"UDP by {name}, trial {trial}")
                number += 1
                with open_ends(net, TOPO, name, running.folder.path / "hosts", number, plan.exit_us) as ends:
                    rows += [ends.blast(size, plan.seconds, trial) for size in plan.sizes]
                    if name in RKT_IO:
                        row, took = ends.calls(64, 2 * plan.count, trial)
                        rows.append(row)
                        running.folder.save_raw(f"calls-{name}-{trial}", took)
                    if name in (NATIVE, RING):
                        rows += [ends.echo(64, plan.count // 2, trial, wait)[0] for wait in WAITS]
            for name in (*SETTINGS, QUEUE):
                say(f"KV over SMT by {name}, trial {trial}")
                rows.append(measures.kv(name, plan.count, 8, trial))
            for name in SETTINGS:
                say(f"KV over TCP by {name}, trial {trial}")
                rows.append(measures.kv_tcp(name, plan.count, 8, trial))
            for name in SETTINGS:
                say(f"files by {name}, trial {trial}")
                rows += [measures.file(name, block, plan.count, trial) for block in plan.blocks]
            for name in (NATIVE, RING):
                say(f"workers by {name}, trial {trial}")
                rows += [measures.workers(name, many, plan.count, trial) for many in plan.workers]
            say(f"AES, trial {trial}")
            rows.append(measures.aes(False, plan.count // 10, trial))
            if effect >= LEAST_EFFECT:
                rows.append(measures.aes(True, plan.count // 10, trial))
    return _outcome(plan, rows, effect, cost)


def _outcome(plan: Plan, rows: Sequence[Row], effect: float, cost: price.Price) -> Outcome:
    remarks = [] if effect >= LEAST_EFFECT else [
        f"smtnet: OPENSSL_ia32cap has no effect (a record takes {effect:.1f} times as long): no row is called "
        "masked"]
    wrong = [row for row in rows if not row["content_ok"] or row["errors"]]
    table = report.lines(rows)
    flat = [{"workload": line.what, **{f"{name}/s": round(value, 1) for name, value in line.values.items()},
             **{f"{name}/native": round(value, 3) for name, value in line.ratios.items()},
             "checks_cost": None if line.checks is None else round(line.checks, 3), "faithful": line.faithful}
            for line in table]
    return Outcome(
        rows, {"lines": flat, "aes_masked_takes": round(effect, 2), "exit_us_modelled": plan.exit_us,
               "checks_us_a_packet": round(cost.checked, 3), "unchecked_us_a_packet": round(cost.unchecked, 3)},
        report.text(rows, effect, cost), table=False, files={"trust.csv": csv_text(flat)},
        published=report.beside(rows),
        remarks=remarks, parameters={"trials": plan.trials, "exit_us_modelled": plan.exit_us,
                                     "sizes": plan.sizes, "blocks": plan.blocks, "workers": plan.workers},
        failed=f"{len(wrong)} trials had errors or wrong bytes" if wrong else "")


def _steps(plan: Plan) -> int:
    return plan.trials * (4 * len(SETTINGS) + 3 + 2 + 1)


EXPERIMENT = Experiment(
    "trust", command="reproduce", help="what it costs not to trust the host, beside RAKIS and rkt-io",
    description=textwrap.fill(
        "UDP, the KV store over SMT and over TCP, and files encrypted in blocks, by a process that makes its own "
        "system calls, by one that leaves it to the host for each call, and by rings, with and without their "
        "checks; calls, ways to wait, workers, and the processor's AES.", 100),
    examples=_EXAMPLES, options=Options, check=check, measure=measure, needs_pictures=True, place=76,
    published=Published(
        "RAKIS (EuroSys 2025), abstract: 4.6 times the UDP throughput of Gramine-SGX, 2.8 times that of "
        "programs; rkt-io (EuroSys 2021), abstract, figures 1 and 5",
        "an enclave, by a process that the kernel refuses network system calls; AF_XDP on veth and io_uring are "
        "the real ones; hosts are network namespaces on one machine",
        modelled=f"what leaving an enclave costs: {EXIT_US:g} us an exit in rows 'exit-modelled', by a busy wait",
        not_comparable="how many times faster: there SGX encrypts memory and flushes on each exit, and the stack "
                       "is C. Whether a ring beats exits, and what its checks cost, can be"),
    steps=lambda plan: ("trust", _steps(plan)),
    kinds=(*KINDS, *(Mode(name, heading="operations per second") for name in (KV_SMT, KV_TCP, FILE, WORKERS, AES)),
           Picture("trust.png", report.picture, "By native sockets"),
           Picture("trust-calls.png", report.calls_picture, "How long a call takes")))
