"""``smtnet bench memory``: how fast the protocol code is here, as ratios within one run."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from smtstack import quantities
from workloads.experiments import bench_aims, bench_ktls, bench_wire
from workloads.load.memory_echo import CONCURRENCY, SYSTEMS, run_bench


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:60}\r", end="", file=sys.stderr, flush=True)


def _print_table(result: dict[str, Any]) -> None:
    print(f"In-memory pair, {result['protocol_code']}, Python {result['python']}, {CONCURRENCY} outstanding, "
          f"processor time, median of {result['rounds']}")
    print(f"{'':10}{'RPC/s 64 B':>14}{'RPC/s 1 KB':>14}{'MB/s 1 MB':>12}")
    for system in SYSTEMS:
        print(f"{system:10}{result['rpc_per_s']['64'][system]['median']:>14,}"
              f"{result['rpc_per_s']['1024'][system]['median']:>14,}{result['mb_per_s'][system]:>12,}")
    print("ratios at 64 B: " + ", ".join(f"{k} {v}" for k, v in result["ratios_64B"].items()))
    profile = result["profile_64B_smt_sw"]
    if profile is None:
        return
    print("time of a 64 B smt-sw RPC: " + ", ".join(f"{k} {v:.0%}" for k, v in profile["share"].items()))
    for line in profile["dearest"]:
        print("  " + line)


def run(args: argparse.Namespace) -> int:
    """The subcommand."""
    result = run_bench(args.quick, args.rounds, _progress)
    if args.json:
        print(json.dumps(result))
    else:
        _print_table(result)
    return 0


def add_parser(commands: Any) -> None:
    """Register ``smtnet bench memory``, and ``wire`` beside it."""
    bench = commands.add_parser("bench", help="speed on this machine", description="Speed on this machine.")
    kinds = bench.add_subparsers(dest="kind", required=True, metavar="WHAT")
    memory = kinds.add_parser(
        "memory", help="the protocol code alone", formatter_class=argparse.HelpFormatter,
        description="RPC/s and MB/s of an in-memory pair (client, server, two devices, one core), and "
                    "where the microseconds go.",
        epilog="example: smtnet bench memory --rounds 5 --json")
    memory.add_argument("--rounds", type=quantities.POSITIVE, default=3, metavar="N",
                        help="rounds; the median counts (default 3)")
    memory.add_argument("--quick", action="store_true", help="a fifth of the RPCs: noisier")
    memory.add_argument("--json", action="store_true", help="one JSON object on stdout")
    memory.set_defaults(run=run)
    bench_wire.EXPERIMENT.add(kinds)
    bench_ktls.EXPERIMENT.add(kinds)
    bench_aims.EXPERIMENT.add(kinds)
