"""Sessions by handshakes between two hosts: sockets in every mode, workers, restarts, replays of real frames."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from smtstack.session.established import MODES
from smtstack.session_io.tsig_file import read_tsig
from tests.net.netns import IFACE, PATIENT, A, B, Net, Running, run
from tests.net.starting import ROOT
from topo.dns import DnsServer
from workloads.fleet import authority as ca

pytest.importorskip("OpenSSL", reason="pyOpenSSL is not installed")
pytest.importorskip("dns", reason="dnspython is not installed")
pytestmark = [pytest.mark.root, pytest.mark.skipif(
    not shutil.which("knotd", path="/usr/local/sbin:/usr/sbin:/usr/bin:/bin"), reason="knot is not installed")]

EARLY = ("ticket", "ticket-fs", "psk", "psk-fs")


class Resolver:
    """Host b, as :class:`DnsServer` wants it."""

    def __init__(self, namespace: str) -> None:
        self.name = namespace

    def IP(self) -> str:  # noqa: N802  (as Mininet has it)
        return B

    def popen(self, argv: list[str], **options: Any) -> subprocess.Popen[Any]:
        return subprocess.Popen(["ip", "netns", "exec", self.name, *argv], **options)


class Lab:
    """Two hosts of one authority, and a DNS server on b."""

    def __init__(self, net: Net, folder: Path) -> None:
        self.net = net
        self.folder = folder
        self._numbers = count()
        subprocess.run(["ip", "-n", net.b, "link", "set", "lo", "up"], check=True)
        ca.make_folder(folder / "ca", {"a": A, "b": B}, publishers=["b"])

    def certs(self, host: str) -> str:
        return str(self.folder / "ca" / host)

    def resolver(self) -> DnsServer:
        return DnsServer(Resolver(self.net.b), read_tsig(self.folder / "ca/b/tsig.key"))

    def options(self, host: str, mode: str) -> list[str]:
        dns = ["--dns", B] if mode.startswith("ticket") else []
        return ["--iface", IFACE, "--certs", self.certs(host), "--session", mode, *dns, "--json", *PATIENT]

    def serve(self, mode: str, *options: str) -> Running:
        return self.net.start(self.net.b, "workloads", "serve", "echo", "--addr", f"{B}:2000",
                              *self.options("b", mode), *options, ready="serving")

    def call(self, mode: str, number: int, *options: str) -> dict[str, Any]:
        """So many RPCs, one after the other."""
        done = run(["ip", "netns", "exec", self.net.a, sys.executable, "-m", "workloads", "call", "echo",
                    "--addr", f"{A}:{self.net.port()}", "--peer", f"{B}:2000", *self.options("a", mode),
                    "--count", str(number), "--warm-up", "0", *options])
        assert done.returncode in (0, 4), done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        assert (result["rpcs"], result["errors"], result["content_ok"]) == (number, 0, True)
        return result

    def drive(self, *args: str) -> Any:
        done = run(["ip", "netns", "exec", self.net.a, sys.executable, "-m", "tests.net.socket_drivers", *args])
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def record(self, mode: str, number: int) -> str:
        """A file of what passes the cable while so many RPCs are made."""
        path = self.folder / f"capture{next(self._numbers)}.pcap"
        with self.net.start(self.net.a, "topo.sniffer", IFACE, str(path), ready="sniffing") as sniffer:
            self.call(mode, number, "--size", "3000")
            assert sniffer.stop()["missed"] == 0
        return str(path)


@pytest.fixture(scope="module")
def lab(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(net, tmp_path_factory.mktemp("lab"))
    with lab.resolver():
        yield lab


@pytest.mark.parametrize("mode", MODES)
def test_sockets_in_every_mode(lab: Lab, mode):
    with lab.serve(mode) as server:
        first, second, third = lab.drive("modes", str(lab.net.port() + 1000), lab.certs("a"), mode)
        served = server.stop(signal.SIGINT)
    assert server.code == 0
    assert served["requests"] == 60
    assert [s["good"] for s in (first, second, third)] == [20, 20, 20]
    assert {s["peer"] for s in (first, second, third)} == {"b"}
    begun = "mtls" if mode.startswith("psk") else mode
    assert [s["mode"] for s in (first, second, third)] == [begun, begun if mode in ("tls", "mtls") else mode, mode]
    assert [s["handshakes_failed"] for s in (first, second, third)] == [0, 0, 0]
    # Sockets that close say so.
    assert (served["counters"]["sessions_closed"], served["counters"]["sessions"]) == (3, 0)
    assert served["counters"]["records_failed"] == 0


@pytest.mark.first("its calls have to be faithful: exit code 0, not 4")
@pytest.mark.parametrize("mode", ["mtls", "ticket-fs"])
def test_workers_share_sessions(lab: Lab, mode):
    with lab.serve(mode, "--workers", "3") as server:
        lab.call(mode, 90, "--concurrency", "6", "--size", "3000")
        lab.call(mode, 90)
        served = server.stop(signal.SIGINT)
    assert server.code == 0
    assert served["requests_by_worker"] == [60, 60, 60]
    counters = served["counters"]
    # One handshake a client, by the first; each worker has each session, until it is told that it is over.
    assert counters["early_accepted" if mode in EARLY else "handshakes"] == 2
    assert counters["sessions_begun"] == 6
    assert counters["sessions"] == 0
    assert counters["frames_held_dropped"] == 0


def test_a_server_that_is_killed_is_found_again(lab: Lab):
    command = [sys.executable, "-m", "tests.net.socket_drivers", "restart", str(lab.net.port()), lab.certs("a")]
    pipe = subprocess.PIPE
    client = subprocess.Popen(["ip", "netns", "exec", lab.net.a, *command], stdin=pipe, stdout=pipe, stderr=pipe,
                              text=True, cwd=ROOT)
    assert client.stderr is not None
    with lab.serve("mtls") as server:
        try:
            assert client.stderr.readline() == "ready\n"
            server.stop(signal.SIGKILL)
            with lab.serve("mtls"):
                output, errors = client.communicate("go\n", timeout=30)
        finally:
            client.kill()
            client.wait()
    result = json.loads(output)
    assert errors == ""
    assert result["answer"] == "!"
    # The first request went into the void, and its time-out made the client shake hands anew.
    assert len(result["failures"]) == 1
    assert "the peer stopped answering" in result["failures"][0]
    assert (result["handshakes"], result["sessions_lost"]) == (2, 1)


@pytest.mark.parametrize("mode", ["ticket", "psk"])
def test_a_recorded_session_is_never_served_again(lab: Lab, mode, tmp_path):
    state = tmp_path / "state"
    keep = ["--state", str(state)]

    def served(*options: str) -> dict[str, Any]:
        """What a server makes of the recording, and of a genuine client after it."""
        with lab.serve(mode, *keep, *options) as server:
            lab.drive("inject", capture, "3")
            lab.call(mode, 3)
            result = server.stop(signal.SIGINT)
        assert server.code == 0
        return result

    with lab.serve(mode, *keep) as server:
        capture = lab.record(mode, 5)
        # By the same worker, while it runs.
        lab.drive("inject", capture, "3")
        lab.call(mode, 3)
        first = server.stop(signal.SIGINT)
    assert first["requests"] == 8
    assert first["counters"]["early_refused"] >= 1
    # After a restart, and by other workers.
    for options in ([], ["--workers", "3"]):
        again = served(*options)
        assert again["requests"] == 3
        assert again["counters"]["early_refused"] >= 1
    # The control: it is the memory of hellos that stops them, and nothing else.
    with sqlite3.connect(state) as db:
        db.execute("DELETE FROM hellos")
    db.close()
    assert served()["requests"] > 3
