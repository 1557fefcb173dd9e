"""Programs of test_sessions.py, run on a host: ``python -m tests.net.socket_drivers NAME ...``. JSON on stdout."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smtstack.aio import AioSocket
from smtstack.capture.pcapfile import Reader
from smtstack.session.established import MODES
from smtstack.session.resumption import PskStore
from smtstack.socket import RpcError, SmtContext, SmtSocket
from smtstack.transport.params import TransportParams
from smtstack.wire.frame import is_handshake
from smtstack.wire.ipv4 import address
from tests.net.netns import IFACE, A, B

PEER = (B, 2000)
#: As PATIENT in netns.py.
PATIENT = TransportParams(timeout_resends=1000)
_SOURCE = slice(26, 30)


def context(certs: str, mode: str, **settings: Any) -> SmtContext:
    return SmtContext(IFACE, params=PATIENT, certs=Path(certs), session=mode, dns=(B, 53), **settings)


def modes(port: str, certs: str, mode: str) -> None:
    """A first and a second session of a blocking socket, then one of an asyncio socket; what each was like."""
    rng = random.Random(1)
    wanted = [rng.randbytes(size) for size in (1, 64, 1500, 5000, 40_000) * 4]
    psks = PskStore()
    found: list[dict[str, Any]] = []

    def note(sock: SmtSocket, good: int) -> None:
        session = sock.session_of(PEER)
        assert session is not None
        found.append({"good": good, "mode": session.mode, "peer": session.peer_name, **sock.counters()})

    for number in range(2):
        with SmtSocket((A, int(port) + number), context(certs, mode, psks=psks)) as sock:
            futures = [sock.send_request(PEER, data) for data in wanted]
            note(sock, sum(f.result(20.0) == data for f, data in zip(futures, wanted, strict=True)))

    async def main() -> None:
        async with AioSocket((A, int(port) + 2), context(certs, mode, psks=psks)) as sock:
            await sock.prepare([PEER], 20.0)
            answers = await asyncio.gather(*(sock.request(PEER, data, 20.0) for data in wanted))
            note(sock.socket, sum(a == w for a, w in zip(answers, wanted, strict=True)))

    asyncio.run(main())
    assert mode in MODES
    print(json.dumps(found))


def restart(port: str, certs: str) -> None:
    """A request, then (when stdin has a line) requests until one is answered again; how many failed, and how."""
    failures = []
    with SmtSocket((A, int(port)), SmtContext(IFACE, certs=Path(certs))) as sock:
        sock.request(PEER, b"?", 20.0)
        print("ready", file=sys.stderr, flush=True)
        sys.stdin.readline()
        while True:
            try:
                answer = sock.request(PEER, b"!", 20.0)
                break
            except RpcError as e:
                failures.append(str(e))
        print(json.dumps({"answer": answer.decode(), "failures": failures, **sock.counters()}))


def inject(capture: str, times: str) -> None:
    """Send again what host a sent in this capture: all of it, then all but the handshakes, so many times."""
    with Path(capture).open("rb") as file:
        frames = [c.frame for c in Reader(file).frames_untrusted()]
    ours = [f for f in frames if f[_SOURCE] == address(A).to_bytes(4, "big")]
    assert any(map(is_handshake, ours))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind((IFACE, 0))
        for _time in range(int(times)):
            for frame in [*ours, *(f for f in ours if not is_handshake(f))]:
                sock.send(frame)
    print(json.dumps({"sent": len(ours)}))


PROGRAMS: dict[str, Callable[..., None]] = {"modes": modes, "restart": restart, "inject": inject}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](*sys.argv[2:])
