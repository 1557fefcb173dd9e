"""Gaps against a model that keeps every byte in a set."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from smtstack.transport.ranges import Gaps

SPAN = 24
RANGE = st.tuples(st.integers(0, SPAN), st.integers(1, 8)).map(lambda r: (r[0], r[0] + r[1]))
STEPS = st.lists(st.tuples(st.sampled_from(["add", "add", "remove"]), RANGE), max_size=40)


def runs(values: set[int]) -> list[tuple[int, int]]:
    """(offset, length) of the runs of a set."""
    out: list[tuple[int, int]] = []
    for value in sorted(values):
        if out and sum(out[-1]) == value:
            out[-1] = (out[-1][0], out[-1][1] + 1)
        else:
            out.append((value, 1))
    return out


def bytes_of(ranges: list[tuple[int, int]]) -> list[int]:
    return [b for start, stop in ranges for b in range(start, stop)]


def check(gaps: Gaps, have: set[int]) -> None:
    end = max(have) + 1 if have else 0
    assert gaps.end == end
    assert gaps.contiguous() == next(b for b in range(SPAN + 10) if b not in have)
    assert [(a, b - a) for a, b in gaps.holes] == runs(set(range(end)) - have)
    for limit in (0, 1, end - 1, end, end + 1, SPAN + 10):
        missing = gaps.missing(limit)
        assert sorted(b for at, n in missing for b in range(at, at + n)) == sorted(set(range(limit)) - have)
        assert all(n > 0 for _at, n in missing)


@given(STEPS)
def test_gaps_know_exactly_the_bytes_that_came(steps):
    gaps = Gaps()
    have: set[int] = set()
    for what, (start, stop) in steps:
        if what == "add":
            new = gaps.add(start, stop)
            assert bytes_of(new) == sorted(set(range(start, stop)) - have)
            assert all(a < b for a, b in new)
            have |= set(range(start, stop))
        else:
            gaps.remove(start, stop)
            have -= set(range(start, stop))
        check(gaps, have)


def test_nothing_yet():
    gaps = Gaps()
    check(gaps, set())
    assert gaps.missing(10) == [(0, 10)]
    gaps.remove(0, 5)
    check(gaps, set())


def test_in_order_makes_no_holes():
    gaps = Gaps()
    for at in range(0, 1000, 10):
        assert gaps.add(at, at + 10) == [(at, at + 10)]
    assert (gaps.holes, gaps.end, gaps.contiguous()) == ([], 1000, 1000)


def test_a_hole_is_filled_from_both_ends_and_the_middle():
    gaps = Gaps()
    gaps.add(90, 100)
    assert gaps.missing(100) == [(0, 90)]
    assert gaps.add(40, 50) == [(40, 50)]
    assert gaps.add(0, 45) == [(0, 40)]
    assert gaps.add(45, 95) == [(50, 90)]
    assert gaps.contiguous() == 100


def test_a_removed_tail_lowers_the_end():
    gaps = Gaps()
    gaps.add(0, 10)
    gaps.add(20, 30)
    gaps.remove(20, 99)
    assert (gaps.end, gaps.holes) == (10, [])
