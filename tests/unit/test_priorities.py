"""``run priorities`` without a network: what strict priority gives, what breaks it, and what makes a trial a bad
one."""

from __future__ import annotations

import argparse
import errno
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from smtstack.wire import ethernet, ipv4
from tests.typed import typed
from topo.link_options import LinkOptions
from workloads.commands import main as cli
from workloads.experiments import experiment
from workloads.experiments.priorities import program as class_traffic
from workloads.experiments.priorities import report as priority_report
from workloads.experiments.priorities import run as run_priorities
from workloads.experiments.priorities.arithmetic import all_classes, breach, classes, expected, named, tolerance
from workloads.experiments.priorities.port import Frames, OnePort, PriorityPort, PriorityRow
from workloads.results import report
from workloads.results.folder import ResultFolder

SHARES = st.dictionaries(st.integers(0, 7), st.floats(0.01, 3), min_size=1)
#: Of the port below: frames of 1538 bytes on the cable, at 12.304 Mbit/s.
RATE, SECONDS = 1000, 4
FAITHFUL: Any = {"ok": True, "reasons": [], "sender_late_us": 100.0}


# -- arithmetic ----------------------------------------------------------------------------------------------

def test_the_highest_classes_get_all_and_one_the_rest():
    assert expected(all_classes(0.3)) == pytest.approx(
        {7: 0.3, 6: 0.3, 5: 0.3, 4: 0.1, 3: 0, 2: 0, 1: 0, 0: 0})
    assert expected({0: 0.75, 7: 1.25}) == {7: 1.0, 0: 0.0}
    assert expected({5: 0.2, 4: 0.2}) == {5: 0.2, 4: 0.2}


@given(SHARES)
def test_what_is_expected_is_strict_and_leaves_nothing_idle(offered):
    must = expected(offered)
    assert sum(must.values()) == pytest.approx(min(1, sum(offered.values())))
    assert breach(offered, must, 1e-9) == ""


@given(SHARES)
def test_the_same_part_for_all_is_a_breach(offered):
    assume(len(offered) > 1 and sum(offered.values()) > 1.1)
    part = 1 / sum(offered.values())
    got = {number: share * part for number, share in offered.items()}
    # Each was denied something, and the lower ones got some.
    assert "not strict" in breach(offered, got, 1e-6)


def test_a_breach_names_who_got_what_was_whose():
    said = breach({7: 0.75, 5: 0.1, 0: 0.75}, {7: 0.5, 5: 0.1, 0: 0.4}, 0.005)
    assert "class 0 got 40.0% of the port while class 7 was denied 25.0%" in said
    assert breach({7: 0.75, 0: 0.75}, {7: 0.75, 0: 0.25}, 0.005) == ""
    # Denied, but nobody lower got it; a lower one got something, but nothing that a higher one wanted.
    assert breach({7: 1.5, 0: 0.5}, {7: 0.9, 0: 0.004}, 0.005) == ""
    assert breach({7: 0.5, 0: 0.75}, {7: 0.496, 0: 0.5}, 0.005) == ""


def test_a_frame_by_right_is_no_breach():
    # One of a hundred frames, and another one each minute.
    assert tolerance(10, 10) == pytest.approx(1 / 100, rel=0.2)
    assert tolerance(120, 10) == pytest.approx(0.005)
    assert breach({7: 1.5, 0: 0.5}, {7: 0.99, 0: 0.01}, tolerance(10, 10)) == ""


@pytest.mark.parametrize(("text", "shares"), [
    ("7:0.75,0:75%", {7: 0.75, 0: 0.75}), ("0:1,3:125%", {3: 1.25, 0: 1.0}), ("6:.1", {6: 0.1})])
def test_classes_are_read(text, shares):
    assert classes(text) == shares
    assert list(classes(text)) == sorted(shares, reverse=True)
    assert classes(named(shares)) == shares


@pytest.mark.parametrize("text", ["8:0.5", "-1:0.5", "7", "7:", "7:x", "7:0", "7:-1", "7:nan", "7:11", "x:0.5", "",
                                  "7:0.1,,6:0.1", "7:0.1,7:0.2"])
