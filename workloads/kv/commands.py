"""The commands of the embedded store: one table, and how one of them is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from workloads.kv import commands_clients as clients
from workloads.kv import commands_databases as databases_
from workloads.kv import commands_hashes as hashes
from workloads.kv import commands_keys as keys_
from workloads.kv import commands_lists as lists
from workloads.kv import commands_persistence as persistence
from workloads.kv import commands_ranges as ranges
from workloads.kv import commands_scripts as scripts
from workloads.kv import commands_server as server
from workloads.kv import commands_sets as sets
from workloads.kv import commands_sorted as sorted_
from workloads.kv import commands_strings as strings
from workloads.kv import commands_transactions as transactions
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
    stateful: bool = False
    """Redis remembers it for a connection, or has the connection wait: one that clients share is not for it."""
    immediate: bool = False
    """Done at once, also between MULTI and EXEC."""
    subcommands: Mapping[str, int] = field(default_factory=dict)
    """Second words that there are, and the arity with each: those of its handler."""
    ours: bool = False
    """Redis does not have it."""
    no_script: bool = False
    """No script may call it."""


def _exec(keys: Keyspace, _args: Command, session: Session) -> bytes:
    """EXEC"""
    return transactions.run_queue(keys, session, _do)


def _do(keys: Keyspace, args: Command, session: Session) -> bytes:
    # A command before this one may have selected another database.
    return look_up(args).handler(keys.databases.all[session.database], args, session)


def _describe(_keys: Keyspace, args: Command, session: Session) -> bytes:
    """COMMAND [COUNT|DOCS|INFO name ...]"""
    return server.describe([(e.name, e.arity, e.write, e.keys) for e in COMMANDS.values()], args, session)


_ONE, _ALL, _PAIRS, _TWO = (1, 1, 1), (1, -1, 1), (1, -1, 2), (1, 2, 1)
#: All but the last, which is a time.
_WAITED = (1, -2, 1)

_TABLE = (
    Entry("get", 2, False, strings.get, _ONE),
    Entry("set", -3, True, strings.set_, _ONE),
    Entry("setnx", 3, True, strings.setnx, _ONE),
    Entry("setex", 4, True, strings.setex, _ONE),
    Entry("psetex", 4, True, strings.psetex, _ONE),
    Entry("getset", 3, True, strings.getset, _ONE),
    Entry("getdel", 2, True, strings.getdel, _ONE),
    Entry("getex", -2, True, strings.getex, _ONE),
    Entry("mget", -2, False, strings.mget, _ALL),
    Entry("mset", -3, True, strings.mset, _PAIRS),
    Entry("msetnx", -3, True, strings.msetnx, _PAIRS),
    Entry("append", 3, True, strings.append, _ONE),
    Entry("strlen", 2, False, strings.strlen, _ONE),
    Entry("getrange", 4, False, strings.getrange, _ONE),
    Entry("setrange", 4, True, strings.setrange, _ONE),
    Entry("incr", 2, True, strings.incr, _ONE),
    Entry("decr", 2, True, strings.decr, _ONE),
    Entry("incrby", 3, True, strings.incrby, _ONE),
    Entry("decrby", 3, True, strings.decrby, _ONE),
    Entry("incrbyfloat", 3, True, strings.incrbyfloat, _ONE),
    Entry("del", -2, True, keys_.delete, _ALL),
    Entry("unlink", -2, True, keys_.delete, _ALL),
    Entry("exists", -2, False, keys_.exists, _ALL),
    Entry("touch", -2, False, keys_.exists, _ALL),
    Entry("type", 2, False, keys_.type_, _ONE),
    Entry("rename", 3, True, keys_.rename, _TWO),
    Entry("renamenx", 3, True, keys_.renamenx, _TWO),
    Entry("expire", -3, True, keys_.expire, _ONE),
    Entry("pexpire", -3, True, keys_.pexpire, _ONE),
    Entry("expireat", -3, True, keys_.expireat, _ONE),
    Entry("pexpireat", -3, True, keys_.pexpireat, _ONE),
    Entry("ttl", 2, False, keys_.ttl, _ONE),
    Entry("pttl", 2, False, keys_.pttl, _ONE),
    Entry("expiretime", 2, False, keys_.expiretime, _ONE),
    Entry("pexpiretime", 2, False, keys_.pexpiretime, _ONE),
    Entry("persist", 2, True, keys_.persist, _ONE),
    Entry("scan", -2, False, keys_.scan),
    Entry("keys", 2, False, keys_.keys_),
    Entry("randomkey", 1, False, keys_.randomkey),
    Entry("dbsize", 1, False, keys_.dbsize),
    Entry("select", 2, False, databases_.select, local=True),
    Entry("move", 3, True, databases_.move, _ONE),
    Entry("swapdb", 3, True, databases_.swapdb),
    Entry("flushall", -1, True, databases_.flushall),
    Entry("flushdb", -1, True, databases_.flushdb),
    Entry("hset", -4, True, hashes.hset, _ONE),
    Entry("hmset", -4, True, hashes.hmset, _ONE),
    Entry("hsetnx", 4, True, hashes.hsetnx, _ONE),
    Entry("hget", 3, False, hashes.hget, _ONE),
    Entry("hmget", -3, False, hashes.hmget, _ONE),
    Entry("hgetall", 2, False, hashes.hgetall, _ONE),
    Entry("hkeys", 2, False, hashes.hkeys, _ONE),
    Entry("hvals", 2, False, hashes.hvals, _ONE),
    Entry("hdel", -3, True, hashes.hdel, _ONE),
    Entry("hlen", 2, False, hashes.hlen, _ONE),
    Entry("hstrlen", 3, False, hashes.hstrlen, _ONE),
    Entry("hexists", 3, False, hashes.hexists, _ONE),
    Entry("hincrby", 4, True, hashes.hincrby, _ONE),
    Entry("hincrbyfloat", 4, True, hashes.hincrbyfloat, _ONE),
    Entry("lpush", -3, True, lists.lpush, _ONE),
    Entry("rpush", -3, True, lists.rpush, _ONE),
    Entry("lpushx", -3, True, lists.lpushx, _ONE),
    Entry("rpushx", -3, True, lists.rpushx, _ONE),
    Entry("lpop", -2, True, lists.lpop, _ONE),
    Entry("rpop", -2, True, lists.rpop, _ONE),
    Entry("llen", 2, False, lists.llen, _ONE),
    Entry("lrange", 4, False, lists.lrange, _ONE),
    Entry("lindex", 3, False, lists.lindex, _ONE),
    Entry("lset", 4, True, lists.lset, _ONE),
    Entry("ltrim", 4, True, lists.ltrim, _ONE),
    Entry("lrem", 4, True, lists.lrem, _ONE),
    Entry("linsert", 5, True, lists.linsert, _ONE),
    Entry("lmove", 5, True, lists.lmove, _TWO),
    Entry("rpoplpush", 3, True, lists.rpoplpush, _TWO),
    Entry("blpop", -3, True, lists.blpop, _WAITED, stateful=True, no_script=True),
    Entry("brpop", -3, True, lists.brpop, _WAITED, stateful=True, no_script=True),
    Entry("blmove", 6, True, lists.blmove, _TWO, stateful=True, no_script=True),
    Entry("brpoplpush", 4, True, lists.brpoplpush, _TWO, stateful=True, no_script=True),
    Entry("sadd", -3, True, sets.sadd, _ONE),
    Entry("srem", -3, True, sets.srem, _ONE),
    Entry("smembers", 2, False, sets.smembers, _ONE),
    Entry("sismember", 3, False, sets.sismember, _ONE),
    Entry("smismember", -3, False, sets.smismember, _ONE),
    Entry("scard", 2, False, sets.scard, _ONE),
    Entry("spop", -2, True, sets.spop, _ONE),
    Entry("srandmember", -2, False, sets.srandmember, _ONE),
    Entry("smove", 4, True, sets.smove, _TWO),
    Entry("sinter", -2, False, sets.sinter, _ALL),
    Entry("sunion", -2, False, sets.sunion, _ALL),
    Entry("sdiff", -2, False, sets.sdiff, _ALL),
    Entry("zadd", -4, True, sorted_.zadd, _ONE),
    Entry("zincrby", 4, True, sorted_.zincrby, _ONE),
    Entry("zrem", -3, True, sorted_.zrem, _ONE),
    Entry("zcard", 2, False, sorted_.zcard, _ONE),
    Entry("zscore", 3, False, sorted_.zscore, _ONE),
    Entry("zmscore", -3, False, sorted_.zmscore, _ONE),
    Entry("zpopmin", -2, True, sorted_.zpopmin, _ONE),
    Entry("zpopmax", -2, True, sorted_.zpopmax, _ONE),
    Entry("bzpopmin", -3, True, sorted_.bzpopmin, _WAITED, stateful=True, no_script=True),
    Entry("bzpopmax", -3, True, sorted_.bzpopmax, _WAITED, stateful=True, no_script=True),
    Entry("zrange", -4, False, ranges.zrange, _ONE),
    Entry("zrevrange", -4, False, ranges.zrevrange, _ONE),
    Entry("zrangebyscore", -4, False, ranges.zrangebyscore, _ONE),
    Entry("zrevrangebyscore", -4, False, ranges.zrevrangebyscore, _ONE),
    Entry("zrangebylex", -4, False, ranges.zrangebylex, _ONE),
    Entry("zrevrangebylex", -4, False, ranges.zrevrangebylex, _ONE),
    Entry("zcount", 4, False, ranges.zcount, _ONE),
    Entry("zlexcount", 4, False, ranges.zlexcount, _ONE),
    Entry("zrank", 3, False, ranges.zrank, _ONE),
    Entry("zrevrank", 3, False, ranges.zrevrank, _ONE),
    Entry("zremrangebyrank", 4, True, ranges.zremrangebyrank, _ONE),
    Entry("zremrangebyscore", 4, True, ranges.zremrangebyscore, _ONE),
    Entry("zremrangebylex", 4, True, ranges.zremrangebylex, _ONE),
    Entry("multi", 1, False, transactions.multi, stateful=True, immediate=True, no_script=True),
    Entry("exec", 1, False, _exec, stateful=True, immediate=True, no_script=True),
    Entry("discard", 1, False, transactions.discard, stateful=True, immediate=True, no_script=True),
    Entry("watch", -2, False, transactions.watch, _ALL, stateful=True, immediate=True, no_script=True),
    Entry("unwatch", 1, False, transactions.unwatch, stateful=True, no_script=True),
    Entry("smt.versions", -2, False, transactions.versions, _ALL, ours=True),
    Entry("smt.watch", -3, False, transactions.watch_versions, _PAIRS, immediate=True, ours=True, no_script=True),
    Entry("eval", -3, True, scripts.eval_, no_script=True),
    Entry("evalsha", -3, True, scripts.evalsha, no_script=True),
    Entry("eval_ro", -3, False, scripts.eval_, no_script=True),
    Entry("evalsha_ro", -3, False, scripts.evalsha, no_script=True),
    Entry("script", -2, False, scripts.script, no_script=True,
          subcommands={"load": 3, "exists": -3, "flush": -2}),
    Entry("bgrewriteaof", 1, False, persistence.bgrewriteaof, no_script=True),
    Entry("info", -1, False, server.info),
    Entry("time", 1, False, server.time_),
    Entry("config", -2, False, server.config, local=True, subcommands={"get": -3}, no_script=True),
    Entry("ping", -1, False, server.ping, local=True),
    Entry("echo", 2, False, server.echo, local=True),
    Entry("auth", -2, False, clients.auth, local=True, no_script=True),
    Entry("hello", -1, False, clients.hello, local=True, no_script=True),
    Entry("client", -2, False, clients.client, local=True, subcommands={
        "id": 2, "getname": 2, "setname": 3, "setinfo": 4, "info": 2, "list": -2, "no-evict": 3}, no_script=True),
    Entry("quit", -1, False, clients.quit_, local=True, immediate=True, no_script=True),
    Entry("reset", 1, False, clients.reset, local=True, immediate=True, no_script=True),
    Entry("command", -1, False, _describe, local=True, subcommands={"count": 2, "docs": -2, "info": -2}),
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
    name, arity = entry.name, entry.arity
    if entry.subcommands and len(args) > 1:
        word = args[1].decode("latin-1").lower()
        if word not in entry.subcommands:
            raise CommandError(f"ERR unknown subcommand '{printable(args[1][:128])}'. Try {name.upper()} HELP.")
        name, arity = f"{name}|{word}", entry.subcommands[word]
    if len(args) != arity and (arity > 0 or len(args) < -arity):
        raise arity_error(name.encode())
    return entry


def rejected(args: Command, session: Session, why: CommandError) -> CommandError:
    """The error for what cannot be kept for EXEC, or is no command at all; no EXEC will do what is before it."""
    if args[0].lower() == b"exec":
        session.forget_transaction()
        return CommandError(f"EXECABORT Transaction discarded because of: {str(why).removeprefix('ERR ')}")
    session.aborted = session.queue is not None
    return why


def execute(keys: Keyspace, args: Command, session: Session, now: int) -> bytes:
    """Do a command on the database that the session has selected; its reply, encoded, or nothing if the session
    waits now. Never raises.

    ``keys``: any of the databases. ``now``: milliseconds since the epoch.
    """
    databases = keys.databases
    databases.now = now
    try:
        try:
            entry = look_up(args)
            if session.queue is not None and not entry.immediate:
                return transactions.enqueue(session, args)
        except CommandError as e:
            raise rejected(args, session, e) from None
        return entry.handler(databases.all[session.database], args, session)
    except CommandError as e:
        return error(str(e))
