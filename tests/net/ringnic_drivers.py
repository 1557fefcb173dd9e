"""What test_ringnic.py does inside a sandbox: ``python -m tests.net.ringnic_drivers NAME``. JSON on stdout.

``server`` and ``client`` are the guarded processes on the hosts. Their filter kills: whoever makes one network
system call after it does not answer any more, so an answer says that there was none.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from smtstack.errors import SmtError
from smtstack.io import seccomp
from smtstack.io.memory import sealed_memory
from smtstack.io.xdp import XdpProgram, XdpSocket
from smtstack.nicshare.state import NicState
from smtstack.ringnic.monitor import NAME
from smtstack.ringnic.socket import RingSocket
from smtstack.rings.hostile import KINDS, HostileHost
from smtstack.rings.layout import UMEM, RingConfig
from smtstack.rings.memory import SharedMemory
from smtstack.socket import RpcError, SmtContext, SmtSocket
from smtstack.wire.ipv4 import IPv4, address
from tests.net.drivers import PATIENT
from tests.net.inside import go_inside
from tests.net.netns import PATIENCE
from tests.net.tapnic_rig import connect
from topo.commands import run
from topo.link_options import LinkOptions
from topo.network import open_network
from topo.running import Program, python_program
from workloads.fleet import credentials

PORT = 2000
#: Bytes of the kernel's TCP beside it.
TCP = 4 << 20
CANARY = b"this must not be seen"


# -- on the hosts ------------------------------------------------------------------------------------------

@contextmanager
def guarded(interface: str, ip: str, port: int, certs: str) -> Iterator[SmtSocket]:
    """A socket by the ring of ``interface``, in a guarded process."""
    with SmtSocket((ip, port), SmtContext(interface, certs=Path(certs), params=PATIENT)) as sock:
        sock.guard(kill=True)
        try:
            yield sock
        except Exception as e:
            # A traceback opens its source, open() asks by ioctl whether that is a terminal, and that is the end.
            os.write(2, f"smtnet: {e!r}\n".encode())
            os._exit(1)


def server(interface: str, ip: str, certs: str) -> None:
    """Echo, until its parent is gone."""
    parent = os.getppid()
    with guarded(interface, ip, PORT, certs) as sock:
        print("ready", file=sys.stderr, flush=True)
        while os.getppid() == parent:
            request = sock.receive(0.2)
            if request is not None:
                request.reply(request.data)


def client(interface: str, ip: str, certs: str, peer: str) -> None:
    """Orders by stdin, a line of JSON each; answers likewise."""
    with guarded(interface, ip, 40_000, certs) as sock:
        print("ready", file=sys.stderr, flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            print(json.dumps(ORDERS[order.pop("do")](sock, (peer, PORT), **order)), flush=True)


def rpcs(sock: SmtSocket, peer: tuple[str, int], count: int, seed: int = 1) -> dict[str, Any]:
    """So many, of sizes from 1 B to 100 KB, some at a time; every answer compared. The first error ends it."""
    draw = random.Random(seed)
    right = wrong = 0
    error = ""
    while right + wrong < count and not error:
        sent = [draw.randbytes(draw.choice((1, 64, 1000, 1500, 9000, 100_000)))
                for _ in range(min(8, count - right - wrong))]
        futures = [sock.send_request(peer, data) for data in sent]
        try:
            for data, future in zip(sent, futures, strict=True):
                same = future.result(PATIENCE) == data
                right, wrong = right + same, wrong + (not same)
        except SmtError as e:
            error = f"{type(e).__name__}: {e}"
    return {"right": right, "wrong": wrong, "error": error, "seccomp": seccomp.guarded(),
            "counters": sock.counters()}


def one(sock: SmtSocket, peer: tuple[str, int], timeout: float) -> dict[str, Any]:
    """One, and what became of it within that time."""
    begun = time.monotonic()
    try:
        text = "" if sock.request(peer, b"one", timeout) == b"one" else "wrong"
    except SmtError as e:
        text = f"{type(e).__name__}: {e}"
    return {"error": text, "s": time.monotonic() - begun, "counters": sock.counters()}


def begin(sock: SmtSocket, peer: tuple[str, int], look_s: float) -> dict[str, Any]:
    """Begin one that ``finish`` ends; whether it is answered already."""
    sock.begun = sock.send_request(peer, b"under way")  # type: ignore[attr-defined]
    sock.drive(sock.begun.done, look_s)  # type: ignore[attr-defined]
    return {"done": sock.begun.done()}  # type: ignore[attr-defined]


def finish(sock: SmtSocket, _peer: tuple[str, int]) -> dict[str, Any]:
    """The answer to that."""
    with suppress(RpcError):
        return {"right": sock.begun.result(20.0) == b"under way"}  # type: ignore[attr-defined]
    return {"right": False}


def leak(sock: SmtSocket, peer: tuple[str, int], count: int) -> dict[str, Any]:
    """Canaries in all memory that is shared with the host, after so many requests that are full of them; and with
    one put there."""
    for _request in range(count):
        sock.request(peer, CANARY * 200, 10.0)
    ring = sock.loop.socket
    assert isinstance(ring, RingSocket)
    umem = ring.memories[UMEM]
    found = umem.copy(0, umem.length).count(CANARY)
    umem.write(umem.length - 100, CANARY)
    return {"found": found, "control": umem.copy(0, umem.length).count(CANARY),
            "on": sock.loop.nic.features()["tls-hw-tx-offload"], "counters": sock.counters()}


#: What a process beside the kernel can do to rings that are the kernel's. Where the guarded process' own index is
#: overwritten, the kernel goes by that, for ever: it would be a kernel that is hostile.
ATTACKS = tuple(kind for kind in KINDS if kind not in ("guests_index", "packet_again", "packet_forged",
                                                       "frames_kept"))


def attacked(sock: SmtSocket, peer: tuple[str, int], seconds: float) -> dict[str, Any]:
    """RPCs while another process, which maps the same memory, changes it; then more, if the kernel serves."""
    ring = sock.loop.socket
    assert isinstance(ring, RingSocket)
    memories = {name: SharedMemory(name, mapping)
                for name, mapping in zip(ring.memories, ring._mappings, strict=True)}
    host = HostileHost(memories, RingConfig(), seed=5)
    host.kinds = ATTACKS
    child = os.fork()
    if not child:
        while True:
            host.mutate()
            time.sleep(0.0002)
    right = wrong = failed = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = random.Random(right + failed).randbytes(1000)
        try:
            same = sock.request(peer, data, 1.0) == data
            right, wrong = right + same, wrong + (not same)
        except SmtError:
            failed += 1
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    limit = time.monotonic() + 6
    recovered = 0
    while recovered < 20 and time.monotonic() < limit:
        recovered = recovered + 1 if not one(sock, peer, 2.0)["error"] else 0
    recovered = recovered if recovered == 20 else 0
    refused = sock.counters()["ring_refused"]
    after = rpcs(sock, peer, 100) if recovered else {"right": 0, "wrong": 0, "error": "not served"}
    return {"right": right, "wrong": wrong, "failed": failed, "refused": refused, "recovered": recovered,
            "after": after, "in_memory": sock.counters()["ring_in_memory"]}


def denied(_sock: SmtSocket, _peer: tuple[str, int]) -> dict[str, Any]:
    """A network system call: there is no answer to that."""
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    return {"alive": True}


ORDERS: dict[str, Callable[..., dict[str, Any]]] = {
    "rpcs": rpcs, "one": one, "begin": begin, "finish": finish, "leak": leak, "denied": denied,
    "attacked": attacked}


# -- in the sandbox ----------------------------------------------------------------------------------------

class Rig:
    """Two hosts with rings, a guarded server on one and a guarded client on the other."""

    def __init__(self, net: Any, folder: Path) -> None:
        self.net = net
        self.one, self.two = net.hosts
        made = credentials.make(folder / "keys", "smt", {host.name: host.IP() for host in net.hosts})
        self.programs = []
        for host, role, more in ((self.two, "server", ()), (self.one, "client", (self.two.IP(),))):
            certs = made.args(host.name)[made.args(host.name).index("--certs") + 1]
            argv = python_program("tests.net.ringnic_drivers", role, f"{host.name}-eth0", host.IP(), certs, *more)
            program = Program(host, role, argv, folder / f"{role}.log")
            program.wait_for("ready")
            self.programs.append(program)
        self.server, self.client = self.programs

    def ask(self, do: str, **order: Any) -> dict[str, Any]:
        """An order to the client, and its answer."""
        self.client.tell({"do": do, **order})
        return self.client.answer()

    def control(self, host: Any) -> psutil.Process:
        """The control process of a host's ring."""
        return psutil.Process(self.net.nic_pids(host)[0])

    def monitor(self, host: Any) -> psutil.Process:
        """The monitor of a host's guarded process."""
        child, = self.control(host).children()
        assert child.name() == NAME
        return child

    def end(self) -> None:
        """End both programs."""
        for program in self.programs:
            with suppress(OSError):
                program.process.terminate()


