"""Debian's knotd on a host, and tickets in it: published by one host, found by another, withdrawn, DNS gone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smtstack.errors import SmtError
from smtstack.session_io.tsig_file import make_tsig, read_tsig, write_tsig
from tests.net.netns import IFACE, PATIENCE, PATIENT, A, B, Net, run
from topo.dns import DnsServer
from workloads.fleet import authority as ca

pytest.importorskip("dns", reason="dnspython is not installed")
pytestmark = [pytest.mark.root, pytest.mark.skipif(
    not shutil.which("knotd", path="/usr/local/sbin:/usr/sbin:/usr/bin:/bin"), reason="knot is not installed")]

GONE = f"no DNS server answers at {B}:53 (Connection refused); is it running, and reachable from here?"


class NamespaceHost:
    """One of the two hosts, as :class:`DnsServer` wants it."""

    def __init__(self, namespace: str, ip: str) -> None:
        self.name = namespace
        self._ip = ip

    def IP(self) -> str:  # noqa: N802  (as Mininet has it)
        return self._ip

    def popen(self, argv: list[str], **options: Any) -> subprocess.Popen[Any]:
        return subprocess.Popen(["ip", "netns", "exec", self.name, *argv], **options)


class Tickets:
    """Host b publishes, host a looks up."""

    def __init__(self, net: Net, folder: Path) -> None:
        self._net = net
        # The server asks itself whether it answers.
        subprocess.run(["ip", "-n", net.b, "link", "set", "lo", "up"], check=True)
        self.folder = folder
        self.state = folder / "state"
        ca.make_folder(folder / "ca", {"a": A, "b": B}, publishers=["b"])
        self.key = read_tsig(folder / "ca/b/tsig.key")

    def drive(self, action: str, host: str) -> dict[str, Any]:
        namespace = self._net.a if host == "a" else self._net.b
        done = run(["ip", "netns", "exec", namespace, sys.executable, "-m", "tests.net.ticket_driver", action,
                    str(self.folder / "ca" / host), B, str(self.state)])
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def command(self, *arguments: str, host: str = "b") -> subprocess.CompletedProcess[str]:
        namespace = self._net.a if host == "a" else self._net.b
        done = run(["ip", "netns", "exec", namespace, sys.executable, "-m", "workloads", "tickets", *arguments,
                    "--state", str(self.state)])
        assert "Traceback" not in done.stderr, done.stderr
        return done


@pytest.fixture
def tickets(net: Net, tmp_path: Path) -> Tickets:
    return Tickets(net, tmp_path)


@pytest.fixture
def knot(net: Net, tickets: Tickets) -> Iterator[DnsServer]:
    with DnsServer(NamespaceHost(net.b, B), tickets.key) as server:
        yield server


def test_a_ticket_comes_and_goes(tickets: Tickets, knot: DnsServer):
    nothing = tickets.drive("lookup", "a")
    assert nothing["error"] == f"host b has no ticket at _2000._smt.b.smtnet.test. (DNS server {B}:53)"
    published = tickets.drive("publish", "b")
    found = tickets.drive("lookup", "a")
    assert (found["id"], found["name"]) == (published["id"], "b")
    # The next takes its place.
    second = tickets.drive("publish", "b")
    assert tickets.drive("lookup", "a")["id"] == second["id"] != published["id"]
    assert tickets.drive("withdraw", "b") == {}
    assert tickets.drive("lookup", "a") == nothing
    knot.stop()
    assert tickets.drive("lookup", "a")["error"] == GONE
    assert tickets.drive("publish", "b")["error"] == GONE


def test_only_who_has_the_key_publishes(tickets: Tickets, knot: DnsServer):
    tickets.drive("publish", "b")
    kept = tickets.drive("lookup", "a")
    path = tickets.folder / "ca/b/tsig.key"
    path.rename(path.with_suffix(".right"))
    write_tsig(path, make_tsig())
    text = f"DNS server {B}:53 and we have different TSIG keys for smtnet.test (PeerBadSignature)"
    assert tickets.drive("publish", "b")["error"] == text
    assert tickets.drive("withdraw", "b")["error"] == text
    assert tickets.drive("lookup", "a") == kept


def test_the_command(tickets: Tickets, knot: DnsServer):
    published = ["publish", "--certs", str(tickets.folder / "ca/b"), "--addr", f"{B}:2000", "--dns", B]
    done = tickets.command(*published)
    assert done.returncode == 2
    assert "No such file or directory" in done.stderr
    first = tickets.drive("publish", "b")["id"]
    done = tickets.command("list")
    assert done.returncode == 0
    assert f"{first}  b  {B}:2000  valid for" in done.stdout
    done = tickets.command("revoke", first[:8])
    assert (done.returncode, done.stderr) == (0, "revoked 1 of 1 tickets\n")
    assert f"{first}  b  {B}:2000  revoked" in tickets.command("list").stdout
    done = tickets.command(*published, "--json")
    assert done.returncode == 0, done.stderr
    second = json.loads(done.stdout)["published"]
    assert tickets.drive("lookup", "a")["id"] == second != first
    knot.stop()
    done = tickets.command(*published)
    assert (done.returncode, done.stderr) == (1, f"smtnet: {GONE}\n")


def test_a_running_server_replaces_a_ticket_that_is_revoked(net: Net, tickets: Tickets, knot: DnsServer):
    def options(name: str, address: str) -> list[str]:
        return ["--iface", IFACE, "--addr", address, "--certs", str(tickets.folder / "ca" / name), "--session",
                "ticket", "--dns", B, "--json", *PATIENT]

    def call() -> tuple[dict[str, Any], str]:
        done = run(["ip", "netns", "exec", net.a, sys.executable, "-m", "workloads", "call", "echo",
                    *options("a", f"{A}:{net.port()}"), "--peer", f"{B}:2000", "--size", "64", "--count", "5"])
        return json.loads(done.stdout) if done.stdout else {}, done.stderr

    with net.start(net.b, "workloads", "serve", "echo", *options("b", f"{B}:2000"),
                   "--state", str(tickets.state), ready="serving") as server:
        first = tickets.drive("lookup", "a")["id"]
        numbers, said = call()
        assert numbers, said
        assert (numbers["content_ok"], numbers["session"]["early_accepted"]) == (True, 1)
        assert tickets.command("revoke", "all").returncode == 0
        end = time.monotonic() + PATIENCE
        while (second := tickets.drive("lookup", "a")["id"]) == first:
            assert time.monotonic() < end, "no other ticket"
        assert tickets.command("list").stdout.split("\n")[1].startswith(f"{second}  b  {B}:2000  valid for")
        numbers, said = call()
        assert numbers, said
        assert (numbers["content_ok"], numbers["session"]["early_accepted"]) == (True, 1)
        counters = server.stop()["counters"]
    assert (counters["early_accepted"], counters["early_refused"]) == (2, 0)


def test_the_server_leaves_nothing_behind(net: Net, tickets: Tickets):
    server = DnsServer(NamespaceHost(net.b, B), tickets.key)
    with server:
        pid = server.pid
        assert pid is not None
        folder = Path(os.readlink(f"/proc/{pid}/fd/1")).parent
        assert folder.name.startswith("smtnet-dns-")
        assert (folder / "conf").stat().st_mode & 0o777 == 0o600
        # A second one at the same address is not taken for the first, which answers there.
        second = DnsServer(NamespaceHost(net.b, B), tickets.key)
        with pytest.raises(SmtError, match=r"knotd cannot listen at .*address already in use"):
            second.start()
        assert second.pid is None
    assert server.pid is None
    assert not folder.exists()
    assert not Path(f"/proc/{pid}").exists()


def test_an_address_the_host_has_not(net: Net, tickets: Tickets):
    server = DnsServer(NamespaceHost(net.b, "10.9.0.77"), tickets.key)
    with pytest.raises(SmtError, match=r"knotd cannot listen at 10\.9\.0\.77:53: warning: .*nonlocal bind"):
        server.start()
    assert server.pid is None
