"""No version that was replaced is seen again: never a false alarm, under any concurrency; and real ones are found.

The model is a register for each field: an operation takes effect at one moment between its beginning and its end,
or, if nobody answered, at any time later or never.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest

from smtstack.errors import SmtError
from workloads.load.ycsb_history import NUMBER_BITS, OVERLAPPED, WRITER_BITS, History, number_of, writer_of

KEYS, FIELDS = (b"a", b"b"), 2


class Model:
    """Clients of several processes at one store, one small step after the other."""

    def __init__(self, random: Random, processes: int, under_way: int, lost: float = 0.0) -> None:
        self._random = random
        self._histories = [History(number + 1, FIELDS) for number in range(processes)]
        self._store: dict[tuple[bytes, int], list[int]] = {(k, f): [0] for k in KEYS for f in range(FIELDS)}
        self._most = under_way
        self._lost = lost
        self._open: list[dict[str, Any]] = []
        self.alarms: list[str] = []
        self.stale = 0

    def run(self, steps: int, old: float = 0.0) -> None:
        """``old``: share of the reads that get a version that was replaced before they began."""
        for _n in range(steps):
            if len(self._open) < self._most:
                self._begin()
            operation = self._random.choice(self._open)
            if operation["effect"] is None:
                self._take_effect(operation, old)
            elif operation["answered"]:
                self._open.remove(operation)
                self._end(operation)
            else:
                self._open.remove(operation)

    def _begin(self) -> None:
        random = self._random
        history = random.choice(self._histories)
        key = random.choice(KEYS)
        before = history.before(key)
        operation: dict[str, Any] = {
            "history": history, "key": key, "before": before, "effect": None, "version": None,
            "answered": random.random() >= self._lost,
            "old": {f: len(self._store[key, f]) - 1 for f in range(FIELDS)}}
        if random.random() < 0.5:
            operation["fields"] = random.choice([[0], [1], [0, 1]])
            operation["version"] = history.write(key, operation["fields"])
        self._open.append(operation)

    def _take_effect(self, operation: dict[str, Any], old: float) -> None:
        key = operation["key"]
        if operation["version"] is not None:
            for f in operation["fields"]:
                self._store[key, f].append(operation["version"])
            operation["effect"] = True
            return
        seen = {f: self._store[key, f][-1] for f in range(FIELDS)}
        if self._random.random() < old:
            f = self._random.randrange(FIELDS)
            # Replaced before the read began.
            if operation["old"][f] > 0:
                seen[f] = self._store[key, f][self._random.randrange(max(0, operation["old"][f] - 3),
                                                                   operation["old"][f])]
                self.stale += 1
        operation["effect"] = seen

    def _end(self, operation: dict[str, Any]) -> None:
        history, key, before = operation["history"], operation["key"], operation["before"]
        if operation["version"] is not None:
            history.written(key, operation["fields"], operation["version"], before)
        elif wrong := history.read(key, operation["effect"], before):
            self.alarms.append(wrong)


@pytest.mark.parametrize("lost", [0.0, 0.1])
@pytest.mark.parametrize(("processes", "under_way"), [(1, 1), (1, 8), (3, 3), (3, 20), (6, 60)])
def test_a_right_store_is_never_blamed(processes, under_way, lost):
    for seed in range(20):
        model = Model(Random(seed), processes, under_way, lost)
        model.run(2000)
        assert model.alarms == []


@pytest.mark.parametrize(("processes", "under_way", "found"),
                         [(1, 1, 1.0), (1, 8, 0.5), (3, 3, 0.3), (3, 20, 0.1)])
def test_an_old_value_is_noticed(processes, under_way, found):
    """All of them where nothing overlaps, fewer where more is under way; never none."""
    stale = alarms = 0
    for seed in range(10):
        model = Model(Random(seed), processes, under_way)
        model.run(3000, old=0.05)
        stale += model.stale
        alarms += len(model.alarms)
        assert model.alarms
    assert found * stale * 0.9 <= alarms <= stale


def test_what_a_reader_concludes():
    first, second = History(1, 1), History(2, 1)
    one = first.write(b"k", [0])
    assert (writer_of(one), number_of(one), one & OVERLAPPED) == (1, 1, 0)
    first.written(b"k", [0], one, None)
    # Its own acknowledged write.
    before = first.before(b"k")
    assert "older" in first.read(b"k", {0: 0}, before)
    assert first.read(b"k", {0: one}, before) == ""
    # An operation that began before that was known may have seen what was loaded.
    assert first.read(b"k", {0: 0}, None) == ""
    # Another's: once it was seen, the one before is gone, also for a reader who has written neither.
    two = second.write(b"k", [0])
    reader = History(3, 1)
    assert reader.read(b"k", {0: one}, reader.before(b"k")) == ""
    assert reader.read(b"k", {0: two}, reader.before(b"k")) == ""
    wrong = reader.read(b"k", {0: one}, reader.before(b"k"))
    assert wrong == "k: field0 is older than what was seen before: write 1 of client 1, after write 1 of client 2"
    # A later version of a writer says what is gone of the earlier ones, though nobody here has seen those.
    later = [first.write(b"k", [0])]
    first.written(b"k", [0], later[0], None)
    later.append(first.write(b"k", [0]))
    assert not later[1] & OVERLAPPED
    fresh = History(4, 1)
    assert fresh.read(b"k", {0: later[1]}, None) == ""
    assert "older" in fresh.read(b"k", {0: later[0]}, fresh.before(b"k"))


def test_of_writes_that_overlap_nothing_is_concluded():
    history, reader = History(1, 2), History(2, 2)
    one, two = history.write(b"k", [0, 1]), history.write(b"k", [1])
    assert (one & OVERLAPPED, two & OVERLAPPED) == (0, OVERLAPPED)
    assert reader.read(b"k", {1: two}, None) == ""
    assert reader.read(b"k", {1: one}, reader.before(b"k")) == "", "the other one came later"
    assert "older" in reader.read(b"k", {1: two}, reader.before(b"k")), "and that was seen"
    # One that never was answered is under way for ever.
    history.written(b"k", [1], two, None)
    assert history.write(b"k", [0]) & OVERLAPPED
    assert not history.write(b"other", [0]) & OVERLAPPED


def test_memory_is_bounded_and_numbers_end(monkeypatch):
    monkeypatch.setattr("workloads.load.ycsb_history.LIMIT", 40)
    history = History(1, 2)
    keys = [b"%d" % n for n in range(100)]
    for key in keys:
        history.written(key, [0], history.write(key, [0]), history.before(key))
    assert Counter(history.before(key) is not None for key in keys) == {True: 20, False: 80}
    assert history.before(keys[-1]) is not None
    for writer in (0, 1 << WRITER_BITS):
        with pytest.raises(SmtError, match="load it again"):
            History(writer, 1)
    monkeypatch.setattr(history, "_written", (1 << NUMBER_BITS) - 1)
    with pytest.raises(SmtError, match="load the store again"):
        history.write(b"k", [0])
