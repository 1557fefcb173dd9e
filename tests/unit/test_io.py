"""What decides about packets before they are read, next hops, and sockets on a cable of memory.

The programs that go to the kernel are run here by a small interpreter of classic BPF; that the kernel
agrees is seen in tests/net.
"""

from __future__ import annotations

import asyncio
import fcntl
import resource
import select
import selectors
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtstack import aio
from smtstack.aio import AioSocket
from smtstack.io import bpf, neighbours, packet_socket
from smtstack.io.packet_socket import PacketSocket, filter_program
from smtstack.io.send_batch import SendBatch
from smtstack.io.shared_port import worker_program
from smtstack.nic.impairments import ImpairmentRates, Impairments
from smtstack.socket import RpcError, SmtContext, SmtSocket
from smtstack.transport.params import TransportParams
from smtstack.waiting import INTERRUPT, POLL, Waiting
from smtstack.wire.ethernet import Ethernet
from smtstack.wire.ipv4 import IPv4, address
from tests.cable import connect

#: Never gives a peer up, for a machine that takes the processor away.
PATIENT = TransportParams(resend_ticks=1000, timeout_resends=1000)
US, PEER = address("10.0.0.2"), address("10.0.0.1")
PORT = 2000


def execute(program: list[bpf.Instruction], packet: bytes) -> int:
    """What the program returns: bytes to accept, 0 to reject. As in Linux, reading past the end rejects."""
    accumulator = at = 0
    while True:
        code, jump_true, jump_false, constant = program[at]
        at += 1
        size = {bpf.LD_WORD: 4, bpf.LD_HALF: 2, bpf.LD_BYTE: 1}.get(code)
        if size is not None:
            if constant + size > len(packet):
                return 0
            accumulator = int.from_bytes(packet[constant:constant + size], "big")
        elif code == bpf.JUMP_EQUAL:
            at += jump_true if accumulator == constant else jump_false
        elif code == bpf.JUMP_SET:
            at += jump_true if accumulator & constant else jump_false
        elif code == bpf.RSH:
            accumulator >>= constant
        elif code == bpf.MOD:
            accumulator %= constant
        elif code == bpf.RETURN:
            return constant
        elif code == bpf.RETURN_A:
            return accumulator
        else:
            raise AssertionError(f"opcode {code:#x} is not in use here")


def frame(dst: int = US, protocol: int = 146, port: int = PORT, ethertype: int = 0x0800, flags: int = 0x4000,
          first: bytes = b"\x45", payload: bytes = bytes(60)) -> bytes:
    transport = (40_000).to_bytes(2, "big") + port.to_bytes(2, "big") + payload
    ip = IPv4(PEER, dst, protocol, 20 + len(transport), flags_fragment=flags).pack()
    return Ethernet(bytes(6), bytes(6), ethertype).pack() + first + ip[1:] + transport


OURS = filter_program(US, PORT, 146)


def test_filter_takes_ours():
    assert execute(OURS, frame()) >= 65535 + 14
    assert execute(OURS, frame(payload=b"")) > 0


@pytest.mark.parametrize("other", [
    frame(dst=US + 1), frame(dst=PEER), frame(protocol=253), frame(protocol=6), frame(port=2001),
    frame(port=PORT | 0x8000), frame(ethertype=0x86DD), frame(ethertype=0x0806), frame(ethertype=0x8100),
    frame(first=b"\x46"), frame(first=b"\x65"), frame()[:37], frame()[:14], b"",
], ids=["address", "sender's address", "linux", "tcp", "port", "high port", "ipv6", "arp", "vlan", "ip options",
        "version 6", "cut in the port", "cut after ethernet", "empty"])
def test_filter_leaves_the_rest(other):
    assert execute(OURS, other) == 0


UPSTREAM = filter_program(US, PORT, 146, upstream=True)


def shaped(flags: int = 0x06, urgent: int = 0xB97D, **fields: Any) -> bytes:
    """What upstream Homa sends in the shape of TCP, or something like it."""
    payload = bytes(9) + bytes((flags,)) + bytes(4) + urgent.to_bytes(2, "big") + bytes(40)
    return frame(payload=payload, **{"protocol": 6, **fields})


