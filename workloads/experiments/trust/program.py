"""One end of UDP by some interface, on a host: takes orders on stdin, answers on stdout, a JSON line each.

Says "ready" when its port is open. From then on it is under a filter that ends it with its first network system
call, unless its interface is the kernel's socket: an answer says that there was none.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
import time
from array import array
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from smtstack.errors import ConfigError
from smtstack.hostcalls.ports import CalledUdp, DatagramPort, NativeUdp, QueuedUdp, RingUdp
from smtstack.io import seccomp
from smtstack.io.packet_socket import interface_mtu
from smtstack.wire.ipv4 import address
from workloads.experiments.trust.interfaces import EXIT, MODELLED, NATIVE, QUEUE, RING, UNCHECKED, ZERO_COPY
from workloads.fleet.programs import run_on_host

#: Datagrams sent or taken at a time.
_BATCH = 64
#: What stands before a datagram's pattern: the order it was sent for, 2 bytes, and its number.
_NUMBER = 8
_NUMBER_BITS = 48
_IDLE_NS = 20_000_000
#: Once the sender has ended, so long without another datagram: it is over.
_SILENCE_NS = 100_000_000
#: The same where none has come at all: on a loaded machine they may still be on their way.
_FIRST_NS = 2_000_000_000
_ECHO_PATIENCE_NS = 1_000_000_000
#: Who gets no answer so often, one after the other, asks no more.
_MOST_LOST = 10
#: How long who waits as a hybrid looks before it sleeps.
_LOOK_NS = 50_000


def open_port(interface: str, iface: str, ip: int, port: int, exit_ns: int) -> DatagramPort:
    """An end by one of the interfaces. Raises SmtError, OSError."""
    if interface == NATIVE:
        return NativeUdp(ip, port)
    if interface in (EXIT, MODELLED):
        return CalledUdp(ip, port, exit_ns if interface == MODELLED else 0)
    if interface == QUEUE:
        return QueuedUdp(ip, port)
    if interface in (RING, UNCHECKED, ZERO_COPY):
        return RingUdp(iface, ip, port, interface_mtu(iface), interface != UNCHECKED, interface == ZERO_COPY)
    raise ConfigError(f"there is no interface {interface!r}")


class Orders:
    """Lines of stdin, which may be looked for meanwhile. Neither select() nor what Python's files ask by ioctl: a
    guarded process may do neither."""

    def __init__(self) -> None:
        self._rest = b""
        self._ended = False
        self._flags = fcntl.fcntl(0, fcntl.F_GETFL)

    def next(self) -> bytes:
        """The next one, when it is there; empty: there will be none."""
        fcntl.fcntl(0, fcntl.F_SETFL, self._flags & ~os.O_NONBLOCK)
        while b"\n" not in self._rest and not self._ended:
            self._read()
        line, _newline, self._rest = self._rest.partition(b"\n")
        return line

    def waiting(self) -> bool:
        """Whether there is one, or will be none."""
        if b"\n" not in self._rest and not self._ended:
            fcntl.fcntl(0, fcntl.F_SETFL, self._flags | os.O_NONBLOCK)
            with suppress(BlockingIOError):
                self._read()
        return b"\n" in self._rest or self._ended

    def _read(self) -> None:
        data = os.read(0, 1 << 16)
        self._ended = not data
        self._rest += data


class End:
    """What is done with a port."""

    def __init__(self, port: DatagramPort, peer: tuple[int, int], orders: Orders) -> None:
        self._port = port
        self._peer = peer
        self._orders = orders
        self._order = 0

    def begin(self, order: int) -> None:
        """From here on it is order ``order``, one up from the last, of both ends: what was sent for another and
        was long on its way is nobody's."""
        self._order = order % (1 << (8 * _NUMBER - _NUMBER_BITS))

    def _late(self, data: bytes) -> bool:
        return len(data) >= _NUMBER and int.from_bytes(data[:_NUMBER], "big") >> _NUMBER_BITS < self._order

    def _over(self, last: int, came: int) -> bool:
        """Nothing has come since ``last``, and it is no use to wait: the next order is here."""
        return self._orders.waiting() and time.monotonic_ns() - last > (_SILENCE_NS if came else _FIRST_NS)

    def _message(self, number: int, pattern: bytes) -> tuple[int, int, bytes]:
        return *self._peer, (self._order << _NUMBER_BITS | number).to_bytes(_NUMBER, "big") + pattern

    def blast(self, size: int, seconds: float) -> dict[str, Any]:
        """Send datagrams of so many bytes as fast as they go."""
        pattern = _pattern(size)
        number, send, make = 0, self._port.send, self._message
        start = time.monotonic_ns()
        end = start + int(seconds * 1e9)
        while time.monotonic_ns() < end:
            send([make(at, pattern) for at in range(number, number + _BATCH)])
            number += _BATCH
        return {"sent": number, "s": (time.monotonic_ns() - start) / 1e9}

    def one_by_one(self, size: int, count: int, raw: str) -> dict[str, Any]:
        """Send so many, a call each; nanoseconds of each into the file ``raw``."""
        pattern, send, clock = _pattern(size), self._port.send, time.perf_counter_ns
        took = array("Q")
        for number in range(count):
            message = [self._message(number, pattern)]
            before = clock()
            send(message)
            took.append(clock() - before)
        _write(raw, took)
        return {"sent": count}

    def count(self, size: int) -> dict[str, Any]:
        """Take what comes until the next order is here and nothing comes; each datagram is compared."""
        pattern, take = _pattern(size), self._port.receive
        came = wrong = 0
        seen: set[int] = set()
        begun, last = 0, time.monotonic_ns()
        while True:
            got = take(_BATCH)
            if got:
                last = time.monotonic_ns()
                for source, port, data in got:
                    if self._late(data):
                        continue
                    begun = begun or last
                    came += 1
                    number = int.from_bytes(data[:_NUMBER], "big")
                    if (source, port) != self._peer or data[_NUMBER:] != pattern or number in seen \
                            or number >> _NUMBER_BITS != self._order:
                        wrong += 1
                    seen.add(number)
                continue
            if self._over(last, came):
                return {"came": came, "wrong": wrong, "s": max(last - begun, 1) / 1e9}
            self._port.wait(_IDLE_NS)

    def echo(self, size: int) -> dict[str, Any]:
        """Send back what comes until the next order is here and nothing comes."""
        came, last = 0, time.monotonic_ns()
        while not self._over(last, came):
            got = self._port.receive(_BATCH)
            if not got:
                self._port.wait(_IDLE_NS)
                continue
            last = time.monotonic_ns()
            got = [one for one in got if not self._late(one[2])]
            self._port.send(got)
            came += len(got)
        return {"came": came, "size": size}

    def ask(self, size: int, count: int, raw: str, wait: str) -> dict[str, Any]:
        """So many echoes, one at a time; nanoseconds of each answered one into the file ``raw``. ``wait``: how for
        an answer: ``poll``, ``event``, ``hybrid``. When nobody answers any more, the rest is lost."""
        pattern, port, clock = _pattern(size), self._port, time.perf_counter_ns
        took, lost, wrong, in_a_row = array("Q"), 0, 0, 0
        busy = time.process_time()
        for number in range(count):
            message = self._message(number, pattern)
            first = message[2][:_NUMBER]
            before = clock()
            port.send([message])
            got: list[tuple[int, int, bytes]] = []
            while not got and (now := clock()) - before < _ECHO_PATIENCE_NS:
                if wait == "event" or (wait == "hybrid" and now - before > _LOOK_NS):
                    port.wait(_IDLE_NS)
                # An answer to what was given up may still come, and says nothing of this one.
                got = [one for one in port.receive(_BATCH) if one[2][:_NUMBER] >= first]
            if not got:
                lost += 1
                in_a_row += 1
                if in_a_row == _MOST_LOST:
                    lost = count - len(took)
                    break
                continue
            in_a_row = 0
            took.append(clock() - before)
            wrong += got[-1] != message
        _write(raw, took)
        return {"answered": len(took), "lost": lost, "wrong": wrong, "cpu_s": time.process_time() - busy}

    def counters(self) -> dict[str, Any]:
        """What the interface counted, and whether we are under a filter."""
        return {"counters": self._port.counters(), "guarded": seccomp.guarded()}


