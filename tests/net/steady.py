"""Programs that run until SIGTERM: a server, and a client that keeps asking it and says how that went.

``python -m tests.net.steady serve|ask KEYS PORT``; the server's port is PORT, the client asks PEER.
"""

from __future__ import annotations

import json
import random
import signal
import sys

from smtstack.nic.device import NicConfig
from smtstack.socket import RpcError, SmtContext, SmtSocket
from tests.net.drivers import PATIENT, PEER
from tests.net.netns import IFACE, A, B

SIZES = (64, 3000, 12_000)
#: Signals that came.
stopped: list[int] = []


def context(keys: str) -> SmtContext:
    return SmtContext(IFACE, "smt", keys, PATIENT, NicConfig(tls_hw_tx_offload=True))


def serve(keys: str, port: str) -> None:
    """Echo."""
    with SmtSocket((B, int(port)), context(keys)) as sock:
        print("serving", file=sys.stderr, flush=True)
        while not stopped:
            request = sock.receive(0.1)
            if request is not None:
                request.reply(request.data)


def ask(keys: str, port: str) -> None:
    """Several requests at a time; every answer is compared."""
    rng = random.Random(1)
    good = wrong = 0
    errors: list[str] = []
    with SmtSocket((A, int(port)), context(keys)) as sock:
        print("asking", file=sys.stderr, flush=True)
        while not stopped:
            asked = [rng.randbytes(size) for size in SIZES]
            for data, future in [(data, sock.send_request(PEER, data)) for data in asked]:
                try:
                    right = future.result(20.0) == data
                    good += right
                    wrong += not right
                except RpcError as e:
                    errors.append(str(e))
        sock.linger()
        print(json.dumps({"good": good, "wrong": wrong, "errors": errors, "counters": sock.counters()}))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _frame: stopped.append(number))
    {"serve": serve, "ask": ask}[sys.argv[1]](*sys.argv[2:])
