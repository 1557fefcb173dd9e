"""When things happen in a scenario, and what is made of round trips: arithmetic, on made-up times."""

from __future__ import annotations

import csv
from array import array
from collections import deque
from itertools import pairwise
from typing import Any

import pytest

from smtstack.errors import PeerError
from tests.rows import row
from workloads.experiments.scenario import picture
from workloads.experiments.scenario.schedule import Span, Step, What, intervals, outside, steps
from workloads.experiments.scenario.timeline import Measured, as_csv, spread, table, without_times
from workloads.load import timed
from workloads.load.loops import Load, Requests
from workloads.transports.contract import Call

A, B = Span(1.0, 2.0), Span(2.0, 3.0)


# -- times -------------------------------------------------------------------------------------------------------


def test_steps_are_in_order_and_at_one_moment_an_end_comes_first():
    assert steps([Span(0, 3), Span(2, 3)], [B, A]) == [
        Step(0, What.LOAD_BEGINS, 0), Step(1, What.FAULT_BEGINS, 1), Step(2, What.FAULT_ENDS, 1),
        Step(2, What.FAULT_BEGINS, 0), Step(2, What.LOAD_BEGINS, 1), Step(3, What.FAULT_ENDS, 0)]


def test_spans_that_touch_do_not_meet():
    assert not A.meets(B)
    assert not B.meets(A)
    assert A.meets(Span(1.9, 5))
    assert Span(0, 9).meets(A)


@pytest.mark.parametrize(("until", "many"), [(0.0, 1), (0.1, 1), (0.2, 2), (0.25, 3), (60.0, 600)])
def test_intervals_lie_side_by_side(until, many):
    found = list(intervals(0.1, until))
    assert len(found) == many
    assert found[0].begin == 0
    assert found[-1].end >= until
    assert all(one.end == other.begin for one, other in pairwise(found))


@pytest.mark.parametrize(("faults", "free"), [
    ([], [Span(0, 4)]), ([A], [Span(0, 1), Span(2, 4)]), ([B, A], [Span(0, 1), Span(3, 4)]),
    ([Span(0, 1)], [Span(1, 4)]), ([Span(0, 9)], []), ([Span(1, 3), Span(1.5, 2)], [Span(0, 1), Span(3, 4)]),
    ([Span(5, 6)], [Span(0, 4)])])
def test_the_time_without_a_fault(faults, free):
    assert outside(faults, Span(0, 4)) == free


def test_growth_of_a_counter_by_interval():
    assert spread([(0.0, 5), (0.1, 5), (0.2, 8), (0.3, 9), (0.45, 11)], 0.1, 0.5) == [0, 3, 1, 2, 0]
    assert spread([(0.0, 5), (0.1, 6), (7.0, 9)], 0.1, 0.2) == [1, 3], "what came last is of the last one"


# -- figures -----------------------------------------------------------------------------------------------------


def _measured() -> Measured:
    """An RPC every 100 ms that takes 1 ms; at 1 s one that takes until 2.5 s, and one that fails then."""
    ended = [n / 10 + 0.001 for n in range(40)]
    rtt = [1_000_000] * 40
    ended.append(2.5)
    rtt.append(1_500_000_000)
    return Measured(rtt, ended, [2.55], Span(0, 4))


def _fault(what: str, span: Span):
    return {"what": what, "begin_s": span.begin, "end_s": span.end, "asked_begin_s": span.begin,
            "asked_end_s": span.end}


def test_a_time_line_has_every_rpc_once():
    found = _measured().timeline(0.5, 4.0, [0, 1, 2])
    assert [one["rpcs"] for one in found] == [5, 5, 5, 5, 5, 6, 5, 5]
    assert [one["sent_again"] for one in found] == [0, 1, 2, 0, 0, 0, 0, 0]
    assert [one["errors"] for one in found] == [0, 0, 0, 0, 0, 1, 0, 0]
    assert (found[5]["p50_us"], found[5]["p99_us"], found[4]["p99_us"]) == (1000, 1_500_000, 1000)
    assert found[0]["rpc_per_s"] == 10


def test_an_interval_without_an_answer_has_no_times():
    (first, second) = Measured([1000], [0.6], [], Span(0, 1)).timeline(0.5, 1.0, [])
    assert (first["rpcs"], first["p50_us"], first["p99_us"]) == (0, None, None)
    assert second["p50_us"] == 1


