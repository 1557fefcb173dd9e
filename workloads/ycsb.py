"""YCSB's core workloads as Redis commands: which operations, on which records, and are the answers right?

As YCSB's Redis binding has it, a record is a hash, and all keys are members of one sorted set that scans use.
Every field holds its writer's version number, a checksum of key, field and version, and bytes that follow from
that: a value that is not whole, or not this record's, is noticed whoever wrote it.

An operation is a generator: it yields commands, is sent their replies and returns what is wrong with them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any
from zlib import crc32

from smtstack.errors import ConfigError
from workloads.ycsb_choice import Latest, ScrambledZipfian, Uniform, fnv64

#: Kinds of operations; results name them like this.
READ, UPDATE, INSERT, SCAN, RMW = "read", "update", "insert", "scan", "read-modify-write"
KINDS = (READ, UPDATE, INSERT, SCAN, RMW)
#: The sorted set of all keys (YCSB's RedisClient.INDEX_KEY).
INDEX = b"_indices"
#: Longest scan; lengths are uniform from 1 (YCSB's maxscanlength).
MAX_SCAN = 100
#: Of a field: version, checksum.
HEADER = 8
DISTRIBUTIONS = ("zipfian", "latest", "uniform")
#: Fields of a record in the paper's runs (FIELD_COUNT); YCSB's own default is 10 of 100 bytes.
FIELDS = 8

_NOISE_CUTS = 4093
#: Versions a client process can write before they begin anew.
_VERSION_BITS = 24

Command = tuple[bytes, ...]
Steps = Generator[Sequence[Command], list[Any], str]


@dataclass(frozen=True, slots=True)
class Workload:
    """Shares of each kind of operation, and how records are chosen."""

    shares: tuple[tuple[str, float], ...]
    distribution: str
    meaning: str


#: By letter, with the shares of YCSB's files ``workloads/workloada`` to ``workloadf``.
WORKLOADS = {
    "a": Workload(((READ, 0.5), (UPDATE, 0.5)), "zipfian", "half reads, half updates"),
    "b": Workload(((READ, 0.95), (UPDATE, 0.05)), "zipfian", "95 % reads, 5 % updates"),
    "c": Workload(((READ, 1.0),), "zipfian", "reads only"),
    "d": Workload(((READ, 0.95), (INSERT, 0.05)), "latest", "95 % reads of the newest records, 5 % inserts"),
    "e": Workload(((SCAN, 0.95), (INSERT, 0.05)), "zipfian", "95 % scans, 5 % inserts"),
    "f": Workload(((READ, 0.5), (RMW, 0.5)), "zipfian", "half reads, half read-modify-writes"),
}


def workload(letter: str) -> Workload:
    """By its letter; raises :class:`ConfigError`."""
    found = WORKLOADS.get(letter.lower())
    if found is None:
        raise ConfigError(f"workload {letter!r}; YCSB has {', '.join(WORKLOADS)}")
    return found


def java_hash(text: bytes) -> int:
    """``String.hashCode()`` of ASCII text: a key's place in the index."""
    value = 0
    for char in text:
        value = (31 * value + char) & 0xFFFFFFFF
    return value - (value >> 31 << 32)


