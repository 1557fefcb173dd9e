"""``smtnet bench ktls``: kernel TLS by each of its backends beside plain TCP and TLS in user space, as FreeBSD's
talk has
it: throughput, and whose processor time it took."""

from __future__ import annotations

import statistics
import tempfile
import textwrap
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from smtstack import quantities
from smtstack.ktls.stats import TlsStats
from topo.host import SmtHost
from topo.link_options import LinkOptions
from topo.network import SmtNet, open_network
from topo.running import Program, python_program
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.fleet import credentials
from workloads.load.bulk import BY_NIC, PLAIN, USER_TLS
from workloads.options.common import PlainResults
from workloads.options.declare import group, option
from workloads.results.environment import environment
from workloads.results.fidelity import FidelityMonitor
from workloads.results.folder import csv_text
from workloads.results.points import size_text

#: What is compared: OpenSSL in the application; then our kernel TLS by its backends.
SYSTEMS: Final = (PLAIN, USER_TLS, "purepy", "openssl-noaesni", "openssl", "batched", "coproc", BY_NIC)
#: What FreeBSD's talk (vBSDCon 2019) has of each: nginx, AES256-GCM, Gbit/s with 1 and with 4 workers.
TALK: Final = {USER_TLS: ("OpenSSL in nginx", 7.9, 30.0), "purepy": ("cryptosoft", 2.9, 2.8),
               "openssl": ("aesni", 36.0, 36.0), "coproc": ("ccr, co-processor", 36.0, 35.0),
               "batched": ("Intel ISA-L", 48.0, 48.0), BY_NIC: ("T6, NIC TLS", 72.0, 64.0)}
PORT: Final = 5000


def _numbers(text: str) -> list[int]:
    """For argparse: ``1,4``."""
    return [quantities.POSITIVE(word) for word in text.split(",")]


@dataclass(frozen=True)
class Options:
    """What ``smtnet bench ktls`` takes on its command line."""

    sizes: list[int] = option("--sizes", type=_numbers, default=[1024, 4096, 16384], metavar="N[,N...]",
                              help="bytes of payload in a record, at most 16384 (default: 1024,4096,16384)")
    workers: list[int] = option("--workers", type=_numbers, default=[1, 4], metavar="N[,N...]",
                                help="processes that send, a connection each (default: 1,4)")
    seconds: float = option("--seconds", type=quantities.SECONDS, default=0.5, metavar="S",
                            help="of each trial (default: %(default)s)")
    trials: int = option("--trials", type=quantities.POSITIVE, default=3, metavar="N",
                         help="the median counts (default: %(default)s)")
    end: PlainResults = group(PlainResults)


def check(asked: Options) -> Options:
    """Whether records can have these sizes. Raises :class:`ConfigError`."""
    for size in asked.sizes:
        TlsStats(maxlen=size)
    return asked


class Bench:
    """Two hosts on a cable whose NICs own their interfaces; senders on one, a receiver for each on the other."""

    def __init__(self, net: SmtNet, workers: int, folder: Path, stack: ExitStack) -> None:
        one, other = net.hosts
        self._nics = [psutil.Process(pid) for pid in net.nic_pids(one)]
        certs = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/run")), "certs")
        credentials.make(certs, "tls", {other.name: other.IP()})
        self._senders: list[Program] = []
        for n in range(workers):
            self._start(other, stack, folder, f"receiver-{n}", "receive", str(PORT + n), str(certs / other.name)
                        ).wait_for("receiving")
            self._senders.append(self._start(one, stack, folder, f"sender-{n}", "send", other.IP(), str(PORT + n)))

    @staticmethod
    def _start(host: SmtHost, stack: ExitStack, folder: Path, what: str, *arguments: str) -> Program:
        program = Program(host, what, python_program("workloads.load.bulk", *arguments), folder / f"{what}.log")
        stack.callback(program.stop)
        return program

    def measure(self, system: str, size: int, workers: int, seconds: float) -> dict[str, Any]:
        """One trial: ``gbit_per_s`` of payload, and processor seconds for a gigabyte of it, of the application, of
        processes that seal for it, and of its host's NIC."""
        before = self._nic_s()
        senders = self._senders[:workers]
        for sender in senders:
            sender.tell({"system": system, "size": size, "seconds": seconds})
        answers = [sender.answer() for sender in senders]
        nic = self._nic_s() - before
        if errors := [answer["error"] for answer in answers if "error" in answer]:
            return {"error": errors[0]}
        sent = sum(answer["bytes"] for answer in answers)
        copied = sum(sum(answer["copies"].values()) for answer in answers)
        return {"gbit_per_s": sum(8e-9 * answer["bytes"] / answer["seconds"] for answer in answers),
                "application_s": sum(answer["own_s"] for answer in answers) / sent * 1e9,
                "helper_s": sum(answer["helper_s"] for answer in answers) / sent * 1e9,
                "nic_s": nic / sent * 1e9, "copies": copied / sent}

    def _nic_s(self) -> float:
        return sum(sum(nic.cpu_times()[:2]) for nic in self._nics)


