"""``smtnet run incast``: many servers answer one client at the same moment, on an emulated network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, cast

from topo.topologies import make_topo
from workloads.experiments import queries as runs
from workloads.experiments import query_curves as curves
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.fleet.query import QueryFleet, QueryRow
from workloads.load.queries import QueryLoad
from workloads.options import common as options
from workloads.options.declare import group, option
from workloads.results.kinds import Mode, Picture
from workloads.results.points import grouped

SENDERS, QUICK_SENDERS = [1, 2, 4, 8, 16, 24, 32], [1, 4, 8, 16]
ROUNDS, QUICK_ROUNDS = 100, 20
#: Of each of the eight priorities.
BUFFER = 128_000
#: Bytes of answers that keep a link busy while the next ones are asked for; at least two of them.
_UNDER_WAY_BYTES = 32_768
#: The controls: fields of rows, and words for people.
_SPREAD, _ROOMY = "not at the same moment", "a buffer for everything"

_EXAMPLES = """examples:
  smtnet run incast --senders 1,2,4,8,16,24,32 --size 10000 --buffer 128000
  smtnet run incast --senders 1,8,32 --size 64000 --buffer 64000 --transport smt,homa,tcp,tls --incast-control 4
  smtnet run incast --senders 16 --size 10000 --rate-mbps 50 --controls --quick --json

The first host asks N servers at once, and again when all have answered. A link never idle would take ideal_ms.
Results are in results/<UTC time>-incast/: incast.csv, incast.png and what every run leaves.
exit code: 0 ok, 1 a query failed or an answer was wrong, 2 usage, 3 the machine lacks something
           ('smtnet doctor' says what), 4 the run was not faithful (--allow-unfaithful: 0 then)
