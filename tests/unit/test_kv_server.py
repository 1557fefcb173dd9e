"""``smtnet serve kv`` on the loopback: what Redis's own programs and redis-py do with it, and hostile clients."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from smtstack.storage.keys import make_key_file
from tests.net import starting
from tests.redis_server import PATIENCE, RawClient, need, redis_server
from workloads.fleet import credentials
from workloads.fleet import redis as redis_program
from workloads.kv import resp
from workloads.kv.arguments import Session
from workloads.kv.backend import Backend, EmbeddedStore
from workloads.kv.client import KvClient
from workloads.kv.redis_store import RedisStore
from workloads.kv.server import RespMessages
from workloads.kv.store import Keyspace
from workloads.transports import Settings
from workloads.transports.stream import Stream
from workloads.transports.tls import CA, CERTIFICATE, KEY

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 1_000_000


class Server:
    """A server process."""

    def __init__(self, *options: str, transport: str = "tcp", **environment: str) -> None:
        # A port that is free now; nobody else takes ports in this range at random.
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self._process = starting.popen(
            [sys.executable, "-m", "workloads", "serve", "kv", "--transport", transport, "--addr",
             f"127.0.0.1:{self.port}", "--json", *options], {**os.environ, **environment})
        assert self._process.stderr is not None
        #: What it said on stderr until it was ready.
        self.said: list[str] = []
        for line in self._process.stderr:
            self.said.append(line)
            if line.startswith("serving"):
                break
        self.pid = self._process.pid

    def client(self) -> RawClient:
        return RawClient(("127.0.0.1", self.port))

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=PATIENCE)

    def stop(self) -> dict[str, Any]:
        """Its JSON."""
        self._process.terminate()
        out, err = self._process.communicate(timeout=PATIENCE)
        assert self._process.returncode == 0, err
        assert "Traceback" not in err
        return json.loads(out)


@contextmanager
def serving(*options: str, transport: str = "tcp", **environment: str) -> Iterator[Server]:
    server = Server(*options, transport=transport, **environment)
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def cli(server: Server, *words: str) -> str:
    need("redis-cli")
    run = subprocess.run(["redis-cli", "-p", str(server.port), *words], capture_output=True, text=True,
                         timeout=PATIENCE, check=True)
    return run.stdout.strip()


# -- Redis's own programs --------------------------------------------------------------------------------------

@pytest.mark.parametrize("version", ["-2", "-3"])
def test_redis_cli(server: Server, version):
    assert cli(server, version, "SET", "cli", "a b") == "OK"
    assert cli(server, version, "GET", "cli") == "a b"
    assert cli(server, version, "GET", "none") == ""
    assert "wrong number" in cli(server, version, "GET")
    assert cli(server, version, "HSET", "clih", "f", "v", "g", "w") in {"2", "0"}
    assert set(cli(server, version, "HGETALL", "clih").split()) >= {"f", "v", "g", "w"}
    assert "redis_version:7" in cli(server, version, "INFO")
    assert int(cli(server, version, "DBSIZE")) >= 2
    cli(server, version, "ZADD", "cliz", "1", "a", "2.5", "b")
    assert cli(server, version, "ZRANGE", "cliz", "0", "-1", "WITHSCORES").split() == ["a", "1", "b", "2.5"]
    assert "cli" in cli(server, version, "--scan", "--pattern", "cli*").split()


def test_redis_cli_pipes_a_thousand_commands(server: Server):
    need("redis-cli")
    data = b"".join([resp.command(["SET", f"pipe{i}", "x" * (i % 300)]) for i in range(1000)])
    run = subprocess.run(["redis-cli", "-p", str(server.port), "--pipe"], input=data, capture_output=True,
                         timeout=PATIENCE, check=True)
    assert b"errors: 0, replies: 1000" in run.stdout
    assert cli(server, "STRLEN", "pipe299") == "299"


@pytest.mark.parametrize("options", [["-c", "20"], ["-c", "4", "-P", "16"], ["-c", "4", "-d", "20000"]])
def test_redis_benchmark(server: Server, options):
    need("redis-benchmark")
    run = subprocess.run(["redis-benchmark", "-p", str(server.port), "-n", "400", "--csv", "-t",
                          "ping_inline,ping_mbulk,set,get,incr,hset,mset,zadd", *options],
                         capture_output=True, text=True, timeout=60, check=True)
    assert "rror" not in run.stdout + run.stderr
    assert len(run.stdout.splitlines()) == 9


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_py(server: Server, protocol):
    redis = pytest.importorskip("redis")
    with redis.Redis(port=server.port, protocol=protocol, client_name="tester") as client:
        client.flushdb()
        assert client.ping()
        assert client.set("a", b"\r\n\0\xff", ex=1000)
        assert client.get("a") == b"\r\n\0\xff"
        assert 990 < client.ttl("a") <= 1000
        assert client.set("a", "2", nx=True) is None
        assert client.incrby("n", 5) == 5
        assert client.mget("n", "none") == [b"5", None]
        client.hset("h", mapping={"f": "1", "g": "2"})
        assert client.hgetall("h") == {b"f": b"1", b"g": b"2"}
        client.zadd("z", {"m": 1.5, "n": 3})
        found = client.zrangebyscore("z", "(1.5", "+inf", withscores=True, start=0, num=5)
        assert list(map(tuple, found)) == [(b"n", 3.0)]
        assert client.zscore("z", "m") == 1.5
        assert set(client.scan_iter("*", count=2)) == {b"a", b"n", b"h", b"z"}
        with pytest.raises(redis.ResponseError, match="wrong kind"):
            client.get("h")
        with client.pipeline(transaction=False) as pipe:
            for i in range(500):
                pipe.set(f"p{i}", i)
                pipe.get(f"p{i}")
            assert pipe.execute()[1::2] == [b"%d" % i for i in range(500)]
        assert client.client_getname() in {"tester", b"tester"}
        assert client.config_get("save") in ({"save": ""}, {b"save": b""})


def test_redis_cli_and_redis_py_over_tls(tmp_path):
    redis = pytest.importorskip("redis")
    made = credentials.make(tmp_path / "run", "tls", {"a": "127.0.0.2", "b": "127.0.0.1"})
    own = made.folder / "a"
    with serving(*made.args("b"), transport="tls", **made.environment("b")) as server:
        tls = ["--tls", "--cacert", str(own / CA), "--cert", str(own / CERTIFICATE), "--key", str(own / KEY)]
        assert cli(server, *tls, "SET", "a", "x" * 100_000) == "OK"
        assert cli(server, *tls, "GET", "a") == "x" * 100_000
        client = redis.Redis(port=server.port, host="127.0.0.1", ssl=True, ssl_ca_certs=str(own / CA),
                             ssl_certfile=str(own / CERTIFICATE), ssl_keyfile=str(own / KEY))
        with client, client.pipeline(transaction=False) as pipe:
            for i in range(200):
                pipe.set(f"p{i}", "y" * 1000)
                pipe.get(f"p{i}")
            assert pipe.execute()[1::2] == [b"y" * 1000] * 200
        # Whoever has no certificate gets nothing.
        with pytest.raises((redis.ConnectionError, ConnectionError)):
            redis.Redis(port=server.port, ssl=True, ssl_ca_certs=str(own / CA), retry=None).ping()
        result = server.stop()
    assert result["kv"]["commands"] >= 402


# -- large values ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("transport", ["tcp", "tls"])
def test_values_of_64_mb_come_and_go(tmp_path, transport):
    """In time for a client's patience: nothing is copied again for every piece of it."""
    redis = pytest.importorskip("redis")
    certs: dict[str, Any] = {}
    options: list[str] = []
    environment: dict[str, str] = {}
    if transport == "tls":
        made = credentials.make(tmp_path / "run", "tls", {"a": "127.0.0.2", "b": "127.0.0.1"})
        own = made.folder / "a"
        certs = {"ssl": True, "ssl_ca_certs": str(own / CA), "ssl_certfile": str(own / CERTIFICATE),
                 "ssl_keyfile": str(own / KEY)}
        options, environment = made.args("b"), made.environment("b")
    with serving(*options, transport=transport, **environment) as server, \
            redis.Redis(port=server.port, host="127.0.0.1", socket_timeout=PATIENCE, **certs) as client:
        for size in (900_000, 1 << 20, 8 << 20, 64 << 20):
            value = random.Random(size).randbytes(size)
            assert client.set(b"\0bin\r\n\xff", value)
            assert client.strlen(b"\0bin\r\n\xff") == size
            assert client.get(b"\0bin\r\n\xff") == value
        assert len(client.mget(*[b"\0bin\r\n\xff"])[0]) == 64 << 20
        # Not much more than the value, what was there before and what is sent.
        peak = int(next(line for line in Path(f"/proc/{server.pid}/status").read_text().splitlines()
                        if line.startswith("VmHWM")).split()[1])
        assert peak < 8 * 65_536
        if transport == "tcp":
            with KvClient(Settings("tcp"), ("127.0.0.1", server.port), timeout_s=PATIENCE) as own_client:
                own_client.command("SET", "x", value)
                assert own_client.command("GET", "x") == value


