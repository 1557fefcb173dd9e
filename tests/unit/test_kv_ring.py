"""The key-value server over an untrusted host's TCP and files, under a filter that kills it at its first network
system call: any client, content verified, the file read again."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from smtstack.errors import ConfigError
from tests.redis_server import RawClient
from workloads.commands.main import main
from workloads.fleet.authority import make_folder
from workloads.kv.aof_rewrite import RewriteFailed
from workloads.kv.aof_ring import RingLog
from workloads.kv.store import Keyspace

OPERATIONS = int(os.environ.get("SMTNET_RPCS", "300"))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


class Server:
    """One, on loopback."""

    def __init__(self, *options: str, environment: dict[str, str] | None = None) -> None:
        self.port = free_port()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.kv_ring_server", "--addr", f"127.0.0.1:{self.port}", "--nic-hosting",
             "ring", "--json", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **(environment or {})})
        self.said = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if line.startswith("serving"):
                break

    def stop(self) -> dict[str, Any]:
        """What it says at the end."""
        self.process.send_signal(signal.SIGTERM)
        out, errors = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, (self.said, errors)
        result: dict[str, Any] = json.loads(out)
        return result


@contextmanager
def serving(*options: str, environment: dict[str, str] | None = None) -> Iterator[Server]:
    server = Server(*options, environment=environment)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate()


def load(port: int, seed: int, operations: int, connect: Callable[[int], RawClient]) -> dict[bytes, bytes]:
    """Half writes, half reads, as YCSB's A, each value verified; what is there then."""
    choose, written = random.Random(seed), {}
    with connect(port) as client:
        for _number in range(operations):
            key = b"key%d-%d" % (seed, choose.randrange(40))
            if choose.random() < 0.5:
                value = choose.randbytes(choose.choice((1, 100, 1000, 1000, 100_000)))
                assert client.send([b"SET", key, value]) == [b"+OK\r\n"]
                written[key] = value
            else:
                wanted = written.get(key)
                assert client.send([b"GET", key]) == [
                    b"$-1\r\n" if wanted is None else b"$%d\r\n%b\r\n" % (len(wanted), wanted)]
        # Many at once, whose replies are more than a buffer.
        keys = list(written)
        assert client.send(*([b"GET", key] for key in keys)) == [
            b"$%d\r\n%b\r\n" % (len(written[key]), written[key]) for key in keys]
    return written


def plain(port: int) -> RawClient:
    return RawClient(("127.0.0.1", port))


def nothing_refused(result: dict[str, Any]) -> None:
    counters = result["counters"]
    assert counters["ring_refused"] == counters["iouring_restarts"] == counters["iouring_given_up"] == 0
    assert counters["iouring_submitted"] > OPERATIONS


