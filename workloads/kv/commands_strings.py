"""Commands on strings, the numbers among them."""

from __future__ import annotations

from workloads.kv.arguments import MAX_INT, MIN_INT, SYNTAX, Session, arity_error, integer
from workloads.kv.resp import OK, ZERO, Command, array, bulk_or_null, null
from workloads.kv.resp import integer as integer_reply
from workloads.kv.store import CommandError, Keyspace

#: Bytes of all strings in one reply.
MAX_REPLY = 64 << 20

_UNITS = {b"EX": (1000, False), b"PX": (1, False), b"EXAT": (1000, True), b"PXAT": (1, True)}


def get(keys: Keyspace, args: Command, session: Session) -> bytes:
    """GET key"""
    value = keys.typed(args[1], bytes)
    if value is None:
        keys.misses += 1
        return null(session.version)
    keys.hits += 1
    return b"$%d\r\n%b\r\n" % (len(value), value)


def set_(keys: Keyspace, args: Command, session: Session) -> bytes:
    """SET key value [NX|XX] [GET] [EX s|PX ms|EXAT s|PXAT ms|KEEPTTL]"""
    key, value = args[1], args[2]
    if len(args) == 3:
        keys.put(key, value)
        if keys.journal is not None:
            keys.journal.append([b"SET", key, value])
        return OK
    condition = b""
    give = keep = False
    timer: tuple[bytes, bytes] | None = None
    i = 3
    while i < len(args):
        option = args[i].upper()
        if option in {b"NX", b"XX"} and condition in {b"", option}:
            condition = option
        elif option == b"GET":
            give = True
        elif option == b"KEEPTTL" and timer is None:
            keep = True
        elif option in _UNITS and not keep and (timer or (option,))[0] == option and i + 1 < len(args):
            i += 1
            timer = option, args[i]
        else:
            raise CommandError(SYNTAX)
        i += 1
    at = deadline(keys, timer[1], *_UNITS[timer[0]], command="set", positive=True) if timer else None
    old = keys.typed(key, bytes) if give else None
    if condition and (keys.get(key) is None) != (condition == b"NX"):
        return bulk_or_null(old, session.version)
    keys.put(key, value, keep)
    if at is not None and at <= keys.now:
        keys.delete(key)
        keys.log(b"DEL", key)
    elif at is not None:
        keys.expire_at(key, at)
        keys.log(b"SET", key, value, b"PXAT", b"%d" % at)
    else:
        keys.log(b"SET", key, value, *([b"KEEPTTL"] if keep else []))
    return bulk_or_null(old, session.version) if give else OK


def deadline(keys: Keyspace, text: bytes, unit: int, absolute: bool, command: str, positive: bool) -> int:
    """Milliseconds since the epoch at which a key ends."""
    amount = integer(text)
    complaint = CommandError(f"ERR invalid expire time in '{command}' command")
    if positive and amount <= 0:
        raise complaint
    at = amount * unit + (0 if absolute else keys.now)
    if not MIN_INT <= amount * unit <= MAX_INT or at > MAX_INT:
        raise complaint
    return at


def mget(keys: Keyspace, args: Command, session: Session) -> bytes:
    """MGET key [key ...]"""
    found = []
    size = 0
    for key in args[1:]:
        value = keys.get(key)
        if not isinstance(value, bytes):
            value = None
        else:
            size += len(value)
            if size > MAX_REPLY:
                raise CommandError(f"ERR the reply would be more than {MAX_REPLY} bytes; ask for fewer keys")
        if value is None:
            keys.misses += 1
        else:
            keys.hits += 1
        found.append(bulk_or_null(value, session.version))
    return array(found)


def mset(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """MSET key value [key value ...]"""
    if len(args) % 2 == 0:
        raise arity_error(b"mset")
    for i in range(1, len(args), 2):
        keys.put(args[i], args[i + 1])
    keys.log(*args)
    return OK


def append(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """APPEND key value"""
    old = keys.typed(args[1], bytes)
    value = args[2] if old is None else old + args[2]
    if len(value) > keys.longest:
        raise CommandError("ERR string exceeds maximum allowed size (proto-max-bulk-len)")
    keys.put(args[1], value, keep_ttl=True)
    keys.log(*args)
    return integer_reply(len(value))


def strlen(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """STRLEN key"""
    value = keys.typed(args[1], bytes)
    return ZERO if value is None else integer_reply(len(value))


def _add(keys: Keyspace, key: bytes, amount: int) -> bytes:
    old = keys.typed(key, bytes)
    value = amount if old is None else integer(old) + amount
    if not MIN_INT <= value <= MAX_INT:
        raise CommandError("ERR increment or decrement would overflow")
    keys.put(key, b"%d" % value, keep_ttl=True)
    keys.log(b"INCRBY", key, b"%d" % amount)
    return integer_reply(value)


def incr(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """INCR key"""
    return _add(keys, args[1], 1)


def decr(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """DECR key"""
    return _add(keys, args[1], -1)


def incrby(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """INCRBY key n"""
    return _add(keys, args[1], integer(args[2]))


def decrby(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """DECRBY key n"""
    amount = integer(args[2])
    if amount == MIN_INT:
        raise CommandError("ERR decrement would overflow")
    return _add(keys, args[1], -amount)
