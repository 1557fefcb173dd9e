"""Networks of Mininet, each in a sandbox of its own: see topo_drivers.py for what is done inside."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.net.netns import PATIENCE, run
from tests.net.starting import ROOT
from topo import ovs
from topo.needs import lacking

pytestmark = pytest.mark.root
needs_ovs = pytest.mark.skipif(not ovs.is_installed(), reason="Open vSwitch is not installed")

KERNEL_OVS = pytest.param("ovs", marks=pytest.mark.kernel_ovs)
SWITCHES = ["bridge", pytest.param("ovs-user", marks=needs_ovs), KERNEL_OVS]
#: Runs a program of topo_drivers.py in a sandbox.
DRIVERS = [sys.executable, "-m", "tests.net.topo_drivers"]
#: How far a measured ratio may be from the right one on a machine that does other things too.
NEAR = 0.15


def inside(*args: str, code: int = 0) -> dict[str, Any]:
    """What a program of topo_drivers.py prints."""
    done = run([*DRIVERS, *args])
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("switch", "topos"), [
    ("bridge", ["back2back", "star,3", "fanout,2,2", "dumbbell,2", "incast,3", "leafspine,2,2,1"]),
    pytest.param("ovs-user", ["star,3", "leafspine,2,2,1"], marks=needs_ovs),
    pytest.param("ovs", ["star,3", "leafspine,2,2,1"], marks=pytest.mark.kernel_ovs),
])
def test_every_host_reaches_every_other(switch, topos):
    results = inside("pings", switch, *topos)["networks"]
    assert [r["topo"] for r in results] == topos
    for result in results:
        number = result["hosts"]
        assert result["pairs"] == number * (number - 1)
        assert result["kind"] == ("" if result["topo"] == "back2back" else switch)
        assert result["macs"] == [f"02:00:00:00:00:{n:02x}" for n in range(1, number + 1)]
        assert result["ips"] == [f"10.0.0.{n}" for n in range(1, number + 1)]
        assert not any(result["drops"].values())


@pytest.mark.parametrize("switch", SWITCHES)
def test_links_of_other_kinds_pass_frames_too(switch):
    (result,) = inside("pings", switch, "star,2", "mtu=9000", "wire=yes", "rate_mbps=50")["networks"]
    assert not any(result["drops"].values())


@pytest.mark.parametrize("switch", SWITCHES)
def test_mininets_options_do_what_they_do_in_mininet(switch):
    seen = inside("mininets", switch)
    slow, slower = seen["rtts"]
    # Four times one way. What the machine adds, where it is emulated a quarter of the first, is in both.
    assert slow >= 40
    assert slower >= 200
    assert slower - slow == pytest.approx(160, rel=NEAR)
    # One per cent on each of two links: some 80 of 4000.
    assert seen["arrived"] + seen["lost"] == 4000
    assert 40 < seen["lost"] < 130
    assert seen["one"] / seen["four"] == pytest.approx(4, rel=NEAR)
    assert 29 * (1514 + 24) * 8e-6 / seen["one"] == pytest.approx(1, rel=NEAR)
    # Of a burst, those that are queued, the few that HTB sends at once, and what goes while it is sent: on an
    # emulated processor that takes time.
    assert 10 <= seen["held"] <= 16 + seen["burst_s"] / (1514 * 8e-6)
    assert seen["held"] + seen["full"] == 100


@pytest.mark.parametrize("kind", ["wire", pytest.param("netem", marks=pytest.mark.netem)])
def test_the_wire_and_netem_impair_alike(kind):
    count = 1000
    seen = inside("impair", kind, str(count))
    # Ten per cent of a thousand, give or take five standard deviations.
    some = range(53, 148)
    loss, duplicate, corrupt = seen["loss"], seen["duplicate"], seen["corrupt"]
    assert count - loss["came"] in some
    assert 0 <= loss["counted"] - (count - loss["came"]) <= 20  # kernels say something now and then, too
    assert (loss["changed"], loss["distinct"]) == (0, loss["came"])
    assert duplicate["came"] - count in some
    assert (duplicate["changed"], duplicate["distinct"], duplicate["counted"]) == (0, count, 0)
    # Whose protocol number was hit is not taken for ours.
    assert count - 5 <= corrupt["came"] <= count
    assert corrupt["changed"] in some
    assert corrupt["one_bit"]
    # 20 ms each way, up to 5 more or less; whatever the machine adds comes on top.
    assert len(seen["rtts"]) == 20
    assert min(seen["rtts"]) >= 30
    assert max(seen["rtts"]) - min(seen["rtts"]) > 1
    assert seen["wire"] == [kind == "wire"]


def test_netem_where_the_kernel_has_none_is_refused():
    if not lacking("netem"):
        pytest.skip("this kernel has netem")
    done = run([*DRIVERS, "impair", "netem", "1"])
    assert done.returncode != 0
    assert "this kernel has no netem, u32 or mirred" in done.stderr
    assert "leave --impair netem out" in done.stderr


def test_traffic_over_a_link_that_loses_frames():
    (result,) = inside("pings", "bridge", "star,2", "loss=10%", "delay_us=500")["networks"]
    drops = result["drops"]
    assert drops.pop("impairments") > 0
    assert not any(drops.values())


@pytest.mark.first("rates are measured, and on a busy machine the kernel is late with what it may send")
def test_rates_hold_and_count_what_the_cable_counts():
    times = inside("rates", "bridge")
    assert times["long5"] / times["long20"] == pytest.approx(4, rel=NEAR)
    # The first two long frames and a bit go at once. 24 bytes a frame make 0.299 of it; without them 0.239.
    burst = 2 * (1514 + 24)
    right = (200 * 124 - burst) / (50 * 1538 - burst)
    assert times["short5"] / times["long5"] == pytest.approx(right, rel=NEAR)
    assert times["short5"] / times["long5"] > 0.265


@pytest.mark.parametrize("switch", SWITCHES)
def test_eight_strict_priorities_at_the_switch(switch):
    result = inside("priorities", switch)
    order = result["order"]
    assert len(order) == 80
    # A frame of each may go by right, and what came before the higher ones did; from then on it is strict.
    first = max(n for n in range(1, 80) if order[n] > order[n - 1])
    assert first <= 40
    assert order[first:] == sorted(order[first:], reverse=True)
    assert order[first] == 7
    packets = {int(p): n for p, n in result["packets"].items()}
    assert packets.pop(0) > 10  # the echo before
    assert packets == dict.fromkeys(range(1, 8), 10)
    assert result["dropped"] == 0


@needs_ovs
def test_a_burst_fits_the_buffers_of_open_vswitch_and_did_not_before():
    assert inside("burst", "yes") == {"arrived": 2000, "drops": 0}
    before = inside("burst", "no")
    assert before["arrived"] < 2000
    assert before["arrived"] + before["drops"] == 2000


def test_what_a_full_queue_loses_is_counted():
    result = inside("queues")
    assert result["lost"] > 0
    assert result["lost"] + result["arrived"] == 50
    assert result["drops"].pop("queues") == result["lost"]
    assert not any(result["drops"].values())


def test_a_wire_loses_what_it_is_told_to_and_the_nic_is_set():
    result = inside("wire_counts")
    lost = 300 - result["arrived"]
    assert 0 < lost <= result["drops"].pop("impairments")  # some of the echoes were lost, too
    assert not any(result["drops"].values())
    assert (result["tso"], result["contexts"]) == (False, 4)


def test_what_is_wrong_is_said_in_one_line():
    result = inside("failures")
    mtus, down, silent = result["said"]
    assert mtus == ("link h1-eth0<->s1-eth1: MTU 1500 at h1-eth0 and 2000 at s1-eth1, so long frames are lost: "
                    "on h1, ip link set dev h1-eth0 mtu 2000")
    assert "h1 cannot reach h2 (10.0.0.2)" in down
    assert "ip link set dev h2-eth0 up" in down
    assert "no answer" in silent
    assert result["drops"].pop("cables") == 1  # the frame that was longer than the MTU of the other end
    assert not any(result["drops"].values())
    assert result["left"] == [""]


@needs_ovs
def test_a_switch_this_kernel_lacks(tmp_path):
    done = run([*DRIVERS, "fail"])
    if ovs.has_kernel_datapath():
        pytest.skip("this kernel has Open vSwitch's datapath")
    assert done.returncode == 1
    assert done.stderr == "this kernel lacks Open vSwitch's datapath (module openvswitch): use --switch ovs-user\n"


@pytest.mark.skipif(not shutil.which("setpriv"), reason="setpriv (util-linux) is missing")
def test_a_root_that_may_make_no_namespaces():
    done = run(["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", sys.executable, "-c",
                "from topo import sandbox\ntry: sandbox.enter()\nexcept Exception as e: print(repr(e))"])
    assert "Unsupported" in done.stdout, done.stderr
    assert "--privileged" in done.stdout


def test_programs_end_with_their_host():
    result = inside("programs")
    assert "10.0.0.1/8" in result["addresses"]
    assert result["code"] == -signal.SIGKILL
    assert result["left"] == []


class Held:
    """A network in a sandbox that stays: its outermost process, and what is below it."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen([*DRIVERS, "hold", *options], stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, cwd=ROOT)
        assert self.process.stdout is not None
        assert json.loads(self.process.stdout.readline()) == {"up": True}
        self.below = psutil.Process(self.process.pid).children(recursive=True)
        self.namespaces = {n for p in self.below if (n := namespace(p.pid))} - {namespace(os.getpid())}

    def end(self, number: int) -> tuple[int, str]:
        """(exit code, stderr) after a signal to the outermost process."""
        self.process.send_signal(number)
        _output, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors

    def rest(self) -> list[psutil.Process]:
        """Which processes are still there after a while."""
        return psutil.wait_procs(self.below, timeout=PATIENCE)[1]


