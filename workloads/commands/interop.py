"""``smtnet interop``: RPCs with a kernel module, over a matrix of what may make a difference."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from smtstack import quantities
from smtstack.errors import ConfigError
from smtstack.io.key_file import IN_CLEAR
from smtstack.io.packet_socket import interface_mtu
from smtstack.socket import SmtContext
from smtstack.transport.params import SOFTWARE
from workloads.load.interop import SHAPES, WHOLE_SIZES, Cell, Outcome, cells, faults, measure, serve
from workloads.options.common import check_address, parse_address, parse_param

_EXAMPLES = """examples:
  smtnet interop --iface eth0 --addr 10.8.0.2:40000 --peer 10.8.0.1:2500
  smtnet interop --iface eth0 --addr 10.8.0.2:40000 --peer 10.8.0.1:2500 --loss 0,10% --under-way 1,16 --json
  smtnet interop --iface eth0 --addr 10.8.0.2:40000 --peer 10.8.0.1:2500 --profile linux --keys demo --whole
  smtnet interop --iface eth0 --addr 10.8.0.2:40000 --peer 10.8.0.1:2500 --profile linux --keys none
  smtnet interop --iface eth0 --addr 10.8.0.2:2500 --role server --seconds 60 --profile linux --keys demo

As a client: the peer answers each request with the same bytes; 'smtnet serve echo' does, too. As a server: so do
we, for so long with each shape and fault, and programs of the module's host ask.

exit code: 0 if every RPC was answered with the right bytes (server: if each time somebody asked), else 1

docs/real-module.md says what to set at the module.
"""
_SIZES = (1, 64, 1424, 1425, 20_000, 40_001, 100_000, 500_000)
_UNDER_WAY, _WHOLE_UNDER_WAY = (1, 16), (1, 16, 64)
#: Shares of frames lost, and shares that come late.
_FAULTS: tuple[Sequence[float], Sequence[float]] = (0.0,), ()
_WHOLE_FAULTS: tuple[Sequence[float], Sequence[float]] = (0.0, 0.1), (0.2,)


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
        description="Ask an echo server of a kernel module, or be asked: each size, in each shape of packets, "
                    "with each fault and number under way; every answer is compared byte for byte. Needs root.")
    parser.add_argument("--iface", required=True, metavar="I", help="network interface")
    parser.add_argument("--addr", required=True, metavar="IP:PORT", help="our address at it")
    parser.add_argument("--role", choices=("client", "server"), default="client",
                        help="who we are (default: %(default)s)")
    parser.add_argument("--peer", metavar="IP:PORT", help="the server, where we are the client")
    parser.add_argument("--seconds", type=quantities.SECONDS, default=60.0, metavar="S",
                        help="server: time for each shape and fault (default: 60)")
    parser.add_argument("--profile", choices=tuple(SHAPES), default="upstream", help="(default: %(default)s)")
    parser.add_argument("--keys", metavar="FILE|demo|none",
                        help="of profile linux; none: its plain Homa, in clear")
    parser.add_argument("--whole", action="store_true",
                        help="all of the matrix: 17 sizes, 1, 16 and 64 under way, without a fault, with 10%% "
                             "lost, with 20%% out of order; what is said otherwise counts")
    parser.add_argument("--sizes", type=_sizes, metavar="N,...",
                        help=f"bytes (default: {','.join(map(str, _SIZES))})")
    parser.add_argument("--under-way", type=_numbers, metavar="N,...", help="RPCs at a time (default: 1,16)")
    parser.add_argument("--loss", type=_shares, metavar="SHARE,...",
                        help="of the frames, each way, at our emulated NIC, as 0,10%% (default: 0)")
    parser.add_argument("--reorder", type=_shares, metavar="SHARE,...",
                        help="of the frames, each way, that come 4 ms later, as 20%%: a column of its own for "
                             "each (default: none)")
    parser.add_argument("--count", type=quantities.POSITIVE, metavar="N",
                        help="client: RPCs of a cell (default: 20); server: go on after N, though it is not time")
    parser.add_argument("--param", action="append", default=[], metavar="NAME=VALUE",
                        help="a parameter of the transport, as timeout_ticks=1000 (repeatable)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The subcommand."""
    losses, reorders = _WHOLE_FAULTS if args.whole else _FAULTS
    losses = losses if args.loss is None else args.loss
    reorders = reorders if args.reorder is None else args.reorder
    under_way = args.under_way or (_WHOLE_UNDER_WAY if args.whole else _UNDER_WAY)
    sizes = args.sizes or (WHOLE_SIZES[args.profile] if args.whole else _SIZES)
    if args.profile == "linux" and args.keys is None:
        raise ConfigError("linux needs --keys FILE, or --keys demo: the module's public keys, or --keys none: its "
                          "plain Homa, in clear")
    if args.profile != "linux" and args.keys is not None:
        raise ConfigError(f"--keys is for --profile linux; {args.profile} is in clear and has none")
    if args.role == "client" and args.peer is None:
        raise ConfigError("a client needs a server: --peer IP:PORT (or be one: --role server)")
    if any(share >= 1 for share in losses):
        raise ConfigError("with a loss of 100% there is nothing to be seen")
    given = dict(map(parse_param, args.param))
    params = dataclasses.replace(SOFTWARE, **{"mtu": min(interface_mtu(args.iface), 65535), **given})
    if max(sizes) > params.max_message_length:
        raise ConfigError(f"sizes: a message has at most {params.max_message_length} bytes")
    context = SmtContext(args.iface, args.profile, args.keys, params)
    local = parse_address(args.addr)
    check_address(args.iface, local)
    columns = faults(losses, reorders)
    if args.role == "server":
        asked = serve(args.profile, columns, args.seconds, args.count, context, local,
                      lambda cell: _say_ready(args, cell))
    else:
        wanted = cells(args.profile, columns, under_way, sizes)
        asked = measure(wanted, args.count or 20, context, local, parse_address(args.peer))
    outcomes = []
    for outcome in asked:
        outcomes.append(outcome)
        print(_line(outcome), file=sys.stderr if args.json else sys.stdout, flush=True)
    good = all(outcome.good for outcome in outcomes)
    if args.role == "server":
        good &= len({_column(o.cell) for o in outcomes}) == len(SHAPES[args.profile]) * len(columns)
    encrypted = args.profile == "linux" and args.keys != IN_CLEAR
    if args.json:
        rows = [dataclasses.asdict(o.cell) | {k: v for k, v in dataclasses.asdict(o).items() if k != "cell"}
                for o in outcomes]
        print(json.dumps({"profile": args.profile, "encrypted": encrypted, "role": args.role, "peer": args.peer,
                          "count": args.count or 20, "ok": good, "cells": rows}))
    else:
        _print_table(outcomes, args.profile if encrypted else f"{args.profile}, not encrypted")
    return 0 if good else 1


