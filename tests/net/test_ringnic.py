"""Guarded processes behind rings (hosting ring), each network in a sandbox: see ringnic_drivers.py.

``SMTNET_RPCS=100000`` has so many RPCs where there are 300 by default.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import pytest

from smtstack.rings.layout import RINGS
from tests.net.netns import run

pytestmark = pytest.mark.root

RPCS = int(os.environ.get("SMTNET_RPCS", "300"))
DRIVERS = [sys.executable, "-m", "tests.net.ringnic_drivers"]


def inside(*args: str) -> dict[str, Any]:
    """What a program of ringnic_drivers.py prints."""
    done = run([*DRIVERS, *args], 60.0 + RPCS / 20)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_rpcs_go_by_rings_and_the_kernels_traffic_beside_them():
    got = inside("basics")
    assert got["ping"]
    assert got["tcp"]
    rpcs = got["rpcs"]
    # It answers, under a filter that would have killed it with its first network system call.
    assert rpcs["seccomp"]
    assert [rpcs["error"], rpcs["right"], rpcs["wrong"]] == ["", RPCS, 0]
    counters = rpcs["counters"]
    # Nothing to refuse of an honest host, and all frames are where they belong.
    assert counters["ring_refused"] == counters["ring_host_refused"] == counters["xsk_reclaimed_frame"] == 0
    assert [counters[f"ring_peer_index_rejected_{ring}"] for ring in RINGS] == [0] * 4
    assert counters["records_failed"] == counters["ring_monitor_restarts"] == counters["socket_send_drops"] == 0
    assert counters["xsk_rx_recv_frame"] == counters["packets_received"] > 0 < counters["xsk_tx_sent_frame"]
    assert got["names"] == ["ring-monitor"] * 2
    assert got["sockets"] == []


def test_a_nic_that_asks_for_plaintext_gets_none_and_the_filter_kills():
    got = inside("trust")
    leak = got["leak"]
    assert leak["found"] == 0
    assert leak["control"] == 1
    assert not leak["on"]
    assert leak["counters"]["tx_tls_refused"] == 1
    assert leak["counters"]["responses_delivered"] == 5
    # The control of all tests here: one network system call, and it is over.
    assert got["killed"] == -signal.SIGSYS


def test_a_monitor_that_is_stopped_goes_on_or_dies():
    got = inside("monitor")
    assert got["first"] == ""
    assert not got["stopped"]
    assert got["resumed"]
    # The control process starts another one, and nothing is wrong or lost.
    assert got["killed"] == ["", 40, 0, 1]
    assert got["another"]
    assert "the ring of h1-eth0 is dead" in got["dead"]["error"]


def test_a_second_guarded_process_has_its_ring_in_memory_and_what_a_ring_is_not_for():
    got = inside("several")
    # 4: all RPCs right, on a machine that is too busy to quote times.
    assert {got["second0"], got["second1"]} <= {0, 4}
    assert got["first"] == ""
    counters = got["counters"]
    # The second half went by another monitor: the first one was killed.
    assert [counters["ring_in_memory"], counters["ring_monitor_restarts"], counters["ring_refused"]] == [1, 1, 0]
    assert counters["requests_delivered"] >= 100
    assert "take --nic sw" in got["--nic"]
    assert "no overlay tcp" in got["--overlay"]


@pytest.mark.af_xdp
def test_the_program_takes_our_packets_and_no_others():
    got = inside("split")
    to_the_ring, to_the_kernel = 4, 2
    udp = got.pop("udp")
    assert len(udp) == 14
    assert [name for name, verdict in udp if verdict == to_the_ring] == [
        "e000", "ffff", "first of 1", "middle of 1", "last of 1, a byte", "overtaken of 1"]
    assert {verdict for _name, verdict in udp} == {to_the_ring, to_the_kernel}
    assert {name for name, verdict in got.items() if verdict == to_the_ring} == {"ours", "dont_fragment"}
    assert {verdict for name, verdict in got.items() if name not in ("ours", "dont_fragment")} == {to_the_kernel}


def test_each_network_system_call_is_refused():
    got = inside("denies")
    assert got["eperm"] not in got["before"].values()
    assert set(got["after"].values()) == {got["eperm"]}
    assert {"sendto", "recvfrom", "sendmsg", "recvmsg", "io_uring_enter", "ioctl", "poll"} <= set(got["after"])
    assert got["guarded"]


def test_a_hostile_process_that_maps_the_kernels_rings():
    """AF_XDP's own, changed between any two accesses by whoever has them: nothing is delivered that is wrong, and
    nothing ends the guarded process (its filter kills). Whether the kernel serves again is another matter: it went
    by what it was told. That the guarded process does, tests with hosts in memory show."""
    got = inside("hostile")
    assert got["in_memory"] == 0
    assert got["wrong"] == 0
    assert got["refused"] > 50
    # It may serve small requests and stall at larger ones: then nothing comes, and nothing wrong.
    assert got["after"]["wrong"] == 0
    assert got["after"]["error"] or got["after"]["right"] == 100
