"""``smtnet run files``: a file served as it is read and sealed in user space, by sendfile with kernel TLS in
software or in the NIC, and plain; how often each byte was copied, and whose processor time it took."""

from __future__ import annotations

import statistics
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from smtstack import quantities
from topo.link_options import LinkOptions
from topo.network import open_network
from workloads.experiments.bench_ktls import Bench
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.load.bulk import PLAIN_FILE, READ_AND_WRITE, SENDFILE_NIC, SENDFILE_SW, ZERO_COPY
from workloads.options.common import PlainResults
from workloads.options.declare import group, option
from workloads.results.fidelity import FidelityMonitor
from workloads.results.folder import csv_text

SYSTEMS: Final = (PLAIN_FILE, READ_AND_WRITE, SENDFILE_SW, SENDFILE_NIC, ZERO_COPY)
_RECORD: Final = 16_384


@dataclass(frozen=True)
class Options:
    """What ``smtnet run files`` takes on its command line."""

    size: int = option("--size", type=quantities.BYTES, default=16 << 20, metavar="N",
                       help="bytes of the file (default: 16MB)")
    workers: int = option("--workers", type=quantities.POSITIVE, default=1, metavar="N",
                          help="processes that serve it, a connection each (default: %(default)s)")
    seconds: float = option("--seconds", type=quantities.SECONDS, default=1.0, metavar="S",
                            help="of each trial (default: %(default)s)")
    trials: int = option("--trials", type=quantities.POSITIVE, default=3, metavar="N",
                         help="the median counts (default: %(default)s)")
    end: PlainResults = group(PlainResults)


def measure(asked: Options, running: Running) -> Outcome:
    """All ways, which take turns."""
    found: dict[str, list[dict[str, Any]]] = {}
    monitor = FidelityMonitor()
    with open_network("back2back", LinkOptions(hosting="tap"), progress=running.progress.say) as net, \
            ExitStack() as stack:
        file = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/run")), "file")
        file.write_bytes(bytes(asked.size))
        bench = Bench(net, asked.workers, running.folder.path, stack)
        monitor.start()
        for trial in range(asked.trials):
            for system in SYSTEMS:
                running.progress.step(f"{system}, trial {trial + 1}")
                one = bench.measure(system, _RECORD, asked.workers, asked.seconds, file)
                if "error" in one:
                    return Outcome(failed=f"{system}: {one['error']}", fidelity=monitor.stop())
                found.setdefault(system, []).append(one)
        fidelity = monitor.stop()
    points = table_of(found)
    return Outcome(result={"points": points}, text=as_text(points), table=False, seed=None, fidelity=fidelity,
                   files={"files.csv": csv_text(points)})


def table_of(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Medians of each way."""
    return [{"way": system, **{key: round(statistics.median(trial[key] for trial in trials), 3)
                               for key in ("gbit_per_s", "application_s", "nic_s", "copies")}}
            for system, trials in found.items()]


def as_text(points: Sequence[Mapping[str, Any]]) -> str:
    """For people."""
    lines = [f"{'':<32}{'Gbit/s':>8}{'application':>13}{'NIC':>8}{'copies':>8}"]
    lines += [f"{point['way']:<32}{point['gbit_per_s']:>8.3f}{point['application_s']:>13.2f}{point['nic_s']:>8.2f}"
              f"{point['copies']:>8.2f}" for point in points]
    return "\n".join([*lines, "", "application, NIC: processor seconds for a gigabyte. copies: of each byte, by",
                      "reading the file, sealing, keeping it for a NIC that may have to send it again, and into",
                      "the kernel."])


EXPERIMENT = Experiment(
    "files", help="a file served with TLS in user space, in kernel TLS, in the NIC",
    description=textwrap.fill(
        "A file, over and over: read, sealed by OpenSSL in user space and written; by sendfile with our kernel "
        "TLS, in software and in the NIC, with and without copies; by sendfile without TLS. Between two hosts "
        "whose NICs own their interfaces.", 98),
    examples="example: smtnet run files --size 64MB --trials 5", options=Options, check=lambda asked: asked,
    measure=measure, ends_with="results", place=60,
    steps=lambda asked: ("run files", len(SYSTEMS) * asked.trials))
