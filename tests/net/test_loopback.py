"""Both ends on one host: the loopback interface does, and an own address elsewhere is refused with what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.net.netns import IFACE, A, Net, run

pytestmark = pytest.mark.root

LO = "127.0.0.1"


@pytest.fixture(scope="module")
def host(net: Net) -> Net:
    subprocess.run(["ip", "-n", net.a, "link", "set", "lo", "up"], check=True)
    return net


def options(net: Net, transport: str, folder: Path) -> list[str]:
    if transport == "linux":
        return ["--keys", "demo"]
    if transport == "homa":
        return []
    done = run([sys.executable, "-m", "workloads", "ca", str(folder / "ca"), "--host", f"a={LO}"])
    assert done.returncode == 0, done.stderr
    return ["--certs", str(folder / "ca" / "a")]


def cli(net: Net, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = run(["ip", "netns", "exec", net.a, sys.executable, "-m", "workloads", *arguments])
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("nic", ["sw", "hw"])
@pytest.mark.parametrize("transport", ["smt", "homa", "linux"])
def test_loopback_carries_every_size(host: Net, tmp_path: Path, transport: str, nic: str):
    end = ["--iface", "lo", "--transport", transport, "--nic", nic, *options(host, transport, tmp_path)]
    with host.start(host.a, "workloads", "serve", "echo", *end, "--addr", f"{LO}:2000", "--json",
                    ready="serving") as server:
        done = cli(host, "call", "echo", *end, "--addr", f"{LO}:{host.port()}", "--peer", f"{LO}:2000", "--size",
                   "1,1400,65536,200000", "--count", "20", "--concurrency", "4", "--warm-up", "1", "--json")
        assert done.returncode in {0, 4}, done.stderr
        for result in json.loads(done.stdout)["results"]:
            assert (result["rpcs"], result["errors"], result["content_ok"]) == (20, 0, True)
        counters = server.stop()["counters"]
    # Each frame is seen once, whole, and by nobody else.
    assert (counters["bad_packets"], counters["rx_csum_bad"]) == (0, 0)
    snmp = run(["ip", "netns", "exec", host.a, "cat", "/proc/net/snmp"]).stdout
    names, numbers = (line.split() for line in snmp.splitlines() if line.startswith("Icmp:"))
    assert dict(zip(names, numbers, strict=True))["OutDestUnreachs"] == "0", "the kernel knows no such protocol"


def test_the_key_value_store_is_there_too(host: Net, tmp_path: Path):
    end = ["--iface", "lo", "--transport", "homa"]
    with host.start(host.a, "workloads", "serve", "kv", *end, "--addr", f"{LO}:6379", ready="serving"):
        where = [*end, "--addr", LO, "--peer", f"{LO}:6379"]
        assert cli(host, "kv", *where, "SET", "foo", "bar").returncode == 0
        assert "bar" in cli(host, "kv", *where, "GET", "foo").stdout


@pytest.mark.parametrize("command", ["call echo", "call kv", "kv"])
def test_an_own_address_behind_a_cable_is_refused_at_once(host: Net, command: str):
    more = ["PING"] if command == "kv" else []
    addr = A if command == "kv" else f"{A}:{host.port()}"
    done = cli(host, *command.split(), "--iface", IFACE, "--transport", "homa", "--addr", addr, "--peer",
               f"{A}:2000", *more)
    assert done.returncode == 2, done.stderr
    assert f"{A} is an address of this host ({IFACE}): nothing comes back from {IFACE}" in done.stderr
    assert "--iface lo --addr 127.0.0.1:PORT at both" in done.stderr


def test_others_are_not_reached_over_loopback(host: Net):
    done = cli(host, "call", "echo", "--iface", "lo", "--transport", "homa", "--addr", f"{LO}:{host.port()}",
               "--peer", "10.9.0.2:2000")
    assert done.returncode == 2, done.stderr
    assert "cannot be reached over lo" in done.stderr