class Records:
    """What records are called and what is in them: ``fields`` of ``length`` bytes each."""

    def __init__(self, fields: int, length: int) -> None:
        if fields < 1 or length < HEADER:
            raise ConfigError(f"{fields} fields of {length} bytes; a record has at least one, a field at least "
                              f"{HEADER} bytes")
        self.fields = fields
        self.length = length
        self._names = [b"field%d" % n for n in range(fields)]
        self._number = {name: n for n, name in enumerate(self._names)}
        # The same in all processes of a run.
        self._noise = Random(fields * length).randbytes(_NOISE_CUTS + length)

    @staticmethod
    def key(number: int) -> bytes:
        """The key of record ``number``: in hashed order, as YCSB inserts by default."""
        return b"user%d" % fnv64(number)

    def value(self, key: bytes, field: int, version: int) -> bytes:
        """What version ``version`` of a field holds."""
        head = version.to_bytes(4, "big")
        check = crc32(head + self._names[field], crc32(key))
        cut = check % _NOISE_CUTS
        return head + check.to_bytes(4, "big") + self._noise[cut:cut + self.length - HEADER]

    def insert(self, key: bytes, version: int) -> list[Command]:
        """The commands that make a record: all its fields, then its place in the index."""
        fields = [part for n, name in enumerate(self._names) for part in (name, self.value(key, n, version))]
        return [(b"HMSET", key, *fields), (b"ZADD", INDEX, b"%d" % java_hash(key), key)]

    def update(self, key: bytes, field: int, version: int) -> list[Command]:
        """The command that changes one field of a record (YCSB's writeallfields is false)."""
        return [(b"HMSET", key, self._names[field], self.value(key, field, version))]

    def judge(self, key: bytes, reply: Any) -> str:
        """What is wrong with what HGETALL gave; empty: nothing."""
        if not isinstance(reply, list) or len(reply) != 2 * self.fields:
            return f"{key.decode()}: not a record of {self.fields} fields: {_short(reply)}"
        base = crc32(key)
        length, noise = self.length, self._noise
        seen = 0
        for at in range(0, len(reply), 2):
            name, value = reply[at], reply[at + 1]
            number = self._number.get(name)
            if number is None:
                return f"{key.decode()}: a field {_short(name)}"
            check = crc32(value[:4] + name, base)
            if len(value) != length or value[4:8] != check.to_bytes(4, "big"):
                return f"{key.decode()}: the value of {name.decode()} is wrong or torn: {_short(value)}"
            if length > HEADER:
                cut = check % _NOISE_CUTS
                if value[8:] != noise[cut:cut + length - HEADER]:
                    return f"{key.decode()}: the value of {name.decode()} is torn"
            seen |= 1 << number
        return "" if seen == (1 << self.fields) - 1 else f"{key.decode()}: a field comes twice"


class Keyspace:
    """Which records there are: ``base`` loaded ones, and those this process (``index`` of ``of``) has inserted.

    A record is asked for when its insertion was acknowledged, not before, as in YCSB. What other processes insert
    is not known here.
    """

    def __init__(self, base: int, index: int = 0, of: int = 1) -> None:
        self.base = base
        self._index = index
        self._of = of
        self._begun = 0
        self._unacknowledged: set[int] = set()
        self._version = 0

    def insert(self) -> int:
        """The place of a new record, from ``base`` on; :meth:`number` says which one it is."""
        place = self.base + self._begun
        self._begun += 1
        self._unacknowledged.add(place)
        return place

    def acknowledge(self, place: int) -> None:
        """It is there."""
        self._unacknowledged.discard(place)

    def newest(self) -> int:
        """The newest record before which all are there."""
        return min(self._unacknowledged, default=self.base + self._begun) - 1

    def number(self, place: int) -> int:
        """Processes insert by turns, so that no two insert the same record."""
        if place < self.base:
            return place
        return self.base + (place - self.base) * self._of + self._index

    def next_version(self) -> int:
        """Different from all that other processes write; 0 is what was loaded."""
        self._version = (self._version + 1) % (1 << _VERSION_BITS)
        return (self._index + 1) % 256 << _VERSION_BITS | self._version


