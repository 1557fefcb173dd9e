"""The commands of the embedded store: one table, and how one of them is done."""

from __future__ import annotations

from dataclasses import dataclass

from workloads.kv import commands_hashes as hashes
from workloads.kv import commands_keys as keys_
from workloads.kv import commands_persistence as persistence
from workloads.kv import commands_server as server
from workloads.kv import commands_sorted as sorted_
from workloads.kv import commands_strings as strings
from workloads.kv.arguments import Handler, Session, arity_error
from workloads.kv.resp import Command, error, printable
from workloads.kv.store import CommandError, Keyspace


@dataclass(frozen=True, slots=True)
class Entry:
    """A command that there is."""

    name: str
    arity: int
    """Arguments, the name included; -n: at least n."""
    write: bool
    handler: Handler
    keys: tuple[int, int, int] = (0, 0, 0)
    """First key, last (-1: the last argument), step; as COMMAND tells them."""
    local: bool = False
    """About the client or the front end, not the keys: done here whatever the store is."""


def _describe(_keys: Keyspace, args: Command, session: Session) -> bytes:
    """COMMAND [COUNT|DOCS|INFO name ...]"""
    return server.describe([(e.name, e.arity, e.write, e.keys) for e in COMMANDS.values()], args, session)


_ONE, _ALL, _PAIRS = (1, 1, 1), (1, -1, 1), (1, -1, 2)

_TABLE = (
    Entry("get", 2, False, strings.get, _ONE),
    Entry("set", -3, True, strings.set_, _ONE),
    Entry("mget", -2, False, strings.mget, _ALL),
    Entry("mset", -3, True, strings.mset, _PAIRS),
    Entry("append", 3, True, strings.append, _ONE),
    Entry("strlen", 2, False, strings.strlen, _ONE),
    Entry("incr", 2, True, strings.incr, _ONE),
    Entry("decr", 2, True, strings.decr, _ONE),
    Entry("incrby", 3, True, strings.incrby, _ONE),
    Entry("decrby", 3, True, strings.decrby, _ONE),
    Entry("del", -2, True, keys_.delete, _ALL),
    Entry("exists", -2, False, keys_.exists, _ALL),
    Entry("type", 2, False, keys_.type_, _ONE),
    Entry("expire", -3, True, keys_.expire, _ONE),
    Entry("pexpire", -3, True, keys_.pexpire, _ONE),
    Entry("expireat", -3, True, keys_.expireat, _ONE),
    Entry("pexpireat", -3, True, keys_.pexpireat, _ONE),
    Entry("ttl", 2, False, keys_.ttl, _ONE),
    Entry("pttl", 2, False, keys_.pttl, _ONE),
    Entry("persist", 2, True, keys_.persist, _ONE),
    Entry("scan", -2, False, keys_.scan),
    Entry("keys", 2, False, keys_.keys_),
    Entry("dbsize", 1, False, keys_.dbsize),
    Entry("flushall", -1, True, keys_.flushall),
    Entry("flushdb", -1, True, keys_.flushall),
    Entry("hset", -4, True, hashes.hset, _ONE),
    Entry("hmset", -4, True, hashes.hmset, _ONE),
    Entry("hget", 3, False, hashes.hget, _ONE),
    Entry("hmget", -3, False, hashes.hmget, _ONE),
    Entry("hgetall", 2, False, hashes.hgetall, _ONE),
    Entry("hdel", -3, True, hashes.hdel, _ONE),
    Entry("hlen", 2, False, hashes.hlen, _ONE),
    Entry("hexists", 3, False, hashes.hexists, _ONE),
    Entry("zadd", -4, True, sorted_.zadd, _ONE),
    Entry("zrem", -3, True, sorted_.zrem, _ONE),
    Entry("zcard", 2, False, sorted_.zcard, _ONE),
    Entry("zscore", 3, False, sorted_.zscore, _ONE),
    Entry("zrange", -4, False, sorted_.zrange, _ONE),
    Entry("zrangebyscore", -4, False, sorted_.zrangebyscore, _ONE),
    Entry("bgrewriteaof", 1, False, persistence.bgrewriteaof),
    Entry("info", -1, False, server.info),
    Entry("config", -2, False, server.config, local=True),
    Entry("ping", -1, False, server.ping, local=True),
    Entry("echo", 2, False, server.echo, local=True),
    Entry("select", 2, False, server.select, local=True),
    Entry("hello", -1, False, server.hello, local=True),
    Entry("client", -2, False, server.client, local=True),
    Entry("quit", -1, False, server.quit_, local=True),
    Entry("reset", 1, False, server.reset, local=True),
    Entry("command", -1, False, _describe, local=True),
)
COMMANDS = {entry.name: entry for entry in _TABLE}
#: As they come: nearly always in small or in capital letters.
_BY_BYTES = {spelling.encode(): entry for entry in _TABLE for spelling in (entry.name, entry.name.upper())}


def look_up(args: Command) -> Entry:
    """The command that ``args`` are; raises :class:`CommandError` if there is none or too few or many."""
    entry = _BY_BYTES.get(args[0]) or _BY_BYTES.get(args[0].lower())
    if entry is None:
        name = printable(args[0][:128])
        shown = ""
        for arg in args[1:]:
            if len(shown) >= 128:
                break
            shown += f"'{printable(arg[:128 - len(shown)])}' "
        raise CommandError(f"ERR unknown command '{name}', with args beginning with: {shown}")
    if len(args) != entry.arity and (entry.arity > 0 or len(args) < -entry.arity):
        raise arity_error(entry.name.encode())
    return entry


def execute(keys: Keyspace, args: Command, session: Session, now: int) -> bytes:
    """Do a command; its reply, encoded. Never raises. ``now``: milliseconds since the epoch."""
    keys.now = now
    try:
        return look_up(args).handler(keys, args, session)
    except CommandError as e:
        return error(str(e))
