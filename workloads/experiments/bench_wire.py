"""``smtnet bench wire``: SMT beside TLS, and Homa beside TCP, on a cable: ratios within one run.

Every system's processes stay up, and trials take turns, so a slow moment of the machine hits all of them; the
ratio of a trial is to the yardstick's same trial, and the median of these ratios is printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from smtstack import quantities
from smtstack.errors import SmtError
from topo import sandbox
from topo.link_options import LinkOptions
from workloads.experiments.demo import compare, timed
from workloads.fleet.setup import Setup
from workloads.results.environment import environment
from workloads.results.progress import Progress
from workloads.results.rows import ResultFolder, Row, label, metric, overall, size_text
from workloads.transports.table import TABLE, system_label, systems

#: What is compared, and whose figures are divided by whose.
SYSTEMS = systems("wire")
RATIOS = [(system_label(name, nic), TABLE[name].beside) for name, nic in SYSTEMS if TABLE[name].beside]
UNLOADED_SIZES = (64, 1024, 8192, 65536)
LOADED_SIZES = (64, 1024, 8192)
#: One at a time is the unloaded round trip, measured anyway.
CONCURRENCIES = (50, 150)
BULK_SIZE, BULK_CONCURRENCY = 1_000_000, 4
#: Busy-wait of the polling mode: above a round trip, so that nobody sleeps.
POLL_US = 200
UNLOADED_S, LOADED_S, BULK_S = 0.3, 0.5, 1.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """What ``smtnet bench wire`` takes."""
    parser.add_argument("--trials", type=quantities.POSITIVE, default=5, metavar="N",
                        help="the median of their ratios counts (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR",
                        help="where the result folder goes (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The subcommand."""
    if not sandbox.inside():
        return sandbox.run(sys.argv[1:])
    folder = ResultFolder.create("bench", args.results)
    unloaded = [timed(size, UNLOADED_S) for size in UNLOADED_SIZES]
    loaded = [timed(size, LOADED_S, c) for size in LOADED_SIZES for c in CONCURRENCIES]
    bulk = [timed(BULK_SIZE, BULK_S, BULK_CONCURRENCY)]
    parts = [(unloaded + loaded, 0, "on"), (unloaded, POLL_US, "on"), (bulk, 0, "on"), (bulk, 0, "off")]
    rows: list[Row] = []
    steps = len(SYSTEMS) * args.trials * sum(len(loads) for loads, *_rest in parts)
    with Progress("bench wire", steps) as progress:
        for loads, poll_us, tso in parts:
            setups = [Setup(transport, nic, poll_us=poll_us) for transport, nic in SYSTEMS]
            links = LinkOptions(tso=tso, nic=() if tso == "on" else ("tso=off",))
            rows += compare("back2back", links, setups, loads, args.trials, folder, progress, variant=f"tso {tso}")
        verdict = overall(rows)
        folder.write_run({"trials": args.trials}, environment(), 1, verdict, rows)
        folder.write_csv(rows)
        folder.hand_over()
    failed = [row for row in rows if row["errors"] or not row["content_ok"]]
    if failed:
        raise SmtError(f"{len(failed)} trials failed, first: {failed[0].get('first_error', 'wrong content')}")
    table = ratios(rows)
    if args.json:
        print(json.dumps({"ratios": table, "fidelity": verdict, "environment": environment(),
                          "results": str(folder.path)}))
    else:
        _print(table, rows)
    print(f"results: {folder.path}", file=sys.stderr)
    return 0


def ratios(rows: list[Row]) -> list[dict[str, Any]]:
    """One entry for each point: median figure of every system, and median ratio for :data:`RATIOS`.

    A round trip's ratio is good below 1, a rate's above.
    """
    points: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    for row in rows:
        value = metric(row)
        assert value is not None  # a failed trial ended the run
        key = (row["variant"], row["poll"], row["mode"], row["size"], row["concurrency"])
        points.setdefault(key, {}).setdefault(label(row), []).append(value)
    out = []
    for (variant, poll, mode, size, concurrency), by_system in points.items():
        median = {name: statistics.median(values) for name, values in by_system.items()}
        shares = {f"{ours}/{theirs}": statistics.median(a / b for a, b in zip(by_system[ours], by_system[theirs],
                                                                             strict=True))
                  for ours, theirs in RATIOS}
        out.append({"variant": variant, "poll": poll, "mode": mode, "size": size, "concurrency": concurrency,
                    "median": {name: round(value, 1) for name, value in median.items()},
                    "ratio": {name: round(value, 3) for name, value in shares.items()}})
    return out


def _print(table: list[dict[str, Any]], rows: list[Row]) -> None:
    kind = "compiled" if environment()["compiled"] else "interpreted"
    unfaithful = overall(rows)
    names = [system_label(*system) for system in SYSTEMS]
    print(f"echo on a cable, {kind}, {environment()['cpu']}")
    print(f"{'':>42}" + "".join(f"{name:>10}" for name in names) + "".join(f"{f'{a}/{b}':>12}" for a, b in RATIOS))
    for point in table:
        what = "RTT us" if point["mode"] == "unloaded" else "RPC/s"
        scale = 1.0
        if point["size"] == BULK_SIZE:
            what, scale = "MB/s", 2 * BULK_SIZE / 1e6
        many = f" x{point['concurrency']}" if point["concurrency"] > 1 else ""
        variant = f", {point['variant']}" if point["size"] == BULK_SIZE else ""
        head = f"{what} {size_text(point['size'])}{many}, {point['poll']}{variant}"
        print(f"{head:>42}" + "".join(f"{point['median'][name] * scale:>10,.1f}" for name in names)
              + "".join(f"{point['ratio'][f'{a}/{b}']:>12.2f}" for a, b in RATIOS))
    if not unfaithful["ok"]:
        print(f"not faithful: {unfaithful['unfaithful']} of {unfaithful['trials']} trials", file=sys.stderr)
        for reason in unfaithful["reasons"]:
            print(f"  {reason}", file=sys.stderr)
