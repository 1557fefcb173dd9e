"""Commands on lists, those that wait for an element among them."""

from __future__ import annotations

import math
from collections import deque
from functools import partial
from itertools import islice

from workloads.kv.arguments import SYNTAX, Session, Wait, arity_error, integer, number, wait
from workloads.kv.resp import (
    EMPTY_ARRAY,
    OK,
    ZERO,
    Command,
    array,
    bulk,
    bulk_or_null,
    null,
    null_array,
)
from workloads.kv.resp import integer as integer_reply
from workloads.kv.store import CommandError, Keyspace, List

_INDEX = "ERR index out of range"
#: Milliseconds that a client can wait, so that no clock runs over.
_MAX_WAIT_MS = 1 << 52
_SIDES = {b"LEFT": True, b"RIGHT": False}


def _push(keys: Keyspace, args: Command, left: bool, existing: bool = False) -> bytes:
    items = keys.typed(args[1], deque)
    if items is None:
        if existing:
            return ZERO
        items = deque()
        keys.put(args[1], items)
    (items.extendleft if left else items.extend)(args[2:])
    keys.log(b"LPUSH" if left else b"RPUSH", args[1], *args[2:])
    return integer_reply(len(items))


def lpush(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """LPUSH key element [element ...]"""
    return _push(keys, args, left=True)


def rpush(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """RPUSH key element [element ...]"""
    return _push(keys, args, left=False)


def lpushx(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """LPUSHX key element [element ...]"""
    return _push(keys, args, left=True, existing=True)


def rpushx(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """RPUSHX key element [element ...]"""
    return _push(keys, args, left=False, existing=True)


def _take(keys: Keyspace, key: bytes, items: List, count: int, left: bool) -> list[bytes]:
    """Elements off one end, which are gone then."""
    take = items.popleft if left else items.pop
    found = [take() for _ in range(min(count, len(items)))]
    if not items:
        keys.delete(key)
    if found:
        keys.log(b"LPOP" if left else b"RPOP", key, b"%d" % len(found))
    return found


def _pop(keys: Keyspace, args: Command, session: Session, left: bool) -> bytes:
    if len(args) > 3:
        raise arity_error(args[0])
    count = integer(args[2], "ERR value is out of range, must be positive") if len(args) == 3 else 1
    if count < 0:
        raise CommandError("ERR value is out of range, must be positive")
    items = keys.typed(args[1], deque)
    if len(args) == 2:
        return null(session.version) if items is None else bulk(_take(keys, args[1], items, 1, left)[0])
    if items is None:
        return null_array(session.version)
    return array([bulk(item) for item in _take(keys, args[1], items, count, left)])


def lpop(keys: Keyspace, args: Command, session: Session) -> bytes:
    """LPOP key [count]"""
    return _pop(keys, args, session, left=True)


def rpop(keys: Keyspace, args: Command, session: Session) -> bytes:
    """RPOP key [count]"""
    return _pop(keys, args, session, left=False)


def llen(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """LLEN key"""
    return integer_reply(len(keys.typed(args[1], deque) or ()))


def _slice(args: Command, size: int) -> tuple[int, int]:
    """First place and how many, of ``start stop`` that may count from the end."""
    start, stop = integer(args[2]), integer(args[3])
    start = max(0, start + size) if start < 0 else start
    stop = min(size - 1, stop + size if stop < 0 else stop)
    return start, max(0, stop - start + 1)


def lrange(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """LRANGE key start stop"""
    integer(args[2]), integer(args[3])
    items = keys.typed(args[1], deque)
    if items is None:
        return EMPTY_ARRAY
    start, count = _slice(args, len(items))
    return array([bulk(item) for item in islice(items, min(start, len(items)), min(start + count, len(items)))])


def _place(items: List, text: bytes) -> int | None:
    at = integer(text)
    return at if -len(items) <= at < len(items) else None


def lindex(keys: Keyspace, args: Command, session: Session) -> bytes:
    """LINDEX key index"""
    items = keys.typed(args[1], deque)
    if items is None:
        return null(session.version)
    at = _place(items, args[2])
    return null(session.version) if at is None else bulk(items[at])


def lset(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """LSET key index element"""
    items = keys.typed(args[1], deque)
    if items is None:
        raise CommandError("ERR no such key")
    at = _place(items, args[2])
    if at is None:
        raise CommandError(_INDEX)
    items[at] = args[3]
    keys.log(*args)
    return OK


def ltrim(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """LTRIM key start stop"""
    integer(args[2]), integer(args[3])
    items = keys.typed(args[1], deque)
    if items is None:
        return OK
    start, count = _slice(args, len(items))
    kept = deque(islice(items, min(start, len(items)), min(start + count, len(items))))
    if kept:
        keys.put(args[1], kept, keep_ttl=True)
    else:
        keys.delete(args[1])
    keys.log(*args)
    return OK


def lrem(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """LREM key count element"""
    count = integer(args[2])
    items = keys.typed(args[1], deque)
    if items is None:
        return ZERO
    left = abs(count) or len(items)
    kept: List = deque()
    keep = kept.appendleft if count < 0 else kept.append
    for item in reversed(items) if count < 0 else items:
        if left and item == args[3]:
            left -= 1
        else:
            keep(item)
    gone = len(items) - len(kept)
    if gone:
        if kept:
            keys.put(args[1], kept, keep_ttl=True)
        else:
            keys.delete(args[1])
        keys.log(*args)
    return integer_reply(gone)


def linsert(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """LINSERT key BEFORE|AFTER pivot element"""
    where = args[2].upper()
    if where not in {b"BEFORE", b"AFTER"}:
        raise CommandError(SYNTAX)
    items = keys.typed(args[1], deque)
    if items is None:
        return ZERO
    try:
        at = items.index(args[3])
    except ValueError:
        return integer_reply(-1)
    items.insert(at + (where == b"AFTER"), args[4])
    keys.log(*args)
    return integer_reply(len(items))


def _move(keys: Keyspace, source: bytes, target: bytes, from_left: bool, to_left: bool) -> bytes | None:
    """The encoded element; None if there is none."""
    items = keys.typed(source, deque)
    if items is None:
        return None
    keys.typed(target, deque)
    (item,) = _take(keys, source, items, 1, from_left)
    _push(keys, [b"", target, item], to_left)
    return bulk(item)


def _side(text: bytes) -> bool:
    side = _SIDES.get(text.upper())
    if side is None:
        raise CommandError(SYNTAX)
    return side


def lmove(keys: Keyspace, args: Command, session: Session) -> bytes:
    """LMOVE source destination LEFT|RIGHT LEFT|RIGHT"""
    return _move(keys, args[1], args[2], _side(args[3]), _side(args[4])) or null(session.version)


def rpoplpush(keys: Keyspace, args: Command, session: Session) -> bytes:
    """RPOPLPUSH source destination"""
    return _move(keys, args[1], args[2], from_left=False, to_left=True) or null(session.version)


# -- those that wait -----------------------------------------------------------------------------------------

def timeout_ms(text: bytes) -> int:
    """How long to wait, given in seconds; 0: for ever."""
    seconds = number(text, "ERR timeout is not a float or out of range", overflow=True)
    if seconds * 1000 > _MAX_WAIT_MS:
        raise CommandError("ERR timeout is out of range")
    if seconds < 0:
        raise CommandError("ERR timeout is negative")
    return math.ceil(seconds * 1000)


def _first(keys: Keyspace, key: bytes, left: bool) -> bytes | None:
    items = keys.typed(key, deque)
    return None if items is None else array([bulk(key), bulk(_take(keys, key, items, 1, left)[0])])


def _blocking_pop(keys: Keyspace, args: Command, session: Session, left: bool) -> bytes:
    return wait(keys, session, Wait(args[1:-1], deque, timeout_ms(args[-1]), partial(_first, left=left),
                                    null_array(session.version)))


def blpop(keys: Keyspace, args: Command, session: Session) -> bytes:
    """BLPOP key [key ...] timeout"""
    return _blocking_pop(keys, args, session, left=True)


def brpop(keys: Keyspace, args: Command, session: Session) -> bytes:
    """BRPOP key [key ...] timeout"""
    return _blocking_pop(keys, args, session, left=False)


def _blocking_move(keys: Keyspace, session: Session, source: bytes, target: bytes, sides: tuple[bool, bool],
                   timeout: bytes) -> bytes:
    def serve(keys: Keyspace, key: bytes) -> bytes | None:
        return _move(keys, key, target, *sides)

    nothing = bulk_or_null(None, session.version)
    return wait(keys, session, Wait([source], deque, timeout_ms(timeout), serve, nothing))


def blmove(keys: Keyspace, args: Command, session: Session) -> bytes:
    """BLMOVE source destination LEFT|RIGHT LEFT|RIGHT timeout"""
    return _blocking_move(keys, session, args[1], args[2], (_side(args[3]), _side(args[4])), args[5])


def brpoplpush(keys: Keyspace, args: Command, session: Session) -> bytes:
    """BRPOPLPUSH source destination timeout"""
    return _blocking_move(keys, session, args[1], args[2], (False, True), args[3])