def test_the_filter_of_upstream_takes_both_shapes():
    assert execute(UPSTREAM, shaped()) >= 65535 + 14
    assert execute(UPSTREAM, shaped(protocol=146)) >= 65535 + 14
    # Natively nobody looks at the pattern.
    assert execute(UPSTREAM, frame()) >= 65535 + 14
    # And who speaks another profile gets none of TCP.
    assert execute(OURS, shaped()) == 0


@pytest.mark.parametrize("other", [
    frame(protocol=6), shaped(flags=0x02), shaped(flags=0x0E), shaped(flags=0x16), shaped(urgent=0xB97C),
    shaped(urgent=0), shaped(protocol=253), shaped(port=2001), shaped(dst=PEER), shaped(first=b"\x46"),
    shaped(ethertype=0x86DD), shaped()[:47], shaped()[:53], frame(protocol=253)])
def test_the_filter_of_upstream_leaves_the_rest(other):
    assert execute(UPSTREAM, other) == 0


def test_filter_leaves_fragments_to_the_endpoint():
    """They are rare, and a filter for them would cost every packet two instructions."""
    assert execute(OURS, frame(flags=0x2000)) > 0


@pytest.mark.parametrize("missed", range(3))
def test_match_jumps_to_the_end_from_every_field(missed):
    fields = [(bpf.LD_BYTE, n, n + 1) for n in range(3)]
    packet = bytearray(b"\x01\x02\x03")
    assert execute(bpf.match(fields), bytes(packet)) == bpf.ACCEPT
    packet[missed] = 9
    assert execute(bpf.match(fields), bytes(packet)) == 0


def test_nothing_passes_the_guard():
    assert execute(bpf.reject_all(), frame()) == 0


def fanned(workers: int, handshakes: bool, sender_id: int, flags: int = 0) -> int:
    """The worker a frame with this id and header byte +11 goes to."""
    payload = bytes(7) + bytes((flags,)) + bytes(8) + sender_id.to_bytes(8, "big") + bytes(12)
    # The kernel runs it from the IP header on.
    return execute(worker_program(workers, handshakes), frame(payload=payload)[14:])