def test_an_rpc_is_of_every_fault_in_which_it_was_under_way():
    known = _measured()
    faults = [_fault("one", Span(1.5, 2.0)), _fault("two", Span(2.4, 2.6)), _fault("never met", Span(8, 9))]
    one, two, free = known.within(faults, known.timeline(0.5, 4.0, [0, 0, 0, 7, 2, 4, 1]))
    assert [part["fault"] for part in (one, two, free)] == ["one", "two", ""]
    assert (one["rpcs"], one["p99_us"]) == (5, 1_500_000), "it did not end there"
    assert (two["rpcs"], two["errors"]) == (3, 1)
    assert (free["p99_us"], free["errors"]) == (1000, 0)
    assert (one["sent_again"], two["sent_again"], free["sent_again"]) == (7, 6, 1)


def test_a_load_that_is_over_meets_no_later_fault():
    known = Measured([1000], [0.5], [], Span(0, 1))
    (free,) = known.within([_fault("late", Span(2, 3))], known.timeline(0.5, 1.0, []))
    assert free["fault"] == ""


# -- what is shown -----------------------------------------------------------------------------------------------


def _row(load: str = "a", trial: int = 1):
    known = _measured()
    faults = [_fault("h2: down", Span(1.5, 2.0))]
    timeline = known.timeline(0.5, 4.0, [])
    return row("tls", None, mode=picture.MODE, trial=trial, load=load, scenario="x", interval_s=0.5, faults=faults,
               timeline=timeline, within=known.within(faults, timeline))


def test_a_csv_has_intervals_and_faults():
    lines = list(csv.DictReader(as_csv([("tls", _row())]).splitlines()))
    faults = [line for line in lines if line["kind"] == "fault"]
    (fault,) = faults
    assert (fault["faults"], fault["begin_s"], fault["asked_end_s"]) == ("h2: down", "1.5", "2.0")
    own = [line for line in lines if line["kind"] == "interval"]
    assert [line["begin_s"] for line in own if line["faults"]] == ["1.5"]
    assert len(own) == 8
    assert own[5]["p99_us"] == "1500000.0"


def test_a_table_begins_with_the_time_without_a_fault():
    head, free, fault = table([("tls", _row())]).splitlines()
    assert head.split()[:4] == ["load", "system", "trial", "while"]
    assert "no fault" in free
    assert "h2: down" in fault
    assert "1,500,000" in fault
    assert "timeline" not in without_times(_row())


def test_a_picture_is_drawn_of_such_rows_alone(tmp_path):
    assert not picture.draw([row()], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
    assert picture.draw([_row(), _row("b"), _row(trial=2)], tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


# -- loads that note the time ------------------------------------------------------------------------------------


class _Caller:
    """Answers after 10 ms of a clock of its own, or fails."""

    def __init__(self, fails: bool = False) -> None:
        self.now, self.fails = 0, fails
        self.open: list[Call] = []
        self.finished: deque[Call] = deque()
        self.peers = [("10.0.0.2", 2000)]

    def clock(self) -> int:
        return self.now

    def begin(self, call) -> None:
        self.open.append(call)

    def drive(self, _seconds: float) -> None:
        self.now += 10_000_000
        for call in self.open:
            call.ended = self.now
            if self.fails:
                call.error = PeerError("no")
            else:
                call.response = call.data
            self.finished.append(call)
        self.open = []


@pytest.mark.parametrize("kind", [timed.TimedClosedLoop, timed.TimedOpenLoop])
def test_every_end_is_noted(kind):
    caller = _Caller()
    how = (2, 1.0) if kind is timed.TimedClosedLoop else (100.0, 1.0)
    tally = kind(caller, *how, clock=caller.clock).run(Requests(Load()), 50)
    assert len(tally.ended_ns) == len(tally.rtt_ns) == 50
    assert list(tally.ended_ns) == sorted(tally.ended_ns)
    assert tally.failed_ns == array("Q")


def test_failures_are_noted_and_are_no_reason_to_stop(monkeypatch):
    monkeypatch.setattr(timed, "MOST_FAILURES", 500)
    caller: Any = _Caller(fails=True)

    def run(count: int) -> Any:
        return timed.TimedClosedLoop(caller, 1, 1.0, clock=caller.clock).run(Requests(Load()), count)

    tally = run(300)
    assert (tally.errors, len(tally.failed_ns)) == (300, 300), "three seconds of failures"
    assert run(900).errors == 500, "not for ever"
