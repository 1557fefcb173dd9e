"""``smtnet run echo``: an echo experiment on an emulated topology, from nothing to a result folder.

run_kv.py adds ``smtnet run kv``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from contextlib import nullcontext
from typing import Any

from smtstack import quantities
from smtstack.errors import ConfigError
from topo import sandbox
from topo.topologies import TOPOS
from workloads import transports
from workloads.fleet.captures import Captures
from workloads.fleet.fleet import Fleet
from workloads.fleet.setup import PATTERNS, Setup
from workloads.load import distributions
from workloads.load.loops import Load
from workloads.options import common as options
from workloads.options.network import add_network_options, check_network, open_net
from workloads.options.session import add_experiment_sessions, check_sessions, session_words
from workloads.results import outcome
from workloads.results.progress import Progress
from workloads.results.rows import Point, ResultFolder, Row, middle
from workloads.results.table import print_table
from workloads.transports import PACKET_TRANSPORTS

_EXAMPLES = """examples:
  smtnet run echo --topo back2back --transport smt --size 64 --count 10000
  smtnet run echo --topo star,4 --transport smt --nic hw --size w3 --also 1000000x200 --count 100000 \\
      --pattern all --concurrency 16
  smtnet run echo --topo star,4 --transport smt --loss 1% --reorder 1% --size w3 --count 10000
  smtnet run echo --topo dumbbell,2 --transport tls --rate-mbps 100 --size 1024 --seconds 5 --concurrency 50 --json

exit code: 0 ok, 1 an RPC failed or an answer was wrong, 2 usage, 3 the machine lacks something
           ('smtnet doctor' says what), 4 the run was not faithful (--allow-unfaithful: 0 then)

