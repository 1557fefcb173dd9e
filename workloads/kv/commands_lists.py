"""Commands on lists, those that wait for an element among them."""

from __future__ import annotations

import math
from collections import deque
from functools import partial
from itertools import islice

from workloads.kv import entry
from workloads.kv.arguments import SYNTAX, Session, Wait, arity_error, integer, length, number, span, wait
from workloads.kv.resp import OK, ZERO, Command, array, bulk, null, null_array, whole
from workloads.kv.store import CommandError, Keyspace, List

command = partial(entry.command, "lists")

_INDEX = "ERR index out of range"
#: Milliseconds that a client can wait, so that no clock runs over.
_MAX_WAIT_MS = 1 << 52
_SIDES = {b"LEFT": True, b"RIGHT": False}


def _push(keys: Keyspace, args: Command, _session: Session, left: bool, existing: bool = False) -> bytes:
    items = keys.typed(args[1], deque)
    if items is None:
        if existing:
            return ZERO
        items = deque()
        keys.put(args[1], items)
    (items.extendleft if left else items.extend)(args[2:])
    keys.log(b"LPUSH" if left else b"RPUSH", args[1], *args[2:])
    return whole(len(items))


command("LPUSH key element [element ...]", write=True)(partial(_push, left=True))
command("RPUSH key element [element ...]", write=True)(partial(_push, left=False))
command("LPUSHX key element [element ...]", write=True)(partial(_push, left=True, existing=True))
command("RPUSHX key element [element ...]", write=True)(partial(_push, left=False, existing=True))


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


command("LPOP key [count]", write=True)(partial(_pop, left=True))
command("RPOP key [count]", write=True)(partial(_pop, left=False))
command("LLEN key")(partial(length, kind=deque))


def _part(keys: Keyspace, args: Command) -> list[bytes] | None:
    """The elements from one place to another; None: there is no list."""
    start, stop = integer(args[2]), integer(args[3])
    items = keys.typed(args[1], deque)
    if items is None:
        return None
    first, count = span(start, stop, len(items))
    return list(islice(items, first, first + count))


command("LRANGE key start stop")(
    lambda keys, args, _session: array([*map(bulk, _part(keys, args) or ())]))


@command("LTRIM key start stop", write=True)
def ltrim(keys: Keyspace, args: Command, _session: Session) -> bytes:
    kept = _part(keys, args)
    if kept is None:
        return OK
    if kept:
        keys.put(args[1], deque(kept), keep_ttl=True)
    else:
        keys.delete(args[1])
    keys.log(*args)
    return OK


def _place(items: List, text: bytes) -> int | None:
    at = integer(text)
    return at if -len(items) <= at < len(items) else None


@command("LINDEX key index")
def lindex(keys: Keyspace, args: Command, session: Session) -> bytes:
    items = keys.typed(args[1], deque)
    if items is None:
        return null(session.version)
    at = _place(items, args[2])
    return null(session.version) if at is None else bulk(items[at])


@command("LSET key index element", write=True)
def lset(keys: Keyspace, args: Command, _session: Session) -> bytes:
    items = keys.typed(args[1], deque)
    if items is None:
        raise CommandError("ERR no such key")
    at = _place(items, args[2])
    if at is None:
        raise CommandError(_INDEX)
    items[at] = args[3]
    keys.log(*args)
    return OK


@command("LREM key count element", write=True)
def lrem(keys: Keyspace, args: Command, _session: Session) -> bytes:
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
    return whole(gone)


@command("LINSERT key BEFORE|AFTER pivot element", write=True)
def linsert(keys: Keyspace, args: Command, _session: Session) -> bytes:
    where = args[2].upper()
    if where not in {b"BEFORE", b"AFTER"}:
        raise CommandError(SYNTAX)
    items = keys.typed(args[1], deque)
    if items is None:
        return ZERO
    try:
        at = items.index(args[3])
    except ValueError:
        return whole(-1)
    items.insert(at + (where == b"AFTER"), args[4])
    keys.log(*args)
    return whole(len(items))


def _moved(keys: Keyspace, args: Command, session: Session, from_left: bool, to_left: bool) -> bytes | None:
    """The encoded element; None if there is none."""
    source, target = args[1:3]
    items = keys.typed(source, deque)
    if items is None:
        return None
    keys.typed(target, deque)
    (item,) = _take(keys, source, items, 1, from_left)
    _push(keys, [b"", target, item], session, to_left)
    return bulk(item)


def _sides(args: Command) -> tuple[bool, bool]:
    from_left, to_left = [_SIDES.get(text.upper()) for text in args[3:5]]
    if from_left is None or to_left is None:
        raise CommandError(SYNTAX)
    return from_left, to_left


def _move(keys: Keyspace, args: Command, session: Session, sides: tuple[bool, bool] | None = None) -> bytes:
    return _moved(keys, args, session, *(sides or _sides(args))) or null(session.version)


command("LMOVE source destination LEFT|RIGHT LEFT|RIGHT", write=True)(_move)
command("RPOPLPUSH source destination", write=True)(partial(_move, sides=(False, True)))


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


command("BLPOP key [key ...] timeout", write=True, stateful=True, no_script=True)(
    partial(_blocking_pop, left=True))
command("BRPOP key [key ...] timeout", write=True, stateful=True, no_script=True)(
    partial(_blocking_pop, left=False))


def _blocking_move(keys: Keyspace, args: Command, session: Session,
                   sides: tuple[bool, bool] | None = None) -> bytes:
    from_left, to_left = sides or _sides(args)

    def serve(keys: Keyspace, _source: bytes) -> bytes | None:
        return _moved(keys, args, session, from_left, to_left)

    return wait(keys, session, Wait([args[1]], deque, timeout_ms(args[-1]), serve, null(session.version)))


command("BLMOVE source destination LEFT|RIGHT LEFT|RIGHT timeout", write=True, stateful=True, no_script=True)(
    _blocking_move)
command("BRPOPLPUSH source destination timeout", write=True, stateful=True, no_script=True)(
    partial(_blocking_move, sides=(False, True)))
