"""``smtnet run fanout``: queries of many leaves (partition-aggregate), also in other traffic, and their tail."""

from __future__ import annotations

import argparse
import math
import re
import sys
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from smtstack import quantities
from smtstack.errors import ConfigError
from topo import sandbox
from topo.network import SmtNet
from workloads.experiments import query_curves as curves
from workloads.experiments.mix.arithmetic import Mix
from workloads.experiments.queries import (
    RATE_MBPS,
    add_query_options,
    answer_bytes,
    check,
    conclude,
    hops,
    ideal_us,
    middle_ms,
    numbers,
    systems,
    troubles,
)
from workloads.experiments.slowdown.run import REPLY_BYTES
from workloads.fleet.fleet import Fleet
from workloads.fleet.query import Background, QueryFleet, lasting
from workloads.fleet.setup import Setup
from workloads.load import distributions
from workloads.load.loops import Load
from workloads.load.queries import QueryLoad
from workloads.options.network import link_options, open_net
from workloads.options.session import session_words
from workloads.results.progress import Progress
from workloads.results.rows import ResultFolder, Row
from workloads.transports import PACKET_TRANSPORTS

LEAVES, QUICK_LEAVES = [1, 2, 4, 8, 16, 32], [1, 4, 8]
SECONDS, QUICK_SECONDS = 10.0, 2.0
TRIALS = 3
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


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``fanout`` to the subcommands of ``run``."""
    parser = actions.add_parser(
        "fanout", help="queries of many leaves, over when all have answered", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Partition-aggregate: the root asks N leaves at once and waits for all of them, over and over "
                    "or at random times. Median and tail of whole queries over N; every answer is compared.")
    parser.add_argument("--leaves", type=numbers, metavar="N[,N...]",
                        help=f"of a query (default: {','.join(map(str, LEAVES))}; --quick: "
                             f"{','.join(map(str, QUICK_LEAVES))})")
    parser.add_argument("--load", type=load, default=(0.0, False), metavar="R|P%",
                        help="queries/s at random times, or the share of the root's link that answers take, as "
                             "30%% (default: the next one when the last is over)")
    parser.add_argument("--seconds", type=quantities.SECONDS, metavar="S",
                        help=f"of each point (default: {SECONDS:g}; --quick: {QUICK_SECONDS:g})")
    parser.add_argument("--background", metavar="W|FILE",
                        help="messages of this workload between all hosts meanwhile: "
                             + ", ".join(w.upper() for w in distributions.WORKLOADS) + ", or a file of sizes")
    parser.add_argument("--background-load", type=quantities.FRACTION, default=0.3, metavar="P",
                        help="share of every host's link that they take in each direction (default: %(default)s)")
    add_query_options(parser)
    parser.set_defaults(run=run, rate_mbps=RATE_MBPS)


def load(text: str) -> tuple[float, bool]:
    """For argparse: (queries/s, False) or (share, True)."""
    if text.endswith("%"):
        share: float = quantities.FRACTION(text)
        if not share:
            raise argparse.ArgumentTypeError("a share of 0% is no load")
        return share, True
    return quantities.PER_SECOND(text), False


def run(args: argparse.Namespace) -> int:
    """The subcommand: checks everything that can be checked, then goes on in namespaces of its own."""
    args.leaves = args.leaves or (QUICK_LEAVES if args.quick else LEAVES)
    args.seconds = args.seconds or (QUICK_SECONDS if args.quick else SECONDS)
    args.trials = args.trials or (1 if args.quick else TRIALS)
    topo = check(args, args.leaves[-1])
    traffic = _mix(args, len(topo.hosts()))
    if not sandbox.inside():
        return sandbox.run(sys.argv[1:])
    folder = ResultFolder.create("fanout", args.results)
    steps = len(systems(args)) * args.trials * len(args.leaves)
    with Progress(f"run fanout, {','.join(args.transport)} on {args.topo}", steps) as progress:
        rows = _measure(args, traffic, hops(topo), folder, progress)
        return conclude(args, folder, rows, "fanout", table(rows), progress)


def _mix(args: argparse.Namespace, hosts: int) -> Mix | None:
    if not args.background:
        return None
    if not args.background_load:
        raise ConfigError("--background-load 0: leave --background out")
    return Mix(args.background, args.background_load, hosts, args.rate_mbps, link_options(args).mtu,
               tuple(args.param))


def _measure(args: argparse.Namespace, mix: Mix | None, links_away: int, folder: ResultFolder,
             progress: Progress) -> list[Row]:
    """A row for each system, trial and number of leaves."""
    rows: list[Row] = []
    priorities = [] if mix is None else list(mix.options())
    with open_net(args, folder, progress) as net, ExitStack() as stack:
        progress.say(f"{args.topo}: starting servers and clients")
        fleets = [stack.enter_context(QueryFleet(net, args.topo, setup, folder.path / "hosts", number,
                                                 mode="fanout", variant=variant))
                  for number, (setup, variant) in enumerate(systems(args, *priorities))]
        behind = {} if mix is None else {
            name: stack.enter_context(_background(args, net, mix, name, folder, len(fleets) + number))
            for number, name in enumerate(args.transport)}
        for trial in range(1, args.trials + 1):
            for leaves in args.leaves:
                for fleet in fleets:
                    named = f"{fleet.system}, queries of {leaves}"
                    progress.step(f"{named}, trial {trial}")
                    queries = _load(args, leaves, trial)
                    if mix is None:
                        measured = fleet.measure(queries, trial)
                    else:
                        traffic = Load(args.background, count=None, seconds=lasting(args.seconds, len(net.hosts)),
                                       rate=mix.rpc_per_s, timeout=args.timeout, seed=queries.seed,
                                       response_size=REPLY_BYTES)
                        measured = fleet.measure_in(Background(behind[fleet.setup.transport], traffic), queries,
                                                    trial)
                    row = {**measured.row, **_known(args, leaves, links_away)}
                    row["variant"] = ", ".join(filter(None, (fleet.variant, _behind_text(args))))
                    row["p99_if_independent_us"] = independent_us(measured.tags, leaves)
                    rows.append(row)
                    name = re.sub("[^a-z0-9]+", "-", f"{named} trial {trial}")
                    folder.save_raw(name, measured.rtt_ns)
                    folder.save_raw(f"{name}.leaves", measured.tags)
    return rows


def _background(args: argparse.Namespace, net: SmtNet, mix: Mix, transport: str, folder: ResultFolder,
                number: int) -> Fleet:
    words = (*mix.options(), *session_words(args, transport)) if transport in PACKET_TRANSPORTS else ()
    setup = Setup(transport, args.nic, "all", connections=_CONNECTIONS, poll_us=args.poll_us,
                  session=args.session or "", options=words,
                  server_options=("--response-size", str(REPLY_BYTES)))
    return Fleet(net, args.topo, setup, folder.path / "hosts", number)


def query_rate(args: argparse.Namespace, leaves: int) -> float:
    """Queries/s; 0: one after the other."""
    value, share = args.load
    if not share:
        return float(value)
    return float(value) * args.rate_mbps * 1e6 / 8 / (leaves * answer_bytes(args.size, link_options(args)))


def _load(args: argparse.Namespace, leaves: int, trial: int) -> QueryLoad:
    return QueryLoad(str(args.request), count=None, seconds=args.seconds, leaves=leaves, response_size=args.size,
                     rate=query_rate(args, leaves), timeout=args.timeout, seed=args.seed + trial - 1)


def _known(args: argparse.Namespace, leaves: int, links_away: int) -> dict[str, Any]:
    """What can be said beforehand."""
    value, share = args.load
    rate = f"{value:.0%} of the root's link" if share else f"{value:g} queries/s"
    texts = (f"{args.rate_mbps:g} Mbit/s", rate if value else "one query after the other", _behind_text(args))
    return {"ideal_us": round(ideal_us(leaves, args.size, args.request, link_options(args), links_away), 1),
            "rate_mbps": args.rate_mbps, "load_text": ", ".join(filter(None, texts))}


def _behind_text(args: argparse.Namespace) -> str:
    if not args.background:
        return ""
    return f"{distributions.name(args.background).upper()} at {args.background_load:.0%}"


def independent_us(leaf_ns: array[int], leaves: int) -> float | None:
    """99th percentile that whole queries would have if their leaves were late independently of each other: the
    leaves' own quantile at the ``leaves``-th root of 0.99, in microseconds. None: too few samples for it."""
    share = 0.99 ** (1 / leaves)
    if len(leaf_ns) * (1 - share) < 1:
        return None
    ordered = sorted(leaf_ns)
    return round(ordered[math.ceil(len(ordered) * share) - 1] / 1000, 1)


def table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A line for each system and number of leaves: medians of the trials; losses, packets sent again and errors of
    all of them."""
    lines: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        lines.setdefault((row["concurrency"], row["system"]), []).append(row)
    out = []
    for (leaves, system), trials in lines.items():
        fewest = min(row["queries"] for row in trials)
        tail = {f"{name}_ms": middle_ms(trials, name) if fewest >= least else None
                for name, least in curves.LEAST.items()}
        alone = [row["p99_if_independent_us"] for row in trials if row["p99_if_independent_us"] is not None]
        out.append({
            "leaves": leaves, "system": system, "trials": len(trials),
            "queries": sum(row["queries"] for row in trials), "per_s": round(trials[0]["query_rate"], 2) or None,
            **tail, "ideal_ms": round(trials[0]["ideal_us"] / 1000, 2),
            "leaf_p50_ms": middle_ms(trials, "p50", "leaf_us"), "leaf_p99_ms": middle_ms(trials, "p99", "leaf_us"),
            "p99_if_independent_ms": round(sorted(alone)[len(alone) // 2] / 1000, 2) if alone else None,
            **troubles(trials)})
    return out
