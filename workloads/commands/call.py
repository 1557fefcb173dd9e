"""``smtnet call echo``: RPCs against echo servers, closed or open loop, every answer compared."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from smtstack import quantities
from smtstack.errors import ConfigError
from smtstack.exit_codes import EXIT_FAILED, EXIT_UNFAITHFUL
from smtstack.io.neighbours import obstacle
from smtstack.socket import Address
from smtstack.wire.ipv4 import address
from workloads import transports
from workloads.load.loops import WARM_UP, Load
from workloads.load.measure import LINGER_S, PERCENTILES, Point, Series, merge, result, write_raw
from workloads.load.workers import Job, Workers
from workloads.options import common as options
from workloads.options.common import DEFAULTS, add_caller_options, not_negative, parse_address, positive
from workloads.results.fidelity import shorten_pauses
from workloads.transports import PACKET_TRANSPORTS, STREAM_TRANSPORTS, Settings
from workloads.transports.sessions import summary

_EXAMPLES = """examples:
  smtnet call echo --iface va --addr 10.9.0.1:40000 --peer 10.9.0.2:2000 --certs certs/a --size 64 --count 1000
  smtnet call echo --iface va --addr 10.9.0.1:40000 --peer 10.9.0.2:2000 --certs certs/a \\
      --size 64,1024,65536 --seconds 5 --concurrency 50 --nic hw --json
  smtnet call echo --iface va --addr 10.9.0.1:40000 --peer 10.9.0.2:2000 --certs certs/a --session ticket-fs \\
      --dns 10.9.0.3 --size 64 --count 1000
  smtnet call echo --iface va --addr 10.9.0.1:40000 --peer 10.9.0.2:2000 --keys run.keys \\
      --size w3 --also 1000000x20 --count 10000 --concurrency 16
  smtnet call echo --iface h1-eth0 --addr 10.0.0.1:40000 --peer 10.0.0.2:2000 --transport homa --size 64 --count 1
  smtnet call echo --transport tcp --peer 10.0.0.2:2000 --size 1024 --rate 5000 --seconds 10

exit code: 0 ok, 1 an RPC failed or its answer was wrong, 2 usage, 3 the environment lacks something (root),
           4 the run was not faithful (see "fidelity")

docs/echo.md is the how-to.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser], only: str | None = None) -> None:
    """Add ``call`` and its subcommands ``echo``, ``kv`` and ``blocks``, of which only echo stays if ``only`` that
    is asked for."""
    call = commands.add_parser("call", help="clients on an interface", description="Clients on an interface.")
    actions = call.add_subparsers(dest="action", required=True, metavar="WHAT")
    echo = actions.add_parser(
        "echo", help="measure RPCs against an echo server", epilog=_EXAMPLES,
        description="As many RPCs as --concurrency says are under way (closed loop), or they come at --rate (open "
                    "loop); every answer is compared byte for byte. smt, homa, linux and upstream need root.")
    add_caller_options(echo)
    echo.add_argument("--size", type=quantities.sizes, default="64", metavar="B[,B...]",
                      help="request bytes, or what to draw them from: a workload, w1 to w5, or a file of sizes; "
                           "several are measured one after the other (default: 64)")
    echo.add_argument("--also", type=quantities.size_and_number, default="", metavar="BxN",
                      help="N more requests of B bytes, spread among the --count others")
    limit = echo.add_mutually_exclusive_group()
    limit.add_argument("--count", type=positive, metavar="N", help="RPCs of each size (default: 1000)")
    limit.add_argument("--seconds", type=quantities.SECONDS, metavar="S", help="time for each size")
    echo.add_argument("--concurrency", type=positive, default=1, metavar="C",
                      help="RPCs under way; 1 measures the unloaded round trip (default: 1)")
    echo.add_argument("--rate", type=quantities.PER_SECOND, default=0.0, metavar="R",
                      help="open loop: R RPC/s at random times, whether or not those before are answered; their "
                           "time counts from when they were due (default: closed loop)")
    echo.add_argument("--processes", type=positive, default=1, metavar="N",
                      help="do all this N times at once, each in a process of its own, on ports from that of "
                           "--addr on (default: 1)")
    echo.add_argument("--timeout", type=quantities.SECONDS, default=10.0, metavar="S",
                      help="give up an RPC after this long (default: 10); a silent peer is noticed sooner")
    echo.add_argument("--warm-up", type=not_negative, default=WARM_UP, metavar="N",
                      help="RPCs of each size before the measured ones (default: %(default)s)")
    echo.add_argument("--response-size", type=quantities.BYTES, metavar="B",
                      help="as given to the server, if it was")
    echo.add_argument("--canary", default="", metavar="TEXT",
                      help="payloads consist of TEXT, to look for it in captures (default: noise)")
    echo.add_argument("--seed", type=positive, default=1, help="of sizes, peers, arrivals (default: 1)")
    echo.add_argument("--raw", type=Path, metavar="FILE",
                      help="every round trip in ns, as little-endian u64; sizes that differ go to FILE.sizes")
    echo.add_argument("--json", action="store_true", help="one JSON object on stdout")
    echo.set_defaults(run=run_echo)
    if only != "echo":
        from workloads.commands import call_blocks, call_kv

        call_kv.add_parser(actions)
        call_blocks.add_parser(actions)


