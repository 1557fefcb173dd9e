"""The key-value client: replies in order, nothing sent twice that may change something, operations under load."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtstack.errors import ConfigError, PeerError
from smtstack.socket import Address, RpcTimeout
from workloads.kv import client as kv_client
from workloads.kv.client import KvCall, KvClient, KvError, KvUnknown, ReplyInbox, is_error, is_read, pack
from workloads.load import kinds
from workloads.load.ycsb import INDEX, KINDS
from workloads.load.ycsb_load import LOAD_PHASE, YcsbLoad, YcsbSeries, YcsbTally
from workloads.transports import Settings
from workloads.transports.framing import FramingError

hiredis = pytest.importorskip("hiredis")

TCP = Settings("tcp")
#: Seconds for what takes a moment on a loaded machine.
PATIENCE = 20.0
Handler = Callable[[list[bytes]], bytes | None]


class Server:
    """Speaks RESP on the loopback; a handler answers commands, or (None) hangs up."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.seen: list[list[bytes]] = []
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: Address = self._listener.getsockname()[:2]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        self._open: list[socket.socket] = []

    def _accept(self) -> None:
        while True:
            try:
                connection, _peer = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        reader = hiredis.Reader()
        with connection:
            while True:
                try:
                    data = connection.recv(65536)
                except OSError:
                    return
                if not data:
                    return
                reader.feed(data)
                while (command := reader.gets()) is not False:
                    self.seen.append(command)
                    reply = self._handler(command)
                    if reply is None:
                        return
                    try:
                        connection.sendall(reply)
                    except OSError:
                        return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            with connection:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue
        for thread in self._threads:
            thread.join(PATIENCE)


@contextmanager
def serving(handler: Handler) -> Iterator[Server]:
    server = Server(handler)
    try:
        yield server
    finally:
        server.close()


def echo(command: list[bytes]) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(command[-1]), command[-1])


def test_commands_are_as_redis_clients_send_them():
    assert pack([("SET", "k", b"\0\r\n"), ("GET", 1)]) == \
        b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$3\r\n\0\r\n\r\n*2\r\n$3\r\nGET\r\n$1\r\n1\r\n"


def test_replies_of_every_kind():
    replies = iter([b"+OK\r\n", b":7\r\n", b"$-1\r\n", b"*2\r\n$1\r\na\r\n*0\r\n", b"-ERR no\r\n"])
    with serving(lambda _command: next(replies)) as server, KvClient(TCP, server.address, PATIENCE) as client:
        assert client.command("SET", "a", 1) == b"OK"
        assert client.command("INCR", "a") == 7
        assert client.command("GET", "b") is None
        assert client.command("HGETALL", "b") == [b"a", []]
        with pytest.raises(KvError, match="ERR no"):
            client.command("DEL", "a")
        with pytest.raises(ConfigError):
            client.pipeline([])
    assert server.connections == 1


def test_a_pipeline_is_one_call_and_keeps_its_order():
    def handler(command):
        return b"-ERR bad\r\n" if command[-1] == b"3" else echo(command)

    with serving(handler) as server, KvClient(TCP, server.address, PATIENCE) as client:
        replies = client.pipeline([("ECHO", n) for n in range(6)])
    assert [str(reply) if is_error(reply) else reply for reply in replies] == \
        [b"0", b"1", b"2", "ERR bad", b"4", b"5"]


# -- once, or as often as needed ---------------------------------------------------------------------------------

@pytest.mark.parametrize(("command", "safe"), [
    (("get", "a"), True), ((b"HGETALL", b"a"), True), (("CONFIG", "GET", "*"), True), (("PING",), True),
    (("CONFIG", "SET", "a", "b"), False), (("CONFIG",), False), (("SET", "a", "1"), False),
    (("INCR", "a"), False), (("HMSET", "a", "f", "1"), False), (("EVAL", "return 1", 0), False),
])
def test_only_what_changes_nothing_may_be_sent_again(command, safe):
    assert is_read(command) is safe


