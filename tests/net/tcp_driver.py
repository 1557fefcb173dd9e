"""Ordinary TCP, with a hash: ``python -m tests.net.tcp_driver serve IP PORT`` and ``... send IP PORT MEGABYTES``.

Each prints the SHA-256 of what it got, or sent.
"""

from __future__ import annotations

import hashlib
import socket
import sys

_PIECE = 1 << 20


def serve(ip: str, port: int) -> str:
    """The hash of what the first connection brings."""
    digest = hashlib.sha256()
    with socket.create_server((ip, port)) as listener:
        print("serving", file=sys.stderr, flush=True)
        connection, _peer = listener.accept()
        with connection:
            while piece := connection.recv(_PIECE):
                digest.update(piece)
    return digest.hexdigest()


def send(ip: str, port: int, megabytes: int) -> str:
    """The hash of so much, every megabyte another."""
    digest = hashlib.sha256()
    with socket.create_connection((ip, port), timeout=60) as connection:
        for n in range(megabytes):
            piece = hashlib.sha256(n.to_bytes(4, "big")).digest() * (_PIECE // 32)
            digest.update(piece)
            connection.sendall(piece)
    return digest.hexdigest()


if __name__ == "__main__":
    where = sys.argv[2], int(sys.argv[3])
    print(serve(*where) if sys.argv[1] == "serve" else send(*where, int(sys.argv[4])))
