"""YCSB: key choosers against its published numbers, mixes, and values that do not pass when they are wrong."""

from __future__ import annotations

import math
from collections import Counter
from random import Random

import pytest

from smtstack.errors import ConfigError
from workloads.load.ycsb import (
    INDEX,
    INSERT,
    READ,
    RMW,
    SCAN,
    UPDATE,
    WORKLOADS,
    Keyspace,
    Loading,
    Operations,
    Records,
    java_hash,
    workload,
)
from workloads.load.ycsb_choice import SCRAMBLED_ZETA, THETA, Zipfian, fnv64, latest, scrambled_zipfian, uniform
from workloads.load.ycsb_history import History
from workloads.load.ycsb_load import YcsbLoad

DRAWS = 60_000


def chi_square(counts: Counter[int], shares: dict[int, float]) -> float:
    """Over these values and, as one more class, all others."""
    total = sum(counts.values())
    expected = {value: share * total for value, share in shares.items()}
    rest = total - sum(expected.values())
    found = total - sum(counts[value] for value in shares)
    sums = sum((counts[value] - e) ** 2 / e for value, e in expected.items())
    return sums + (found - rest) ** 2 / rest if rest > 5 else sums


def bound(degrees: int) -> float:
    """Exceeded by chance once in some 30 000 times (4 sigma, Wilson and Hilferty)."""
    return degrees * (1 - 2 / (9 * degrees) + 4 * math.sqrt(2 / (9 * degrees))) ** 3


# -- choosers ----------------------------------------------------------------------------------------------------

def test_fnv_gives_the_keys_that_ycsb_prints():
    """The first records of "ycsb load basic"."""
    keys = [Records(1, 8).key(n) for n in range(3)]
    assert keys == [b"user6284781860667377211", b"user8517097267634966620", b"user1820151046732198393"]
    assert min(map(fnv64, range(2000))) >= 0
    assert max(map(fnv64, range(2000))) < 2**63


def test_java_hash_is_that_of_java():
    assert [java_hash(text) for text in (b"", b"a", b"hello", b"polygenelubricants")] == [0, 97, 99162322, -2**31]


def test_zipfian_ranks_are_as_frequent_as_they_should_be():
    zipfian = Zipfian(1000, Random(1))
    counts = Counter(zipfian.draw() for _n in range(DRAWS))
    zeta = sum(1 / n**THETA for n in range(1, 1001))
    # The first two are exact in Gray's method; of the others the sums over decades are close.
    assert chi_square(counts, {k: 1 / (k + 1) ** THETA / zeta for k in range(2)}) < bound(2)
    for low, high in ((10, 99), (100, 999)):
        share = sum(1 / (n + 1)**THETA for n in range(low, high + 1)) / zeta
        assert sum(counts[k] for k in range(low, high + 1)) / DRAWS == pytest.approx(share, rel=0.05)
    assert set(counts) <= set(range(1000))


def test_the_published_zeta_is_that_of_ten_thousand_million_items():
    """Euler and Maclaurin: the sum from N on is an integral and a small rest."""
    known, last = 100_000, 10_000_000_000
    zeta = sum(1 / n**THETA for n in range(1, known + 1))
    zeta += (last ** (1 - THETA) - known ** (1 - THETA)) / (1 - THETA) + (last**-THETA - known**-THETA) / 2
    assert zeta == pytest.approx(SCRAMBLED_ZETA, abs=1e-6)


def test_growing_by_steps_is_as_growing_at_once():
    grown = Zipfian(10, Random(3))
    for items in (11, 50, 1000):
        grown.grow(items)
    whole = Zipfian(1000, Random(3))
    assert [grown.draw() for _n in range(500)] == [whole.draw() for _n in range(500)]