def test_a_write_whose_reply_is_lost_is_not_sent_again():
    with serving(lambda _command: None) as server, KvClient(TCP, server.address, PATIENCE) as client:
        with pytest.raises(KvUnknown, match="whether INCR was carried out is unknown"):
            client.command("INCR", "hits")
        with pytest.raises(KvUnknown):
            client.pipeline([("GET", "a"), ("INCR", "hits")])
    assert [command[0] for command in server.seen if command[0] == b"INCR"] == [b"INCR"]


def test_a_read_whose_reply_is_lost_is_sent_again_on_a_new_connection():
    fates = iter([None, None, b"$1\r\nv\r\n"])
    with serving(lambda _command: next(fates)) as server, KvClient(TCP, server.address, PATIENCE) as client:
        assert client.command("GET", "a") == b"v"
    assert server.connections == 3
    assert server.seen == [[b"GET", b"a"]] * 3


def test_a_read_is_not_tried_for_ever():
    with serving(lambda _command: None) as server:
        with KvClient(TCP, server.address, PATIENCE, retries=1) as client, \
                pytest.raises(PeerError, match="closed the connection"):
            client.command("GET", "a")
        assert len(server.seen) == 2


def test_a_late_reply_is_not_taken_for_the_next_one():
    going_on = threading.Event()

    def handler(command):
        if command[-1] == b"slow":
            going_on.wait(PATIENCE)
        return echo(command)

    with serving(handler) as server, KvClient(TCP, server.address, 0.05, retries=0) as client:
        with pytest.raises(RpcTimeout):
            client.command("ECHO", "slow")
        going_on.set()
        client._timeout_s = PATIENCE
        assert client.command("ECHO", "next") == b"next"


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()[:2]
    with KvClient(TCP, address, PATIENCE) as client, pytest.raises(PeerError, match="is the server running"):
        client.command("INCR", "a")


# -- replies -----------------------------------------------------------------------------------------------------

ENCODED = st.recursive(
    st.one_of(st.binary(max_size=20).map(lambda b: b"$%d\r\n%b\r\n" % (len(b), b)),
              st.integers(-9, 9).map(lambda n: b":%d\r\n" % n), st.just(b"$-1\r\n"), st.just(b"+OK\r\n"),
              st.just(b"-ERR x\r\n")),
    lambda inner: st.lists(inner, max_size=3).map(lambda items: b"*%d\r\n%b" % (len(items), b"".join(items))))


@given(st.lists(st.lists(ENCODED, min_size=1, max_size=3), max_size=5), st.data())
def test_any_split_gives_each_call_its_replies(calls, data):
    inbox = ReplyInbox(1000)
    for number, replies in enumerate(calls):
        inbox.expect(number, len(replies))
    stream = b"".join(b"".join(replies) for replies in calls)
    done = []
    at = 0
    while at < len(stream):
        step = data.draw(st.integers(1, len(stream) - at))
        done += inbox.take(stream[at:at + step])
        at += step
    assert [number for number, _replies in done] == list(range(len(calls)))
    assert [len(replies) for _number, replies in done] == [len(replies) for replies in calls]
    assert len(inbox) == 0
    # The same as a message.
    for (_number, replies), encoded in zip(done, calls, strict=True):
        call = KvCall([("PING",)] * len(encoded))
        call.response = b"".join(encoded)
        assert repr(call.replies()) == repr(replies)


@pytest.mark.parametrize("data", [b"+OK\r\n+OK\r\n", b"?\r\n"])
def test_a_stream_that_is_no_series_of_replies_ends(data):
    inbox = ReplyInbox(1000)
    inbox.expect(1, 1)
    with pytest.raises(FramingError):
        inbox.take(data)


