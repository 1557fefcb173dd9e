"""``smtnet interop``: RPCs with a kernel module's echo server, over a matrix of what may make a difference."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from smtstack import quantities
from smtstack.errors import ConfigError
from smtstack.io.packet_socket import interface_mtu
from smtstack.socket import SmtContext
from smtstack.transport.params import SOFTWARE
from workloads.load.interop import SHAPES, Outcome, cells, measure
from workloads.options.common import check_address, parse_address, parse_param

_EXAMPLES = """examples:
  smtnet interop --iface eth0 --addr 10.8.0.2:40000 --peer 10.8.0.1:2500
  smtnet interop --iface eth0 --addr 10.8.0.2:40000 --peer 10.8.0.1:2500 --loss 0,10% --under-way 1,16 --json
  smtnet interop --iface eth0 --addr 10.8.0.2:40000 --peer 10.8.0.1:2500 --profile linux --keys demo

The peer answers each request with the same bytes; 'smtnet serve echo' does, too.

exit code: 0 if every RPC was answered with the right bytes, else 1

docs/real-module.md says what to set at the module.
"""
_SIZES = "1,64,1424,1425,20000,40001,100000,500000"


def _sizes(text: str) -> list[int]:
    return [quantities.BYTES(part) for part in text.split(",")]


def _numbers(text: str) -> list[int]:
    return [quantities.POSITIVE(part) for part in text.split(",")]


def _shares(text: str) -> list[float]:
    return [quantities.FRACTION(part) for part in text.split(",")]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``interop``."""
    parser = commands.add_parser(
        "interop", help="RPCs with a kernel module: sizes, shapes, losses", epilog=_EXAMPLES,
        description="Ask an echo server of a kernel module: each size, in each shape of packets, with each loss "
                    "and number under way; every answer is compared byte for byte. Needs root.")
    parser.add_argument("--iface", required=True, metavar="I", help="network interface")
    parser.add_argument("--addr", required=True, metavar="IP:PORT", help="our address at it")
    parser.add_argument("--peer", required=True, metavar="IP:PORT", help="the server")
    parser.add_argument("--profile", choices=tuple(SHAPES), default="upstream", help="(default: %(default)s)")
    parser.add_argument("--keys", metavar="FILE|demo", help="of profile linux")
    parser.add_argument("--sizes", type=_sizes, default=_SIZES, metavar="N,...",
                        help="bytes (default: %(default)s)")
    parser.add_argument("--under-way", type=_numbers, default="1,16", metavar="N,...",
                        help="RPCs at a time (default: %(default)s)")
    parser.add_argument("--loss", type=_shares, default="0", metavar="SHARE,...",
                        help="of the frames, each way, at our emulated NIC, as 0,10%% (default: %(default)s)")
    parser.add_argument("--count", type=quantities.POSITIVE, default=20, metavar="N",
                        help="RPCs of a cell (default: %(default)s)")
    parser.add_argument("--param", action="append", default=[], metavar="NAME=VALUE",
                        help="a parameter of the transport, as timeout_ticks=1000 (repeatable)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The subcommand."""
    if args.profile == "linux" and args.keys is None:
        raise ConfigError("linux needs --keys FILE, or --keys demo: the module's public keys")
    if any(loss >= 1 for loss in args.loss):
        raise ConfigError("with a loss of 100% there is nothing to be seen")
    given = dict(map(parse_param, args.param))
    params = dataclasses.replace(SOFTWARE, **{"mtu": min(interface_mtu(args.iface), 65535), **given})
    if max(args.sizes) > params.max_message_length:
        raise ConfigError(f"sizes: a message has at most {params.max_message_length} bytes")
    context = SmtContext(args.iface, args.profile, args.keys, params)
    local, peer = parse_address(args.addr), parse_address(args.peer)
    check_address(args.iface, local)
    outcomes = []
    wanted = cells(args.profile, args.loss, args.under_way, args.sizes)
    for outcome in measure(wanted, args.count, context, local, peer):
        outcomes.append(outcome)
        print(_line(outcome), file=sys.stderr if args.json else sys.stdout, flush=True)
    good = all(outcome.good for outcome in outcomes)
    if args.json:
        rows = [dataclasses.asdict(o.cell) | {k: v for k, v in dataclasses.asdict(o).items() if k != "cell"}
                for o in outcomes]
        print(json.dumps({"profile": args.profile, "peer": args.peer, "count": args.count, "ok": good,
                          "cells": rows}))
    return 0 if good else 1


def _line(o: Outcome) -> str:
    cell = o.cell
    said = (f"{cell.shape:8} loss {cell.loss:4.0%} {cell.under_way:>3} under way {cell.size:>8} B: "
            f"{o.answered} answered")
    if o.median_us is not None:
        said += f", median {o.median_us:,.0f} us"
    if o.packets_resent or o.resends:
        said += f", {o.packets_resent} packets sent again, {o.resends} RESENDs"
    if o.wrong:
        said += f", {o.wrong} WRONG"
    return f"{said}, {o.failed} FAILED: {o.error}" if o.failed else said
