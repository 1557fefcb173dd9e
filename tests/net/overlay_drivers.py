"""What the overlay's tests run on a host: ``python -m tests.net.overlay_drivers WHAT ...``; JSON on stdout.

``tables``: names of the nf_tables of this namespace. ``tcp``: what the host's TCP counted. ``receive PORT`` and
``send IP PORT BYTES``: a transfer over the kernel's TCP, with its SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import sys
from pathlib import Path
from typing import Any

_NETFILTER, _GET_TABLE, _DUMP, _DONE = 12, 10 << 8 | 1, 0x301, 3
_CHUNK = 1 << 16


def tables() -> list[str]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER) as sock:
        sock.send(struct.pack("=IHHIIBBH", 20, _GET_TABLE, _DUMP, 1, 0, 2, 0, 0))
        found: list[str] = []
        while True:
            answer = sock.recv(_CHUNK)
            at = 0
            while at < len(answer):
                length, kind = struct.unpack_from("=IH", answer, at)
                if kind == _DONE:
                    return found
                size, _name = struct.unpack_from("=HH", answer, at + 20)
                found.append(answer[at + 24:at + 20 + size].rstrip(b"\0").decode())
                at += length + 3 & ~3


def tcp() -> dict[str, int]:
    names, values = [line.split()[1:] for line in Path("/proc/net/snmp").read_text().splitlines()
                     if line.startswith("Tcp:")]
    return dict(zip(names, map(int, values), strict=True))


def receive(port: int) -> dict[str, Any]:
    with socket.create_server(("", port)) as server:
        print("listening", file=sys.stderr, flush=True)
        connection, _peer = server.accept()
        with connection:
            digest, count = hashlib.sha256(), 0
            while data := connection.recv(_CHUNK):
                digest.update(data)
                count += len(data)
    return {"bytes": count, "sha256": digest.hexdigest()}


def send(ip: str, port: int, count: int) -> dict[str, Any]:
    digest = hashlib.sha256()
    with socket.create_connection((ip, port)) as connection:
        for number in range(count // _CHUNK):
            data = hashlib.sha256(b"%d" % number).digest() * (_CHUNK // 32)
            digest.update(data)
            connection.sendall(data)
    return {"bytes": count // _CHUNK * _CHUNK, "sha256": digest.hexdigest()}


def main(what: str, *args: str) -> None:
    result: Any = {"tables": tables, "tcp": tcp}[what]() if not args else (
        receive(int(args[0])) if what == "receive" else send(args[0], int(args[1]), int(args[2])))
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
