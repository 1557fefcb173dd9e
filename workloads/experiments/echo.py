"""``smtnet run echo``: RPC echo on an emulated topology, every answer compared."""

from __future__ import annotations

from dataclasses import dataclass

from smtstack import quantities
from smtstack.io.key_file import IN_CLEAR
from workloads import transports
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.experiments.one_system import OneSystem, counters_and_judgement, measured_trials, quote
from workloads.fleet.fleet import Fleet
from workloads.fleet.setup import PATTERNS, Setup
from workloads.load import distributions
from workloads.load.loops import Load
from workloads.options import common as options
from workloads.options.declare import group, option

_EXAMPLES = """examples:
  smtnet run echo --topo back2back --transport smt --size 64 --count 10000
  smtnet run echo --topo star,4 --transport smt --nic hw --size w3 --also 1000000x200 --count 100000 \\
      --pattern all --concurrency 16
  smtnet run echo --topo star,4 --transport smt --loss 1% --reorder 1% --size w3 --count 10000
  smtnet run echo --topo dumbbell,2 --transport tls --rate-mbps 100 --size 1024 --seconds 5 --concurrency 50 --json

exit code: 0 ok, 1 an RPC failed or an answer was wrong, 2 usage, 3 the machine lacks something
           ('smtnet doctor' says what), 4 the run was not faithful (--allow-unfaithful: 0 then)

The network lives in namespaces of its own, with its own Open vSwitch: nothing has to be cleaned up, and
several runs do not meet. Results are in results/<UTC time>-echo/; 'smtnet report' draws them again.
"""


@dataclass(frozen=True)
class Options:
    """What ``smtnet run echo`` takes on its command line."""

    system: OneSystem = group(OneSystem)
    pattern: str = option(
        "--pattern", default="topo", metavar="P",
        help="; ".join(f"{name}: {what}" for name, what in PATTERNS.items())
        + "; h1:h3,h2:h4: these (default: %(default)s)")
    size: str = option(
        "--size", type=quantities.sizes, default="64", metavar="B|W|FILE",
        help="request bytes, or drawn from a workload "
             f"({', '.join(distributions.WORKLOADS)}) or a file of sizes (default: %(default)s)")
    response_size: int | None = option("--response-size", type=quantities.BYTES, metavar="B",
                                       help="bytes of an answer (default: the request comes back)")
    also: str = option("--also", type=quantities.size_and_number, default="", metavar="BxN",
                       help="N messages of B bytes among the others")
    count: int | None = option("--count", type=options.positive, metavar="N", either="limit",
                               help="RPCs in all (default: 1000)")
    seconds: float | None = option("--seconds", type=quantities.SECONDS, metavar="S", either="limit",
                                   help="time for each trial")
    concurrency: int = option(
        "--concurrency", type=options.positive, default=1, metavar="C",
        help="RPCs under way in all; 1 measures the unloaded round trip (default: 1)")
    rate: float = option("--rate", type=quantities.PER_SECOND, default=0.0, metavar="R",
                         help="open loop: R RPC/s in all, at random times (default: closed loop)")
    workers: int = option("--workers", type=options.positive, default=1, metavar="W",
                          help="server processes a host, sharing one port (default: 1)")
    keys: str = option(
        "--keys", choices=("demo", IN_CLEAR), default="",
        help="transport linux only: the kernel module's public keys, or none: its plain Homa, in clear (default: "
             "throw-away keys)")
    canary: str = option("--canary", default="", metavar="TEXT",
                         help="text in every payload, which captures are searched for")
    timeout: float = option("--timeout", type=quantities.SECONDS, default=10.0, metavar="S",
                            help="give up an RPC after this long (default: 10)")
    seed: int = option("--seed", type=options.positive, default=1, help="of sizes, arrivals, faults (default: 1)")


@dataclass(frozen=True)
class Plan:
    """What is measured, with what."""

    asked: Options
    setup: Setup
    load: Load
    """What is sent in the first trial."""


def check(asked: Options) -> Plan:
    """Everything that can be seen before a network is made."""
    system = asked.system
    setup = Setup(system.transport, system.nic, asked.pattern, system.processes, asked.workers, system.connections,
                  system.waits.waiting(), asked.keys, system.sessions.session or "", system.transport_words(),
                  ("--response-size", str(asked.response_size)) if asked.response_size else ())
    load = Load(asked.size, asked.also, None if asked.seconds else asked.count or 1000, asked.seconds,
                asked.concurrency, asked.rate, timeout=asked.timeout, canary=asked.canary, seed=asked.seed,
                response_size=asked.response_size)
    system.network.check(system.topo, asked.seed)
    transports.check(system.transport, system.network.links(asked.seed).hosting)
    return Plan(asked, setup, load)


def measure(plan: Plan, running: Running) -> Outcome:
    """A row for each trial, up to the first that failed."""
    asked, system = plan.asked, plan.asked.system
    hosts = running.folder.path / "hosts"
    with running.network(system.network, system.topo, asked.seed) as net, \
            system.captures(net, running) as captures, \
            Fleet(net, system.topo, plan.setup, hosts, keep_keys=system.keep_keys) as fleet:
        rows = measured_trials(system, asked.seed, fleet, plan.load, running)
    return quote(system, asked.seed, rows, counters_and_judgement(running, fleet, captures, asked.canary.encode()))


EXPERIMENT = Experiment(
    "echo", help="RPC echo, every answer compared", examples=_EXAMPLES,
    description="RPC echo over a topology. Every answer is compared byte for byte.",
    options=Options, check=check, measure=measure, ends_with="results", place=10,
    steps=lambda plan: (f"run echo, {plan.setup.transport} on {plan.asked.system.topo}", plan.asked.system.trials))
