"""Transport quic (aioquic), which is in the lists of those only who ask for it: the contract that all keep."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.net.netns import A, B, Net, Running, run
from workloads.fleet import authority as ca

pytestmark = pytest.mark.root
CANARY = b"*plaintext-canary*"


class Quic:
    """A server on host b and callers on host a, with certificates of one run."""

    def __init__(self, net: Net, certs: Path) -> None:
        self.net = net
        self.certs = certs

    def command(self, namespace: str, *words: str) -> list[str]:
        return ["ip", "netns", "exec", namespace, "env", "SMTNET_TRANSPORTS=workloads.transports.quic",
                sys.executable, "-m", "workloads", *words, "--transport", "quic", "--json"]

    def serve(self) -> Running:
        return Running(self.command(self.net.b, "serve", "echo", "--addr", f"{B}:2000", "--certs",
                                    str(self.certs / "b")), "serving")

    def call(self, *words: str, certs: Path | None = None) -> tuple[dict[str, Any], str, int]:
        """(JSON, stderr, exit code)."""
        done = run(self.command(self.net.a, "call", "echo", "--peer", f"{B}:2000", "--certs",
                                str((certs or self.certs) / "a"), *words))
        assert "Traceback" not in done.stderr, done.stderr
        return json.loads(done.stdout) if done.stdout.startswith("{") else {}, done.stderr, done.returncode


@pytest.fixture(scope="module")
def quic(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Quic:
    folder = tmp_path_factory.mktemp("quic") / "certs"
    ca.make_folder(folder, {"a": A, "b": B})
    return Quic(net, folder)


def test_every_size_many_at_once_and_nothing_in_clear(quic: Quic):
    frames: list[bytes] = []
    sizes = [1, 64, 1400, 16_385, 1_000_000]
    with quic.serve() as server, quic.net.sniff(frames):
        result, errors, code = quic.call("--size", ",".join(map(str, sizes)), "--count", "5", "--warm-up", "0",
                                         "--concurrency", "4", "--canary", CANARY.decode())
        many, _errors, many_code = quic.call("--size", "64", "--count", "1000", "--warm-up", "0",
                                             "--concurrency", "200")
        served = server.stop()
    assert {code, many_code} <= {0, 4}, errors
    for one in (*result["results"], many):
        assert (one["errors"], one["content_ok"]) == (0, True)
    assert served["requests"] == 5 * len(sizes) + 1000
    assert served["counters"]["connections_accepted"] == 2
    assert len(frames) > 1000
    assert not any(CANARY in frame for frame in frames)


def test_a_server_of_another_authority_and_none_at_all(quic: Quic, tmp_path: Path):
    ca.make_folder(tmp_path / "others", {"a": A, "b": B})
    with quic.serve() as server:
        _result, errors, code = quic.call("--count", "1", certs=tmp_path / "others")
        assert code == 1
        assert f"RPC to {B}:2000: handshake failed: " in errors
        result, _errors, code = quic.call("--count", "10", "--warm-up", "0")
        assert (result["rpcs"], result["errors"]) == (10, 0)
        served = server.stop()
    assert served["requests"] == 10
    assert served["counters"]["handshakes_failed"] == 1


def test_workers_are_refused_and_it_is_in_no_list_unasked(quic: Quic):
    done = run(quic.command(quic.net.b, "serve", "echo", "--addr", f"{B}:2000", "--certs", str(quic.certs / "b"),
                            "--workers", "2"))
    assert (done.returncode, "one process" in done.stderr) == (2, True)
    assert "quic" not in run([sys.executable, "-m", "workloads", "call", "echo", "--help"]).stdout


def test_without_aioquic_its_name_is_said(tmp_path: Path):
    (tmp_path / "aioquic.py").write_text("raise ImportError")
    done = subprocess.run([sys.executable, "-m", "workloads", "call", "echo", "--help"], capture_output=True,
                          text=True, check=False, env={
                              **os.environ, "SMTNET_TRANSPORTS": "workloads.transports.quic",
                              "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2, done.stderr
    assert "pip install 'smtnet[quic]'" in done.stderr
    assert importlib.util.find_spec("aioquic") is not None, "the test extra has it, or nothing above was tested"
