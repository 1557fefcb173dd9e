"""What this machine has and what it lets us do: the facts behind ``smtnet doctor``.

Everything is tried where nobody else is: in network, mount and process namespaces that end with the probe.
``python -m topo.probes`` is that inner half; it prints what came of each attempt as JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

import psutil

from smtstack import compiled
from smtstack.errors import SmtError
from smtstack.io import plaintext_guard
from smtstack.io.memory import sealed_memory
from smtstack.io.packet_socket import offloading_socket
from smtstack.io.tcp_guard import TcpGuard
from smtstack.io.tcp_queries import set_mark
from smtstack.io.tun import TapInterface
from smtstack.io.uring import Uring
from smtstack.io.xdp import XdpProgram, XdpSocket
from smtstack.nic.plaintext import NIC_GROUP, PLAINTEXT_MARK
from smtstack.rings.layout import RingConfig
from smtstack.rings.uring_layout import ENTRIES, QUEUES, UringConfig
from smtstack.wire import homa, ipv4
from smtstack.wire.overlay import HEAD, is_overlay, offload_head
from topo.devices import firewalled

ROOT = Path(__file__).resolve().parent.parent

#: Programs that topologies run, by what has to be installed for them on Debian and Ubuntu.
PACKAGES = {
    "iproute2": ("ip", "tc", "bridge"), "ethtool": ("ethtool",), "util-linux": ("unshare", "nsenter"),
    "iputils-ping": ("ping",), "net-tools": ("ifconfig",), "mininet": ("mnexec",),
    "openvswitch-switch": ("ovs-vswitchd", "ovsdb-server", "ovsdb-tool", "ovs-vsctl", "ovs-ofctl", "ovs-appctl"),
}
#: Bytes asked of a receive buffer, as sockets of ours and of the switch do.
BUFFER = 8 << 20

_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"))
_PATIENCE = 20.0
_SO_RCVBUFFORCE, _SOL_TCP, _TCP_ULP = 33, 6, 31
_ETH_P_IP = 0x0800
#: Seconds for a frame over a cable.
_FRAME_S = 2.0
_SYS_PIDFD_OPEN, _SYS_PIDFD_GETFD = 434, 438
_UNSHARE = ("unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")
#: The least network that a controller takes.
_FABRIC = '{"switches": [{"name": "s1", "dpid": 1}], "hosts": [], "links": []}'


@dataclass(frozen=True, slots=True)
class Facts:
    """A machine as the checks see it. Where a text says how an attempt ended, empty is success."""

    root: bool
    kernel: str
    python: tuple[int, int, int]
    cores: int
    missing: tuple[str, ...]
    """Programs of :data:`PACKAGES` that are not there."""
    modules: bool
    """The kernel's loadable modules are installed: modprobe may help."""
    namespaces: str
    mnexec: str
    tried: Mapping[str, str]
    """In the private namespaces: ``raw``, ``buffer``, ``bridge``, ``htb``, ``tbf``, ``netem``, ``u32``,
    ``tun``, ``ktls``, ``overlay``, ``nic_tap``, ``xdp``, ``uring``. Empty where there are none."""
    ovs: str | None
    """Version of Open vSwitch."""
    ovs_kernel: bool
    """The kernel has Open vSwitch's datapath."""
    firewalled: tuple[str, ...]
    """:func:`topo.devices.firewalled` of the machine."""
    mininet: str | None
    ryu: str
    pidfd_getfd: str
    openssl: str
    tls13: bool
    """The ssl module has TLS 1.3 with AES-128-GCM."""
    seal_us: float
    """To seal 1 KB with AES-128-GCM."""
    encrypt_into: bool
    interpreted: str
    """Why the protocol code is, and what would help; empty: it is compiled."""
    psi: bool
    steal: float
    """Share of the processor time that the hypervisor took while this was found out."""
    matplotlib: bool
    rich: bool
    openssl_binding: bool
    """pyOpenSSL, which shakes hands for smt and which kernel TLS takes its keys from."""
    dnspython: bool
    knot: bool
    """Knot DNS, which serves tickets."""
    tshark: bool
    free_mb: int
    """Where results are written."""
    results_writable: bool
    run_writable: bool