@pytest.mark.parametrize("handshakes", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_fanout_is_by_message_and_even(workers, handshakes):
    """Successive ids go round; both directions' ids of an RPC (they differ in bit 0) to one worker."""
    def worker(sender_id: int) -> int:
        return fanned(workers, handshakes, sender_id, 0xFB)

    ids = range(2, 2 + 2 * workers * 5, 2)
    assert [worker(i) for i in ids] == [(i // 2) % workers for i in ids]
    assert all(worker(i) == worker(i ^ 1) for i in ids)
    assert worker(2**63 + 4) == 2 % workers


def test_handshakes_are_all_the_first_workers():
    assert {fanned(3, True, i, 0x04) for i in range(2, 20, 2)} == {0}
    assert {fanned(3, True, i, 0x07) for i in range(2, 20, 2)} == {0}
    # The kernel module has no flags.
    assert {fanned(3, False, i, 0x04) for i in range(2, 20, 2)} == {0, 1, 2}


# -- neighbours ------------------------------------------------------------------------------------------

def fake_proc(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    """The module reads this instead of its file in /proc."""
    (folder / "table").write_text(text)
    monkeypatch.setattr(neighbours, "Path", lambda _path: folder / "table")


def route(iface: str, net: str, gateway: str, mask: str, flags: int) -> str:
    # /proc/net/route shows addresses as host-order words.
    words = [f"{int.from_bytes(address(a).to_bytes(4, 'big'), sys.byteorder):08X}"
             for a in (net, gateway, mask)]
    return f"{iface}\t{words[0]}\t{words[1]}\t{flags:04X}\t0\t0\t0\t{words[2]}\t0\t0\t0"


ROUTES = "\n".join([
    "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT",
    route("e0", "0.0.0.0", "10.0.0.254", "0.0.0.0", 3),
    route("e0", "10.0.0.0", "0.0.0.0", "255.255.255.0", 1),
    route("e0", "10.2.0.0", "10.0.0.253", "255.255.0.0", 3),
    route("e0", "10.2.3.0", "10.0.0.252", "255.255.255.0", 3),
    route("e0", "10.2.4.0", "10.0.0.251", "255.255.255.0", 2),  # not up
    route("e1", "10.2.3.4", "10.9.9.9", "255.255.255.255", 7),
])


@pytest.mark.parametrize(("destination", "hop"), [
    ("10.0.0.7", "10.0.0.7"), ("8.8.8.8", "10.0.0.254"), ("10.2.9.9", "10.0.0.253"), ("10.2.3.4", "10.0.0.252"),
    ("10.2.4.4", "10.0.0.253"),
])
def test_next_hop_is_by_the_longest_prefix_of_the_interface(monkeypatch, tmp_path, destination, hop):
    fake_proc(monkeypatch, tmp_path, ROUTES)
    assert neighbours.next_hop("e0", address(destination)) == address(hop)


def test_next_hop_without_a_route_is_the_address_itself(monkeypatch, tmp_path):
    fake_proc(monkeypatch, tmp_path, ROUTES)
    assert neighbours.next_hop("e7", address("10.0.0.7")) == address("10.0.0.7")


def test_neighbours_come_from_complete_entries_of_the_interface(monkeypatch, tmp_path):
    fake_proc(monkeypatch, tmp_path, """\
IP address       HW type     Flags       HW address            Mask     Device
10.0.0.1         0x1         0x0         02:00:00:00:00:01     *        e0
10.0.0.2         0x1         0x2         02:00:00:00:00:02     *        e1
10.0.0.2         0x1         0x6         02:00:00:00:00:03     *        e0
""")
    assert neighbours._look_up("e0", address("10.0.0.1")) is None
    assert neighbours._look_up("e0", address("10.0.0.2")) == bytes.fromhex("020000000003")
    assert neighbours._look_up("e0", address("10.0.0.3")) is None


ARP = """\
IP address       HW type     Flags       HW address            Mask     Device
10.0.0.1         0x1         0x2         02:00:00:00:00:01     *        e0
10.0.0.5         0x1         0x0         00:00:00:00:00:00     *        e0
10.0.1.1         0x1         0x2         02:00:00:00:00:02     *        e1
"""
HEADER = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT"


def table(*rows: tuple[str, str, str, int]) -> str:
    """/proc/net/route, of (interface, network, gateway, prefix length)."""
    def word(ip: int) -> str:
        return f"{int.from_bytes(ip.to_bytes(4, 'big'), sys.byteorder):08X}"

    lines = [f"{device} {word(address(net))} {word(address(via))} {3 if address(via) else 1:04X} 0 0 0 "
             f"{word((1 << 32) - (1 << 32 - length))} 0 0 0" for device, net, via, length in rows]
    return "\n".join([HEADER, *lines]) + "\n"


@pytest.mark.parametrize(("peer", "interface", "said"), [
    ("10.0.0.1", "e0", ""),
    ("10.0.0.5", "e0", "nobody answers ARP for 10.0.0.5 on e0"),
    ("10.0.0.9", "e0", "nobody answers ARP for 10.0.0.9 on e0"),
    ("10.0.7.1", "e0", "nothing comes back from 10.0.0.1, the next hop to 10.0.7.1, which answers ARP on e0: "),
    ("10.0.8.1", "e0", "nobody answers ARP for 10.0.0.5, the next hop to 10.0.8.1, on e0"),
    ("10.0.1.1", "e0", "e0 has no route to 10.0.1.1, but e1 has: --iface e1"),
    ("10.0.1.1", None, ""),
    ("10.0.1.2", None, "nobody answers ARP for 10.0.1.2 on e1"),
    ("10.9.9.9", "e0", "e0 has no route to 10.9.9.9"),
    ("10.9.9.9", None, "this host has no route to 10.9.9.9"),
])
def test_the_obstacle_is_named(monkeypatch, tmp_path, peer, interface, said):
    routes = table(("e0", "10.0.0.0", "0.0.0.0", 24), ("e0", "10.0.7.0", "10.0.0.1", 24),
                   ("e0", "10.0.8.0", "10.0.0.5", 24), ("e1", "10.0.1.0", "0.0.0.0", 24))
    for name, text in (("route", routes), ("arp", ARP)):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(neighbours, "Path", lambda path: tmp_path / path.rpartition("/")[2])
    found = neighbours.obstacle([address(peer)], interface)
    assert found.startswith(said)
    assert bool(found) == bool(said)


# -- sockets without a kernel ----------------------------------------------------------------------------

@pytest.fixture
def cable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next two sockets are connected, in this process."""
    connect(monkeypatch)


def due(sock: AioSocket) -> float:
    """Seconds until the event loop looks at the timers."""
    assert sock._timer is not None
    return sock._timer.when() - asyncio.get_running_loop().time()


@pytest.mark.usefixtures("cable")
def test_the_event_loop_wakes_for_the_pacer_after_a_reply():
    """Nothing comes in then that would do it: the client waits for the rest of the answer."""
    async def main() -> None:
        slow = TransportParams(link_mbps=100, max_gso_size=1500, timeout_resends=1000)
        async with (AioSocket(("10.0.0.2", PORT), SmtContext("e0", "linux", "demo", params=slow)) as server,
                    AioSocket(("10.0.0.1", 40_000), SmtContext("e0", "linux", "demo", params=PATIENT)) as client):
            asked = asyncio.create_task(client.request(("10.0.0.2", PORT), b"?", 5.0))
            request = await server.receive()
            assert request.peer == ("10.0.0.1", 40_000)
            assert request.reply(bytes(9000))
            # A packet takes 0.12 ms. The next timer of the protocol itself is 2 ms away.
            assert due(server) < 0.001
            assert await asked == bytes(9000)

    asyncio.run(main())


@pytest.mark.usefixtures("cable")
def test_the_event_loop_wakes_for_delayed_frames():
    async def main() -> None:
        delay = Impairments(ImpairmentRates(delay_ns=200_000_000))
        context = SmtContext("e0", "linux", "demo", params=PATIENT, tx_impairments=delay)
        async with (AioSocket(("10.0.0.2", PORT), SmtContext("e0", "linux", "demo")) as server,
                    AioSocket(("10.0.0.1", 40_000), context) as client):
            asked = asyncio.create_task(client.request(("10.0.0.2", PORT), b"?", 5.0))
            await asyncio.sleep(0)
            # The request leaves then; the protocol's own timer is 1 s away.
            assert due(client) <= 0.2
            request = await server.receive()
            request.reply(b"!")
            assert await asked == b"!"

    asyncio.run(main())


class Watched(selectors.DefaultSelector):
    """What an event loop asks of its descriptors: ``looks``, which do not wait, until ``enough`` of them, or one
    that waits, bring ``frame``."""

    def __init__(self, enough: int) -> None:
        super().__init__()
        self.enough = enough
        self.frame: Callable[[], object] | None = None
        self.looks = 0
        self.slept = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.frame is not None:
            sleeps = timeout is None or timeout > 0
            self.looks += not sleeps
            if sleeps or self.looks == self.enough:
                self.slept = sleeps
                bring, self.frame = self.frame, None
                bring()
        return super().select(timeout)


@pytest.mark.usefixtures("cable")
@pytest.mark.parametrize(("how", "stalls", "looks", "slept"), [
    (Waiting(POLL, 10**12), False, 50, False),
    (Waiting(INTERRUPT), False, 2, True),
    # Others have the event loop all the time.
    (Waiting(POLL, 10**12), True, 3, True)])
def test_the_event_loop_looks_again_and_again_or_sleeps(monkeypatch, how, stalls, looks, slept):
    monkeypatch.setattr(aio, "STALL_NS", -1 if stalls else 1 << 62)
    selector = Watched(50)

    async def main() -> None:
        quiet = SmtContext("e0", "homa", params=PATIENT, wait=Waiting(INTERRUPT))
        async with AioSocket(("10.0.0.1", 40_000), replace(quiet, wait=how)) as client:
            with SmtSocket(("10.0.0.2", PORT), quiet) as server:
                asked = asyncio.create_task(client.request(("10.0.0.2", PORT), b"?"))
                await asyncio.sleep(0)
                request = server.receive(1.0)
                assert request is not None
                selector.frame = partial(request.reply, b"!")
                assert await asked == b"!"

    loop = asyncio.SelectorEventLoop(selector)
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
    assert selector.slept is slept
    assert selector.looks <= looks
    assert slept or selector.looks == looks


@pytest.mark.usefixtures("cable")
def test_cancelling_aborts():
    async def main() -> None:
        async with (AioSocket(("10.0.0.2", PORT), SmtContext("e0", "linux", "demo")) as server,
                    AioSocket(("10.0.0.1", 40_000), SmtContext("e0", "linux", "demo")) as client):
            asked = asyncio.create_task(client.request(("10.0.0.2", PORT), b"?"))
            request = await server.receive()
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            assert client.socket.endpoint.snapshot()["rpcs"] == 0
            # The server may find out later; its answer hurts nobody.
            assert request.reply(b"!")

    asyncio.run(main())


@pytest.mark.usefixtures("cable")
def test_closing_ends_what_is_under_way():
    async def main() -> None:
        async with (AioSocket(("10.0.0.2", PORT), SmtContext("e0", "linux", "demo")) as server,
                    AioSocket(("10.0.0.1", 40_000), SmtContext("e0", "linux", "demo")) as client):
            asked = asyncio.create_task(client.request(("10.0.0.2", PORT), b"?"))
            await server.receive()
            client.close()
            with pytest.raises(RpcError, match="aborted"):
                await asyncio.wait_for(asked, 5.0)

    asyncio.run(main())


def test_waiting_for_descriptors_beyond_what_select_takes():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ours, peer = socket.socketpair()
    packets = PacketSocket.__new__(PacketSocket)
    packets._sock, packets._readers, packets._poll, packets._selectable = ours, [ours], select.poll(), True
    packets._poll.register(ours, select.POLLIN)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    try:
        with ours, peer, socket.socket(fileno=fcntl.fcntl(peer, fcntl.F_DUPFD_CLOEXEC, 1100)) as inbox:
            packets.watch(inbox)
            packets.wait(1_000_000)
            assert packets._both is not None
            packets._both.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def on_a_pair(ours: socket.socket, frame_size: int) -> PacketSocket:
    """A packet socket that sends by another kind of socket."""
    packets = PacketSocket.__new__(PacketSocket)
    packets._sock, packets._interface, packets.send_drops = ours, "e0", 0
    packets._batch = SendBatch(ours, frame_size)
    packets._offloading = None
    return packets


@given(sizes=st.lists(st.one_of(st.integers(1, 100), st.sampled_from([99, 100, 101, 500])), max_size=150))
def test_many_frames_by_one_call_are_those_of_many_calls(sizes):
    """Of whatever length, more than a slot holds, too, and in their order."""
    ours, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, peer:
        frames = [bytes([number]) * size for number, size in enumerate(sizes)]
        on_a_pair(ours, 100).send(frames)
        ours.shutdown(socket.SHUT_WR)
        assert list(iter(lambda: peer.recv(1000), b"")) == frames


@pytest.mark.parametrize("more", [0, 1, 2])
def test_a_full_queue_loses_what_does_not_fit_and_no_more(monkeypatch, more):
    monkeypatch.setattr(packet_socket, "SEND_PATIENCE_MS", 1)
    ours, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, peer:
        ours.setblocking(False)
        peer.setblocking(False)

        def drained() -> list[bytes]:
            came = []
            with suppress(BlockingIOError):
                while True:
                    came.append(peer.recv(1000))
            return came

        with suppress(BlockingIOError):
            while True:
                ours.send(b"x")
        room = len(drained())
        packets = on_a_pair(ours, 100)
        for _turn in range(2):
            frames = [number.to_bytes(4, "big") for number in range(room + more)]
            packets.send(frames)
            assert drained() == frames[:room]
        assert packets.send_drops == 2 * more