def run_echo(args: argparse.Namespace) -> int:
    """The subcommand."""
    peers = [parse_address(text) for text in args.peer]
    loads = _loads(args)
    settings = options.settings(args)
    options.check_trace(args, args.processes)
    if args.processes > 1:
        points, counters = _measure_shared(args, settings, peers, loads)
    else:
        points, counters = _measure(args, settings, peers, loads)
    sessions = summary(settings.session_mode, counters)
    results = [{**result(settings, load, point), **sessions} for load, point in zip(loads, points, strict=False)]
    silent = any(each.get("unresolved") for each in counters) or not any(each.get("socket_received")
                                                                         for each in counters)
    if args.raw is not None:
        write_raw(args.raw, loads[0], points[0].tally)
    if args.json:
        print(json.dumps(results[0] if len(loads) == 1 else {"results": results}))
    elif any(r["rpcs"] for r in results):
        _print_table(args, results)
    return _conclude(args, results, silent)


def _loads(args: argparse.Namespace) -> list[Load]:
    """One for each size; raises :class:`ConfigError`."""
    longest = DEFAULTS.max_message_length
    if (args.response_size or 1) > longest:
        raise ConfigError(f"a message of {args.response_size} bytes; at most {longest} are possible")
    sizes = args.size.split(",")
    if args.raw is not None and len(sizes) > 1:
        raise ConfigError("--raw takes one --size: a file is of one")
    count = None if args.seconds else args.count or 1000
    return [Load(size, args.also, count, args.seconds, args.concurrency, args.rate, args.timeout, args.warm_up,
                 args.canary, args.seed, args.response_size) for size in sizes]


def _measure(args: argparse.Namespace, settings: Settings, peers: list[Address],
             loads: list[Load]) -> tuple[list[Point], list[dict[str, int]]]:
    """(a point for each load, what the socket counted); stops at a load of which nothing came."""
    points = []
    with transports.open_caller(settings, peers, args.connections) as caller:
        series = Series(caller)
        shorten_pauses()
        for load in loads:
            points.append(series.measure(load))
            if points[-1].tally.first_error and not points[-1].tally.rtt_ns:
                break
        caller.linger(LINGER_S)
        return points, [caller.counters()]


def _measure_shared(args: argparse.Namespace, settings: Settings, peers: list[Address],
                    loads: list[Load]) -> tuple[list[Point], list[dict[str, int]]]:
    """Measure all loads by ``args.processes`` processes at once, new ones for each load."""
    points: list[Point] = []
    counters: list[dict[str, int]] = []
    for load in loads:
        jobs = [_job(args, _on_port(settings, number), peers, dataclasses.replace(load, seed=load.seed + number))
                for number in range(args.processes)]
        with Workers(jobs, "echo client") as workers:
            workers.hear(None)
            workers.tell("go")
            shares = workers.hear(None)
        points.append(merge([point for point, _counters in shares]))
        counters += [counted for _point, counted in shares]
        if points[-1].tally.first_error and not points[-1].tally.rtt_ns:
            break
    return points, counters


