"""Profile ``linux`` without keys over a cable, asked for by name; and ``smtnet interop`` with it in both roles."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smtstack.wire import homa
from tests.net.netns import IFACE, PATIENCE, A, B, Net, run

pytestmark = pytest.mark.root

CLEAR = ("--keys", "none")
CANARY = "seen by everybody on the way"


def linux(frames: list[bytes]) -> list[bytes]:
    return [f for f in frames if f[23] == homa.PROTO_LINUX]


@pytest.mark.parametrize("keys", ["none", "demo"])
def test_who_asks_for_it_is_in_clear_and_told_so(net: Net, keys: str) -> None:
    frames: list[bytes] = []
    with net.serve("linux", "--keys", keys) as server, net.sniff(frames):
        result, errors, code = net.call("linux", "--keys", keys, "--size", "1,64,20000", "--count", "5",
                                        "--warm-up", "0", "--canary", CANARY)
        assert code in (0, 4), errors
        served = server.stop()
    assert [(r["rpcs"], r["errors"], r["content_ok"]) for r in result["results"]] == 3 * [(5, 0, True)]
    clear = keys == "none"
    # With demo keys: the control.
    assert any(CANARY.encode() in frame for frame in linux(frames)) is clear
    assert {r["encrypted"] for r in result["results"]} | {served["encrypted"]} == {not clear}
    assert served["nic"] == (None if clear else "sw")


@pytest.mark.parametrize(("profile", "options", "why"), [
    ("smt", CLEAR, "--keys none is transport linux in clear"),
    ("homa", CLEAR, "--keys none is transport linux in clear"),
    ("tcp", CLEAR, "--keys none is transport linux in clear"),
    ("linux", (*CLEAR, "--certs", "certs/a"), "leave out that or --certs"),
    ("linux", (*CLEAR, "--session", "mtls"), "--session"),
])
def test_it_is_nothing_else_and_goes_with_nothing_else(net: Net, profile: str, options: tuple[str, ...],
                                                       why: str) -> None:
    _result, errors, code = net.call(profile, *options)
    assert code == 2
    assert why in errors


def test_neither_end_falls_back(net: Net) -> None:
    """One with keys and one without: nothing gets through, in either direction."""
    for serving, asking in (("demo", "none"), ("none", "demo")):
        with net.serve("linux", "--keys", serving) as server:
            result, _errors, code = net.call("linux", "--keys", asking, "--size", "64", "--count", "1",
                                             "--warm-up", "0", "--timeout", "0.5")
            served = server.stop()
        assert code == 1
        assert (result["rpcs"], served["requests"]) == (0, 0)


def run_echo(folder: Path, transport: str) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-m", "workloads", "run", "echo", "--transport", transport, *CLEAR, "--size",
                "3000", "--count", "20", "--trials", "1", "--capture", "--canary", CANARY, "--results",
                str(folder), "--json"])


def test_a_run_says_so_and_is_not_blamed_for_what_was_asked_for(tmp_path: Path) -> None:
    done = run_echo(tmp_path, "linux")
    assert done.returncode in (0, 4), done.stderr
    result = json.loads(done.stdout)
    assert (result["rpcs"], result["errors"], result["content_ok"]) == (20, 0, True)
    assert (result["variant"], result["nic"], result["capture"]["encrypted"]) == ("not encrypted", None, False)
    assert result["capture"]["canary_frames"] > 0
    refused = run_echo(tmp_path, "smt")
    assert refused.returncode == 2
    assert "--keys none is for transport linux only" in refused.stderr


def interop(net: Net, namespace: str, *options: str) -> list[str]:
    return ["ip", "netns", "exec", namespace, sys.executable, "-m", "workloads", "interop", "--iface", IFACE,
            "--profile", "linux", *options]


@pytest.mark.parametrize("keys", ["none", "demo"])
def test_the_matrix_of_interop_in_both_roles(net: Net, keys: str) -> None:
    """Two of ours: a server in one shape, then the other, while its client has all shapes and faults."""
    each = 4
    in_all = 2 * 3 * 2 * each
    server = subprocess.Popen(
        interop(net, net.b, "--addr", f"{B}:2000", "--role", "server", "--keys", keys, "--json", "--count",
                str(in_all // 2)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        assert "serving on" in server.stderr.readline()
        done = run(interop(net, net.a, "--addr", f"{A}:{net.port()}", "--peer", f"{B}:2000", "--keys", keys,
                           "--sizes", "1,20000", "--under-way", "2", "--loss", "0,5%", "--reorder", "20%",
                           "--count", str(each)))
        said, errors = server.communicate(timeout=PATIENCE)
    finally:
        server.kill()
        server.wait()
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    table = lines[lines.index("") + 1:]
    assert table[0] == ("linux, not encrypted:" if keys == "none" else "linux:")
    columns = [line.split() for line in table[2:]]
    assert [(c[0], " ".join(c[1:3])) for c in columns] == [
        (shape, fault) for shape in ("segments", "packets") for fault in ("loss 0%", "loss 5%", "20% late")]
    assert {tuple(c[4:8]) for c in columns} == {("2", "8", "0", "0")}
    served: dict[str, Any] = json.loads(said)
    assert (served["encrypted"], served["ok"], server.returncode) == (keys == "demo", True, 0), errors
    assert {c["shape"] for c in served["cells"]} == {"segments", "packets"}
    assert {c["size"] for c in served["cells"]} == {1, 20_000}
    assert sum(c["answered"] for c in served["cells"]) == in_all