def test_no_classes(text):
    with pytest.raises(argparse.ArgumentTypeError):
        classes(text)


def test_all_eight_have_a_short_name():
    assert named(all_classes(0.3)) == "all:30%"
    assert named({7: 0.3}) == "7:30%"


# -- options -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("words", "says"), [
    (["--classes", "9:0.5"], ["'9:0.5'", "0 to 7"]),
    (["--classes", "7:0.5", "--offered", "30%"], ["not allowed with"]),
    (["--offered", "0"], ["--offered"]),
    (["--offered", "200%"], ["200%"]),
    (["--rate-mbps", "1", "--seconds", "1"], ["class 7", "24 frames", "--seconds 5 "]),
    (["--loss", "1%"], ["loss", "leave them out"]),
    (["--buffer", "10"], ["buffer_bytes"]),
    (["--controller", "fanout", "--switch", "bridge"], ["--switch bridge"]),
])
def test_mistakes_are_said_before_anything_is_made(words, says, tmp_path, capsys):
    try:
        code = cli.main(["run", "priorities", *words, "--results", str(tmp_path)])
    except SystemExit as e:
        code = int(e.code or 0)
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert all(word in lines[-1] for word in says), lines
    assert not list(tmp_path.iterdir())


def options(*words: str) -> run_priorities.Options:
    return typed(run_priorities.Options, *words)


def test_the_scenarios_and_a_buffer_that_outlasts_a_stall():
    plan = run_priorities.check(options())
    assert plan.scenarios == [all_classes(0.3), *run_priorities.PAIRS]
    # 0.1 s at 20 Mbit/s.
    assert plan.asked.network.buffer == 250_000
    plan = run_priorities.check(options("--classes", "7:1,3:1", "--classes", "2:0.5", "--buffer", "9000"))
    assert plan.scenarios == [{7: 1.0, 3: 1.0}, {2: 0.5}]
    assert plan.asked.network.buffer == 9000


# -- a trial -------------------------------------------------------------------------------------------------

def port(tmp_path: Path, buffer: int = 151_400) -> PriorityPort:
    host: Any = SimpleNamespace(name="h1")
    ends = [SimpleNamespace(node=host), SimpleNamespace(node="s1", name="s1-eth1", pid=None)]
    link = SimpleNamespace(intf1=ends[0], intf2=ends[1],
                           options=LinkOptions(rate_mbps=12.304, buffer_bytes=buffer))
    host.defaultIntf = lambda: SimpleNamespace(link=link)
    net: Any = SimpleNamespace(hosts=[host], switch_kind="bridge")
    return PriorityPort(net, tmp_path / "hosts")


def frames(sent: dict[int, int], got: dict[int, int], lost: int = 0) -> Frames:
    """``lost`` before the port, which knows of all others."""
    counters = Counter({(number, "sent"): got[number] for number in sent})
    counters.update({(number, "dropped"): sent[number] - got[number] for number in sent})
    counters[min(sent), "dropped"] -= lost
    return Frames(Counter(sent), Counter(sent), Counter(got), Counter(got), counters)


def test_a_good_trial(tmp_path):
    row = port(tmp_path).row({7: 0.75, 0: 0.75}, SECONDS, 2, frames({7: 3000, 0: 3000}, {7: 3000, 0: 1000}),
                             FAITHFUL)
    assert row["fidelity"]["ok"], row["fidelity"]
    assert (row["errors"], row["trial"], row["variant"], row["rpc_per_s"]) == (0, 2, "7:75%,0:75%", RATE)
    assert row["classes"]["7"] == {"asked": 0.75, "offered": 0.75, "expected": 0.75, "got": 0.75,
                                   "frames_sent": 3000, "frames_got": 3000, "port_sent": 3000, "port_dropped": 0}
    assert row["classes"]["0"]["expected"] == row["classes"]["0"]["got"] == 0.25
    assert row["classes"]["0"]["port_dropped"] == 2000


