"""``smtnet bench memory``: how fast the protocol code is here, as ratios within one run.

The in-memory pair: client, server and two devices in one thread, no kernel, no wire. What it measures is
the cost of the stack itself; a run on real interfaces adds system calls.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import platform
import pstats
import statistics
import sys
import time
from typing import Any

from smtstack import compiled, quantities
from smtstack.errors import SmtError
from smtstack.nic.device import NicConfig
from smtstack.sim.pair import MemoryPair
from smtstack.transport.events import Event, Request, Response
from smtstack.transport.params import TransportParams
from workloads.experiments import bench_wire

#: Outstanding RPCs of the closed loop.
CONCURRENCY = 16
#: Virtual time between two exchanges of frames.
STEP_NS = 200_000
#: (profile, device seals): the rows of the table.
SYSTEMS = {"homa": ("homa", False), "smt-sw": ("smt", False), "smt-hw": ("smt", True),
           "linux-sw": ("linux", False)}
SMALL_SIZES = (64, 1024)
BULK_SIZE = 1_000_000
#: Where a profiled function's time is booked.
_LAYERS = ("wire", "crypto", "transport", "nic", "workloads")


class EchoLoop:
    """Closed loop of echo RPCs of one size; every reply is compared with what was sent."""

    def __init__(self, profile: str, offload: bool, size: int) -> None:
        # Nothing here waits for a link: a pacer that ever said "wait" would be all that is measured.
        params = TransportParams(link_mbps=1_000_000_000, max_nic_queue_ns=10**15)
        self.pair = MemoryPair(profile, params, NicConfig(tls_hw_tx_offload=offload))
        self.data = bytes(i * 7 & 0xFF for i in range(size))

    def _serve(self, event: Event) -> None:
        if isinstance(event, Request):
            self.pair.server.endpoint.send_reply(event.rpc, event.data, self.pair.now)

    def run(self, count: int, concurrency: int = CONCURRENCY) -> float:
        """Seconds of processor time for ``count`` round trips; raises SmtError on a wrong answer."""
        pair = self.pair
        data = self.data
        sent = min(concurrency, count)
        done = 0
        start = time.process_time()
        for _ in range(sent):
            pair.request(data)
        while done < count:
            # About the time it takes: a clock that stood still would never let go of timers.
            pair.elapse(STEP_NS)
            for event in pair.step(self._serve):
                if not isinstance(event, Response) or event.data != data:
                    raise SmtError(f"echo went wrong: {event}")
                done += 1
                if sent < count:
                    sent += 1
                    pair.request(data)
        return time.process_time() - start


def measure(system: str, size: int, count: int, rounds: int) -> list[float]:
    """RPC/s of every round, after a warm-up."""
    loop = EchoLoop(*SYSTEMS[system], size)
    loop.run(max(20, count // 10))
    gc.collect()
    return [count / loop.run(count) for _ in range(rounds)]


def profile_small(count: int = 20_000) -> dict[str, Any]:
    """Where the time of a 64-byte RPC goes: own time by layer, and the ten dearest functions.

    The profiler slows everything down, calls most; shares are a guide, not a measurement.
    """
    loop = EchoLoop("smt", False, 64)
    loop.run(2000)
    profiler = cProfile.Profile()
    profiler.enable()
    loop.run(count)
    profiler.disable()
    layers = dict.fromkeys((*_LAYERS, "AES-GCM", "built-ins"), 0.0)
    functions: list[tuple[float, str]] = []
    for (path, _line, name), (_cc, calls, own, _cum, _callers) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        layer = next((x for x in _LAYERS if f"/{x}/" in path), "built-ins")
        if layer == "built-ins" and ("AESGCM" in name or "aead" in name):
            layer = "AES-GCM"
        layers[layer] += own
        functions.append((own, f"{layer}: {name.strip('<>')} x{calls / count:.1f}"))
    total = sum(layers.values())
    return {"share": {k: round(v / total, 3) for k, v in layers.items()},
            "dearest": [f"{own / total:.1%} {name}" for own, name in sorted(functions, reverse=True)[:10]]}


def run_bench(quick: bool, rounds: int) -> dict[str, Any]:
    """Every figure of the table."""
    small, bulk = (4000, 20) if quick else (20_000, 100)
    result: dict[str, Any] = {
        "python": platform.python_version(), "protocol_code": compiled.description(), "concurrency": CONCURRENCY,
        "rounds": rounds, "rpc_per_s": {}, "mb_per_s": {}}
    # Interleaved: a machine that slows down in mid-run slows all systems down.
    samples: dict[tuple[str, int], list[float]] = {}
    for turn in range(rounds):
        for system in SYSTEMS:
            for size in (*SMALL_SIZES, BULK_SIZE):
                _progress(f"bench: round {turn + 1} of {rounds}, {system} {size} B")
                count = bulk if size == BULK_SIZE else small
                samples.setdefault((system, size), []).extend(measure(system, size, count, 1))
    _progress("")
    for (system, size), rates in samples.items():
        middle = statistics.median(rates)
        if size == BULK_SIZE:
            # Both directions carry the message.
            result["mb_per_s"][system] = round(2 * middle * size / 1e6, 1)
        else:
            spread = {"median": round(middle), "min": round(min(rates)), "max": round(max(rates))}
            result["rpc_per_s"].setdefault(str(size), {})[system] = spread
    at64 = {s: v["median"] for s, v in result["rpc_per_s"]["64"].items()}
    result["ratios_64B"] = {"smt-sw/homa": round(at64["smt-sw"] / at64["homa"], 3),
                            "smt-hw/smt-sw": round(at64["smt-hw"] / at64["smt-sw"], 3)}
    # The profiler sees calls of Python functions: compiled ones have none.
    result["profile_64B_smt_sw"] = None if compiled.is_compiled() else profile_small(4000 if quick else 20_000)
    return result


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:60}\r", end="", file=sys.stderr, flush=True)


def _print_table(result: dict[str, Any]) -> None:
    print(f"In-memory pair, {result['protocol_code']}, Python {result['python']}, {CONCURRENCY} outstanding, processor time, "
          f"median of {result['rounds']}")
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
    result = run_bench(args.quick, args.rounds)
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