def gather(results: Path = Path("results")) -> Facts:
    """Find everything out; 2 to 3 s, much of it for starting a controller beside."""
    with tempfile.TemporaryDirectory(prefix="smtnet-doctor-") as folder:
        return _gather(results, _Controller(Path(folder)))


def _gather(results: Path, controller: _Controller) -> Facts:
    root = os.geteuid() == 0
    before = psutil.cpu_times()
    inner = _start([*_UNSHARE, sys.executable, "-m", "topo.probes"]) if root else None
    versions = sys.version_info
    place = next(folder for folder in (results, *results.absolute().parents) if folder.is_dir())
    seal_us, into = _seal_speed()
    ovs = _output("ovs-vswitchd", "--version")
    namespaces, tried = _inner_result(inner) if inner else ("not tried: needs root", {})
    facts = {
        "kernel": os.uname().release,
        "missing": tuple(name for names in PACKAGES.values() for name in names if find(name) is None),
        "modules": Path("/lib/modules", os.uname().release).is_dir(),
        "mnexec": _attempt(_try_mnexec),
        "pidfd_getfd": _attempt(_try_pidfd_getfd),
        "tls13": ssl.HAS_TLSv1_3 and any(c["name"] == "TLS_AES_128_GCM_SHA256"
                                         for c in ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).get_ciphers()),
        "ryu": controller.trouble(),
    }
    return Facts(
        root=root, python=(versions.major, versions.minor, versions.micro), cores=len(os.sched_getaffinity(0)),
        namespaces=namespaces, tried=tried, ovs=ovs.splitlines()[0].rpartition(" ")[2] if ovs else None,
        ovs_kernel=has_module("openvswitch"), firewalled=tuple(firewalled()), mininet=_version("mininet"),
        openssl=ssl.OPENSSL_VERSION, seal_us=seal_us, encrypt_into=into,
        interpreted=compiled.BUILD.why, psi=os.access("/proc/pressure/cpu", os.R_OK), steal=_steal_since(before),
        matplotlib=_importable("matplotlib"), rich=_importable("rich"), openssl_binding=_importable("OpenSSL"),
        dnspython=_importable("dns"), knot=find("knotd") is not None,
        tshark=find("tshark") is not None, free_mb=shutil.disk_usage(place).free // 1_000_000,
        results_writable=os.access(place, os.W_OK), run_writable=os.access("/run", os.W_OK),
        **facts)  # type: ignore[arg-type]


def find(program: str) -> str | None:
    """The path of a program, also of one that only root's folders have; None: it is not installed."""
    return shutil.which(program, path=_PATH)


def has_module(name: str) -> bool:
    """Whether the kernel has it, or could load it; loads nothing."""
    return Path("/sys/module", name).exists() or _output("modprobe", "-nq", name) is not None


def _start(argv: list[str]) -> subprocess.Popen[str] | None:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    try:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True, env={**os.environ, "PATH": _PATH, "LC_ALL": "C", "PYTHONPATH": path})
    except OSError:
        return None


def _finish(process: subprocess.Popen[str] | None) -> tuple[int, str, str]:
    if process is None:
        return 127, "", "not installed"
    try:
        output, errors = process.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return 1, "", f"did not end within {_PATIENCE:.0f} s"
    return process.returncode, output, errors


class _Controller:
    """An OpenFlow controller as runs start it, but without a switch. It starts while other things are tried."""

    def __init__(self, folder: Path) -> None:
        fabric = folder / "fabric.json"
        fabric.write_text(_FABRIC)
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
            self._ports = [s.getsockname()[1] for s in (one, two)]
        openflow, rest = map(str, self._ports)
        self._process = _start([sys.executable, "-m", "controllers.launch", "fanout", "--smtnet-fabric",
                                str(fabric), "--ofp-tcp-listen-port", openflow, "--wsapi-port", rest])

    def trouble(self) -> str:
        """Why it does not listen; it is ended then."""
        process = self._process
        if process is None:
            return "cannot be started"
        end = time.monotonic() + _PATIENCE
        while process.poll() is None and time.monotonic() < end:
            if all(_answers(port) for port in self._ports):
                process.terminate()
                _finish(process)
                return ""
            time.sleep(0.05)
        process.terminate()
        code, _output, errors = _finish(process)
        said = (errors.strip().splitlines() or [f"exit code {code}"])[-1]
        return said.removeprefix("smtnet: no OpenFlow controller: ").partition("; run 'make venv'")[0]


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), _PATIENCE).close()
    except OSError:
        return False
    return True