@pytest.mark.parametrize(("sent", "got", "lost", "late_us", "says"), [
    ({7: 2900, 0: 3000}, {7: 2900, 0: 1100}, 0, 0.0, "class 7 was offered 72.5% of the port, not 75.0%"),
    ({7: 3000, 0: 3000}, {7: 3000, 0: 1000}, 0, 51_000.0, "51.0 ms late (at most 50.0 ms"),
    ({7: 3000, 0: 3000}, {7: 3000, 0: 1000}, 3, 0.0, "3 frames were lost before the port"),
    ({7: 3000, 0: 3000}, {7: 3000, 0: 860}, 0, 0.0, "carried 96.5% of its rate"),
])
def test_a_trial_that_was_not_the_one_asked_for(sent, got, lost, late_us, says, tmp_path):
    row = port(tmp_path).row({7: 0.75, 0: 0.75}, SECONDS, 1, frames(sent, got, lost),
                             FAITHFUL | {"sender_late_us": late_us})
    assert not row["fidelity"]["ok"]
    assert len(row["fidelity"]["reasons"]) == 1
    assert says in row["fidelity"]["reasons"][0]
    assert row["errors"] == 0


def test_what_is_not_strict_fails(tmp_path):
    row = port(tmp_path).row({7: 0.75, 0: 0.75}, SECONDS, 1, frames({7: 3000, 0: 3000}, {7: 2000, 0: 2000}),
                             FAITHFUL)
    assert row["errors"] == 1
    assert "class 0 got 50.0% of the port while class 7 was denied 25.0%" in row["first_error"]


# -- tables and pictures -------------------------------------------------------------------------------------

def rows(tmp_path: Path, *got: int) -> list[PriorityRow]:
    """Trials in which class 7 got so many frames of 3000, and class 0 the rest."""
    one = port(tmp_path)
    return [one.row({7: 0.75, 0: 0.75}, SECONDS, trial, frames({7: 3000, 0: 3000}, {7: n, 0: 4000 - n}), FAITHFUL)
            for trial, n in enumerate(got, 1)]


def test_trials_are_a_line_for_each_class(tmp_path):
    high, low = priority_report.table(rows(tmp_path, 3000, 2990, 2985))
    assert (high["scenario"], high["class"], high["trials"]) == ("7:75%,0:75%", 7, 3)
    assert (high["offered_mbps"], high["got_mbps"], high["expected_mbps"]) == (9.228, 9.197, 9.228)
    assert (high["lowest"], high["highest"]) == (9.182, 9.228)
    assert (high["port_sent"], high["port_dropped"]) == (8975, 25)
    assert (low["class"], low["got_mbps"], low["strict"], low["faithful"]) == (0, 3.107, True, True)
    assert not priority_report.table(rows(tmp_path / "x", 3000, 2000))[0]["strict"]


@pytest.mark.parametrize(("got", "code", "says"), [([3000], 0, ""), ([3000, 2000], 1, "class 7 was denied 25.0%")])
def test_the_end_of_a_run(got, code, says, tmp_path, capsys):
    asked = options("--json")
    folder = ResultFolder.create("priorities", tmp_path / "results")
    found = run_priorities.outcome_of(asked, rows(tmp_path, *got))
    verdict = experiment.save(run_priorities.EXPERIMENT, asked, found, folder)
    assert experiment.conclude(run_priorities.EXPERIMENT, found, folder, verdict, asked.end) == code
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["strict"] is (code == 0)
    assert says in printed.err
    assert (folder.path / "priorities.csv").read_text().startswith("scenario,class,trials,")
    page = (folder.path / report.PAGE).read_text()
    assert "7:75%,0:75%: frames/s through the port" in page
    # A report can be made again from what was saved.
    assert report.make(ResultFolder.open(folder.path))[0].read_text() == page