def _say_ready(args: argparse.Namespace, cell: Cell) -> None:
    print(f"serving on {args.addr} for {args.seconds:g} s: {_column(cell)}", file=sys.stderr, flush=True)


def _column(cell: Cell) -> str:
    fault = f"{cell.reorder:.0%} late" if cell.reorder else f"loss {cell.loss:.0%}"
    return f"{cell.shape:8} {fault:9}"


def _print_table(outcomes: list[Outcome], what: str) -> None:
    """All sizes of a column and number under way together."""
    lines: dict[tuple[str, int], list[Outcome]] = {}
    for outcome in outcomes:
        lines.setdefault((_column(outcome.cell), outcome.cell.under_way), []).append(outcome)
    print(f"\n{what}:\n{'shape':8} {'fault':9}{'under way':>10}{'sizes':>7}{'answered':>10}{'failed':>8}"
          f"{'wrong':>7}{'resent':>8}{'RESENDs':>9}")
    for (column, under_way), own in lines.items():
        print(f"{column}{under_way or '-':>10}{len(own):>7}{sum(o.answered for o in own):>10}"
              f"{sum(o.failed for o in own):>8}{sum(o.wrong for o in own):>7}"
              f"{sum(o.packets_resent for o in own):>8}{sum(o.resends for o in own):>9}")


def _line(o: Outcome) -> str:
    cell = o.cell
    under_way = f"{cell.under_way:>3} under way" if cell.under_way else "asked"
    said = f"{_column(cell)} {under_way} {cell.size:>8} B: {o.answered} answered"
    if o.median_us is not None:
        said += f", median {o.median_us:,.0f} us"
    if o.packets_resent or o.resends:
        said += f", {o.packets_resent} packets sent again, {o.resends} RESENDs"
    if o.wrong:
        said += f", {o.wrong} WRONG"
    return f"{said}, {o.failed} FAILED: {o.error}" if o.failed else said