def _inner_result(process: subprocess.Popen[str]) -> tuple[str, Mapping[str, str]]:
    code, output, errors = _finish(process)
    try:
        return "", json.loads(output)
    except ValueError:
        return (errors.strip().splitlines() or [f"exit code {code}"])[-1], {}


def _output(*argv: str) -> str | None:
    code, output, _errors = _finish(_start(list(argv)))
    return output.strip() if code == 0 else None


def _run(*argv: str) -> None:
    code, _output, errors = _finish(_start(list(argv)))
    if code:
        raise OSError(f"{' '.join(argv)}: {' '.join(errors.split())}")


def _attempt(action: Callable[[], None]) -> str:
    try:
        action()
    except OSError as e:
        return e.strerror or str(e)
    except SmtError as e:
        return str(e)
    return ""


def _try_mnexec() -> None:
    _run("mnexec", "true")


def _try_pidfd_getfd() -> None:
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    with tempfile.TemporaryFile() as file:
        pidfd = syscall(_SYS_PIDFD_OPEN, os.getpid(), 0)
        copy = syscall(_SYS_PIDFD_GETFD, pidfd, file.fileno(), 0) if pidfd >= 0 else -1
        code = ctypes.get_errno()
        for descriptor in (pidfd, copy):
            if descriptor >= 0:
                os.close(descriptor)
        if copy < 0:
            raise OSError(code, os.strerror(code))


def _seal_speed(rounds: int = 5, count: int = 500) -> tuple[float, bool]:
    """(microseconds to seal 1 KB with AES-128-GCM: the best round, whether it can be done without a copy)."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    seal, data, nonce = AESGCM(bytes(16)).encrypt, bytes(1024), bytes(12)
    best = float("inf")
    for _round in range(rounds):
        start = time.perf_counter()
        for _ in range(count):
            seal(nonce, data, None)
        best = min(best, time.perf_counter() - start)
    return round(best / count * 1e6, 2), hasattr(AESGCM, "encrypt_into")


def _steal_since(before: tuple[float, ...]) -> float:
    now = psutil.cpu_times()
    total = sum(now[:8]) - sum(before[:8])
    stolen = float(getattr(now, "steal", 0.0)) - float(getattr(before, "steal", 0.0))
    return round(stolen / total, 4) if total > 0 else 0.0


def _importable(name: str) -> bool:
    return util.find_spec(name) is not None


def _version(package: str) -> str | None:
    # Debian's Mininet comes without metadata that pip would know.
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "?" if _importable(package) else None


# -- inside the private namespaces ----------------------------------------------------------------------------

def _try_raw() -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind(("lo", 0))


def _try_buffer() -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER)
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) < BUFFER:
            raise OSError("the kernel gave less than was asked for")


def _try_tun() -> None:
    os.close(os.open("/dev/net/tun", os.O_RDWR))


def try_ktls() -> None:
    """Raises OSError where the kernel makes no TLS records."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        sock.setsockopt(_SOL_TCP, _TCP_ULP, b"tls")


def _try_uring() -> None:
    """Operations by rings in memory of ours."""
    config = UringConfig(8, 1, 4096)
    memories = [sealed_memory("smtnet-doctor", config.bytes_of(name)) for name in (QUEUES, ENTRIES)]
    try:
        Uring(memories[0][1], memories[1][1], config).close()
    finally:
        for descriptor, _mapping in memories:
            os.close(descriptor)


