"""``smtnet run mix`` without a network: how many messages, which of them count, and what their times say."""

from __future__ import annotations

import argparse
import csv
import json
import random
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtstack.errors import ConfigError, SmtError
from smtstack.transport.params import INT_MAX, software
from tests.rows import row
from tests.typed import typed
from tests.unit.test_load import MS, FakeCaller
from topo import sandbox
from workloads.experiments.experiment import run
from workloads.experiments.mix import report as mix_report
from workloads.experiments.mix import run as run_mix
from workloads.experiments.mix.arithmetic import Mix, Unloaded, lag, shortfall, spread
from workloads.experiments.mix.fleet import judge
from workloads.experiments.slowdown import report as slowdown
from workloads.experiments.slowdown.report import Message
from workloads.fleet.fleet import share_of
from workloads.load.distributions import WORKLOADS, workload
from workloads.load.loops import Load, OpenLoop, Requests, Tally
from workloads.load.mix import MixLoad, MixSeries
from workloads.options.common import parse_param
from workloads.transports import Settings

#: On the link: Ethernet 14, IP 20, DATA 40, and preamble, FCS and gap 24.
HEADERS = 98
SMALL = HEADERS + 8
FULL = HEADERS + 1440


# -- load ----------------------------------------------------------------------------------------------------

def test_load_counts_requests_and_answers_with_all_headers():
    mix = Mix("w4", 0.8, hosts=2, rate_mbps=10.0)
    # 100 requests of 213 bytes, each answered with 8, in 2 s: of 40 Mbit.
    assert mix.load_of({213: 100}, 2.0) == pytest.approx(100 * (HEADERS + 213 + SMALL) * 8 / 40e6)
    # 2961 bytes are two full packets and one of 81.
    assert mix.load_of({2961: 7}, 2.0) == pytest.approx(7 * (2 * FULL + HEADERS + 81 + SMALL) * 8 / 40e6)


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("load", [0.5, 0.8])
def test_the_rate_gives_the_load(name, load):
    mix = Mix(name, load, hosts=8, rate_mbps=20.0)
    often = 1e6
    rpcs = {size: round(share * often) for size, share in mix.sizes.items()}
    assert mix.load_of(rpcs, often / mix.rpc_per_s) == pytest.approx(load, rel=1e-4)
    # Every host has its own link: what twice as many hosts send is twice as much.
    assert Mix(name, load, 16, 20.0).rpc_per_s == pytest.approx(2 * mix.rpc_per_s)
    assert Mix(name, load, 8, 10.0).rpc_per_s == pytest.approx(mix.rpc_per_s / 2)


def test_a_narrower_link_layer_makes_more_packets():
    assert Mix("w4", 0.8, 8, 20.0, mtu=576).rpc_per_s < Mix("w4", 0.8, 8, 20.0).rpc_per_s