def measure(asked: Options, running: Running) -> Outcome:
    """All systems, sizes and numbers of workers; systems take turns within a trial."""
    found: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    skipped: dict[str, str] = {}
    monitor = FidelityMonitor()
    with open_network("back2back", LinkOptions(hosting="tap"), progress=running.progress.say) as net, \
            ExitStack() as stack:
        bench = Bench(net, max(asked.workers), running.folder.path, stack)
        monitor.start()
        for workers in asked.workers:
            for size in asked.sizes:
                for trial in range(asked.trials):
                    for system in SYSTEMS:
                        running.progress.step(f"{system}, {size_text(size)}, {workers} workers, trial {trial + 1}")
                        if system in skipped:
                            continue
                        trial_ = bench.measure(system, size, workers, asked.seconds)
                        if "error" in trial_:
                            skipped[system] = trial_["error"]
                        else:
                            found.setdefault((system, size, workers), []).append(trial_)
        fidelity = monitor.stop()
    points = table_of(found)
    return Outcome(result={"points": points, "skipped": skipped, "environment": environment()},
                   text=as_text(points, skipped), table=False, seed=None, fidelity=fidelity,
                   files={"ktls.csv": csv_text(points)},
                   remarks=[f"smtnet: {system} skipped: {why}" for system, why in skipped.items()])


def table_of(found: dict[tuple[str, int, int], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A point for each system, size and number of workers: medians, and the talk's figure beside."""
    out = []
    for (system, size, workers), trials in found.items():
        name, one, four = TALK.get(system, ("", None, None))
        medians = {key: round(statistics.median(trial[key] for trial in trials), 3) for key in trials[0]}
        out.append({"system": system, "record_bytes": size, "workers": workers, **medians, "talk": name,
                    "talk_gbit_per_s": {1: one, 4: four}.get(workers)})
    return out


def as_text(points: Sequence[dict[str, Any]], skipped: dict[str, str]) -> str:
    """For people."""
    lines = []
    for workers, size in dict.fromkeys((point["workers"], point["record_bytes"]) for point in points):
        lines += ["", f"records of {size_text(size)}, {workers} {'worker' if workers == 1 else 'workers'}",
                  f"{'':<17}{'Gbit/s':>8}{'of user TLS':>13}{'application':>13}{'helper':>9}{'NIC':>9}"
                  f"{'copies':>8}   FreeBSD's talk, Gbit/s"]
        here = [p for p in points if (p["workers"], p["record_bytes"]) == (workers, size)]
        base = next((p["gbit_per_s"] for p in here if p["system"] == USER_TLS), None)
        for point in here:
            ratio = f"{point['gbit_per_s'] / base:.2f}" if base else ""
            talk = f"{point['talk']} {point['talk_gbit_per_s'] or ''}".strip()
            copies = "" if point["system"] in {PLAIN, USER_TLS} else f"{point['copies']:.2f}"
            lines.append(f"{point['system']:<17}{point['gbit_per_s']:>8.3f}{ratio:>13}"
                         f"{point['application_s']:>13.2f}{point['helper_s']:>9.2f}{point['nic_s']:>9.2f}"
                         f"{copies:>8}   {talk}".rstrip())
    lines += ["", "application, helper (a process that seals), NIC: processor seconds for a gigabyte of payload. "
                  "copies: by us, of each byte, the one into the kernel among them."]
    return "\n".join([*lines, *(f"{system} skipped: {why}" for system, why in skipped.items())]).strip("\n")


EXPERIMENT = Experiment(
    "ktls", command="bench", folder="bench-ktls", help="kernel TLS by its backends, beside plain TCP and user TLS",
    description=textwrap.fill(
        "A one-way stream between two hosts whose NICs own their interfaces: plain, by OpenSSL in user space, and "
        "by our kernel TLS with each of its backends, the NIC among them. Throughput, and processor time of the "
        "application, of processes that seal for it, and of the NIC. Needs root.", 98),
    examples="example: smtnet bench ktls --sizes 16384 --workers 1 --json", options=Options, check=check,
    measure=measure, ends_with="results",
    steps=lambda asked: ("bench ktls", len(SYSTEMS) * len(asked.sizes) * len(asked.workers) * asked.trials))
