"""The overlay between two hosts: super-frames on a cable, cut ones, beside the kernel's own TCP; cleaned up."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from smtstack.wire.overlay import is_overlay
from tests.net.netns import IFACE, IMPATIENT, B, Net, run
from tests.net.test_sessions import Lab

pytestmark = pytest.mark.root

BIG = ("--size", "300000", "--count", "20", "--concurrency", "2", "--warm-up", "0")
TCP, RST = 6, 0x04
#: Bytes of the kernel's own transfer.
TRANSFER = 40_000_000


@pytest.fixture(scope="module")
def lab(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(net, tmp_path_factory.mktemp("lab"))
    with lab.resolver():
        yield lab


def driver(net: Net, namespace: str, *args: str) -> Any:
    done = run(["ip", "netns", "exec", namespace, sys.executable, "-m", "tests.net.overlay_drivers", *args])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def resets(frames: list[bytes]) -> list[bytes]:
    return [f for f in frames if f[12:14] == b"\x08\x00" and f[23] == TCP and f[47] & RST and not is_overlay(f)]


@contextmanager
def offload(net: Net, *settings: str) -> Iterator[None]:
    """Both ends of the cable; as they were, afterwards."""
    def ethtool(*words: str) -> None:
        for namespace in (net.a, net.b):
            subprocess.run(["ip", "netns", "exec", namespace, "ethtool", "-K", IFACE, *words], check=True,
                           capture_output=True)

    ethtool(*settings)
    try:
        yield
    finally:
        ethtool("tso", "on", "gso", "on", "gro", "off", "tx", "on")


@contextmanager
def rate(net: Net, *qdisc: str) -> Iterator[None]:
    """A queueing discipline at a's end."""
    tc = ["ip", "netns", "exec", net.a, "tc", "qdisc"]
    subprocess.run([*tc, "add", "dev", IFACE, "root", *qdisc], check=True)
    try:
        yield
    finally:
        subprocess.run([*tc, "del", "dev", IFACE, "root"], check=True)


def echo(net: Net, profile: str, *options: str, size: tuple[str, ...] = BIG) -> dict[str, int]:
    """20 RPCs; what the server counted."""
    with net.serve(profile, "--overlay", "tcp", *options) as server:
        result, errors, code = net.call(profile, "--overlay", "tcp", *size, *options)
        assert code in (0, 4), errors
        assert (result["rpcs"], result["errors"], result["content_ok"]) == (20, 0, True)
        counters: dict[str, int] = server.stop()["counters"]
    return counters


@pytest.mark.parametrize("nic", ["sw", "hw"])
@pytest.mark.parametrize("profile", ["smt", "homa"])
def test_super_frames_are_sent_and_received(net: Net, profile, nic):
    frames: list[bytes] = []
    before = {host: driver(net, host, "tcp") for host in (net.a, net.b)}
    with net.sniff(frames):
        counters = echo(net, profile, "--nic", nic)
    assert counters["tx_gso_packets"] >= 100
    assert counters["data_merged"] >= 100
    assert counters["overlay_received"] >= counters["data_merged"]
    assert counters["overlay_unexpected"] == counters["socket_dropped"] == counters["bad_packets"] == 0
    ours = [f for f in frames if is_overlay(f)]
    assert max(map(len, ours)) > 60_000
    assert not resets(frames)
    # The hosts' own TCP has seen nothing at all.
    assert {host: driver(net, host, "tcp") for host in (net.a, net.b)} == before


@pytest.mark.parametrize("settings", [("tso", "off"), ("tso", "off", "gso", "off"), ("tso", "off", "gro", "on"),
                                      ("tx", "off"), ("gro", "on")])
def test_it_works_where_the_way_cuts_and_merges(net: Net, settings):
    with offload(net, *settings):
        counters = echo(net, "smt")
    # Cut in the kernel of the sender; with GRO put together again.
    if "tso" in settings or "tx" in settings:
        assert (counters["data_merged"] > 50) == ("gro" in settings)
    assert counters["records_failed"] == counters["bad_packets"] == counters["beyond_message"] == 0


