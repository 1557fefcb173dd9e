"""YCSB's core workloads as Redis commands: which operations, on which records, and are the answers right?

As YCSB's Redis binding has it, a record is a hash, and all keys are members of one sorted set that scans use.
Every field holds its version (who wrote it, and which of its writes it was), a checksum of key, field and
version, and bytes that follow from that: a value that is not whole, or not this record's, is noticed whoever wrote
it. ycsb_history.py notices one that is older than it may be.

An operation is a generator: it yields commands, is sent their replies and returns what is wrong with them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any
from zlib import crc32

from smtstack.errors import ConfigError
from workloads.load import ycsb_choice
from workloads.load.ycsb_choice import DISTRIBUTIONS, Draw, Zipfian, fnv64
from workloads.load.ycsb_history import NUMBER_BITS, WRITER_BITS, History, Known
from workloads.load.ycsb_properties import DEFAULTS, parsed

#: Kinds of operations; results name them like this.
READ, UPDATE, INSERT, SCAN, RMW = "read", "update", "insert", "scan", "read-modify-write"
KINDS = (READ, UPDATE, INSERT, SCAN, RMW)
#: The sorted set of all keys (YCSB's RedisClient.INDEX_KEY).
INDEX = b"_indices"
#: Bytes of a field: version, checksum.
_VERSION, _CHECK = (WRITER_BITS + NUMBER_BITS + 1) // 8, 3
HEADER = _VERSION + _CHECK
#: Fields of a record in the paper's runs (FIELD_COUNT); YCSB's own default is 10 of 100 bytes.
FIELDS = 8

_NOISE_CUTS = 4093

Command = tuple[bytes, ...]
Steps = Generator[Sequence[Command], list[Any], str]


@dataclass(frozen=True, slots=True)
class Workload:
    """What operations there are, and on which records; as YCSB's properties of the like names say."""

    shares: tuple[tuple[str, float], ...]
    """The share of each kind of operation."""
    distribution: str
    meaning: str = ""
    hot_data: float = 0.2
    hot_operations: float = 0.8
    percentile: float = 95.0
    """For ``exponential``: so many per cent of the operations ask for ..."""
    reach: float = 0.8571428571
    """... this share of the records, the newest ones."""
    scan_lengths: tuple[int, int] = (1, 100)
    scan_distribution: str = "uniform"
    read_all: bool = True
    """Else one field, at random."""
    write_all: bool = False
    length_distribution: str = "constant"
    """How lengths of fields are drawn; if not constant, from ``least_length`` bytes on."""
    least_length: int = 1
    ordered: bool = False
    """Keys in the order of insertion, not hashed."""
    padding: int = 1
    """Digits of a key's number, at least."""
    first: int = 0
    """The number of the first record."""


#: By letter, with the shares of YCSB's files ``workloads/workloada`` to ``workloadf``.
WORKLOADS = {
    "a": Workload(((READ, 0.5), (UPDATE, 0.5)), "zipfian", "half reads, half updates"),
    "b": Workload(((READ, 0.95), (UPDATE, 0.05)), "zipfian", "95 % reads, 5 % updates"),
    "c": Workload(((READ, 1.0),), "zipfian", "reads only"),
    "d": Workload(((READ, 0.95), (INSERT, 0.05)), "latest", "95 % reads of the newest records, 5 % inserts"),
    "e": Workload(((SCAN, 0.95), (INSERT, 0.05)), "zipfian", "95 % scans, 5 % inserts"),
    "f": Workload(((READ, 0.5), (RMW, 0.5)), "zipfian", "half reads, half read-modify-writes"),
}
#: The properties in which the letters differ from each other.
_PROPORTIONS = {READ: "readproportion", UPDATE: "updateproportion", INSERT: "insertproportion",
                SCAN: "scanproportion", RMW: "readmodifywriteproportion"}


