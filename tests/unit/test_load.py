"""Loads: which requests, when, and the arithmetic of what came of them. Time is virtual."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from itertools import pairwise

import pytest

from smtstack.errors import ConfigError
from smtstack.socket import RpcError, RpcTimeout
from workloads.load.distributions import workload
from workloads.load.loops import MAX_UNDER_WAY, ClosedLoop, Load, OpenLoop, Requests, Tally, echo_reply, parse_also
from workloads.load.measure import PERCENTILES, Point, merge, percentile, result, rtt_summary, write_raw
from workloads.options import common as options
from workloads.results import fidelity
from workloads.transports import Settings
from workloads.transports.contract import Call, Caller

MS = 1_000_000


class FakeCaller(Caller):
    """Answers each call after ``service_ns``, or (``servers``) when one of so many servers has had time for it."""

    def __init__(self, service_ns: int = MS, peers: int = 1, servers: int = 0) -> None:
        super().__init__([("10.0.0.2", 2000 + n) for n in range(peers)])
        self.now = 0
        self.under_way = 0
        self.most_under_way = 0
        self.seen: list[Call] = []
        self.service_ns = service_ns
        self.answer = lambda data: data
        self.silent = False
        self.refuse = False
        self._free = [0] * servers
        self._due: list[tuple[int, int, Call]] = []

    def clock(self) -> int:
        return self.now

    def begin(self, call: Call) -> None:
        self.seen.append(call)
        if self.refuse:
            self._finish(call, RpcError("refused"))
            return
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        start = self.now
        if self._free:
            start = max(start, heapq.heappop(self._free))
            heapq.heappush(self._free, start + self.service_ns)
        if not self.silent:
            heapq.heappush(self._due, (start + self.service_ns, len(self.seen), call))

    def abort(self, call: Call) -> None:
        self.under_way -= 1
        self._finish(call, RpcTimeout("no answer in time"))

    def _finish(self, call: Call, error: RpcError) -> None:
        call.error, call.ended = error, self.now
        self.finished.append(call)

    def drive(self, timeout_s: float) -> None:
        until = self.now + int(timeout_s * 1e9)
        while not self.finished:
            if not self._due or self._due[0][0] > until:
                # An error ends at once, but time passes all the same.
                self.now = max(until, self.now + 1)
                return
            self.now, _n, call = heapq.heappop(self._due)
            self.under_way -= 1
            call.ended, call.response = self.now, self.answer(call.data)
            self.finished.append(call)

    def poll(self) -> None:
        self.drive(0)

    def fileno(self) -> int:
        return -1

    def next_wake(self) -> int | None:
        return None

    def linger(self, timeout_s: float) -> None:
        pass

    def counters(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        pass


def closed(caller: FakeCaller, load: Load, response_size: int | None = None) -> Tally:
    loop = ClosedLoop(caller, load.concurrency, load.timeout, response_size, caller.clock)
    requests = Requests(load, len(caller.peers))
    return loop.run(requests, requests.total, load.seconds)


def opened(caller: FakeCaller, load: Load) -> Tally:
    loop = OpenLoop(caller, load.rate, load.timeout, None, load.seed, caller.clock)
    requests = Requests(load, len(caller.peers))
    return loop.run(requests, requests.total, load.seconds)


# -- requests ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 64, 5000])
def test_payloads_differ_from_their_neighbours(size):
    requests = Requests(Load(str(size)))
    made = [requests.make().data for _n in range(200)]
    assert {len(data) for data in made} == {size}
    assert len(set(made)) == 200
    assert Requests(Load(str(size)), first=7).make().data == made[7]


def test_canaries_fill_the_payload_after_its_number():
    data = Requests(Load("100", canary="*secret*")).make().data
    assert data[8:].count(b"*secret*") == 11
    assert len(data) == 100


def test_sizes_of_a_workload_have_its_mean_and_repeat_with_the_seed():
    load = Load("W3", count=20_000, seed=5)
    sizes = [len(Requests(load).make().data)]
    requests = Requests(load)
    made = [len(requests.make().data) for _n in range(20_000)]
    assert made[0] == sizes[0]
    assert sum(made) / len(made) == pytest.approx(workload("w3").mean(), rel=0.2)
    assert max(made) > 100 * sorted(made)[10_000]


@pytest.mark.parametrize(("count", "extra"), [(1, 1), (1, 5), (10, 3), (1000, 200), (7, 7)])
def test_others_are_spread_evenly(count, extra):
    requests = Requests(Load("64", f"9000x{extra}", count))
    assert requests.total == count + extra
    sizes = [len(requests.make().data) for _n in range(count + extra)]
    assert Counter(sizes) == {64: count, 9000: extra}
    at = [n for n, size in enumerate(sizes) if size == 9000]
    gaps = {b - a for a, b in pairwise(at)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_peers_are_chosen_evenly_and_by_seed():
    def chosen(seed: int) -> list[int]:
        requests = Requests(Load(seed=seed), peers=3)
        return [requests.make().peer for _n in range(3000)]

    assert chosen(1) == chosen(1) != chosen(2)
    assert all(900 < n < 1100 for n in Counter(chosen(1)).values())


@pytest.mark.parametrize("fields", [
    {"size": "0"}, {"size": "w9"}, {"size": "1000001"}, {"size": "-1"}, {"size": ""}, {"size": "²"},
    {"also": "x"}, {"also": "9x0"}, {"also": "0x9"}, {"also": "9"}, {"also": "1000001x2"},
    {"also": "9x9", "count": None, "seconds": 1.0}, {"count": None}, {"count": 1, "seconds": 1.0},
])
def test_loads_that_make_no_sense(fields):
    with pytest.raises(ConfigError):
        Load(**fields)


def test_also_is_bytes_times_number():
    assert parse_also("1000000x200") == (1_000_000, 200)


def test_responses_of_another_size_repeat_the_request():
    assert echo_reply(b"abc", None) == b"abc"
    assert echo_reply(b"abc", 2) == b"ab"
    assert echo_reply(b"abc", 7) == b"abcabca"


# -- closed loop ---------------------------------------------------------------------------------------------

def test_closed_loop_keeps_so_many_under_way():
    caller = FakeCaller()
    tally = closed(caller, Load(count=1000, concurrency=7))
    assert caller.most_under_way == tally.most_under_way == 7
    assert list(tally.rtt_ns) == [MS] * 1000
    assert list(tally.sizes) == [64] * 1000
    assert caller.now == pytest.approx(1000 / 7 * MS, rel=0.01)


def test_closed_loop_begins_within_its_time_and_waits_for_the_last():
    caller = FakeCaller()
    tally = closed(caller, Load(count=None, seconds=0.1, concurrency=2))
    assert len(tally.rtt_ns) == 200
    assert caller.now == 100 * MS


def test_answers_are_compared():
    caller = FakeCaller()
    caller.answer = lambda data: data[:-1] + b"x" if len(caller.seen) == 5 else data
    tally = closed(caller, Load(count=10))
    assert (tally.wrong, tally.errors, len(tally.rtt_ns)) == (1, 0, 9)
    assert tally.first_error == "RPC to 10.0.0.2:2000: the answer's bytes are wrong"
    cut = FakeCaller()
    cut.answer = lambda data: data[:10]
    assert len(closed(cut, Load(count=10), response_size=10).rtt_ns) == 10


def test_silence_is_given_up_rpc_by_rpc_and_then_altogether():
    caller = FakeCaller()
    caller.silent = True
    tally = closed(caller, Load(count=1000, concurrency=3, timeout=0.4))
    assert tally.first_error == "no answer in time"
    # Three RPCs each 0.4 s, until more than 1 s has passed without an answer.
    assert tally.errors == 9
    assert not tally.rtt_ns


def test_errors_at_once_end_too():
    caller = FakeCaller()
    caller.refuse = True
    assert closed(caller, Load(count=50, concurrency=5)).errors == 50


# -- open loop -----------------------------------------------------------------------------------------------

def test_arrivals_are_poissons():
    caller = FakeCaller(service_ns=10)
    tally = opened(caller, Load(count=20_000, rate=1000.0))
    starts = [call.started for call in caller.seen]
    gaps = [b - a for a, b in zip([0, *starts], starts, strict=False)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(MS, rel=0.03)
    # Exponential: as much deviation as mean, and e^-1 of the gaps longer than it.
    assert sum((g - mean) ** 2 for g in gaps) / len(gaps) == pytest.approx(mean ** 2, rel=0.06)
    assert sum(g > mean for g in gaps) / len(gaps) == pytest.approx(0.368, abs=0.02)
    assert tally.kept_up
    assert set(tally.rtt_ns) == {10}
    again = FakeCaller(service_ns=10)
    opened(again, Load(count=20_000, rate=1000.0))
    assert [call.started for call in again.seen] == starts
    other = FakeCaller(service_ns=10)
    opened(other, Load(count=20_000, rate=1000.0, seed=2))
    assert [call.started for call in other.seen] != starts


def test_open_loop_for_a_time():
    caller = FakeCaller(service_ns=10)
    tally = opened(caller, Load(count=None, seconds=10.0, rate=1000.0))
    assert len(tally.rtt_ns) == pytest.approx(10_000, rel=0.03)
    assert tally.span_ns <= 10_000 * MS


def test_a_stall_is_seen_by_all_who_would_have_come():
    """The server stands still for 100 ms: everyone who was due then waits, not just the first."""
    class Stalling(FakeCaller):
        def drive(self, timeout_s: float) -> None:
            if 500 * MS <= self.now < 600 * MS:
                self.now = 600 * MS
            super().drive(timeout_s)

    caller = Stalling(service_ns=1000)
    tally = opened(caller, Load(count=1000, rate=1000.0))
    waited = [rtt for rtt in tally.rtt_ns if rtt > MS]
    assert 70 < len(waited) < 130
    assert max(waited) == pytest.approx(100 * MS, rel=0.1)
    assert sum(waited) / len(waited) == pytest.approx(50 * MS, rel=0.2)


def test_too_high_a_rate_is_said():
    assert opened(FakeCaller(MS, servers=1), Load(count=2000, rate=500.0)).kept_up
    caller = FakeCaller(MS, servers=1)
    tally = opened(caller, Load(count=2000, rate=2000.0))
    assert not tally.kept_up
    # Half of them had to wait for the other half: the last one as long as all arrivals took.
    assert tally.drain_ns == pytest.approx(tally.span_ns, rel=0.1)
    assert max(tally.rtt_ns) == pytest.approx(tally.drain_ns, rel=0.01)
    point = Point(tally, 1.0, {}, {"ok": True, "reasons": []})
    answer = result(Settings("tcp"), Load(count=2000, rate=2000.0), point)
    assert answer["open_loop"]["kept_up"] is False


def test_open_loop_gives_up_silence_and_is_bounded():
    caller = FakeCaller()
    caller.silent = True
    tally = opened(caller, Load(count=100_000, rate=1e6, timeout=0.5))
    assert caller.most_under_way == MAX_UNDER_WAY
    assert tally.errors >= MAX_UNDER_WAY
    assert len(caller.seen) < 100_000
    assert not caller.under_way


# -- results -------------------------------------------------------------------------------------------------

def test_percentiles_are_nearest_ranks():
    values = array("Q", range(1, 1001))
    assert [percentile(values, share) for _name, share in PERCENTILES] == [500, 900, 990, 999]
    assert [percentile(array("Q", [7]), share) for _name, share in PERCENTILES] == [7] * 4
    assert percentile(array("Q", [1, 2, 3]), 0.5) == 2
    assert percentile(array("Q", range(1, 11)), 0.9) == 9
    assert percentile(array("Q", range(1, 11)), 0.99) == 10


def test_summary_is_in_microseconds_whatever_the_order():
    rtt = rtt_summary(array("Q", [3000, 1000, 2000]))
    assert rtt == {"min": 1.0, "p50": 2.0, "p90": 3.0, "p99": 3.0, "p999": 3.0, "max": 3.0, "mean": 2.0}
    assert set(rtt_summary(array("Q")).values()) == {None}


def test_processes_are_one_result():
    def point(rtt: int, seconds: float, errors: int = 0) -> Point:
        numbers = {"steal": 0.0, "run_delay": seconds / 100, "psi_cpu_some": 0.1, "receive_drops": 0,
                   "send_drops": 0, "timer_late_us": 1.0}
        tally = Tally(array("Q", [rtt]), array("Q", [64]), errors=errors, most_under_way=4)
        return Point(tally, seconds, {"user_s": 0.5, "wall_s": seconds},
                     fidelity.verdict({**numbers, "receive_drops": 1}))

    merged = merge([point(1000, 1.0), point(3000, 2.0, errors=2)])
    answer = result(Settings("smt"), Load(), merged)
    assert (answer["rpcs"], answer["errors"], answer["rpc_per_s"], answer["concurrency"]) == (2, 2, 1.0, 8)
    assert answer["rtt_us"]["mean"] == 2.0
    assert answer["cpu"] == {"user_s": 1.0, "wall_s": 2.0}
    assert (answer["fidelity"]["receive_drops"], answer["fidelity"]["run_delay"]) == (2, 0.02)
    assert list(answer)[:11] == ["transport", "nic", "encrypted", "size", "rpcs", "errors", "content_ok",
                                 "rpc_per_s", "rtt_us", "cpu", "fidelity"]


def test_raw_files_are_little_endian_and_have_sizes_where_they_differ(tmp_path):
    tally = Tally(array("Q", [1, 258]), array("Q", [64, 9000]))
    write_raw(tmp_path / "a", Load("64"), tally)
    assert (tmp_path / "a").read_bytes() == bytes([1, *[0] * 7, 2, 1, *[0] * 6])
    assert not (tmp_path / "a.sizes").exists()
    write_raw(tmp_path / "b", Load("w1"), tally)
    assert (tmp_path / "b.sizes").read_bytes()[:8] == bytes([64, *[0] * 7])
    with pytest.raises(ConfigError, match="No such file"):
        write_raw(tmp_path / "no" / "b", Load(), tally)


@pytest.mark.parametrize("text", ["10.0.0.1", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:x", "a:1",
                                  ":1", "", "10.0.0.256:1"])
def test_addresses_that_are_none(text):
    with pytest.raises(ConfigError, match="no IP:PORT"):
        options.parse_address(text)
    assert options.parse_address("10.0.0.1:65535") == ("10.0.0.1", 65535)


# -- fidelity ------------------------------------------------------------------------------------------------

def test_verdict_names_what_was_not_faithful():
    fine = {"steal": 0.0, "idle": 0.5, "run_delay": None, "psi_cpu_some": 0.1, "receive_drops": 0, "send_drops": 0,
            "timer_late_us": 900.0}
    assert fidelity.verdict(fine) == {"ok": True, "reasons": [], **fine}
    for name, value, word in [("steal", 0.03, "hypervisor"), ("psi_cpu_some", 0.5, "waited"),
                              ("run_delay", 0.5, "waited"), ("path_drops", 1, "switch"),
                              ("receive_drops", 1, "received"), ("send_drops", 2, "queue"),
                              ("timer_late_us", 10_001.0, "late")]:
        judged = fidelity.verdict({**fine, name: value})
        assert not judged["ok"]
        assert len(judged["reasons"]) == 1
        assert word in judged["reasons"][0]
    everything = fidelity.verdict({**fine, "steal": 1.0, "psi_cpu_some": 1.0, "receive_drops": 1})
    assert len(everything["reasons"]) == 3
    # With longer ticks, timers may be later.
    assert fidelity.verdict({**fine, "timer_late_us": 49_000.0, "tick_us": 5_000.0})["ok"]
    assert not fidelity.verdict({**fine, "timer_late_us": 51_000.0, "tick_us": 5_000.0})["ok"]
    # Others may wait as long as we do not.
    assert fidelity.verdict({**fine, "psi_cpu_some": 1.0, "run_delay": 0.1})["ok"]


def test_waiting_is_told_of_the_process_that_waited_most(monkeypatch):
    delays = {1: iter([0, 10**15]), 2: iter([5, 5]), 3: iter([7, None])}
    monkeypatch.setattr(fidelity, "run_delay_ns", lambda pid: next(delays[pid]))
    monitor = fidelity.FidelityMonitor(pids=[1, 2, 3])
    monitor.start()
    delay = monitor.stop()["run_delay"]
    assert delay is not None
    assert delay > 1


def test_a_kernel_may_not_count_waiting():
    assert fidelity.run_delay_ns(2**22 + 1) is None, "no such process"


def test_a_kernel_without_psi_is_no_error(tmp_path, monkeypatch):
    pressure = tmp_path / "cpu"
    pressure.write_text("some avg10=0.66 avg60=11.09 avg300=9.35 total=464902093\nfull avg10=0.00 total=7\n")
    assert fidelity.psi_cpu_some_us(pressure) == 464902093
    assert fidelity.psi_cpu_some_us(tmp_path / "absent") is None
    monkeypatch.setattr(fidelity, "psi_cpu_some_us", lambda: None)
    monkeypatch.setattr(fidelity, "run_delay_ns", lambda _pid: None)
    monitor = fidelity.FidelityMonitor()
    monitor.start()
    result = monitor.stop()
    assert result["psi_cpu_some"] is None
    assert not any("waited" in reason for reason in result["reasons"])


def test_what_was_lost_before_the_start_does_not_count():
    class Lossy:
        drops_now, late = (5, 1), 9

        def drops(self) -> tuple[int, int]:
            return self.drops_now

        def take_late_ns(self) -> int:
            late, self.late = self.late, 0
            return late

    lossy = Lossy()
    monitor = fidelity.FidelityMonitor(lossy)
    monitor.start()
    lossy.drops_now, lossy.late = (8, 1), 20_000_000
    numbers = monitor.stop()
    assert (numbers["receive_drops"], numbers["send_drops"], numbers["timer_late_us"]) == (3, 0, 20_000.0)
    assert not numbers["ok"]
