"""``smtnet run fanout``: queries of many leaves (partition-aggregate), also in other traffic, and their tail."""

from __future__ import annotations

import argparse
import math
import re
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, cast

from smtstack import quantities
from smtstack.errors import ConfigError
from topo.network import SmtNet
from topo.topologies import make_topo
from workloads.experiments import queries as runs
from workloads.experiments import query_curves as curves
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.experiments.mix.arithmetic import Mix
from workloads.experiments.slowdown.simulation import REPLY_BYTES
from workloads.fleet.fleet import Fleet
from workloads.fleet.query import Background, QueryFleet, QueryRow, lasting
from workloads.fleet.setup import Setup
from workloads.load import distributions
from workloads.load.loops import Load
from workloads.load.queries import QueryLoad
from workloads.options.declare import group, option
from workloads.options.session import session_words
from workloads.results.kinds import Mode, Picture
from workloads.results.points import grouped
from workloads.transports import PACKET_TRANSPORTS

LEAVES, QUICK_LEAVES = [1, 2, 4, 8, 16, 32], [1, 4, 8]
SECONDS, QUICK_SECONDS = 10.0, 2.0
#: tcp, tls, ktls: what the background's hosts have to each other. All to all, they are many as it is.
_CONNECTIONS = 2

_EXAMPLES = """examples:
  smtnet run fanout --leaves 1,2,4,8,16,32 --size 10000 --seconds 20
  smtnet run fanout --leaves 1,8,16 --size 1000 --load 100 --transport smt,homa,tcp,tls
  smtnet run fanout --leaves 1,8 --size 10000 --load 10% --background W4 --background-load 30% --rate-mbps 20

A query asks N hosts at once and is over when all have answered. With --background, every host of the topology
sends such messages to every other meanwhile, over the same transport. Percentiles of fewer samples than they need
(p99: 100, p99.9: 1000 in each trial) are left out. Results are in results/<UTC time>-fanout/: fanout.csv,
fanout.png and what every run leaves.
exit code: 0 ok, 1 a query failed or an answer was wrong, 2 usage, 3 the machine lacks something
           ('smtnet doctor' says what), 4 the run was not faithful (--allow-unfaithful: 0 then)
"""


def load(text: str) -> tuple[float, bool]:
    """For argparse: (queries/s, False) or (share, True)."""
    if text.endswith("%"):
        share: float = quantities.FRACTION(text)
        if not share:
            raise argparse.ArgumentTypeError("a share of 0% is no load")
        return share, True
    return quantities.PER_SECOND(text), False


@dataclass(frozen=True)
class Options:
    """What ``smtnet run fanout`` takes on its command line."""

    leaves: list[int] | None = option("--leaves", type=runs.numbers, metavar="N[,N...]",
                                      help=f"of a query (default: {','.join(map(str, LEAVES))}; --quick: "
                                           f"{','.join(map(str, QUICK_LEAVES))})")
    load: tuple[float, bool] = option(
        "--load", type=load, default=(0.0, False), metavar="R|P%",
        help="queries/s at random times, or the share of the root's link that answers take, as "
             "30%% (default: the next one when the last is over)")
    seconds: float | None = option("--seconds", type=quantities.SECONDS, metavar="S",
                                   help=f"of each point (default: {SECONDS:g}; --quick: {QUICK_SECONDS:g})")
    background: str | None = option(
        "--background", metavar="W|FILE",
        help="messages of this workload between all hosts meanwhile: "
             + ", ".join(w.upper() for w in distributions.WORKLOADS) + ", or a file of sizes")
    background_load: float = option(
        "--background-load", type=quantities.FRACTION, default=0.3, metavar="P",
        help="share of every host's link that they take in each direction (default: %(default)s)")
    queries: runs.Queries = group(runs.Queries, rate_mbps=runs.RATE_MBPS)

    def query_rate(self, leaves: int) -> float:
        """Queries/s; 0: one after the other."""
        value, share = self.load
        if not share:
            return value
        links = self.queries.links()
        assert links.rate_mbps is not None, "there is a default"
        return value * links.rate_mbps * 1e6 / 8 / (leaves * runs.answer_bytes(self.queries.size, links))

    def background_text(self) -> str:
        """``W4 at 30%``; "": there is none."""
        if not self.background:
            return ""
        return f"{distributions.name(self.background).upper()} at {self.background_load:.0%}"


