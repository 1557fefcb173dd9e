"""Commands that look at, or remove, a part of a sorted set: by rank, by score, or by member."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import dropwhile, islice, takewhile

from workloads.kv import entry
from workloads.kv.arguments import SYNTAX, Session, integer, number, span
from workloads.kv.resp import EMPTY_ARRAY, ZERO, Command, array, bulk, double, null, whole
from workloads.kv.store import CommandError, Keyspace
from workloads.kv.zset import Pair, SortedSet

command = partial(entry.command, "ranges of sorted sets")

_FLOAT_BOUND = "ERR min or max is not a float"
_LEX_BOUND = "ERR min or max not valid string range item"
_OPTIONS = frozenset((b"WITHSCORES", b"LIMIT"))
Within = Callable[[Pair], bool]
#: What is at or above the lower bound, and at or below the upper one; and the scores that there can be.
Bounds = tuple[Within, Within, float, float]
ReadBounds = Callable[[bytes, bytes], Bounds]


def _ranks(low: bytes, high: bytes) -> tuple[int, int]:
    return integer(low), integer(high)


def _score(text: bytes) -> tuple[float, bool]:
    """A score, and whether it is excluded: ``(5``. Nothing is 0 here, and what is too large is infinite."""
    excluded = text[:1] == b"("
    return number(text[excluded:].lstrip(b" \t\n\v\f\r") if text[excluded:] else b"0", _FLOAT_BOUND,
                  overflow=True), excluded


def _by_score(low: bytes, high: bytes) -> Bounds:
    (least, without_least), (most, without_most) = _score(low), _score(high)
    return (lambda pair: pair[0] > least if without_least else pair[0] >= least,
            lambda pair: pair[0] < most if without_most else pair[0] <= most, least, most)


def _member(text: bytes) -> tuple[int, bytes, bool]:
    """Where it is (-1: below all members, 1: above all), a member, and whether that is excluded."""
    if text == b"-":
        return -1, b"", False
    if text == b"+":
        return 1, b"", False
    if text[:1] not in {b"(", b"["}:
        raise CommandError(_LEX_BOUND)
    return 0, text[1:], text[:1] == b"("


def _by_member(low: bytes, high: bytes) -> Bounds:
    (at_least, least, without_least), (at_most, most, without_most) = _member(low), _member(high)

    def above(pair: Pair) -> bool:
        return at_least < 0 or (not at_least and (pair[1] > least if without_least else pair[1] >= least))

    def below(pair: Pair) -> bool:
        return at_most > 0 or (not at_most and (pair[1] < most if without_most else pair[1] <= most))

    return above, below, -math.inf, math.inf


def _between(members: SortedSet, bounds: Bounds, reverse: bool) -> Iterator[Pair]:
    """The members within a range, in order. Where members are compared all have the same score: so does Redis."""
    above, below, least, most = bounds
    if reverse:
        return takewhile(above, dropwhile(lambda pair: not below(pair), members.backwards(most)))
    return takewhile(below, dropwhile(lambda pair: not above(pair), members.from_score(least, exclusive=False)))


def _by_rank(members: SortedSet, low: int, high: int, reverse: bool) -> list[Pair]:
    first, count = span(low, high, len(members))
    return members.range(len(members) - first - count, count)[::-1] if reverse else members.range(first, count)


def _range(keys: Keyspace, args: Command, session: Session, by: bytes = b"", reverse: bool = False,
           more: frozenset[bytes] = frozenset()) -> bytes:
    """``key low high`` and options, some of which only some commands know."""
    words = _OPTIONS | more
    scores = False
    limit: tuple[int, int] | None = None
    at = 4
    while at < len(args):
        option = args[at].upper()
        if option not in words:
            raise CommandError(SYNTAX)
        if option == b"LIMIT":
            if at + 2 >= len(args):
                raise CommandError(SYNTAX)
            limit = integer(args[at + 1]), integer(args[at + 2])
            at += 2
        elif option == b"WITHSCORES":
            scores = True
        elif option == b"REV":
            reverse = True
            words = words - {b"REV"}
        else:
            by = option
            words = words - {b"BYSCORE", b"BYLEX"}
        at += 1
    if limit is not None and limit[1] != -1 and not by:
        raise CommandError("ERR syntax error, LIMIT is only supported in combination with either BYSCORE or BYLEX")
    if scores and by == b"BYLEX":
        raise CommandError("ERR syntax error, WITHSCORES not supported in combination with BYLEX")
    low, high = (args[3], args[2]) if reverse and by else (args[2], args[3])
    ranks, bounds = (0, 0), None
    if by:
        bounds = (_by_score if by == b"BYSCORE" else _by_member)(low, high)
    else:
        ranks = _ranks(low, high)
    members = keys.typed(args[1], SortedSet)
    if members is None:
        return EMPTY_ARRAY
    if bounds is None:
        return _pairs(_by_rank(members, *ranks, reverse), scores, session)
    offset, count = limit or (0, -1)
    if offset < 0:
        return EMPTY_ARRAY
    size = len(members)
    stop = None if count < 0 else min(offset + count, size)
    return _pairs(list(islice(_between(members, bounds, reverse), min(offset, size), stop)), scores, session)


command("ZRANGE key start stop [BYSCORE|BYLEX] [REV] [LIMIT offset count] [WITHSCORES]")(
    partial(_range, more=frozenset((b"BYSCORE", b"BYLEX", b"REV"))))
command("ZREVRANGE key start stop [WITHSCORES]")(partial(_range, reverse=True))
command("ZRANGEBYSCORE key min max [WITHSCORES] [LIMIT offset count]")(partial(_range, by=b"BYSCORE"))
command("ZREVRANGEBYSCORE key max min [WITHSCORES] [LIMIT offset count]")(
    partial(_range, by=b"BYSCORE", reverse=True))
command("ZRANGEBYLEX key min max [LIMIT offset count]")(partial(_range, by=b"BYLEX"))
command("ZREVRANGEBYLEX key max min [LIMIT offset count]")(partial(_range, by=b"BYLEX", reverse=True))


def _count(keys: Keyspace, args: Command, _session: Session, read: ReadBounds) -> bytes:
    bounds = read(args[2], args[3])
    members = keys.typed(args[1], SortedSet)
    return ZERO if members is None else whole(sum(1 for _pair in _between(members, bounds, reverse=False)))


command("ZCOUNT key min max")(partial(_count, read=_by_score))
command("ZLEXCOUNT key min max")(partial(_count, read=_by_member))


def _remove(keys: Keyspace, key: bytes, found: Callable[[SortedSet], list[Pair]]) -> bytes:
    members = keys.typed(key, SortedSet)
    if members is None:
        return ZERO
    gone = found(members)
    keys.take(key, members, [member for _score, member in gone])
    return whole(len(gone))


@command("ZREMRANGEBYRANK key start stop", write=True)
def zremrangebyrank(keys: Keyspace, args: Command, _session: Session) -> bytes:
    low, high = _ranks(args[2], args[3])
    return _remove(keys, args[1], lambda members: _by_rank(members, low, high, reverse=False))


def _remove_within(keys: Keyspace, args: Command, _session: Session, read: ReadBounds) -> bytes:
    bounds = read(args[2], args[3])
    return _remove(keys, args[1], lambda members: list(_between(members, bounds, reverse=False)))


command("ZREMRANGEBYSCORE key min max", write=True)(partial(_remove_within, read=_by_score))
command("ZREMRANGEBYLEX key min max", write=True)(partial(_remove_within, read=_by_member))


def _rank(keys: Keyspace, args: Command, session: Session, reverse: bool) -> bytes:
    members = keys.typed(args[1], SortedSet)
    score = None if members is None else members.scores.get(args[2])
    if members is None or score is None:
        return null(session.version)
    rank = members.rank((score, args[2]))
    return whole(len(members) - 1 - rank if reverse else rank)


command("ZRANK key member")(partial(_rank, reverse=False))
command("ZREVRANK key member")(partial(_rank, reverse=True))


def _pairs(found: list[Pair], scores: bool, session: Session) -> bytes:
    version = session.version
    if not scores:
        return array([bulk(member) for _score, member in found])
    if version == 3:
        return array([array([bulk(member), double(score, 3)]) for score, member in found])
    return array([x for score, member in found for x in (bulk(member), double(score, 2))])
