"""Clients that wait for a key: who is served, in which order, and what becomes of those that leave."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.kv_commands import Command, some, words
from tests.redis_server import PATIENCE, RawClient, redis_server, version_of
from workloads.kv.backend import EmbeddedStore
from workloads.kv.store import Keyspace

LIMIT = 1_000_000
NULL = b"*-1\r\n"


class Clients:
    """Clients of an embedded store, and what each was told last."""

    def __init__(self, count: int, keys: Keyspace | None = None) -> None:
        self.store = EmbeddedStore(Keyspace() if keys is None else keys)
        self.sessions = []
        for _ in range(count):
            session = self.store.facts.connect("peer", "local")
            session.patient = True
            self.sessions.append(session)
        self.told: dict[int, bytes] = {}

    def do(self, who: int, *commands: str | Command) -> bytes | None:
        """The replies; None: it waits now. Whoever else was told something meanwhile is in ``told``."""
        given = deque([c.split() if isinstance(c, bytes) else c.encode().split() if isinstance(c, str) else list(c)
                       for c in commands])
        found = b""
        while given and self.sessions[who].waiting is None:
            replies = self.store.submit(self.sessions[who], given, lambda r: self._tell(who, r), LIMIT)
            if replies is None:
                assert self.sessions[who].waiting is not None
                self.store.turn()
                return found or None
            found += replies
        self.store.turn()
        return found

    def _tell(self, who: int, reply: bytes) -> None:
        assert who not in self.told
        self.told[who] = reply


def popped(key: str, value: str) -> bytes:
    return b"*2\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(key), key.encode(), len(value), value.encode())


def test_who_waited_longest_is_served_first_and_each_gets_one():
    clients = Clients(4)
    for who in (2, 0, 1):
        assert clients.do(who, "BLPOP q r 0") is None
    assert clients.do(3, "RPUSH q a b") == b":2\r\n"
    assert clients.told == {2: popped("q", "a"), 0: popped("q", "b")}
    assert clients.do(3, "EXISTS q") == b":0\r\n"
    assert clients.do(3, "RPUSH r c d") == b":2\r\n"
    assert clients.told[1] == popped("r", "c")
    assert clients.do(3, "LRANGE r 0 -1") == b"*1\r\n$1\r\nd\r\n"


def test_what_came_before_a_command_that_waits_is_answered_first():
    clients = Clients(2)
    assert clients.do(0, "SET a 1", "GET a", "BLPOP q 0", "GET a") == b"+OK\r\n$1\r\n1\r\n"
    assert clients.told == {}
    assert clients.store.facts.commands == 3
    clients.do(1, "RPUSH q x")
    assert clients.told == {0: popped("q", "x")}


def test_a_time_that_is_over_is_told_and_wakes_the_loop(monkeypatch):
    clients = Clients(3)
    now = time.monotonic_ns()
    monkeypatch.setattr("time.monotonic_ns", lambda: now)
    clients.do(0, "BLPOP q 0.25")
    clients.do(1, "BRPOPLPUSH q r 0.1")
    clients.do(2, "BLPOP q 0")
    assert clients.store.next_wake() == now + 100_000_000
    now += 99_999_999
    clients.store.turn()
    assert clients.told == {}
    now += 1
    clients.store.turn()
    assert clients.told == {1: b"$-1\r\n"}
    now += 150_000_000
    clients.store.turn()
    assert clients.told == {1: b"$-1\r\n", 0: NULL}
    assert clients.store.next_wake() is None
    # Neither of them takes anything any more.
    clients.do(1, "RPUSH q x")
    assert clients.told[2] == popped("q", "x")


def test_who_leaves_takes_nothing():
    clients = Clients(3)
    clients.do(0, "BLPOP q 9")
    clients.do(1, "BLPOP q 9")
    clients.store.forget(clients.sessions[0])
    clients.do(2, "RPUSH q x")
    assert clients.told == {1: popped("q", "x")}
    assert clients.store.next_wake() is None
    assert clients.store.facts.blocked() == 0


def test_deadlines_of_those_who_were_served_are_not_kept():
    clients = Clients(2)
    for _ in range(1000):
        clients.do(0, "BLPOP q 1000")
        clients.do(1, "RPUSH q x")
        clients.told.clear()
    assert len(clients.store._waiting._deadlines) < 100


# -- beside Redis --------------------------------------------------------------------------------------------

KEYS = st.sampled_from([b"q", b"r"])
STEP = st.one_of(
    words(st.sampled_from([b"BLPOP", b"BRPOP", b"BLPOP", b"BZPOPMIN"]), some(KEYS), b"0"),
    words(b"BRPOPLPUSH", KEYS, KEYS, b"0"), words(b"BLMOVE", KEYS, KEYS, b"LEFT", b"LEFT", b"0"),
    words(st.sampled_from([b"LPUSH", b"RPUSH"]), KEYS, some(st.sampled_from([b"1", b"2", b"3"]))),
    words(st.sampled_from([b"LPOP", b"DEL", b"TYPE"]), KEYS), words(b"ZADD", KEYS, b"1", b"m", b"2", b"n"),
    words(b"RENAME", KEYS, KEYS), words(b"SET", KEYS, b"v"),
    words(st.sampled_from([b"MULTI", b"EXEC", b"EXEC", b"FLUSHALL"])))


@pytest.fixture(scope="module")
def path() -> Iterator[str]:
    with redis_server() as (found, _pid):
        with RawClient(str(found)) as client:
            version = version_of(client)
        if version >= (7, 2):
            pytest.skip(f"Redis {'.'.join(map(str, version))}: in later ones than 7.0 (seen: 8.0.2), who waits "
                        "for several keys gets the first of them that has something in the end, not the one that "
                        "had it first")
        yield str(found)


@given(st.lists(st.tuples(st.integers(0, 3), STEP), min_size=4, max_size=40))
@example([(0, [b"BLPOP", b"q", b"r", b"0"]), (1, [b"BRPOPLPUSH", b"r", b"q", b"0"]), (2, [b"MULTI"]),
          (2, [b"RPUSH", b"r", b"1"]), (2, [b"RPUSH", b"q", b"2"]), (2, [b"EXEC"])])
@example([(0, [b"BLMOVE", b"q", b"r", b"LEFT", b"LEFT", b"0"]), (1, [b"BLPOP", b"q", b"0"]),
          (2, [b"SET", b"r", b"v"]), (2, [b"RPUSH", b"q", b"1"])])
def test_any_clients_that_wait_are_served_as_redis_serves_them(path, steps):
    beside_redis(Clients(4), path, steps, (b"q", b"r"))


def beside_redis(ours: Clients, path: str, steps: list[tuple[int, Command]], keys: tuple[bytes, ...]) -> None:
    """The same by four clients of each: who is told what, and what there is at the end."""
    with RawClient(path) as admin, RawClient(path) as a, RawClient(path) as b, RawClient(path) as c, \
            RawClient(path) as d:
        theirs = [a, b, c, d]
        admin.one("FLUSHALL")
        waiting: set[int] = set()
        for who, args in steps:
            if who in waiting:
                continue
            reply = ours.do(who, args)
            theirs[who].sock.sendall(_encoded(args))
            if reply is None:
                waiting.add(who)
            else:
                assert theirs[who].replies(1) == [reply], args
            for served, told in ours.told.items():
                assert theirs[served].replies(1) == [told], (served, args)
                waiting.discard(served)
            ours.told.clear()
            _await_blocked(admin, len(waiting))
        for key in keys:
            for args in ([b"TYPE", key], [b"LRANGE", key, b"0", b"-1"]):
                sender = next((i for i in range(4) if i not in waiting), None)
                if sender is not None:
                    assert ours.do(sender, args) == theirs[sender].send(args)[0]


def _encoded(args: Command) -> bytes:
    return b"*%d\r\n" % len(args) + b"".join(b"$%d\r\n%b\r\n" % (len(arg), arg) for arg in args)


def _await_blocked(admin: RawClient, wanted: int) -> None:
    """Until Redis says that so many clients wait."""
    end = time.monotonic() + PATIENCE
    found: Any = None
    while found != wanted:
        assert time.monotonic() < end, (found, wanted)
        info = admin.one("INFO clients")
        found = int(info.split(b"blocked_clients:")[1].split(b"\r\n")[0])