def workload(letter: str, properties: Mapping[str, str] | None = None) -> Workload:
    """One of YCSB's by its letter, or with ``properties`` what they say (of a letter: change). Raises
    :class:`ConfigError`."""
    found = WORKLOADS.get(letter.lower())
    if properties is None:
        if found is None:
            raise ConfigError(f"workload {letter!r}; YCSB has {', '.join(WORKLOADS)}")
        return found
    base = dict(DEFAULTS)
    if found is not None:
        shares = dict(found.shares)
        base |= {name: str(shares.get(kind, 0)) for kind, name in _PROPORTIONS.items()}
        base |= {"requestdistribution": found.distribution, "maxscanlength": "100"}
    said = {name: parsed(name, text) for name, text in {**base, **properties}.items()}
    weights = [(kind, said[name]) for kind, name in _PROPORTIONS.items() if said[name]]
    if not weights:
        raise ConfigError(f"workload {letter}: all proportions are 0: there is no operation")
    total = sum(weight for _kind, weight in weights)
    lengths = said["minscanlength"], said["maxscanlength"]
    if lengths[0] > lengths[1]:
        raise ConfigError(f"workload {letter}: minscanlength is {lengths[0]}, maxscanlength {lengths[1]}")
    return Workload(tuple((kind, weight / total) for kind, weight in weights), said["requestdistribution"],
                    found.meaning if found else "", said["hotspotdatafraction"], said["hotspotopnfraction"],
                    said["exponential.percentile"], said["exponential.frac"], lengths,
                    said["scanlengthdistribution"], said["readallfields"], said["writeallfields"],
                    said["fieldlengthdistribution"], said["minfieldlength"], said["insertorder"] == "ordered",
                    said["zeropadding"], said["insertstart"])


def java_hash(text: bytes) -> int:
    """``String.hashCode()`` of ASCII text: a key's place in the index."""
    value = 0
    for char in text:
        value = (31 * value + char) & 0xFFFFFFFF
    return value - (value >> 31 << 32)


class Records:
    """What records are called and what is in them: ``fields`` of ``length`` bytes each, or as ``kind`` says at
    most."""

    def __init__(self, fields: int, length: int, kind: Workload | None = None) -> None:
        kind = kind or WORKLOADS["c"]
        least = length if kind.length_distribution == "constant" else kind.least_length
        if fields < 1 or least < HEADER:
            name = "" if least == length else " (minfieldlength)"
            raise ConfigError(f"{fields} fields of {least} bytes{name}; a record has at least one, a field at "
                              f"least {HEADER} bytes")
        if least > length:
            raise ConfigError(f"minfieldlength is {least}, fieldlength {length}")
        self.fields = fields
        self.length = length
        self._least = least
        self._ordered = kind.ordered
        self._padding = kind.padding
        self._zipfian = Zipfian(length - least + 1, Random(0)) if kind.length_distribution == "zipfian" else None
        self._names = [b"field%d" % n for n in range(fields)]
        self._number = {name: n for n, name in enumerate(self._names)}
        # The same in all processes of a run.
        self._noise = Random(fields * length).randbytes(_NOISE_CUTS + length)

    def key(self, number: int) -> bytes:
        """The key of record ``number``: in hashed order, as YCSB inserts by default."""
        return b"user%0*d" % (self._padding, number if self._ordered else fnv64(number))

    def value(self, key: bytes, field: int, version: int) -> bytes:
        """What version ``version`` of a field holds."""
        head = version.to_bytes(_VERSION, "big")
        check = crc32(head + self._names[field], crc32(key))
        cut = check % _NOISE_CUTS
        return head + check.to_bytes(4, "big")[1:] + self._noise[cut:cut + self._length(check) - HEADER]

    def _length(self, check: int) -> int:
        """Bytes of a field with that checksum: a random number that everybody knows."""
        if self._least == self.length:
            return self.length
        u = (check * 0x9E3779B1 & 0xFFFFFFFF) / 0x100000000
        if self._zipfian is not None:
            return self._least + self._zipfian.at(u)
        return self._least + int(u * (self.length - self._least + 1))

    def insert(self, key: bytes, version: int) -> list[Command]:
        """The commands that make a record: all its fields, then its place in the index."""
        return [*self.update(key, range(self.fields), version), (b"ZADD", INDEX, b"%d" % java_hash(key), key)]

    def update(self, key: bytes, fields: Iterable[int], version: int) -> list[Command]:
        """The command that changes these fields of a record."""
        return [(b"HMSET", key, *(part for n in fields for part in (self._names[n], self.value(key, n, version))))]

    def read(self, key: bytes, field: int | None) -> Command:
        """The command that reads a record, or one field of it."""
        return (b"HGETALL", key) if field is None else (b"HMGET", key, self._names[field])

    def judge(self, key: bytes, reply: Any, field: int | None = None, seen: dict[int, int] | None = None) -> str:
        """What is wrong with what :meth:`read` gave; empty: nothing. ``seen`` gets the versions of the fields."""
        if field is not None:
            if not isinstance(reply, list) or len(reply) != 1:
                return f"{key.decode()}: not one field: {_short(reply)}"
            reply = [self._names[field], reply[0]]
        elif not isinstance(reply, list) or len(reply) != 2 * self.fields:
            return f"{key.decode()}: not a record of {self.fields} fields: {_short(reply)}"
        base = crc32(key)
        noise = self._noise
        found = {} if seen is None else seen
        for at in range(0, len(reply), 2):
            name, value = reply[at], reply[at + 1]
            number = self._number.get(name)
            if number is None:
                return f"{key.decode()}: a field {_short(name)}"
            if not isinstance(value, bytes):
                return f"{key.decode()}: {name.decode()} is not there: {_short(value)}"
            check = crc32(value[:_VERSION] + name, base)
            length = self._length(check)
            if len(value) != length or value[_VERSION:HEADER] != check.to_bytes(4, "big")[1:]:
                return f"{key.decode()}: the value of {name.decode()} is wrong or torn: {_short(value)}"
            if length > HEADER:
                cut = check % _NOISE_CUTS
                if value[HEADER:] != noise[cut:cut + length - HEADER]:
                    return f"{key.decode()}: the value of {name.decode()} is torn"
            found[number] = int.from_bytes(value[:_VERSION], "big")
        return "" if len(found) * 2 == len(reply) else f"{key.decode()}: a field comes twice"


