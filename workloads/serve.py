"""``smtnet serve echo``: an echo server on any interface, in any network namespace; no Mininet needed."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import psutil

from smtstack.errors import ConfigError, PeerError, SmtError
from smtstack.io.packet_socket import Fanout, interface_mtu
from smtstack.nic.device import NicConfig
from smtstack.socket import Address, SmtContext, SmtSocket
from smtstack.transport.params import TransportParams
from smtstack.wire import homa
from smtstack.wire.ipv4 import address
from workloads.fidelity import FidelityMonitor, verdict

DEFAULTS = TransportParams()
#: Seconds between looks at the stop flag: a signal is answered this fast.
_LOOK_S = 0.1
#: Seconds the last replies get to arrive whole, and to be acknowledged, after the server was stopped.
_LINGER_S = 0.3
#: Seconds a worker gets to say it is ready, and to report when stopped.
_PATIENCE_S = 10.0
#: Workers are forked: they start at once and inherit the arguments.
_FORK = multiprocessing.get_context("fork")

_EXAMPLES = """examples:
  smtnet serve echo --iface vb --addr 10.9.0.2:2000 --keys run.keys
  smtnet serve echo --iface vb --addr 10.9.0.2:2000 --keys run.keys --nic hw --workers 2 --json
  smtnet serve echo --iface h2-eth0 --addr 10.0.0.2:2000 --profile linux --keys demo
  smtnet serve echo --iface h2-eth0 --addr 10.0.0.2:2000 --profile homa --count 1000

Prints "serving ..." on stderr when ready. SIGINT or SIGTERM end it. docs/echo.md is the how-to.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``serve`` and its subcommand ``echo``."""
    serve = commands.add_parser("serve", help="servers on an interface", description="Servers on an interface.")
    actions = serve.add_subparsers(dest="action", required=True, metavar="WHAT")
    echo = actions.add_parser(
        "echo", help="answer every request with itself", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Answer every request with the same bytes. Needs root (CAP_NET_RAW).")
    add_socket_options(echo)
    echo.add_argument("--workers", type=positive, default=1, metavar="N",
                      help="processes that share the port: the kernel gives each its messages, by RPC id "
                           "(default: 1)")
    echo.add_argument("--count", type=positive, metavar="N", help="stop after N requests")
    echo.add_argument("--response-size", type=positive, metavar="B",
                      help="answer with B bytes, the request repeated or cut (default: as it came)")
    echo.add_argument("--json", action="store_true", help="one JSON object on stdout at the end")
    echo.set_defaults(run=run_echo)


def add_socket_options(parser: argparse.ArgumentParser) -> None:
    """Options of everything that opens an SMT socket, for :func:`make_context` and :func:`parse_address`."""
    parser.add_argument("--iface", required=True, metavar="I", help="network interface")
    parser.add_argument("--addr", required=True, metavar="IP:PORT", help="our own address, on that interface")
    parser.add_argument("--profile", choices=tuple(homa.FORMATS), default="smt",
                        help="what to speak: smt, linux (as the SMT kernel module), homa (in clear; needs no "
                             "keys) (default: %(default)s)")
    parser.add_argument("--keys", default="demo", metavar="demo|FILE",
                        help="a key file ('smtnet keys' makes one), or for profile linux the public demo keys "
                             "(default: %(default)s)")
    parser.add_argument("--nic", choices=("sw", "hw"), default="sw",
                        help="who seals records: software, or the emulated NIC's TLS offload "
                             "(default: %(default)s)")
    parser.add_argument("--poll-us", type=positive, default=0, metavar="US",
                        help="busy-wait this long before sleeping: lower latency for a whole core (default: 0)")
    parser.add_argument("--max-gso-size", type=positive, default=DEFAULTS.max_gso_size, metavar="B",
                        help="largest TSO segment, so the grain of records (default: %(default)s)")
    parser.add_argument("--mtu", type=positive, metavar="B",
                        help="largest IP packet (default: the interface's); both ends of linux must agree")
    parser.add_argument("--link-mbps", type=positive, default=DEFAULTS.link_mbps, metavar="R",
                        help="rate of the link, which the pacer keeps to (default: %(default)s)")
    parser.add_argument("--timeout-resends", type=positive, default=DEFAULTS.timeout_resends, metavar="N",
                        help="unanswered RESENDs, one in 10 ms, after which a peer is given up: more on a machine "
                             "that stalls (default: %(default)s)")


def positive(text: str) -> int:
    """For argparse: a number from 1."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def parse_address(text: str) -> Address:
    """``IP:PORT``; raises :class:`ConfigError`."""
    ip, colon, port = text.rpartition(":")
    try:
        if not colon:
            raise ValueError("there is no port")
        address(ip)
        if not 0 < int(port) <= 0xFFFF:
            raise ValueError("a port is 1 to 65535")
    except ValueError as e:
        raise ConfigError(f"{text!r} is no IP:PORT, as 10.0.0.2:2000: {e}") from None
    return ip, int(port)


