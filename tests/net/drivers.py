"""Programs the tests run inside a namespace: ``python -m tests.net.drivers NAME ...``. JSON on stdout."""

from __future__ import annotations

import asyncio
import json
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from smtstack.aio import AioSocket
from smtstack.errors import SmtError
from smtstack.io.neighbours import Neighbours
from smtstack.io.packet_socket import PacketSocket
from smtstack.nic.descriptors import Route
from smtstack.nic.impairments import ImpairmentRates, Impairments
from smtstack.socket import RpcError, SmtContext, SmtSocket
from smtstack.transport.params import TransportParams
from smtstack.wire.ethernet import Ethernet
from smtstack.wire.homa import DATA, PROTO_HOMA
from smtstack.wire.ipv4 import address
from tests.net.netns import IFACE, A, B
from workloads import transports
from workloads.transports import Settings
from workloads.transports.contract import Incoming

PEER = (B, 2000)
#: As PATIENT in netns.py.
PATIENT = TransportParams(timeout_resends=1000)
CANARY = b"*plaintext-canary*"


def lossy(port: str, gso: str, drop: str) -> None:
    """RPCs of profile linux, with frames lost in both directions; every answer compared."""
    rates = ImpairmentRates(drop=float(drop))
    tx, rx = Impairments(rates, seed=1), Impairments(rates, seed=2)
    params = replace(PATIENT, max_gso_size=int(gso))
    context = SmtContext(IFACE, "linux", "demo", params=params, tx_impairments=tx, rx_impairments=rx)
    sizes = [1, 64, 1400, 1500, 5000, 20_000, 60_000] * 4
    with SmtSocket((A, int(port)), context) as sock:
        rng = random.Random(1)
        wanted = [rng.randbytes(size) for size in sizes]
        futures = [sock.send_request(PEER, data) for data in wanted]
        good = sum(f.result(20.0) == data for f, data in zip(futures, wanted, strict=True))
        say(rpcs=len(sizes), good=good, dropped=tx.dropped + rx.dropped, **sock.counters())


def canary(profile: str, port: str, keys: str) -> None:
    """Requests full of canaries, of one packet and of several; then stays for the server, until SIGTERM."""
    with SmtSocket((A, int(port)), SmtContext(IFACE, profile, keys, PATIENT)) as sock:
        for size in (100, 20_000):
            data = (CANARY * size)[:size]
            assert sock.request(PEER, data, 10.0) == data
        stopped: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _frame: stopped.append(number))
        print("done", file=sys.stderr, flush=True)
        while not stopped:
            sock.drive(lambda: bool(stopped), 0.05)


def removed(port: str) -> None:
    """The interface is removed under a socket: what a known and an unknown neighbour are like then."""
    with SmtSocket((A, int(port)), SmtContext(IFACE, "homa", params=PATIENT)) as sock:
        sock.request(PEER, b"?", 10.0)
        subprocess.run(["ip", "link", "del", IFACE], check=True)
        known = unknown = ""
        try:
            sock.request(("10.9.0.9", 2000), b"?", 2.0)
        except SmtError as e:
            unknown = type(e).__name__
        try:
            sock.request(PEER, b"?", 2.0)
        except SmtError as e:
            known = f"{type(e).__name__}: {e}"
        say(known=known, unknown=unknown)


def down(port: str) -> None:
    """How often a socket wakes up in half a second with its interface down, and whether it works afterwards."""
    link = ["ip", "link", "set", "dev", IFACE]
    with SmtSocket((A, int(port)), SmtContext(IFACE, "homa", params=PATIENT)) as sock:
        sock.request(PEER, b"?", 10.0)
        sock.linger()
        subprocess.run([*link, "down"], check=True)
        before = sock.loop.statistics.wakeups
        sock.drive(lambda: False, 0.5)
        wakeups = sock.loop.statistics.wakeups - before
        subprocess.run([*link, "up"], check=True)
        say(wakeups=wakeups, answer=sock.request(PEER, b"?", 10.0).decode())


def gather(port: str, keys: str) -> None:
    """100 requests at once on an event loop, then one that is cancelled and one that times out."""
    async def main() -> None:
        delayed = Impairments(ImpairmentRates(delay_ns=3_000_000))
        context = SmtContext(IFACE, keys=keys, params=PATIENT, tx_impairments=delayed)
        async with AioSocket((A, int(port)), context) as sock:
            rng = random.Random(1)
            wanted = [rng.randbytes(size) for size in (1, 64, 1500, 5000, 40_000) * 20]
            answers = await asyncio.gather(*(sock.request(PEER, data, 20.0) for data in wanted))
            times = []
            for _n in range(10):
                start = time.monotonic()
                await sock.request(PEER, b"alone", 20.0)
                times.append(time.monotonic() - start)
            endpoint = sock.socket.endpoint
            task = asyncio.create_task(sock.request((B, 2999), b"nobody is there", 20.0))
            while not endpoint.snapshot()["rpcs"]:
                await asyncio.sleep(0)
            task.cancel()
            ended = (await asyncio.gather(task, return_exceptions=True))[0]
            left = endpoint.snapshot()["rpcs"]
            silence = ""
            try:
                await sock.request((B, 2999), b"nobody is there", 0.01)
            except RpcError as e:
                silence = str(e)
            say(good=sum(a == w for a, w in zip(answers, wanted, strict=True)), ended=type(ended).__name__,
                left=left, silence=silence, fastest=min(times))

    asyncio.run(main())