class Keyspace:
    """Which records there are: loaded ones from ``first`` up to ``base``, and those this process (``index`` of
    ``of``) has inserted.

    A record is asked for when its insertion was acknowledged, not before, as in YCSB. What other processes insert
    is not known here.
    """

    def __init__(self, base: int, index: int = 0, of: int = 1, first: int = 0) -> None:
        self.base = base
        self.first = first
        self._index = index
        self._of = of
        self._begun = 0
        self._unacknowledged: set[int] = set()

    def insert(self) -> int:
        """The place of a new record, from ``base`` on; :meth:`number` says which one it is."""
        place = self.base + self._begun
        self._begun += 1
        self._unacknowledged.add(place)
        return place

    def acknowledge(self, place: int) -> None:
        """A record is there."""
        self._unacknowledged.discard(place)

    def newest(self) -> int:
        """The newest record before which all are there."""
        return min(self._unacknowledged, default=self.base + self._begun) - 1

    def number(self, place: int) -> int:
        """Processes insert by turns, so that no two insert the same record."""
        if place < self.base:
            return place
        return self.base + (place - self.base) * self._of + self._index


class Operations:
    """The operations of a workload, one after the other."""

    def __init__(self, kind: Workload, distribution: str, records: Records, keys: Keyspace, history: History,
                 seed: int, count: int | None) -> None:
        self._kind = kind
        self._records = records
        self._keys = keys
        self._history = history
        self._random = Random(seed)
        self._kinds: list[tuple[float, str]] = []
        total = 0.0
        for name, share in kind.shares:
            total += share
            self._kinds.append((total, name))
        self._make = {READ: lambda: self._look(self._choose()), UPDATE: lambda: self._change(self._choose()),
                      INSERT: self._insert, SCAN: self._scan, RMW: self._read_modify_write}
        # As YCSB: room for twice as many inserts as are expected, and one; what is not there yet is drawn again.
        inserts = dict(kind.shares).get(INSERT, 0.0)
        room = int((count or 0) * inserts * 2) + 1
        self._draw = chooser(kind, distribution, keys, room, self._random)
        least, most = kind.scan_lengths
        self._scan_length = ycsb_choice.uniform(most - least + 1, self._random, least)
        if kind.scan_distribution == "zipfian" and SCAN in dict(kind.shares):
            zipfian = Zipfian(most - least + 1, self._random)
            self._scan_length = lambda: least + zipfian.draw()

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
        while (place := self._draw()) > newest:
            pass
        return self._records.key(self._keys.number(place))

    def _any_field(self) -> int:
        return int(self._random.random() * self._records.fields)

    def _field_to_read(self) -> int | None:
        return None if self._kind.read_all else self._any_field()

    def _look(self, key: bytes) -> Steps:
        field = self._field_to_read()
        before = self._history.before(key)
        (reply,) = yield [self._records.read(key, field)]
        return self._judge(key, reply, field, before)

    def _judge(self, key: bytes, reply: Any, field: int | None, before: Known | None) -> str:
        seen: dict[int, int] = {}
        return self._records.judge(key, reply, field, seen) or self._history.read(key, seen, before)

    def _change(self, key: bytes) -> Steps:
        fields = range(self._records.fields) if self._kind.write_all else [self._any_field()]
        before, version = self._history.before(key), self._history.write(key, fields)
        (reply,) = yield self._records.update(key, fields, version)
        wrong = _acknowledged(reply)
        if not wrong:
            self._history.written(key, fields, version, before)
        return wrong

    def _insert(self) -> Steps:
        place = self._keys.insert()
        number, fields = self._keys.number(place), range(self._records.fields)
        key = self._records.key(number)
        before, version = self._history.before(key), self._history.write(key, fields)
        wrong = yield from insertion(self._records, number, version)
        if not wrong:
            self._history.written(key, fields, version, before)
            self._keys.acknowledge(place)
        return wrong

    def _scan(self) -> Steps:
        key = self._choose()
        length = self._scan_length()
        start = java_hash(key)
        (keys,) = yield [(b"ZRANGEBYSCORE", INDEX, b"%d" % start, b"+inf", b"LIMIT", b"0", b"%d" % length)]
        if not isinstance(keys, list) or not 0 < len(keys) <= length:
            return f"the scan from {key.decode()} gave no keys: {_short(keys)}"
        places = [java_hash(k) for k in keys]
        if places != sorted(places) or places[0] != start:
            return f"the scan from {key.decode()} gave keys out of order"
        field, before = self._field_to_read(), [self._history.before(k) for k in keys]
        replies = yield [self._records.read(k, field) for k in keys]
        found = zip(keys, replies, before, strict=True)
        return next(filter(None, (self._judge(k, reply, field, known) for k, reply, known in found)), "")

    def _read_modify_write(self) -> Steps:
        key = self._choose()
        return (yield from self._look(key)) or (yield from self._change(key))


