"""tcp, tls and ktls beside smt, homa and linux: the same commands over a cable, and what goes wrong with them."""

from __future__ import annotations

import json
import subprocess
import sys
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.net.netns import IFACE, PATIENCE, PATIENT, A, B, Net, Running, run
from workloads import transports
from workloads.fleet import credentials
from workloads.fleet.credentials import Credentials
from workloads.transports.table import TABLE

pytestmark = pytest.mark.root

USAGE, FAILED = 2, 1
CANARY = b"*plaintext-canary*"


#: Not those that need another kind of NIC: tests/net/test_ktls_nic.py.
STREAMS = [pytest.param(name, marks=pytest.mark.ktls) if name == "ktls" else name
           for name in transports.STREAM_TRANSPORTS if not TABLE[name].hosting]


class Echo:
    """Servers on host b and clients on host a, with credentials of one run."""

    def __init__(self, net: Net, folder: Path) -> None:
        self.net = net
        self.folder = folder
        self.credentials = {name: credentials.make(folder / name, name, {"a": A, "b": B})
                            for name in transports.NAMES}

    def _command(self, host: str, transport: str, own: Credentials, *args: str) -> list[str]:
        namespace = self.net.a if host == "a" else self.net.b
        environment = [f"{name}={value}" for name, value in own.environment(host).items()]
        packets = ["--iface", IFACE, *PATIENT] if transport in transports.PACKET_TRANSPORTS else []
        keys = own.args(host)
        return ["ip", "netns", "exec", namespace, "env", *environment, sys.executable, "-m", *args,
                "--transport", transport, *packets, *keys]

    def serve(self, transport: str, *options: str, port: int = 2000, own: Credentials | None = None) -> Running:
        command = self._command("b", transport, own or self.credentials[transport], "workloads", "serve",
                                "echo", "--addr", f"{B}:{port}", "--json", *options)
        return Running(command, "serving")

    def command(self, transport: str, *options: str, own: Credentials | None = None,
                module: tuple[str, ...] = ("workloads", "call", "echo", "--json")) -> list[str]:
        peer = [] if "--peer" in options else ["--peer", f"{B}:2000"]
        return self._command("a", transport, own or self.credentials[transport], *module,
                             "--addr", f"{A}:{self.net.port()}", *peer, *options)

    def call(self, transport: str, *options: str, own: Credentials | None = None) -> tuple[Any, str, int]:
        """(the client's JSON, its stderr, exit code)."""
        done = run(self.command(transport, *options, own=own))
        assert "Traceback" not in done.stderr, done.stderr
        return json.loads(done.stdout) if done.stdout.startswith("{") else {}, done.stderr, done.returncode