def _job(args: argparse.Namespace, settings: Settings, peers: list[Address], load: Load) -> Job:
    def job(pipe: Connection) -> tuple[Point, dict[str, int]]:
        def meet() -> None:
            pipe.send("ready")
            pipe.recv()

        with transports.open_caller(settings, peers, args.connections) as caller:
            point = Series(caller).measure(load, meet)
            caller.linger(LINGER_S)
            return point, caller.counters()

    return job


def _on_port(settings: Settings, number: int) -> Settings:
    """The settings of process ``number``."""
    if settings.local is None or settings.transport in STREAM_TRANSPORTS:
        return settings
    ip, port = settings.local
    if port + number > 0xFFFF:
        raise ConfigError(f"{number + 1} processes need as many ports, and from {port} there are fewer")
    return dataclasses.replace(settings, local=(ip, port + number))


def _conclude(args: argparse.Namespace, results: list[dict[str, Any]], silent: bool) -> int:
    """What people should know, on stderr; the exit code."""
    errors = [r["error"] for r in results if "error" in r]
    if errors:
        print(f"smtnet: {errors[0]}{_hint(args, results, silent)}", file=sys.stderr)
    faithful = True
    for r in results:
        # Of a size that failed altogether there is nothing to be faithful.
        if r["rpcs"] and not r["fidelity"]["ok"]:
            faithful = False
            why = "; ".join(r["fidelity"]["reasons"])
            print(f"smtnet: size {r['size']}: not faithful: {why}", file=sys.stderr)
        if not r.get("open_loop", {"kept_up": True})["kept_up"]:
            print(f"smtnet: size {r['size']}: could not keep up with {args.rate:g} RPC/s: the last answer came "
                  f"{r['open_loop']['drain_ms']:.0f} ms after the last request was due", file=sys.stderr)
    if errors:
        return EXIT_FAILED
    return 0 if faithful else EXIT_UNFAITHFUL


def _hint(args: argparse.Namespace, results: list[dict[str, Any]], silent: bool) -> str:
    if any(r["rpcs"] for r in results):
        if args.transport in PACKET_TRANSPORTS and not results[-1]["rpcs"]:
            return ("; shorter messages passed: do all links on the way take packets as long as those of "
                    f"{args.iface or 'ours'}? 'ip link' shows MTUs, --mtu takes less")
        return ""
    if silent and args.transport in PACKET_TRANSPORTS:
        seen = obstacle([address(parse_address(peer)[0]) for peer in args.peer], args.iface)
        if seen:
            return f"; {seen}"
    if args.transport in PACKET_TRANSPORTS and args.keys is not None:
        return "; is the server running, with the same keys and MTU?"
    return "; is the server running?"


def _print_table(args: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    nic = f", nic {args.nic}" if args.transport in PACKET_TRANSPORTS else ""
    load = f"{args.rate:g} RPC/s" if args.rate else f"{args.concurrency} under way"
    many = f" in each of {args.processes} processes" if args.processes > 1 else ""
    print(f"echo {args.addr or 'here'} -> {', '.join(args.peer)}, {args.transport}{nic}, {load}{many}; "
          "round trips in us")
    names = ("min", *(name for name, _share in PERCENTILES), "max", "mean")
    print(f"{'bytes':>9}{'rpcs':>9}{'errors':>8}{'rpc/s':>10}" + "".join(f"{name:>10}" for name in names))
    for r in results:
        weak = {n for n, stands in r["fidelity"].get("figures", {}).items() if not stands}
        rtt = "".join(f"{'-' if r['rtt_us'][n] is None else format(r['rtt_us'][n], '.1f') + '~' * (n in weak):>10}"
                      for n in names)
        rate = f"{r['rpc_per_s']:,.0f}" + "~" * ("rpc_per_s" in weak)
        print(f"{r['size']:>9}{r['rpcs']:>9}{r['errors']:>8}{rate:>10}{rtt}")
