"""The programmable wire: what goes in comes out, changed as asked and no further; nothing is lost unsaid."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from smtstack.capture.pcapfile import Reader
from smtstack.errors import ConfigError, SmtError
from smtstack.io.ethtool import has_link
from smtstack.io.namespaces import within
from smtstack.nic.impairments import ImpairmentRates
from tests.net.netns import PATIENCE, A, B, Net, Running
from topo.wire import Tampering, Wire, sent_by

pytestmark = pytest.mark.root

#: For local experiments: no protocol of the kernel's.
ETHERTYPE = 0x88B5
ETH_P_ALL = 3
LEFT_MAC, RIGHT_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"


@contextmanager
def namespace() -> Iterator[int]:
    """A network namespace without a name; the pid of a process that keeps it."""
    ours = os.stat("/proc/self/ns/net").st_ino
    keeper = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    try:
        end = time.monotonic() + PATIENCE
        while os.stat(f"/proc/{keeper.pid}/ns/net").st_ino == ours:
            assert time.monotonic() < end
        yield keeper.pid
    finally:
        keeper.kill()
        keeper.wait()


class Bench:
    """x0 === w0 | wire | w1 === x1, all in one namespace; the tests hold x0 and x1."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        for n, mtu in (("0", "9000"), ("1", "1500")):
            self.ip("link", "add", f"x{n}", "mtu", mtu, "type", "veth", "peer", "name", f"w{n}", "mtu", mtu)
            for end in (f"x{n}", f"w{n}"):
                self.ip("link", "set", end, "addrgenmode", "none")  # IPv6 stays silent
            self.ip("link", "set", f"x{n}", "up")  # the wire brings its own ends up
        self.left, self.right = within(self.pid, lambda: (packet_socket("x0"), packet_socket("x1")))

    def ip(self, *args: str) -> None:
        subprocess.run(["nsenter", f"--net=/proc/{self.pid}/ns/net", "ip", *args], check=True)

    def wire(self, rates: ImpairmentRates | None = None, **options: object) -> Wire:
        wire = Wire.start("w0", "w1", rates, pid=self.pid, **options)  # type: ignore[arg-type]
        # With the wire's ends, ours came up: once the kernel says that they run, it drops nothing any more.
        end = time.monotonic() + PATIENCE
        while not within(self.pid, lambda: all(running(name) for name in ("x0", "x1"))):
            assert time.monotonic() < end
            time.sleep(0.001)
        for sock in (self.left, self.right):
            receive(sock, until=0)
        return wire


