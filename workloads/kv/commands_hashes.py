"""Commands on hashes."""

from __future__ import annotations

from functools import partial

from workloads.kv import entry, long_double
from workloads.kv.arguments import Session, arity_error, has, increased, integer, length, remove
from workloads.kv.commands_strings import MAX_REPLY
from workloads.kv.resp import OK, ONE, ZERO, Command, array, bulk, bulk_or_null, mapping, whole
from workloads.kv.store import CommandError, Keyspace

command = partial(entry.command, "hashes")


def _fields(keys: Keyspace, key: bytes) -> dict[bytes, bytes]:
    """To be looked at: of a key that is not there, none."""
    return keys.typed(key, dict) or {}


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


command("HSET key field value [field value ...]", write=True)(
    lambda keys, args, _session: whole(_set_fields(keys, args)))


@command("HMSET key field value [field value ...]", write=True)
def hmset(keys: Keyspace, args: Command, _session: Session) -> bytes:
    _set_fields(keys, args)
    return OK


command("HGET key field")(
    lambda keys, args, session: bulk_or_null(_fields(keys, args[1]).get(args[2]), session.version))


@command("HMGET key field [field ...]")
def hmget(keys: Keyspace, args: Command, session: Session) -> bytes:
    fields = _fields(keys, args[1])
    found = [fields.get(field) for field in args[2:]]
    if sum([len(value) for value in found if value is not None]) > MAX_REPLY:
        raise CommandError(f"ERR the reply would be more than {MAX_REPLY} bytes; ask for fewer fields")
    return array([bulk_or_null(value, session.version) for value in found])


command("HGETALL key")(lambda keys, args, session: mapping(
    [bulk(x) for pair in _fields(keys, args[1]).items() for x in pair], session.version))
command("HDEL key field [field ...]", write=True)(partial(remove, kind=dict))
command("HEXISTS key field")(partial(has, kind=dict))
command("HLEN key")(partial(length, kind=dict))
command("HKEYS key")(lambda keys, args, _session: array([*map(bulk, _fields(keys, args[1]))]))
command("HVALS key")(lambda keys, args, _session: array([*map(bulk, _fields(keys, args[1]).values())]))
command("HSTRLEN key field")(lambda keys, args, _session: whole(len(_fields(keys, args[1]).get(args[2], b""))))


@command("HSETNX key field value", write=True)
def hsetnx(keys: Keyspace, args: Command, _session: Session) -> bytes:
    if args[2] in _fields(keys, args[1]):
        return ZERO
    _set_fields(keys, [b"HSET", *args[1:]])
    return ONE


@command("HINCRBY key field n", write=True)
def hincrby(keys: Keyspace, args: Command, _session: Session) -> bytes:
    amount = integer(args[3])
    old = _fields(keys, args[1]).get(args[2])
    value = increased(old, amount, "ERR hash value is not an integer")
    _set_fields(keys, [b"HSET", args[1], args[2], b"%d" % value])
    return whole(value)


@command("HINCRBYFLOAT key field n", write=True)
def hincrbyfloat(keys: Keyspace, args: Command, _session: Session) -> bytes:
    amount = long_double.parse(args[3], "ERR value is not a valid float")
    if amount is None:
        raise CommandError("ERR value is NaN or Infinity")
    old = _fields(keys, args[1]).get(args[2])
    value = long_double.increased(old, amount, "ERR hash value is not a float")
    _set_fields(keys, [b"HSET", args[1], args[2], value])
    return bulk(value)
