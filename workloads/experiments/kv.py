"""``smtnet run kv``: YCSB against a key-value server on an emulated topology."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from smtstack.errors import ConfigError
from workloads import transports
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.experiments.one_system import OneSystem, counters_and_judgement, measured_trials, quote
from workloads.experiments.ycsb_options import Ycsb, say_unused, ycsb_loads
from workloads.experiments.ycsb_picture import KINDS
from workloads.fleet import kv as kv_fleet
from workloads.fleet.kv_storage import NONE, PROTECTED, STORAGE
from workloads.fleet.setup import Setup
from workloads.kv.aof import FSYNC
from workloads.load.ycsb_load import YcsbLoad
from workloads.options.declare import group, option
from workloads.transports.sessions import MODE

#: A name that every record has: captures of encrypted transports must not show it.
_CANARY = b"field0"
#: Requests of redis-benchmark, at least.
_YARDSTICK_OPS = 10_000

_EXAMPLES = """examples:
  smtnet run kv --topo star,4 --transport smt --workload a --value 1024 --records 10000 --clients 12 --seconds 5
  smtnet run kv --topo star,5 --transport smt --nic hw --value 64 --clients 32 --ops 1000000 --trials 1
  smtnet run kv --transport tls --store redis --workload c --clients 16 --seconds 5 --json
  smtnet run kv --transport tcp --store redis --direct --workload a --clients 50 --seconds 5

The first host serves, all others ask. Every value read is verified.
exit code: 0 ok, 1 an operation failed or a value was wrong, 2 usage, 3 the machine lacks something
           ('smtnet doctor' says what), 4 the run was not faithful (--allow-unfaithful: 0 then)

docs/kv.md is the how-to.
"""


@dataclass(frozen=True)
class Options:
    """What ``smtnet run kv`` takes on its command line."""

    store: str = option("--store", choices=kv_fleet.STORES, default="embedded",
                        help="; ".join(f"{name}: {what}" for name, what in kv_fleet.STORES.items())
                        + " (default: %(default)s)")
    direct: bool = option("--direct", action="store_true",
                          help="with --store redis --transport tcp: clients ask Redis itself, and "
                               "redis-benchmark, if it is installed, is run as an outside yardstick")
    storage: str | None = option(
        "--storage", choices=tuple(STORAGE),
        help="embedded: what is kept on the disk; " + "; ".join(f"{name}: {about}" for name, (*_how, about)
                                                                in STORAGE.items())
        + f" (default: {PROTECTED} with --session mtls, else {NONE})")
    fsync: str = option("--fsync", choices=FSYNC, default="everysec",
                        help="when changes must be on the disk, as in serve kv (default: %(default)s)")
    ycsb: Ycsb = group(Ycsb)
    system: OneSystem = group(OneSystem)


@dataclass(frozen=True)
class Plan:
    """What is measured, with what."""

    asked: Options
    setup: Setup
    loading: YcsbLoad
    run: YcsbLoad
    """What is done in the first trial; later ones have other seeds."""
    storage: str
    """What is kept on the disk."""
    by_ring: bool
    """Whether a server's TCP is an untrusted host's, by its io_uring."""


def check(asked: Options) -> Plan:
    """Everything that can be seen before a network is made."""
    system = asked.system
    setup = Setup(system.transport, system.nic, "one", system.processes, connections=system.connections,
                  wait=system.waits.waiting(), session=system.sessions.session or "",
                  options=system.transport_words())
    loading, run = ycsb_loads(asked.ycsb)
    system.network.check(system.topo, asked.ycsb.seed)
    transports.check(system.transport, system.network.links(asked.ycsb.seed).hosting)
    kv_fleet.check(system.transport, asked.store, asked.direct)
    storage = asked.storage
    if storage is None:
        mutual = system.transport == "smt" and system.sessions.session == MODE and asked.store == "embedded"
        storage = PROTECTED if mutual else NONE
    hosting = system.network.links(asked.ycsb.seed).hosting
    if hosting == "ring" and system.transport in transports.PROXIED and (
            asked.store != "embedded" or storage not in (NONE, "file")):
        raise ConfigError(f"{system.transport} with --nic-hosting ring: --store embedded, and --storage {NONE} or "
                          "file")
    if storage != NONE and asked.store != "embedded":
        raise ConfigError(f"--storage {storage} is for --store embedded; Redis keeps what it keeps")
    return Plan(asked, setup, loading, run, storage, hosting == "ring")


def measure(plan: Plan, running: Running) -> Outcome:
    """A row for each trial, up to the first that failed."""
    asked, system, seed = plan.asked, plan.asked.system, plan.asked.ycsb.seed
    say_unused(asked.ycsb)
    more: dict[str, Any] = {}
    with running.network(system.network, system.topo, seed) as net, \
            system.captures(net, running) as captures, \
            kv_fleet.KvFleet(net, system.topo, plan.setup, running.folder.path / "hosts", store=asked.store,
                    direct=asked.direct, keep_keys=system.keep_keys, storage=plan.storage,
                    fsync=asked.fsync, hosting=("--nic-hosting", "ring") if plan.by_ring else ()) as fleet:
        running.progress.step(f"loading {plan.loading.count} records")
        loaded = fleet.load(plan.loading)
        more["load_phase"] = {name: loaded[name] for name in ("rpcs", "rpc_per_s", "rtt_us")}
        rows = measured_trials(system, seed, fleet, plan.run, running)
        if asked.direct:
            running.progress.say("redis-benchmark")
            count = max(plan.run.count or 0, _YARDSTICK_OPS)
            more["redis_benchmark"] = fleet.yardstick(plan.run.concurrency, int(plan.run.size), count)
    return quote(system, seed, rows, counters_and_judgement(running, fleet, captures, _CANARY), **more)


EXPERIMENT = Experiment(
    "kv", help="YCSB against a key-value server", examples=_EXAMPLES,
    description="YCSB's core workloads against a key-value server on a topology: the records are loaded once, "
                "then every trial runs the workload on them.",
    options=Options, check=check, measure=measure, kinds=KINDS, ends_with="results", place=20,
    steps=lambda plan: (f"run kv, workload {plan.asked.ycsb.workload}, {plan.setup.transport} on "
                        f"{plan.asked.system.topo}", plan.asked.system.trials + 1))
