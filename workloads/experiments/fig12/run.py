"""``smtnet reproduce fig12``: the first RPC of a session by how the session begins, beside what the paper has.

Two hosts on a cable, as in the paper. On one a server for each session mode, on the other a client that begins a
session, asks, ends it and goes on with another way, so that a slow moment of the machine hits all ways alike.
"""

from __future__ import annotations

import tempfile
import textwrap
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from topo.host import SmtHost
from topo.network import SmtNet, open_network
from topo.running import Program, python_program
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.experiments.fig12.report import (
    MODE,
    WAYS,
    as_csv,
    as_text,
    beside,
    comparison,
    picture,
    reading,
)
from workloads.fleet import credentials
from workloads.fleet import dns as fleet_dns
from workloads.fleet.fleet import split_cores
from workloads.load.measure import percentile, rtt_summary
from workloads.options.common import QuotedResults, positive
from workloads.options.declare import group, option
from workloads.results.fidelity import FidelityMonitor
from workloads.results.kinds import Mode, Picture
from workloads.results.published import Published
from workloads.results.row import Row, Verdict

TOPO = "back2back"
SIZES = (64, 1024, 4096, 16_384, 65_536)
TRIALS, SAMPLES = 5, 20
QUICK_TRIALS, QUICK_SAMPLES, QUICK_SIZES = 1, 5, (64, 4096)
FIRST_PORT, FIRST_CLIENT_PORT = 2000, 40_000
_QUARTILES = (("p25", 0.25), ("p75", 0.75))

_EXAMPLES = """examples:
  smtnet reproduce fig12 --quick
  smtnet reproduce fig12 --json
  smtnet reproduce fig12 --mutual --trials 3

Writes results/<UTC time>-fig12/: fig12.csv, first-rpc.png, and what every run leaves. Takes some two minutes
(--quick: fifteen seconds). Needs root and knotd (Debian's package knot).
"""


