"""Commands on sets."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from workloads.kv import entry
from workloads.kv.arguments import SYNTAX, Session, has, integer, length, remove
from workloads.kv.commands_strings import MAX_REPLY
from workloads.kv.resp import EMPTY_ARRAY, ONE, ZERO, Command, array, bulk, null, unordered, whole
from workloads.kv.store import CommandError, Keyspace, Slots

command = partial(entry.command, "sets")

_POSITIVE = "ERR value is out of range, must be positive"
#: Members that SRANDMEMBER gives at most, where it may give the same one again and again.
_MAX_RANDOM = 1_000_000


@command("SADD key member [member ...]", write=True)
def sadd(keys: Keyspace, args: Command, _session: Session) -> bytes:
    members = keys.typed(args[1], Slots)
    if members is None:
        members = Slots()
        keys.put(args[1], members)
    before = len(members)
    for member in args[2:]:
        if member not in members:
            members.add(member)
    if len(members) > before:
        keys.log(*args)
    return whole(len(members) - before)


command("SREM key member [member ...]", write=True)(partial(remove, kind=Slots))
command("SISMEMBER key member")(partial(has, kind=Slots))


@command("SMEMBERS key")
def smembers(keys: Keyspace, args: Command, session: Session) -> bytes:
    members = keys.typed(args[1], Slots)
    return unordered([] if members is None else [bulk(member) for member in members.keys], session.version)


@command("SMISMEMBER key member [member ...]")
def smismember(keys: Keyspace, args: Command, _session: Session) -> bytes:
    members = keys.typed(args[1], Slots)
    return array([ONE if members is not None and member in members else ZERO for member in args[2:]])


command("SCARD key")(partial(length, kind=Slots))


@command("SPOP key [count]", write=True)
def spop(keys: Keyspace, args: Command, session: Session) -> bytes:
    count = _count(args, _POSITIVE)
    if count is not None and count < 0:
        raise CommandError(_POSITIVE)
    members = keys.typed(args[1], Slots)
    if members is None:
        return null(session.version) if count is None else unordered([], session.version)
    if count is None:
        gone = [members.any()]
    else:
        gone = list(members.keys) if count >= len(members) else random.sample(members.keys, count)
    keys.take(args[1], members, gone)
    return bulk(gone[0]) if count is None else unordered([bulk(member) for member in gone], session.version)


@command("SRANDMEMBER key [count]")
def srandmember(keys: Keyspace, args: Command, session: Session) -> bytes:
    count = _count(args)
    members = keys.typed(args[1], Slots)
    if count is None:
        return null(session.version) if members is None else bulk(members.any())
    if members is None:
        return EMPTY_ARRAY
    if count < -_MAX_RANDOM:
        raise CommandError("ERR value is out of range")
    if count < 0 and -count * max(map(len, members.keys)) > MAX_REPLY:
        raise CommandError(f"ERR the reply would be more than {MAX_REPLY} bytes; ask for fewer members")
    found = (random.choices(members.keys, k=-count) if count < 0 else
             random.sample(members.keys, min(count, len(members))))
    return array([bulk(member) for member in found])


def _count(args: Command, complaint: str | None = None) -> int | None:
    if len(args) > 3:
        raise CommandError(SYNTAX)
    if len(args) == 2:
        return None
    return integer(args[2], complaint) if complaint else integer(args[2])


@command("SMOVE source destination member", write=True)
def smove(keys: Keyspace, args: Command, _session: Session) -> bytes:
    source, target, member = args[1:]
    members = keys.typed(source, Slots)
    if members is None:
        return ZERO
    keys.typed(target, Slots)
    if member not in members:
        return ZERO
    if source != target:
        keys.take(source, members, [member])
        sadd(keys, [b"SADD", target, member], _session)
    return ONE


def _combine(keys: Keyspace, args: Command, session: Session,
             how: Callable[[set[bytes], set[bytes]], set[bytes]]) -> bytes:
    found = [keys.typed(name, Slots) for name in args[1:]]
    first, *others = [set(members.keys) if members is not None else set() for members in found]
    for other in others:
        first = how(first, other)
    return unordered([bulk(member) for member in first], session.version)


command("SINTER key [key ...]")(partial(_combine, how=set.intersection))
command("SUNION key [key ...]")(partial(_combine, how=set.union))
command("SDIFF key [key ...]")(partial(_combine, how=set.difference))
