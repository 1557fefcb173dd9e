"""``smtnet serve echo``: an echo server over any transport, in any network namespace; no Mininet needed."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from smtstack import quantities
from smtstack.errors import ConfigError
from smtstack.io.key_file import IN_CLEAR
from smtstack.io.packet_socket import claim_port
from smtstack.io.shared_port import SharedPort
from smtstack.wire.homa import FORMATS
from smtstack.wire.ipv4 import address
from workloads import transports
from workloads.load.loops import echo_reply
from workloads.load.measure import merge_fidelity
from workloads.load.workers import FORK, Workers
from workloads.options import common as options
from workloads.options.common import DEFAULTS, positive
from workloads.results.fidelity import FidelityMonitor, shorten_pauses
from workloads.transports import PACKET_TRANSPORTS, STREAM_TRANSPORTS, Settings
from workloads.transports.contract import Incoming, Server
from workloads.transports.failures import FailureNotes
from workloads.transports.sessions import summary
from workloads.transports.stream_server import listen

#: Seconds between looks at the stop flag: a signal is answered this fast.
_LOOK_S = 0.1
#: Seconds the last replies get to arrive whole, and to be acknowledged, after the server was stopped.
_LINGER_S = 0.3

_EXAMPLES = """examples:
  smtnet serve echo --iface vb --addr 10.9.0.2:2000 --certs certs/b
  smtnet serve echo --iface vb --addr 10.9.0.2:2000 --certs certs/b --session ticket-fs --dns 10.9.0.3
  smtnet serve echo --iface vb --addr 10.9.0.2:2000 --keys run.keys --nic hw --workers 2 --json
  smtnet serve echo --iface h2-eth0 --addr 10.0.0.2:2000 --transport linux --keys demo
  smtnet serve echo --iface h2-eth0 --addr 10.0.0.2:2000 --transport homa --count 1000 --trace server.sqlog
  OPENSSL_CONF=certs/b/openssl.cnf smtnet serve echo --addr 10.9.0.2:2000 --transport tls --certs certs/b

Prints "serving ..." on stderr when ready. SIGINT or SIGTERM end it. docs/echo.md is the how-to.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser], only: str | None = None) -> None:
    """Add ``serve`` and its subcommands ``echo``, ``kv``, ``blocks`` and ``nbd``, of which only echo stays if
    ``only`` that is asked for."""
    serve = commands.add_parser("serve", help="servers on an interface", description="Servers on an interface.")
    actions = serve.add_subparsers(dest="action", required=True, metavar="WHAT")
    echo = actions.add_parser(
        "echo", help="answer every request with itself", epilog=_EXAMPLES,
        description="Answer every request with the same bytes. smt, homa, linux and upstream need root.")
    options.add_transport_options(echo)
    echo.add_argument("--workers", type=positive, default=1, metavar="N",
                      help="processes that share the port: the kernel gives each its messages by RPC id, or (tcp, "
                           "tls, ktls) its connections (default: 1)")
    echo.add_argument("--count", type=positive, metavar="N", help="stop after N requests")
    echo.add_argument("--response-size", type=quantities.BYTES, metavar="B",
                      help="answer with B bytes, the request repeated or cut (default: as it came)")
    echo.add_argument("--json", action="store_true", help="one JSON object on stdout at the end")
    echo.set_defaults(run=run_echo)
    if only != "echo":
        from workloads.commands import serve_blocks, serve_kv, serve_nbd

        serve_kv.add_parser(actions)
        serve_blocks.add_parser(actions)
        serve_nbd.add_parser(actions)


class Quota:
    """How many requests are still to be served, over all workers."""

    def __init__(self, count: int) -> None:
        self._left = FORK.Value("q", count)

    def take(self) -> None:
        """One was served."""
        with self._left.get_lock():
            self._left.value -= 1

    def spent(self) -> bool:
        """Whether all were served."""
        return self._left.value <= 0


class EchoServer:
    """Answers requests until :meth:`stop` is called, ``quota`` is spent or the process is orphaned."""

    def __init__(self, response_size: int | None = None, quota: Quota | None = None) -> None:
        self._size = response_size
        self._quota = quota
        self._parent = os.getppid()
        self._stopping = False
        self.requests = 0
        self.bytes = 0

    def stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """End soon. A signal handler, so it only sets a flag: the protocol may be in mid-step."""
        self._stopping = True

    def handle(self, request: Incoming) -> None:
        """Answer one."""
        data = request.data
        request.reply(data if self._size is None else echo_reply(data, self._size))
        self.requests += 1
        self.bytes += len(data)
        if self._quota is not None:
            self._quota.take()

    def run(self, server: Server) -> None:
        """Serve, then linger."""
        drive, quota, failures = server.drive, self._quota, FailureNotes([server])
        served = 0
        # Another worker may serve the last request, so the quota is looked at every time.
        while not (self._stopping or (quota is not None and quota.spent())):
            drive(_LOOK_S)
            failures.look()
            # A worker whose parent was killed would keep its part of the port for ever. The flag is set, never
            # computed: a signal may set it meanwhile.
            if served == self.requests and os.getppid() != self._parent:
                self._stopping = True
            served = self.requests
        server.linger(_LINGER_S)


