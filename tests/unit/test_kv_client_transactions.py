"""Transactions as the client and its shell offer them: the same over streams and in messages."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from smtstack.socket import Address
from tests.redis_server import PATIENCE
from tests.unit.test_kv_server import serving
from workloads.commands.kv import Shell
from workloads.kv import client as kv_client
from workloads.kv.backend import EmbeddedStore
from workloads.kv.client import KvClient, KvError, is_read
from workloads.kv.server import RespMessages
from workloads.kv.store import open_databases
from workloads.transports import Settings
from workloads.transports.contract import Call, Caller

LIMIT = 1_000_000


class InProcess(Caller):
    """As a message transport, without the way between."""

    def __init__(self, front: RespMessages, store: EmbeddedStore) -> None:
        super().__init__([("10.0.0.2", 6001)])
        self._front = front
        self._store = store
        self.sent: list[bytes] = []

    def begin(self, call: Call) -> None:
        self.sent.append(call.data)
        self._front.handle(_Incoming(self, call))
        self._store.turn()

    def prepare(self, concurrency: int) -> None:
        assert concurrency == 1

    def abort(self, call: Call) -> None:
        raise AssertionError

    def drive(self, timeout_s: float) -> None:
        assert self.finished

    def linger(self, timeout_s: float) -> None:
        raise AssertionError

    def fileno(self) -> int:
        raise AssertionError

    def next_wake(self) -> int | None:
        return None

    def poll(self) -> None:
        raise AssertionError

    def counters(self) -> dict[str, int]:
        return {}

    def drops(self) -> tuple[int, int]:
        return 0, 0

    def take_late_ns(self) -> int:
        return 0

    def close(self) -> None:
        self.finished.clear()


class _Incoming:
    longest = LIMIT

    def __init__(self, caller: InProcess, call: Call) -> None:
        self._caller = caller
        self._call = call
        self.data = call.data
        self.longest = LIMIT

    def reply(self, data: bytes) -> bool:
        self._call.response = data
        self._caller.finished.append(self._call)
        return True


Connect = Callable[[], KvClient]


@contextmanager
def in_messages(monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    store = EmbeddedStore(open_databases())
    front = RespMessages(store, LIMIT)
    monkeypatch.setattr(kv_client, "open_caller", lambda *_args: InProcess(front, store))
    yield lambda: KvClient(Settings("smt"), ("10.0.0.2", 6001), PATIENCE)


@contextmanager
def on_streams(_monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    with serving() as server:
        address: Address = ("127.0.0.1", server.port)
        yield lambda: KvClient(Settings("tcp"), address, PATIENCE)


@pytest.fixture(params=[in_messages, on_streams])
def connect(request, monkeypatch) -> Iterator[Connect]:
    with request.param(monkeypatch) as found:
        yield found


def test_a_transaction_is_done_as_one_or_not_at_all(connect: Connect):
    with connect() as client:
        replies = client.transaction([("SET", "a", 1), ("INCR", "a"), ("LPUSH", "a", "x")])
        assert replies is not None
        assert replies[:2] == [b"OK", 2]
        assert kv_client.is_error(replies[2])
        with pytest.raises(KvError, match=r"EXECABORT.*unknown command 'NOSUCH'"):
            client.transaction([("SET", "a", 9), ("NOSUCH",)])
        assert client.command("GET", "a") == b"2"
        assert client.transaction([]) == []


def test_a_watch_spans_calls(connect: Connect):
    with connect() as one, connect() as two:
        one.command("SET", "a", 1)
        one.watch("a", "b")
        value = int(one.command("GET", "a"))
        assert one.transaction([("SET", "a", value + 1)]) == [b"OK"]
        # It held for that one.
        two.command("SET", "a", 7)
        assert one.transaction([("INCR", "a")]) == [8]
        for change in (("SET", "b", 1), ("DEL", "b"), ("INCR", "a")):
            one.watch("a")
            one.watch("b")
            two.command(*change)
            assert one.transaction([("SET", "a", "lost")]) is None, change
        one.watch("a")
        two.command("INCR", "a")
        one.unwatch()
        assert one.transaction([("INCR", "a")]) == [11]


def test_a_watch_that_a_lost_connection_took_with_it_is_no_success():
    with serving() as server, KvClient(Settings("tcp"), ("127.0.0.1", server.port), PATIENCE) as client:
        client.watch("a")
        stream = client._connection
        client._caller._lose(stream, "for a test")  # type: ignore[attr-defined]
        assert client.transaction([("SET", "a", 1)]) is None
        assert client.command("GET", "a") is None
        # Watched on two connections is watched on none.
        client.watch("a")
        client._caller._lose(client._connection, "for a test")  # type: ignore[attr-defined]
        client.watch("b")
        assert client.transaction([("SET", "a", 1)]) is None
        assert client.transaction([("SET", "a", 1)]) == [b"OK"]


def test_in_messages_a_transaction_is_one_of_them(monkeypatch):
    with in_messages(monkeypatch) as connect, connect() as client:
        client.watch("a")
        client.transaction([("SET", "a", 1), ("GET", "a")])
        caller: Any = client._caller
        assert len(caller.sent) == 2
        assert caller.sent[1].count(b"SMT.WATCH") == caller.sent[1].count(b"EXEC") == 1


def test_nothing_of_a_transaction_is_sent_twice():
    assert not any(is_read([name]) for name in ("MULTI", "EXEC", "WATCH", "SMT.WATCH", "BLPOP", "GETDEL", "GETEX",
                                                "SPOP"))
    assert all(is_read([name]) for name in ("SMT.VERSIONS", "LRANGE", "SMEMBERS", "ZRANK", "get"))


def lines(connect: Connect, capsys: pytest.CaptureFixture[str], *typed: str) -> list[str]:
    """What the shell says to lines that people type."""
    with connect() as client:
        shell = Shell(client, argparse.Namespace(json=False, raw=True))
        for line in typed:
            shell.line(line.encode())
    return capsys.readouterr().out.splitlines()


def test_the_shell_keeps_a_transaction_until_it_is_whole(connect: Connect, capsys):
    assert lines(connect, capsys, "MULTI", "SET a 1", "INCR a", "EXEC", "GET a") == [
        "OK", "QUEUED", "QUEUED", "OK", "2", "2"]
    assert lines(connect, capsys, "MULTI", "SET a 9", "DISCARD", "GET a") == ["OK", "QUEUED", "OK", "2"]
    said = lines(connect, capsys, "multi", "SET a 9", "NOSUCH", "exec", "GET a")
    assert said[3].startswith("EXECABORT")
    assert "NOSUCH" in said[3]
    assert said[4] == "2"
    # Whoever changes it, the client itself included.
    assert lines(connect, capsys, "WATCH a", "SET a 3", "MULTI", "GET a", "EXEC") == [
        "OK", "OK", "OK", "QUEUED", ""]
    assert lines(connect, capsys, "WATCH a", "UNWATCH", "SET a 3", "MULTI", "GET a", "EXEC")[-1] == "3"
    assert lines(connect, capsys, "EXEC", "DISCARD", "MULTI x", "WATCH", "MULTI", "MULTI", "WATCH a") == [
        "ERR EXEC without MULTI", "ERR DISCARD without MULTI", "ERR wrong number of arguments for 'multi' command",
        "ERR wrong number of arguments for 'watch' command", "OK", "ERR MULTI calls can not be nested",
        "ERR WATCH inside MULTI is not allowed"]