The network lives in namespaces of its own, with its own Open vSwitch: nothing has to be cleaned up, and
several runs do not meet. Results are in results/<UTC time>-echo/; 'smtnet report' draws them again.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``run`` and its subcommands."""
    from workloads.experiments import fanout as run_fanout
    from workloads.experiments import incast as run_incast
    from workloads.experiments import kv as run_kv
    from workloads.experiments.mix import run as run_mix
    from workloads.experiments.priorities import run as run_priorities

    run = commands.add_parser("run", help="experiments on emulated topologies",
                              description="Experiments on emulated topologies. Need root.")
    actions = run.add_subparsers(dest="action", required=True, metavar="WHAT")
    echo = actions.add_parser(
        "echo", help="RPC echo, every answer compared", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="RPC echo over a topology. Every answer is compared byte for byte.")
    add_experiment_options(echo)
    echo.add_argument("--pattern", default="topo", metavar="P",
                      help="; ".join(f"{name}: {what}" for name, what in PATTERNS.items())
                      + "; h1:h3,h2:h4: these (default: %(default)s)")
    echo.add_argument("--size", type=quantities.sizes, default="64", metavar="B|W|FILE",
                      help="request bytes, or drawn from a workload "
                      f"({', '.join(distributions.WORKLOADS)}) or a file of sizes (default: %(default)s)")
    echo.add_argument("--response-size", type=quantities.BYTES, metavar="B",
                      help="bytes of an answer (default: the request comes back)")
    echo.add_argument("--also", type=quantities.size_and_number, default="", metavar="BxN",
                      help="N messages of B bytes among the others")
    limit = echo.add_mutually_exclusive_group()
    limit.add_argument("--count", type=options.positive, metavar="N", help="RPCs in all (default: 1000)")
    limit.add_argument("--seconds", type=quantities.SECONDS, metavar="S", help="time for each trial")
    echo.add_argument("--concurrency", type=options.positive, default=1, metavar="C",
                      help="RPCs under way in all; 1 measures the unloaded round trip (default: 1)")
    echo.add_argument("--rate", type=quantities.PER_SECOND, default=0.0, metavar="R",
                      help="open loop: R RPC/s in all, at random times (default: closed loop)")
    echo.add_argument("--workers", type=options.positive, default=1, metavar="W",
                      help="server processes a host, sharing one port (default: 1)")
    echo.add_argument("--keys", choices=("demo",), default="",
                      help="the kernel module's public keys, transport linux only (default: throw-away keys)")
    echo.add_argument("--canary", default="", metavar="TEXT",
                      help="text in every payload, which captures are searched for")
    echo.add_argument("--timeout", type=quantities.SECONDS, default=10.0, metavar="S",
                      help="give up an RPC after this long (default: 10)")
    echo.add_argument("--seed", type=options.positive, default=1, help="of sizes, arrivals, faults (default: 1)")
    echo.set_defaults(run=run_echo)
    run_kv.add_parser(actions)
    run_fanout.add_parser(actions)
    run_incast.add_parser(actions)
    run_mix.add_parser(actions)
    run_priorities.add_parser(actions)


def add_experiment_options(parser: argparse.ArgumentParser) -> None:
    """What every experiment takes: where, over what, how often, and what becomes of the results."""
    parser.add_argument("--topo", default="back2back", metavar="T",
                        help=f"{', '.join(TOPOS)} with arguments, as star,4 (default: %(default)s)")
    parser.add_argument("--transport", choices=transports.NAMES, default="smt", help="(default: %(default)s)")
    parser.add_argument("--nic", choices=("sw", "hw"), default="sw",
                        help="who seals SMT's records: software, or the NIC's TLS offload (default: %(default)s)")
    parser.add_argument("--processes", type=options.positive, default=1, metavar="P",
                        help="client processes a host (default: 1)")
    parser.add_argument("--connections", type=options.positive, default=0, metavar="N",
                        help="tcp, tls, ktls: connections of a client process, RPCs pipelined "
                             "(default: one an RPC)")
    parser.add_argument("--poll-us", type=quantities.WHOLE_MICROSECONDS, default=0, metavar="US",
                        help="busy-wait this long before sleeping (default: 0)")
    options.add_experiment_param(parser)
    add_experiment_sessions(parser)
    parser.add_argument("--keylog", action="store_true",
                        help="smt: keep certificates and the secrets of all sessions in hosts/.../keys/, for "
                             "'smtnet pcap decrypt' (default: kept nowhere; --capture keeps them, too)")
    parser.add_argument("--trials", type=options.positive, default=3, metavar="N",
                        help="the middle one is quoted (default: %(default)s)")
    add_network_options(parser)
    parser.add_argument("--capture", action="store_true",
                        help="record every host's interface into pcap/, verify the captures, and keep the keys")
    options.add_result_options(parser)


def transport_words(args: argparse.Namespace) -> tuple[str, ...]:
    """``--param`` and what sessions agree on again, for servers and clients. Raises :class:`ConfigError`."""
    if args.param and args.transport not in PACKET_TRANSPORTS:
        raise ConfigError(f"--param is for {', '.join(PACKET_TRANSPORTS)}; {args.transport} has none of ours")
    check_sessions(args, [args.transport])
    if args.keylog and args.transport != "smt":
        raise ConfigError(f"--keylog is for transport smt, not for {args.transport}")
    return (*options.param_words(args.param), *session_words(args, args.transport))


def run_echo(args: argparse.Namespace) -> int:
    """The subcommand: checks everything that can be checked, then goes on in namespaces of its own."""
    setup = Setup(args.transport, args.nic, args.pattern, args.processes, args.workers, args.connections,
                  args.poll_us, args.keys, args.session or "", transport_words(args),
                  ("--response-size", str(args.response_size)) if args.response_size else ())
    load = Load(args.size, args.also, None if args.seconds else args.count or 1000, args.seconds,
                args.concurrency, args.rate, timeout=args.timeout, canary=args.canary, seed=args.seed,
                response_size=args.response_size)
    check_network(args)
    transports.check(args.transport)
    if not sandbox.inside():
        return sandbox.run(sys.argv[1:])
    folder = ResultFolder.create("echo", args.results)
    with Progress(f"run echo, {args.transport} on {args.topo}", args.trials) as progress:
        rows, judged = _measure(args, setup, load, folder, progress)
    return conclude(args, folder, rows, judged)


def _measure(args: argparse.Namespace, setup: Setup, load: Load, folder: ResultFolder,
             progress: Progress) -> tuple[list[Row], dict[str, Any] | None]:
    """(a row for each trial, what the captures prove)."""
    rows = []
    with open_net(args, folder, progress) as net:
        captures = Captures(net, folder.path / "pcap") if args.capture else nullcontext()
        # A capture of a run whose keys are gone would be worth little.
        keep_keys = args.capture or args.keylog
        with captures, Fleet(net, args.topo, setup, folder.path / "hosts", keep_keys=keep_keys) as fleet:
            for trial in range(1, args.trials + 1):
                progress.step(f"trial {trial} of {args.trials}")
                measured = fleet.measure(dataclasses.replace(load, seed=args.seed + trial - 1), trial)
                rows.append(measured.row)
                folder.save_raw(f"trial{trial}", measured.rtt_ns)
                if measured.tags:
                    folder.save_raw(f"trial{trial}.sizes", measured.tags)
                if measured.row["errors"] or not measured.row["content_ok"]:
                    break
        folder.write("counters.json", json.dumps(fleet.counters, indent=1) + "\n")
    judged = None
    if isinstance(captures, Captures):
        progress.say("verifying the captures")
        judged = captures.judge(fleet, args.canary.encode())
    return rows, judged


def conclude(args: argparse.Namespace, folder: ResultFolder, rows: list[Row],
             judged: dict[str, Any] | None, **more: Any) -> int:
    """Write, print; the exit code. ``more`` are further fields of the JSON."""
    verdict = outcome.save(args, folder, rows)
    point = middle(rows)
    result = {**point.quoted, "errors": point.errors, "content_ok": point.content_ok, "fidelity": verdict,
              "trials": [row["rtt_us"]["p50"] if row["mode"] == "unloaded" else row["rpc_per_s"] for row in rows],
              "results": str(folder.path), **more}
    if judged is not None:
        result["capture"] = judged
    if args.json:
        print(json.dumps(result))
    else:
        print_table(rows)
        for line in [*outcome.session_lines(rows), *fabric_lines(point.quoted.get("fabric", {}))]:
            print(line)
        if judged is not None:
            print("captures: " + ", ".join(f"{k} {v}" for k, v in judged.items()))
    print(f"results: {folder.path}", file=sys.stderr)
    return outcome.exit_code(args, verdict, _failed(args, rows, point, judged))


def fabric_lines(octets: dict[str, int]) -> list[str]:
    """What each switch sent to which others in the quoted trial, busiest first; nothing where there is one
    switch."""
    by_switch: dict[str, list[str]] = {}
    for way, sent in sorted(octets.items(), key=lambda item: -item[1]):
        switch, _to, other = way.partition(">")
        by_switch.setdefault(switch, []).append(f"{other} {sent / 1e6:.2f}")
    return [f"MB from {switch} to: {', '.join(ways)}" for switch, ways in by_switch.items()]


def _failed(args: argparse.Namespace, rows: list[Row], point: Point, judged: dict[str, Any] | None) -> str:
    """What did, or ""."""
    if point.failed:
        return outcome.first_error(rows) or f"{point.errors} RPCs failed"
    if judged is not None and (judged.get("records_bad") or judged.get("nonce_reuse") or
                               (judged["canary_frames"] and args.transport in transports.ENCRYPTED)):
        return "the captures hold what they must not: bad records, a nonce used twice or plaintext"
    return ""
