"""One end of a cell of the trust matrix, on a host: a server that echoes, or a client that sends canaries when it
is told to, and says its traffic key and what is in the memory that it shares with the host.

    python -m workloads.experiments.trust.canary server|client CELL IFACE IP CERTS [PEER]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from smtstack.nic.device import NicConfig
from smtstack.ringnic.socket import RingSocket
from smtstack.rings.layout import RINGS, UMEM
from smtstack.socket import INLINE, RING, SmtContext, SmtSocket
from workloads.fleet.programs import run_on_host

PORT, CLIENT_PORT = 2600, 2700
#: Dense in every message, so that one that is cut between two packets is seen all the same.
CANARY = b"*a canary that must not be seen*"
#: Bytes of messages of two kinds.
SHORT, LONG = 10 * len(CANARY), 30 * len(CANARY)
COUNT, QUICK_COUNT = 20, 8
_FLUSH_S = 0.2

#: By cell: (hosting, NIC's TLS offload, NIC trusted), and for the control the profile without encryption.
CELLS: dict[str, tuple[str, bool, bool, str]] = {
    "nic+ host+": (INLINE, True, True, "smt"),
    "nic- host+": (INLINE, False, False, "smt"),
    "nic+ host-": (RING, True, True, "smt"),
    "nic- host-": (RING, False, False, "smt"),
    "control": (INLINE, False, False, "homa"),
}


def context(cell: str, interface: str, certs: Path) -> SmtContext:
    """How a cell's ends are."""
    hosting, offload, trusted, profile = CELLS[cell]
    return SmtContext(interface, profile, nic=NicConfig(tls_hw_tx_offload=offload, trusted=trusted),
                      certs=certs if profile == "smt" else None, hosting=hosting)


def shared(sock: SmtSocket, needles: list[bytes]) -> list[int]:
    """How often each is in the memory that the host shares; and the last one, once it was put there."""
    ring = sock.loop.socket
    if not isinstance(ring, RingSocket):
        return []
    memories = ring.memories
    found = [sum(memories[name].copy(0, memories[name].length).count(needle) for name in (UMEM, *RINGS))
             for needle in needles]
    umem = memories[UMEM]
    umem.write(umem.length - 100, needles[-1])
    return [*found, umem.copy(0, umem.length).count(needles[-1])]


def send(sock: SmtSocket, peer: tuple[str, int], count: int) -> dict[str, Any]:
    """So many canaries of two sizes, each answered; our key, and what is shared."""
    key, right = b"", 0
    for number in range(count):
        data = CANARY * ((SHORT if number % 2 else LONG) // len(CANARY))
        future = sock.send_request(peer, data)
        key = getattr(future.rpc.keys.tx, "key", b"") if future.rpc.keys is not None else b""
        right += future.result(20.0) == data
    # What is recorded of the NIC is in the file after a while in which nothing happens.
    sock.drive(lambda: False, _FLUSH_S)
    counters = sock.counters()
    needles = [key, CANARY] if key else [CANARY]
    return {"right": right, "key": key.hex(), "shared": shared(sock, needles),
            "contexts": counters["tx_tls_ctx"], "asked_in_vain": counters["tx_tls_refused"],
            "on": sock.loop.nic.features()["tls-hw-tx-offload"]}


def _read() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="canary")
    parser.add_argument("role", choices=("server", "client"))
    parser.add_argument("cell", choices=CELLS)
    parser.add_argument("iface")
    parser.add_argument("ip")
    parser.add_argument("certs", type=Path)
    parser.add_argument("peer", nargs="?", default="")
    return parser.parse_args()


def _work(args: argparse.Namespace) -> None:
    port = PORT if args.role == "server" else CLIENT_PORT
    with SmtSocket((args.ip, port), context(args.cell, args.iface, args.certs)) as sock:
        sock.guard(kill=True)
        print("ready", file=sys.stderr, flush=True)
        if args.role == "client":
            for line in sys.stdin:
                told = send(sock, (args.peer, PORT), json.loads(line)["count"])
                os.write(1, json.dumps(told).encode() + b"\n")
            return
        parent = os.getppid()
        while os.getppid() == parent:
            request = sock.receive(0.2)
            if request is not None:
                request.reply(request.data)


if __name__ == "__main__":
    run_on_host(_read, _work)
