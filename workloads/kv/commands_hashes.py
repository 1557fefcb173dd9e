"""Commands on hashes."""

from __future__ import annotations

from fractions import Fraction
from functools import partial

from workloads.kv import entry, long_double
from workloads.kv.arguments import MAX_INT, MIN_INT, Session, arity_error, has, integer, length, remove
from workloads.kv.commands_strings import MAX_REPLY
from workloads.kv.resp import OK, ONE, ZERO, Command, array, bulk, bulk_or_null, mapping, null, whole
from workloads.kv.store import CommandError, Keyspace

command = partial(entry.command, "hashes")


def _set_fields(keys: Keyspace, args: Command) -> int:
    """How many are new."""
    if len(args) % 2:
        raise arity_error(args[0])
    key = args[1]
    fields = keys.typed(key, dict)
    if fields is None:
        fields = {}
        keys.put(key, fields)
    before = len(fields)
    if len(args) == 4:
        fields[args[2]] = args[3]
    else:
        fields.update(zip(args[2::2], args[3::2], strict=True))
    keys.log(*args)
    return len(fields) - before


@command("HSET key field value [field value ...]", write=True)
def hset(keys: Keyspace, args: Command, _session: Session) -> bytes:
    return whole(_set_fields(keys, args))


@command("HMSET key field value [field value ...]", write=True)
def hmset(keys: Keyspace, args: Command, _session: Session) -> bytes:
    _set_fields(keys, args)
    return OK


@command("HGET key field")
def hget(keys: Keyspace, args: Command, session: Session) -> bytes:
    fields = keys.typed(args[1], dict)
    return bulk_or_null(None if fields is None else fields.get(args[2]), session.version)


@command("HMGET key field [field ...]")
def hmget(keys: Keyspace, args: Command, session: Session) -> bytes:
    fields = keys.typed(args[1], dict)
    if fields is None:
        return array([null(session.version)] * (len(args) - 2))
    found = [fields.get(field) for field in args[2:]]
    if sum([len(value) for value in found if value is not None]) > MAX_REPLY:
        raise CommandError(f"ERR the reply would be more than {MAX_REPLY} bytes; ask for fewer fields")
    return array([bulk_or_null(value, session.version) for value in found])


@command("HGETALL key")
def hgetall(keys: Keyspace, args: Command, session: Session) -> bytes:
    fields = keys.typed(args[1], dict)
    return mapping([bulk(x) for pair in (fields or {}).items() for x in pair], session.version)


command("HDEL key field [field ...]", write=True)(partial(remove, kind=dict))
command("HEXISTS key field")(partial(has, kind=dict))
command("HLEN key")(partial(length, kind=dict))


@command("HKEYS key")
def hkeys(keys: Keyspace, args: Command, _session: Session) -> bytes:
    return array([bulk(field) for field in keys.typed(args[1], dict) or ()])


@command("HVALS key")
def hvals(keys: Keyspace, args: Command, _session: Session) -> bytes:
    return array([bulk(value) for value in (keys.typed(args[1], dict) or {}).values()])


@command("HSTRLEN key field")
def hstrlen(keys: Keyspace, args: Command, _session: Session) -> bytes:
    return whole(len((keys.typed(args[1], dict) or {}).get(args[2], b"")))


@command("HSETNX key field value", write=True)
def hsetnx(keys: Keyspace, args: Command, _session: Session) -> bytes:
    fields = keys.typed(args[1], dict)
    if fields is not None and args[2] in fields:
        return ZERO
    _set_fields(keys, [b"HSET", *args[1:]])
    return ONE


@command("HINCRBY key field n", write=True)
def hincrby(keys: Keyspace, args: Command, _session: Session) -> bytes:
    amount = integer(args[3])
    old = (keys.typed(args[1], dict) or {}).get(args[2])
    value = amount if old is None else integer(old, "ERR hash value is not an integer") + amount
    if not MIN_INT <= value <= MAX_INT:
        raise CommandError("ERR increment or decrement would overflow")
    _set_fields(keys, [b"HSET", args[1], args[2], b"%d" % value])
    return whole(value)


@command("HINCRBYFLOAT key field n", write=True)
def hincrbyfloat(keys: Keyspace, args: Command, _session: Session) -> bytes:
    amount = long_double.parse(args[3], "ERR value is not a valid float")
    if amount is None:
        raise CommandError("ERR value is NaN or Infinity")
    old = (keys.typed(args[1], dict) or {}).get(args[2])
    before = Fraction() if old is None else long_double.parse(old, "ERR hash value is not a float")
    value = long_double.total(before, amount, "ERR increment would produce NaN or Infinity")
    _set_fields(keys, [b"HSET", args[1], args[2], value])
    return bulk(value)
