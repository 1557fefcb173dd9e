"""``smtnet call echo``: a closed loop of RPCs against an echo server, every answer compared."""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import time
from array import array
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from smtstack.errors import ConfigError
from smtstack.socket import Address, RpcFuture, SmtSocket
from smtstack.transport import events
from smtstack.transport.rpc import Rpc
from smtstack.wire.ipv4 import address
from workloads.fidelity import FidelityMonitor
from workloads.serve import DEFAULTS, add_socket_options, echo_reply, open_socket, parse_address, positive

EXIT_FAILED, EXIT_UNFAITHFUL = 1, 4

#: Seconds after the last RPC in which the server may ask for acknowledgements; it asks after 2 ms.
_LINGER_S = 0.02
#: Noise the payloads are cut from; as many different cuts as the second.
_NOISE_CUTS = 4093
#: Nothing but failures for this long, in ns: nobody is there, and the rest would only take time.
_HOPELESS_NS = 1_000_000_000
#: RPCs of a size that are not counted by default: the first resolve addresses and exchange cutoffs.
_WARM_UP = 20

PERCENTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999))

_EXAMPLES = """examples:
  smtnet call echo --iface va --addr 10.9.0.1:40000 --peer 10.9.0.2:2000 --keys run.keys --size 64 --count 1000
  smtnet call echo --iface va --addr 10.9.0.1:40000 --peer 10.9.0.2:2000 --keys run.keys \\
      --size 64,1024,65536 --seconds 5 --concurrency 50 --nic hw --json
  smtnet call echo --iface h1-eth0 --addr 10.0.0.1:40000 --peer 10.0.0.2:2000 --profile homa --size 64 --count 1

exit code: 0 ok, 1 an RPC failed or its answer was wrong, 2 usage, 3 the environment lacks something (root),
           4 the run was not faithful (see "fidelity")

Against one server with one key file, each run needs another port in --addr: message ids start over with
the process, and the server refuses ids it has seen. docs/echo.md is the how-to.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``call`` and its subcommand ``echo``."""
    call = commands.add_parser("call", help="clients on an interface", description="Clients on an interface.")
    actions = call.add_subparsers(dest="action", required=True, metavar="WHAT")
    echo = actions.add_parser(
        "echo", help="measure RPCs against an echo server", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Closed loop: as many RPCs as --concurrency says are under way; every answer is compared "
                    "byte for byte. Needs root (CAP_NET_RAW).")
    add_socket_options(echo)
    echo.add_argument("--peer", required=True, metavar="IP:PORT", help="the server")
    echo.add_argument("--size", type=_sizes, default=[64], metavar="B[,B...]",
                      help="request bytes; several are measured one after the other (default: 64)")
    limit = echo.add_mutually_exclusive_group()
    limit.add_argument("--count", type=positive, metavar="N", help="RPCs of each size (default: 1000)")
    limit.add_argument("--seconds", type=_seconds, metavar="S", help="time for each size")
    echo.add_argument("--concurrency", type=positive, default=1, metavar="C",
                      help="RPCs under way; 1 measures the unloaded round trip (default: 1)")
    echo.add_argument("--timeout", type=_seconds, default=10.0, metavar="S",
                      help="give up an RPC after this long (default: 10); a silent peer is noticed sooner")
    echo.add_argument("--warm-up", type=_not_negative, default=_WARM_UP, metavar="N",
                      help="RPCs of each size before the measured ones (default: %(default)s)")
    echo.add_argument("--response-size", type=positive, metavar="B", help="as given to the server, if it was")
    echo.add_argument("--json", action="store_true", help="one JSON object on stdout")
    echo.set_defaults(run=run_echo)


