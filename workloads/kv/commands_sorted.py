"""Commands that change sorted sets; commands_ranges.py has those that look at parts of one."""

from __future__ import annotations

import math
from functools import partial

from workloads.kv import entry
from workloads.kv.arguments import SYNTAX, Session, Wait, integer, length, number, remove, wait
from workloads.kv.commands_lists import timeout_ms
from workloads.kv.resp import EMPTY_ARRAY, Command, array, bulk, double, null, null_array, whole
from workloads.kv.store import CommandError, Keyspace
from workloads.kv.zset import Pair, SortedSet

command = partial(entry.command, "sorted sets")

_OPTIONS = frozenset((b"NX", b"XX", b"GT", b"LT", b"CH", b"INCR"))
_POSITIVE = "ERR value is out of range, must be positive"


def _scores(keys: Keyspace, key: bytes) -> dict[bytes, float]:
    """To be looked at, by member: of a key that is not there, none."""
    members = keys.typed(key, SortedSet)
    return {} if members is None else members.scores


def _score(score: float | None, session: Session) -> bytes:
    return null(session.version) if score is None else double(score, session.version)


@command("ZADD key [NX|XX] [GT|LT] [CH] [INCR] score member [score member ...]", write=True)
def zadd(keys: Keyspace, args: Command, session: Session) -> bytes:
    key = args[1]
    options = set()
    at = 2
    while at < len(args) and (option := args[at].upper()) in _OPTIONS:
        options.add(option)
        at += 1
    pairs = args[at:]
    if len(pairs) % 2 or not pairs:
        raise CommandError(SYNTAX)
    if b"NX" in options and b"XX" in options:
        raise CommandError("ERR XX and NX options at the same time are not compatible")
    if len(options & {b"NX", b"GT", b"LT"}) > 1:
        raise CommandError("ERR GT, LT, and/or NX options at the same time are not compatible")
    if b"INCR" in options and len(pairs) > 2:
        raise CommandError("ERR INCR option supports a single increment-element pair")
    scores = [number(score) for score in pairs[::2]]
    members = keys.typed(key, SortedSet)
    new = SortedSet() if members is None else members
    added = changed = 0
    last: float | None = None
    for given, member in zip(scores, pairs[1::2], strict=True):
        score = given
        old = new.scores.get(member)
        last = None
        if (old is None and b"XX" in options) or (old is not None and b"NX" in options):
            continue
        if b"INCR" in options and old is not None:
            score += old
            if math.isnan(score):
                raise CommandError("ERR resulting score is not a number (NaN)")
        if old is not None and ((b"GT" in options and score <= old) or (b"LT" in options and score >= old)):
            continue
        last = score
        added += old is None
        changed += old is not None and old != score
        new.put(member, score)
    if members is None and new.scores:
        keys.put(key, new)
    if added or changed:
        present = [m for m in dict.fromkeys(pairs[1::2]) if m in new.scores]
        entries = [x for m in present for x in (repr(new.scores[m]).encode(), m)]
        keys.log(b"ZADD", key, *entries)
    if b"INCR" in options:
        return _score(last, session)
    return whole(added + changed if b"CH" in options else added)


command("ZREM key member [member ...]", write=True)(partial(remove, kind=SortedSet))
command("ZCARD key")(partial(length, kind=SortedSet))
command("ZSCORE key member")(lambda keys, args, session: _score(_scores(keys, args[1]).get(args[2]), session))


@command("ZMSCORE key member [member ...]")
def zmscore(keys: Keyspace, args: Command, session: Session) -> bytes:
    found = _scores(keys, args[1])
    return array([_score(found.get(member), session) for member in args[2:]])


command("ZINCRBY key n member", write=True)(
    lambda keys, args, session: zadd(keys, [b"ZADD", args[1], b"INCR", *args[2:]], session))


def _ends(members: SortedSet, count: int, highest: bool) -> list[Pair]:
    """The first by score, or the last, backwards."""
    if not highest:
        return members.range(0, count)
    count = min(count, len(members))
    return members.range(len(members) - count, count)[::-1]


def _pop(keys: Keyspace, args: Command, session: Session, highest: bool) -> bytes:
    if len(args) > 3:
        raise CommandError(SYNTAX)
    count = integer(args[2], _POSITIVE) if len(args) == 3 else 1
    if count < 0:
        raise CommandError(_POSITIVE)
    members = keys.typed(args[1], SortedSet)
    if members is None:
        return EMPTY_ARRAY
    found = _ends(members, count, highest)
    keys.take(args[1], members, [member for _score, member in found])
    if session.version == 3 and len(args) == 3:
        return array([array([bulk(member), double(score, 3)]) for score, member in found])
    return array([x for score, member in found for x in (bulk(member), double(score, session.version))])


command("ZPOPMIN key [count]", write=True)(partial(_pop, highest=False))
command("ZPOPMAX key [count]", write=True)(partial(_pop, highest=True))


def _first(keys: Keyspace, key: bytes, highest: bool, version: int) -> bytes | None:
    members = keys.typed(key, SortedSet)
    if members is None:
        return None
    found = _ends(members, 1, highest)
    keys.take(key, members, [member for _score, member in found])
    ((score, member),) = found
    return array([bulk(key), bulk(member), double(score, version)])


def _blocking_pop(keys: Keyspace, args: Command, session: Session, highest: bool) -> bytes:
    serve = partial(_first, highest=highest, version=session.version)
    what = Wait(args[1:-1], SortedSet, timeout_ms(args[-1]), serve, null_array(session.version))
    return wait(keys, session, what)


command("BZPOPMIN key [key ...] timeout", write=True, stateful=True, no_script=True)(
    partial(_blocking_pop, highest=False))
command("BZPOPMAX key [key ...] timeout", write=True, stateful=True, no_script=True)(
    partial(_blocking_pop, highest=True))
