"""Redis's own programs and redis-py at a server process: all that they do by default, over tcp and tls."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.patience import FACTOR
from tests.redis_server import PATIENCE, RawClient, need, redis_server
from tests.unit.test_kv_server import Server, cli, serving
from workloads.fleet import credentials
from workloads.kv.resp import bulk
from workloads.transports.tls import CA, CERTIFICATE, KEY

NULL = b"*-1\r\n"


class Reached:
    """A server, and how its clients reach it."""

    def __init__(self, server: Server, options: list[str], arguments: dict[str, Any]) -> None:
        self.server = server
        self.options = ["-p", str(server.port), *options]
        self._arguments = {"host": "127.0.0.1", "port": server.port, **arguments}

    def redis(self, **more: Any) -> Any:
        """A client of redis-py."""
        redis = pytest.importorskip("redis")
        return redis.Redis(**self._arguments, **more)


@contextmanager
def over_tcp(_folder: Path) -> Iterator[Reached]:
    with serving() as server:
        yield Reached(server, [], {})


@contextmanager
def over_tls(folder: Path) -> Iterator[Reached]:
    made = credentials.make(folder / "run", "tls", {"a": "127.0.0.2", "b": "127.0.0.1"})
    own = made.folder / "a"
    ca, certificate, key = (str(own / name) for name in (CA, CERTIFICATE, KEY))
    with serving(*made.args("b"), transport="tls", **made.environment("b")) as server:
        yield Reached(server, ["--tls", "--cacert", ca, "--cert", certificate, "--key", key],
                      {"ssl": True, "ssl_ca_certs": ca, "ssl_certfile": certificate, "ssl_keyfile": key})


@contextmanager
def in_front_of_redis(_folder: Path) -> Iterator[Reached]:
    with redis_server() as (path, _pid), serving("--store", f"redis:unix:{path}") as server:
        yield Reached(server, [], {})


@pytest.fixture(scope="module", params=[over_tcp, over_tls, in_front_of_redis])
def reached(request, tmp_path_factory) -> Iterator[Reached]:
    with request.param(tmp_path_factory.mktemp("programs")) as found:
        yield found


def test_redis_benchmark_runs_all_its_tests(reached: Reached):
    need("redis-benchmark")
    # By name those of Redis 7: later ones have streams, which our store has not.
    names = "ping,set,get,incr,lpush,rpush,lpop,rpop,sadd,hset,spop,zadd,zpopmin,lrange,mset"
    run = subprocess.run(["redis-benchmark", *reached.options, "-q", "-n", "300", "-c", "10", "-t", names],
                         capture_output=True, text=True, timeout=120 * FACTOR, check=False)
    said = run.stdout + run.stderr
    assert run.returncode == 0, said
    assert not re.search("rror|WARN", said), said
    tests = re.findall(r"([A-Z_0-9]+)[^:\r\n]*: [0-9.]+ requests per second", said)
    assert tests == ["PING_INLINE", "PING_MBULK", "SET", "GET", "INCR", "LPUSH", "RPUSH", "LPOP", "RPOP", "SADD",
                     "HSET", "SPOP", "ZADD", "ZPOPMIN", "LPUSH", "LRANGE_100", "LRANGE_300", "LRANGE_500",
                     "LRANGE_600", "MSET"]


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_py_pipelines_are_transactions(reached: Reached, protocol):
    redis = pytest.importorskip("redis")
    with reached.redis(protocol=protocol) as client:
        client.flushdb()
        with client.pipeline() as pipe:
            pipe.set("a", 1).incr("a").lpush("l", "x", "y").incr("l").sadd("s", "m").smembers("s")
            replies = pipe.execute(raise_on_error=False)
            assert replies[:3] == [True, 2, 2]
            assert isinstance(replies[3], redis.ResponseError)
            assert replies[4:] == [1, {b"m"}]
            pipe.set("a", 5).execute_command("NOSUCH")
            with pytest.raises(redis.ResponseError, match="unknown command"):
                pipe.execute()
        assert client.get("a") == b"2"
        # Optimistic: tried again until nobody comes between.
        others = iter(range(3))

        def increase(pipe: Any) -> None:
            number = int(pipe.get("a"))
            if next(others, None) is not None:
                client.incr("a", 10)
            pipe.multi()
            pipe.set("a", number + 1)

        assert client.transaction(increase, "a") == [True]
        assert client.get("a") == b"33"


def test_redis_py_does_what_ordinary_programs_do(reached: Reached):
    redis = pytest.importorskip("redis")
    with reached.redis() as client:
        client.flushdb()
        assert client.unlink("none") == 0
        assert client.set("s", "v", ex=10)
        assert client.getex("s", px=100_000) == b"v"
        assert client.getset("s", "w") == b"v"
        assert client.getdel("s") == b"w"
        assert client.incrbyfloat("f", 0.1) == 0.1
        assert client.hincrby("h", "f", 3) == 3
        assert client.hincrbyfloat("h", "f", 0.5) == 3.5
        assert client.zincrby("z", 2.5, "m") == 2.5
        client.zadd("z", {"n": 1, "o": 2})
        assert client.zrange("z", 0, 1, desc=True) == [b"m", b"o"]
        assert client.zrange("z", "(1", "+inf", byscore=True, offset=0, num=1) == [b"o"]
        assert client.zrank("z", "o") == 1
        assert client.rpush("q", "a", "b") == 2
        assert client.lrange("q", 0, -1) == [b"a", b"b"]
        assert client.lpop("q") == b"a"
        assert client.blpop(["none", "q"], timeout=1) == (b"q", b"b")
        started = time.monotonic()
        assert client.blpop("q", timeout=0.2) is None
        assert time.monotonic() - started >= 0.2
        assert client.sadd("t", "a", "b") == client.scard("t") == 2
        assert client.sismember("t", "a")
        info = client.info()
        assert info["used_memory"] > 1_000_000 or "smtnet_version" not in info
        assert info["connected_clients"] >= 1
        assert info["db0"]["keys"] == 4
        # Without a password any is too much, as with Redis.
        with pytest.raises(redis.AuthenticationError, match="without any password"):
            client.execute_command("AUTH", "x")
        with pytest.raises(redis.AuthenticationError):
            reached.redis(username="u", password="x").ping()


def test_whoever_waits_holds_up_nobody_and_gets_what_comes(reached: Reached):
    with reached.redis() as one, reached.redis() as two:
        one.delete("w")
        found: list[Any] = []
        waits = threading.Thread(target=lambda: found.append(one.blpop("w", timeout=PATIENCE)))
        waits.start()
        _await(lambda: "b" in {c["flags"] for c in two.client_list()} or two.info("clients")["blocked_clients"])
        assert two.ping()
        assert not found
        assert two.rpush("w", "x") == 1
        waits.join(PATIENCE)
        assert found == [(b"w", b"x")]
        assert two.llen("w") == 0


def _await(done: Any) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end


def test_who_hangs_up_while_it_waits_takes_nothing_with_it():
    with serving() as server, server.client() as other:
        gone = server.client()
        gone.sock.sendall(b"*3\r\n$5\r\nBLPOP\r\n$1\r\nq\r\n$1\r\n0\r\n")
        _await(lambda: b"blocked_clients:1\r" in other.one("INFO clients"))
        gone.close()
        _await(lambda: b"blocked_clients:0\r" in other.one("INFO clients"))
        assert other.one("RPUSH q x") == b":1\r\n"
        assert other.one("LLEN q") == b":1\r\n"


def test_many_commands_behind_one_that_waits_come_after_it():
    with serving() as server, server.client() as one, server.client() as two:
        one.sock.sendall(b"SET a 1\r\nBLPOP q 0\r\n" + b"INCR a\r\n" * 1000)
        assert one.replies(1) == [b"+OK\r\n"]
        assert two.one("GET a") == b"$1\r\n1\r\n"
        two.one("RPUSH q x")
        assert one.replies(1001) == [b"*2\r\n$1\r\nq\r\n$1\r\nx\r\n", *[b":%d\r\n" % i for i in range(2, 1002)]]


def test_what_was_taken_by_waiting_and_in_transactions_is_kept(tmp_path):
    file = str(tmp_path / "store.aof")
    with serving("--aof", file, "--fsync", "always") as server, server.client() as one, server.client() as two:
        one.sock.sendall(b"BLPOP q 0\r\n")
        _await(lambda: b"blocked_clients:1\r" in two.one("INFO clients"))
        done = two.send([b"MULTI"], [b"RPUSH", b"q", b"x", b"y"], [b"SADD", b"s", b"1", b"2", b"3"],
                        [b"SPOP", b"s"], [b"INCRBYFLOAT", b"f", b"0.1"], [b"EXEC"])[-1]
        assert done.startswith(b"*4\r\n:2\r\n:3\r\n$1\r\n")
        assert one.replies(1) == [b"*2\r\n$1\r\nq\r\n$1\r\nx\r\n"]
        members = sorted(two.one("SMEMBERS s").split(b"\r\n"))
        server.kill()
    with serving("--aof", file) as server, server.client() as client:
        assert client.one("LRANGE q 0 -1") == b"*1\r\n$1\r\ny\r\n"
        assert sorted(client.one("SMEMBERS s").split(b"\r\n")) == members
        assert client.one("GET f") == bulk(b"0.1")


def test_redis_cli_stat_makes_sense(reached: Reached):
    need("redis-cli")
    with reached.redis() as client:
        client.flushall()
        client.mset({"a": 1, "b": 2})
    # Into a pipe it keeps its lines until it ends, which it never does.
    master, slave = pty.openpty()
    command = ["redis-cli", *reached.options, "--stat", "-i", "0.1"]
    row = re.compile(rb"(?m)^(\d+) +([\d.]+[BKMG]) +(\d+) +(\d+) +(\d+) \(\+(\d+)\) +(\d+)")
    with subprocess.Popen(command, stdout=slave, stderr=slave) as stat:
        os.close(slave)
        said = b""
        while len(rows := row.findall(said)) < 3:
            said += os.read(master, 1000)
        stat.terminate()
    os.close(master)
    keys, memory, clients, blocked, *_rest = rows[-1]
    assert (keys, blocked) == (b"2", b"0")
    assert int(clients) >= 1
    assert memory[-1:] in b"KM"
    assert int(rows[-1][4]) > int(rows[0][4])


def test_clients_are_told_apart(reached: Reached):
    with reached.redis(client_name="first") as one, reached.redis() as two:
        assert one.client_id() != two.client_id()
        listed = {c["name"]: c for c in two.client_list()}
        assert listed["first"]["addr"].startswith("127.0.0.1:")
        assert two.client_info()["cmd"] == "client|info" or two.client_info()["cmd"] == "client"


def test_transactions_in_front_of_redis_belong_to_one_client():
    with redis_server() as (path, _pid), serving("--store", f"redis:unix:{path}") as server, \
            RawClient(str(path)) as direct, server.client() as one, server.client() as two:
        assert one.send([b"MULTI"], [b"SET", b"a", b"1"], [b"INCR", b"a"]) == [b"+OK\r\n", *[b"+QUEUED\r\n"] * 2]
        # The other client, on the same connection to Redis, is not in it.
        assert two.one("GET a") == b"$-1\r\n"
        assert one.one("EXEC") == b"*2\r\n+OK\r\n:2\r\n"
        assert [one.one(line) for line in ("EXEC", "MULTI", "MULTI", "DISCARD", "DISCARD")] == [
            b"-ERR EXEC without MULTI\r\n", b"+OK\r\n", b"-ERR MULTI calls can not be nested\r\n", b"+OK\r\n",
            b"-ERR DISCARD without MULTI\r\n"]
        one.send([b"MULTI"], [b"SET", b"a", b"9"], [b"NOSUCH"])
        assert one.one("EXEC").startswith(b"-EXECABORT")
        for other in (two, direct):
            assert one.one("WATCH a") == b"+OK\r\n"
            other.one("INCR a")
            assert one.send([b"MULTI"], [b"SET", b"a", b"9"], [b"EXEC"])[-1] == NULL
        assert two.one("GET a") == b"$1\r\n4\r\n"
        one.send([b"WATCH", b"a"], [b"HELLO", b"3"])
        assert one.send([b"MULTI"], [b"GET", b"none"], [b"EXEC"])[-1] == b"*1\r\n_\r\n"
        # Who waits has a connection of its own, which ends with it.
        two.sock.sendall(b"BLPOP q 0\r\n")
        _await(lambda: b"blocked_clients:1\r" in direct.one("INFO clients"))
        assert one.one("PING") == b"+PONG\r\n"
        two.close()
        _await(lambda: b"blocked_clients:0\r" in direct.one("INFO clients"))
        assert one.one("SMT.VERSIONS a").startswith(b"-ERR SMT.VERSIONS is not possible")


def test_a_redis_that_is_lost_while_keys_are_watched_has_nothing_done():
    with redis_server() as (path, _pid), serving("--store", f"redis:unix:{path}") as server, \
            RawClient(str(path)) as direct, server.client() as one:
        assert one.send([b"WATCH", b"a"], [b"MULTI"], [b"SET", b"a", b"1"])[-1] == b"+QUEUED\r\n"
        direct.one("CLIENT KILL TYPE normal SKIPME yes")
        assert one.one("EXEC").startswith((b"-EXECABORT the store", b"-ERR the store"))
        assert direct.one("EXISTS a") == b":0\r\n"


def test_redis_cli_knows_that_it_is_in_a_transaction():
    with serving() as server:
        assert cli(server, "EVAL", "return {1, KEYS[1]}", "1", "k") == "1\nk"
        run = subprocess.run(["redis-cli", "-p", str(server.port)], input="MULTI\nSET a 1\nGET a\nEXEC\n",
                             capture_output=True, text=True, timeout=PATIENCE, check=True)
        assert run.stdout.split() == ["OK", "QUEUED", "QUEUED", "OK", "1"]
