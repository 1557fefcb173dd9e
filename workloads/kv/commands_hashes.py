"""Commands on hashes."""

from __future__ import annotations

from fractions import Fraction

from workloads.kv import long_double
from workloads.kv.arguments import MAX_INT, MIN_INT, Session, arity_error, has, integer, length, remove, variant
from workloads.kv.commands_strings import MAX_REPLY
from workloads.kv.resp import OK, ONE, ZERO, Command, array, bulk, bulk_or_null, mapping, null
from workloads.kv.resp import integer as integer_reply
from workloads.kv.store import CommandError, Keyspace


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


def hset(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """HSET key field value [field value ...]"""
    return integer_reply(_set_fields(keys, args))


def hmset(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """HMSET key field value [field value ...]"""
    _set_fields(keys, args)
    return OK


def hget(keys: Keyspace, args: Command, session: Session) -> bytes:
    """HGET key field"""
    fields = keys.typed(args[1], dict)
    return bulk_or_null(None if fields is None else fields.get(args[2]), session.version)


def hmget(keys: Keyspace, args: Command, session: Session) -> bytes:
    """HMGET key field [field ...]"""
    fields = keys.typed(args[1], dict)
    if fields is None:
        return array([null(session.version)] * (len(args) - 2))
    found = [fields.get(field) for field in args[2:]]
    if sum([len(value) for value in found if value is not None]) > MAX_REPLY:
        raise CommandError(f"ERR the reply would be more than {MAX_REPLY} bytes; ask for fewer fields")
    return array([bulk_or_null(value, session.version) for value in found])


def hgetall(keys: Keyspace, args: Command, session: Session) -> bytes:
    """HGETALL key"""
    fields = keys.typed(args[1], dict)
    return mapping([bulk(x) for pair in (fields or {}).items() for x in pair], session.version)


hdel = variant(remove, "HDEL key field [field ...]", __name__, kind=dict)
hexists = variant(has, "HEXISTS key field", __name__, kind=dict)
hlen = variant(length, "HLEN key", __name__, kind=dict)


def hkeys(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """HKEYS key"""
    return array([bulk(field) for field in keys.typed(args[1], dict) or ()])


def hvals(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """HVALS key"""
    return array([bulk(value) for value in (keys.typed(args[1], dict) or {}).values()])


def hstrlen(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """HSTRLEN key field"""
    return integer_reply(len((keys.typed(args[1], dict) or {}).get(args[2], b"")))


def hsetnx(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """HSETNX key field value"""
    fields = keys.typed(args[1], dict)
    if fields is not None and args[2] in fields:
        return ZERO
    _set_fields(keys, [b"HSET", *args[1:]])
    return ONE


def hincrby(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """HINCRBY key field n"""
    amount = integer(args[3])
    old = (keys.typed(args[1], dict) or {}).get(args[2])
    value = amount if old is None else integer(old, "ERR hash value is not an integer") + amount
    if not MIN_INT <= value <= MAX_INT:
        raise CommandError("ERR increment or decrement would overflow")
    _set_fields(keys, [b"HSET", args[1], args[2], b"%d" % value])
    return integer_reply(value)


def hincrbyfloat(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """HINCRBYFLOAT key field n"""
    amount = long_double.parse(args[3], "ERR value is not a valid float")
    if amount is None:
        raise CommandError("ERR value is NaN or Infinity")
    old = (keys.typed(args[1], dict) or {}).get(args[2])
    before = Fraction() if old is None else long_double.parse(old, "ERR hash value is not a float")
    value = long_double.total(before, amount, "ERR increment would produce NaN or Infinity")
    _set_fields(keys, [b"HSET", args[1], args[2], value])
    return bulk(value)
