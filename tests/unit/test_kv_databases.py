"""Databases: which one a client has selected over every way in, beside Redis, in the file, in front of Redis."""

from __future__ import annotations

import argparse
import itertools
import random
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtstack.errors import ConfigError
from tests.kv_commands import (
    COMMAND,
    DATABASE,
    KEYS,
    TRANSACTION,
    Command,
    all_comparable,
    comparable,
    waits,
    words,
)
from tests.redis_server import RawClient, redis_server
from tests.unit.test_kv_client_transactions import Connect, in_messages, on_streams
from tests.unit.test_kv_server import ask, cli, refused, serving
from tests.unit.test_kv_waiting import Clients, beside_redis, popped
from workloads.commands.kv import Shell
from workloads.commands.main import main as cli_main
from workloads.kv import aof_file, resp
from workloads.kv.aof import Aof
from workloads.kv.arguments import Session
from workloads.kv.backend import EmbeddedStore
from workloads.kv.client import KvError
from workloads.kv.commands import execute
from workloads.kv.databases import Journal
from workloads.kv.redis_store import RedisStore
from workloads.kv.resp import ReplyCutter
from workloads.kv.server import RespMessages
from workloads.kv.store import Keyspace, open_databases

NOW = 1_700_000_000_000
LIMIT = 1_000_000
OK = b"+OK\r\n"
PATIENCE_S = 30


def do(keys: Keyspace, session: Session, *lines: str, now: int = NOW) -> list[bytes]:
    return [execute(keys, line.encode().split(), session, now) for line in lines]


def contents(keys: Keyspace) -> list[tuple[int, str]]:
    """All there is in all databases, in any order."""
    return sorted((number, str(entry)) for number, entry in keys.databases.snapshot())


# -- beside Redis --------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def path() -> Iterator[str]:
    with redis_server() as (found, _pid):
        yield str(found)


@pytest.fixture(scope="module")
def redises(path) -> Iterator[list[RawClient]]:
    with RawClient(path) as a, RawClient(path) as b, RawClient(path) as c:
        yield [a, b, c]


@given(st.lists(st.tuples(st.integers(0, 2), st.one_of(COMMAND, TRANSACTION, DATABASE, DATABASE)), min_size=5,
                max_size=80))
@example([(0, [b"SELECT", b"1"]), (0, [b"WATCH", b"a"]), (0, [b"SELECT", b"2"]), (1, [b"SET", b"a", b"1"]),
          (0, [b"MULTI"]), (0, [b"SELECT", b"1"]), (0, [b"SET", b"a", b"2"]), (0, [b"EXEC"]), (0, [b"DBSIZE"]),
          (1, [b"SWAPDB", b"0", b"1"]), (1, [b"GET", b"a"]), (0, [b"RESET"]), (0, [b"GET", b"a"])])