@pytest.mark.parametrize("data", [b"", b"+OK\r\n", b"+OK\r\n+OK\r\n+OK\r\n", b"+OK\r\n$3\r\nab", b"+OK\r\n?\r\n"])
def test_a_message_that_is_not_its_replies_is_an_error(data):
    call = KvCall([("SET", "a", "b")] * 2)
    call.response = data
    with pytest.raises(PeerError):
        call.replies()


# -- YCSB under load ---------------------------------------------------------------------------------------------

class Records:
    """Hashes and the index, as a server's handler; ``spoil`` may change a reply."""

    def __init__(self) -> None:
        self.hashes: dict[bytes, dict[bytes, bytes]] = {}
        self.index: set[bytes] = set()
        self.texts: dict[bytes, bytes] = {}
        self.spoil: Callable[[bytes, bytes], bytes] = lambda _command, reply: reply

    def __call__(self, command: list[bytes]) -> bytes:
        return self.spoil(command[0], self._reply(command))

    def _reply(self, command: list[bytes]) -> bytes:
        name, *args = command
        if name == b"FLUSHALL":
            self.hashes.clear()
            self.index.clear()
            self.texts.clear()
            return b"+OK\r\n"
        if name == b"SET":
            self.texts[args[0]] = args[1]
            return b"+OK\r\n"
        if name == b"GET":
            text = self.texts.get(args[0])
            return b"$-1\r\n" if text is None else b"$%d\r\n%b\r\n" % (len(text), text)
        if name == b"INCR":
            self.texts[args[0]] = b"%d" % (int(self.texts.get(args[0], b"0")) + 1)
            return b":%b\r\n" % self.texts[args[0]]
        if name == b"HMSET":
            self.hashes.setdefault(args[0], {}).update(zip(args[1::2], args[2::2], strict=True))
            return b"+OK\r\n"
        if name == b"ZADD":
            assert args[0] == INDEX
            self.index.add(args[2])
            return b":1\r\n"
        parts = [part for item in self.hashes.get(args[0], {}).items() for part in item]
        return b"*%d\r\n%b" % (len(parts), b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts))


@contextmanager
def ycsb(store: Records) -> Iterator[YcsbSeries]:
    with serving(store) as server, kv_client.open_caller(TCP, [server.address]) as caller:
        yield YcsbSeries(caller)


def load_of(**more) -> YcsbLoad:
    return YcsbLoad(**{"size": "64", "records": 60, "count": 60, "warm_up": 0, "concurrency": 4,
                       "timeout": PATIENCE, **more})


@pytest.mark.parametrize("way", [{}, {"rate": 20_000.0}])
def test_load_and_run(way):
    store = Records()
    store.hashes[b"old"] = {b"x": b"y"}
    with ycsb(store) as series:
        loading = load_of(phase=LOAD_PHASE)
        loaded = series.result(TCP, loading, series.measure(loading))
        assert (loaded["rpcs"], loaded["errors"], loaded["workload"]) == (60, 0, "load")
        assert len(store.hashes) == len(store.index) == 60
        for letter in "abcdf":
            running = load_of(workload=letter, count=200, **way)
            point = series.measure(running)
            result = series.result(TCP, running, point)
            assert (result["rpcs"], result["errors"], result["content_ok"]) == (200, 0, True)
            assert sum(found["count"] for found in result["ops"].values()) == 200
            assert isinstance(point.tally, YcsbTally)
            assert len(point.tally.kinds) == len(point.tally.rtt_ns) == 200
            json.dumps(result)
        assert len(store.hashes) == len(store.index) > 60, "D inserts"


def test_a_read_modify_write_takes_as_long_as_both_of_its_calls():
    store = Records()
    with ycsb(store) as series:
        series.measure(load_of(phase=LOAD_PHASE))
        load = load_of(workload="f", count=400, concurrency=1)
        ops = series.result(TCP, load, series.measure(load))["ops"]
    assert ops["read-modify-write"]["rtt_us"]["min"] > 1.2 * ops["read"]["rtt_us"]["min"]


