"""Transactions in the embedded store: what invalidates WATCH, what a message is, what is bounded, what is kept."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

import pytest

from tests.kv_commands import Command
from workloads.kv import commands_transactions, resp, store
from workloads.kv.aof import Aof
from workloads.kv.arguments import Session
from workloads.kv.backend import EmbeddedStore
from workloads.kv.commands import COMMANDS, execute
from workloads.kv.databases import Journal
from workloads.kv.resp import ReplyCutter
from workloads.kv.server import RespMessages
from workloads.kv.store import Keyspace, open_databases

NOW = 1_700_000_000_000
LIMIT = 1_000_000
NULL = b"*-1\r\n"

#: For every command that writes: what is there before, and a use of it that changes the key ``k``.
CHANGES: dict[str, tuple[list[str], str]] = {
    "set": ([], "SET k v"), "setnx": ([], "SETNX k v"), "setex": ([], "SETEX k 9 v"),
    "psetex": ([], "PSETEX k 9999 v"), "getset": (["SET k v"], "GETSET k v"),
    "getdel": (["SET k v"], "GETDEL k"), "getex": (["SET k v"], "GETEX k EX 9"), "mset": ([], "MSET a 1 k 2"),
    "msetnx": ([], "MSETNX a 1 k 2"), "append": ([], "APPEND k v"), "setrange": ([], "SETRANGE k 2 v"),
    "incr": ([], "INCR k"), "decr": ([], "DECR k"), "incrby": ([], "INCRBY k 2"), "decrby": ([], "DECRBY k 2"),
    "incrbyfloat": ([], "INCRBYFLOAT k 0.1"), "del": (["SET k v"], "DEL a k"),
    "unlink": (["SET k v"], "UNLINK a k"), "rename": (["SET k v"], "RENAME k a"),
    "renamenx": (["SET a v"], "RENAMENX a k"), "expire": (["SET k v"], "EXPIRE k 9"),
    "pexpire": (["SET k v"], "PEXPIRE k -1"), "expireat": (["SET k v"], "EXPIREAT k 9999999999"),
    "pexpireat": (["SET k v"], "PEXPIREAT k 9999999999999"), "persist": (["SET k v EX 9"], "PERSIST k"),
    "flushall": (["SET k v"], "FLUSHALL"), "flushdb": (["SET k v"], "FLUSHDB"),
    "move": (["SET k v"], "MOVE k 1"), "swapdb": (["SET k v"], "SWAPDB 1 0"),
    "hset": (["HSET k f v"], "HSET k f v"), "hmset": (["HSET k f v"], "HMSET k g v"),
    "hsetnx": ([], "HSETNX k f v"), "hdel": (["HSET k f v g w"], "HDEL k f"), "hincrby": ([], "HINCRBY k f 1"),
    "hincrbyfloat": ([], "HINCRBYFLOAT k f 0.1"), "lpush": (["LPUSH k a"], "LPUSH k b c"),
    "rpush": ([], "RPUSH k b c"), "lpushx": (["LPUSH k a"], "LPUSHX k b c"),
    "rpushx": (["LPUSH k a"], "RPUSHX k b"), "lpop": (["RPUSH k a b c"], "LPOP k 2"),
    "rpop": (["RPUSH k a b"], "RPOP k"), "lset": (["RPUSH k a b"], "LSET k 1 c"),
    "ltrim": (["RPUSH k a b c"], "LTRIM k 1 1"), "lrem": (["RPUSH k a b a"], "LREM k -1 a"),
    "linsert": (["RPUSH k a b"], "LINSERT k AFTER a c"), "lmove": (["RPUSH k a b"], "LMOVE k l RIGHT LEFT"),
    "rpoplpush": (["RPUSH l a b"], "RPOPLPUSH l k"), "blpop": (["RPUSH k a b"], "BLPOP a k 0"),
    "brpop": (["RPUSH k a b"], "BRPOP k 0"), "blmove": (["RPUSH l a b"], "BLMOVE l k LEFT LEFT 0"),
    "brpoplpush": (["RPUSH k a b"], "BRPOPLPUSH k k 0"), "sadd": (["SADD k a"], "SADD k a b"),
    "srem": (["SADD k a b c"], "SREM k a z"), "spop": (["SADD k a b c d"], "SPOP k 2"),
    "smove": (["SADD l a b"], "SMOVE l k a"), "zadd": (["ZADD k 1 a"], "ZADD k 2 a"),
    "zincrby": ([], "ZINCRBY k 0.1 a"), "zrem": (["ZADD k 1 a 2 b"], "ZREM k a"),
    "zpopmin": (["ZADD k 1 a 2 b"], "ZPOPMIN k"), "zpopmax": (["ZADD k 1 a 2 b"], "ZPOPMAX k 5"),
    "bzpopmin": (["ZADD k 1 a 2 b"], "BZPOPMIN k 0"), "bzpopmax": (["ZADD k 1 a 2 b"], "BZPOPMAX a k 0"),
    "zremrangebyrank": (["ZADD k 1 a 2 b"], "ZREMRANGEBYRANK k 0 0"),
    "zremrangebyscore": (["ZADD k 1 a 2 b"], "ZREMRANGEBYSCORE k 2 5"),
    "zremrangebylex": (["ZADD k 1 a 1 b"], "ZREMRANGEBYLEX k - (b"),
}


def do(keys: Keyspace, line: str, session: Session | None = None, now: int = NOW) -> bytes:
    return execute(keys, line.encode().split(), session or Session(), now)


def contents(keys: Keyspace) -> list[list[bytes]]:
    """All there is, keys in any order."""
    return sorted([b"%d" % number, *entry] for number, entry in keys.databases.snapshot())


def test_every_write_has_its_example():
    # A script changes what its commands change.
    assert set(CHANGES) == {name for name, entry in COMMANDS.items() if entry.write} - {"eval", "evalsha"}


@pytest.mark.parametrize("name", CHANGES)
def test_every_write_invalidates_a_watch_and_is_replayed_to_the_same(name):
    before, line = CHANGES[name]
    keys, watching = open_databases(2), Session()
    keys.databases.journal = Journal()
    for earlier in before:
        do(keys, earlier)
    assert do(keys, "WATCH k other", watching) == b"+OK\r\n"
    # Nothing has changed yet; nor by somebody who only looks, or changes another key.
    assert not commands_transactions.changed_since(keys, watching)
    do(keys, "TYPE k")
    do(keys, "SET elsewhere 1")
    assert not commands_transactions.changed_since(keys, watching)
    assert not do(keys, line).startswith(b"-"), line
    assert do(keys, "MULTI", watching) == b"+OK\r\n"
    do(keys, "SET done 1", watching)
    assert do(keys, "EXEC", watching) == NULL
    assert keys.get(b"done") is None
    again, replaying = open_databases(2), Session()
    for entry in keys.databases.journal:
        assert not execute(again, entry, replaying, 0).startswith(b"-"), entry
    again.databases.now = NOW
    assert contents(again) == contents(keys)


@pytest.mark.parametrize(("version", "null"), [(2, NULL), (3, b"_\r\n")])
def test_the_end_of_a_key_invalidates_a_watch_whoever_notices_it(version, null):
    for notices in (lambda keys: None, lambda keys: do(keys, "GET k", now=NOW + 100),
                    lambda keys: keys.sweep(NOW + 100)):
        keys, session = Keyspace(), Session(version=version)
        do(keys, "SET k v PX 100")
        do(keys, "WATCH k", session)
        notices(keys)
        do(keys, "MULTI", session, NOW + 100)
        assert do(keys, "EXEC", session, NOW + 100) == null
    # What had ended before was not there when the watch began.
    keys, session = Keyspace(), Session()
    do(keys, "SET k v PX 100")
    for line in ("WATCH k", "GET k", "MULTI"):
        do(keys, line, session, NOW + 100)
    assert do(keys, "EXEC", session, NOW + 100) == b"*0\r\n"


def test_a_watch_ends_with_exec_discard_unwatch_and_reset():
    for end in (["MULTI", "EXEC"], ["MULTI", "DISCARD"], ["UNWATCH"], ["RESET"]):
        keys, session = Keyspace(), Session()
        for line in ("WATCH k", *end):
            do(keys, line, session)
        do(keys, "SET k v")
        do(keys, "MULTI", session)
        assert do(keys, "EXEC", session) == b"*0\r\n", end


def test_of_too_many_watched_keys_the_first_count_as_changed(monkeypatch):
    monkeypatch.setattr(store, "MAX_WATCHED", 10)
    keys, session, other = Keyspace(), Session(), Session()
    do(keys, "WATCH k", session)
    do(keys, "WATCH mine", other)
    for i in range(9):
        do(keys, f"SMT.VERSIONS k{i}")
    for who, reply in ((session, NULL), (other, b"*0\r\n")):
        do(keys, "MULTI", who)
        assert do(keys, "EXEC", who) == reply


def test_a_client_cannot_watch_or_queue_without_end(monkeypatch):
    monkeypatch.setattr(commands_transactions, "MAX_WATCHED", 10)
    monkeypatch.setattr(commands_transactions, "MAX_QUEUE", 1000)
    keys, session = Keyspace(), Session()
    assert do(keys, "WATCH a b c d e f g h i j", session) == b"+OK\r\n"
    for line in ("WATCH k", "SMT.WATCH k 1", "SMT.VERSIONS a b c d e f g h i j k"):
        assert do(keys, line, session).startswith(b"-ERR more than 10 keys"), line
    do(keys, "MULTI", session)
    assert do(keys, "SET k " + "x" * 500, session) == b"+QUEUED\r\n"
    assert do(keys, "SET k " + "x" * 500, session).startswith(b"-ERR a transaction is at most 1000 bytes")
    assert do(keys, "EXEC", session).startswith(b"-EXECABORT")
    assert keys.get(b"k") is None


def test_no_reply_is_a_member_again_and_again_without_end():
    keys = Keyspace()
    do(keys, "SADD s a " + "x" * 1000)
    assert do(keys, "SRANDMEMBER s -100").startswith(b"*100\r\n")
    assert do(keys, "SRANDMEMBER s -100000").startswith(b"-ERR the reply would be more than")
    assert do(keys, "SRANDMEMBER s -9223372036854775807").startswith(b"-ERR value is out of range")


def test_replies_of_a_transaction_are_bounded_and_its_writes_done(monkeypatch):
    monkeypatch.setattr(commands_transactions, "MAX_REPLY", 10_000)
    keys, session = Keyspace(), Session()
    do(keys, "SET k " + "x" * 6000)
    do(keys, "MULTI", session)
    for _ in range(100):
        do(keys, "GET k", session)
    do(keys, "SET done 1", session)
    reply = do(keys, "EXEC", session)
    assert len(reply) < 40_000
    assert reply.count(b"x" * 6000) == 2
    assert reply.count(b"its reply is left out") == 98
    assert reply.endswith(b"+OK\r\n")
    assert keys.get(b"done") == b"1"


# -- in messages ---------------------------------------------------------------------------------------------

class Messages:
    """A store that is asked by messages."""

    def __init__(self) -> None:
        self.store = EmbeddedStore(Keyspace())
        self.front = RespMessages(self.store, LIMIT)

    def ask(self, *lines: str) -> list[bytes]:
        """The replies to a message of these commands."""
        request = Request(b"".join(resp.command(line.split()) for line in lines))
        self.front.handle(request)
        self.store.turn()
        (reply,) = request.replies
        return ReplyCutter().take(reply)


class Request:
    """As a message transport gives it."""

    longest = LIMIT

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.replies: list[bytes] = []

    def reply(self, data: bytes) -> bool:
        self.replies.append(data)
        return True


def test_a_transaction_is_one_message():
    messages = Messages()
    assert messages.ask("MULTI", "INCR a", "LPUSH l x", "INCR l", "EXEC") == [
        b"+OK\r\n", *[b"+QUEUED\r\n"] * 3,
        b"*3\r\n:1\r\n:1\r\n-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"]
    assert messages.ask("GET a") == [b"$1\r\n1\r\n"]
    assert messages.ask("MULTI", "INCR a", "nonsense", "EXEC")[-1].startswith(b"-EXECABORT")
    assert messages.ask("SET b 1", "MULTI", "INCR a", "DISCARD", "GET a")[-1] == b"$1\r\n1\r\n"
    # What would wait says at once that there is nothing.
    assert messages.ask("BLPOP none 0", "LLEN l") == [NULL, b":1\r\n"]


@pytest.mark.parametrize("lines", [["MULTI"], ["SET c 1", "multi", "INCR a"],
                                   ["MULTI", "INCR a", "EXEC", "MULTI", "INCR a"]])
def test_a_message_with_half_a_transaction_is_refused_as_a_whole(lines):
    messages = Messages()
    replies = messages.ask(*lines)
    assert len(replies) == len(lines)
    assert all(reply.startswith(b"-ERR MULTI without EXEC: a transaction is one message") for reply in replies)
    assert messages.ask("DBSIZE") == [b":0\r\n"]


def test_a_watch_spans_messages_by_versions():
    messages = Messages()

    def version(key: str) -> int:
        ((reply,),) = [messages.ask(f"SMT.VERSIONS {key}")]
        return int(reply.removeprefix(b"*1\r\n:"))

    watched = version("a")
    assert version("a") == watched
    transaction = ("MULTI", "SET done 1", "EXEC")
    assert messages.ask(f"SMT.WATCH a {watched}", *transaction)[-1] == b"*1\r\n+OK\r\n"
    # It is still the same: nobody has changed it.
    assert messages.ask(f"SMT.WATCH a {watched}", *transaction)[-1] == b"*1\r\n+OK\r\n"
    messages.ask("SET a 1")
    assert messages.ask(f"SMT.WATCH a {watched}", *transaction)[-1] == NULL
    newer = version("a")
    # Both of two demands must hold, and each needs its version.
    assert messages.ask(f"SMT.WATCH a {newer} a {watched}", *transaction)[-1] == NULL
    assert messages.ask(f"SMT.WATCH a {newer} a {newer}", *transaction)[-1] == b"*1\r\n+OK\r\n"
    assert messages.ask("SMT.WATCH a 1 b")[0].startswith(b"-ERR wrong number")
    assert messages.ask("SMT.WATCH a x")[0].startswith(b"-ERR value is not an integer")
    # Another process, or this one started again, knows nothing of these versions.
    assert Messages().ask(f"SMT.WATCH a {newer}", *transaction)[-1] == NULL


# -- kept ----------------------------------------------------------------------------------------------------

def test_a_transaction_is_kept_as_a_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "f"
    keys = Keyspace()
    kept = EmbeddedStore(keys, Aof(path, "no", keys))
    replies: list[bytes] = []
    session = kept.facts.connect("a", "b")
    commands: list[Command] = [[b"SET", b"before", b"1"]]
    sizes = []
    pushes = [[b"RPUSH", b"l", b"%d" % i] for i in range(20)]
    for turn in (commands, [[b"MULTI"], *pushes, [b"SPOP", b"none"],
                            [b"SADD", b"s", b"a", b"b", b"c"], [b"SPOP", b"s"], [b"BLPOP", b"l", b"0"],
                            [b"EXEC"]]):
        assert kept.submit(session, deque(turn), replies.append, LIMIT) is None
        kept.turn()
        sizes.append(path.stat().st_size)
    kept.close()
    assert b"*2\r\n$1\r\nl\r\n$1\r\n0\r\n" in replies[1]
    whole = path.read_bytes()
    for cut in range(sizes[0], len(whole) + 1):
        path.write_bytes(whole[:cut])
        again = Keyspace()
        Aof(path, "no", again).close()
        again.databases.now = time.time_ns() // 1_000_000
        if cut == len(whole):
            assert contents(again) == contents(keys)
        else:
            assert again.keys() == [b"before"]
