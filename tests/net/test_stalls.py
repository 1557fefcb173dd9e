"""A process that is stopped for three seconds loses no RPC; one that is killed is reported. Default parameters."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from contextlib import contextmanager

import pytest

from tests.net.netns import IFACE, PATIENCE, A, B, Net

pytestmark = pytest.mark.root

STOPPED_S = 3.0
PROFILES = ["smt", "homa", "linux"]


@contextmanager
def load(net: Net, profile: str, *options: str):
    """A server, and a client in mid-load."""
    common = ["--iface", IFACE, "--profile", profile, *net.keys_for(profile), "--json"]
    with net.start(net.b, "workloads", "serve", "echo", *common, "--addr", f"{B}:2000",
                   ready="serving") as server:
        before = _sent(net)
        client = net.start(net.a, "workloads", "call", "echo", *common, "--addr", f"{A}:{net.port()}",
                           "--peer", f"{B}:2000", "--warm-up", "0", *options, ready="")
        try:
            _await_frames(net, before)
            yield server, client
        finally:
            if client.code is None:
                client.stop(signal.SIGKILL)


def _sent(net: Net) -> int:
    """Frames that the server's host has sent."""
    done = subprocess.run(["ip", "-n", net.b, "-j", "-s", "link", "show", IFACE], capture_output=True, text=True,
                          check=True)
    return int(json.loads(done.stdout)[0]["stats64"]["tx"]["packets"])


def _await_frames(net: Net, before: int) -> None:
    """Until the load is under way."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if _sent(net) > before + 200:
            return
        time.sleep(0.05)
    raise AssertionError("no load came")


@pytest.mark.parametrize(("profile", "who"), [*((profile, "server") for profile in PROFILES), ("smt", "client")])
def test_a_stop_in_mid_load_loses_nothing(net: Net, profile: str, who: str):
    with load(net, profile, "--seconds", "6", "--concurrency", "16", "--size", "64,5000") as (server, client):
        stopped = server if who == "server" else client
        stopped.send_signal(signal.SIGSTOP)
        time.sleep(STOPPED_S)
        stopped.send_signal(signal.SIGCONT)
        client.wait()
    results = json.loads(client.output)["results"]
    assert [r["errors"] for r in results] == [0, 0], client.errors
    assert all(r["content_ok"] for r in results)
    # It did happen in mid-load.
    assert max(r["rtt_us"]["max"] for r in results) > STOPPED_S * 0.9e6


@pytest.mark.parametrize("profile", ["smt", "homa"])
def test_a_killed_server_is_reported(net: Net, profile: str):
    with load(net, profile, "--seconds", "60", "--concurrency", "4") as (server, client):
        server.send_signal(signal.SIGKILL)
        began = time.monotonic()
        client.wait()
        took = time.monotonic() - began
        server.wait()
        server.errors = ""
    assert client.code == 1
    assert f"{B}:2000: the peer stopped answering" in client.errors
    # A bound that is promised, with room for a machine that stalls.
    assert took < 2 * 10