def _sizes(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise ValueError(text)
    return value


def _not_negative(text: str) -> int:
    return 0 if text == "0" else positive(text)


class Payloads:
    """Requests of one size, each different from those shortly before and after."""

    def __init__(self, size: int, seed: int = 1) -> None:
        self._noise = random.Random(seed).randbytes(size + _NOISE_CUTS)
        self._size = size
        self._stamp = min(8, size)

    def make(self, number: int) -> bytes:
        """Request ``number``: begins with its number, as far as there is room, and goes on with noise."""
        cut = number % _NOISE_CUTS
        stamp = number.to_bytes(8, "big")[8 - self._stamp:]
        return stamp + self._noise[cut:cut + self._size - self._stamp]


class _Call(RpcFuture):
    """One RPC of the loop: notes when it ended, and tells the loop."""

    __slots__ = ("_loop", "ended", "expected", "started")

    def __init__(self, socket: SmtSocket, rpc: Rpc, loop: ClosedLoop, expected: bytes, started: int) -> None:
        super().__init__(socket, rpc)
        self._loop = loop
        self.expected = expected
        self.started = started
        self.ended = 0

    def settle(self, event: events.Response | events.Failed) -> None:
        self.ended = time.perf_counter_ns()
        super().settle(event)
        self._loop.settled.append(self)


@dataclass(slots=True)
class Tally:
    """What came of a series of RPCs."""

    rtt_ns: array[int] = field(default_factory=lambda: array("Q"))
    errors: int = 0
    wrong: int = 0
    first_error: str = ""


class ClosedLoop:
    """Keeps ``concurrency`` RPCs under way to one server."""

    def __init__(self, socket: SmtSocket, peer: Address, concurrency: int, timeout_s: float,
                 response_size: int | None = None) -> None:
        self._socket = socket
        self._peer = (address(peer[0]), peer[1])
        self._concurrency = concurrency
        self._timeout_ns = int(timeout_s * 1e9)
        self._response_size = response_size
        self._number = 0
        #: Under way, in order of age.
        self._open: dict[_Call, None] = {}
        self.settled: deque[_Call] = deque()

    def run(self, payloads: Payloads, count: int | None, seconds: float | None = None) -> Tally:
        """``count`` RPCs, or as many as begin within ``seconds``. Stops early when all have failed for a while."""
        tally = Tally()
        last_good = time.perf_counter_ns()
        end = None if seconds is None else last_good + int(seconds * 1e9)
        begun = 0
        hopeless = False
        under_way, settled = self._open, self.settled
        while True:
            while (len(under_way) < self._concurrency and not hopeless and (count is None or begun < count)
                   and (end is None or time.perf_counter_ns() < end)):
                self._begin(payloads)
                begun += 1
            if not under_way:
                return tally
            self._wait()
            while settled:
                call = settled.popleft()
                del under_way[call]
                if self._judge(call, tally):
                    last_good = call.ended
                elif call.ended - last_good > _HOPELESS_NS:
                    hopeless = True

    def _begin(self, payloads: Payloads) -> None:
        socket = self._socket
        data = payloads.make(self._number)
        self._number += 1
        started = time.perf_counter_ns()
        rpc = socket.endpoint.send_request(*self._peer, data, time.monotonic_ns())
        call = rpc.cookie = _Call(socket, rpc, self, data, started)
        self._open[call] = None
        socket.loop.flush()

    def _wait(self) -> None:
        """Until an RPC ends; the oldest is given up when its time has passed."""
        oldest = next(iter(self._open))
        left = oldest.started + self._timeout_ns - time.perf_counter_ns()
        if left > 0:
            self._socket.drive(lambda: bool(self.settled), left / 1e9)
        if not self.settled:
            self._socket.abort(oldest)

    def _judge(self, call: _Call, tally: Tally) -> bool:
        if call.error is not None:
            tally.errors += 1
            tally.first_error = tally.first_error or str(call.error)
            return False
        if call.result() != echo_reply(call.expected, self._response_size):
            tally.wrong += 1
            tally.first_error = tally.first_error or f"RPC to {call.rpc.peer}: the answer's bytes are wrong"
            return False
        tally.rtt_ns.append(call.ended - call.started)
        return True


def percentile(ordered: array[int], share: float) -> int:
    """Nearest rank: the smallest value that at least ``share`` of all do not exceed. Exact, not a bucket."""
    # In integers of 1/1000: a float product just above a whole number would take the next rank.
    rank = -(-len(ordered) * round(share * 1000) // 1000)
    return ordered[max(rank, 1) - 1]


def rtt_summary(rtt_ns: array[int]) -> dict[str, float | None]:
    """min, percentiles, max and mean in microseconds; None if nothing was measured."""
    names = ("min", *(name for name, _share in PERCENTILES), "max", "mean")
    if not rtt_ns:
        return dict.fromkeys(names)
    ordered = array("Q", sorted(rtt_ns))
    values = (ordered[0], *(percentile(ordered, share) for _name, share in PERCENTILES), ordered[-1],
              sum(ordered) / len(ordered))
    return {name: round(value / 1000, 3) for name, value in zip(names, values, strict=True)}


def measure(socket: SmtSocket, loop: ClosedLoop, args: argparse.Namespace,
            size: int) -> tuple[dict[str, Any], str]:
    """(result of one size, first error or "")."""
    payloads = Payloads(size)
    warm = loop.run(payloads, args.warm_up)
    if warm.errors or warm.wrong:
        tally, seconds, cpu, fidelity = warm, 0.0, {}, FidelityMonitor(socket).stop()
    else:
        monitor = FidelityMonitor(socket)
        monitor.start()
        before = resource.getrusage(resource.RUSAGE_SELF)
        start = time.perf_counter()
        tally = loop.run(payloads, None if args.seconds else args.count or 1000, args.seconds)
        seconds = time.perf_counter() - start
        now = resource.getrusage(resource.RUSAGE_SELF)
        cpu = _cpu(before, now, seconds)
        fidelity = monitor.stop()
    return {
        "transport": args.profile, "nic": args.nic, "size": size, "rpcs": len(tally.rtt_ns),
        "errors": tally.errors, "content_ok": not tally.wrong,
        "rpc_per_s": round(len(tally.rtt_ns) / seconds, 1) if seconds else 0.0,
        "rtt_us": rtt_summary(tally.rtt_ns), "cpu": cpu, "fidelity": fidelity,
    }, tally.first_error


def _cpu(before: resource.struct_rusage, now: resource.struct_rusage, seconds: float) -> dict[str, float]:
    """This process's processor time. ``share`` is of one processor."""
    user, system = now.ru_utime - before.ru_utime, now.ru_stime - before.ru_stime
    return {"user_s": round(user, 4), "system_s": round(system, 4), "wall_s": round(seconds, 4),
            "share": round((user + system) / seconds, 4) if seconds else 0.0,
            "sleeps": now.ru_nvcsw - before.ru_nvcsw, "preemptions": now.ru_nivcsw - before.ru_nivcsw}


def run_echo(args: argparse.Namespace) -> int:
    """The subcommand."""
    peer = parse_address(args.peer)
    longest = DEFAULTS.max_message_length
    for size in (*args.size, args.response_size or 1):
        if size > longest:
            raise ConfigError(f"a message of {size} bytes; at most {longest} are possible")
    results: list[dict[str, Any]] = []
    errors: list[str] = []
    with open_socket(args) as socket:
        loop = ClosedLoop(socket, peer, args.concurrency, args.timeout, args.response_size)
        for size in args.size:
            result, error = measure(socket, loop, args, size)
            results.append(result)
            if error:
                errors.append(error)
                if not result["rpcs"]:
                    break
        socket.drive(lambda: False, _LINGER_S)
        unresolved = socket.counters()["unresolved"]
    if args.json:
        print(json.dumps(results[0] if len(args.size) == 1 else {"results": results}))
    elif any(r["rpcs"] for r in results):
        _print_table(args, results)
    return _conclude(args, results, errors, unresolved)


def _conclude(args: argparse.Namespace, results: list[dict[str, Any]], errors: list[str], unresolved: int) -> int:
    """What people should know, on stderr; the exit code."""
    if errors:
        print(f"smtnet: {errors[0]}{_hint(args, results, unresolved)}", file=sys.stderr)
    faithful = True
    for r in results:
        # Of a size that failed altogether there is nothing to be faithful.
        if r["rpcs"] and not r["fidelity"]["ok"]:
            faithful = False
            why = "; ".join(r["fidelity"]["reasons"])
            print(f"smtnet: {r['size']} bytes: not faithful: {why}", file=sys.stderr)
    if errors:
        return EXIT_FAILED
    return 0 if faithful else EXIT_UNFAITHFUL


def _hint(args: argparse.Namespace, results: list[dict[str, Any]], unresolved: int) -> str:
    if any(r["rpcs"] for r in results):
        return ""
    if unresolved:
        return f"; nobody answers ARP for it on {args.iface}"
    if args.profile == "homa":
        return "; is the server running?"
    return "; is the server running, with the same keys?"


def _print_table(args: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    print(f"echo {args.addr} -> {args.peer}, {args.profile}, nic {args.nic}, {args.concurrency} under way; "
          "round trips in us")
    names = ("min", *(name for name, _share in PERCENTILES), "max", "mean")
    print(f"{'bytes':>9}{'rpcs':>9}{'errors':>8}{'rpc/s':>10}" + "".join(f"{name:>10}" for name in names))
    for r in results:
        rtt = "".join(f"{'-' if r['rtt_us'][n] is None else format(r['rtt_us'][n], '.1f'):>10}" for n in names)
        print(f"{r['size']:>9}{r['rpcs']:>9}{r['errors']:>8}{r['rpc_per_s']:>10,.0f}{rtt}")
