"""Commands on strings, the numbers among them."""

from __future__ import annotations

from functools import partial

from workloads.kv import entry, long_double
from workloads.kv.arguments import MAX_INT, MIN_INT, SYNTAX, Session, arity_error, increased, integer, length
from workloads.kv.resp import OK, ONE, ZERO, Command, array, bulk, bulk_or_null, null, whole
from workloads.kv.store import CommandError, Keyspace

command = partial(entry.command, "strings")

#: Bytes of all strings in one reply.
MAX_REPLY = 64 << 20

_UNITS = {b"EX": (1000, False), b"PX": (1, False), b"EXAT": (1000, True), b"PXAT": (1, True)}


@command("GET key")
def get(keys: Keyspace, args: Command, session: Session) -> bytes:
    value = keys.typed(args[1], bytes)
    if value is None:
        keys.misses += 1
        return null(session.version)
    keys.hits += 1
    return b"$%d\r\n%b\r\n" % (len(value), value)


@command("SET key value [NX|XX] [GET] [EX s|PX ms|EXAT s|PXAT ms|KEEPTTL]", write=True)
def set_(keys: Keyspace, args: Command, session: Session) -> bytes:
    key, value = args[1], args[2]
    if len(args) == 3:
        keys.put(key, value)
        keys.log(b"SET", key, value)
        return OK
    words, timer = _options(args[3:], b"NX", b"XX", b"GET", b"KEEPTTL")
    at = deadline(keys, timer[1], *_UNITS[timer[0]], command="set", positive=True) if timer else None
    old = keys.typed(key, bytes) if b"GET" in words else None
    if words & {b"NX", b"XX"} and (keys.get(key) is None) != (b"NX" in words):
        return bulk_or_null(old, session.version)
    keep = b"KEEPTTL" in words
    keys.put(key, value, keep)
    if at is not None:
        end_at(keys, key, at, b"SET", key, value, b"PXAT", b"%d" % at)
    else:
        keys.log(b"SET", key, value, *([b"KEEPTTL"] if keep else []))
    return bulk_or_null(old, session.version) if b"GET" in words else OK


def _options(args: Command, *known: bytes) -> tuple[set[bytes], tuple[bytes, bytes] | None]:
    """The words among ``args``, of those that are known, and when the key is to end: one of _UNITS, an amount."""
    words: set[bytes] = set()
    timer: tuple[bytes, bytes] | None = None
    rest = iter(args)
    for option in map(bytes.upper, rest):
        if option in known:
            words.add(option)
        elif option in _UNITS and (timer or (option,))[0] == option and (amount := next(rest, None)) is not None:
            timer = option, amount
        else:
            raise CommandError(SYNTAX)
    if words >= {b"NX", b"XX"} or (timer and words & {b"KEEPTTL", b"PERSIST"}):
        raise CommandError(SYNTAX)
    return words, timer


def end_at(keys: Keyspace, key: bytes, at: int, *entry: bytes) -> None:
    """A key that is there ends at ``at``, which is logged as ``entry``; if that time is over, it ends now."""
    if at <= keys.databases.now:
        keys.delete(key)
        keys.log(b"DEL", key)
    else:
        keys.expire_at(key, at)
        keys.log(*entry)


def deadline(keys: Keyspace, text: bytes, unit: int, absolute: bool, command: str, positive: bool) -> int:
    """Milliseconds since the epoch at which a key ends."""
    amount = integer(text)
    complaint = CommandError(f"ERR invalid expire time in '{command}' command")
    if positive and amount <= 0:
        raise complaint
    at = amount * unit + (0 if absolute else keys.databases.now)
    if not MIN_INT <= amount * unit <= MAX_INT or at > MAX_INT:
        raise complaint
    return at


@command("MGET key [key ...]")
def mget(keys: Keyspace, args: Command, session: Session) -> bytes:
    found = []
    size = 0
    for key in args[1:]:
        value = keys.get(key)
        if isinstance(value, bytes):
            size += len(value)
            if size > MAX_REPLY:
                raise CommandError(f"ERR the reply would be more than {MAX_REPLY} bytes; ask for fewer keys")
            keys.hits += 1
        else:
            value = None
            keys.misses += 1
        found.append(bulk_or_null(value, session.version))
    return array(found)


@command("MSET key value [key value ...]", write=True)
def mset(keys: Keyspace, args: Command, _session: Session) -> bytes:
    if len(args) % 2 == 0:
        raise arity_error(b"mset")
    for key, value in zip(args[1::2], args[2::2], strict=True):
        keys.put(key, value)
        keys.log(b"SET", key, value)
    return OK


@command("APPEND key value", write=True)
def append(keys: Keyspace, args: Command, _session: Session) -> bytes:
    old = keys.typed(args[1], bytes)
    value = args[2] if old is None else old + args[2]
    if len(value) > keys.databases.longest:
        raise CommandError("ERR string exceeds maximum allowed size (proto-max-bulk-len)")
    keys.put(args[1], value, keep_ttl=True)
    keys.log(*args)
    return whole(len(value))