def _try_xdp() -> None:
    """A ring of an interface's packets, and the program that splits them off."""
    config = RingConfig(frames=64, entries=16)
    descriptor, umem = sealed_memory("smtnet-doctor", config.umem_bytes)
    try:
        sock = XdpSocket("p0", umem, config)
        try:
            XdpProgram("p0", sock, 1 << 24, 1, homa.PROTO_HOMA).close()
        finally:
            sock.close()
    finally:
        os.close(descriptor)


def _try_overlay() -> None:
    """The guard can be installed, and the kernel hands a super-frame over whole, or cut into its packets."""
    TcpGuard().close()
    for name in ("p0", "p1"):
        _run("ip", "link", "set", name, "up")
    payload = bytes(40_000)
    data = homa.Data(1, 2, 2, len(payload), len(payload), segment_size=1440, placed=True, overlay=True).pack()
    ip = ipv4.IPv4(1 << 24, 2 << 24, ipv4.PROTO_TCP, ipv4.HEADER_LEN + len(data) + len(payload)).pack()
    frame = bytes(12) + b"\x08\x00" + ip + data + payload
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as into, offloading_socket("p0") as out:
        into.bind(("p1", _ETH_P_IP))
        into.settimeout(_FRAME_S)
        out.sendmsg((offload_head(frame), frame[HEAD:]))
        while not is_overlay(into.recv(1 << 17)):
            pass


def _try_nic_tap() -> None:
    """A TAP can be had, the kernel puts marked packets into the upper half of its queues, and the guard holds."""
    plaintext_guard.install()
    tap = TapInterface("t0", bytes((2, 0, 0, 0, 0, 1)), 1500, 1, NIC_GROUP)
    try:
        _run("ip", "addr", "add", "10.250.0.1/24", "dev", "t0")
        _run("ip", "link", "set", "t0", "up")
        _run("ip", "neigh", "add", "10.250.0.2", "lladdr", "02:00:00:00:00:02", "dev", "t0")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            set_mark(sock, PLAINTEXT_MARK)
            sock.sendto(b"marked", ("10.250.0.2", 9))
        waiting = [bool(select.select([queue], [], [], _FRAME_S * number)[0])
                   for number, queue in reversed(list(enumerate(tap.queues)))]
        if waiting != [True, False]:
            raise OSError("the kernel does not choose a TAP's queue by mark")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            set_mark(sock, PLAINTEXT_MARK)
            try:
                sock.sendto(b"marked", ("127.0.0.1", 9))
            except PermissionError:
                return
        raise OSError("the kernel lets marked packets out by another interface")
    finally:
        tap.close()
        # Who tries something else next in this namespace is not to meet it.
        plaintext_guard.remove()


def _try_inside() -> dict[str, str]:
    """What came of each attempt. Only for namespaces of our own: it makes interfaces and qdiscs."""
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", "p0", "type", "veth", "peer", "name", "p1")
    add = ("tc", "qdisc", "add", "dev")
    commands = {
        "bridge": ("ip", "link", "add", "br0", "type", "bridge"),
        "tbf": (*add, "lo", "root", "tbf", "rate", "10mbit", "burst", "10kb", "latency", "50ms"),
        "netem": (*add, "p1", "root", "netem", "delay", "1ms"),
        "htb": (*add, "p0", "root", "handle", "1:", "htb", "default", "1"),
        # After htb: a filter belongs to a qdisc with classes.
        "u32": ("tc", "filter", "add", "dev", "p0", "parent", "1:", "protocol", "ip", "u32",
                "match", "ip", "tos", "0x20", "0xe0", "flowid", "1:1"),
    }
    tried = {name: _attempt(lambda argv=argv: _run(*argv)) for name, argv in commands.items()}  # type: ignore[misc]
    return tried | {"raw": _attempt(_try_raw), "buffer": _attempt(_try_buffer), "tun": _attempt(_try_tun),
                    "ktls": _attempt(try_ktls), "overlay": _attempt(_try_overlay),
                    "nic_tap": _attempt(_try_nic_tap), "xdp": _attempt(_try_xdp), "uring": _attempt(_try_uring)}


if __name__ == "__main__":
    if os.getpid() != 1:
        sys.exit("topo.probes makes interfaces: only for namespaces of its own, as smtnet doctor starts it")
    print(json.dumps(_try_inside()))