"""


@dataclass(frozen=True)
class Options:
    """What ``smtnet run incast`` takes on its command line."""

    senders: list[int] | None = option("--senders", type=runs.numbers, metavar="N[,N...]",
                                       help=f"servers (default: {','.join(map(str, SENDERS))}; --quick: "
                                            f"{','.join(map(str, QUICK_SENDERS))})")
    rounds: int | None = option("--rounds", type=options.positive, metavar="R",
                                help=f"of each point (default: {ROUNDS}; --quick: {QUICK_ROUNDS})")
    controls: bool = option(
        "--controls", action="store_true",
        help="also what must be near the link's rate if the emulator is right: the same RPCs, but "
             "not at the same moment; and the same rounds with buffers in which nothing is lost")
    queries: runs.Queries = group(runs.Queries, rate_mbps=runs.RATE_MBPS, buffer=BUFFER)


@dataclass(frozen=True)
class Plan:
    """What was left open, filled in."""

    asked: Options
    queries: runs.Queries
    """What ``asked`` has in common with other experiments of queries."""
    senders: Sequence[int]
    """In ascending order."""
    rounds: int
    buffer: int
    """Bytes."""

    def roomy(self) -> Plan:
        """With a buffer in which nothing is lost, even if every answer of two rounds waits there with all its
        headers."""
        buffer = 4 * self.senders[-1] * self.queries.size + 1_000_000
        queries = replace(self.queries, network=replace(self.queries.network, buffer=buffer))
        return replace(self, queries=queries, buffer=buffer)


def check(asked: Options) -> Plan:
    """Everything that can be seen before a network is made."""
    quick = asked.queries.quick
    senders = asked.senders or (QUICK_SENDERS if quick else SENDERS)
    rounds = asked.rounds or (QUICK_ROUNDS if quick else ROUNDS)
    queries = runs.filled(asked.queries, senders[-1])
    return Plan(replace(asked, senders=senders, rounds=rounds, queries=queries), queries, senders, rounds,
                queries.links().buffer_bytes)


def measure(plan: Plan, running: Running) -> Outcome:
    """A row for each system, trial, number of servers and control."""
    most = plan.senders[-1]
    loads = [(n, "") for n in plan.senders]
    if plan.asked.controls:
        loads.append((most, _SPREAD))
    rows = _measure(plan, loads, running)
    if plan.asked.controls:
        rows += _measure(plan.roomy(), [(most, _ROOMY)], running)
    return runs.outcome_of(plan.asked, plan.queries.seed, rows, "incast", table(rows))


def _measure(plan: Plan, loads: Sequence[tuple[int, str]], running: Running) -> list[QueryRow]:
    """A row for each system, trial and load: (servers, which control)."""
    rows: list[QueryRow] = []
    queries, folder, progress = plan.queries, running.folder, running.progress
    # One folder for each network: fleets are numbered anew.
    place = folder.path / "hosts" / str(plan.buffer)
    with running.network(queries.network, queries.topo, queries.seed) as net, ExitStack() as stack:
        progress.say(f"{queries.topo}: starting servers and clients")
        fleets = [stack.enter_context(QueryFleet(net, queries.topo, setup, place, number, mode="incast",
                                                 variant=variant))
                  for number, (setup, variant) in enumerate(runs.systems(queries))]
        for trial in range(1, queries.count() + 1):
            for servers, control in loads:
                known = _known(plan, servers)
                for fleet in fleets:
                    named = f"{fleet.system}, of {servers}{control and ', '}{control}"
                    progress.step(f"{named}, trial {trial}")
                    measured = fleet.measure(_load(plan, servers, control, trial), trial)
                    rows.append(cast(QueryRow, {
                        **measured.row, **known, "control": control,
                        "variant": ", ".join(filter(None, (fleet.variant, control)))}))
                    name = re.sub("[^a-z0-9]+", "-", f"{named} trial {trial}")
                    folder.save_raw(name, measured.rtt_ns)
                    folder.save_raw(f"{name}.leaves", measured.tags)
    return rows


def _load(plan: Plan, servers: int, control: str, trial: int) -> QueryLoad:
    queries = plan.queries
    load = QueryLoad(str(queries.request), count=plan.rounds, leaves=servers, response_size=queries.size,
                     timeout=queries.timeout, seed=queries.seed + trial - 1)
    if control != _SPREAD:
        return load
    # All but one may have to wait in the buffer.
    room = 1 + plan.buffer // runs.answer_bytes(queries.size, queries.links())
    return replace(load, in_turn=True, count=plan.rounds * servers,
                   concurrency=min(room, 2 + _UNDER_WAY_BYTES // queries.size))


def _known(plan: Plan, servers: int) -> dict[str, float]:
    """What a row has that can be said beforehand."""
    queries = plan.queries
    assert queries.network.rate_mbps is not None, "there is a default"
    away = runs.hops(make_topo(queries.topo))
    ideal = runs.ideal_us(servers, queries.size, queries.request, queries.links(), away)
    return {"ideal_us": round(ideal, 1), "ideal_mbps": round(servers * queries.size * 8 / ideal, 3),
            "rate_mbps": queries.network.rate_mbps, "buffer_bytes": plan.buffer,
            "resend_ms": runs.resend_ms(queries)}


def table(rows: Sequence[QueryRow]) -> list[dict[str, Any]]:
    """A line for each system, number of servers and control: medians of the trials; losses, packets sent again and
    errors of all of them."""
    out = []
    by_point = grouped(rows, lambda row: (row["control"], row["concurrency"], row["system"]))
    for (control, servers, system), trials in by_point.items():
        one = trials[0]
        rtt_us = [row["rtt_us"] for row in trials]
        # The controls' RPCs are not rounds: their time says nothing about one.
        rounds = control != _SPREAD
        goodput = median(row["goodput_mbps"] for row in trials)
        out.append({
            "servers": servers, "system": system, "control": control, "trials": len(trials),
            "goodput_mbps": round(goodput, 2), "ideal_mbps": round(one["ideal_mbps"], 2),
            "p50_ms": runs.middle_ms(rtt_us, "p50"), "p99_ms": runs.middle_ms(rtt_us, "p99"),
            "max_ms": runs.middle_ms(rtt_us, "max"),
            "ideal_ms": round(one["ideal_us"] / 1000, 2) if rounds else None,
            **runs.troubles(trials)})
    return out


EXPERIMENT = Experiment(
    "incast", help="many servers answer one client at the same moment", examples=_EXAMPLES,
    description="Rounds of incast: one client asks N servers at the same moment, and all answer through the "
                "one link it has. Goodput, completion, losses and retransmissions over N; every answer is "
                "compared.",
    options=Options, check=check, measure=measure, place=40,
    steps=lambda plan: runs.steps(plan.queries, "incast", len(plan.senders) + 2 * plan.asked.controls),
    kinds=(Mode("incast", "p99", "99th percentile of the rounds in us"),
           Picture("incast.png", curves.incast, "Incast, by the number of servers")))
