"""For the tests of our kernel TLS: certificates, connected sockets, and peers that are not ours."""

from __future__ import annotations

import hashlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smtstack.ktls_io.handshake import make_context
from workloads.fleet import credentials

PATIENCE = 20.0
#: TLS version, our cipher's name, and OpenSSL's words for it.
SUITES = [(0x0304, "aes-128-gcm", "TLS_AES_128_GCM_SHA256"), (0x0304, "aes-256-gcm", "TLS_AES_256_GCM_SHA384"),
          (0x0304, "chacha20-poly1305", "TLS_CHACHA20_POLY1305_SHA256"),
          (0x0303, "aes-128-gcm", "ECDHE-ECDSA-AES128-GCM-SHA256"),
          (0x0303, "aes-256-gcm", "ECDHE-ECDSA-AES256-GCM-SHA384"),
          (0x0303, "chacha20-poly1305", "ECDHE-ECDSA-CHACHA20-POLY1305")]


class Certificates:
    """Of one host, 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        credentials.make(folder, "tls", {"a": "127.0.0.1"})
        self.cert, self.key, self.ca = (str(folder / "a" / f"{name}.pem") for name in ("cert", "key", "ca"))

    def ours(self, version: int, name: str) -> Any:
        """A context of ours that offers one suite."""
        suites, ciphers = (name, "") if version == 0x0304 else ("", name)
        return make_context(self.cert, self.key, self.ca, (version, version), ciphers, suites)

    def theirs(self, server: bool, tickets: int = 0) -> ssl.SSLContext:
        """A context of Python's ssl that takes anything."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.load_cert_chain(self.cert, self.key)
        context.load_verify_locations(self.ca)
        if server:
            context.verify_mode = ssl.CERT_REQUIRED
            context.num_tickets = tickets
        return context


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection over the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _address = listener.accept()
    for end in (one, other):
        end.settimeout(PATIENCE)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one, other


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """Do the work in a thread; raises what it raised."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as e:
            failures.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE)
    assert not thread.is_alive(), "it does not end"
    if failures:
        raise failures[0]


def pattern(size: int, seed: int = 1) -> bytes:
    """Bytes that repeat nowhere."""
    return hashlib.shake_128(seed.to_bytes(4, "big")).digest(size)


@contextmanager
def openssl(*words: str, fed: bytes | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """The ``openssl`` program; ended at the end. ``fed``: its standard input, which then stays open."""
    with subprocess.Popen(["openssl", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as process:
        try:
            if fed is not None:
                assert process.stdin is not None
                process.stdin.write(fed)
                process.stdin.flush()
            yield process
        finally:
            process.kill()