@pytest.mark.parametrize("name", WORKLOADS)
def test_both_ends_get_the_priorities_of_the_workload(name):
    mix = Mix(name, 0.8, 8, 100.0, param=("window=12345", "max_overcommit=3"))
    words = mix.options()
    assert words[::2] == ("--param",) * (len(words) // 2)
    given_ = dict(map(parse_param, words[1::2]))
    assert given_ == {"unsched_cutoffs": mix.params.unsched_cutoffs, "max_sched_prio": mix.params.max_sched_prio,
                      "max_overcommit": 3, "window": 12345}
    assert mix.params.window == 12345
    assert mix.params.unsched_bytes == software(100).unsched_bytes


def test_w4_has_one_unscheduled_level():
    # As published: 1 and 7 (SIGCOMM'18), overcommitment 7.
    params = Mix("w4", 0.8, 8, 20.0).params
    assert params.unsched_cutoffs == (INT_MAX, 0, 0, 0, 0, 0, 0, INT_MAX)
    assert (params.max_sched_prio, params.max_overcommit) == (6, 7)


@pytest.mark.parametrize(("wrong", "word"), [
    ({"load": 0.0}, "load"), ({"load": 1.1}, "load"), ({"hosts": 1}, "1 host"), ({"workload": "w6"}, "w6"),
    ({"param": ("windw=1",)}, "window"), ({"param": ("window=x",)}, "window")])
def test_a_mix_that_makes_no_sense_is_refused(wrong, word):
    with pytest.raises(ConfigError, match=word):
        Mix(**({"workload": "w4", "load": 0.8, "hosts": 8, "rate_mbps": 20.0} | wrong))


# -- what counts -----------------------------------------------------------------------------------------------

def traffic(caller: FakeCaller, load: MixLoad) -> Tally:
    caller.answer = lambda data: data[:8]
    loop = OpenLoop(caller, load.rate, load.timeout, load.response_size, load.seed, caller.clock)
    requests = Requests(load, len(caller.peers))
    return loop.run(requests, requests.total, load.seconds)


def test_the_ends_load_the_network_and_do_not_count(tmp_path):
    load = MixLoad("w3", count=None, seconds=11.5, rate=1000.0, response_size=8, before=1.0, after=0.5)
    caller = FakeCaller(service_ns=400 * MS)
    tally = traffic(caller, load)
    series = MixSeries(caller)
    point = argparse.Namespace(tally=tally, seconds=12.0, cpu={}, fidelity={})
    answer = series.result(Settings("tcp"), load, point)  # type: ignore[arg-type]
    series.write_raw(tmp_path / "raw", load, tally)
    rtt, sizes = array("Q"), array("Q")
    rtt.frombytes((tmp_path / "raw").read_bytes())
    sizes.frombytes((tmp_path / "raw.sizes").read_bytes())

    inside = [call for call in caller.seen if 1000 * MS <= call.started < 11_000 * MS]
    assert len(caller.seen) == answer["rpcs"] == pytest.approx(11_500, rel=0.05)
    assert answer["due"] == Counter(len(call.data) for call in inside) == Counter(sizes)
    # Answered in that time are those that were due 400 ms before.
    ended = Counter(len(call.data) for call in caller.seen if 600 * MS <= call.started < 10_600 * MS)
    assert answer["done"] == ended
    assert set(rtt) == {400 * MS}
    assert len(rtt) == len(inside)
    json.dumps(answer)


def test_an_overload_is_seen_in_what_was_done():
    # Three servers for a load of four: a quarter of it is not done in time.
    load = MixLoad("500", count=None, seconds=11.0, rate=4000.0, response_size=8, before=0.5, after=0.5)
    caller = FakeCaller(service_ns=MS, servers=3)
    tally = traffic(caller, load)
    point = argparse.Namespace(tally=tally, seconds=12.0, cpu={}, fidelity={})
    answer = MixSeries(caller).result(Settings("tcp"), load, point)  # type: ignore[arg-type]
    assert answer["done"][500] == pytest.approx(0.75 * answer["due"][500], rel=0.02)


def test_without_a_rate_it_is_any_load(tmp_path):
    load = MixLoad("1000", count=5, response_size=8)
    tally = Tally(array("Q", [5] * 5), array("Q", [1000] * 5))
    point = argparse.Namespace(tally=tally, seconds=1.0, cpu={}, fidelity={})
    assert "due" not in MixSeries(FakeCaller()).result(Settings("tcp"), load, point)  # type: ignore[arg-type]
    MixSeries(FakeCaller()).write_raw(tmp_path / "raw", load, tally)
    assert (tmp_path / "raw").stat().st_size == 40


def test_shares_of_traffic_are_traffic():
    load = MixLoad("w4", count=None, seconds=3.0, rate=80.0, response_size=8, before=0.3, after=0.1)
    assert MixLoad(**share_of(load, 3, 8)).rate == 10.0


@pytest.mark.parametrize("wrong", [{"count": 5, "seconds": None, "rate": 5.0}, {"before": 2.0, "after": 1.0},
                                   {"before": -1.0}])
def test_traffic_that_measures_nothing_is_refused(wrong):
    with pytest.raises(ConfigError):
        MixLoad(**({"size": "w4", "count": None, "seconds": 3.0, "rate": 5.0} | wrong))


def test_gaps_do_not_know_the_sizes_that_follow_them():
    """Both are drawn from one seed; with one peer nothing else is."""
    caller = FakeCaller(service_ns=10)
    load = Load("w3", count=5000, rate=1000.0)
    OpenLoop(caller, load.rate, load.timeout, None, load.seed, caller.clock).run(Requests(load), 5000)
    starts = [call.started for call in caller.seen]
    gaps = [b - a for a, b in zip([0, *starts], starts, strict=False)]
    longest = sorted(range(5000), key=lambda n: gaps[n])[-500:]
    large = sum(len(caller.seen[n].data) > 500 for n in longest)
    # 500 B are exceeded by a quarter of W3.
    assert large == pytest.approx(125, abs=45)


# -- slowdown ------------------------------------------------------------------------------------------------

def test_in_between_the_yardstick_is_a_line():
    alone = Unloaded({1000: 3000.0, 100: 1000.0, 500: 2000.0})
    assert [alone.ns(size) for size in (100, 300, 500, 750, 1000)] == [1000, 1500, 2000, 2500, 3000]


@given(st.integers(1, 60), st.integers(2, 30))
def test_some_sizes_stand_for_all(number, most):
    sizes = list(range(10, 10 * number + 1, 10))
    chosen = spread(sizes, most)
    assert (chosen[0], chosen[-1]) == (sizes[0], sizes[-1])
    assert len(chosen) == min(number, most)
    assert sorted(set(chosen)) == chosen


def test_sizes_find_their_place_in_the_distribution():
    mix = Mix("w4", 0.8, 8, 20.0)
    draw = random.Random(1)
    places = [mix.quantile(1_000_000, draw) for _n in range(4000)]
    assert 0.98 <= min(places) < max(places) <= 1
    # The last 2 % are all 1 MB long: half of them are beyond 99 %.
    assert sum(place >= 0.99 for place in places) == pytest.approx(2000, abs=200)
    assert 0 <= mix.quantile(213, draw) <= 0.05
    assert 0.05 <= mix.quantile(308, draw) <= 0.10


def test_slowdown_is_the_time_over_that_of_the_size_alone():
    mix = Mix("w4", 0.8, 8, 20.0)
    alone = Unloaded({size: float(size) for size in mix.sizes.sizes})
    found = mix.messages([426, 308, 3_000_000], [213, 308, 1_000_000], alone, seed=1)
    assert [(message.size, message.slowdown) for message in found] == [(213, 2.0), (308, 1.0), (1_000_000, 3.0)]
    rows = slowdown.buckets("tls", found, {})
    assert [(row.label, row.samples) for row in rows][:1] == [("0-10", 2)]
    assert rows[-1].label == "largest"


def test_buckets_hold_what_the_simulation_puts_there():
    """Drawn by size, as here, or by place, as in the simulation: each bucket gets its share."""
    mix = Mix("w3", 0.8, 8, 20.0)
    draw, sizes = random.Random(3), workload("w3")
    drawn = [sizes.sample(draw) for _n in range(20_000)]
    alone = Unloaded(dict.fromkeys(sizes.sizes, 1.0))
    low = 0.0
    for bucket in slowdown.buckets("smt", mix.messages([1] * len(drawn), drawn, alone, 1), {}):
        if bucket.from_pct < bucket.to_pct:
            expected = (bucket.to_pct - low) / 100 * len(drawn)
            assert bucket.samples == pytest.approx(expected, abs=5 * expected ** 0.5 + 1)
            low = bucket.to_pct


# -- verdict -------------------------------------------------------------------------------------------------

def test_answers_that_do_not_keep_up_are_said():
    mix = Mix("w4", 0.8, 8, 20.0)
    assert not shortfall(mix, 0.8, 0.8 * 0.981, 600.0)
    assert "0.780" in shortfall(mix, 0.8, 0.78, 600.0)
    # Two messages of 1 MB a host are 0.86 s of its link: of 10 s a lot, of 100 s little.
    assert not shortfall(mix, 0.8, 0.73, 10.0)
    assert shortfall(mix, 0.8, 0.70, 10.0)
    assert shortfall(mix, 0.8, 0.73, 100.0)


def test_short_runs_are_loaded_for_as_long_as_the_longest_message_needs():
    mix = Mix("w4", 0.8, 8, 20.0)
    # 1 MB: 695 packets, 0.43 s.
    longest = (694 * FULL + HEADERS + 640 + SMALL) * 8 / 20e6 + 0.0015
    assert mix.seconds(1.0) == pytest.approx((1.0 + 12 * longest, 8 * longest, 4 * longest))
    assert mix.seconds(100.0) == pytest.approx((115.0, 10.0, 5.0))


def test_late_clients_are_said():
    # 10,000 bytes take 4 ms at 20 Mbit/s.
    mix = Mix("w4", 0.8, 8, 20.0)
    assert mix.params.unsched_bytes == 10_000
    assert not lag(mix, 1999.0)
    assert "2.1 ms" in lag(mix, 2100.0)


def loaded_row(transport: str, messages: list[Message], **more: Any) -> Any:
    fields: dict[str, Any] = {
        "topo": "star,8", "variant": "80% load", "size": "w4", "concurrency": 8, "rpcs": len(messages),
        "measured_s": 100.0, "connections": None if transport == "smt" else 50, "offered_load": 0.8,
        "achieved_load": 0.8, "lag_us": {"p50": 10.0, "p99": 100.0, "max": 500.0},
        "drops": {"queues": 3, "ovs": 0},
        "slowdown": mix_report.entry(transport, messages, {}, "W4, 80% load"), **more}
    return row(transport, mode="mix", **fields)


def some(slowest: float) -> list[Message]:
    """A thousand in the shortest half, of which 2 % take ``slowest`` times as long; a thousand longer ones."""
    return ([Message(0.2, 300, slowest if n % 50 == 0 else 1.5) for n in range(1000)]
            + [Message(0.7, 5000, 2.0)] * 1000)


def test_a_verdict_gets_what_is_wrong_with_the_loop():
    mix = Mix("w4", 0.8, 8, 20.0)
    good, bad = loaded_row("smt", []), loaded_row("smt", [], achieved_load=0.7, lag_us={"p99": 9000.0})
    judge(good, mix)
    judge(bad, mix)
    assert good["fidelity"]["ok"]
    assert not bad["fidelity"]["ok"]
    assert [reason.split()[0] for reason in bad["fidelity"]["reasons"]] == ["answers", "clients"]


# -- report --------------------------------------------------------------------------------------------------

def test_the_table_names_all_that_was_seen(tmp_path: Path):
    rows = [{"transport": "homa", "mode": "unloaded"},
            loaded_row("smt", some(3.0), resent_packets=0, resends=2),
            loaded_row("tls", some(30.0), retransmits=77, timeouts=5, reasons=("late",))]
    text = mix_report.text(rows)
    assert text.startswith("W4, 80% load: slowdown\n")
    line = next(line for line in text.splitlines() if line.strip().startswith("20-30"))
    assert line.split() == ["20-30", "300", "1000", "1.50", "3.00", "1.50", "30.00"]
    assert "2 RESENDs" in text
    assert "77 segments sent again, 5 retransmission timeouts" in text
    assert "3 lost (queues)" in text
    assert "50 connections to each server; NOT FAITHFUL" in text
    assert text.endswith("times below tls's: smt 10.0")
    path = tmp_path / "slowdown.png"
    assert mix_report.picture(rows, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    slowdown.write_csv(tmp_path / "slowdown.csv", mix_report.buckets_of(rows))
    with (tmp_path / "slowdown.csv").open() as f:
        assert [(line["transport"], line["p99"]) for line in csv.DictReader(f)] == [
            ("smt", "3.0000"), ("smt", "2.0000"), ("smt", "2.0000"),
            ("tls", "30.0000"), ("tls", "2.0000"), ("tls", "2.0000")]


def test_the_last_trial_stands_for_all_and_the_sums_are_of_all():
    first, second = loaded_row("tcp", some(3.0)[:1500]), loaded_row("tcp", some(3.0), trial=2, offered_load=0.7)
    found = mix_report.outcome([first, second], "tcp")
    assert (found["trials"], found["rpcs"], found["samples"]) == (2, 3500, 2000)
    assert found["offered_load"] == 0.75
    assert found["drops"] == {"queues": 6, "ovs": 0}
    assert len(mix_report.buckets_of([first, second])) == len(second["slowdown"]["buckets"])


def test_few_samples_and_none_are_no_percentile():
    assert mix_report.entry("smt", some(3.0)[:199], {}, "")["short_half_p99"] is None
    assert mix_report.entry("smt", some(3.0)[:200], {}, "")["short_half_p99"] == 3.0
    nothing = mix_report.entry("smt", [], {}, "")
    assert (nothing["mean"], nothing["buckets"]) == (None, [])
    assert "nothing measured" in mix_report.text([loaded_row("smt", [])])
    assert mix_report.text([row("smt", mode="loaded")]) == ""


# -- the command -----------------------------------------------------------------------------------------------

def parse(*argv: str) -> run_mix.Options:
    return typed(run_mix.Options, *argv)


@pytest.mark.parametrize(("argv", "word"), [
    (["--load", "0"], "load"), (["--hosts", "1"], "star"),
    (["--topo", "ring,4"], "ring"), (["--param", "windw=3"], "window"), (["--mtu", "100"], "mtu"),
    (["--rate-mbps", "2.5"], "whole"),
    (["--reference", "/nowhere.csv"], "nowhere"), (["--multipath", "message"], "controller")])
def test_mistakes_are_named_before_anything_is_made(argv, word, monkeypatch):
    monkeypatch.setattr(sandbox, "enter", lambda: pytest.fail("a sandbox was made"))
    asked = parse(*argv)
    with pytest.raises(SmtError, match=word):
        run(run_mix.EXPERIMENT, asked)


def test_an_unknown_transport_is_named(capsys):
    with pytest.raises(SystemExit) as ended:
        parse("--transport", "smt,quic")
    assert ended.value.code == 2
    assert "there is no transport 'quic'; there are smt," in capsys.readouterr().err


def test_a_number_of_messages_is_a_time():
    plan = run_mix.check(parse("--messages", "5000", "--transport", "smt,tls", "--trials", "2"))
    assert plan.seconds == pytest.approx(5000 / plan.mix.rpc_per_s)
    assert plan.names == ["smt", "tls"]
    assert plan.sizes == list(plan.mix.sizes.sizes)
    assert plan.count(1_000_000) == 5
    assert plan.count(213) == 400
    # Two transports, twice 20 s and the ends; the rest is less than that.
    loaded = 4 * plan.mix.seconds(plan.seconds)[0]
    assert loaded < plan.estimate_s() < 2 * loaded
    quick = run_mix.check(parse("--quick"))
    assert len(quick.sizes) == 9
    assert quick.estimate_s() < plan.estimate_s()