def test_limits_are_set_by_options_and_named_where_they_hold():
    options = ["--proto-max-bulk-len", "10kb", "--proto-max-multibulk-len", "20", "--client-query-buffer-limit",
               "30kb", "--proto-inline-max-size", "1k"]
    string = b"$10000\r\n" + b"x" * 10_000 + b"\r\n"
    with serving(*options) as server:
        for sent, said in (
                (b"*2\r\n$3\r\nGET\r\n$10241\r\n", b"at most 10240 bytes (--proto-max-bulk-len)"),
                (b"*21\r\n", b"at most 20 arguments (--proto-max-multibulk-len)"),
                (b"*4\r\n" + string * 4, b"at most 30720 bytes (--client-query-buffer-limit)"),
                (b"ECHO " + b"x" * 1000 + b"\r\n", b"at most 1000 bytes (--proto-inline-max-size)")):
            with server.client() as client:
                client.sock.sendall(sent)
                reply = client.replies(1)[0]
                assert reply.startswith(b"-ERR Protocol error: ")
                assert said in reply
        with server.client() as client:
            assert client.send([b"SET", b"a", b"x" * 10_000], [b"APPEND", b"a", b"y" * 240]) == [b"+OK\r\n",
                                                                                         b":10240\r\n"]
            assert b"(proto-max-bulk-len)" in client.send([b"APPEND", b"a", b"z"])[0]
    assert "'10tb' is no number of bytes" in refused_usage("--proto-max-bulk-len", "10tb")


