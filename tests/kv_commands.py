"""Any commands for the key-value store, and what of their replies can be compared with another server's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hiredis
from hypothesis import strategies as st

from workloads.kv.commands import COMMANDS

Command = list[bytes]
#: Say what a server is, so they differ.
DESCRIPTIVE = {"command", "info", "quit", "hello"}

KEYS = st.sampled_from([b"a", b"b", b"c", b"key:1", b"\r\n\xff", b""])
NUMBERS = st.sampled_from([b"0", b"1", b"-1", b"2", b"5", b"100", b"9223372036854775807", b"-9223372036854775808",
                           b"9223372036854775808", b"01", b"+1", b" 1", b"", b"x", b"1.5", b"-0"])
SCORES = st.sampled_from([b"0", b"1", b"-1", b"2.5", b"-2.5", b"10", b"inf", b"-inf", b"+inf", b"1e3", b"x", b"",
                          b"nan", b"+5", b".5", b"1e999"])
BOUNDS = st.one_of(SCORES, SCORES.map(lambda s: b"(" + s))
VALUES = st.one_of(NUMBERS, st.binary(max_size=20))
FIELDS = st.sampled_from([b"f", b"g", b"h", b""])
NX = st.lists(st.sampled_from([b"NX", b"XX", b"gt", b"LT", b"CH", b"INCR"]), max_size=2)
SECONDS = st.sampled_from([b"1000", b"-1", b"0", b"x", b"9223372036854775807", b"100000"])
# Far ahead, long over, and nonsense: nothing that ends while the test runs.
SET_OPTIONS = st.lists(st.one_of(
    st.sampled_from([[b"NX"], [b"xx"], [b"GET"], [b"KEEPTTL"], [b"EX"], [b"nonsense"], [b"PXAT", b"9999999999999"],
                     [b"EXAT", b"9999999999"], [b"EXAT", b"1"], [b"PX", b"1000000"]]),
    SECONDS.map(lambda s: [b"EX", s])), max_size=2)


def words(*parts: Any) -> st.SearchStrategy[Command]:
    """A command of fixed words (bytes), arguments, and lists of them."""
    fixed = [st.just(p) if isinstance(p, bytes) else p for p in parts]
    return st.tuples(*fixed).map(lambda t: [w for p in t for w in _flat(p)])


def _flat(part: Any) -> Iterator[bytes]:
    if isinstance(part, bytes):
        yield part
    else:
        for p in part:
            yield from _flat(p)


def some(part: st.SearchStrategy[Any], least: int = 1) -> st.SearchStrategy[Any]:
    return st.lists(part, min_size=least, max_size=3)


COMMAND = st.one_of(
    words(b"GET", KEYS), words(b"SET", KEYS, VALUES), words(b"SET", KEYS, VALUES, SET_OPTIONS),
    words(b"MGET", some(KEYS)), words(b"MSET", some(st.tuples(KEYS, VALUES))), words(b"DEL", some(KEYS)),
    words(b"EXISTS", some(KEYS)), words(b"INCR", KEYS), words(b"DECR", KEYS), words(b"INCRBY", KEYS, NUMBERS),
    words(b"DECRBY", KEYS, NUMBERS), words(b"APPEND", KEYS, VALUES), words(b"STRLEN", KEYS), words(b"TYPE", KEYS),
    words(st.sampled_from([b"EXPIRE", b"PEXPIRE"]), KEYS, SECONDS,
          st.lists(st.sampled_from([b"NX", b"xx", b"GT", b"LT", b"nonsense"]), max_size=2)),
    words(st.sampled_from([b"EXPIREAT", b"PEXPIREAT"]), KEYS, st.sampled_from([b"1", b"9999999999999", b"x"])),
    words(b"TTL", KEYS), words(b"PTTL", KEYS), words(b"PERSIST", KEYS),
    words(st.sampled_from([b"HSET", b"HMSET"]), KEYS, some(st.tuples(FIELDS, VALUES))),
    words(b"HGET", KEYS, FIELDS),
    words(b"HMGET", KEYS, some(FIELDS)), words(b"HGETALL", KEYS), words(b"HDEL", KEYS, some(FIELDS)),
    words(b"HLEN", KEYS), words(b"HEXISTS", KEYS, FIELDS),
    words(b"ZADD", KEYS, NX, some(st.tuples(SCORES, FIELDS))), words(b"ZREM", KEYS, some(FIELDS)),
    words(b"ZCARD", KEYS), words(b"ZSCORE", KEYS, FIELDS),
    words(b"ZRANGE", KEYS, NUMBERS, NUMBERS, st.sampled_from([[], [b"WITHSCORES"], [b"nonsense"]])),
    words(b"ZRANGEBYSCORE", KEYS, BOUNDS, BOUNDS, st.sampled_from([[], [b"withscores"], [b"nonsense"]]),
          st.one_of(st.just([]), st.tuples(st.just(b"LIMIT"), NUMBERS, NUMBERS))),
    words(b"KEYS", st.sampled_from([b"*", b"?", b"key*", b"[ab]", b"[^a]*", b"\\a"])),
    words(b"SCAN", st.sampled_from([b"0", b"x"]), st.just([b"COUNT", b"1000"]),
          st.sampled_from([[], [b"MATCH", b"k*"], [b"TYPE", b"hash"], [b"MATCH"], [b"nonsense", b"1"]])),
    words(b"DBSIZE"), words(b"FLUSHALL"), words(b"ECHO", VALUES), words(b"PING"), words(b"PING", VALUES),
    words(b"SELECT", st.sampled_from([b"0", b"x"])),
    # Without arguments: nearly all need some.
    words(st.sampled_from([name.encode() for name in sorted(set(COMMANDS) - DESCRIPTIVE)] + [b"nonsense", b""])),
    words(b"nonsense", some(st.sampled_from([b"x", b"a'b", b"y" * 100]), 0)),
)


def comparable(args: Command, reply: bytes) -> Any:
    """The reply, but for what Redis leaves open: the order in a hash and of keys, and what time it is."""
    name = args[0].upper()
    if reply[:1] == b"-":
        return reply
    if name in {b"HGETALL", b"KEYS", b"SCAN"}:
        reader = hiredis.Reader()
        reader.feed(reply)
        value = reader.gets()
        if name == b"HGETALL":
            return reply[:1], value if isinstance(value, dict) else dict(zip(value[::2], value[1::2], strict=True))
        return sorted(value if name == b"KEYS" else value[1])
    if name in {b"TTL", b"PTTL"}:
        return min(int(reply[1:-2]), 1)
    return reply