@pytest.mark.parametrize("qdisc", [("tbf", "rate", "200mbit", "burst", "20000", "limit", "4000000")])
def test_it_works_over_a_limited_link(net: Net, qdisc):
    with rate(net, *qdisc):
        counters = echo(net, "smt")
    assert counters["records_failed"] == 0


def test_a_nic_that_cuts_itself(net: Net):
    subprocess.run(["ip", "netns", "exec", net.b, sys.executable, "-m", "workloads", "nic", IFACE, "--set",
                    "gso=off"],
                   check=True, capture_output=True)
    try:
        counters = echo(net, "smt")
    finally:
        subprocess.run(["ip", "netns", "exec", net.b, sys.executable, "-m", "workloads", "nic", IFACE, "--reset"],
                       check=True, capture_output=True)
    assert counters["tx_gso_packets"] == 0
    assert counters["tx_tso_packets"] >= 100
    assert counters["data_merged"] >= 100


def test_the_kernels_tcp_is_untouched_meanwhile(net: Net):
    frames: list[bytes] = []
    port = "5201"
    with net.serve("smt", "--overlay", "tcp") as server, net.sniff(frames):
        with net.start(net.b, "tests.net.overlay_drivers", "receive", port, ready="listening") as receiver:
            command = ["ip", "netns", "exec", net.a, *net.call_command(
                "smt", "--overlay", "tcp", "--size", "300000", "--count", "300", "--concurrency", "2")]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/") as caller:
                sent = driver(net, net.a, "send", B, port, str(TRANSFER))
                output, errors = caller.communicate(timeout=60)
            receiver.wait()
        assert json.loads(receiver.output) == sent
        result = json.loads(output)
        assert (result["rpcs"], result["errors"], result["content_ok"]) == (300, 0, True), errors
        counters = server.stop()["counters"]
    assert counters["data_merged"] > 1000
    kernels = [f for f in frames if f[12:14] == b"\x08\x00" and f[23] == TCP and not is_overlay(f)]
    assert len(kernels) > 500
    assert not resets(frames)


def test_without_the_guard_the_hosts_tcp_resets(net: Net):
    """The control, and a mismatch: who has no overlay has no guard, either; the error and counters say so."""
    frames: list[bytes] = []
    before = driver(net, net.b, "tcp")
    with net.serve("smt") as server, net.sniff(frames):
        _result, errors, code = net.call("smt", "--overlay", "tcp", *BIG, *IMPATIENT)
        counters = server.stop()["counters"]
    assert code == 1
    assert "--overlay" in errors
    assert counters["overlay_unexpected"] > 0
    assert resets(frames)
    after = driver(net, net.b, "tcp")
    assert after["OutRsts"] > before["OutRsts"]


def test_who_has_no_overlay_and_gets_it_is_told(net: Net):
    with net.serve("smt", "--overlay", "tcp"):
        _result, errors, code = net.call("smt", *BIG, *IMPATIENT)
    assert code == 1
    assert "here is no overlay" in errors


@pytest.mark.parametrize("mode", ["mtls", "ticket-fs", "psk-fs"])
@pytest.mark.parametrize(("client", "server"), [("tcp", "tcp"), ("tcp", "none"), ("none", "tcp")])
def test_sessions_have_it_if_both_ends_want_it(lab: Lab, mode, client, server):
    with lab.serve(mode, "--overlay", server) as serving:
        lab.call(mode, 10, "--size", "200000", "--overlay", client)
        counters = serving.stop(signal.SIGINT)["counters"]
    assert (counters["overlay_received"] > 0) == (counters["data_merged"] > 0) == (client == server)
    assert counters["overlay_unexpected"] == counters["failed"] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_guard_goes_with_its_process(net: Net, number):
    assert driver(net, net.b, "tables") == []
    with net.serve("smt", "--overlay", "tcp") as one:
        with net.serve("smt", "--overlay", "tcp", port=2001) as other:
            # Each has its own, so neither depends on the other.
            assert len(driver(net, net.b, "tables")) == 2
            other.stop(number)
        assert len(driver(net, net.b, "tables")) == 1
        _result, errors, code = net.call("smt", "--overlay", "tcp", *BIG)
        assert code in (0, 4), errors
        one.stop(number)
    assert driver(net, net.b, "tables") == []
    assert driver(net, net.a, "tables") == []