def refused_usage(*options: str) -> str:
    run = starting.run([sys.executable, "-m", "workloads", "serve", "kv", *options], timeout=PATIENCE)
    assert run.returncode == 2
    return run.stderr


def test_what_the_kernel_does_not_take_at_once_is_not_copied_again():
    """A stream that takes little at a time."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        stream = Stream.__new__(Stream)
        stream.writing, stream.backlog = deque(), 0
        taken: list[bytes] = []

        def put(data: bytes | memoryview) -> int:
            taken.append(bytes(data[:1000]))
            return min(1000, len(data))

        stream._put, stream._full = put, BlockingIOError
        data = random.Random(1).randbytes(50_500)
        assert not stream.send(data)
        while not stream.flush():
            assert isinstance(stream.writing[0], memoryview)
            assert stream.writing[0].obj is data
        assert b"".join(taken) == data
        assert stream.backlog == 0


# -- clients that are not nice -----------------------------------------------------------------------------------

def test_protocol_errors_are_told_and_end_the_connection_only(server: Server):
    with server.client() as other:
        for hostile in (b"*1000000000\r\n", b"*1\r\n$536870913\r\n", b"*1\r\n*1\r\n*1\r\n",
                        b"*1\r\n$4\r\nPINGPONG\r\n", b"x" * 100_000, b"*1\r\n$4\r\nPING\r\n*x\r\n"):
            with server.client() as client:
                client.sock.sendall(hostile)
                # Whatever follows is no reason not to tell it.
                client.sock.sendall(b"\0" * 500_000)
                data = b""
                while more := client.sock.recv(65_536):
                    data += more
                assert data.removeprefix(b"+PONG\r\n").startswith(b"-ERR Protocol error: "), hostile
        assert other.one("PING") == b"+PONG\r\n"
    assert server_memory(server) < 200 << 20


def refused(*options: str) -> str:
    """What a server says that does not start for a reason a user can mend."""
    run = starting.run([sys.executable, "-m", "workloads", "serve", "kv", "--transport", "tcp", "--addr",
                        "127.0.0.1:1", *options], timeout=PATIENCE)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    return run.stderr


def server_memory(server: Server) -> int:
    return psutil.Process(server.pid).memory_info().rss


def test_who_goes_on_after_that_is_cut_off(server: Server):
    with server.client() as client:
        client.sock.sendall(b"*x\r\n")
        assert client.sock.recv(1000).startswith(b"-ERR Protocol error")
        with pytest.raises(OSError, match=r"reset|pipe"):
            client.sock.sendall(b"x" * (100 << 20))


def test_quit_says_ok_and_does_no_more(server: Server):
    with server.client() as client:
        client.one("DEL quitted")
        client.sock.sendall(b"QUIT\r\nSET quitted 1\r\n")
        assert client.replies(1) == [b"+OK\r\n"]
        assert client.sock.recv(1) == b""
    with server.client() as client:
        assert client.one("EXISTS quitted") == b":0\r\n"


def test_who_reads_nothing_holds_up_nobody_and_takes_bounded_memory(server: Server):
    value = b"x" * 500_000
    with server.client() as greedy, server.client() as other:
        assert greedy.send([b"SET", b"big", value]) == [b"+OK\r\n"]
        before = server_memory(server)
        ask = resp.command(["GET", "big"])
        count = 2000  # A gigabyte of replies.
        greedy.sock.sendall(ask * count)
        for i in range(20):
            assert other.send([b"SET", b"small", b"%d" % i]) == [b"+OK\r\n"]
        assert server_memory(server) - before < 100 << 20
        # Those that it does read are whole and in order, and there are as many as it asked for.
        for _ in range(count):
            assert greedy.replies(1) == [resp.bulk(value)]
        assert greedy.one("PING") == b"+PONG\r\n"
    assert server_memory(server) - before < 100 << 20


def test_a_request_in_single_bytes_and_one_that_never_ends(server: Server):
    with server.client() as slow, server.client() as other:
        for byte in resp.command([b"ECHO", b"a\r\nb"]):
            slow.sock.sendall(bytes([byte]))
        assert slow.replies(1) == [b"$4\r\na\r\nb\r\n"]
        slow.sock.sendall(b"*2\r\n$4\r\nECHO\r\n$900000\r\n" + b"x" * 500_000)
        assert other.one("PING") == b"+PONG\r\n"
        # Gone in mid-command.
        slow.close()
        assert other.one("PING") == b"+PONG\r\n"


def test_memory_stays_flat_under_overwrites(server: Server):
    batch = [[b"SET", b"flat%d" % (i % 50), bytes([i % 256]) * 20_000, b"EX", b"1000"] for i in range(200)]
    with server.client() as client:
        for _ in range(3):
            client.send(*batch)
        before = server_memory(server)
        for _ in range(20):
            client.send(*batch)
        assert server_memory(server) - before < 20 << 20


# -- in messages -------------------------------------------------------------------------------------------------

class Message:
    """A request as a message transport gives it."""

    def __init__(self, data: bytes, longest: int = LIMIT) -> None:
        self.data = data
        self.longest = longest
        self.replies: list[bytes] = []

    def reply(self, data: bytes) -> bool:
        self.replies.append(data)
        return True


def ask(messages: RespMessages, store: Backend, data: bytes, longest: int = LIMIT) -> bytes:
    """The reply to a message."""
    message = Message(data, longest)
    messages.handle(message)
    end = time.monotonic() + PATIENCE
    while not message.replies:
        assert time.monotonic() < end, "no reply"
        if (descriptor := store.fileno()) is not None:
            select.select([descriptor], [], [], 0.1)
        store.turn()
    assert len(message.replies) == 1
    return message.replies[0]


@contextmanager
def embedded() -> Iterator[Backend]:
    yield EmbeddedStore(Keyspace())


@contextmanager
def real() -> Iterator[Backend]:
    with redis_server() as (path, _pid):
        store = RedisStore(f"redis:unix:{path}")
        yield store
        store.close()


@pytest.mark.parametrize("opened", [embedded, real])
def test_messages_carry_whole_commands(opened):
    with opened() as store:
        messages = RespMessages(store, LIMIT)
        assert ask(messages, store, resp.command(["SET", "a", "1"])) == b"+OK\r\n"
        several = b"".join(map(resp.command, (["INCR", "a"], ["GET", "a"], ["nonsense"], ["GET"], ["PING"])))
        assert ask(messages, store, several) == (
            b":2\r\n$1\r\n2\r\n-ERR unknown command 'nonsense', with args beginning with: \r\n"
            b"-ERR wrong number of arguments for 'get' command\r\n+PONG\r\n")
        # Nothing is done of a message that is wrong anywhere.
        for wrong in (b"", several[:-1], several + b"*1\r\n*", b"\xff" * 10):
            assert ask(messages, store, wrong).startswith(b"-ERR Protocol error: ")
        assert ask(messages, store, resp.command(["GET", "a"])) == b"$1\r\n2\r\n"
        assert messages.protocol_errors == 4
        # HELLO holds to the end of its message.
        none = resp.command(["GET", "none"])
        assert ask(messages, store, resp.command(["HELLO", 3]) + none).endswith(b"_\r\n")
        assert ask(messages, store, none) == b"$-1\r\n"


@pytest.mark.parametrize("opened", [embedded, real])
def test_replies_that_are_no_message_any_more_are_an_error_and_say_what_was_done(opened):
    with opened() as store:
        messages = RespMessages(store, 10_000)
        ask(messages, store, resp.command(["SET", "a", "x" * 9_000]))
        assert ask(messages, store, resp.command(["GET", "a"])) == resp.bulk(b"x" * 9_000)
        reply = ask(messages, store, resp.command(["GET", "a"]) * 300)
        assert reply.startswith(b"-ERR the replies are longer than a message, which has 10000 bytes "
                                b"(max_message_length); ")
        assert reply.endswith(b"of 300 commands were done\r\n")
        # A client whose session has shorter messages.
        reply = ask(messages, store, resp.command(["GET", "a"]), 500)
        assert reply == (b"-ERR the replies are longer than a message, which has 500 bytes (max_message_length); "
                         b"1 of 1 commands were done\r\n")


# -- a real Redis behind it --------------------------------------------------------------------------------------

def test_a_real_redis_behind_it():
    with redis_server() as (path, _pid), serving("--store", f"redis:unix:{path}") as server, \
            RawClient(str(path)) as direct, server.client() as one, server.client() as two:
        assert one.one("SET a 1") == b"+OK\r\n"
        assert direct.one("GET a") == b"$1\r\n1\r\n"
        assert [two.one("HELLO 3")[:1], two.one("GET none")] == [b"%", b"_\r\n"]
        assert one.one("GET none") == b"$-1\r\n"
        # Many at once, in order, local ones and errors between them.
        commands = [c for i in range(2000) for c in ([b"INCR", b"n"], [b"ECHO", b"%d" % i], [b"nonsense"],
                                                     [b"GET", b"n"])]
        replies = one.send(*commands)
        assert replies[0::4] == [b":%d\r\n" % i for i in range(1, 2001)]
        assert replies[1::4] == [resp.bulk(b"%d" % i) for i in range(2000)]
        assert all(r.startswith(b"-ERR unknown") for r in replies[2::4])
        assert replies[3::4] == [resp.bulk(b"%d" % i) for i in range(1, 2001)]
        # A change of version between commands keeps their order.
        commands = [c for i in range(50) for c in ([b"SET", b"v", b"%d" % i], [b"HELLO", b"%d" % (2 + i % 2)],
                                                   [b"GET", b"v"])]
        assert one.send(*commands)[2::3] == [resp.bulk(b"%d" % i) for i in range(50)]
        # Nobody gets at what belongs to the connection all of them share.
        for line in ("SUBSCRIBE x", "CONFIG SET maxmemory 1", "SHUTDOWN", "CLIENT REPLY OFF", "SELECT 16",
                     "MONITOR", "EVAL x 0"):
            assert two.one(line).startswith(b"-ERR"), line
        result = server.stop()
    assert result["kv"]["commands_forwarded"] > 4000
    assert result["store"].startswith("redis:unix:")


def test_a_redis_that_goes_away_is_an_error_and_its_return_is_noticed():
    with redis_server() as (path, pid), serving("--store", f"redis:unix:{path}") as server, \
            server.client() as client:
        assert client.one("SET a 1") == b"+OK\r\n"
        os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + PATIENCE
        while not (reply := client.one("GET a")).startswith(b"-ERR the store behind this server"):
            assert time.monotonic() < end, reply
        assert client.one("PING") == b"+PONG\r\n"
        path.unlink(missing_ok=True)
        command = [redis_program.redis_server(path.parent), "--port", "0", "--unixsocket", str(path), "--save", "",
                   "--dir", str(path.parent)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as anew:
            try:
                while (reply := client.one("GET a")) != b"$-1\r\n":
                    assert time.monotonic() < end, reply
                    time.sleep(0.05)
            finally:
                anew.terminate()


def test_no_redis_there_is_one_line():
    assert "/nowhere/redis.sock: no Redis there" in refused("--store", "redis:unix:/nowhere/redis.sock")


# -- killed ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("protected", [False, True])
@pytest.mark.parametrize("fsync", ["always", "everysec", "no"])
def test_kill_9_in_mid_load_loses_nothing_that_was_acknowledged(tmp_path, fsync, protected):
    options = ["--aof", str(tmp_path / "store.aof"), "--fsync", fsync]
    if protected:
        make_key_file(tmp_path / "key")
        options += ["--storage-key", str(tmp_path / "key"), "--storage-state", str(tmp_path / "state")]
    with serving(*options) as server, server.client() as client:
        acknowledged = 0
        for i in range(0, 400, 4):
            acknowledged += len(client.send(*[[b"SET", b"k%d" % j, b"%d" % j] for j in range(i, i + 4)]))
        # More under way, of which some will be done.
        client.sock.sendall(b"".join([resp.command(["SET", f"k{j}", j]) for j in range(400, 20_000)]))
        acknowledged += len(client.replies(1))
        server.kill()
    with serving(*options) as server, server.client() as client:
        replies = client.send(*[[b"GET", b"k%d" % j] for j in range(acknowledged)])
        assert replies == [resp.bulk(b"%d" % j) for j in range(acknowledged)]
        present = int(client.one("DBSIZE")[1:-2])
        # Done in order: nothing is missing between.
        assert client.one(f"EXISTS k{present - 1}") == b":1\r\n"
        assert client.one(f"EXISTS k{present}") == b":0\r\n"
        result = server.stop()
    assert result["kv"]["aof_loaded"] == present


@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_kill_9_while_the_file_is_written_anew_loses_nothing(tmp_path, fsync):
    path = tmp_path / "store.aof"
    options = ["--aof", str(path), "--fsync", fsync, "--aof-rewrite-min-size", "20kb", "--aof-rewrite-percentage",
               "20"]
    acknowledged = 0
    # Killed after more and more replies: before, within and after a rewrite, of which there are many.
    for more in range(200, 1000, 130):
        with serving(*options) as server, server.client() as client:
            if acknowledged:
                assert client.one("GET last") == resp.bulk(b"%d" % acknowledged)
            for i in range(acknowledged + 1, acknowledged + more + 1):
                client.send([b"SET", b"last", b"%d" % i], [b"SET", b"k%d" % (i % 50), b"x" * 50])
            acknowledged += more
            client.one("BGREWRITEAOF")
            server.kill()
    with serving(*options) as server, server.client() as client:
        assert client.one("GET last") == resp.bulk(b"%d" % acknowledged)
        assert client.one("DBSIZE") == b":51\r\n"
        info = client.one("INFO persistence")
        assert b"aof_base_size:" in info
        client.one("BGREWRITEAOF")
        until = time.monotonic() + PATIENCE
        while b"aof_rewrite_in_progress:0\r\naof_rewrite_scheduled:0" not in client.one("INFO persistence"):
            assert time.monotonic() < until
        assert server.stop()["kv"]["aof_rewrites"] >= 1
    assert path.stat().st_size < 20_000
    assert list(tmp_path.iterdir()) == [path]


def test_a_torn_end_is_a_warning_and_damage_a_refusal(tmp_path):
    file = tmp_path / "store.aof"
    with serving("--aof", str(file)) as server, server.client() as client:
        for i in range(3):
            client.one(f"SET k{i} x")
        server.stop()
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with serving("--aof", str(file)) as server, server.client() as client:
        assert client.one("DBSIZE") == b":2\r\n"
        assert "is not whole" in server.said[0]
    file.write_bytes(whole[:20] + b"!" + whole[21:])
    assert "damaged at offset 12" in refused("--aof", str(file))


@pytest.mark.parametrize(("options", "said"), [
    (["--fsync", "no"], "--fsync needs --aof"), (["--store", "x"], "embedded, redis:unix"),
    (["--store", "redis:here"], "no IP:PORT"),
    (["--store", "redis:1.2.3.4:5", "--aof", "f"], "for --store embedded"),
    (["--aof-rewrite-percentage", "10"], "--aof-rewrite-percentage needs --aof"),
    (["--store", "redis:1.2.3.4:5", "--aof-rewrite-min-size", "1mb"], "for --store embedded"),
    (["--aof-upgrade", "--aof", "/nowhere/f"], "--aof-upgrade needs --storage-key"),
    (["--storage-mode", "aead"], "--storage-mode needs --aof"),
    (["--storage-mode", "aead", "--aof", "/nowhere/f"], "needs --storage-key"),
    (["--storage-mode", "file", "--storage-state", "s", "--aof", "/nowhere/f"], "it has no key and no state"),
    (["--storage-freshness", "counter", "--aof", "/nowhere/f"], "needs --storage-state"),
    (["--storage-key", "/nowhere/key", "--aof", "/nowhere/f"], "/nowhere/key: No such file"),
    (["--listen", "udp:1.2.3.4:5"], "'udp' is no transport"), (["--listen", "tcp:1.2.3.4"], "no IP:PORT"),
])
def test_options_that_make_no_sense_are_one_line(options, said):
    assert said in refused(*options)


def test_sessions_end_with_their_connection(server: Server):
    with server.client() as one:
        assert one.one("CLIENT SETNAME first") == b"+OK\r\n"
        assert one.one("HELLO 3")[:1] == b"%"
        number = one.one("CLIENT ID")
    with server.client() as two:
        assert two.one("CLIENT GETNAME") == b"$-1\r\n"
        assert two.one("CLIENT ID") != number
    assert Session().version == 2