class Operations:
    """The operations of a workload, one after the other."""

    def __init__(self, kind: Workload, distribution: str, records: Records, keys: Keyspace, seed: int,
                 count: int | None) -> None:
        self._records = records
        self._keys = keys
        self._random = Random(seed)
        self._kinds: list[tuple[float, str]] = []
        total = 0.0
        for name, share in kind.shares:
            total += share
            self._kinds.append((total, name))
        self._make = {READ: self._read, UPDATE: self._update, INSERT: self._insert, SCAN: self._scan,
                      RMW: self._read_modify_write}
        # As YCSB: room for twice as many inserts as are expected; what is not there yet is drawn again.
        inserts = dict(kind.shares).get(INSERT, 0.0)
        room = keys.newest() + 1 + int((count or 0) * inserts * 2)
        self._chooser: Uniform | ScrambledZipfian | Latest
        name = distribution or kind.distribution
        if name == "latest":
            self._chooser = Latest(keys.newest, self._random)
        elif name == "uniform":
            self._chooser = Uniform(keys.newest() + 1, self._random)
        elif name == "zipfian":
            self._chooser = ScrambledZipfian(room, self._random)
        else:
            raise ConfigError(f"distribution {name!r}; there are {', '.join(DISTRIBUTIONS)}")

    def next(self) -> tuple[str, Steps]:
        """(kind, the operation)."""
        kinds = self._kinds
        drawn = self._random.random() if len(kinds) > 1 else 0.0
        for limit, name in kinds:
            if drawn < limit:
                return name, self._make[name]()
        return kinds[-1][1], self._make[kinds[-1][1]]()

    def _choose(self) -> bytes:
        """The key of a record that is there."""
        newest = self._keys.newest()
        draw = self._chooser.draw
        while (place := draw()) > newest:
            pass
        return self._records.key(self._keys.number(place))

    def _read(self) -> Steps:
        key = self._choose()
        (reply,) = yield [(b"HGETALL", key)]
        return self._records.judge(key, reply)

    def _update(self) -> Steps:
        (reply,) = yield self._change(self._choose())
        return _acknowledged(reply)

    def _change(self, key: bytes) -> list[Command]:
        field = int(self._random.random() * self._records.fields)
        return self._records.update(key, field, self._keys.next_version())

    def _insert(self) -> Steps:
        place = self._keys.insert()
        wrong = yield from insertion(self._records, self._keys.number(place), self._keys.next_version())
        if not wrong:
            self._keys.acknowledge(place)
        return wrong

    def _scan(self) -> Steps:
        key = self._choose()
        length = 1 + int(self._random.random() * MAX_SCAN)
        start = java_hash(key)
        (keys,) = yield [(b"ZRANGEBYSCORE", INDEX, b"%d" % start, b"+inf", b"LIMIT", b"0", b"%d" % length)]
        if not isinstance(keys, list) or not 0 < len(keys) <= length:
            return f"the scan from {key.decode()} gave no keys: {_short(keys)}"
        places = [java_hash(k) for k in keys]
        if places != sorted(places) or places[0] != start:
            return f"the scan from {key.decode()} gave keys out of order"
        replies = yield [(b"HGETALL", k) for k in keys]
        return next(filter(None, map(self._records.judge, keys, replies)), "")

    def _read_modify_write(self) -> Steps:
        key = self._choose()
        (reply,) = yield [(b"HGETALL", key)]
        if wrong := self._records.judge(key, reply):
            return wrong
        (reply,) = yield self._change(key)
        return _acknowledged(reply)


class Loading:
    """The load phase: process ``index`` of ``of`` inserts its share of ``count`` records."""

    def __init__(self, records: Records, count: int, index: int = 0, of: int = 1) -> None:
        self._records = records
        self._numbers: Iterator[int] = iter(range(index, count, of))
        #: How many these are.
        self.total = len(range(index, count, of))

    def next(self) -> tuple[str, Steps]:
        """(kind, the operation)."""
        return INSERT, insertion(self._records, next(self._numbers), 0)


def insertion(records: Records, number: int, version: int) -> Steps:
    """One record, and its place in the index."""
    stored, _added = yield records.insert(records.key(number), version)
    return _acknowledged(stored)


def _acknowledged(reply: Any) -> str:
    return "" if reply == b"OK" else f"HMSET gave {_short(reply)}, not OK"


def _short(reply: Any) -> str:
    text = repr(reply)
    return text if len(text) <= 60 else f"{text[:60]}..."