@dataclass(frozen=True)
class Plan:
    """What was left open, filled in."""

    asked: Options
    queries: runs.Queries
    """What ``asked`` has in common with other experiments of queries."""
    leaves: Sequence[int]
    """In ascending order."""
    seconds: float
    mix: Mix | None
    """The background."""
    links_away: int
    """From the root to the farthest leaf."""


def check(asked: Options) -> Plan:
    """Everything that can be seen before a network is made."""
    quick = asked.queries.quick
    leaves = asked.leaves or (QUICK_LEAVES if quick else LEAVES)
    seconds = asked.seconds or (QUICK_SECONDS if quick else SECONDS)
    queries = runs.filled(asked.queries, leaves[-1])
    asked = replace(asked, leaves=leaves, seconds=seconds, queries=queries)
    topo = make_topo(queries.topo)
    return Plan(asked, queries, leaves, seconds, _mix(asked, len(topo.hosts())), runs.hops(topo))


def _mix(asked: Options, hosts: int) -> Mix | None:
    if not asked.background:
        return None
    if not asked.background_load:
        raise ConfigError("--background-load 0: leave --background out")
    links = asked.queries.links()
    assert links.rate_mbps is not None, "there is a default"
    return Mix(asked.background, asked.background_load, hosts, links.rate_mbps, links.mtu,
               tuple(asked.queries.params.param))


def measure(plan: Plan, running: Running) -> Outcome:
    """A row for each system, trial and number of leaves."""
    rows: list[QueryRow] = []
    asked, queries, mix = plan.asked, plan.queries, plan.mix
    folder, progress = running.folder, running.progress
    priorities = [] if mix is None else list(mix.options())
    with running.network(queries.network, queries.topo, queries.seed) as net, ExitStack() as stack:
        progress.say(f"{queries.topo}: starting servers and clients")
        fleets = [stack.enter_context(QueryFleet(net, queries.topo, setup, folder.path / "hosts", number,
                                                 mode="fanout", variant=variant))
                  for number, (setup, variant) in enumerate(runs.systems(queries, *priorities))]
        behind = {} if mix is None else {
            name: stack.enter_context(_background(queries, net, mix, name, running, len(fleets) + number))
            for number, name in enumerate(queries.transport)}
        for trial in range(1, queries.count() + 1):
            for leaves in plan.leaves:
                for fleet in fleets:
                    named = f"{fleet.system}, queries of {leaves}"
                    progress.step(f"{named}, trial {trial}")
                    load = _load(plan, leaves, trial)
                    if mix is None:
                        measured = fleet.measure(load, trial)
                    else:
                        traffic = Load(mix.workload, count=None, seconds=lasting(plan.seconds, len(net.hosts)),
                                       rate=mix.rpc_per_s, timeout=queries.timeout, seed=load.seed,
                                       response_size=REPLY_BYTES)
                        background = Background(behind[fleet.setup.transport], traffic)
                        measured = fleet.measure_in(background, load, trial)
                    rows.append(cast(QueryRow, {
                        **measured.row, **_known(plan, leaves),
                        "variant": ", ".join(filter(None, (fleet.variant, asked.background_text()))),
                        "p99_if_independent_us": independent_us(measured.tags, leaves)}))
                    name = re.sub("[^a-z0-9]+", "-", f"{named} trial {trial}")
                    folder.save_raw(name, measured.rtt_ns)
                    folder.save_raw(f"{name}.leaves", measured.tags)
    return runs.outcome_of(asked, queries.seed, rows, "fanout", table(rows))