def chooser(kind: Workload, distribution: str, keys: Keyspace, room: int, random: Random) -> Draw:
    """What draws the places of records, by the distribution of ``kind`` or another one. ``room``: for records that
    are inserted. Raises :class:`ConfigError`."""
    name, first = distribution or kind.distribution, keys.first
    there = keys.newest() + 1 - first
    if first and name in ("latest", "exponential"):
        raise ConfigError(f"insertstart {first} leaves out records that {name} asks for")
    if name == "latest":
        return ycsb_choice.latest(keys.newest, random)
    if name == "uniform":
        return ycsb_choice.uniform(there, random, first)
    if name == "zipfian":
        return ycsb_choice.scrambled_zipfian(there + room, random, first)
    if name == "hotspot":
        return ycsb_choice.hotspot(there, kind.hot_data, kind.hot_operations, random, first)
    if name == "exponential":
        return ycsb_choice.exponential(keys.newest, kind.percentile, keys.base * kind.reach, random)
    if name == "sequential":
        return ycsb_choice.sequential(there, first)
    raise ConfigError(f"distribution {name!r}; there are {', '.join(DISTRIBUTIONS)}")


class Loading:
    """The load phase: process ``index`` of ``of`` inserts its share of the records from ``first`` to ``base``."""

    def __init__(self, records: Records, base: int, index: int = 0, of: int = 1, first: int = 0) -> None:
        self._records = records
        numbers = range(first + index, base, of)
        self._numbers: Iterator[int] = iter(numbers)
        #: How many these are.
        self.total = len(numbers)

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