@contextmanager
def rig() -> Iterator[Rig]:
    with (tempfile.TemporaryDirectory() as folder,
          open_network("star,2", LinkOptions(hosting="ring"), "bridge") as net):
        made = Rig(net, Path(folder))
        try:
            yield made
        finally:
            made.end()


def basics() -> dict[str, Any]:
    """RPCs, with ping and the kernel's TCP on the same interfaces meanwhile."""
    count = int(os.environ.get("SMTNET_RPCS", "300"))
    with rig() as two:
        two.client.tell({"do": "rpcs", "count": count})
        out: dict[str, Any] = {"ping": "3 received" in run(
            ["ping", "-c3", "-i0.05", "-W5", two.two.IP()], pid=two.one.pid)}
        ours, theirs = connect(two.one, two.two)
        with ours, theirs:
            data = random.Random(2).randbytes(TCP)
            pid = os.fork()
            if not pid:
                ours.sendall(data)
                os._exit(0)
            got = bytearray()
            while len(got) < len(data):
                got += theirs.recv(1 << 20)
            os.waitpid(pid, 0)
            out["tcp"] = bytes(got) == data
        out["rpcs"] = two.client.answer()
        out["names"] = [two.monitor(host).name() for host in (two.one, two.two)]
        out["sockets"] = [c.fd for c in psutil.Process(two.client.pid).net_connections("inet")]
    return out