@pytest.fixture(scope="module")
def echo(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Echo:
    return Echo(net, tmp_path_factory.mktemp("echo"))


def check(result: dict[str, Any], code: int, rpcs: int) -> None:
    assert (result["rpcs"], result["errors"], result["content_ok"]) == (rpcs, 0, True)
    assert code == (0 if result["fidelity"]["ok"] else 4)


def said(errors: str) -> str:
    """The one line."""
    lines = errors.splitlines()
    assert len(lines) == 1, errors
    assert lines[0].startswith("smtnet: ")
    return lines[0]


# -- content -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("transport", STREAMS)
def test_every_size_and_twenty_at_once(echo: Echo, transport):
    sizes = [1, 64, 1400, 16_384, 16_385, 65_536, 1_000_000]
    with echo.serve(transport) as server:
        several, errors, code = echo.call(transport, "--size", ",".join(map(str, sizes)), "--count", "3",
                                          "--warm-up", "1")
        assert code in {0, 4}, errors
        for result in several["results"]:
            check(result, 4 if not result["fidelity"]["ok"] else 0, 3)
        one_each, _errors, code = echo.call(transport, "--size", "5000", "--count", "200", "--concurrency", "20")
        check(one_each, code, 200)
        pipelined, _errors, code = echo.call(transport, "--size", "5000", "--count", "200", "--concurrency", "20",
                                             "--connections", "2")
        check(pipelined, code, 200)
        served = server.stop()
    assert (one_each["transport"], one_each["nic"], one_each["concurrency"]) == (transport, None, 20)
    assert (server.code, served["failure"]) == (0, "")
    assert served["requests"] == 4 * len(sizes) + 2 * (200 + 20)
    assert served["counters"]["connections_accepted"] == 1 + 20 + 2


@pytest.mark.parametrize("transport", ["smt", "tls"])
def test_mixed_sizes_several_peers_several_processes(echo: Echo, transport, tmp_path):
    raw = tmp_path / "rtt"
    with echo.serve(transport) as one, echo.serve(transport, port=2001) as other:
        result, errors, code = echo.call(
            transport, "--peer", f"{B}:2000", "--peer", f"{B}:2001", "--size", "w2", "--also", "200000x4",
            "--count", "100", "--concurrency", "8", "--processes", "2", "--raw", str(raw))
        assert code in {0, 4}, errors
        # 100 others and 4 long ones, by each of two processes.
        check(result, code, 208)
        requests = [server.stop()["requests"] for server in (one, other)]
    assert sum(requests) == 208 + 2 * 20
    assert min(requests) > 50
    rtt, sizes = array("Q"), array("Q")
    rtt.frombytes(raw.read_bytes())
    sizes.frombytes(raw.with_name("rtt.sizes").read_bytes())
    assert len(rtt) == len(sizes) == 208
    assert Counter(sizes)[200_000] == 8
    assert sum(sizes) == result["bytes"]
    assert result["rtt_us"]["max"] == max(rtt) / 1000


@pytest.mark.parametrize("transport", ["smt", "tcp"])
def test_open_loop(echo: Echo, transport):
    with echo.serve(transport):
        result, errors, code = echo.call(transport, "--rate", "500", "--count", "200")
    assert code in {0, 4}, errors
    check(result, code, 200)
    assert result["open_loop"]["rate"] == 500
    # Poisson, seed 1: the sum of these 200 gaps. Faster it cannot be; how much slower is the machine's affair.
    assert result["rpc_per_s"] < 600
    assert 0 <= result["open_loop"]["late_us"]["p50"] <= result["rtt_us"]["max"]


def test_workers_share_connections(echo: Echo):
    with echo.serve("tcp", "--workers", "2") as server:
        result, _errors, code = echo.call("tcp", "--count", "300", "--concurrency", "24", "--warm-up", "0")
        check(result, code, 300)
        # Another server must not come in between them.
        _result, errors, code = echo_server_once(echo, "tcp", "--workers", "2")
        assert (code, "in use" in said(errors)) == (USAGE, True)
        served = server.stop()
    assert sum(served["requests_by_worker"]) == 300
    # By the kernel's hash of ports: all 24 at one worker would be one chance in 8 million.
    assert min(served["requests_by_worker"]) > 0


def echo_server_once(echo: Echo, transport: str, *options: str) -> tuple[str, str, int]:
    """A server that is expected to end at once."""
    command = echo._command("b", transport, echo.credentials[transport], "workloads", "serve", "echo",
                            "--addr", f"{B}:2000", *options)
    done = run(command)
    return done.stdout, done.stderr, done.returncode


def test_one_process_serves_two_transports_from_one_event_loop(echo: Echo):
    certs = echo.credentials["smt"].args("b")[1]
    with echo.net.start(echo.net.b, "tests.net.drivers", "two_transports", "2000", certs, ready="serving"):
        for transport in ("smt", "tcp", "smt"):
            result, errors, code = echo.call(transport, "--size", "64,30000", "--count", "50",
                                             "--concurrency", "8")
            assert code in {0, 4}, errors
            for one in result["results"]:
                assert (one["rpcs"], one["errors"], one["content_ok"]) == (50, 0, True)


@pytest.mark.parametrize("transport", ["smt", "tls"])
def test_agent_takes_loads_and_begins_when_told(echo: Echo, transport, tmp_path):
    command = echo.command(transport, module=("workloads.fleet.agent",))
    with echo.serve(transport) as server:
        agent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                 text=True, cwd=Path(__file__).resolve().parents[2])
        assert agent.stdin is not None
        assert agent.stdout is not None
        try:
            for count in (10, 30):
                load = {"size": "100", "count": count, "concurrency": 5, "barrier": True,
                        "raw": str(tmp_path / "raw")}
                agent.stdin.write(json.dumps(load) + "\n")
                agent.stdin.flush()
                assert json.loads(agent.stdout.readline()) == {"ready": True}
                agent.stdin.write("go\n")
                agent.stdin.flush()
                result = json.loads(agent.stdout.readline())
                assert (result["rpcs"], result["errors"], result["content_ok"]) == (count, 0, True)
                assert (tmp_path / "raw").stat().st_size == 8 * count
            output, errors = agent.communicate('{"size": "1", "nonsense": 1}\n', timeout=PATIENCE)
        finally:
            agent.kill()
            agent.wait()
        assert (agent.returncode, output) == (USAGE, "")
        assert "nonsense" in errors.splitlines()[-1]
        assert server.stop()["requests"] == 40 + 2 * 20


# -- secrecy -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("transport", STREAMS)
def test_canaries_are_seen_on_the_wire_in_clear_transports_only(echo: Echo, transport):
    frames: list[bytes] = []
    with echo.serve(transport), echo.net.sniff(frames):
        result, _errors, code = echo.call(transport, "--size", "100,20000", "--count", "3",
                                          "--canary", CANARY.decode())
        assert code in {0, 4}
        assert all(r["rpcs"] == 3 for r in result["results"])
    assert len(frames) > 20
    seen = sum(CANARY in frame for frame in frames)
    assert (seen > 0) is (transport not in transports.ENCRYPTED)


