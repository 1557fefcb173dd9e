"""When looking again and again pays: the rule by itself, in times of the test's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtstack.errors import ConfigError
from smtstack.waiting import AS_HOMA, HYBRID, INTERRUPT, LONGEST_NS, MODES, POLL, Waiter, Waiting

LONGEST = LONGEST_NS
SHORT, LONG = LONGEST // 4, 40 * LONGEST
#: From one wait's end to the next one's beginning.
WORK = 30_000


class Run:
    """One wait after the other, on a clock of its own."""

    def __init__(self, waiter: Waiter) -> None:
        self.waiter = waiter
        self.now = 1_000_000_000
        self.looked_ns = 0

    def wait(self, gap: int, slow: int = 0) -> bool:
        """Something comes after ``gap``; after ``slow`` more if it was looked for. Whether it was."""
        until = self.waiter.begin(self.now)
        looked = until > self.now
        came = self.now + gap + (slow if looked else 0)
        self.looked_ns += max(0, min(until, came) - self.now)
        self.waiter.end(came, True)
        self.now = came + WORK
        return looked

    def waits(self, count: int, gap: int, slow: int = 0) -> int:
        """How many of them were looked for."""
        return sum(self.wait(gap, slow) for _n in range(count))


def test_who_polls_always_looks_and_who_is_woken_never_does():
    run = Run(Waiter(Waiting(POLL, 5000)))
    assert run.waits(50, LONG) == 50
    assert run.looked_ns == 50 * 5000
    sleeper = Run(Waiter(Waiting(INTERRUPT)))
    assert sleeper.waits(50, SHORT) == 0
    assert not sleeper.waiter.looks
    with pytest.raises(ConfigError, match="hybrid, interrupt, poll"):
        Waiting("now and then")


def test_what_comes_soon_is_looked_for_every_time():
    assert Run(Waiter(AS_HOMA)).waits(1000, SHORT) == 1000


def test_where_nothing_comes_for_long_it_is_given_up_at_once():
    run = Run(Waiter(AS_HOMA))
    assert run.waits(1000, LONG) == 1
    assert run.looked_ns <= LONGEST


def test_one_pause_is_forgiven_and_three_are_a_habit():
    run = Run(Waiter(AS_HOMA))
    run.waits(50, SHORT)
    assert run.wait(LONG)
    assert run.waits(20, SHORT) == 20
    run.waits(3, LONG)
    assert not run.wait(SHORT)
    # And back: five short ones, and those that the looks in vain had cost.
    assert run.waits(30, SHORT) >= 20
    assert run.waits(100, SHORT) == 100


def test_looking_that_delays_what_it_waits_for_is_seldom_tried_again():
    """Both ends on one processor: who looks keeps the other from answering."""
    run = Run(Waiter(AS_HOMA))
    assert run.waits(5000, SHORT, slow=2 * LONGEST) < 25
    late = run.waits(2000, SHORT, slow=2 * LONGEST)
    assert late <= 2
    # Moved to processors of their own.
    run.waits(1100, SHORT)
    assert run.waits(100, SHORT) == 100


def test_who_had_no_processor_meanwhile_sleeps_for_a_while():
    waiter = Waiter(AS_HOMA)
    run = Run(waiter)
    looked = 0
    for _n in range(2000):
        until = waiter.begin(run.now)
        if until > run.now:
            looked += 1
            waiter.stalled()
        waiter.end(run.now + SHORT, True)
        run.now += SHORT + WORK
    assert looked < 15


def test_a_deadline_of_ones_own_teaches_nothing():
    run = Run(Waiter(AS_HOMA))
    for _n in range(200):
        assert run.waiter.begin(run.now) > run.now
        run.now += LONGEST // 2
        run.waiter.end(run.now, False)
    assert run.wait(SHORT)


def test_an_idle_server_does_not_look():
    """It sleeps 0.1 s at a time, to see whether it is to stop."""
    run = Run(Waiter(AS_HOMA))
    looked = 0
    for _n in range(100):
        looked += run.waiter.begin(run.now) > run.now
        run.now += 100_000_000
        run.waiter.end(run.now, False)
    assert looked == 1


def test_where_tasks_outnumber_processors_nobody_looks():
    crowded = True
    asked: list[int] = []

    def outnumbered() -> bool:
        asked.append(run.now)
        return crowded

    run = Run(Waiter(AS_HOMA, outnumbered))
    looked = run.waits(200_000, SHORT)
    # The first millisecond, in which it may have been something of the kernel's; and once more when nobody asks.
    assert looked < 50
    # Asked seldom, and ever more so: reading what the kernel says takes as long as a quarter of a round trip.
    assert len(asked) < run.now // 400_000_000
    crowded = False
    run.waits(20_000, SHORT)
    assert run.waits(1000, SHORT) == 1000


def test_something_of_the_kernels_in_between_changes_nothing():
    answers = iter([True, False] * 10_000)
    run = Run(Waiter(AS_HOMA, lambda: next(answers)))
    assert run.waits(10_000, SHORT) == 10_000


@given(st.sampled_from(MODES), st.lists(st.tuples(st.integers(0, 3 * LONGEST), st.booleans(), st.booleans(),
                                                  st.booleans()), max_size=200))
def test_whatever_happens_a_look_is_no_longer_than_told(mode, events):
    others = [crowded for _gap, _came, _stalled, crowded in events]
    waiter = Waiter(Waiting(mode), lambda: others.pop() if others else False)
    now = 1
    for gap, came, stalled, _crowded in events:
        until = waiter.begin(now)
        assert now <= until <= now + LONGEST
        assert (until == now) == (mode == INTERRUPT) or mode == HYBRID
        if stalled:
            waiter.stalled()
        now += gap
        waiter.end(now, came)