def test_clients_in_several_databases_have_the_replies_that_redis_gives(redises, turns):
    keys = open_databases()
    clients = []
    for version, theirs in zip((2, 3, 2), redises, strict=True):
        theirs.send([b"RESET"], [b"HELLO", b"%d" % version], [b"FLUSHALL"])
        clients.append((theirs, Session(version=version)))

    def both(who: int, args: Command) -> None:
        theirs, session = clients[who]
        if waits(args) and session.queue is None:
            return
        queued = session.queue or []
        ours = execute(keys, args, session, time.time_ns() // 1_000_000)
        reply = theirs.send(args)[0]
        if args[0].upper() == b"RESET":
            theirs.send([b"HELLO", b"%d" % session.version])
        if args[0].upper() == b"EXEC" and ours[:1] == b"*" and queued:
            assert all_comparable(queued, ours) == all_comparable(queued, reply), queued
        else:
            assert comparable(args, ours) == comparable(args, reply), args

    for who, args in turns:
        both(who, args)
    both(0, [b"DISCARD"])
    for number in (b"0", b"1", b"2", b"15"):
        for args in ([b"SELECT", number], [b"DBSIZE"], [b"KEYS", b"*"]):
            both(0, args)
    ours = execute(keys, [b"INFO", b"keyspace"], Session(), 0)
    keyspace = clients[0][0].one("INFO keyspace")
    assert [line.split(b",")[0] for line in ours.split(b"\r\n")[1:] if line] == [
        line.split(b",")[0] for line in keyspace.split(b"\r\n")[1:] if line]


def test_whatever_changes_a_database_invalidates_the_watches_that_redis_invalidates(redises):
    lines = ["FLUSHALL", "FLUSHDB", "SWAPDB 0 1", "SWAPDB 1 0", "SWAPDB 1 1", "SWAPDB 2 1", "MOVE k 0", "MOVE k 1",
             "MOVE k 2", "SELECT 1", "SET k w", "DEL k"]
    refused = 0
    filled: list[list[int]] = [[], [0], [1], [0, 1], [2, 0]]
    for watched, there, line, where in itertools.product(range(3), filled, lines, range(2)):
        keys = open_databases()
        ours = [Session(), Session()]
        said = []
        steps = [(0, "FLUSHALL"), *((0, text) for number in there for text in (f"SELECT {number}", "SET k v")),
                 (0, f"SELECT {watched}"), (0, "WATCH k"), (1, f"SELECT {where}"), (1, line), (0, "SELECT 0"),
                 (0, "MULTI"), (0, "GET k"), (0, "SELECT 1"), (0, "GET k"), (0, "EXEC"), (0, "GET k")]
        for who, text in steps:
            (reply,) = do(keys, ours[who], text)
            assert redises[who].one(text) == reply, (watched, there, line, where, text)
            said.append(reply)
        refused += said[-2] == b"*-1\r\n"
    assert refused > 60


#: Waiters wait for one key: of several that SWAPDB makes ready, Redis takes whichever it finds.
WAITING = st.one_of(
    words(st.sampled_from([b"BLPOP", b"BRPOP"]), b"q", b"0"), words(b"BRPOPLPUSH", b"q", b"q", b"0"),
    words(st.sampled_from([b"LPUSH", b"RPUSH"]), b"q", st.sampled_from([b"1", b"2"])),
    words(b"SELECT", st.sampled_from([b"0", b"1", b"2"])), words(b"MOVE", b"q", st.sampled_from([b"0", b"1"])),
    words(b"SWAPDB", st.sampled_from([b"0", b"1"]), st.sampled_from([b"0", b"1", b"2"])),
    words(st.sampled_from([b"MULTI", b"EXEC", b"EXEC", b"FLUSHDB"])))


@given(st.lists(st.tuples(st.integers(0, 3), WAITING), min_size=4, max_size=40))
@example([(0, [b"SELECT", b"1"]), (0, [b"BLPOP", b"q", b"0"]), (1, [b"RPUSH", b"q", b"1"]),
          (1, [b"SWAPDB", b"0", b"1"]), (2, [b"BLPOP", b"q", b"0"]), (1, [b"SELECT", b"2"]),
          (1, [b"RPUSH", b"q", b"2"]), (1, [b"MOVE", b"q", b"0"])])
def test_who_waits_in_a_database_is_served_as_redis_serves_them(path, steps):
    beside_redis(Clients(4, open_databases()), path, steps, (b"q",))


def test_who_waits_does_so_in_its_database():
    clients = Clients(3, open_databases(3))
    assert clients.do(0, "SELECT 1", "BLPOP q 0") == OK
    assert clients.do(1, "BLPOP q 0") is None
    clients.do(2, "SELECT 2", "RPUSH q x y")
    assert clients.told == {}
    clients.do(2, "MOVE q 1")
    assert clients.told == {0: popped("q", "x")}
    clients.do(2, "SWAPDB 0 1")
    assert clients.told[1] == popped("q", "y")


# -- one store -----------------------------------------------------------------------------------------------

def test_keys_end_in_every_database_whoever_looks():
    keys = open_databases(3)
    keys.databases.journal = Journal()
    session = Session()
    do(keys, session, "SET a 1 PX 100", "SELECT 2", "SET a 1 PX 100", "SET b 1")
    keys.databases.journal.take()
    keys.databases.sweep(NOW + 100)
    assert [len(one) for one in keys.databases.all] == [0, 0, 1]
    assert keys.databases.journal.take() == [[b"DEL", b"a"], [b"SELECT", b"2"], [b"DEL", b"a"], [b"SELECT", b"0"]]
    # What is over where it is to be moved to is not there, and does not come back when it is replayed.
    do(keys, session, "SELECT 0", "SET b 2", "SELECT 1", "SET b 1 PX 100")
    assert do(keys, session, "SELECT 0", "MOVE b 1", now=NOW + 100)[1] == b":1\r\n"
    again, replaying = open_databases(3), Session()
    for entry in [[b"SELECT", b"2"], [b"SET", b"b", b"1"], [b"SELECT", b"0"], *keys.databases.journal.take()]:
        assert not execute(again, entry, replaying, 0).startswith(b"-")
    assert contents(again) == contents(keys)


def test_versions_are_of_a_key_in_its_database():
    store = EmbeddedStore(open_databases(2))
    front = RespMessages(store, LIMIT)

    def send(*lines: str) -> list[bytes]:
        return ReplyCutter().take(ask(front, store, b"".join(resp.command(line.split()) for line in lines)))

    assert send("SELECT 1", "SET a 1", "DBSIZE") == [OK, OK, b":1\r\n"]
    # The next message begins in 0.
    assert send("DBSIZE", "CLIENT INFO")[0] == b":0\r\n"
    here, there = (int(send(select, "SMT.VERSIONS a")[1].removeprefix(b"*1\r\n:"))
                   for select in ("SELECT 0", "SELECT 1"))
    end = ("MULTI", "PING", "EXEC")
    assert send(f"SMT.WATCH a {here}", "SELECT 1", f"SMT.WATCH a {there}", *end)[-1] == b"*1\r\n+PONG\r\n"
    assert send(f"SMT.WATCH a {there}", *end)[-1] == b"*-1\r\n"
    send("SELECT 1", "SET a 2")
    assert send("SELECT 1", f"SMT.WATCH a {there}", *end)[-1] == b"*-1\r\n"
    assert send(f"SMT.WATCH a {here}", *end)[-1] == b"*1\r\n+PONG\r\n"


# -- kept ----------------------------------------------------------------------------------------------------

class Kept:
    """A store and its file."""

    def __init__(self, path: Path, count: int = 3) -> None:
        self.keys = open_databases(count)
        self.aof = Aof(path, "no", self.keys, growth=0)
        self.store = EmbeddedStore(self.keys, self.aof)
        self.replies: list[bytes] = []

    def turn(self, session: Session, *commands: Command) -> None:
        given = deque(list(args) for args in commands)
        while given:
            self.store.submit(session, given, self.replies.append, LIMIT)
        self.store.turn()

    def rewrite(self) -> None:
        assert self.aof.ask_rewrite()
        self.store.turn()

    def wait(self) -> None:
        until = time.monotonic() + PATIENCE_S
        while self.aof.info()["aof_rewrite_in_progress"]:
            assert time.monotonic() < until
            time.sleep(0.001)
            self.store.turn()
        assert self.aof.info()["aof_last_bgrewrite_status"] == "ok"


def loaded(path: Path, count: int = 3) -> Keyspace:
    keys = open_databases(count)
    Aof(path, "no", keys, growth=0).close()
    return keys


WRITES = st.one_of(
    words(b"SELECT", st.sampled_from([b"0", b"1", b"2"])), words(b"SELECT", st.sampled_from([b"0", b"1", b"2"])),
    words(b"SET", KEYS, b"v"), words(b"RPUSH", KEYS, b"x", b"y"), words(b"LPOP", KEYS), words(b"DEL", KEYS),
    words(b"SET", KEYS, b"v", b"PX", b"100000"), words(b"APPEND", KEYS, b"t"),
    words(b"MOVE", KEYS, st.sampled_from([b"0", b"1", b"2"])),
    words(b"SWAPDB", st.sampled_from([b"0", b"1"]), st.sampled_from([b"1", b"2"])),
    words(st.sampled_from([b"FLUSHDB", b"FLUSHALL"])), words(st.sampled_from([b"MULTI", b"EXEC", b"EXEC"])))


@given(st.lists(st.tuples(st.integers(0, 1), st.lists(WRITES, min_size=1, max_size=6)), min_size=1, max_size=12),
       st.integers(0, 1 << 32))
def test_whatever_is_written_is_there_again_and_a_cut_drops_one_turn(tmp_path_factory, turns, seed):
    rng = random.Random(seed)
    path = tmp_path_factory.mktemp("aof") / "f"
    kept = Kept(path)
    sessions = [Session(), Session()]
    states, sizes = [contents(kept.keys)], [path.stat().st_size]
    for who, commands in turns:
        kept.turn(sessions[who], *commands)
        if path.stat().st_size > sizes[-1]:
            states.append(contents(kept.keys))
            sizes.append(path.stat().st_size)
        assert contents(kept.keys) == states[-1]
    whole = path.read_bytes()
    other = path.with_name("cut")
    for at, (start, end) in enumerate(itertools.pairwise(sizes)):
        for cut in (start, rng.randrange(start, end), end):
            other.write_bytes(whole[:cut])
            assert contents(loaded(other)) == states[at + (cut == end)]
    kept.store.close()


@pytest.mark.parametrize("batch", [1, 60, 1 << 20])
def test_a_file_written_anew_has_all_databases_and_what_came_meanwhile(tmp_path, monkeypatch, batch):
    monkeypatch.setattr(aof_file, "BATCH", batch)
    monkeypatch.setattr("workloads.kv.aof_rewrite.BATCH", batch)
    path = tmp_path / "f"
    kept = Kept(path)
    one, two = Session(), Session()
    for i in range(30):
        kept.turn(one, [b"SELECT", b"%d" % (i % 3)], [b"SET", b"k%d" % i, b"x"], [b"RPUSH", b"l", b"%d" % i])
    kept.rewrite()
    # Small turns, which are joined to one entry: each has begun in database 0.
    for i in range(30):
        kept.turn(one, [b"SELECT", b"%d" % (2 - i % 3)], [b"APPEND", b"tail", b"%d" % i])
        kept.turn(two, [b"RPUSH", b"l", b"two"])
    kept.turn(two, [b"SWAPDB", b"0", b"2"], [b"MOVE", b"k1", b"1"])
    kept.wait()
    kept.turn(one, [b"SET", b"after", b"1"])
    expected = contents(kept.keys)
    kept.store.close()
    assert contents(loaded(path)) == expected
    # And as the server writes it at its start.
    again = Kept(path)
    again.aof._write_anew(again.keys)
    again.store.close()
    assert contents(loaded(path)) == expected


def test_a_file_of_more_databases_than_there_are_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "f"
    for line in ("SET a 1", "MOVE b 2", "SWAPDB 0 2"):
        kept = Kept(path)
        kept.turn(Session(), [b"SET", b"b", b"1"])
        before = path.stat().st_size
        kept.turn(Session(), *([[b"SELECT", b"2"]] if line == "SET a 1" else []), line.encode().split())
        kept.store.close()
        whole = path.read_bytes()
        with pytest.raises(ConfigError, match=rf"offset {before} is about a database above 1: .*--databases"):
            loaded(path, 2)
        assert path.read_bytes() == whole
        assert len(loaded(path, 3).databases.all) == 3
        path.unlink()


# -- clients -------------------------------------------------------------------------------------------------

@pytest.fixture(params=[in_messages, on_streams])
def connect(request, monkeypatch) -> Iterator[Connect]:
    with request.param(monkeypatch) as found:
        yield found


def test_the_client_stays_in_its_database_over_every_transport(connect: Connect):
    with connect() as one, connect() as two:
        one.select(1)
        assert one.command("SET", "a", 1) == b"OK"
        assert two.command("DBSIZE") == 0
        assert one.pipeline([("INCR", "a"), ("DBSIZE",)]) == [2, 1]
        with pytest.raises(KvError, match="DB index is out of range"):
            one.select(16)
        assert one.command("GET", "a") == b"2"
        # A watch is of a key where it was.
        for change, done in ((two.command, True), (one.command, False)):
            one.watch("a")
            one.select(0)
            one.watch("b")
            change("SET", "elsewhere", 1)
            one.select(1)
            if not done:
                one.command("SET", "a", 2)
            one.select(2)
            assert one.transaction([("SET", "t", 1), ("DBSIZE",)]) == ([b"OK", 1] if done else None)
            one.select(1)


def test_the_prompt_selects_for_what_follows(connect: Connect, capsys):
    with connect() as client:
        shell = Shell(client, argparse.Namespace(json=False, raw=True))
        for line in (b"SELECT 1", b"SET a 1", b"select 99", b"MULTI", b"GET a", b"EXEC", b"SELECT 0", b"EXISTS a",
                     b"SELECT x"):
            shell.line(line)
    assert capsys.readouterr().out.splitlines() == [
        "OK", "OK", "ERR DB index is out of range", "OK", "QUEUED", "1", "OK", "0",
        "ERR value is not an integer or out of range"]


def test_programs_use_the_database_they_name():
    redis = pytest.importorskip("redis")
    with serving("--databases", "4") as server, server.client() as raw:
        assert raw.one("CONFIG GET databases") == b"*2\r\n$9\r\ndatabases\r\n$1\r\n4\r\n"
        client = redis.Redis(port=server.port, db=1)
        assert client.ping()
        client.set("a", 1)
        assert cli(server, "-n", "1", "GET", "a") == "1"
        assert cli(server, "GET", "a") == ""
        assert client.info("keyspace") == {"db1": {"keys": 1, "expires": 0, "avg_ttl": 0}}
        assert client.client_info()["db"] in {1, "1"}
        assert {entry["db"] for entry in client.client_list()} == {"0", "1"}
        assert raw.one("SELECT 4").startswith(b"-ERR DB index is out of range")
        with pytest.raises(redis.ResponseError, match="DB index is out of range"):
            redis.Redis(port=server.port, db=4).ping()
        for words_, code, said in ((["--db", "1", "GET", "a"], 0, "1"), (["GET", "a"], 0, ""),
                                   (["--db", "1", "DBSIZE"], 0, "1"), (["--db", "4", "DBSIZE"], 1, "")):
            assert smtnet_kv(server.port, *words_) == (code, said), words_
        client.close()


def smtnet_kv(port: int, *words_: str) -> tuple[int, str]:
    """Its exit code, and what it prints."""
    run = subprocess.run([sys.executable, "-m", "workloads", "kv", "--transport", "tcp", "--peer",
                          f"127.0.0.1:{port}", "--raw", *words_], capture_output=True, text=True, check=False,
                         timeout=PATIENCE_S)
    assert "Traceback" not in run.stderr
    if run.returncode:
        assert "DB index is out of range" in run.stderr
    return run.returncode, run.stdout.strip()


@pytest.mark.parametrize("text", ["0", "-1", "x", "10001", "1.5", "", "\u0661", "1" * 5000])
def test_a_number_of_databases_that_makes_no_sense_is_a_usage_error(text, capsys):
    with pytest.raises(SystemExit) as ended:
        cli_main(["serve", "kv", "--transport", "tcp", "--addr", "127.0.0.1:1", f"--databases={text}"])
    assert ended.value.code == 2
    assert "is no number from 1 to 10000" in capsys.readouterr().err.splitlines()[-1]


def test_databases_of_a_redis_behind_it_are_its_own_business():
    assert "--databases: for --store embedded only" in refused("--store", "redis:1.2.3.4:5", "--databases", "4")


# -- a real Redis behind it ----------------------------------------------------------------------------------

def test_clients_in_front_of_redis_have_their_databases(path):
    with RawClient(path) as direct, serving("--store", f"redis:unix:{path}") as server, server.client() as one, \
            server.client() as two:
        direct.one("FLUSHALL")
        assert one.one("SELECT 1") == OK
        assert one.one("SET a 1") == OK
        assert two.one("DBSIZE") == b":0\r\n"
        assert direct.send([b"SELECT", b"1"], [b"GET", b"a"])[1] == b"$1\r\n1\r\n"
        assert b" db=1 " in one.one("CLIENT INFO")
        # A change between commands keeps their order.
        commands = [c for i in range(60) for c in ([b"SELECT", b"%d" % (i % 3)], [b"SET", b"v", b"%d" % i],
                                                   [b"MOVE", b"v", b"5"], [b"SELECT", b"5"], [b"GETDEL", b"v"])]
        assert one.send(*commands)[4::5] == [resp.bulk(b"%d" % i) for i in range(60)]
        # With a connection of its own.
        for line in ("SELECT 1", "WATCH a", "SELECT 2", "SET a 2", "MULTI", "GET a"):
            assert not one.one(line).startswith(b"-"), line
        assert one.one("EXEC") == b"*1\r\n$1\r\n2\r\n"
        one.one("SELECT 1")
        one.one("WATCH a")
        one.one("SELECT 0")
        two.one("SELECT 1")
        two.one("SET a 3")
        one.one("MULTI")
        assert one.one("SELECT 1").startswith(b"-ERR SELECT is not possible within a transaction")
        assert one.one("EXEC").startswith(b"-EXECABORT")
        assert one.one("BLPOP none 0.01") == b"*-1\r\n"
        assert one.one("RESET") == b"+RESET\r\n"
        assert [one.one("EXISTS a"), two.one("EXISTS a")] == [b":0\r\n", b":1\r\n"]
        assert one.one("SELECT 16") == direct.one("SELECT 16")
        assert one.one("CONFIG GET databases") == direct.one("CONFIG GET databases")


def test_a_message_in_front_of_redis_begins_in_0(path):
    with RawClient(path) as direct:
        direct.one("FLUSHALL")
        store = RedisStore(f"redis:unix:{path}")
        front = RespMessages(store, LIMIT)
        message = b"".join(resp.command(line.split()) for line in ("SET z 1", "SELECT 3", "SET a 1", "DBSIZE"))
        assert ask(front, store, message) == OK * 3 + b":1\r\n"
        assert ask(front, store, resp.command(["EXISTS", "z", "a"])) == b":1\r\n"
        store.close()
