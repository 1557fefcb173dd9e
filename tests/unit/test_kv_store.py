"""The keyspace by itself: order, expiry, scanning, what the journal says; time is an argument."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from workloads.kv.arguments import Session
from workloads.kv.commands import execute
from workloads.kv.commands_keys import glob
from workloads.kv.databases import Journal
from workloads.kv.store import Keyspace, Slots
from workloads.kv.zset import SortedSet

NOW = 1_700_000_000_000


def do(keys: Keyspace, line: str, now: int = NOW) -> bytes:
    return execute(keys, line.encode().split(), Session(), now)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 400), st.integers(-5, 5)), max_size=900))
def test_a_sorted_set_is_in_order_whatever_is_put_and_removed(steps):
    ours, model = SortedSet(), {}
    for put, member, score in steps:
        name = b"%d" % member
        if put:
            ours.put(name, float(score))
            model[name] = float(score)
        else:
            assert ours.remove(name) == (model.pop(name, None) is not None)
    expected = sorted((s, m) for m, s in model.items())
    assert ours.range(0, len(model) + 1) == expected
    assert len(ours) == len(model)
    for start in (0, 3, 599, len(expected) - 1):
        assert ours.range(max(0, start), 5) == expected[max(0, start):max(0, start) + 5]
    for bound in range(-6, 7):
        assert list(ours.from_score(bound, exclusive=False)) == [p for p in expected if p[0] >= bound]
        assert list(ours.from_score(bound, exclusive=True)) == [p for p in expected if p[0] > bound]


def test_a_sorted_set_of_many_chunks_is_in_order():
    ours = SortedSet()
    for i in range(5000):
        ours.put(b"%d" % i, float(i * 7919 % 5000))
    assert [s for s, _m in ours.range(0, 5000)] == [float(i) for i in range(5000)]
    assert [s for s, _m in ours.range(2345, 700)] == [float(i) for i in range(2345, 3045)]
    assert next(ours.from_score(4321.5, exclusive=False))[0] == 4322.0
    for i in range(5000):
        assert ours.remove(b"%d" % i)
    assert ours.range(0, 1) == []


@given(st.data())
def test_a_walk_meets_every_key_that_is_there_all_the_time(data):
    slots = Slots()
    present = [b"%d" % i for i in range(data.draw(st.integers(1, 60)))]
    for key in present:
        slots.add(key)
    steady, passing = set(present[::2]), present[1::2]
    seen: set[bytes] = set()
    cursor, fresh = 0, 0
    for _ in range(1000):
        found, cursor = slots.before(cursor, data.draw(st.integers(1, 7)))
        seen |= set(found)
        if not cursor:
            break
        if data.draw(st.booleans()) and passing:
            slots.remove(passing.pop(data.draw(st.integers(0, len(passing) - 1))))
        if data.draw(st.booleans()):
            fresh += 1
            slots.add(b"new%d" % fresh)
            passing.append(b"new%d" % fresh)
    assert cursor == 0
    assert seen >= steady


def test_keys_expire_at_their_millisecond_and_not_before():
    keys = Keyspace()
    assert do(keys, "SET k v PX 100") == b"+OK\r\n"
    assert do(keys, "PTTL k", NOW + 99) == b":1\r\n"
    assert do(keys, "GET k", NOW + 99) == b"$1\r\nv\r\n"
    assert do(keys, "GET k", NOW + 100) == b"$-1\r\n"
    assert do(keys, "DBSIZE", NOW + 100) == b":0\r\n"
    assert keys.expired == 1


def test_keys_nobody_asks_for_go_as_well():
    keys = Keyspace()
    for i in range(2000):
        do(keys, f"SET k{i} v PX {100 if i % 4 else 100_000}")
    turns = 0
    while len(keys) > 500:
        keys.sweep(NOW + 1000)
        turns += 1
        assert turns < 100
    assert keys.expiring == 500
    keys.sweep(NOW + 1000)
    assert len(keys) == 500


def test_changed_values_forget_their_end_unless_told_otherwise():
    keys = Keyspace()
    do(keys, "SET k 1 EX 10")
    do(keys, "INCR k")
    assert do(keys, "TTL k") == b":10\r\n"
    do(keys, "SET k 2 KEEPTTL")
    assert do(keys, "TTL k") == b":10\r\n"
    do(keys, "SET k 3")
    assert do(keys, "TTL k") == b":-1\r\n"
    do(keys, "EXPIRE k -1")
    assert do(keys, "EXISTS k") == b":0\r\n"
    assert keys.expiring == 0


def test_the_journal_gives_the_same_whenever_it_is_replayed():
    keys = Keyspace()
    keys.databases.journal = Journal()
    lines = ["SET a 1 PX 50", "SET b 1 EX 100", "GET a", "SET c x NX", "SET c y NX", "HSET h f v",
             "HDEL h nothing", "EXPIRE c 200", "ZADD z 1.5 m", "ZADD z INCR 2 m", "APPEND s x", "DECR n",
             "PERSIST c", "DEL nothing"]
    for i, line in enumerate(lines):
        do(keys, line, NOW + i)
    # Gone since, and then there again as another.
    do(keys, "INCR a", NOW + 60)
    assert keys.databases.journal[-2:] == [[b"DEL", b"a"], [b"INCRBY", b"a", b"1"]]
    for later in (0, NOW + 10_000_000):
        again = Keyspace()
        for entry in keys.databases.journal:
            execute(again, entry, Session(), 0)
        again.databases.now = later
        assert sorted(map(str, again.snapshot())) == sorted(map(str, keys.snapshot()))
    assert not any(b"nothing" in entry for entry in keys.databases.journal)
    assert [b"SET", b"b", b"1", b"PXAT", b"%d" % (NOW + 1 + 100_000)] in keys.databases.journal


def test_memory_of_the_keyspace_is_flat_under_overwrites():
    keys = Keyspace()
    before = (0, 0, 0)
    for round_ in range(3):
        for i in range(500):
            do(keys, f"SET k{i} {round_} EX {10 + round_}")
            do(keys, f"HSET h{i} f {round_}")
            do(keys, f"ZADD z {round_} m{i}")
            do(keys, f"DEL h{(i + 7) % 500}")
        sizes = len(keys), keys.expiring, len(deque(keys.snapshot()))
        if round_:
            assert sizes == before
        before = sizes


def test_patterns_match_as_redis_has_them():
    cases = {b"h?llo": (b"hello", b"hllo"), b"h*llo": (b"heeeello", b"hell"), b"h[ae]llo": (b"hallo", b"hillo"),
             b"h[^e]llo": (b"hallo", b"hello"), b"h[a-b]llo": (b"hbllo", b"hcllo"), b"h\\?": (b"h?", b"hh"),
             b"*a*b*c": (b"xaxbbxcc", b"xaxcb"), b"*": (b"\n\xff", None), b"a*": (b"a\nb", b"ba"),
             b"*a?b*": (b"aaab", b"aab"[:2]), b"[z-a]": (b"m", b"M"), b"[\\]]": (b"]", b"["),
             b"a*ab": (b"aab", b"ab")}
    for pattern, (yes, no) in cases.items():
        assert glob(pattern).fullmatch(yes), pattern
        assert no is None or not glob(pattern).fullmatch(no), pattern


def test_a_pattern_of_many_stars_takes_no_time():
    # Tried in every combination this would take longer than anybody waits.
    assert not glob(b"*a" * 400 + b"*b").fullmatch(b"a" * 2000)
    assert glob(b"*a" * 400 + b"*b").fullmatch(b"a" * 2000 + b"b")
    assert do(Keyspace(), "KEYS " + "*" * 2000).startswith(b"-ERR the pattern is longer")