def trust() -> dict[str, Any]:
    """The NIC asks for plaintext; and what a filter that kills does."""
    with rig() as two:
        state = NicState.open("h1-eth0", pid=two.one.pid)
        state.set_feature("tls-hw-tx-offload", True)
        out: dict[str, Any] = {"leak": two.ask("leak", count=5)}
        two.client.tell({"do": "denied"})
        out["killed"] = two.client.process.wait(20.0)
    return out


def hostile() -> dict[str, Any]:
    """A process that maps the client's rings, and changes what is in them."""
    with rig() as two:
        return two.ask("attacked", seconds=float(os.environ.get("SMTNET_ATTACK_S", "3")))


def monitor() -> dict[str, Any]:
    """Stopped, going on, killed; then the control process, too."""
    out: dict[str, Any] = {}
    with rig() as two:
        out["first"] = two.ask("one", timeout=10.0)["error"]
        stopped = two.monitor(two.one)
        stopped.suspend()
        out["stopped"] = two.ask("begin", look_s=0.3)["done"]
        stopped.resume()
        out["resumed"] = two.ask("finish")["right"]
        stopped.kill()
        killed = two.ask("rpcs", count=40)
        out["killed"] = [*(killed[name] for name in ("error", "right", "wrong")),
                         killed["counters"]["ring_monitor_restarts"]]
        out["another"] = two.monitor(two.one).pid != stopped.pid
        control = two.control(two.one)
        both = [control, *control.children()]
        control.send_signal(signal.SIGKILL)
        # Its monitor goes with it; while that is still there, an RPC may get through.
        assert not psutil.wait_procs(both, 20.0)[1]
        out["dead"] = two.ask("one", timeout=20.0)
    return out