def running(interface: str) -> bool:
    """IFF_RUNNING."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        asked = struct.pack("16s24x", interface.encode())
        flags: int = struct.unpack_from("16sH", fcntl.ioctl(s, 0x8913, asked))[1]  # SIOCGIFFLAGS
        return bool(flags & 0x40)


def packet_socket(interface: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
    sock.setsockopt(263, 23, 1)  # PACKET_IGNORE_OUTGOING
    sock.bind((interface, ETH_P_ALL))  # corrupted frames are of any type
    return sock


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with namespace() as pid:
        bench = Bench(pid)
        with bench.left, bench.right:
            yield bench


def frames(number: int, *, source: str = LEFT_MAC, size: int | None = None) -> list[bytes]:
    """Different ones, numbered, of all sizes up to the MTU."""
    rng = random.Random(f"{source} {number}")
    head = bytes.fromhex("ffffffffffff" + source.replace(":", "")) + ETHERTYPE.to_bytes(2, "big")
    return [head + n.to_bytes(4, "big") + rng.randbytes((size or rng.randrange(60, 1515)) - 18)
            for n in range(number)]


def receive(sock: socket.socket, until: int) -> list[bytes]:
    """At least ``until`` frames, and what else is there then."""
    got: list[bytes] = []
    end = time.monotonic() + PATIENCE
    while True:
        missing = len(got) < until
        sock.settimeout(max(0.001, end - time.monotonic()) if missing else 0)
        try:
            got.append(sock.recv(70_000))
        except (BlockingIOError, TimeoutError):
            assert not missing, f"{len(got)} of {until} frames came"
            return got


def send(sock: socket.socket, batch: list[bytes]) -> None:
    sock.settimeout(PATIENCE)
    for frame in batch:
        sock.send(frame)


def passed(wire: Wire, to: str, number: int) -> dict[str, int]:
    """Counters of one direction once ``number`` frames went in and none is waiting."""
    end = time.monotonic() + PATIENCE
    while True:
        counters = wire.statistics()[to]
        if counters["received"] + counters["receive_drops"] >= number and not counters["waiting"]:
            return dict(counters)
        assert time.monotonic() < end, counters
        time.sleep(0.01)


def through(bench: Bench, wire: Wire, batch: list[bytes], *, before: int = 0) -> list[bytes]:
    """What comes out at the right of what is sent at the left."""
    send(bench.left, batch)
    passed(wire, "right", before + len(batch))
    return receive(bench.right, 0)


def test_a_veth_has_a_link_when_both_its_ends_are_up():
    with namespace() as pid:
        bench = Bench(pid)
        with bench.left, bench.right:
            assert not within(pid, lambda: has_link("x0"))
            assert not within(pid, lambda: has_link("no"))
            with bench.wire():
                assert within(pid, lambda: has_link("x0") and running("x0"))


def test_both_ways_intact_and_in_order(bench: Bench):
    there, back = frames(500), frames(500, source=RIGHT_MAC)
    with bench.wire() as wire:
        for one, other in zip(there, back, strict=True):
            bench.left.send(one)
            bench.right.send(other)
        assert receive(bench.right, 500) == there
        assert receive(bench.left, 500) == back
        assert wire.drops() == 0
        assert [wire.statistics()[side]["forwarded"] for side in ("left", "right")] == [500, 500]
        assert wire.statistics()["late_us_max"] > 0


def test_the_same_seed_loses_the_same_frames(bench: Bench):
    batch = frames(2000, size=100)
    runs = []
    for seed in (7, 7, 8):
        with bench.wire(ImpairmentRates(drop=0.1), seed=seed) as wire:
            runs.append(through(bench, wire, batch))
            assert wire.statistics()["right"]["dropped"] == 2000 - len(runs[-1])
            send(bench.right, batch)
            passed(wire, "left", 2000)
            back = receive(bench.left, 0)
            assert back != runs[-1], "both directions drew the same numbers"
            assert wire.drops() == 0
    assert runs[0] == runs[1] != runs[2]
    assert 100 < 2000 - len(runs[0]) < 300


def test_faults_one_by_one(bench: Bench):
    batch = frames(300)
    with bench.wire(ImpairmentRates(duplicate=1.0)) as wire:
        assert through(bench, wire, batch) == [frame for frame in batch for _copy in "12"]
        wire.set(duplicate=0.0, reorder=0.3, reorder_ns=3_000_000)
        mixed = through(bench, wire, batch, before=300)
        assert mixed != batch
        assert Counter(mixed) == Counter(batch)
        wire.set(reorder=0.0, corrupt=1.0)
        for sent, got in zip(batch, through(bench, wire, batch, before=600), strict=True):
            assert (int.from_bytes(sent, "big") ^ int.from_bytes(got, "big")).bit_count() == 1
        wire.set(corrupt=0.0, delay_ns=50_000_000)
        start = time.monotonic()
        assert through(bench, wire, batch, before=900) == batch
        assert time.monotonic() - start >= 0.05
        counters = wire.statistics()["right"]
        assert counters["duplicated"] == counters["corrupted"] == 300
        assert 0 < counters["reordered"] < 300
        assert wire.drops() == 0


def test_one_direction_alone(bench: Bench):
    batch = frames(50)
    with bench.wire(back=ImpairmentRates(drop=1.0)) as wire:
        assert through(bench, wire, batch) == batch
        send(bench.right, batch)
        assert passed(wire, "left", 50)["dropped"] == 50
        wire.set_rates("right", wire.rates("left"))
        assert through(bench, wire, batch, before=50) == []
        wire.set("left", drop=0.0)
        send(bench.right, batch)
        assert receive(bench.left, 50) == batch


def test_rates_change_while_traffic_runs(bench: Bench):
    with bench.wire() as wire:
        first, second, third = frames(200), frames(201)[1:], frames(202)[2:]
        send(bench.left, first)
        passed(wire, "right", 200)
        wire.set(drop=1.0)
        send(bench.left, second)
        passed(wire, "right", 400)
        wire.set(drop=0.0)
        send(bench.left, third)
        assert receive(bench.right, 400) == first + third


def test_the_recording_is_what_passed(bench: Bench, tmp_path: Path):
    there, back = frames(300), frames(300, source=RIGHT_MAC)
    path = tmp_path / "wire.pcap"
    with bench.wire(ImpairmentRates(drop=0.2, corrupt=0.2), record=path) as wire:
        arrived = through(bench, wire, there)
        send(bench.right, back)
        passed(wire, "left", 300)
        arrived += receive(bench.left, 0)
        with pytest.raises(ConfigError, match="already"):
            wire.record(tmp_path / "other.pcap")
        assert wire.stop_recording() == len(arrived)
        assert wire.stop_recording() == 0
        with pytest.raises(ConfigError, match=r"wire\.pcap is there already"):
            wire.record(path)
        # Nothing is added any more.
        through(bench, wire, there, before=300)
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open("rb") as f:
        assert [c.frame for c in Reader(f).frames_untrusted()] == arrived


def test_replay_and_inject(bench: Bench, tmp_path: Path):
    there, back = frames(20), frames(20, source=RIGHT_MAC)
    path = tmp_path / "wire.pcap"
    with bench.wire(record=path) as wire:
        through(bench, wire, there)
        send(bench.right, back)
        receive(bench.left, 20)
        wire.stop_recording()
        # Faults of the link are not for the attacker.
        wire.set(drop=1.0)
        assert wire.replay(path, "right", sent_by(LEFT_MAC)) == 20
        assert receive(bench.right, 20) == there
        assert wire.replay(path, "left") == 40
        assert receive(bench.left, 40) == there + back
        assert wire.inject("left", [there[0]]) == 1
        assert receive(bench.left, 1) == [there[0]]
        assert [wire.statistics()[side]["injected"] for side in ("left", "right")] == [41, 20]
        (tmp_path / "no.pcap").write_bytes(b"not a capture")
        with pytest.raises(ConfigError, match="not a capture"):
            wire.replay(tmp_path / "no.pcap", "left")
        with pytest.raises(ConfigError, match="left and right"):
            wire.inject("middle", there)
        with pytest.raises(ConfigError, match="13 bytes cannot"):
            wire.inject("left", [bytes(13)])


def test_tampering(bench: Bench):
    batch = frames(10, size=100)
    with bench.wire() as wire:
        wire.tamper("right", Tampering(offset=50, mask=0x81))
        for sent, got in zip(batch, through(bench, wire, batch), strict=True):
            assert got == sent[:50] + bytes([sent[50] ^ 0x81]) + sent[51:]
        wire.tamper("right", Tampering(offset=-1, match_offset=14, match=(3).to_bytes(4, "big")))
        changed = through(bench, wire, batch, before=10)
        assert [n for n in range(10) if changed[n] != batch[n]] == [3]
        assert changed[3][:-1] == batch[3][:-1]
        wire.tamper("right", Tampering(offset=20, count=2))
        changed = through(bench, wire, batch, before=20)
        assert [n for n in range(10) if changed[n] != batch[n]] == [0, 1]
        wire.tamper("right", Tampering(offset=5000))
        assert through(bench, wire, batch, before=30) == batch
        wire.tamper("right", None)
        assert through(bench, wire, batch, before=40) == batch
        assert wire.statistics()["right"]["tampered"] == 13


def test_what_the_wire_loses_itself_is_counted(bench: Bench):
    with bench.wire() as wire:
        send(bench.left, frames(3, size=3000))
        passed(wire, "right", 3)
        assert wire.statistics()["right"]["oversize"] == wire.drops() == 3
        # Its process gets no processor: the socket's buffer fills.
        pid = wire.pid
        os.kill(pid, signal.SIGSTOP)
        send(bench.left, frames(20_000, size=1400))
        os.kill(pid, signal.SIGCONT)
        counters = passed(wire, "right", 20_003)
        assert counters["receive_drops"] > 0
        assert counters["forwarded"] == 20_000 - counters["receive_drops"]
        assert len(receive(bench.right, 0)) == counters["forwarded"]
        assert wire.drops() == counters["receive_drops"] + 3


def test_it_ends_with_its_parent(bench: Bench):
    program = ("import sys, time; from topo.wire import Wire; "
               f"wire = Wire.start('w0', 'w1', pid={bench.pid}); "
               "print(wire.pid, 'ready', file=sys.stderr, flush=True); time.sleep(600)")
    with Running([sys.executable, "-c", program], "ready") as parent:
        pid = int(parent.errors.split()[0])
        assert Path(f"/proc/{pid}/cmdline").read_bytes().count(b"topo.wire_process") == 1
        parent.stop(signal.SIGKILL)
    end = time.monotonic() + PATIENCE
    # Gone at any moment, or a zombie, whose command line is empty.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while Path(f"/proc/{pid}/cmdline").read_bytes():
            assert time.monotonic() < end, "the wire outlived the process that started it"
            time.sleep(0.01)


def test_errors_are_one_line_with_names(bench: Bench, tmp_path: Path):
    with pytest.raises(ConfigError, match="wire w0 - nope: no interface 'nope'"):
        Wire.start("w0", "nope", pid=bench.pid)
    with pytest.raises(ConfigError, match=r"wire w0 - w1: .*/none/x.pcap: No such file"):
        Wire.start("w0", "w1", pid=bench.pid, record=tmp_path / "none" / "x.pcap")
    with pytest.raises(ConfigError, match="a wire has no loss; it has drop, duplicate"), bench.wire() as wire:
        wire.set(loss=0.1)
    with bench.wire() as wire:
        os.kill(wire.pid, signal.SIGKILL)
        with pytest.raises(SmtError, match=r"w0 - w1: its process .*SIGKILL"):
            wire.set(drop=0.1)
        wire.stop()


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[tuple[Net, Wire]]:
    """Hosts a and b with a wire between them."""
    with ExitStack() as stack:
        net = Net(tmp_path / "net")
        stack.callback(net.down)
        pid = stack.enter_context(namespace())
        for name, address, near in ((net.a, A, "wa"), (net.b, B, "wb")):
            subprocess.run(["ip", "netns", "add", name], check=True)
            subprocess.run(["ip", "link", "add", "e0", "netns", name, "type", "veth", "peer", "name", near,
                            "netns", str(pid)], check=True)
            subprocess.run(["ip", "-n", name, "addr", "add", f"{address}/24", "dev", "e0"], check=True)
            subprocess.run(["ip", "-n", name, "link", "set", "e0", "up"], check=True)
        yield net, stack.enter_context(Wire.start("wa", "wb", pid=pid))


@pytest.mark.parametrize("profile", ["smt", "homa"])
def test_rpcs_over_a_bad_wire(wired: tuple[Net, Wire], tmp_path: Path, profile: str):
    """Lost, doubled, late and damaged frames: every answer is right all the same."""
    net, wire = wired
    bad = ImpairmentRates(drop=0.01, duplicate=0.01, reorder=0.02, corrupt=0.01, delay_ns=200_000,
                          jitter_ns=100_000)
    if profile == "homa":
        # Nothing but the IP header has a checksum there.
        bad = ImpairmentRates(drop=0.02, duplicate=0.02, reorder=0.05)
    for side in ("left", "right"):
        wire.set_rates(side, bad)
    wire.record(tmp_path / "seen.pcap")
    with net.serve(profile):
        result, errors, code = net.call(profile, "--size", "64,20000", "--count", "150", "--concurrency", "10")
    assert code in (0, 4), errors
    assert [r["content_ok"] and r["rpcs"] == 150 and not r["errors"] for r in result["results"]] == [True, True]
    counters = wire.statistics()["right"]
    assert counters["dropped"] > 0
    assert counters["duplicated"] > 0
    assert counters["reordered"] > 0
    assert wire.drops() == 0
    assert wire.stop_recording() > 1000
    if profile == "smt":
        assert counters["corrupted"] > 0