def namespace(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return 0


def test_kill_leaves_nothing():
    held = Held("star,2", "rate_mbps=10", "loss=1%")
    assert len(held.namespaces) == 3  # the sandbox and two hosts
    assert any("topo.wire_process" in p.cmdline() for p in held.below)
    assert held.end(signal.SIGKILL)[0] == -signal.SIGKILL
    assert held.rest() == []
    assert not held.namespaces & {namespace(p.pid) for p in psutil.process_iter()}
    mounts = Path("/proc/self/mountinfo").read_text()
    assert not any(f"net:[{n}]" in mounts for n in held.namespaces)


def test_interrupt_takes_the_network_down_in_order():
    folders = {p.name for p in Path("/run").iterdir()}
    held = Held("star,2")
    code, errors = held.end(signal.SIGINT)
    assert code == 7, errors
    assert errors == ""
    assert held.rest() == []
    # Inside, /run had an openvswitch of its own.
    assert "openvswitch" not in {p.name for p in Path("/run").iterdir()} - folders


def test_terminate_ends_it_at_once():
    held = Held("back2back")
    assert held.end(signal.SIGTERM)[0] == 128 + signal.SIGTERM
    assert held.rest() == []


def test_two_sandboxes_do_not_meet():
    one, two = Held("star,2"), Held("star,2")
    assert not one.namespaces & two.namespaces
    assert [h.end(signal.SIGINT)[0] for h in (one, two)] == [7, 7]
