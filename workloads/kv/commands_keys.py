"""Commands on keys, whatever they hold: existence, expiry, scanning."""

from __future__ import annotations

import re
from functools import lru_cache, partial

from workloads.kv import entry
from workloads.kv.arguments import NOT_AN_INTEGER, SYNTAX, Session, integer
from workloads.kv.commands_strings import deadline, end_at
from workloads.kv.resp import OK, ONE, ZERO, Command, array, bulk, bulk_or_null, whole
from workloads.kv.store import KINDS, CommandError, Keyspace

command = partial(entry.command, "keys")

#: Keys that one SCAN looks at, at most.
_MAX_COUNT = 100_000
#: Bytes of a pattern: to read a long one takes long.
_MAX_PATTERN = 1024


@command("UNLINK key [key ...]", write=True)
@command("DEL key [key ...]", write=True)
def delete(keys: Keyspace, args: Command, _session: Session) -> bytes:
    gone = 0
    for key in args[1:]:
        if keys.delete(key):
            keys.log(b"DEL", key)
            gone += 1
    return whole(gone)


@command("TOUCH key [key ...]")
@command("EXISTS key [key ...]")
def exists(keys: Keyspace, args: Command, _session: Session) -> bytes:
    return whole(sum([keys.get(key) is not None for key in args[1:]]))


command("TYPE key")(lambda keys, args, _session: b"+%b\r\n" % _type_name(keys, args[1]))


def _type_name(keys: Keyspace, key: bytes) -> bytes:
    value = keys.get(key)
    return b"none" if value is None else KINDS[type(value)].name


def _expire(keys: Keyspace, args: Command, _session: Session, unit: int, absolute: bool, command: str) -> bytes:
    key = args[1]
    options = {option.upper() for option in args[3:]}
    for option in args[3:]:
        if option.upper() not in {b"NX", b"XX", b"GT", b"LT"}:
            raise CommandError(f"ERR Unsupported option {option.decode('latin-1')}")
    if b"NX" in options and len(options) > 1:
        raise CommandError("ERR NX and XX, GT or LT options at the same time are not compatible")
    if {b"GT", b"LT"} <= options:
        raise CommandError("ERR GT and LT options at the same time are not compatible")
    at = deadline(keys, args[2], unit, absolute, command, positive=False)
    if keys.get(key) is None:
        return ZERO
    old = keys.expires_at(key)
    if ((b"NX" in options and old is not None) or (b"XX" in options and old is None)
            or (b"GT" in options and (old is None or at <= old))
            or (b"LT" in options and old is not None and at >= old)):
        return ZERO
    end_at(keys, key, at, b"PEXPIREAT", key, b"%d" % at)
    return ONE


command("EXPIRE key s [NX|XX|GT|LT]", write=True)(partial(_expire, unit=1000, absolute=False, command="expire"))
command("PEXPIRE key ms [NX|XX|GT|LT]", write=True)(partial(_expire, unit=1, absolute=False, command="pexpire"))
command("EXPIREAT key s [NX|XX|GT|LT]", write=True)(partial(_expire, unit=1000, absolute=True, command="expireat"))
command("PEXPIREAT key ms [NX|XX|GT|LT]", write=True)(partial(_expire, unit=1, absolute=True, command="pexpireat"))