@pytest.mark.parametrize("fsync", ["everysec", "always"])
def test_clients_and_the_file_they_leave(tmp_path: Path, fsync: str):
    aof = tmp_path / "store.aof"
    contents: dict[bytes, bytes] = {}
    with serving("--transport", "tcp", "--aof", str(aof), "--fsync", fsync) as server:
        assert any("can read and change it" in line for line in server.said)
        threads = [threading.Thread(
            target=lambda seed: contents.update(load(server.port, seed, OPERATIONS // 3, plain)), args=(seed,))
            for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        tool = shutil.which("redis-cli")
        if tool is not None:
            said = subprocess.run([tool, "-p", str(server.port), "dbsize"], capture_output=True, text=True,
                                  check=True)
            assert said.stdout.split()[-1] == str(len(contents))
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        assert "\nSeccomp:\t2\n" in status
        # A client that is cut off, one that says nothing, one that is no client.
        with plain(server.port) as client, plain(server.port), plain(server.port) as wrong:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            wrong.sock.sendall(b"*1\r\n$-5\r\n")
            assert wrong.sock.recv(1000).startswith(b"-ERR")
            assert wrong.sock.recv(1000) == b""
        result = server.stop()
    nothing_refused(result)
    assert len(contents) > 50
    assert result["kv"]["keys"] == len(contents)
    if fsync == "always":
        assert result["kv"]["aof_syncs"] >= OPERATIONS // 4
    # Another one finds all of it; and it is a plain file.
    with serving("--transport", "tcp", "--aof", str(aof)) as server, plain(server.port) as client:
        keys = list(contents)
        assert client.send(*([b"GET", key] for key in keys)) == [
            b"$%d\r\n%b\r\n" % (len(contents[key]), contents[key]) for key in keys]
        with pytest.raises(AssertionError):
            Server("--transport", "tcp", "--aof", str(aof)).stop()
        assert client.one("BGREWRITEAOF").startswith(b"+")
        assert client.one("SET a b") == b"+OK\r\n"
        # The control of all this: one network system call, and it is over.
        server.process.send_signal(signal.SIGUSR1)
        assert server.process.wait(60) == -signal.SIGSYS
    assert main(["kv", "check", str(aof)]) == 0


def test_tls(tmp_path: Path):
    made = tmp_path / "certs"
    make_folder(made, {"server": "127.0.0.1", "client": "127.0.0.2"})
    context = ssl.create_default_context(cafile=str(made / "client" / "ca.pem"))
    context.load_cert_chain(made / "client" / "cert.pem", made / "client" / "key.pem")

    def connect(port: int) -> RawClient:
        client = RawClient(("127.0.0.1", port))
        client.sock = context.wrap_socket(client.sock, server_hostname="127.0.0.1")
        return client

    environment = {"OPENSSL_CONF": str(made / "server" / "openssl.cnf")}
    with serving("--transport", "tls", "--certs", str(made / "server"), environment=environment) as server:
        threads = [threading.Thread(target=load, args=(server.port, seed, OPERATIONS // 3, connect))
                   for seed in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # One without a certificate, and one that speaks something else.
        stranger = ssl.create_default_context(cafile=str(made / "client" / "ca.pem"))
        with plain(server.port) as client:
            client.sock = stranger.wrap_socket(client.sock, server_hostname="127.0.0.1")
            with pytest.raises((ssl.SSLError, ConnectionError)):
                client.sock.recv(100)
        with plain(server.port) as client:
            client.sock.sendall(b"PING\r\n")
            client.sock.recv(1000)
        load(server.port, 7, 10, connect)
        result = server.stop()
    nothing_refused(result)
    assert result["counters"]["handshakes_failed"] == 2
    assert result["counters"]["connections_accepted"] == 5


@pytest.mark.parametrize("how", ["exit", "ring-unchecked"])
def test_what_stands_beside_it_in_figures(how: str):
    with serving("--transport", "tcp", "--nic-hosting", how) as server:
        threads = [threading.Thread(target=load, args=(server.port, seed, 30, plain)) for seed in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        counters = server.stop()["counters"]
    assert counters["connections_accepted"] == 2
    assert counters["ring_refused"] == 0
    # By exits only, or hardly by any.
    assert (counters["iouring_submitted"] == 0) == (counters["iouring_exits"] > 100) == (how == "exit")


@pytest.mark.parametrize(("words", "said"), [
    (["--transport", "tcp", "--nic-hosting", "queue"], "has no --nic-hosting queue"),
    (["--transport", "tls", "--nic-hosting", "exit"], "has no --nic-hosting exit"),
    (["--transport", "tcp", "--aof", "f", "--aof-rewrite-percentage", "50"], "neither protected nor written anew"),
    (["--transport", "tcp", "--store", "redis:unix:/none"], "--store embedded"),
    (["--listen", "tcp:127.0.0.1:7002", "--transport", "tcp"], "one --listen")])
def test_what_does_not_go_together(capsys: pytest.CaptureFixture[str], words: list[str], said: str):
    assert main(["serve", "kv", "--addr", "127.0.0.1:7001", "--nic-hosting", "ring", *words]) == 2
    assert said in capsys.readouterr().err


def test_echo_has_it_not(capsys: pytest.CaptureFixture[str]):
    assert main(["serve", "echo", "--addr", "127.0.0.1:7001", "--nic-hosting", "ring", "--transport", "tcp"]) == 2
    assert "smtnet serve kv" in capsys.readouterr().err


def test_a_log_is_not_written_anew(tmp_path: Path):
    log = RingLog.__new__(RingLog)
    with pytest.raises(ConfigError, match="not written anew"):
        log.anew(Keyspace())
    with pytest.raises(RewriteFailed, match="not written anew"):
        log.rewriting(Keyspace())
