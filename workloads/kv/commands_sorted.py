"""Commands on sorted sets: what YCSB's index needs."""

from __future__ import annotations

import math
from itertools import islice

from workloads.kv.arguments import NOT_AN_INTEGER, SYNTAX, Session, integer, number
from workloads.kv.resp import EMPTY_ARRAY, ZERO, Command, array, bulk, double, null
from workloads.kv.resp import integer as integer_reply
from workloads.kv.store import CommandError, Keyspace
from workloads.kv.zset import Pair, SortedSet

_OPTIONS = frozenset((b"NX", b"XX", b"GT", b"LT", b"CH", b"INCR"))
_BOUND = "ERR min or max is not a float"


def zadd(keys: Keyspace, args: Command, session: Session) -> bytes:
    """ZADD key [NX|XX] [GT|LT] [CH] [INCR] score member [score member ...]"""
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
        return null(session.version) if last is None else double(last, session.version)
    return integer_reply(added + changed if b"CH" in options else added)


def zrem(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """ZREM key member [member ...]"""
    members = keys.typed(args[1], SortedSet)
    if members is None:
        return ZERO
    gone = sum([members.remove(member) for member in args[2:]])
    if not members.scores:
        keys.delete(args[1])
    if gone:
        keys.log(*args)
    return integer_reply(gone)


def zcard(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """ZCARD key"""
    return integer_reply(len(keys.typed(args[1], SortedSet) or ()))


def zscore(keys: Keyspace, args: Command, session: Session) -> bytes:
    """ZSCORE key member"""
    members = keys.typed(args[1], SortedSet)
    score = None if members is None else members.scores.get(args[2])
    return null(session.version) if score is None else double(score, session.version)


def zrange(keys: Keyspace, args: Command, session: Session) -> bytes:
    """ZRANGE key start stop [WITHSCORES]"""
    scores = _with_scores(args[4:])
    start, stop = integer(args[2]), integer(args[3])
    members = keys.typed(args[1], SortedSet)
    if members is None:
        return EMPTY_ARRAY
    size = len(members)
    start = max(0, start + size) if start < 0 else start
    stop = min(size - 1, stop + size if stop < 0 else stop)
    found = members.range(start, stop - start + 1) if start <= stop else []
    return _pairs(found, scores, session)


def zrangebyscore(keys: Keyspace, args: Command, session: Session) -> bytes:
    """ZRANGEBYSCORE key min max [WITHSCORES] [LIMIT offset count]"""
    scores = False
    offset, count = 0, -1
    at = 4
    while at < len(args):
        option = args[at].upper()
        if option == b"WITHSCORES":
            scores = True
            at += 1
        elif option == b"LIMIT" and at + 2 < len(args):
            offset, count = integer(args[at + 1], NOT_AN_INTEGER), integer(args[at + 2], NOT_AN_INTEGER)
            at += 3
        else:
            raise CommandError(SYNTAX)
    low, without_low = _bound(args[2])
    high, without_high = _bound(args[3])
    members = keys.typed(args[1], SortedSet)
    found: list[Pair] = []
    if members is not None and offset >= 0:
        end = offset + count if count >= 0 else None
        for pair in islice(members.from_score(low, without_low), None if end is None else min(end, len(members))):
            if pair[0] > high or (without_high and pair[0] == high):
                break
            found.append(pair)
        del found[:offset]
    return _pairs(found, scores, session)


def _bound(text: bytes) -> tuple[float, bool]:
    """A score, and whether it is excluded: ``(5``. Nothing is 0 here, and what is too large is infinite."""
    excluded = text[:1] == b"("
    return number(text[excluded:] or b"0", _BOUND, overflow=True), excluded


def _with_scores(options: Command) -> bool:
    if any(option.upper() != b"WITHSCORES" for option in options):
        raise CommandError(SYNTAX)
    return bool(options)


def _pairs(found: list[Pair], scores: bool, session: Session) -> bytes:
    version = session.version
    if not scores:
        return array([bulk(member) for _score, member in found])
    if version == 3:
        return array([array([bulk(member), double(score, 3)]) for score, member in found])
    return array([x for score, member in found for x in (bulk(member), double(score, 2))])
