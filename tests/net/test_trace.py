"""The commands with --trace, both ends on one host: what they write is put together by smtnet trace."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.net.netns import Net
from tests.net.test_loopback import LO, cli, options
from tests.net.test_loopback import host as host  # noqa: PLC0414  a fixture

pytestmark = pytest.mark.root


@pytest.mark.parametrize("transport", ["smt", "homa"])
def test_both_ends(host: Net, tmp_path: Path, transport: str):
    end = ["--iface", "lo", "--transport", transport, *options(host, transport, tmp_path)]
    files = [str(tmp_path / "client.sqlog"), str(tmp_path / "server.sqlog")]
    port = host.port()
    with host.start(host.a, "workloads", "serve", "echo", *end, "--addr", f"{LO}:2000", "--json", "--trace",
                    files[1], ready="serving") as server:
        done = cli(host, "call", "echo", *end, "--addr", f"{LO}:{port}", "--peer", f"{LO}:2000", "--size", "30000",
                   "--count", "5", "--warm-up", "1", "--json", "--trace", files[0])
        assert done.returncode in {0, 4}, done.stderr
        server.stop()
    done = cli(host, "trace", *files, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    rpcs = json.loads(done.stdout)["rpcs"]
    assert len(rpcs) >= 6
    for rpc in rpcs:
        assert rpc["outcome"] == "answered"
        assert rpc["traced"] == ["client", "server"]
        assert (rpc["request_bytes"], rpc["response_bytes"]) == (30_000, 30_000)
        assert sum(rpc["waited_ns"].values()) == rpc["total_ns"] > 0
        assert rpc["waited_ns"]["app"] > 0
    done = cli(host, "trace", *files, "--rpc", str(rpcs[-1]["rpc"]), "--json")
    packets = [rung for rung in json.loads(done.stdout)["ladder"] if rung["packet"]]
    assert any(packet["what"].startswith("DATA, 0+") for packet in packets)
    # Nothing is lost on loopback: what left has arrived, and not before.
    for packet in packets:
        assert packet["fate"].startswith("+"), packet
        assert " of " not in packet["fate"], packet
    again: subprocess.CompletedProcess[str] = cli(
        host, "call", "echo", *end, "--addr", f"{LO}:{host.port()}", "--peer", f"{LO}:2000", "--trace", files[0])
    assert again.returncode == 2
    assert "traces are not overwritten" in again.stderr