def aio_serve(keys: str) -> None:
    """An echo server on an event loop, behind a slow link: the pacer sends answers packet by packet."""
    async def main() -> None:
        params = replace(PATIENT, link_mbps=200, max_gso_size=1500)
        async with AioSocket(PEER, SmtContext(IFACE, keys=keys, params=params)) as sock:
            print("serving", file=sys.stderr, flush=True)
            async for request in sock.requests():
                request.reply(request.data)

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    asyncio.run(main())


def two_transports(port: str, certs: str) -> None:
    """One process, one select(): echo over smt and, on the same port number, over tcp. Until SIGTERM."""
    def echo(request: Incoming) -> None:
        request.reply(request.data)

    local = (B, int(port))
    signal.signal(signal.SIGTERM, lambda *_args: sys.exit(0))
    with (transports.open_server(Settings("smt", local, IFACE, certs=Path(certs), params=PATIENT), echo) as smt,
          transports.open_server(Settings("tcp", local), echo) as tcp):
        print("serving", file=sys.stderr, flush=True)
        while True:
            wakes = [wake for server in (smt, tcp) if (wake := server.next_wake()) is not None]
            left = max(0, min(wakes) - time.monotonic_ns()) / 1e9 if wakes else 1.0
            readable, _w, _x = select.select([smt.fileno(), tcp.fileno()], [], [], left)
            # A deadline that has passed is a reason as well as a frame that has come.
            smt.poll()
            if tcp.fileno() in readable:
                tcp.poll()


def batches() -> None:
    """Batches of all lengths between two packet sockets on a cable of their own, and through its troubles: what
    came of each."""
    link = ["ip", "link", "set", "s0"]

    def ip(*words: str) -> None:
        subprocess.run([*link, *words], check=True)

    subprocess.run(["ip", "link", "add", "s0", "type", "veth", "peer", "r0"], check=True)
    ip("up")
    subprocess.run(["ip", "link", "set", "r0", "up"], check=True)
    near, far = address("10.8.0.1"), address("10.8.0.2")
    sender = PacketSocket("s0", near, 1, PROTO_HOMA, 1500)
    receiver = PacketSocket("r0", far, 1, PROTO_HOMA, 1500)
    route = Route(Ethernet(receiver.mac, sender.mac), near, far, PROTO_HOMA)
    header = bytes(2) + (1).to_bytes(2, "big") + bytes(36)
    rng = random.Random(1)

    def frames(count: int, sizes: list[int]) -> list[bytes]:
        return [route.frame(0, 0, header, rng.randbytes(rng.choice(sizes))) for _ in range(count)]

    def arrived(sent: list[bytes]) -> list[bytes]:
        sender.send(sent)
        return receiver.receive(4096)

    whole = sum(arrived(sent) == sent for n in range(200) for sent in [frames(n, [1, 30, 700, 1440])])
    ip("mtu", "600")
    mixed = frames(200, [20, 1000])
    short = arrived(mixed) == [frame for frame in mixed if len(frame) < 600]
    long_lost = sender.send_drops == sum(len(frame) > 600 for frame in mixed)
    ip("down")
    down = len(arrived(frames(100, [20])))
    down_lost = sender.send_drops
    ip("mtu", "1500", "up")
    again = frames(100, [20, 1440])
    up = arrived(again) == again
    subprocess.run(["ip", "link", "del", "s0"], check=True)
    removed = ""
    try:
        sender.send(again)
    except SmtError as e:
        removed = f"{type(e).__name__}: {e}"
    sender.close()
    receiver.close()
    say(whole=whole, short=short, long_lost=long_lost, down=down,
        down_lost=down_lost - sum(len(frame) > 600 for frame in mixed), up=up, removed=removed)


def flood(seconds: str, frames: str) -> None:
    """Junk for the server's port and for others, of our address and of strangers, without a pause, until SIGTERM
    or one of the bounds; how many frames for its port, and for others."""
    rng = random.Random(1)
    ether = Neighbours(IFACE)
    mac = None
    while mac is None:
        mac = ether(address(B))
    routes = [Route(Ethernet(mac, bytes(6)), address(source), address(B), PROTO_HOMA)
              for source in (A, "10.9.0.3", "10.9.0.77")]
    types = [DATA, *range(0x10, 0x20)]
    junk: dict[int, list[bytes]] = {2000: [], 2001: [], 9999: []}
    for port, made in junk.items():
        while len(made) < 256:
            header = bytearray(rng.randbytes(40))
            header[2:4] = port.to_bytes(2, "big")
            header[13] = rng.choice(types)
            made.append(rng.choice(routes).frame(0, 0, bytes(header), rng.randbytes(rng.choice([0, 20, 1400]))))
    # One of each in turn: the server never has a pause.
    mixed = [pair for turn in zip(*([(port, frame) for frame in made] for port, made in junk.items()), strict=True)
             for pair in turn]
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopped.append(number))
    sent = dict.fromkeys(junk, 0)
    end = time.monotonic() + float(seconds)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind((IFACE, 0))
        while not stopped and time.monotonic() < end and sum(sent.values()) < int(frames):
            for port, frame in mixed:
                sock.send(frame)
                sent[port] += 1
            if sum(sent.values()) == 768 * 4:
                print("flooding", file=sys.stderr, flush=True)
    say(stopped=bool(stopped), server=sent[2000], others=sent[2001] + sent[9999])


def say(**numbers: Any) -> None:
    """The result."""
    print(json.dumps(numbers))


PROGRAMS: dict[str, Callable[..., None]] = {
    "lossy": lossy, "canary": canary, "removed": removed, "down": down, "gather": gather, "aio_serve": aio_serve,
    "two_transports": two_transports, "batches": batches, "flood": flood}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](*sys.argv[2:])