def several() -> dict[str, Any]:
    """A second guarded process on an interface, whose ring is in memory; and what a ring is not for."""
    out: dict[str, Any] = {}
    with rig() as two:
        log = Path(tempfile.mkstemp()[1])
        echo = Program(two.two, "second server", python_program(
            "workloads", "serve", "echo", "--iface", "h2-eth0", "--addr", f"{two.two.IP()}:3000", "--transport",
            "homa", "--json"), log)
        echo.wait_for("serving")
        control = two.control(two.two)
        last = max(control.children(), key=lambda child: child.create_time())
        for number in range(2):
            second = Program(two.one, "second client", python_program(
                "workloads", "call", "echo", "--iface", "h1-eth0", "--addr", f"{two.one.IP()}:4100{number}",
                "--peer", f"{two.two.IP()}:3000", "--transport", "homa", "--count", "50", "--size", "5000"), log)
            out[f"second{number}"] = second.process.wait(60.0)
            if not number:
                last.kill()
        out["first"] = two.ask("one", timeout=10.0)["error"]
        out["counters"] = json.loads(echo.stop())["counters"]
        for words in (["--nic", "hw"], ["--overlay", "tcp"]):
            refused = Program(two.one, "other", python_program(
                "workloads", "call", "echo", "--iface", "h1-eth0", "--addr", f"{two.one.IP()}:41000", "--peer",
                f"{two.two.IP()}:{PORT}", "--transport", "homa", *words, "--count", "1"), log)
            out[words[0]] = str(refused.failure())
        log.unlink()
    return out


def denies() -> dict[str, Any]:
    """Each of the denied calls, by a process under the filter that refuses, and before it."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = {name: _call(libc, number) for name, number in seccomp.DENIED.items() if name in ("poll", "ioctl")}
    seccomp.guard()
    after = {name: _call(libc, number) for name, number in seccomp.DENIED.items()}
    return {"before": before, "after": after, "guarded": seccomp.guarded(), "eperm": errno.EPERM}


def _call(libc: Any, number: int) -> int:
    """errno of a system call with arguments that do nothing; 0: it worked."""
    return ctypes.get_errno() if libc.syscall(number, -1, 0, 0, 0, 0, 0) < 0 else 0


def split() -> dict[str, Any]:
    """Which frames the program in the kernel gives to the ring, by the kernel's own trial of it."""
    run(["ip", "link", "add", "p0", "type", "veth", "peer", "name", "p1"])
    config = RingConfig(frames=64, entries=16)
    descriptor, umem = sealed_memory("split", config.umem_bytes)
    ours = address("10.0.0.1")
    sock = XdpSocket("p0", umem, config)
    program = XdpProgram("p0", sock, ours, PORT, 146)
    number = program._descriptors[1]

    def verdict(to: int = ours, port: int = PORT, protocol: int = 146, cut: int = 0, ethertype: bytes = b"\x08\0",
                change: tuple[int, int] = (0, 0)) -> int:
        frame = bytearray(bytes(12) + ethertype + IPv4(1, to, protocol, 60).pack() + bytes(2)
                          + port.to_bytes(2, "big") + bytes(36))
        frame[change[0]] ^= change[1]
        return _trial(number, bytes(frame[:len(frame) - cut]))

    out: dict[str, Any] = {"ours": verdict(), "port": verdict(port=PORT + 1), "address": verdict(to=ours + 1),
           "protocol": verdict(protocol=6), "short": verdict(cut=37), "arp": verdict(ethertype=b"\x08\x06"),
           "more_fragments": verdict(change=(20, 0x20)), "last_fragment": verdict(change=(21, 1)),
           "dont_fragment": verdict(change=(20, 0x40)), "options": verdict(change=(14, 3))}
    program.close()
    out["udp"] = _udp_split(sock, ours)
    sock.close()
    os.close(descriptor)
    return out