def _pattern(size: int) -> bytes:
    return bytes(range(1, 252)) * 7 if size > 1757 else (bytes(range(1, 252)) * 7)[:max(0, size - _NUMBER)]


def _write(path: str, took: array[int]) -> None:
    # A descriptor of open() is asked by ioctl whether it is a terminal.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(descriptor, took.tobytes())
    os.close(descriptor)


def _read() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="udp")
    parser.add_argument("--io", required=True)
    parser.add_argument("--iface", required=True)
    parser.add_argument("--local", nargs=2, required=True)
    parser.add_argument("--peer", nargs=2, required=True)
    parser.add_argument("--exit-ns", type=int, default=0)
    return parser.parse_args()


def _work(args: argparse.Namespace) -> None:
    port = open_port(args.io, args.iface, address(args.local[0]), int(args.local[1]), args.exit_ns)
    lines = Orders()
    end = End(port, (address(args.peer[0]), int(args.peer[1])), lines)
    orders: dict[str, Callable[..., dict[str, Any]]] = {
        "blast": end.blast, "one_by_one": end.one_by_one, "count": end.count, "echo": end.echo, "ask": end.ask,
        "counters": end.counters}
    if args.io != NATIVE:
        seccomp.guard(kill=True)
    print("ready", file=sys.stderr, flush=True)
    while line := lines.next():
        order = json.loads(line)
        if order["do"] == "stop":
            continue
        if (order_number := order.pop("order", None)) is not None:
            end.begin(order_number)
        answer = orders[order.pop("do")](**order)
        os.write(1, json.dumps(answer).encode() + b"\n")
    port.close()


if __name__ == "__main__":
    run_on_host(_read, _work)
