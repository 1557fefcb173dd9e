"""Frames of several priorities at steady rates, and who counts what arrives: two programs for hosts.

Both take orders on stdin and answer on stdout, a line of JSON each; they say "ready" on stderr and end with stdin.
Times are nanoseconds of CLOCK_MONOTONIC, which all network namespaces share. What is counted is of ``from`` to
``until``; beside it stands what there was in all::

    python -m workloads.experiments.priorities.program send --iface h2-eth0 --source 10.0.0.2 --to 10.0.0.1 \\
        --mac 02:00:00:00:00:01 --length 1514
    {"per_s": {"7": 487.6, "5": 487.6}, "start": 1000, "from": 2000, "until": 3000}
    {"sent": {"7": 2926, ...}, "counted": {"7": 2438, ...}, "late_us": 812.0, "refused": 0}

    python -m workloads.experiments.priorities.program receive --iface h1-eth0
    {"from": 2000, "until": 3000}
    {}                                                             when nothing more will come
    {"received": {"7": 2926, ...}, "counted": {"7": 2438, ...}, "missed": 0}
"""

from __future__ import annotations

import argparse
import errno
import heapq
import json
import select
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from smtstack.errors import Unsupported
from smtstack.io import bpf
from smtstack.io.packet_socket import PACKET_IGNORE_OUTGOING, PACKET_STATISTICS, SO_SNDBUFFORCE
from smtstack.io.ring import SOL_PACKET
from smtstack.wire.ethernet import ETHERTYPE_IPV4, Ethernet, parse_mac
from smtstack.wire.ipv4 import IPv4, address
from workloads.fleet.programs import run_on_host

#: For experiments, RFC 3692: no host has anything that answers.
PROTOCOL = 253
# Linux <asm-generic/socket.h>; Python has no names for these.
_SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 33, 35
_BUFFER = 16 << 20
_TIMESPEC = struct.Struct("qq")
#: Nanoseconds that frames wait for each other, so that a sender does not wake for every one.
_GRAIN_NS = 1_000_000
#: Of a frame that is received; its headers tell everything.
_HEADERS = 64
#: Frames between two looks at stdin.
_AT_ONCE = 256

Answer = dict[str, Any]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="class_traffic")
    roles = parser.add_subparsers(dest="role", required=True)
    sender, receiver = roles.add_parser("send"), roles.add_parser("receive")
    for role in (sender, receiver):
        role.add_argument("--iface", required=True)
    for name in ("--source", "--to", "--mac"):
        sender.add_argument(name, required=True)
    sender.add_argument("--length", required=True, type=int)
    return parser


def _serve(args: argparse.Namespace) -> None:
    with ExitStack() as stack:
        try:
            sock = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        except PermissionError:
            raise Unsupported("raw sockets need root (or CAP_NET_RAW): run with sudo") from None
        serve: Callable[[dict[str, Any]], Answer]
        if args.role == "send":
            sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, _BUFFER)
            sock.bind((args.iface, 0))
            mac: bytes = sock.getsockname()[4]

            def serve(order: dict[str, Any]) -> Answer:
                per_s = {int(number): rate for number, rate in order["per_s"].items()}
                frames = {number: frame(mac, parse_mac(args.mac), args.source, args.to, args.length, number)
                          for number in per_s}
                return send(sock, frames, per_s, order["start"], order["from"], order["until"])
        else:
            _listen(sock, args.iface)
            # Else the kernel says to each sender that nobody here speaks the protocol.
            bpf.attach(stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, PROTOCOL)),
                       bpf.reject_all())

            def serve(order: dict[str, Any]) -> Answer:
                return receive(sock, order["from"], order["until"])
        print("ready", file=sys.stderr, flush=True)
        while line := sys.stdin.readline():
            print(json.dumps(serve(json.loads(line))), flush=True)


def frame(source_mac: bytes, mac: bytes, source: str, to: str, length: int, number: int) -> bytes:
    """One of ``length`` bytes from the Ethernet header on, of class ``number``."""
    ethernet = Ethernet(mac, source_mac)
    ip = IPv4(address(source), address(to), PROTOCOL, length - 14, tos=number << 5)
    return (ethernet.pack() + ip.pack()).ljust(length, b"\0")


def send(sock: socket.socket, frames: Mapping[int, bytes], per_s: Mapping[int, float], start: int, begin: int,
         until: int) -> Answer:
    """Send ``frames`` of every class at its rate from ``start`` on, evenly; what is late is sent as soon as it can
    be."""
    flows = len(per_s)
    # Each class in the gaps of the others.
    due = [(start + 1e9 / rate * turn / flows, 1e9 / rate, number)
           for turn, (number, rate) in enumerate(per_s.items())]
    heapq.heapify(due)
    sent: Counter[int] = Counter()
    counted: Counter[int] = Counter()
    late, refused = 0.0, 0
    while (now := time.monotonic_ns()) < until:
        counts = now >= begin
        if counts:
            late = max(late, now - due[0][0])
        while due[0][0] <= now:
            at, interval, number = due[0]
            heapq.heapreplace(due, (at + interval, interval, number))
            try:
                sock.send(frames[number])
            except OSError as e:
                if e.errno != errno.ENOBUFS:
                    raise
                refused += 1
                continue
            sent[number] += 1
            counted[number] += counts
        rest = max(due[0][0] - now, _GRAIN_NS)
        time.sleep(min(rest, max(0, until - time.monotonic_ns())) / 1e9)
    return {"sent": sent, "counted": counted, "late_us": round(late / 1000, 1), "refused": refused}


def _listen(sock: socket.socket, interface: str) -> None:
    bpf.attach(sock, bpf.match([(bpf.LD_HALF, 12, ETHERTYPE_IPV4), (bpf.LD_BYTE, 23, PROTOCOL)]))
    sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    # The kernel's time of arrival: when we get to look does not matter.
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    sock.setblocking(False)
    sock.bind((interface, ETHERTYPE_IPV4))


def receive(sock: socket.socket, begin: int, until: int) -> Answer:
    """Count by class until the next line on stdin, and what has arrived by then."""
    clocks = time.time_ns() - time.monotonic_ns()
    received: Counter[int] = Counter()
    counted: Counter[int] = Counter()
    while True:
        ready, _writable, _exceptional = select.select([sock, sys.stdin], [], [])
        if sock not in ready:
            sys.stdin.readline()
            break
        for _ in range(_AT_ONCE):
            try:
                data, ancillary, _flags, _sender = sock.recvmsg(_HEADERS, _HEADERS)
            except BlockingIOError:
                break
            seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2])
            number = data[15] >> 5
            received[number] += 1
            counted[number] += begin <= seconds * 10**9 + nanoseconds - clocks < until
    missed = struct.unpack("II", sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
    return {"received": received, "counted": counted, "missed": missed}


if __name__ == "__main__":
    run_on_host(_parser().parse_args, _serve)
