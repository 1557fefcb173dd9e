"""Sender and receiver of a stream on two hosts, moved by orders on stdin, a JSON line each.

``serve`` listens. ``{"how": {...}, "file": PATH, "offset": 0, "count": N, "record": 0}`` has it take one
connection, say ``{"ready": true}``, wait to be asked, and send so much of the file: as its system sends files, or
(``record``) from memory in writes of so many bytes. When the peer has hung up, it says what it copied. With
``"pause": M`` it stops after M bytes, once they are acknowledged, says ``{"paused": true}``, goes on at ``{}`` and
says ``{"written": true}`` when TCP has the rest.

``call`` connects by ``{"how": {...}, "peer": [IP, PORT], "count": N}``, says ``{"ready": true}``, at ``{}`` asks,
takes N bytes and says from when to when (``"trace": true``: also how many bytes had come by when), and answers
``{"digest": 0}`` with the SHA-256 of what came, ``{"digest": B}`` with those of what came before the pause and of
each B bytes after it. Both say "ready" on stderr when they are up.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import select
import socket
import ssl
import struct
import sys
import termios
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from smtstack.errors import PeerError
from workloads.experiments.offload.senders import How, Receiving, Sending, accepted
from workloads.fleet.programs import run_on_host
from workloads.options.common import parse_address

#: Seconds that anything may take.
PATIENCE_S = 60.0
#: Bytes taken at a time.
_TAKE = 1 << 18


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stream")
    parser.add_argument("role", choices=("serve", "call"))
    parser.add_argument("--addr", required=True, help="IP:PORT where it listens")
    parser.add_argument("--certs", type=Path, required=True)
    return parser


def _say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


def _order() -> dict[str, Any]:
    line = sys.stdin.readline()
    if not line:
        raise PeerError("there are no more orders")
    order: dict[str, Any] = json.loads(line)
    return order


def _serve(args: argparse.Namespace) -> None:
    with socket.create_server(parse_address(args.addr)) as listener:
        listener.settimeout(PATIENCE_S)
        print("ready", file=sys.stderr, flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            sock, _peer = listener.accept()
            # Not by settimeout: sendfile needs a descriptor that waits.
            sock.setblocking(True)
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(PATIENCE_S), 0))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sending = accepted(sock, How(**order["how"]), args.certs)
            with open(order["file"], "rb") as file:
                _serve_one(sending, file.fileno(), order)


def _serve_one(sending: Sending, descriptor: int, order: dict[str, Any]) -> None:
    offset, count, record = order["offset"], order["count"], order["record"]
    data = memoryview(os.pread(descriptor, count, offset)) if record else memoryview(b"")
    _say(ready=True)
    error = ""
    try:
        sending.request()
        if pause := order.get("pause", 0):
            sending.file(descriptor, offset, pause)
            _until_acknowledged(sending.sock)
            _say(paused=True)
            _order()
            sending.file(descriptor, offset + pause, count - pause)
            _say(written=True)
        elif record:
            for at in range(0, count, record):
                sending.write(data[at:at + record])
        else:
            sending.file(descriptor, offset, count)
    except OSError as e:
        error = f"{type(e).__name__}: {e}"
    if not error:
        _until_hung_up(sending.sock)
    total, again = sending.sent()
    _say(copies=dict(sending.copies), sent=total, resent=again, error=error, **sending.notes())
    sending.close()


def _until_acknowledged(sock: socket.socket) -> None:
    """SIOCOUTQ: bytes that are not acknowledged."""
    left = ctypes.c_int(1)
    end = time.monotonic() + PATIENCE_S
    while True:
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, left)
        if not left.value:
            return
        if time.monotonic() > end:
            raise TimeoutError("the peer does not acknowledge")
        time.sleep(0.001)


def _until_hung_up(sock: socket.socket) -> None:
    waiter = select.poll()
    waiter.register(sock, select.POLLIN)
    with contextlib.suppress(ConnectionError):
        while waiter.poll(PATIENCE_S * 1000) and os.read(sock.fileno(), _TAKE):
            pass


def _call(args: argparse.Namespace) -> None:
    print("ready", file=sys.stderr, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        with socket.create_connection(tuple(order["peer"]), PATIENCE_S) as sock:
            receiving = Receiving(sock, How(**order["how"]), args.certs, order["peer"][0])
            room = memoryview(bytearray(order["count"]))
            _say(ready=True)
            _order()
            taken, answer = _take(receiving, room, bool(order.get("trace")))
            _say(**answer)
        piece = int(_order()["digest"])
        first = order.get("pause", 0)
        cuts = [0, *range(first, taken, piece), taken] if piece else [0, taken]
        _say(digests=[hashlib.sha256(room[start:end]).hexdigest() for start, end in pairwise(cuts)])


def _take(receiving: Receiving, room: memoryview, trace: bool) -> tuple[int, dict[str, Any]]:
    """(bytes that came, what to say of them)."""
    count, taken, error, number = len(room), 0, "", 0
    times: list[tuple[float, int]] = []
    start = time.monotonic()
    try:
        receiving.ask()
        while taken < count:
            got = receiving.take(room[taken:taken + _TAKE])
            if not got:
                error = "the stream ended early"
                break
            taken += got
            if trace:
                times.append((round(time.monotonic() - start, 6), taken))
    except (OSError, ssl.SSLError) as e:
        error, number = f"{type(e).__name__}: {e}", e.errno or 0
    end = time.monotonic()
    # Now, as the sender waits for it.
    receiving.close()
    return taken, {"start": start, "end": end, "bytes": taken, "error": error, "errno": number, "trace": times}


if __name__ == "__main__":
    run_on_host(_parser().parse_args, lambda args: _serve(args) if args.role == "serve" else _call(args))
