"""``smtnet run incast``: many servers answer one client at the same moment, on an emulated network."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any

from topo import sandbox
from topo.topologies import make_topo
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
    resend_ms,
    systems,
    troubles,
)
from workloads.fleet.query import QueryFleet
from workloads.load.queries import QueryLoad
from workloads.options import common as options
from workloads.options.network import link_options, open_net
from workloads.results.progress import Progress
from workloads.results.rows import ResultFolder, Row

SENDERS, QUICK_SENDERS = [1, 2, 4, 8, 16, 24, 32], [1, 4, 8, 16]
ROUNDS, QUICK_ROUNDS = 100, 20
TRIALS = 3
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


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``incast`` to the subcommands of ``run``."""
    parser = actions.add_parser(
        "incast", help="many servers answer one client at the same moment", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Rounds of incast: one client asks N servers at the same moment, and all answer through the "
                    "one link it has. Goodput, completion, losses and retransmissions over N; every answer is "
                    "compared.")
    parser.add_argument("--senders", type=numbers, metavar="N[,N...]",
                        help=f"servers (default: {','.join(map(str, SENDERS))}; --quick: "
                             f"{','.join(map(str, QUICK_SENDERS))})")
    parser.add_argument("--rounds", type=options.positive, metavar="R",
                        help=f"of each point (default: {ROUNDS}; --quick: {QUICK_ROUNDS})")
    parser.add_argument("--controls", action="store_true",
                        help="also what must be near the link's rate if the emulator is right: the same RPCs, but "
                             "not at the same moment; and the same rounds with buffers in which nothing is lost")
    add_query_options(parser)
    parser.set_defaults(run=run, rate_mbps=RATE_MBPS, buffer=BUFFER)


def run(args: argparse.Namespace) -> int:
    """The subcommand: checks everything that can be checked, then goes on in namespaces of its own."""
    args.senders = args.senders or (QUICK_SENDERS if args.quick else SENDERS)
    args.rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    args.trials = args.trials or (1 if args.quick else TRIALS)
    check(args, args.senders[-1])
    if not sandbox.inside():
        return sandbox.run(sys.argv[1:])
    folder = ResultFolder.create("incast", args.results)
    compared = len(systems(args))
    steps = compared * args.trials * (len(args.senders) + 2 * args.controls)
    with Progress(f"run incast, {','.join(args.transport)} on {args.topo}", steps) as progress:
        most = args.senders[-1]
        loads = [(n, "") for n in args.senders]
        if args.controls:
            loads.append((most, _SPREAD))
        rows = _measure(args, loads, folder, progress)
        if args.controls:
            # Nothing is lost in it even if every answer of two rounds waits there with all its headers.
            args.buffer, kept = 4 * most * args.size + 1_000_000, args.buffer
            rows += _measure(args, [(most, _ROOMY)], folder, progress)
            args.buffer = kept
        return conclude(args, folder, rows, "incast", table(rows), progress)


def _measure(args: argparse.Namespace, loads: Sequence[tuple[int, str]], folder: ResultFolder,
             progress: Progress) -> list[Row]:
    """A row for each system, trial and load: (servers, which control)."""
    rows: list[Row] = []
    # One folder for each network: fleets are numbered anew.
    place = folder.path / "hosts" / str(args.buffer)
    with open_net(args, folder, progress) as net, ExitStack() as stack:
        progress.say(f"{args.topo}: starting servers and clients")
        fleets = [stack.enter_context(QueryFleet(net, args.topo, setup, place, number, mode="incast",
                                                 variant=variant))
                  for number, (setup, variant) in enumerate(systems(args))]
        for trial in range(1, args.trials + 1):
            for servers, control in loads:
                for fleet in fleets:
                    named = f"{fleet.system}, of {servers}{control and ', '}{control}"
                    progress.step(f"{named}, trial {trial}")
                    measured = fleet.measure(_load(args, servers, control, trial), trial)
                    row = {**measured.row, **_known(args, servers), "control": control}
                    row["variant"] = ", ".join(filter(None, (fleet.variant, control)))
                    rows.append(row)
                    name = re.sub("[^a-z0-9]+", "-", f"{named} trial {trial}")
                    folder.save_raw(name, measured.rtt_ns)
                    folder.save_raw(f"{name}.leaves", measured.tags)
    return rows


def _load(args: argparse.Namespace, servers: int, control: str, trial: int) -> QueryLoad:
    load = QueryLoad(str(args.request), count=args.rounds, leaves=servers, response_size=args.size,
                     timeout=args.timeout, seed=args.seed + trial - 1)
    if control != _SPREAD:
        return load
    # All but one may have to wait in the buffer.
    room = 1 + args.buffer // answer_bytes(args.size, link_options(args))
    return dataclasses.replace(load, in_turn=True, count=args.rounds * servers,
                               concurrency=min(room, 2 + _UNDER_WAY_BYTES // args.size))


def _known(args: argparse.Namespace, servers: int) -> dict[str, Any]:
    """What can be said beforehand."""
    links = link_options(args)
    ideal = ideal_us(servers, args.size, args.request, links, hops(make_topo(args.topo)))
    return {"ideal_us": round(ideal, 1), "ideal_mbps": round(servers * args.size * 8 / ideal, 3),
            "rate_mbps": args.rate_mbps, "buffer_bytes": args.buffer, "resend_ms": resend_ms(args)}


def table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A line for each system, number of servers and control: medians of the trials; losses, packets sent again and
    errors of all of them."""
    lines: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        lines.setdefault((row["control"], row["concurrency"], row["system"]), []).append(row)
    out = []
    for (control, servers, system), trials in lines.items():
        one = trials[0]
        # The controls' RPCs are not rounds: their time says nothing about one.
        rounds = control != _SPREAD
        goodput = median(row["goodput_mbps"] for row in trials)
        out.append({
            "servers": servers, "system": system, "control": control, "trials": len(trials),
            "goodput_mbps": round(goodput, 2), "ideal_mbps": round(one["ideal_mbps"], 2),
            "p50_ms": middle_ms(trials, "p50"), "p99_ms": middle_ms(trials, "p99"),
            "max_ms": middle_ms(trials, "max"),
            "ideal_ms": round(one["ideal_us"] / 1000, 2) if rounds else None,
            **troubles(trials)})
    return out
