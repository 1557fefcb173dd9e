"""``smtnet run blocks``: commands on a remote block store, by the depth of the queue, every block verified."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

from smtstack import quantities
from smtstack.errors import ConfigError
from workloads import transports
from workloads.blocks.model import CANARY
from workloads.blocks.stores import BLOCKS
from workloads.experiments.block_figure import KINDS, as_text, table
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.experiments.one_system import OneSystem, counters_and_judgement
from workloads.experiments.queries import numbers
from workloads.fleet.blocks import STORES, BlockFleet, BlockRow
from workloads.fleet.setup import Setup
from workloads.load.blocks import PATTERNS, BlockLoad
from workloads.options import common as options
from workloads.options.declare import group, option
from workloads.results.folder import csv_text
from workloads.results.points import first_error, session_lines

#: fio's way to say it.
DEPTHS = [1, 2, 4, 8, 16, 32]
_SECONDS = 1.0

_EXAMPLES = """examples:
  smtnet run blocks --transport smt --nic hw
  smtnet run blocks --transport tls --pattern randrw --iodepth 1,8,32 --seconds 2 --json
  smtnet run blocks --pattern all --iodepth 32 --commands 1000000 --loss 1% --trials 1
  smtnet run blocks --pattern all --iodepth 32 --store file --kill 3 --seconds 8 --trials 1

The first host is the target, all others ask. Every block that is read is compared with a model.
exit code: 0 ok, 1 a command failed or a block was wrong, 2 usage, 3 the machine lacks something
           ('smtnet doctor' says what), 4 the run was not faithful (--allow-unfaithful: 0 then)

