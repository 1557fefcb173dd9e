"""``smtnet serve blocks``: the target of the block store, over any transport."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from types import FrameType
from typing import Any

from smtstack.errors import ConfigError
from workloads import transports
from workloads.blocks.capsule import BLOCK
from workloads.blocks.stores import BLOCKS, STORES, open_store
from workloads.blocks.target import Target
from workloads.options import common as options
from workloads.options.common import positive
from workloads.options.storage import add_storage_options, protection
from workloads.results.fidelity import FidelityMonitor, shorten_pauses
from workloads.transports import PACKET_TRANSPORTS, Settings
from workloads.transports.contract import Server
from workloads.transports.failures import FailureNotes
from workloads.transports.sessions import summary

#: Seconds between looks at the stop flag, and for the last replies, as in serve.py.
_LOOK_S = 0.1
_LINGER_S = 0.3

_EXAMPLES = """examples:
  smtnet serve blocks --transport tcp --addr 127.0.0.1:4420
  smtnet serve blocks --iface vb --addr 10.9.0.2:4420 --certs certs/b --store file:disk.img --blocks 262144
  smtnet serve blocks --transport tcp --addr 127.0.0.1:4420 --store file:disk.img --storage-key disk.key

Prints "serving ..." on stderr when ready. SIGINT or SIGTERM end it. docs/blocks.md is the how-to.
"""


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``blocks`` to the subcommands of ``serve``."""
    parser = actions.add_parser(
        "blocks", help="a block store with the shape of NVMe over Fabrics", epilog=_EXAMPLES,
        description=f"A namespace of blocks of {BLOCK} bytes; a message carries a command with its data. smt, "
                    "homa, linux and upstream need root.")
    options.add_transport_options(parser)
    parser.add_argument("--store", default="memory", metavar="STORE",
                        help="; ".join(f"{name}: {what}" for name, what in STORES.items())
                        + " (default: %(default)s)")
    parser.add_argument("--blocks", type=positive, metavar="N",
                        help=f"how many there are; a file is made so long, if it is shorter (default: {BLOCKS}, "
                             "and of a file that is there those it has)")
    parser.add_argument("--durable", action="store_true",
                        help="complete a write when it is on the disk (default: Flush and writes with FUA only, "
                             "as of a drive with a volatile write cache; what is protected is always durable)")
    add_storage_options(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout at the end")
    parser.set_defaults(run=run_blocks)


def run_blocks(args: argparse.Namespace) -> int:
    """The subcommand."""
    if args.addr is None:
        raise ConfigError("a server needs an address: --addr IP:PORT")
    settings = options.settings(args)
    options.check_trace(args, 1)
    store = open_store(args.store, args.blocks, protection(args))
    try:
        target = Target(store.device, durable=args.durable or store.protected is not None)
        with transports.open_server(settings, target.handle) as server:
            result = _serve(args, settings, server, target)
    finally:
        store.close()
    if args.json:
        print(json.dumps(result))
    else:
        _print_table(result)
    return 0


def _serve(args: argparse.Namespace, settings: Settings, server: Server, target: Target) -> dict[str, Any]:
    """Until a signal says that it is enough, or whoever started us is gone."""
    stopping = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    before = [(number, signal.signal(number, stop)) for number in (signal.SIGTERM, signal.SIGINT)]
    monitor = FidelityMonitor(server)
    shorten_pauses()
    monitor.start()
    parent = os.getppid()
    failures = FailureNotes([server])
    where = f"{args.iface}, " if args.iface else ""
    print(f"serving blocks on {args.addr} ({where}{args.transport}, {args.store})", file=sys.stderr, flush=True)
    seen = 0
    try:
        while not stopping:
            server.drive(_LOOK_S)
            target.settle()
            failures.look()
            # The flag is set, never computed: a signal may set it meanwhile.
            if target.handled == seen and os.getppid() != parent:
                stopping = True
            seen = target.handled
        server.linger(_LINGER_S)
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    return {"transport": settings.transport,
            "nic": settings.nic if settings.transport in PACKET_TRANSPORTS else None,
            **summary(settings.session_mode, [server.counters()]),
            "address": args.addr, "store": args.store, "blocks": target.counters(),
            "counters": server.counters(), "fidelity": monitor.stop(),
            "failure": target.last_failure or server.failure()}


def _print_table(result: dict[str, Any]) -> None:
    for name, value in {**result["blocks"], **result["counters"]}.items():
        if value:
            print(f"  {name:24}{value:>14,}")
    if result["failure"]:
        print(f"smtnet: {result['failure']}", file=sys.stderr)
