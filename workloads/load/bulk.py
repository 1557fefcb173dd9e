"""A one-way stream as fast as it goes, sealed by whom it is told: ``python -m workloads.load.bulk send|receive
...``, programs of hosts that smtnet bench ktls starts. Orders and answers are lines of JSON.

The receiver opens nothing: what is measured is the sending half.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

from smtstack.crypto.stream_gcm import CIPHERS
from smtstack.errors import SmtError
from smtstack.ktls.params import VERSION_1_3, TlsParams
from smtstack.ktls.stats import NIC, TlsStats
from smtstack.ktls_io.backends import default_backends
from smtstack.ktls_io.coproc import ProcessBackend
from smtstack.ktls_io.nic_mode import TapNics
from smtstack.ktls_io.socket import KtlsSocket

#: Systems that are no backend of our kernel TLS.
PLAIN: Final = "plain"
USER_TLS: Final = "user TLS"
BY_NIC: Final = "nic"
CIPHER: Final = "aes-256-gcm"
#: Bytes written at a time: a file's, say.
_WRITE: Final = 1 << 18
_PATIENCE_S: Final = 30.0


def receive(port: int, certs: Path) -> None:
    """Take whatever comes on any connection; TLS is shaken hands for where the first byte says so."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs / "cert.pem", certs / "key.pem")
    context.num_tickets = 0

    def take(sock: socket.socket) -> None:
        with sock:
            end = context.wrap_socket(sock, server_side=True) if sock.recv(1) == b"t" else sock
            buffer = bytearray(1 << 18)
            while os.readv(end.fileno(), [buffer]):
                pass
            end.close()

    with socket.create_server(("", port), backlog=64) as listener:
        print("receiving", file=sys.stderr, flush=True)
        while True:
            sock, _address = listener.accept()
            threading.Thread(target=take, args=(sock,), daemon=True).start()


def send(ip: str, port: int) -> None:
    """Carry out orders from stdin, ``{"system", "size", "seconds"}``, until it ends; an answer for each."""
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = measured(ip, port, order["system"], order["size"], order["seconds"])
        except (SmtError, OSError) as e:
            answer = {"error": str(e)}
        print(json.dumps(answer), flush=True)


def measured(ip: str, port: int, system: str, size: int, seconds: float) -> dict[str, Any]:
    """Send records of ``size`` bytes for so long: ``bytes`` of payload, ``seconds``, processor time of this
    process (``own_s``) and of one that seals for it (``helper_s``), and copies that we made, by what for."""
    with socket.create_connection((ip, port), _PATIENCE_S) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if system == PLAIN:
            sock.sendall(b"p")
            return _timed(sock.sendall, bytes(_WRITE), seconds)
        if system == USER_TLS:
            sock.sendall(b"t")
            return _user_tls(sock, size, seconds)
        sock.sendall(b"p")
        return _kernel_tls(sock, system, size, seconds)


def _timed(write: Any, data: bytes, seconds: float) -> dict[str, Any]:
    sent, cpu = 0, time.process_time()
    start = time.perf_counter()
    while (now := time.perf_counter()) - start < seconds:
        write(data)
        sent += len(data)
    return {"bytes": sent, "seconds": now - start, "own_s": time.process_time() - cpu, "helper_s": 0.0,
            "copies": {}}


def _user_tls(sock: socket.socket, size: int, seconds: float) -> dict[str, Any]:
    """OpenSSL by Python's ssl, a record for each write."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    # Only how fast records are made is measured.
    context.verify_mode = ssl.CERT_NONE
    with context.wrap_socket(sock) as end:
        pieces = [bytes(size)] * max(1, _WRITE // size)

        def write(_data: bytes) -> None:
            for piece in pieces:
                end.write(piece)

        return _timed(write, bytes(size * len(pieces)), seconds)


def _kernel_tls(sock: socket.socket, system: str, size: int, seconds: float) -> dict[str, Any]:
    stats = TlsStats(maxlen=size, ifnet_max_rexmit_pct=100)
    by_nic = system == BY_NIC
    backends = default_backends("openssl" if by_nic else system, nic=by_nic)
    helper = backends.get(system)
    key_len = CIPHERS[CIPHER]
    with KtlsSocket(sock, backends=backends, stats=stats, nic=TapNics() if by_nic else None) as end:
        end.txtls_enable(TlsParams(CIPHER, VERSION_1_3, os.urandom(key_len), os.urandom(12)))
        if by_nic and end.txtls_mode != NIC:
            end.txtls_mode = NIC  # raises why not
        before = helper.cpu_s() if isinstance(helper, ProcessBackend) else 0.0
        found = _timed(end.send, bytes(_WRITE), seconds)
        if isinstance(helper, ProcessBackend):
            found["helper_s"] = helper.cpu_s() - before
        found["copies"] = dict(end.copies)
    if isinstance(helper, ProcessBackend):
        helper.close()
    return found


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "receive":
        receive(int(arguments[0]), Path(arguments[1]))
    else:
        send(arguments[0], int(arguments[1]))
