"""Server and client of ``smtnet reproduce fig12``: sessions that begin with an RPC, echo and end, one at a time.

``serve`` echoes until SIGTERM. ``call`` takes orders on stdin, a JSON line each: ``{"samples": 20, "sizes": [64],
"seed": 1}``, and answers with the nanoseconds of every first RPC, by way and size, and of as many RPCs of sessions
that were there. Both say "ready" on stderr when they are. Ends with its stdin.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import FrameType

from smtstack.errors import PeerError
from smtstack.io.packet_socket import interface_mtu
from smtstack.session.established import MODES
from smtstack.socket import Address, SmtContext, SmtSocket
from smtstack.transport.params import SOFTWARE
from smtstack.waiting import AS_TCP
from smtstack.wire.ipv4 import address
from workloads.experiments.fig12.report import BASE, ONE_RTT, WAYS
from workloads.fleet.programs import run_on_host
from workloads.options.common import parse_address

#: Seconds one RPC, or a session's end, may take.
_PATIENCE_S = 5.0
#: Seconds between looks at the stop flag.
_LOOK_S = 0.1
#: Key pairs made between two samples.
_KEYS = 4

#: Nanoseconds by way and size.
Times = dict[str, dict[int, list[int]]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="first_rpc")
    parser.add_argument("role", choices=("serve", "call"))
    parser.add_argument("--iface", required=True)
    parser.add_argument("--addr", required=True, help="our own; a client takes a port for each mode from there on")
    parser.add_argument("--certs", type=Path, required=True)
    parser.add_argument("--dns", required=True)
    parser.add_argument("--session", choices=MODES, help="of a server")
    parser.add_argument("--peer", action="append", default=[], metavar="MODE=IP:PORT", help="the server of a mode")
    parser.add_argument("--mutual", action="store_true", help="clients show certificates, too")
    return parser


def _context(args: argparse.Namespace, mode: str, publish: bool = False) -> SmtContext:
    if args.mutual and mode == "tls":
        mode = "mtls"
    params = replace(SOFTWARE, mtu=min(interface_mtu(args.iface), 65535))
    # First RPCs come one by one, to servers that sleep.
    return SmtContext(args.iface, params=params, wait=AS_TCP, certs=args.certs, session=mode,
                      client_auth=args.mutual,
                      dns=parse_address(args.dns) if mode.startswith("ticket") else None, publish=publish)


def _serve(args: argparse.Namespace) -> None:
    stopping = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    parent = os.getppid()
    with SmtSocket(parse_address(args.addr), _context(args, args.session, publish=True)) as sock:
        print("ready", file=sys.stderr, flush=True)
        while not stopping and os.getppid() == parent:
            request = sock.receive(_LOOK_S)
            if request is not None:
                request.reply(request.data)


class FirstCaller:
    """A socket for one mode, towards that mode's server."""

    def __init__(self, sock: SmtSocket, peer: Address) -> None:
        self._sock = sock
        self._peer = peer
        assert sock.sessions is not None
        self._host = sock.sessions
        self._mode = sock.context.session
        # The first session is TLS where others resume; it also finds the way to the server.
        self._sock.request(peer, b"hello", _PATIENCE_S)
        self._end()

    def first(self, data: bytes, look_up: bool) -> tuple[int, int]:
        """(nanoseconds of an RPC that begins a session, of the next one). The session has ended afterwards.

        Raises :class:`PeerError`, also for an answer that is not the request.
        """
        tickets = self._host.tickets
        if tickets is not None:
            ip, port = address(self._peer[0]), self._peer[1]
            if look_up:
                tickets.forget(ip, port)
            else:
                tickets.ticket(ip, port, int(time.time()))
        self._host.manager.pool.refill(_KEYS)
        first = self._timed(data)
        self._settle(lambda: self._sock.session_of(self._peer) is not None, "the session was never complete")
        found = self._sock.session_of(self._peer)
        if found is None or found.mode != self._mode:
            raise PeerError(f"a session of mode {self._mode} was wanted, not {found and found.mode}")
        again = self._timed(data)
        self._end()
        return first, again

    def _timed(self, data: bytes) -> int:
        start = time.perf_counter_ns()
        reply = self._sock.request(self._peer, data, _PATIENCE_S)
        took = time.perf_counter_ns() - start
        if reply != data:
            raise PeerError(f"the answer of {self._peer[0]}:{self._peer[1]} is not the request")
        return took

    def _end(self) -> None:
        self._settle(lambda: self._sock.session_of(self._peer) is not None, "there is no session to end")
        self._sock.end_session(self._peer)
        self._settle(lambda: not self._host.manager.closing(), "the server does not confirm the session's end")

    def _settle(self, done: Callable[[], bool], otherwise: str) -> None:
        self._sock.drive(done, _PATIENCE_S)
        if not done():
            raise PeerError(f"{self._peer[0]}:{self._peer[1]}, {self._mode}: {otherwise}")


def _call(args: argparse.Namespace) -> None:
    ip, port = parse_address(args.addr)
    with ExitStack() as stack:
        callers: dict[str, FirstCaller] = {}
        for number, text in enumerate(args.peer):
            mode, _equals, peer = text.partition("=")
            sock = stack.enter_context(SmtSocket((ip, port + number), _context(args, mode)))
            callers[mode] = FirstCaller(sock, parse_address(peer))
        print("ready", file=sys.stderr, flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            print(json.dumps(measure(callers, order["sizes"], order["samples"], order["seed"])), flush=True)


def measure(callers: dict[str, FirstCaller], sizes: Sequence[int], samples: int, seed: int) -> Times:
    """``samples`` sessions of every way and size, in an order that changes from round to round."""
    random_ = random.Random(seed)
    times: Times = {way: {size: [] for size in sizes} for way in (*WAYS, BASE)}
    cells = [(way, size) for way in WAYS for size in sizes]
    for _ in range(samples):
        random_.shuffle(cells)
        for way, size in cells:
            mode, look_up = WAYS[way]
            first, again = callers[mode].first(random_.randbytes(size), look_up)
            times[way][size].append(first)
            if way == ONE_RTT:
                times[BASE][size].append(again)
    return times


if __name__ == "__main__":
    run_on_host(_parser().parse_args, lambda args: _serve(args) if args.role == "serve" else _call(args))