def _end(keys: Keyspace, args: Command, _session: Session, unit: int, absolute: bool) -> bytes:
    """When a key ends, rounded to units of so many milliseconds; -1: never, -2: there is none."""
    if keys.get(args[1]) is None:
        return whole(-2)
    at = keys.expires_at(args[1])
    return whole(-1 if at is None else (at - (0 if absolute else keys.databases.now) + unit // 2) // unit)


command("TTL key")(partial(_end, unit=1000, absolute=False))
command("PTTL key")(partial(_end, unit=1, absolute=False))
command("EXPIRETIME key")(partial(_end, unit=1000, absolute=True))
command("PEXPIRETIME key")(partial(_end, unit=1, absolute=True))


def _rename(keys: Keyspace, args: Command, _session: Session, new: bool) -> bytes:
    """``new``: not to a key that is there, and the reply tells whether it was done."""
    source, target = args[1:]
    value = keys.get(source)
    if value is None:
        raise CommandError("ERR no such key")
    if new and keys.get(target) is not None:
        return ZERO
    if source != target:
        keys.delete(target)
        keys.hand_over(source, value, keys, target)
        keys.log(b"RENAME", source, target)
    return ONE if new else OK


command("RENAME key newkey", write=True)(partial(_rename, new=False))
command("RENAMENX key newkey", write=True)(partial(_rename, new=True))
command("RANDOMKEY")(lambda keys, _args, session: bulk_or_null(keys.any(), session.version))


@command("PERSIST key", write=True)
def persist(keys: Keyspace, args: Command, _session: Session) -> bytes:
    if keys.get(args[1]) is None or not keys.persist(args[1]):
        return ZERO
    keys.log(*args)
    return ONE


@command("SCAN cursor [MATCH pattern] [COUNT n] [TYPE t]")
def scan(keys: Keyspace, args: Command, _session: Session) -> bytes:
    cursor = args[1]
    if not (cursor.isdigit() and len(cursor) <= 20 and int(cursor) < 1 << 64):
        raise CommandError("ERR invalid cursor")
    pattern, count, kind = b"*", 10, b""
    for i in range(2, len(args), 2):
        option = args[i].upper()
        if i + 1 == len(args):
            raise CommandError(SYNTAX)
        if option == b"MATCH":
            pattern = args[i + 1]
        elif option == b"COUNT":
            count = integer(args[i + 1], NOT_AN_INTEGER)
            if count < 1:
                raise CommandError(SYNTAX)
        elif option == b"TYPE":
            kind = args[i + 1].lower()
        else:
            raise CommandError(SYNTAX)
    found, following = keys.scan(int(cursor), min(count, _MAX_COUNT))
    found = _matching(found, pattern)
    if kind:
        found = [key for key in found if _type_name(keys, key) == kind]
    return array([bulk(b"%d" % following), array([bulk(key) for key in found])])


command("KEYS pattern")(lambda keys, args, _session: array([bulk(key) for key in _matching(keys.keys(), args[1])]))
command("DBSIZE")(lambda keys, _args, _session: whole(len(keys)))


def _matching(found: list[bytes], pattern: bytes) -> list[bytes]:
    if pattern == b"*":
        return found
    match = glob(pattern).fullmatch
    return [key for key in found if match(key)]


@lru_cache(maxsize=64)
def glob(pattern: bytes) -> re.Pattern[bytes]:
    r"""Redis's patterns: ``*``, ``?``, ``[a-z]``, ``[^a]``, ``\`` before a character that is meant."""
    if len(pattern) > _MAX_PATTERN:
        raise CommandError(f"ERR the pattern is longer than {_MAX_PATTERN} bytes")
    segments = [b""]
    at, size = 0, len(pattern)
    while at < size:
        char = pattern[at:at + 1]
        at += 1
        if char == b"*":
            segments.append(b"")
            continue
        if char == b"?":
            char = b"."
        elif char == b"[":
            char, at = _choice(pattern, at)
        else:
            if char == b"\\" and at < size:
                char = pattern[at:at + 1]
                at += 1
            char = re.escape(char)
        segments[-1] += char
    first, *others = segments
    # What stands between two stars is taken where it occurs first, and that is never tried again (a look-ahead
    # is not): otherwise a pattern with many stars keeps the server busy for ever.
    between = [b"(?=(?P<s%d>.*?%b))(?P=s%d)" % (i, s, i) for i, s in enumerate(others[:-1])]
    return re.compile(first + b"".join(between) + (b".*" + others[-1] if others else b""), re.DOTALL)


def _choice(pattern: bytes, at: int) -> tuple[bytes, int]:
    """The characters between brackets, the first of which is before ``at``, and where the pattern goes on."""
    negated = pattern[at:at + 1] == b"^"
    at += negated
    chosen: set[int] = set()
    while at < len(pattern) and pattern[at] != 93:  # ]
        if pattern[at] == 92 and at + 1 < len(pattern):  # \
            chosen.add(pattern[at + 1])
            at += 2
        elif pattern[at + 1:at + 2] == b"-" and at + 2 < len(pattern):
            low, high = sorted((pattern[at], pattern[at + 2]))
            chosen.update(range(low, high + 1))
            at += 3
        else:
            chosen.add(pattern[at])
            at += 1
    members = set(range(256)) - chosen if negated else chosen
    if not members:
        return b"(?!)", at + 1
    return b"[" + b"".join(b"\\x%02x" % c for c in sorted(members)) + b"]", at + 1