def _background(queries: runs.Queries, net: SmtNet, mix: Mix, transport: str, running: Running,
                number: int) -> Fleet:
    words: tuple[str, ...] = ()
    if transport in PACKET_TRANSPORTS:
        words = (*mix.options(), *queries.overlay.words(transport), *session_words(queries.sessions, transport))
    setup = Setup(transport, queries.nic, "all", connections=_CONNECTIONS, wait=queries.waits.waiting(),
                  session=queries.sessions.session or "", options=words,
                  server_options=("--response-size", str(REPLY_BYTES)))
    return Fleet(net, queries.topo, setup, running.folder.path / "hosts", number)


def _load(plan: Plan, leaves: int, trial: int) -> QueryLoad:
    queries = plan.queries
    return QueryLoad(str(queries.request), count=None, seconds=plan.seconds, leaves=leaves,
                     response_size=queries.size, rate=plan.asked.query_rate(leaves), timeout=queries.timeout,
                     seed=queries.seed + trial - 1)


def _known(plan: Plan, leaves: int) -> dict[str, Any]:
    """What a row has that can be said beforehand."""
    queries, (value, share) = plan.queries, plan.asked.load
    rate_mbps = queries.network.rate_mbps
    assert rate_mbps is not None, "there is a default"
    behind = plan.asked.background_text()
    rate = f"{value:.0%} of the root's link" if share else f"{value:g} queries/s"
    texts = (f"{rate_mbps:g} Mbit/s", rate if value else "one query after the other", behind)
    ideal = runs.ideal_us(leaves, queries.size, queries.request, queries.links(), plan.links_away)
    return {"ideal_us": round(ideal, 1), "rate_mbps": rate_mbps, "load_text": ", ".join(filter(None, texts))}


def independent_us(leaf_ns: array[int], leaves: int) -> float | None:
    """99th percentile that whole queries would have if their leaves were late independently of each other: the
    leaves' own quantile at the ``leaves``-th root of 0.99, in microseconds. None: too few samples for it."""
    share = 0.99 ** (1 / leaves)
    if len(leaf_ns) * (1 - share) < 1:
        return None
    ordered = sorted(leaf_ns)
    return round(ordered[math.ceil(len(ordered) * share) - 1] / 1000, 1)


def table(rows: Sequence[QueryRow]) -> list[dict[str, Any]]:
    """A line for each system and number of leaves: medians of the trials; losses, packets sent again and errors of
    all of them."""
    out = []
    for (leaves, system), trials in grouped(rows, lambda row: (row["concurrency"], row["system"])).items():
        rtt_us, leaf_us = [row["rtt_us"] for row in trials], [row["leaf_us"] for row in trials]
        fewest = min(row["queries"] for row in trials)
        tail = {f"{name}_ms": runs.middle_ms(rtt_us, name) if fewest >= least else None
                for name, least in curves.LEAST.items()}
        alone = [us for row in trials if (us := row["p99_if_independent_us"]) is not None]
        out.append({
            "leaves": leaves, "system": system, "trials": len(trials),
            "queries": sum(row["queries"] for row in trials), "per_s": round(trials[0]["query_rate"], 2) or None,
            **tail, "ideal_ms": round(trials[0]["ideal_us"] / 1000, 2),
            "leaf_p50_ms": runs.middle_ms(leaf_us, "p50"), "leaf_p99_ms": runs.middle_ms(leaf_us, "p99"),
            "p99_if_independent_ms": round(sorted(alone)[len(alone) // 2] / 1000, 2) if alone else None,
            **runs.troubles(trials)})
    return out


EXPERIMENT = Experiment(
    "fanout", help="queries of many leaves, over when all have answered", examples=_EXAMPLES,
    description="Partition-aggregate: the root asks N leaves at once and waits for all of them, over and over "
                "or at random times. Median and tail of whole queries over N; every answer is compared.",
    options=Options, check=check, measure=measure, place=30,
    steps=lambda plan: runs.steps(plan.queries, "fanout", len(plan.leaves)),
    kinds=(Mode("fanout", "p99", "99th percentile of the queries in us"),
           Picture("fanout.png", curves.fanout, "Queries of many leaves, by their number")))