def run_echo(args: argparse.Namespace) -> int:
    """The subcommand."""
    if args.response_size is not None and args.response_size > DEFAULTS.max_message_length:
        raise ConfigError(f"--response-size is {args.response_size}; at most {DEFAULTS.max_message_length}")
    if args.addr is None:
        raise ConfigError("a server needs an address: --addr IP:PORT")
    settings = options.settings(args)
    options.check_trace(args, args.workers)
    quota = Quota(args.count) if args.count else None
    if args.workers > 1:
        shares = _serve_shared(args, settings, quota)
    else:
        shares = [_serve(args, settings, None, quota, lambda: _say_ready(args, settings))]
    result = _result(args, settings, shares)
    if args.json:
        print(json.dumps(result))
    else:
        _print_table(result)
    return 0


def _say_ready(args: argparse.Namespace, settings: Settings) -> None:
    where = [args.iface] if args.iface else []
    how = [f"nic {args.nic}"] if settings.nic_used is not None else []
    how += ["not encrypted"] if settings.keys == IN_CLEAR else []
    how += [f"session {settings.session_mode}"] if settings.session_mode is not None else []
    many = [f"{args.workers} workers"] if args.workers > 1 else []
    print(f"serving echo on {args.addr} ({', '.join([*where, args.transport, *how, *many])})",
          file=sys.stderr, flush=True)


def _serve(args: argparse.Namespace, settings: Settings, shared: SharedPort | None, quota: Quota | None,
           ready: Callable[[], object]) -> dict[str, Any]:
    """Serve in this process until told to stop; what was done."""
    echo = EchoServer(args.response_size, quota)
    with transports.open_server(settings, echo.handle, shared) as server:
        # A worker is stopped by its parent; the terminal's Ctrl-C goes to both.
        before = [(signal.SIGTERM, signal.signal(signal.SIGTERM, echo.stop)),
                  (signal.SIGINT, signal.signal(signal.SIGINT, signal.SIG_IGN if shared else echo.stop))]
        monitor = FidelityMonitor(server)
        shorten_pauses()
        monitor.start()
        try:
            ready()
            echo.run(server)
        finally:
            for number, handler in before:
                signal.signal(number, handler)
        return {"requests": echo.requests, "bytes": echo.bytes, "counters": server.counters(),
                "fidelity": monitor.stop(),
                "failure": server.failure()}


def _serve_shared(args: argparse.Namespace, settings: Settings, quota: Quota | None) -> list[dict[str, Any]]:
    """Serve with ``args.workers`` processes; what each has done."""
    assert settings.local is not None
    # Workers may share the port with each other, but not with a server that was there before.
    if settings.transport in STREAM_TRANSPORTS:
        listen(settings.local).close()
    elif settings.transport not in PACKET_TRANSPORTS:
        raise ConfigError(f"{settings.transport} serves with one process: leave out --workers")
    else:
        ip, port = settings.local
        claim_port(str(settings.interface), address(ip), port, FORMATS[settings.transport].protocol).close()

    def job(pipe: Connection, shared: SharedPort) -> dict[str, Any]:
        return _serve(args, settings, shared, quota, partial(pipe.send, "ready"))

    # All workers must be there before the first request: which one a message belongs to depends on how
    # many there are, and a retransmission that went to another one would be served twice.
    shares = SharedPort.among(os.getpid() & 0xFFFF, args.workers)
    with Workers([partial(job, shared=share) for share in shares], "echo worker") as workers:
        for share in shares:
            share.close()
        workers.hear()

        def stop(_signal: int, _frame: FrameType | None) -> None:
            workers.terminate()

        for stopper in (signal.SIGTERM, signal.SIGINT):
            signal.signal(stopper, stop)
        _say_ready(args, settings)
        return workers.hear(None)


def _result(args: argparse.Namespace, settings: Settings, shares: list[dict[str, Any]]) -> dict[str, Any]:
    counters: Counter[str] = Counter()
    for share in shares:
        counters.update(share["counters"])
    return {"transport": settings.transport,
            "nic": settings.nic_used, "encrypted": settings.encrypted,
            **summary(settings.session_mode, [share["counters"] for share in shares]),
            "address": args.addr, "workers": args.workers,
            "requests": sum(s["requests"] for s in shares), "bytes": sum(s["bytes"] for s in shares),
            "requests_by_worker": [s["requests"] for s in shares], "counters": counters,
            "fidelity": merge_fidelity([s["fidelity"] for s in shares]),
            "failure": next((s["failure"] for s in shares if s["failure"]), "")}


def _print_table(result: dict[str, Any]) -> None:
    print(f"served {result['requests']} requests, {result['bytes']} bytes"
          + (f"; by worker {result['requests_by_worker']}" if result["workers"] > 1 else ""))
    for name, value in result["counters"].items():
        if value:
            print(f"  {name:24}{value:>14,}")
    for reason in result["fidelity"]["reasons"]:
        print(f"smtnet: not faithful: {reason}", file=sys.stderr)
