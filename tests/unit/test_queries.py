"""Queries of many leaves, in virtual time: when they begin, when they are over, what fails them."""

from __future__ import annotations

from array import array

import pytest

from smtstack.errors import ConfigError
from tests.unit.test_load import MS, FakeCaller
from workloads.load.loops import ClosedLoop, OpenLoop, Requests, Tally
from workloads.load.queries import LEAVES_SUFFIX, QueryLoad, QuerySeries, Scatter
from workloads.transports import Settings
from workloads.transports.contract import Call


class Leaves(FakeCaller):
    """Peer n answers 2 * (n + 1) ms after it was asked, with ``answer`` of what it was asked."""

    def begin(self, call: Call) -> None:
        self.service_ns = 2 * (call.peer + 1) * MS
        super().begin(call)


def ask(caller: FakeCaller, load: QueryLoad) -> tuple[Tally, Scatter]:
    scatter = Scatter(caller)
    scatter.ask(load.leaves, load.in_turn, load.response_size)
    requests = Requests(load)
    loop = (OpenLoop(scatter, load.rate, load.timeout, load.response_size, load.seed, caller.clock) if load.rate
            else ClosedLoop(scatter, load.concurrency, load.timeout, load.response_size, caller.clock))
    return loop.run(requests, requests.total, load.seconds), scatter


def load(leaves: int, count: int | None = 10, **more) -> QueryLoad:
    return QueryLoad("64", count=count, leaves=leaves, response_size=64, **more)


def test_a_query_is_over_with_its_last_leaf():
    caller = Leaves(peers=5)
    tally, scatter = ask(caller, load(4))
    assert list(tally.rtt_ns) == [8 * MS] * 10
    assert list(scatter.leaf_ns) == [2 * MS, 4 * MS, 6 * MS, 8 * MS] * 10
    assert caller.now == 80 * MS
    # All at the same moment, and one query after the other.
    assert [call.started for call in caller.seen] == [8 * MS * n for n in range(10) for _leaf in range(4)]
    assert [call.peer for call in caller.seen] == [0, 1, 2, 3] * 10


def test_every_leaf_is_sent_something_else_and_so_is_every_query():
    caller = Leaves(peers=3)
    ask(caller, load(3))
    assert len({call.data for call in caller.seen}) == 30
    assert {len(call.data) for call in caller.seen} == {64}


def test_an_answer_meant_for_another_leaf_is_wrong():
    class Mixed(Leaves):
        def drive(self, timeout_s: float) -> None:
            super().drive(timeout_s)
            for call in self.finished:
                if call.peer == 1 and call.started == 0:
                    call.response = self.seen[0].data

    tally, scatter = ask(Mixed(peers=3), load(3))
    assert (tally.wrong, tally.errors, len(tally.rtt_ns)) == (1, 0, 9)
    assert tally.first_error == "RPC to 10.0.0.2:2001: the answer's bytes are wrong"
    assert len(scatter.leaf_ns) == 27, "only of queries that succeeded"


def test_answers_have_the_size_the_servers_were_told():
    wanted = QueryLoad("16", count=5, leaves=2, response_size=40)
    caller = Leaves(peers=2)
    caller.answer = lambda data: (data * 3)[:40]
    assert len(ask(caller, wanted)[0].rtt_ns) == 5
    short = Leaves(peers=2)
    assert ask(short, wanted)[0].wrong == 5


def test_one_silent_leaf_fails_its_query_in_time():
    class Silent(Leaves):
        def begin(self, call: Call) -> None:
            self.silent = call.peer == 1
            super().begin(call)

    caller = Silent(peers=3)
    tally, scatter = ask(caller, load(3, timeout=0.4))
    # One after the other, until more than 1 s has passed without an answer.
    assert (tally.errors, len(tally.rtt_ns)) == (3, 0)
    assert caller.now == 1200 * MS
    assert tally.first_error == "no answer in time"
    assert not caller.under_way
    assert not scatter.leaf_ns


def test_a_refusal_does_not_end_a_query_before_its_other_leaves():
    class Refusing(Leaves):
        def begin(self, call: Call) -> None:
            self.refuse = call.peer == 0
            super().begin(call)

    caller = Refusing(peers=2)
    tally, _scatter = ask(caller, load(2, count=1))
    assert (tally.errors, tally.first_error, caller.now) == (1, "refused", 4 * MS)


def test_poisson_queries_are_timed_from_when_they_were_due():
    caller = FakeCaller(10, peers=3)
    tally, scatter = ask(caller, load(3, count=2000, rate=100.0))
    assert set(tally.rtt_ns) == set(scatter.leaf_ns) == {10}
    assert tally.span_ns == pytest.approx(20_000 * MS, rel=0.06)
    # One that takes 8 ms at 100 queries/s: several at a time, which do not wait for each other.
    slow, _scatter = ask(Leaves(peers=4), load(4, count=500, rate=500.0))
    assert set(slow.rtt_ns) == {8 * MS}
    assert slow.most_under_way > 4


def test_in_turn_asks_one_leaf_after_the_other():
    caller = FakeCaller(peers=3)
    tally, _scatter = ask(caller, load(3, count=9, in_turn=True, concurrency=2))
    assert [call.peer for call in caller.seen] == [0, 1, 2] * 3
    assert caller.most_under_way == 2
    assert len(tally.rtt_ns) == 9


def test_a_series_counts_no_warm_up_and_writes_both_times(tmp_path):
    class RealTime(FakeCaller):
        """Answers at once; the clock is the loops' own."""

        def drive(self, timeout_s: float) -> None:
            super().drive(timeout_s)
            for call in self.finished:
                call.ended = call.started + 1000 * (call.peer + 1)

    series = QuerySeries(RealTime(peers=2))
    wanted = load(2, warm_up=3)
    for _again in range(2):
        point = series.measure(wanted)
        answer = series.result(Settings("tcp"), wanted, point)
        assert (answer["rpcs"], answer["errors"], answer["content_ok"]) == (10, 0, True)
        assert (answer["rtt_us"]["max"], answer["leaf_us"]["min"], answer["leaf_us"]["max"]) == (2.0, 1.0, 2.0)
        series.write_raw(tmp_path / "raw", wanted, point.tally)
        leaves = array("Q", (tmp_path / f"raw{LEAVES_SUFFIX}").read_bytes())
        assert list(leaves) == [1000, 2000] * 10
        assert list(array("Q", (tmp_path / "raw").read_bytes())) == [2000] * 10
    with pytest.raises(ConfigError, match="of 3 leaves; there are 2"):
        series.measure(load(3))


@pytest.mark.parametrize("fields", [{"leaves": 0}, {"size": "w3"}, {"size": "0"}, {"also": "9x9"},
                                    {"response_size": None}, {"seconds": 1.0}])
def test_queries_that_make_no_sense(fields):
    with pytest.raises(ConfigError):
        QueryLoad(**{"size": "64", "response_size": 64, "count": 10, **fields})