def test_bars_of_offered_and_got(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    drawn: list[Any] = []
    save = figure.Figure.savefig

    def noting(self: Any, *args: Any, **kw: Any) -> None:
        drawn.append(self)
        save(self, *args, **kw)

    monkeypatch.setattr(figure.Figure, "savefig", noting)
    path = tmp_path / "priorities.png"
    assert priority_report.picture(rows(tmp_path, 3000, 2990, 2985), path)
    assert path.read_bytes()[:4] == b"\x89PNG"
    (axes,) = drawn[0].axes
    assert [round(bar.get_height(), 2) for bar in axes.patches] == [9.23, 9.2, 9.23, 3.11]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["7", "0"]
    assert axes.get_ylim() == pytest.approx((0, 9.228 * 1.05))
    assert priority_report.picture(rows(tmp_path / "x", 2000), path)
    assert axes.patches[1].get_facecolor() != (1, 1, 1, 1)
    assert drawn[1].axes[0].patches[1].get_facecolor() == (1, 1, 1, 1)
    assert not priority_report.picture([], tmp_path / "none.png")


def test_the_topology_has_one_slow_link():
    topo = OnePort()
    rates = {tuple(sorted(link[:2])): link[2].get("rate_mbps", "as all") for link in topo.links(withInfo=True)}
    assert rates == {("h1", "s1"): "as all", ("h2", "s1"): None, ("h3", "s1"): None}


# -- frames --------------------------------------------------------------------------------------------------

def test_frames_say_their_class():
    data = class_traffic.frame(b"\2" * 6, b"\4" * 6, "10.0.0.2", "10.0.0.1", 1514, 5)
    assert len(data) == 1514
    outer, inner = ethernet.parse_untrusted(data), ipv4.parse_untrusted(data[14:])
    assert (outer.src, outer.dst) == (b"\2" * 6, b"\4" * 6)
    assert (inner.tos >> 5, inner.protocol, inner.total_length) == (5, 253, 1500)
    assert (ipv4.format_address(inner.src), ipv4.format_address(inner.dst)) == ("10.0.0.2", "10.0.0.1")


class Wire:
    """A socket that takes frames, but none of some."""

    def __init__(self, refused: bytes = b"") -> None:
        self.frames: list[bytes] = []
        self._refused = refused

    def send(self, data: bytes) -> None:
        if data == self._refused:
            raise OSError(errno.ENOBUFS, "full")
        self.frames.append(data)


class Clock:
    """Of ``time``; it goes on when somebody sleeps, and a little with every look."""

    def __init__(self) -> None:
        self.now = 1_000_000_000

    def monotonic_ns(self) -> int:
        self.now += 1_000
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(class_traffic, "time", clock)
    return clock


def test_classes_are_sent_at_their_rates(clock):
    wire: Any = Wire(b"none")
    start = clock.now
    answer = class_traffic.send(wire, {7: b"high", 3: b"low", 0: b"none"}, {7: 4000.0, 3: 1000.0, 0: 500.0}, start,
                                start + 500_000_000, start + 2_000_000_000)
    sent, counted = answer["sent"], answer["counted"]
    assert sent == {7: wire.frames.count(b"high"), 3: wire.frames.count(b"low")}
    assert (sent[7], sent[3], answer["refused"]) == (pytest.approx(8000, abs=8), pytest.approx(2000, abs=2),
                                                     pytest.approx(1000, abs=1))
    assert (counted[7], counted[3]) == (pytest.approx(6000, abs=8), pytest.approx(1500, abs=2))
    # In each other's gaps, not one class after the other.
    assert b"low" in wire.frames[:6]
    assert b"high" in wire.frames[-6:]
    # It wakes once a millisecond.
    assert 500 < answer["late_us"] < 1500


def test_a_late_sender_catches_up_and_says_so(clock):
    wire: Any = Wire()
    start = clock.now
    clock.now += 150_000_000
    answer = class_traffic.send(wire, {7: b"x"}, {7: 1000.0}, start, start, start + 200_000_000)
    assert answer["late_us"] == pytest.approx(150_000, abs=10)
    assert answer["sent"][7] == pytest.approx(200, abs=2)
