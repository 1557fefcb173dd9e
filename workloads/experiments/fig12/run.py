"""``smtnet reproduce fig12``: the first RPC of a session by how the session begins, beside what the paper has.

Two hosts on a cable, as in the paper. On one a server for each session mode, on the other a client that begins a
session, asks, ends it and goes on with another way, so that a slow moment of the machine hits all ways alike.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from smtstack.exit_codes import EXIT_UNFAITHFUL
from topo import sandbox
from topo.host import SmtHost
from topo.network import SmtNet, open_network
from topo.running import Program, python_program
from workloads.experiments.fig12.program import WAYS
from workloads.experiments.fig12.report import MODE, as_csv, as_text, comparison, reading
from workloads.experiments.paper import new_figure
from workloads.fleet import credentials
from workloads.fleet import dns as fleet_dns
from workloads.fleet.fleet import split_cores
from workloads.load.rtt import percentile, rtt_summary
from workloads.options import common as options
from workloads.results import plots, report
from workloads.results.environment import environment
from workloads.results.fidelity import FidelityMonitor
from workloads.results.progress import Progress
from workloads.results.rows import ResultFolder, Row, overall

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


def add_figure(figures: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``fig12``."""
    parser = new_figure(
        figures, "fig12", "latency of the first RPC by how its session begins",
        "Time of the first RPC of a session, set-up included: TLS 1.3 handshake (Init-1RTT), ticket without and "
        "with forward secrecy (Init, Init-FS), resumption without and with it (Rsmp, Rsmp-FS), and tickets "
        "that are looked up by DNS meanwhile; what is saved, beside the paper's.", _EXAMPLES,
        quick="one short trial, two sizes")
    parser.add_argument("--trials", type=options.positive, metavar="N",
                        help=f"the median of their ratios counts (default: {TRIALS})")
    parser.add_argument("--samples", type=options.positive, metavar="N",
                        help=f"sessions of each way and size in a trial (default: {SAMPLES})")
    parser.add_argument("--mutual", action="store_true",
                        help="clients show certificates, too (default: as in the paper, the server alone does)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The subcommand."""
    plots.require_matplotlib()
    if not sandbox.inside():
        return sandbox.run(sys.argv[1:])
    trials = args.trials or (QUICK_TRIALS if args.quick else TRIALS)
    samples = args.samples or (QUICK_SAMPLES if args.quick else SAMPLES)
    sizes = QUICK_SIZES if args.quick else SIZES
    folder = ResultFolder.create("fig12", args.results)
    with Progress("fig12", 1 + trials) as progress:
        rows = _measure(args.mutual, trials, samples, sizes, folder, progress)
        verdict = overall(rows)
        folder.write_run({"trials": trials, "samples": samples, "mutual": args.mutual}, environment(), 1, verdict,
                         rows)
        folder.write_csv(rows)
        table = comparison(rows)
        folder.write("fig12.csv", as_csv(table))
        report.make(folder)
        folder.hand_over()
    if args.json:
        print(json.dumps({"points": table, "fidelity": verdict, "results": str(folder.path)}))
    else:
        print(as_text(table) + "\n" + reading(table))
        for reason in verdict["reasons"]:
            print(f"not faithful: {reason}", file=sys.stderr)
    print(f"report: {folder.path / report.PAGE}", file=sys.stderr)
    return EXIT_UNFAITHFUL if args.strict and not verdict["ok"] else 0


def _measure(mutual: bool, trials: int, samples: int, sizes: tuple[int, ...], folder: ResultFolder,
             progress: Progress) -> list[Row]:
    """A row for each way, size and trial."""
    logs = folder.path / "hosts"
    logs.mkdir()
    rows: list[Row] = []
    with open_network(TOPO, progress=progress.say) as net, ExitStack() as stack:
        progress.step("starting DNS, servers and client")
        keys = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/run")), "certs")
        client, pids = stack.enter_context(_programs(net, keys, logs, mutual))
        for trial in range(1, trials + 1):
            progress.step(f"trial {trial} of {trials}: {samples * len(sizes) * len(WAYS)} sessions")
            monitor = FidelityMonitor(pids=pids)
            monitor.start()
            client.tell({"samples": samples, "sizes": sizes, "seed": trial})
            times = client.answer()
            fidelity = monitor.stop()
            for way, by_size in times.items():
                for size, found in by_size.items():
                    values = array("Q", found)
                    rows.append(_row(way, int(size), trial, values, fidelity))
                    name = way.replace(" + ", "-with-")
                    folder.save_raw(f"{name}-{size}-trial{trial}", values)
    return rows


def _row(way: str, size: int, trial: int, times: array[int], fidelity: dict[str, Any]) -> Row:
    """As workloads/results/rows.py describes it, with quartiles. Ways take turns, so a trial has one verdict."""
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
