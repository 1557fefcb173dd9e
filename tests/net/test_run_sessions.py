"""Sessions as users have them: experiments in every mode, and what goes wrong, at both ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from smtstack.session.established import MODES
from smtstack.session_io.tsig_file import TSIG, make_tsig, write_tsig
from tests.net import session_drivers, starting
from tests.net.netns import IFACE, PATIENT, A, B, Net, Running, run
from tests.net.test_run import CANARY, check, smtnet

pytestmark = pytest.mark.root

USAGE, FAILED = 2, 1
#: Runs a program of session_drivers.py in a sandbox.
DRIVERS = [sys.executable, "-m", "tests.net.session_drivers"]


def test_echo_and_kv_in_every_mode(tmp_path: Path):
    done = starting.run([*DRIVERS, "modes", str(tmp_path)], timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert tuple(found) == MODES
    for mode, rows in found.items():
        ticket = mode.startswith("ticket")
        for work, count in (("echo", session_drivers.COUNT), ("kv", session_drivers.OPS)):
            row = rows[work]
            assert (row["rpcs"], row["errors"], row["content_ok"]) == (count, 0, True), (mode, work)
            # Of psk the first session, by TLS, is what the second one resumes.
            assert row["session"] == {
                "mode": mode, "handshakes": int(not ticket), "early_accepted": int(not mode.endswith("tls")),
                "handshakes_failed": 0, "early_refused": 0, "sessions_lost": 0}, work
            assert row.get("dns", "").startswith("h2 (10.0.0.2:" if ticket else "")
            assert ("dns" in row) is ticket


def test_captures_of_a_run_whose_keys_change_all_the_time(tmp_path):
    result, _errors, code = smtnet(
        tmp_path, "run", "echo", "--session", "ticket-fs", "--size", "3000", "--count", "60", "--concurrency", "6",
        "--trials", "1", "--workers", "2", "--capture", "--canary", CANARY, "--padding", "power-of-two",
        "--cipher", "AES-256-GCM", "--key-update-records", "8")
    check(result, code, 60)
    capture = result["capture"]
    assert capture["records_ok"] >= 2 * 60
    assert (capture["records_bad"], capture["nonce_reuse"], capture["canary_frames"]) == (0, 0, 0)
    assert capture["handshake_packets"] > 0
    keylogs = list(Path(result["results"]).rglob("*.keylog"))
    assert {path.name for path in keylogs} == {"h1.keylog", "h2.keylog"}
    for path in keylogs:
        assert path.stat().st_mode & 0o777 == 0o600
        assert " AES-256-GCM,16,power-of-two " in path.read_text()


@pytest.mark.parametrize(("args", "words"), [
    (["--transport", "tls", "--session", "mtls"], ["--session", "smt"]),
    (["--transport", "homa", "--keylog"], ["--keylog", "smt"]),
    (["--padding", "noise"], ["noise", "power-of-two"]),
    (["--key-update-records", "0"], ["--key-update-records"]),
])
def test_mistakes_cost_one_line_and_no_results(tmp_path, args, words):
    result, errors, code = smtnet(tmp_path, "run", "echo", *args)
    assert (result, code) == (None, USAGE)
    assert len(errors.splitlines()) == 1, errors
    assert all(word in errors for word in words), errors
    assert not list(tmp_path.iterdir())


# -- what goes wrong -----------------------------------------------------------------------------------------

def folder_of(net: Net, name: str, **hosts: str) -> Path:
    """Certificates of an authority of its own."""
    folder = net.folder / name
    done = run([sys.executable, "-m", "workloads", "ca", str(folder),
                *(f"--host={host}={ip}" for host, ip in hosts.items())])
    assert done.returncode == 0, done.stderr
    return folder


def serve(net: Net, certs: Path, *options: str) -> Running:
    return net.start(net.b, "workloads", "serve", "echo", "--iface", IFACE, "--addr", f"{B}:2000", "--json",
                     "--certs", str(certs), *PATIENT, *options, ready="serving")


def call(net: Net, certs: Path, *options: str) -> tuple[dict[str, Any], str, int]:
    """(its JSON, the last thing it said to people, exit code)."""
    done = run(["ip", "netns", "exec", net.a, sys.executable, "-m", "workloads", "call", "echo",
                "--iface", IFACE, "--addr", f"{A}:{net.port()}", "--peer", f"{B}:2000", "--json", "--count", "10",
                "--certs", str(certs), *PATIENT, *options])
    assert "Traceback" not in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 or done.returncode in {0, 4}, done.stderr
    return json.loads(done.stdout) if done.stdout else {}, done.stderr.strip(), done.returncode


def test_authorities_that_do_not_know_each_other(net: Net):
    ours, theirs = (folder_of(net, name, a=A, b=B) for name in ("ours", "theirs"))
    with serve(net, ours / "b") as server:
        _result, errors, code = call(net, theirs / "a")
        assert code == FAILED
        assert f"smtnet: no session with {B}:2000: " in errors
        assert "the peer's certificate" in errors
        # A client that is believed gets in all the same.
        result, errors, code = call(net, ours / "a")
        assert (result["rpcs"], code in {0, 4}) == (10, True), errors
        served = server.stop()
    assert served["requests"] == 30, "10, and 20 to warm up"
    assert served["session"]["handshakes_failed"] == 1
    assert A in served["failure"]


def test_a_client_whom_the_server_does_not_believe(net: Net):
    """It believes the server, but has a certificate by somebody else."""
    ours, theirs = (folder_of(net, name, a=A, b=B) for name in ("right", "wrong"))
    mixed = net.folder / "mixed"
    (theirs / "a").rename(mixed)
    (mixed / "ca.pem").write_bytes((ours / "a" / "ca.pem").read_bytes())
    with serve(net, ours / "b") as server:
        _result, errors, code = call(net, mixed)
        assert code == FAILED
        assert "certificate" in errors
        served = server.stop()
    assert (served["requests"], served["session"]["handshakes_failed"]) == (0, 1)
    assert "the peer's certificate" in served["failure"]


def test_a_server_of_another_name(net: Net):
    certs = folder_of(net, "names", a=A, b=B)
    (certs / "a" / "hosts").write_text(f"{B} somebody\n")
    with serve(net, certs / "b") as server:
        _result, errors, code = call(net, certs / "a")
        assert code == FAILED
        assert "somebody" in errors
        assert server.stop()["requests"] == 0


def test_a_server_that_lets_nobody_resume(net: Net):
    """What is measured as psk must not be handshakes."""
    certs = folder_of(net, "modes", a=A, b=B)
    with serve(net, certs / "b", "--session", "mtls") as server:
        _result, errors, code = call(net, certs / "a", "--session", "psk")
        served = server.stop()
    assert (code, served["requests"]) == (FAILED, 0), errors
    assert f"no session with {B}:2000 is resumed" in errors
    assert "--session psk" in errors


@contextmanager
def dns(net: Net, certs: Path) -> Iterator[Running]:
    """A DNS server on host b that its servers may publish at."""
    key = certs / "b" / TSIG
    write_tsig(key, make_tsig())
    # The host talks to itself there.
    assert run(["ip", "-n", net.b, "link", "set", "lo", "up"]).returncode == 0
    with net.start(net.b, "tests.net.session_drivers", "dns", B, str(key), ready="serving") as server:
        yield server


def test_dns_is_gone(net: Net):
    certs = folder_of(net, "tickets", a=A, b=B)
    mode = ["--session", "ticket-fs", "--dns", B]
    with dns(net, certs) as names, serve(net, certs / "b", *mode) as server:
        result, errors, code = call(net, certs / "a", *mode)
        assert (result["rpcs"], code in {0, 4}) == (10, True), errors
        names.stop()
        _result, errors, code = call(net, certs / "a", *mode)
        assert code == FAILED
        assert f"no DNS server answers at {B}:53" in errors
        served = server.stop()
    assert served["requests"] == 30
    assert served["session"]["early_accepted"] == 1
    done = run(["ip", "netns", "exec", net.b, sys.executable, "-m", "workloads", "serve", "echo",
                "--iface", IFACE, "--addr", f"{B}:2000", "--certs", str(certs / "b"), *mode])
    assert done.returncode == FAILED
    assert f"no DNS server answers at {B}:53" in done.stderr


@pytest.mark.parametrize("work", [["serve", "echo"], ["serve", "kv"], ["call", "echo", "--peer", f"{B}:2000"]])
def test_neither_certificates_nor_keys(net: Net, work):
    done = run(["ip", "netns", "exec", net.a, sys.executable, "-m", "workloads", *work, "--iface", IFACE,
                "--addr", f"{A}:40000"])
    assert done.returncode == USAGE
    assert "'smtnet ca'" in done.stderr
    assert "'smtnet keys'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
