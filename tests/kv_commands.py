"""Any commands for the key-value store, and what of their replies can be compared with another server's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hiredis
from hypothesis import strategies as st

from workloads.kv.commands import COMMANDS
from workloads.kv.resp import ReplyCutter

Command = list[bytes]
#: Say what a server is, so they differ.
DESCRIPTIVE = {"command", "info", "quit", "hello", "time", "randomkey", "bgrewriteaof",
               *(name for name, e in COMMANDS.items() if e.ours)}
#: Give members in an order that is nobody's business.
UNORDERED = {b"HGETALL", b"KEYS", b"SCAN", b"HKEYS", b"HVALS", b"SMEMBERS", b"SINTER", b"SUNION", b"SDIFF",
             b"SPOP", b"SRANDMEMBER"}

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


#: Bounds of members, and what is none.
LEX = b"lex"
LEXES = st.sampled_from([b"-", b"+", b"[f", b"(f", b"[g", b"(h", b"[", b"f", b""])
FLOATS = st.one_of(SCORES, st.sampled_from([b"0.1", b"0.2", b"1e17", b"-3.7e-5", b"10.50", b"0x1p3", b"1e4000",
                                            b"1e5000"]))
RANGES = st.lists(st.sampled_from([[b"REV"], [b"BYSCORE"], [b"bylex"], [b"WITHSCORES"], [b"LIMIT", b"0", b"2"],
                                   [b"LIMIT", b"1", b"-1"], [b"limit", b"-1", b"2"], [b"LIMIT", b"0"], [b"x"]]),
                  max_size=3)
ENDS = st.sampled_from([b"LEFT", b"right", b"LEFT", b"x"])
#: Nothing waits: these are for within a transaction, or nonsense.
WAITS = st.sampled_from([b"-1", b"x", b"", b"nan"])
COUNTS = st.sampled_from([[], [b"0"], [b"1"], [b"2"], [b"-1"], [b"x"], [b"1", b"2"]])

COMMAND = st.one_of(
    words(st.sampled_from([b"LPUSH", b"RPUSH", b"LPUSHX", b"rpushx"]), KEYS, some(FIELDS)),
    words(st.sampled_from([b"LPUSH", b"RPUSH"]), KEYS, some(FIELDS)),
    words(st.sampled_from([b"LPOP", b"RPOP"]), KEYS, COUNTS),
    words(b"LLEN", KEYS), words(b"LRANGE", KEYS, NUMBERS, NUMBERS), words(b"LINDEX", KEYS, NUMBERS),
    words(b"LSET", KEYS, NUMBERS, VALUES), words(b"LTRIM", KEYS, NUMBERS, NUMBERS),
    words(b"LREM", KEYS, NUMBERS, FIELDS),
    words(b"LINSERT", KEYS, st.sampled_from([b"BEFORE", b"after", b"x"]), FIELDS, FIELDS),
    words(b"LMOVE", KEYS, KEYS, ENDS, ENDS), words(b"RPOPLPUSH", KEYS, KEYS),
    words(st.sampled_from([b"BLPOP", b"BRPOP", b"BZPOPMIN", b"BZPOPMAX"]), some(KEYS), WAITS),
    words(b"BLMOVE", KEYS, KEYS, ENDS, ENDS, WAITS), words(b"BRPOPLPUSH", KEYS, KEYS, WAITS),
    words(st.sampled_from([b"SADD", b"SREM", b"SMISMEMBER", b"SADD"]), KEYS, some(FIELDS)),
    words(st.sampled_from([b"SMEMBERS", b"SCARD"]), KEYS), words(b"SISMEMBER", KEYS, FIELDS),
    # All of them, or none: which ones it takes is chance.
    words(b"SPOP", KEYS, st.sampled_from([[b"100"], [b"0"], [b"-1"], [b"x"], [b"1", b"2"]])),
    words(b"SRANDMEMBER", KEYS, st.sampled_from([[b"100"], [b"0"], [b"x"], [b"1", b"2"]])),
    words(b"SMOVE", KEYS, KEYS, FIELDS), words(st.sampled_from([b"SINTER", b"SUNION", b"SDIFF"]), some(KEYS)),
    words(b"SETNX", KEYS, VALUES), words(st.sampled_from([b"SETEX", b"PSETEX"]), KEYS, SECONDS, VALUES),
    words(b"GETSET", KEYS, VALUES), words(b"GETDEL", KEYS), words(b"UNLINK", some(KEYS)),
    words(b"TOUCH", some(KEYS)),
    words(b"GETEX", KEYS, SET_OPTIONS), words(b"GETEX", KEYS, st.sampled_from([[b"PERSIST"], [b"persist", b"x"]])),
    words(b"MSETNX", some(st.tuples(KEYS, VALUES))), words(b"GETRANGE", KEYS, NUMBERS, NUMBERS),
    words(b"SETRANGE", KEYS, st.sampled_from([b"0", b"3", b"-1", b"x", b"536870912"]), VALUES),
    words(b"INCRBYFLOAT", KEYS, FLOATS), words(st.sampled_from([b"RENAME", b"RENAMENX"]), KEYS, KEYS),
    words(st.sampled_from([b"EXPIRETIME", b"PEXPIRETIME"]), KEYS),
    words(st.sampled_from([b"HKEYS", b"HVALS"]), KEYS), words(b"HSTRLEN", KEYS, FIELDS),
    words(b"HSETNX", KEYS, FIELDS, VALUES), words(b"HINCRBY", KEYS, FIELDS, NUMBERS),
    words(b"HINCRBYFLOAT", KEYS, FIELDS, FLOATS),
    words(b"ZINCRBY", KEYS, SCORES, FIELDS), words(b"ZMSCORE", KEYS, some(FIELDS)),
    words(st.sampled_from([b"ZPOPMIN", b"ZPOPMAX"]), KEYS, COUNTS),
    words(st.sampled_from([b"ZRANK", b"ZREVRANK"]), KEYS, FIELDS),
    words(st.sampled_from([b"ZRANGE", b"ZREVRANGE"]), KEYS, NUMBERS, NUMBERS, RANGES),
    words(st.sampled_from([b"ZRANGE", b"ZREVRANGEBYSCORE", b"ZRANGEBYSCORE"]), KEYS, BOUNDS, BOUNDS, RANGES),
    words(st.sampled_from([b"ZRANGE"]), KEYS, BOUNDS, BOUNDS, st.just([b"BYSCORE"]), RANGES),
    words(st.sampled_from([b"ZREMRANGEBYSCORE", b"ZCOUNT"]), KEYS, BOUNDS, BOUNDS),
    words(b"ZREMRANGEBYRANK", KEYS, NUMBERS, NUMBERS),
    # Members are compared where all scores are the same.
    words(b"ZADD", LEX, b"0", FIELDS, b"0", FIELDS),
    words(b"ZRANGE", LEX, LEXES, LEXES, st.just([b"BYLEX"]), RANGES),
    words(st.sampled_from([b"ZRANGEBYLEX", b"ZREVRANGEBYLEX"]), LEX, LEXES, LEXES, RANGES),
    words(st.sampled_from([b"ZLEXCOUNT", b"ZREMRANGEBYLEX"]), LEX, LEXES, LEXES),
    words(b"AUTH", some(VALUES)), words(b"HELLO", st.sampled_from([b"4", b"x"]), st.just(b"AUTH"), VALUES, VALUES),
    words(b"CLIENT", st.sampled_from([b"GETNAME", b"NO-EVICT", b"nonsense", b"ID"]), some(VALUES)),
    words(st.sampled_from([b"UNWATCH", b"DISCARD", b"EXEC"])),
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

TRANSACTION = st.one_of(words(st.sampled_from([b"MULTI", b"EXEC", b"multi", b"DISCARD", b"UNWATCH", b"EXEC"])),
                        words(b"MULTI"), words(b"EXEC"), words(b"WATCH", some(KEYS)), words(b"EXEC", some(KEYS)),
                        words(st.sampled_from([b"BLPOP", b"BRPOP", b"BZPOPMIN"]), some(KEYS), b"0"),
                        words(b"BLMOVE", KEYS, KEYS, ENDS, ENDS, b"0"))

DATABASE_NUMBERS = st.sampled_from([b"0", b"1", b"2", b"0", b"1", b"2", b"15", b"16", b"-1", b"x", b"", b"01",
                                    b"2147483647", b"2147483648", b"-2147483649", b"9223372036854775808"])
#: What is about databases.
DATABASE = st.one_of(
    words(b"SELECT", st.sampled_from([b"0", b"1", b"2"])), words(b"SELECT", DATABASE_NUMBERS),
    words(b"MOVE", KEYS, st.sampled_from([b"0", b"1", b"2"])), words(b"MOVE", KEYS, DATABASE_NUMBERS),
    words(b"SWAPDB", st.sampled_from([b"0", b"1", b"2"]), st.sampled_from([b"0", b"1", b"2"])),
    words(b"SWAPDB", DATABASE_NUMBERS, DATABASE_NUMBERS),
    words(st.sampled_from([b"DBSIZE", b"FLUSHDB", b"FLUSHALL"])),
    words(b"FLUSHDB", st.sampled_from([b"async", b"x"])), words(b"CONFIG", b"GET", b"databases"),
    words(b"KEYS", b"*"))


def waits(args: Command) -> bool:
    """Whether a command may wait for ever, outside of a transaction."""
    return args[0].startswith(b"B") and args[-1] == b"0"


def comparable(args: Command, reply: bytes) -> Any:
    """The reply, but for what Redis leaves open: the order in a hash and of keys, and what time it is."""
    name = args[0].upper()
    if reply[:1] == b"-":
        return reply
    if name in UNORDERED and reply[:1] in b"*~%":
        reader = hiredis.Reader()
        reader.feed(reply)
        value = reader.gets()
        if value is None:
            return reply
        if name == b"HGETALL":
            return reply[:1], value if isinstance(value, dict) else dict(zip(value[::2], value[1::2], strict=True))
        return reply[:1], sorted(value[1] if name == b"SCAN" else value)
    if name in {b"TTL", b"PTTL", b"EXPIRETIME", b"PEXPIRETIME"} and reply[:1] == b":":
        return min(int(reply[1:-2]), 1)
    return reply


def all_comparable(queued: list[Command], reply: bytes) -> list[Any]:
    """The replies to the commands of a transaction, out of that to EXEC."""
    head, _, rest = reply.partition(b"\r\n")
    assert head == b"*%d" % len(queued), reply
    return [comparable(args, one) for args, one in zip(queued, ReplyCutter().take(rest), strict=True)]


def in_order(commands: list[Command], replies: list[bytes]) -> list[Any]:
    """What can be compared of the replies to commands of one client, transactions among them."""
    found: list[Any] = []
    queued: list[Command] = []
    for args, reply in zip(commands, replies, strict=True):
        name = args[0].upper()
        if reply == b"+QUEUED\r\n":
            queued.append(args)
        if name == b"EXEC" and reply[:1] == b"*" and reply != b"*-1\r\n":
            found.append(all_comparable(queued, reply))
        else:
            found.append(comparable(args, reply))
        if name in {b"EXEC", b"DISCARD", b"RESET"}:
            queued = []
    return found