def test_scrambled_zipfian_has_the_skew_of_ycsb_wherever_the_records_are():
    """Share of the most frequent: 1 / zeta, 3.78 %; next half of it (0.5 ** 0.99)."""
    records = 10_000
    chooser = scrambled_zipfian(records, Random(2))
    counts = Counter(chooser() for _n in range(DRAWS))
    hot = [fnv64(rank) % records for rank in range(2)]
    shares = {place: 0.5 ** (THETA * rank) / SCRAMBLED_ZETA for rank, place in enumerate(hot)}
    assert [place for place, _count in counts.most_common(2)] == hot
    # Others fall on the same records by chance, one in as many as there are.
    shares = {place: share + (1 - sum(shares.values())) / records for place, share in shares.items()}
    assert chi_square(counts, shares) < bound(2)
    assert set(counts) <= set(range(records))
    ordered = sorted(counts)
    assert ordered[len(ordered) // 2] == pytest.approx(records / 2, rel=0.1), "they lie everywhere"


def test_uniform():
    chooser = uniform(50, Random(4))
    counts = Counter(chooser() for _n in range(DRAWS))
    assert chi_square(counts, dict.fromkeys(range(50), 1 / 50)) < bound(49)


def test_latest_follows_what_is_newest():
    newest = 999
    chooser = latest(lambda: newest, Random(5))
    counts = Counter(chooser() for _n in range(DRAWS))
    zeta = sum(1 / n**THETA for n in range(1, newest + 1))
    assert chi_square(counts, {newest: 1 / zeta, newest - 1: 0.5**THETA / zeta}) < bound(2)
    newest = 1200
    later = Counter(chooser() for _n in range(2000))
    assert later.most_common(1)[0][0] == 1200
    assert max(counts) == 999


# -- operations --------------------------------------------------------------------------------------------------

class Store:
    """As much of Redis as YCSB needs."""

    def __init__(self) -> None:
        self.hashes: dict[bytes, dict[bytes, bytes]] = {}
        self.index: dict[bytes, int] = {}

    def do(self, command):
        name, *args = command
        if name == b"HMSET":
            key, *fields = args
            self.hashes.setdefault(key, {}).update(zip(fields[::2], fields[1::2], strict=True))
            return b"OK"
        if name == b"ZADD":
            assert args[0] == INDEX
            self.index[args[2]] = int(args[1])
            return 1
        if name == b"HMGET":
            return [self.hashes.get(args[0], {}).get(field) for field in args[1:]]
        if name == b"HGETALL":
            return [part for item in self.hashes.get(args[0], {}).items() for part in item]
        assert name == b"ZRANGEBYSCORE"
        found = sorted((score, key) for key, score in self.index.items() if score >= int(args[1]))
        assert args[2:5] == [b"+inf", b"LIMIT", b"0"]
        return [key for _score, key in found[:int(args[5])]]

    def carry_out(self, steps):
        """What is wrong with an operation."""
        try:
            commands = next(steps)
            while True:
                commands = steps.send([self.do(command) for command in commands])
        except StopIteration as end:
            return end.value


def loaded(records: Records, count: int) -> Store:
    store = Store()
    loading = Loading(records, count)
    for _n in range(loading.total):
        assert store.carry_out(loading.next()[1]) == ""
    assert len(store.hashes) == len(store.index) == count
    return store


@pytest.mark.parametrize("letter", WORKLOADS)
def test_every_workload_has_its_mix_and_right_values(letter):
    records = Records(8, 16)
    store = loaded(records, 300)
    keys = Keyspace(300)
    operations = Operations(workload(letter), "", records, keys, History(1, 8), 1, 2000)
    kinds: Counter[str] = Counter()
    for _n in range(2000):
        kind, steps = operations.next()
        kinds[kind] += 1
        assert store.carry_out(steps) == ""
    published = {"a": {READ: 0.5, UPDATE: 0.5}, "b": {READ: 0.95, UPDATE: 0.05}, "c": {READ: 1.0},
                 "d": {READ: 0.95, INSERT: 0.05}, "e": {SCAN: 0.95, INSERT: 0.05}, "f": {READ: 0.5, RMW: 0.5}}
    shares = published[letter]
    assert set(kinds) == set(shares)
    for kind, share in shares.items():
        assert abs(kinds[kind] / 2000 - share) <= 4 * math.sqrt(share * (1 - share) / 2000)
    assert len(store.hashes) == 300 + kinds[INSERT]


def test_the_same_seed_gives_the_same_operations():
    def keys_asked(seed):
        operations = Operations(workload("a"), "", Records(1, 8), Keyspace(1000), History(1, 1), seed, None)
        return [next(operations.next()[1])[0][1] for _n in range(50)]

    assert keys_asked(7) == keys_asked(7) != keys_asked(8)


def test_what_is_not_acknowledged_is_not_asked_for():
    keys = Keyspace(10)
    first, second, third = keys.insert(), keys.insert(), keys.insert()
    assert (first, second, third) == (10, 11, 12)
    keys.acknowledge(second)
    assert keys.newest() == 9
    keys.acknowledge(first)
    assert keys.newest() == 11
    keys.acknowledge(third)
    assert keys.newest() == 12


def test_processes_load_all_records_once_and_insert_different_ones():
    records = Records(1, 8)
    parts = []
    for index in range(3):
        loading = Loading(records, 100, index, 3)
        parts.append([next(loading.next()[1])[0][1] for _n in range(loading.total)])
    assert sorted(key for part in parts for key in part) == sorted(map(records.key, range(100)))
    spaces = [Keyspace(100, index, 3) for index in range(3)]
    numbers = [space.number(space.insert()) for _n in range(20) for space in spaces]
    assert sorted(numbers) == list(range(100, 160))
    histories = [History(index + 1, 1) for index in range(3)]
    assert len({history.write(b"k", [0]) for _n in range(50) for history in histories}) == 150


@pytest.mark.parametrize("length", [8, 9, 128])
def test_a_value_that_is_wrong_is_noticed(length):
    records = Records(4, length)
    key = records.key(1)

    def reply(version=5):
        return [part for n in range(4) for part in (b"field%d" % n, records.value(key, n, version))]

    good = reply()
    assert records.judge(key, good) == ""
    assert records.judge(key, good[2:] + good[:2]) == "", "Redis keeps no order"
    assert records.judge(key, [*good[:2], *reply(9)[2:]]) == "", "fields are updated one at a time"
    assert records.judge(records.key(2), good), "of another record"
    assert records.judge(key, [*good[:1], good[3], *good[2:]]), "of another field"
    torn = good[1][:5] + reply(6)[1][5:]
    assert records.judge(key, [good[0], torn, *good[2:]]), "the halves of two versions"
    assert records.judge(key, [good[0], good[1][:-1] + bytes([good[1][-1] ^ 1]), *good[2:]]), "one bit"
    assert records.judge(key, [good[0], good[1] + b"x", *good[2:]])
    assert records.judge(key, [good[0], good[1][:-1], *good[2:]])
    assert records.judge(key, good[2:])
    assert records.judge(key, [*good[:6], *good[:2]]), "a field twice"
    assert records.judge(key, [b"other", *good[1:]])
    assert records.judge(key, None)
    assert records.judge(key, [])


def test_a_scan_that_is_wrong_is_noticed():
    records = Records(1, 8)
    store = loaded(records, 200)
    operations = Operations(workload("e"), "", records, Keyspace(200), History(1, 1), 3, None)

    def scan(spoil):
        while True:
            kind, steps = operations.next()
            if kind != SCAN:
                continue
            keys = store.do(next(steps)[0])
            if len(keys) < 3:
                continue
            try:
                commands = steps.send(spoil(keys))
                steps.send([store.do(command) for command in commands])
            except StopIteration as end:
                return end.value
            raise AssertionError

    assert scan(lambda keys: [keys]) == ""
    assert "order" in scan(lambda keys: [keys[::-1]])
    assert "no keys" in scan(lambda _keys: [[]])
    assert "order" in scan(lambda keys: [keys[1:]])

    def losing_one(keys):
        del store.hashes[keys[-1]]
        return [keys]

    assert "not a record" in scan(losing_one)


@pytest.mark.parametrize(("wrong", "words"), [
    ({"workload": "g"}, "YCSB has a, b, c, d, e, f"),
    ({"size": "100"}, "multiple of 8"),
    ({"size": "32"}, "at least 8 bytes"),
    ({"distribution": "normal"}, "zipfian, latest, uniform, hotspot, exponential, sequential"),
    ({"records": 0}, "at least one"),
    ({"phase": "sleep"}, "load or run"),
])
def test_wrong_loads_say_what_is_right(wrong, words):
    with pytest.raises(ConfigError, match=words):
        YcsbLoad(**wrong)
