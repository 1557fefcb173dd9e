"""A keyspace of the embedded store, a database: values by key, when they expire, and an order to scan them in.

No I/O, no clock: ``now`` is an argument everywhere, milliseconds since the epoch.
"""

from __future__ import annotations

import random
import secrets
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, TypeVar

from workloads.kv.databases import Databases
from workloads.kv.resp import Command
from workloads.kv.zset import SortedSet

Hash = dict[bytes, bytes]
List = deque[bytes]

#: Keys looked at for each step of active expiry; another step follows while a quarter of them was over.
_SAMPLE = 20
_MAX_STEPS = 16
#: Keys of which it is known when they changed last. Of those asked about longest ago it is forgotten, and a
#: transaction that depends on one of them is refused.
MAX_WATCHED = 100_000
#: Arguments of a command that rebuilds part of a value: an even number, for those that come in pairs.
_PART = 128

_WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"


class CommandError(Exception):
    """A command that cannot be done; the text is the error reply, its kind first."""


class Slots:
    """Keys in a list, each known by its place.

    A key that goes is replaced by the last one. So whoever walks from the end to the start meets every key that
    is there all the time: a key only ever moves towards the start, to where the walker has not been, or within
    what it has seen.
    """

    __slots__ = ("_at", "keys")

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self._at: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: bytes) -> bool:
        return key in self._at

    def any(self) -> bytes:
        """One of them; there is one."""
        return random.choice(self.keys)

    def add(self, key: bytes) -> None:
        """A key that is not there yet."""
        self._at[key] = len(self.keys)
        self.keys.append(key)

    def remove(self, key: bytes) -> None:
        """A key that is there."""
        at = self._at.pop(key)
        last = self.keys.pop()
        if last is not key and last != key:
            self.keys[at] = last
            self._at[last] = at

    def before(self, end: int, count: int) -> tuple[list[bytes], int]:
        """Up to ``count`` keys below place ``end`` (0: the last), and where to go on (0: nowhere)."""
        end = min(end, len(self.keys)) if end else len(self.keys)
        start = max(0, end - count)
        return self.keys[start:end], start