@pytest.mark.parametrize("way", [{}, {"rate": 5000.0}])
def test_an_older_value_is_counted_as_wrong(way):
    """A positive control, over a connection: the server keeps the first answer about each record for itself."""
    store = Records()
    first: dict[bytes, bytes] = {}
    lies = 0

    def old(command: list[bytes]) -> bytes:
        nonlocal lies
        reply = Records.__call__(store, command)
        if command[0] != b"HGETALL":
            return reply
        kept = first.setdefault(command[1], reply)
        lies += kept != reply
        return kept

    with serving(old) as server, kv_client.open_caller(TCP, [server.address]) as caller:
        series = YcsbSeries(caller)
        series.measure(load_of(phase=LOAD_PHASE))
        load = load_of(count=600, **way)
        result = series.result(TCP, load, series.measure(load))
        assert lies
        assert result["content_ok"] is False
        assert "older than what was seen before" in result["error"]
        assert 0 < result["ops"]["read"]["errors"] <= lies
        # A store that is loaded again begins anew: nothing is held against it.
        first.clear()
        series.measure(load_of(phase=LOAD_PHASE))
        load = load_of(workload="c")
        assert series.result(TCP, load, series.measure(load))["content_ok"]


def test_who_comes_later_takes_another_number():
    """Without the load phase (--loaded): what an earlier process wrote is not older than what this one writes."""
    store = Records()
    with ycsb(store) as series:
        series.measure(load_of(phase=LOAD_PHASE))
        series.measure(load_of(count=300))
    for _n in range(2):
        with ycsb(store) as series:
            load = load_of(count=300)
            assert series.result(TCP, load, series.measure(load))["content_ok"]
    assert store.texts[b"_smtnet_writers"] == b"3"


def test_wrong_and_torn_values_and_errors_are_counted_by_kind():
    store = Records()
    with ycsb(store) as series:
        series.measure(load_of(phase=LOAD_PHASE))
        load = load_of(count=100)
        key = next(iter(store.hashes))
        seen = []

        def spoil(name, reply):
            seen.append(name)
            if name == b"HMSET" and seen.count(b"HMSET") == 3:
                return b"-OOM no memory\r\n"
            return reply.replace(b"field1", b"fieldX") if name == b"HGETALL" and len(seen) % 10 == 0 else reply

        store.spoil = spoil
        result = series.result(TCP, load, series.measure(load))
        assert result["content_ok"] is False
        assert result["ops"]["update"]["errors"] == result["errors"] == 1
        wrong = result["ops"]["read"]["errors"]
        assert wrong > 0
        assert result["rpcs"] == 100 - wrong - 1
        assert "fieldX" in result["error"] or "OOM" in result["error"]
        # One value only, of one record.
        store.spoil = lambda _name, reply: reply
        for fields in store.hashes.values():
            fields[b"field7"] = store.hashes[key][b"field7"]
        load = load_of(workload="c", count=50)
        result = series.result(TCP, load, series.measure(load))
        assert result["content_ok"] is False
        assert "field7" in result["error"]


def test_times_are_told_apart_by_kind():
    tally = YcsbTally()
    for time_ns, kind in ((1000, 0), (3000, 1), (2000, 0)):
        tally.rtt_ns.append(time_ns)
        tally.kinds.append(kind)
    found = kinds.summary(KINDS, tally.rtt_ns, tally.kinds, {"update": 2, "scan": 1})
    assert list(found) == ["read", "update", "scan"] == [kind for kind in KINDS if kind in found]
    assert (found["read"]["count"], found["read"]["rtt_us"]["max"]) == (2, 2.0)
    assert (found["update"]["count"], found["update"]["errors"]) == (1, 2)
    assert found["scan"] == {"count": 0, "errors": 1, "rtt_us": dict.fromkeys(found["read"]["rtt_us"])}
