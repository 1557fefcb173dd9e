"""An experiment of one's own: what sealing costs an unloaded round trip, by size. By itself, as root::

    sudo .venv/bin/python examples/own_experiment.py sealing --size 64,8192

A copy in workloads/experiments is ``smtnet run sealing``: nothing else has to be edited.
"""

import argparse
import sys
from contextlib import ExitStack
from dataclasses import dataclass

from smtstack.quantities import sizes
from topo import sandbox
from topo.network import open_network
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.fleet.fleet import Fleet
from workloads.fleet.setup import Setup
from workloads.load.loops import Load
from workloads.options.common import PlainResults
from workloads.options.declare import group, option

TOPO = "back2back"


@dataclass(frozen=True)
class Options:
    size: str = option("--size", type=sizes, default="64", metavar="BYTES", help="of requests (default: 64)")
    end: PlainResults = group(PlainResults)


def check(asked: Options) -> list[Load]:
    """What is wrong with the options is said here, before a network is made."""
    return [Load(size, count=300, concurrency=1) for size in asked.size.split(",")]


def measure(loads: list[Load], running: Running) -> Outcome:
    with open_network(TOPO, progress=running.progress.say) as net, ExitStack() as stack:
        fleets = [stack.enter_context(Fleet(net, TOPO, Setup(transport), running.folder.path / "hosts", number))
                  for number, transport in enumerate(("homa", "smt"))]
        rows = [fleet.measure(load).row for load in loads for fleet in fleets]
    return Outcome(rows, {"points": [[row["transport"], row["size"], row["rtt_us"]["p50"]] for row in rows]})


EXPERIMENT = Experiment("sealing", help="what sealing costs a round trip", options=Options, check=check,
                        measure=measure)  # rows of its own kind, tables and pictures: kinds=(...)

if __name__ == "__main__":
    if not sandbox.inside():
        sys.exit(sandbox.run_command([sys.executable, *sys.argv]))
    parser = argparse.ArgumentParser(description=EXPERIMENT.help)
    EXPERIMENT.add(parser.add_subparsers(required=True))
    arguments = parser.parse_args()
    sys.exit(arguments.run(arguments))