#: A set is members in any order, of which one can be taken at random.
Value = bytes | Hash | SortedSet | List | Slots
T = TypeVar("T", bytes, Hash, SortedSet, List, Slots)


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of values: all that others need to know of it."""

    name: bytes
    """The type of a value, as TYPE tells it."""
    rebuild: Callable[[bytes, Any], Iterable[Command]]
    """Commands that make a value of this type at a key where there is nothing."""
    removal: bytes = b""
    """The command that takes members out of a value, where they have names."""
    remove: Callable[[Any, bytes], object] | None = None
    """Takes a member that is there out of a value."""


def _in_parts(name: bytes, key: bytes, arguments: Iterable[bytes]) -> Iterator[Command]:
    """A command with many arguments, as several that add to each other."""
    rest = iter(arguments)
    while part := list(islice(rest, _PART)):
        yield [name, key, *part]


#: By the class of the value; a type that is not here cannot be kept in a file, and TYPE does not know it.
KINDS: dict[type, Kind] = {
    bytes: Kind(b"string", lambda key, value: [[b"SET", key, value]]),
    dict: Kind(b"hash", lambda key, value: _in_parts(b"HSET", key, chain.from_iterable(value.items())),
               b"HDEL", dict.__delitem__),
    SortedSet: Kind(b"zset", lambda key, value: _in_parts(
        b"ZADD", key, chain.from_iterable((repr(s).encode(), member) for member, s in value.scores.items())),
                    b"ZREM", SortedSet.remove),
    deque: Kind(b"list", lambda key, value: _in_parts(b"RPUSH", key, value)),
    Slots: Kind(b"set", lambda key, value: _in_parts(b"SADD", key, value.keys), b"SREM", Slots.remove),
}


class Keyspace:
    """All keys of one database. Every change is told to :meth:`log`: from there it is in the databases'
    journal, if there is one, in order, and whoever watches the key learns of it.

    A journal entry is a command that gives the same change when it is replayed, whenever that is. ``databases``:
    those that this one joins; without, it is the first of its own. Whatever takes the keys of a server takes any
    of its databases.
    """

    def __init__(self, databases: Databases | None = None) -> None:
        self.databases = Databases() if databases is None else databases
        self.number = len(self.databases.all)
        self.databases.all.append(self)
        self._values: dict[bytes, Value] = {}
        self._expires: dict[bytes, int] = {}
        self._slots = Slots()
        self._expiring = Slots()
        #: Where active expiry goes on.
        self._cursor = 0
        self.expired = 0
        self.hits = 0
        self.misses = 0
        #: Versions of keys by :meth:`version`, those asked for last at the end. A version is never used twice,
        #: not even by another process.
        self._versions: dict[bytes, int] = {}
        self._version = secrets.randbits(62)
        #: Keys that clients wait for.
        self.awaited: Collection[bytes] = ()

    def __len__(self) -> int:
        return len(self._values)

    # -- values ----------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> Value | None:
        """The value, unless it is over."""
        if self._expires and self._over(key):
            return None
        return self._values.get(key)

    def typed(self, key: bytes, kind: type[T]) -> T | None:
        """The value, which must be of a kind, or CommandError."""
        if self._expires and self._over(key):
            return None
        value = self._values.get(key)
        if value is None or type(value) is kind:
            return value
        raise CommandError(_WRONG_TYPE)

    def put(self, key: bytes, value: Value, keep_ttl: bool = False) -> None:
        """Set a value; when it was to expire is forgotten unless ``keep_ttl``."""
        if key not in self._values:
            self._slots.add(key)
            if key in self.awaited:
                self.databases.ready[self.number, key] = None
        self._values[key] = value
        if not keep_ttl and self._expires:
            self.persist(key)

    def delete(self, key: bytes) -> bool:
        """Whether it was there."""
        if self._expires and self._over(key):
            return False
        return self._drop(key)

    def take(self, key: bytes, value: Hash | SortedSet | Slots, members: Iterable[bytes]) -> None:
        """Take members that are there out of the value of a key, which ends with the last one. Noted in parts: no
        client may have written all that as one command."""
        kind = KINDS[type(value)]
        assert kind.remove is not None
        for entry in _in_parts(kind.removal, key, members):
            for member in entry[2:]:
                kind.remove(value, member)
            self.log(*entry)
        if not len(value):
            self.delete(key)

    def hand_over(self, key: bytes, value: Value, other: Keyspace, name: bytes) -> None:
        """A key goes, and is ``name`` in a database from now on, until when it was to end. The journal is the
        caller's business."""
        at = self.expires_at(key)
        self.delete(key)
        other.put(name, value)
        if at is not None:
            other.expire_at(name, at)
        other.touch(name)

    def clear(self) -> None:
        """Delete everything."""
        self.empty()
        if self.databases.journal is not None:
            self.databases.journal.add(self.number, [b"FLUSHDB"])

    def empty(self) -> None:
        """Forget every key of a database; the journal is the caller's business."""
        for key in self._versions:
            if key in self._values:
                self.touch(key)
        self._values.clear()
        self._expires.clear()
        self._slots, self._expiring = Slots(), Slots()

    def swap(self, other: Keyspace) -> None:
        """Exchange all values with another database. Who watches or waits does so where it did."""
        for keys in (self, other):
            for key in keys._versions:
                if self.get(key) is not None or other.get(key) is not None:
                    keys.touch(key)
        self._values, other._values = other._values, self._values
        self._expires, other._expires = other._expires, self._expires
        self._slots, other._slots = other._slots, self._slots
        self._expiring, other._expiring = other._expiring, self._expiring
        for keys in (self, other):
            for key in keys.awaited:
                if key in keys._values:
                    self.databases.ready[keys.number, key] = None
        if self.databases.journal is not None:
            self.databases.journal.add(self.number, [b"SWAPDB", b"%d" % self.number, b"%d" % other.number])

    def _drop(self, key: bytes) -> bool:
        if self._values.pop(key, None) is None:
            return False
        self._slots.remove(key)
        self.persist(key)
        return True

    # -- expiry ----------------------------------------------------------------------------------------------

    def expire_at(self, key: bytes, at: int) -> None:
        """A key that is there ends at ``at`` (milliseconds)."""
        if key not in self._expires:
            self._expiring.add(key)
        self._expires[key] = at

    def expires_at(self, key: bytes) -> int | None:
        """None: it does not expire."""
        return self._expires.get(key)

    def persist(self, key: bytes) -> bool:
        """Whether it would have expired."""
        if self._expires.pop(key, None) is None:
            return False
        self._expiring.remove(key)
        return True

    def _over(self, key: bytes) -> bool:
        at = self._expires.get(key)
        if at is None or at > self.databases.now:
            return False
        self._drop(key)
        self.expired += 1
        # Its end is written down: a replay, which lets nothing expire by itself, would otherwise find a value
        # where a later command found none.
        self.log(b"DEL", key)
        return True

    def sweep(self, now: int) -> None:
        """Look at some of the keys that expire: those that nobody asks for must go as well."""
        self.databases.now = now
        for _ in range(_MAX_STEPS):
            keys, self._cursor = self._expiring.before(self._cursor, _SAMPLE)
            over = sum([self._over(key) for key in keys])
            if over * 4 <= _SAMPLE:
                return

    @property
    def expiring(self) -> int:
        """Keys that have an end."""
        return len(self._expires)

    # -- all keys --------------------------------------------------------------------------------------------

    def scan(self, cursor: int, count: int) -> tuple[list[bytes], int]:
        """Keys from ``cursor`` on (0: from the beginning), and the next cursor (0: that was all).

        Keys that are there from the first call to the last are given at least once.
        """
        keys, following = self._slots.before(cursor, count)
        return [k for k in keys if not (self._expires and self._over(k))], min(following, len(self._slots))

    def any(self) -> bytes | None:
        """A key at random, if there is one."""
        while self._values:
            if not self._over(key := self._slots.any()):
                return key
        return None

    def keys(self) -> list[bytes]:
        """All keys."""
        return [k for k in list(self._values) if not (self._expires and self._over(k))]

    # -- changes ---------------------------------------------------------------------------------------------

    def log(self, name: bytes, key: bytes, *rest: bytes) -> None:
        """Note a change of one key, as the command that makes it."""
        if self._versions:
            self.touch(key)
        journal = self.databases.journal
        if journal is not None:
            journal.add(self.number, [name, key, *rest])

    def version(self, key: bytes) -> int:
        """A number that is another one once the key was changed, or has ended; or has to be taken for changed."""
        self.get(key)
        versions = self._versions
        found = versions.pop(key, None)
        if found is None:
            found = self._next_version()
            if len(versions) >= MAX_WATCHED:
                del versions[next(iter(versions))]
        versions[key] = found
        return found

    def is_unchanged(self, key: bytes, version: int) -> bool:
        """Whether it was not changed since :meth:`version` gave this."""
        self.get(key)
        return self._versions.get(key) == version

    def _next_version(self) -> int:
        self._version += 1
        return self._version

    def touch(self, key: bytes) -> None:
        """Who watches this key is to know that it was changed."""
        if key in self._versions:
            self._versions[key] = self._next_version()

    # -- journal ---------------------------------------------------------------------------------------------

    def snapshot(self) -> Iterable[Command]:
        """Commands that make this keyspace anew."""
        for key, value in self._values.items():
            yield from KINDS[type(value)].rebuild(key, value)
            if (at_ms := self._expires.get(key)) is not None:
                yield [b"PEXPIREAT", key, b"%d" % at_ms]


#: As many as Redis has, and at most: each is looked at ten times a second.
DATABASES, MAX_DATABASES = 16, 10_000


def open_databases(count: int = DATABASES) -> Keyspace:
    """The first of so many, all empty."""
    first = Keyspace()
    for _ in range(count - 1):
        Keyspace(first.databases)
    return first