def _udp_split(sock: XdpSocket, ours: int) -> list[list[Any]]:
    """The same of UDP from 0xe000 on, in this order: what is sent, and the verdict."""
    program = XdpProgram("p0", sock, ours, 0xE000, 17)
    number = program._descriptors[2]
    out: list[list[Any]] = []

    def verdict(name: str, source: int, ident: int, place: int, port: int = 0xE000, to: int = ours,
                data: int = 16) -> None:
        packet = IPv4(source, to, 17, 28 + data, ident, flags_fragment=place).pack()
        frame = bytes(12) + b"\x08\0" + packet + bytes(2) + port.to_bytes(2, "big") + bytes(data)
        out.append([name, _trial(number, frame[:34 + data])])

    verdict("e000", 1, 0, 0x4000)
    verdict("dfff", 1, 0, 0x4000, 0xDFFF)
    verdict("ffff", 1, 0, 0x4000, 0xFFFF)
    verdict("other address", 1, 0, 0x4000, to=ours + 1)
    verdict("too early", 1, 7, 2)
    # Two senders, one identification: one sends to us, the other one to the kernel.
    verdict("first of 1", 1, 7, 0x2000)
    verdict("first of 2", 2, 7, 0x2000, 0xDFFF)
    verdict("middle of 1", 1, 7, 0x2002)
    verdict("middle of 2", 2, 7, 0x2002)
    verdict("last of 1, a byte", 1, 7, 4, data=1)
    verdict("last of 2", 2, 7, 4)
    verdict("overtaken of 1", 1, 7, 0x2003)
    verdict("first of 1 to the kernel", 1, 7, 0x2000, 0xDFFF)
    verdict("last of that", 1, 7, 4)
    program.close()
    return out


def _trial(program: int, frame: bytes) -> int:
    """What a program says of a frame (BPF_PROG_TEST_RUN)."""
    data = ctypes.create_string_buffer(frame, max(len(frame), 14))
    attributes = ctypes.create_string_buffer(struct.pack(
        "=IIIIQQII", program, 0, len(frame), 0, ctypes.addressof(data), 0, 1, 0) + bytes(48))
    if ctypes.CDLL(None, use_errno=True).syscall(321, 10, attributes, len(attributes) - 1):
        raise OSError(ctypes.get_errno(), "BPF_PROG_TEST_RUN")
    return int(struct.unpack_from("=I", attributes, 4)[0])


def beside(hosting: str) -> dict[str, Any]:
    """A few RPCs by ends of another hosting, each a guarded process."""
    with open_network("star,2", LinkOptions(hosting="ring"), "bridge") as net, \
            tempfile.TemporaryDirectory() as folder:
        one, two = net.hosts
        certs = Path(folder, "keys")
        credentials.make(certs, "smt", {host.name: host.IP() for host in net.hosts})
        common = ["--transport", "smt", "--nic-hosting", hosting, "--exit-us", "1", "--json"]
        log = Path(folder, "log")
        server = Program(two, "server", python_program(
            "workloads", "serve", "echo", "--iface", "h2-eth0", "--addr", f"{two.IP()}:3000", "--certs",
            str(certs / "h2"), *common), log)
        server.wait_for("serving")
        client = Program(one, "client", python_program(
            "workloads", "call", "echo", "--iface", "h1-eth0", "--addr", f"{one.IP()}:41000", "--peer",
            f"{two.IP()}:3000", "--certs", str(certs / "h1"), "--count", "60", "--size", "3000", "--concurrency",
            "4", *common), Path(folder, "log2"))
        said, _none = client.process.communicate(timeout=60)
        told = json.loads(said or "")
        counters = json.loads(server.stop())["counters"]
        return {"code": client.process.returncode, "rpcs": told["rpcs"], "errors": told["errors"],
                "content_ok": told["content_ok"],
                "refused": counters.get("ocall_refused", 0) + counters.get("ring_refused", 0)}


PROGRAMS: dict[str, Callable[..., dict[str, Any]]] = {
    "beside": beside,
    "split": split,
    "basics": basics, "trust": trust, "monitor": monitor, "several": several, "denies": denies,
    "hostile": hostile}


def main() -> None:
    roles: dict[str, Callable[..., None]] = {"server": server, "client": client}
    if sys.argv[1] in roles:
        roles[sys.argv[1]](*sys.argv[2:])
        return
    go_inside()
    print(json.dumps(PROGRAMS[sys.argv[1]](*sys.argv[2:])))


if __name__ == "__main__":
    main()