command("STRLEN key")(partial(length, kind=bytes))


def _add(keys: Keyspace, args: Command, _session: Session, amount: int) -> bytes:
    key = args[1]
    value = increased(keys.typed(key, bytes), amount)
    keys.put(key, b"%d" % value, keep_ttl=True)
    keys.log(b"INCRBY", key, b"%d" % amount)
    return whole(value)


command("INCR key", write=True)(partial(_add, amount=1))
command("DECR key", write=True)(partial(_add, amount=-1))
command("INCRBY key n", write=True)(lambda keys, args, session: _add(keys, args, session, integer(args[2])))


@command("DECRBY key n", write=True)
def decrby(keys: Keyspace, args: Command, session: Session) -> bytes:
    amount = integer(args[2])
    if amount == MIN_INT:
        raise CommandError("ERR decrement would overflow")
    return _add(keys, args, session, -amount)


@command("INCRBYFLOAT key n", write=True)
def incrbyfloat(keys: Keyspace, args: Command, _session: Session) -> bytes:
    old = keys.typed(args[1], bytes)
    complaint = "ERR value is not a valid float"
    value = long_double.increased(old, long_double.parse(args[2], complaint), complaint)
    keys.put(args[1], value, keep_ttl=True)
    keys.log(b"SET", args[1], value, b"KEEPTTL")
    return bulk(value)


@command("SETNX key value", write=True)
def setnx(keys: Keyspace, args: Command, _session: Session) -> bytes:
    if keys.get(args[1]) is not None:
        return ZERO
    keys.put(args[1], args[2])
    keys.log(b"SET", args[1], args[2])
    return ONE


@command("MSETNX key value [key value ...]", write=True)
def msetnx(keys: Keyspace, args: Command, session: Session) -> bytes:
    if len(args) % 2 == 0:
        raise arity_error(b"msetnx")
    if any(keys.get(key) is not None for key in args[1::2]):
        return ZERO
    mset(keys, args, session)
    return ONE


def _setex(keys: Keyspace, args: Command, _session: Session, unit: int, command: str) -> bytes:
    at = deadline(keys, args[2], unit, absolute=False, command=command, positive=True)
    keys.put(args[1], args[3])
    keys.expire_at(args[1], at)
    keys.log(b"SET", args[1], args[3], b"PXAT", b"%d" % at)
    return OK


command("SETEX key s value", write=True)(partial(_setex, unit=1000, command="setex"))
command("PSETEX key ms value", write=True)(partial(_setex, unit=1, command="psetex"))


@command("GETSET key value", write=True)
def getset(keys: Keyspace, args: Command, session: Session) -> bytes:
    old = get(keys, args, session)
    keys.put(args[1], args[2])
    keys.log(b"SET", args[1], args[2])
    return old


@command("GETDEL key", write=True)
def getdel(keys: Keyspace, args: Command, session: Session) -> bytes:
    old = get(keys, args, session)
    if keys.delete(args[1]):
        keys.log(b"DEL", args[1])
    return old


@command("GETEX key [EX s|PX ms|EXAT s|PXAT ms|PERSIST]", write=True)
def getex(keys: Keyspace, args: Command, session: Session) -> bytes:
    words, timer = _options(args[2:], b"PERSIST")
    value = get(keys, args, session)
    if keys.get(args[1]) is None:
        return value
    if timer:
        at = deadline(keys, timer[1], *_UNITS[timer[0]], command="getex", positive=True)
        end_at(keys, args[1], at, b"PEXPIREAT", args[1], b"%d" % at)
    elif words and keys.persist(args[1]):
        keys.log(b"PERSIST", args[1])
    return value


@command("GETRANGE key start end")
def getrange(keys: Keyspace, args: Command, _session: Session) -> bytes:
    start, end = integer(args[2]), integer(args[3])
    value = keys.typed(args[1], bytes) or b""
    size = len(value)
    if start < 0 and end < 0 and start > end:
        return bulk(b"")
    start = max(0, start + size) if start < 0 else start
    end = max(0, end + size) if end < 0 else end
    return bulk(value[start:end + 1])


@command("SETRANGE key offset value", write=True)
def setrange(keys: Keyspace, args: Command, _session: Session) -> bytes:
    offset = integer(args[2])
    if offset < 0:
        raise CommandError("ERR offset is out of range")
    old = keys.typed(args[1], bytes)
    if not args[3]:
        return whole(len(old or b""))
    if offset + len(args[3]) > keys.databases.longest:
        raise CommandError("ERR string exceeds maximum allowed size (proto-max-bulk-len)")
    value = bytearray(old or b"")
    value.extend(bytes(max(0, offset - len(value))))
    value[offset:offset + len(args[3])] = args[3]
    keys.put(args[1], bytes(value), keep_ttl=True)
    keys.log(*args)
    return whole(len(value))