docs/blocks.md is the how-to.
"""


def _patterns(text: str) -> list[str]:
    """For argparse: ``randread,randwrite``."""
    names = list(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in PATTERNS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(PATTERNS)}")
    return names


@dataclass(frozen=True)
class Options:
    """What ``smtnet run blocks`` takes on its command line."""

    pattern: list[str] = option(
        "--pattern", type=_patterns, default="randread,randwrite", metavar="P[,P...]",
        help=f"{', '.join(PATTERNS)} (several blocks, compare, write zeroes, flush, errors, too), one after the "
             "other (default: %(default)s)")
    iodepth: list[int] = option("--iodepth", type=numbers, default=",".join(map(str, DEPTHS)), metavar="N[,N...]",
                                help="commands under way in all (default: %(default)s)")
    commands: int | None = option("--commands", type=quantities.POSITIVE, metavar="N", either="limit",
                                  help="commands in all, for each point and trial")
    seconds: float | None = option("--seconds", type=quantities.SECONDS, metavar="S", either="limit",
                                   help=f"time for each point and trial (default: {_SECONDS:g})")
    store: str = option("--store", choices=STORES, default="memory",
                        help="; ".join(f"{name}: {what}" for name, what in STORES.items())
                        + " (default: %(default)s)")
    blocks: int = option("--blocks", type=options.positive, default=BLOCKS, metavar="N",
                         help="blocks of 4096 bytes that there are; all are written first (default: %(default)s)")
    durable: bool = option("--durable", action="store_true",
                           help="writes are on the disk before they are completed (default: Flush and FUA only)")
    kill: int = option("--kill", type=options.not_negative, default=0, metavar="N",
                       help="kill the target (SIGKILL) N times in each trial, a second apart, and start it again")
    timeout: float = option("--timeout", type=quantities.SECONDS, default=30.0, metavar="S",
                            help="give up a command after this long (default: 30)")
    seed: int = option("--seed", type=options.positive, default=1, help="of commands, faults (default: 1)")
    system: OneSystem = group(OneSystem)


@dataclass(frozen=True)
class Plan:
    """What is measured, with what."""

    asked: Options
    setup: Setup
    loads: list[BlockLoad]


def check(asked: Options) -> Plan:
    """Everything that can be seen before a network is made."""
    system = asked.system
    setup = Setup(system.transport, system.nic, "one", system.processes, connections=system.connections,
                  wait=system.waits.waiting(), session=system.sessions.session or "",
                  options=system.transport_words())
    if asked.kill and asked.store == "memory":
        raise ConfigError("--kill needs --store file or protected: a killed target loses what is in its memory")
    seconds = None if asked.commands else asked.seconds or _SECONDS
    loads = [BlockLoad(pattern=pattern, count=asked.commands, seconds=seconds, concurrency=depth,
                       timeout=asked.timeout) for pattern in asked.pattern for depth in asked.iodepth]
    system.network.check(system.topo, asked.seed)
    transports.check(system.transport)
    return Plan(asked, setup, loads)


def measure(plan: Plan, running: Running) -> Outcome:
    """A row for each pattern, depth and trial, up to the first that failed."""
    asked, system = plan.asked, plan.asked.system
    rows: list[BlockRow] = []
    with running.network(system.network, system.topo, asked.seed) as net, \
            system.captures(net, running) as captures, \
            BlockFleet(net, system.topo, plan.setup, running.folder.path / "hosts", store=asked.store,
                       blocks=asked.blocks, durable=asked.durable, keep_keys=system.keep_keys) as fleet:
        for load, trial in [(load, trial) for load in plan.loads for trial in range(1, system.trials + 1)]:
            running.progress.step(f"{load.pattern}, iodepth {load.concurrency}, trial {trial} of {system.trials}")
            measured = fleet.measure(replace(load, seed=asked.seed + trial - 1), trial, asked.kill)
            rows.append(measured.row)
            name = f"{load.pattern}-x{load.concurrency}-trial{trial}"
            running.folder.save_raw(name, measured.rtt_ns)
            running.folder.save_raw(f"{name}{fleet.TAGS}", measured.tags)
            if measured.row["errors"] or not measured.row["content_ok"]:
                break
    captured = counters_and_judgement(running, fleet, captures, CANARY)
    return outcome(rows, captured, system.transport, asked.seed)


def outcome(rows: list[BlockRow], captured: dict[str, object] | None, transport: str, seed: int) -> Outcome:
    """What came of it."""
    entries = table(rows)
    result = {"points": entries, "errors": sum(row["errors"] for row in rows),
              "content_ok": all(row["content_ok"] for row in rows), "commands": sum(row["rpcs"] for row in rows),
              "sent_again": sum(row["sent_again"] for row in rows), "kills": sum(row["kills"] for row in rows)}
    lines = [as_text(entries), f"{result['commands']:,} commands, every block that was read was right"
             if result["content_ok"] else "blocks were wrong", *session_lines(rows)]
    if result["kills"]:
        lines.append(f"the target was killed {result['kills']} times; {result['sent_again']} commands were sent "
                     "again, and no acknowledged write was lost" if result["content_ok"] else "")
    failed = ""
    if result["errors"] or not result["content_ok"]:
        failed = first_error(rows) or "commands failed"
    if captured is not None:
        result["capture"] = captured
        lines.append("captures: " + ", ".join(f"{name} {value}" for name, value in captured.items()))
        if captured.get("records_bad") or captured.get("nonce_reuse") or (
                captured["canary_frames"] and transport in transports.ENCRYPTED):
            failed = failed or "the captures hold what they must not: bad records, a nonce twice or plaintext"
    return Outcome(rows, result, "\n".join(filter(None, lines)), table=False, failed=failed, seed=seed,
                   files={"iodepth.csv": csv_text(entries)})


EXPERIMENT = Experiment(
    "blocks", help="a remote block store, every block verified", examples=_EXAMPLES,
    description="Commands of 4 KB on a block target with the shape of NVMe over Fabrics, by pattern and depth of "
                "the queue; the paper's Fig. 9 beside them.",
    options=Options, check=check, measure=measure, kinds=KINDS, ends_with="report", place=25,
    steps=lambda plan: (f"run blocks, {plan.setup.transport} on {plan.asked.system.topo}",
                        len(plan.loads) * plan.asked.system.trials))