@pytest.mark.parametrize("transport", [name for name in STREAMS if name != "tcp"])
def test_certificates_of_others_are_refused_by_either_side(echo: Echo, transport, tmp_path):
    others = credentials.make(tmp_path / "others", transport, {"a": A, "b": B})
    elsewhere = credentials.make(tmp_path / "elsewhere", transport, {"a": A, "b": "10.9.0.9"})
    with echo.serve(transport) as server:
        _result, errors, code = echo.call(transport, own=others)
        assert code == FAILED
        assert f"RPC to {B}:2000: " in said(errors)
        assert "certificate" in errors
        # A client that takes the server's certificate, but has one that the server does not know.
        mixed = tmp_path / "mixed"
        credentials.make(mixed, transport, {"a": A})
        for name in ("ca.pem", "openssl.cnf"):
            (mixed / "a" / name).write_bytes((echo.folder / transport / "a" / name).read_bytes())
        _result, errors, code = echo.call(transport, own=Credentials(mixed, transport))
        assert code == FAILED
        assert f"RPC to {B}:2000: " in said(errors)
        # Nobody else is harmed.
        result, errors, code = echo.call(transport, "--count", "10")
        check(result, code, 10)
        served = server.stop()
    assert served["requests"] == 10 + 20
    assert served["counters"]["handshakes_failed"] == 2
    with echo.serve(transport, own=elsewhere):
        _result, errors, code = echo.call(transport, own=elsewhere)
    assert code == FAILED
    assert B in said(errors)
    assert "certificate" in errors


# -- errors --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("transport", [name for name in STREAMS if name != "tcp"])
def test_clients_in_clear_and_servers_in_clear(echo: Echo, transport):
    with echo.serve(transport) as server:
        _result, errors, code = echo.call("tcp", "--timeout", "5")
        assert code == FAILED
        assert f"RPC to {B}:2000: " in said(errors)
        result, _errors, code = echo.call(transport, "--count", "10")
        check(result, code, 10)
        served = server.stop()
    assert served["counters"]["handshakes_failed"] == 1
    assert A in served["failure"]
    with echo.serve("tcp"):
        _result, errors, code = echo.call(transport)
    assert code == FAILED
    assert f"RPC to {B}:2000: handshake failed" in said(errors)


@pytest.mark.parametrize("transport", [*STREAMS, "smt"])
def test_a_server_that_ends_in_mid_run(echo: Echo, transport):
    """The client says which server, and does not wait for the hour that it was given."""
    with echo.serve(transport, "--count", "300") as server:
        result, errors, code = echo.call(transport, "--seconds", "3600", "--concurrency", "10", "--size", "20000")
        server.wait()
    assert (server.code, code) == (0, FAILED)
    assert f"RPC to {B}:2000" in errors
    assert 200 < result["rpcs"] <= 310
    assert result["errors"] > 0


def test_nobody_listens(echo: Echo):
    _result, errors, code = echo.call("tcp")
    assert code == FAILED
    assert said(errors) == f"smtnet: RPC to {B}:2000: Connection refused; is the server running?"


def test_a_port_used_twice_and_addresses_of_others(echo: Echo):
    with echo.serve("tcp"):
        _output, errors, code = echo_server_once(echo, "tcp")
    assert code == USAGE
    assert f"{B}:2000 is in use by another socket; take another port" in said(errors)
    for options, words in [(["--addr", "10.9.0.77:1"], "10.9.0.77 is no address of this host"),
                           (["--addr", "10.9.0.77:1", "--iface", IFACE], f"is no address of {IFACE}, which has"),
                           (["--size", "w9"], "size 'w9'"), (["--size", "1000001"], "at most 1000000"),
                           (["--also", "9"], "BYTESxNUMBER"), (["--also", "9x9", "--seconds", "1"], "--count"),
                           (["--size", "1,2", "--raw", "x"], "one --size")]:
        _result, errors, code = echo.call("tcp", *options)
        assert code == USAGE
        assert words in said(errors)


def test_tls_without_its_openssl_configuration(echo: Echo):
    command = [word for word in echo.command("tls") if not word.startswith("OPENSSL_CONF=")]
    done = run(command)
    assert done.returncode == USAGE
    assert f"OPENSSL_CONF={echo.folder}/tls/a/openssl.cnf" in said(done.stderr)
    done = run([*command, "--certs", str(echo.folder)])
    assert done.returncode == USAGE
    assert "there is no ca.pem" in said(done.stderr)
