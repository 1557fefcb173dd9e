"""``smtnet serve nbd``: a block target, wherever it is, for programs here that speak NBD."""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from smtstack.errors import BadPacket, ConfigError
from workloads.blocks import initiator
from workloads.blocks.capsule import BLOCK, MAX_DEPTH
from workloads.blocks.nbd import Export
from workloads.options import common as options
from workloads.options.common import add_caller_options, parse_address, positive

#: Seconds between looks at the stop flag.
_LOOK_S = 0.1

_EXAMPLES = """examples:
  smtnet serve nbd --transport tcp --peer 127.0.0.1:4420 --socket /run/blocks.nbd
  smtnet serve nbd --iface va --addr 10.9.0.1:40000 --peer 10.9.0.2:4420 --certs certs/a --socket /run/blocks.nbd

Then: fio --ioengine=nbd --uri=nbd+unix:///?socket=/run/blocks.nbd ..., and where the kernel has nbd,
nbd-client -unix /run/blocks.nbd /dev/nbd0 -b 4096. One client after the other. docs/blocks.md is the how-to.
"""


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``nbd`` to the subcommands of ``serve``."""
    parser = actions.add_parser(
        "nbd", help="a block target for programs that speak NBD", epilog=_EXAMPLES,
        description="Connect to a block target (smtnet serve blocks), and serve it by NBD on a Unix socket: to "
                    "fio, nbdcopy, qemu, and to the kernel, where it has the module nbd.")
    add_caller_options(parser)
    parser.add_argument("--socket", type=Path, required=True, metavar="PATH",
                        help="the Unix socket, which must not be there yet")
    parser.add_argument("--iodepth", type=positive, default=32, metavar="N",
                        help="commands under way; further ones wait (default: %(default)s)")
    parser.set_defaults(run=run_nbd)


def run_nbd(args: argparse.Namespace) -> int:
    """The subcommand."""
    if args.iodepth > MAX_DEPTH:
        raise ConfigError(f"--iodepth {args.iodepth}; at most {MAX_DEPTH}")
    settings = options.settings(args)
    stopping = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    peers = [parse_address(text) for text in args.peer]
    with initiator.open_caller(settings, peers, args.connections) as caller, \
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        caller.prepare(args.iodepth)
        try:
            listening.bind(str(args.socket))
        except OSError as e:
            raise ConfigError(f"--socket {args.socket}: {e.strerror}") from None
        try:
            listening.listen()
            listening.settimeout(_LOOK_S)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, stop)
            print(f"serving {caller.sectors} blocks of {BLOCK} bytes on {args.socket}", file=sys.stderr,
                  flush=True)
            while not stopping:
                # The transport's timers run between clients, too.
                caller.poll()
                try:
                    connection, _address = listening.accept()
                except TimeoutError:
                    continue
                with connection:
                    _serve(caller, connection, lambda: stopping)
        finally:
            args.socket.unlink(missing_ok=True)
    return 0


def _serve(caller: initiator.Initiator, connection: socket.socket, stopped: Callable[[], bool]) -> None:
    """One client; one that speaks no NBD is named."""
    try:
        Export(caller, connection).run(stopped, _LOOK_S)
    except (BadPacket, OSError) as e:
        print(f"smtnet: a client's connection ended: {e}", file=sys.stderr)