@dataclass(frozen=True)
class Options:
    """What ``smtnet reproduce fig12`` takes on its command line."""

    quick: bool = option("--quick", action="store_true", help="one short trial, two sizes")
    end: QuotedResults = group(QuotedResults)
    trials: int | None = option("--trials", type=positive, metavar="N",
                                help=f"the median of their ratios counts (default: {TRIALS})")
    samples: int | None = option("--samples", type=positive, metavar="N",
                                 help=f"sessions of each way and size in a trial (default: {SAMPLES})")
    mutual: bool = option(
        "--mutual", action="store_true",
        help="clients show certificates, too (default: as in the paper, the server alone does)")


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often."""

    trials: int
    samples: int
    """Sessions of each way and size in a trial."""
    sizes: tuple[int, ...]
    """Bytes of a request."""
    mutual: bool


def check(asked: Options) -> Plan:
    """What the user left open, filled in."""
    quick = asked.quick
    return Plan(asked.trials or (QUICK_TRIALS if quick else TRIALS),
                asked.samples or (QUICK_SAMPLES if quick else SAMPLES), QUICK_SIZES if quick else SIZES,
                asked.mutual)


def measure(plan: Plan, running: Running) -> Outcome:
    """A row for each way, size and trial."""
    logs = running.folder.path / "hosts"
    logs.mkdir()
    rows: list[Row] = []
    progress = running.progress
    with open_network(TOPO, progress=progress.say) as net, ExitStack() as stack:
        progress.step("starting DNS, servers and client")
        keys = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/run")), "certs")
        client, pids = stack.enter_context(_programs(net, keys, logs, plan.mutual))
        for trial in range(1, plan.trials + 1):
            progress.step(f"trial {trial} of {plan.trials}: {plan.samples * len(plan.sizes) * len(WAYS)} sessions")
            monitor = FidelityMonitor(pids=pids)
            monitor.start()
            client.tell({"samples": plan.samples, "sizes": plan.sizes, "seed": trial})
            times = client.answer()
            fidelity = monitor.stop()
            for way, by_size in times.items():
                for size, found in by_size.items():
                    values = array("Q", found)
                    rows.append(_row(way, int(size), trial, values, fidelity))
                    name = way.replace(" + ", "-with-")
                    running.folder.save_raw(f"{name}-{size}-trial{trial}", values)
    table = comparison(rows)
    return Outcome(rows, {"points": table}, as_text(table) + "\n" + reading(table), table=False,
                   files={"fig12.csv": as_csv(table)}, published=beside(table),
                   parameters={"trials": plan.trials, "samples": plan.samples, "mutual": plan.mutual})


def _row(way: str, size: int, trial: int, times: array[int], fidelity: Verdict) -> Row:
    """A row (workloads/results/row.py) with quartiles. Ways take turns, so a trial has one verdict."""
    summary = rtt_summary(times)
    ordered = array("Q", sorted(times))
    quartiles = {name: round(percentile(ordered, share) / 1000, 3) for name, share in _QUARTILES}
    return {"topo": TOPO, "transport": way, "nic": None, "mode": MODE, "poll": "interrupt", "size": size,
            "concurrency": 1, "trial": trial, "rpcs": len(times), "errors": 0, "content_ok": True,
            "rpc_per_s": round(1e6 / (summary["mean"] or 1), 1), "rtt_us": {**summary, **quartiles}, "cpu": {},
            "fidelity": fidelity}


@contextmanager
def _programs(net: SmtNet, keys: Path, logs: Path, mutual: bool) -> Iterator[tuple[Program, list[int]]]:
    """The client, ready, and the processes that what it measures depends on; all end afterwards."""
    (asks, answers), = net.flows
    made = credentials.make(keys, "smt", {host.name: host.IP() for host in net.hosts})
    cores = split_cores([host.name for host in net.hosts], psutil.Process().cpu_affinity() or [])
    with ExitStack() as stack:
        dns = stack.enter_context(fleet_dns.server_for(net, {asks: [answers]}, keys, 0))

        def start(host: SmtHost, what: str, *words: str) -> Program:
            log = logs / f"{host.name}-{what}.log"
            arguments = [*words, "--iface", str(host.defaultIntf()), *made.args(host.name),
                         "--dns", "{}:{}".format(*dns.address), *(["--mutual"] if mutual else [])]
            program = Program(host, what, python_program("workloads.experiments.fig12.program", *arguments), log,
                              environment=made.environment(host.name), cores=cores.get(host.name))
            stack.callback(program.stop)
            return program

        modes = list(dict.fromkeys(mode for mode, _look_up in WAYS.values()))
        places = {mode: f"{answers.IP()}:{FIRST_PORT + number}" for number, mode in enumerate(modes)}
        servers = [start(answers, f"server of {mode}", "serve", "--session", mode, "--addr", place)
                   for mode, place in places.items()]
        for server in servers:
            server.wait_for("ready")
        peers = [word for mode, place in places.items() for word in ("--peer", f"{mode}={place}")]
        client = start(asks, "client", "call", "--addr", f"{asks.IP()}:{FIRST_CLIENT_PORT}", *peers)
        client.wait_for("ready")
        yield client, [client.pid, *(server.pid for server in servers)]


EXPERIMENT = Experiment(
    "fig12", command="reproduce", help="latency of the first RPC by how its session begins",
    description=textwrap.fill(
        "Time of the first RPC of a session, set-up included: TLS 1.3 handshake (Init-1RTT), ticket "
        "without and with forward secrecy (Init, Init-FS), resumption without and with it (Rsmp, "
        "Rsmp-FS), and tickets that are looked up by DNS meanwhile; what is saved, beside the "
        "paper's.", 100),
    examples=_EXAMPLES, options=Options, check=check, measure=measure,
    steps=lambda plan: ("fig12", 1 + plan.trials), needs_pictures=True, place=20,
    published=Published(
        "SMT paper (IEEE S&P 2026), Fig. 12",
        "two hosts on a cable: network namespaces on one machine. Handshakes, tickets and resumption are "
        "real, and so is the DNS server (Knot)",
        not_comparable="microseconds: packets cost more in Python here, cryptography is C in both. What is "
                       "saved of Init-1RTT, as a share, stands beside the paper's"),
    kinds=(Mode(MODE, "p50", "median of the first RPC in us, session set-up included", alone=True),
           Picture("first-rpc.png", picture, "The first RPC of a session, set-up included")))