def make_context(args: argparse.Namespace, fanout: Fanout | None = None) -> SmtContext:
    """The context :func:`add_socket_options` describe."""
    params = TransportParams(mtu=args.mtu or min(interface_mtu(args.iface), 65535),
                             max_gso_size=args.max_gso_size, link_mbps=args.link_mbps,
                             timeout_resends=args.timeout_resends)
    return SmtContext(args.iface, args.profile, args.keys, params,
                      NicConfig(tls_hw_tx_offload=args.nic == "hw"), args.poll_us * 1000, fanout)


def open_socket(args: argparse.Namespace, fanout: Fanout | None = None) -> SmtSocket:
    """The socket :func:`add_socket_options` describe; raises ConfigError, Unsupported."""
    local = parse_address(args.addr)
    context = make_context(args, fanout)
    # Without the address the kernel answers no ARP for us, and every peer would just time out.
    own = [a.address for a in psutil.net_if_addrs().get(args.iface, []) if "." in a.address]
    if local[0] not in own:
        raise ConfigError(f"{local[0]} is no address of {args.iface}, which has {', '.join(own) or 'none'}")
    return SmtSocket(local, context)


def echo_reply(request: bytes, size: int | None) -> bytes:
    """What the server answers: the request, or with ``size`` that many bytes of it, repeated as needed."""
    if size is None:
        return request
    return (request * -(-size // len(request)))[:size]


class Quota:
    """How many requests are still to be served, over all workers."""

    def __init__(self, count: int) -> None:
        self._left = _FORK.Value("q", count)

    def take(self) -> None:
        """One was served."""
        with self._left.get_lock():
            self._left.value -= 1

    def spent(self) -> bool:
        """Whether all were served."""
        return self._left.value <= 0


class EchoServer:
    """Answers requests until :meth:`stop` is called, ``quota`` is spent or the process is orphaned."""

    def __init__(self, socket: SmtSocket, response_size: int | None = None, quota: Quota | None = None) -> None:
        self._socket = socket
        self._size = response_size
        self._quota = quota
        self._parent = os.getppid()
        self._stopping = False
        self.requests = 0
        self.bytes = 0

    def stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """End soon. A signal handler, so it only sets a flag: the protocol may be in mid-step."""
        self._stopping = True

    def run(self) -> None:
        """Serve, then linger."""
        receive = self._socket.receive
        quota = self._quota
        # Another worker may serve the last request, so the quota is looked at every time.
        while not (self._stopping or (quota is not None and quota.spent())):
            request = receive(_LOOK_S)
            if request is None:
                # A worker whose parent was killed would keep its part of the port for ever.
                self._stopping = self._stopping or os.getppid() != self._parent
                continue
            request.reply(echo_reply(request.data, self._size))
            self.requests += 1
            self.bytes += len(request.data)
            if quota is not None:
                quota.take()
        self._socket.linger(_LINGER_S)


def run_echo(args: argparse.Namespace) -> int:
    """The subcommand."""
    if args.response_size is not None and args.response_size > DEFAULTS.max_message_length:
        raise ConfigError(f"--response-size is {args.response_size}; at most {DEFAULTS.max_message_length}")
    quota = Quota(args.count) if args.count else None
    shares = _serve_shared(args, quota) if args.workers > 1 else [_serve(args, None, quota, _ready)]
    result = _result(args, shares)
    if args.json:
        print(json.dumps(result))
    else:
        _print_table(result)
    return 0


def _ready(args: argparse.Namespace) -> None:
    workers = f", {args.workers} workers" if args.workers > 1 else ""
    print(f"serving echo on {args.addr} ({args.iface}, {args.profile}, nic {args.nic}{workers})",
          file=sys.stderr, flush=True)


def _serve(args: argparse.Namespace, fanout: Fanout | None, quota: Quota | None,
           ready: Callable[[argparse.Namespace], None]) -> dict[str, Any]:
    """Serve in this process until told to stop; what was done."""
    with open_socket(args, fanout) as socket:
        server = EchoServer(socket, args.response_size, quota)
        # A worker is stopped by its parent; the terminal's Ctrl-C goes to both.
        before = [(signal.SIGTERM, signal.signal(signal.SIGTERM, server.stop)),
                  (signal.SIGINT, signal.signal(signal.SIGINT, signal.SIG_IGN if fanout else server.stop))]
        monitor = FidelityMonitor(socket)
        monitor.start()
        try:
            ready(args)
            server.run()
        finally:
            for number, handler in before:
                signal.signal(number, handler)
        return {"requests": server.requests, "bytes": server.bytes, "counters": socket.counters(),
                "fidelity": monitor.stop()}


# -- several workers -------------------------------------------------------------------------------------

def _serve_shared(args: argparse.Namespace, quota: Quota | None) -> list[dict[str, Any]]:
    """Serve with ``args.workers`` processes; what each has done."""
    # All workers must be there before the first request: which one a message belongs to depends on how
    # many there are, and a retransmission that went to another one would be served twice.
    fanout = Fanout(os.getpid() & 0xFFFF, args.workers)
    workers: list[tuple[BaseProcess, Connection]] = []
    try:
        for number in range(args.workers):
            ours, theirs = _FORK.Pipe()
            process: BaseProcess = _FORK.Process(target=_work, args=(args, fanout, quota, theirs), daemon=True,
                                    name=f"echo worker {number}")
            process.start()
            theirs.close()
            workers.append((process, ours))
        for _process, pipe in workers:
            _take(pipe, _PATIENCE_S)

        def stop(_signal: int, _frame: FrameType | None) -> None:
            for process, _pipe in workers:
                process.terminate()

        for stopper in (signal.SIGTERM, signal.SIGINT):
            signal.signal(stopper, stop)
        _ready(args)
        reports: dict[Connection, dict[str, Any]] = {}
        # In the order they come: one that died must not wait for one that serves.
        while waiting := [pipe for _process, pipe in workers if pipe not in reports]:
            ready = wait(waiting)
            reports |= {pipe: _take(pipe, 0) for pipe in waiting if pipe in ready}
        return [reports[pipe] for _process, pipe in workers]
    finally:
        for process, _pipe in workers:
            process.terminate()
            process.join(_PATIENCE_S)


def _work(args: argparse.Namespace, fanout: Fanout, quota: Quota | None, pipe: Connection) -> None:
    """A worker's life: "ready", then its share or the error that ended it."""
    try:
        pipe.send(_serve(args, fanout, quota, lambda _args: pipe.send("ready")))
    except SmtError as e:
        pipe.send(e)


def _take(pipe: Connection, patience_s: float) -> Any:
    """The next thing a worker says; raises what it reports."""
    try:
        said = pipe.recv() if pipe.poll(patience_s) else None
    except EOFError:
        said = None
    if isinstance(said, SmtError):
        raise said
    if said is None:
        raise PeerError("a worker died")
    return said


# -- results ---------------------------------------------------------------------------------------------

def _result(args: argparse.Namespace, shares: list[dict[str, Any]]) -> dict[str, Any]:
    counters: dict[str, int] = {}
    for share in shares:
        for name, value in share["counters"].items():
            counters[name] = counters.get(name, 0) + value
    # Of the machine's numbers each worker saw the same; the rest adds up.
    numbers = {k: v for k, v in shares[0]["fidelity"].items() if k not in ("ok", "reasons")}
    for name, add in (("receive_drops", sum), ("send_drops", sum), ("timer_late_us", max)):
        numbers[name] = add(share["fidelity"][name] for share in shares)
    return {"transport": args.profile, "nic": args.nic, "address": args.addr, "workers": args.workers,
            "requests": sum(s["requests"] for s in shares), "bytes": sum(s["bytes"] for s in shares),
            "requests_by_worker": [s["requests"] for s in shares], "counters": counters,
            "fidelity": verdict(numbers)}


def _print_table(result: dict[str, Any]) -> None:
    print(f"served {result['requests']} requests, {result['bytes']} bytes"
          + (f"; by worker {result['requests_by_worker']}" if result["workers"] > 1 else ""))
    for name, value in result["counters"].items():
        if value:
            print(f"  {name:24}{value:>14,}")
    for reason in result["fidelity"]["reasons"]:
        print(f"smtnet: not faithful: {reason}", file=sys.stderr)
