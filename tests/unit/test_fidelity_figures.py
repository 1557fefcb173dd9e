"""Which figures of a disturbed run can stand: by quantile and kind of disturbance, with made-up traces, and beside
busy loops."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from array import array
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from smtstack import exit_codes
from tests.rows import row
from tests.streams_driver import ROOT
from workloads.load.measure import rtt_summary
from workloads.results import fidelity, waits
from workloads.results.fidelity import QUOTED, TAILS, judge_figures, verdict
from workloads.results.points import middle, overall
from workloads.results.row import Verdict
from workloads.results.table import text

RPCS = 20_000
#: Share of the RPCs that wait, and how long in us; all of them on top of what the network takes.
DISTURBANCES = [(share, us) for share in (0.0002, 0.002, 0.008, 0.03, 0.15, 0.7) for us in (30, 100, 400, 4_000)]
CALM = {"steal": 0.0, "idle": 0.4, "run_delay": 0.01, "psi_cpu_some": 0.02, "receive_drops": 0, "send_drops": 0,
        "timer_late_us": 200.0}


def trace(share: float, wait_us: int) -> tuple[dict[str, float | None], dict[str, float | None], Verdict]:
    """(figures without, figures with the disturbance, its verdict). The client sees half of it; the server has the
    other."""
    source = random.Random(f"{share} {wait_us}")
    true, measured, seen = array("Q"), array("Q"), Counter[int]()
    for _ in range(RPCS):
        rtt = int(80_000 + source.expovariate(1 / 20_000))
        true.append(rtt)
        if source.random() < share:
            rtt += wait_us * 1000
            if source.random() < 0.5:
                seen[waits.rounded_us(wait_us * 1000)] += 1
        measured.append(rtt)
    figures = rtt_summary(measured)
    judged = judge_figures(verdict(CALM | {"waits": {str(us): n for us, n in seen.items()}}), figures, RPCS)
    return rtt_summary(true), figures, judged


@pytest.mark.parametrize(("share", "wait_us"), DISTURBANCES)
def test_what_was_moved_cannot_stand_and_what_was_not_can(share: float, wait_us: int):
    true, measured, judged = trace(share, wait_us)
    for name, tail in TAILS.items():
        before, after = true[name], measured[name]
        assert before is not None
        assert after is not None
        if after > 2.2 * before:
            assert not judged["figures"][name], (name, before, after)
        # Far less than what is beyond it was touched, or not by much.
        if share < tail / 5 or wait_us * 8 < before:
            assert judged["figures"][name], (name, judged["figure_reasons"])
        assert (name in judged["figure_reasons"]) is not judged["figures"][name]
    assert judged["ok"] is all(judged["figures"][name] for name in QUOTED)
    assert judged["figures"]["min"]


def test_nothing_disturbed_is_faithful_in_every_figure():
    """The control."""
    _true, _measured, judged = trace(0.0, 1000)
    assert judged["ok"]
    assert all(judged["figures"].values())
    assert set(judged["figures"]) == {"rpc_per_s", "min", "mean", *TAILS}
    assert judged["reasons"] == []


def test_a_median_stands_where_a_tail_does_not_and_the_reason_names_it():
    true, measured, judged = trace(0.03, 4_000)
    assert measured["p99"] > 10 * true["p99"]  # type: ignore[operator]
    assert measured["p50"] == pytest.approx(true["p50"], rel=0.05)
    assert (judged["figures"]["p50"], judged["figures"]["p99"], judged["ok"]) == (True, False, False)
    (reason,) = [r for r in judged["reasons"] if r.startswith("p99")]
    assert f"of {RPCS} RPCs waited" in reason


@pytest.mark.parametrize(("numbers", "stand"), [
    ({"steal": 0.0005}, {"p50", "p90", "p99", "p999", "mean"}), ({"steal": 0.005}, {"p50", "p90", "p99", "mean"}),
    ({"steal": 0.015}, {"p50", "p90", "mean"}), ({"steal": 0.03}, set()),
    ({"timer_late_us": 12_000.0}, {"p50", "p90", "mean"}), ({"run_delay": 0.3}, {"p50"}),
    ({"run_delay": 0.6}, set()), ({"run_delay": 0.3, "waits": None}, set()),
    ({"receive_drops": 1}, set()), ({"path_drops": 1}, set()), ({"send_drops": 1}, set()),
    # A kernel that counts no waits: the machine's own number.
    ({"waits": None, "psi_cpu_some": 0.0005}, {"p50", "p90", "p99", "p999", "mean"}),
    ({"waits": None, "psi_cpu_some": 0.005}, {"p50", "p90", "p99", "mean"}),
    ({"waits": None, "psi_cpu_some": 0.05}, {"p50", "p90", "mean"}),
    ({"waits": None, "psi_cpu_some": 0.15}, {"p50", "mean"}),
    ({"waits": None, "run_delay": None, "psi_cpu_some": 0.5}, set()),
])
def test_each_kind_of_disturbance_disqualifies_by_quantile(numbers: dict[str, Any], stand: set[str]):
    figures = rtt_summary(array("Q", range(100_000, 200_000)))
    judged = judge_figures(verdict(CALM | {"waits": {}} | numbers), figures, 100_000)
    assert {name for name in ("p50", "p90", "p99", "p999", "mean") if judged["figures"][name]} == stand
    assert judged["ok"] is (stand >= {"p50", "p90", "p99", "mean"})


def test_tables_mark_the_figure_that_they_show():
    judged = judge_figures(verdict(CALM | {"waits": {"5000": 30}}), row()["rtt_us"], 1000)
    assert judged["figures"]["p50"]
    unloaded, incast = (row(mode=mode) | {"fidelity": judged} for mode in ("unloaded", "incast"))
    assert middle([unloaded]).faithful, "it is judged by its median"
    assert not middle([incast]).faithful, "it is judged by its p99"
    assert "90.0~" not in text([unloaded])
    assert "162~" in text([incast])
    assert not overall([unloaded])["ok"], "and the run is not, as it gives p99 too"
    assert "p99 cannot stand" in text([unloaded])
    doubted = fidelity.doubted(judged, "background: it was over")
    assert not any(doubted["figures"].values())
    assert not middle([unloaded | {"fidelity": doubted}]).faithful


def test_waits_are_read_each_time_and_short_ones_are_left_out(tmp_path: Path):
    stat = tmp_path / "schedstat"

    def set_to(total: int) -> None:
        stat.write_text(f"777 {total} 12\n")

    set_to(1_000_000)
    seen = waits.Waits(stat)
    for total, under_way in ((1_000_000, 1), (1_010_000, 1), (4_010_000, 50), (4_910_000, 0), (5_810_000, 1)):
        set_to(total)
        seen.note(under_way)
    assert seen.counts == {waits.rounded_us(3_000_000): 50, waits.rounded_us(900_000): 1}
    seen.close()
    missing = waits.Waits(tmp_path / "none")
    missing.note(1)
    assert not missing.known


@pytest.mark.parametrize("us", [0, 1, 7, 8, 9, 15, 100, 999, 123_456, 10**7])
def test_rounding_is_down_and_by_little(us: int):
    assert 15 / 16 * us <= waits.rounded_us(us * 1000) <= us
    assert len({waits.rounded_us(n * 1000) for n in range(100_000)}) < 300


def test_p99_beside_busy_loops_is_not_the_transports():
    """No root: tcp over loopback, and more programs that want to run than there are processors."""
    command = [sys.executable, "-m", "workloads"]
    for port in (random.randrange(20_000, 30_000) for _ in count()):
        server = subprocess.Popen([*command, "serve", "echo", "--transport", "tcp", "--addr", f"127.0.0.1:{port}"],
                                  cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert server.stderr is not None
        if "serving" in server.stderr.readline():
            break
        server.communicate()
    busy = [sys.executable, "-c", "while True: pass"]
    loops = [subprocess.Popen(busy) for _ in range(3 * (os.cpu_count() or 1))]
    try:
        done = subprocess.run([*command, "call", "echo", "--transport", "tcp", "--peer", f"127.0.0.1:{port}",
                               "--seconds", "3", "--json"], cwd=ROOT, capture_output=True, text=True, check=False)
    finally:
        for process in loops:
            process.kill()
            process.wait()
        server.send_signal(signal.SIGTERM)
        server.communicate()
    result = json.loads(done.stdout)
    assert result["content_ok"]
    assert not result["fidelity"]["figures"]["p99"], result
    assert (done.returncode, result["fidelity"]["ok"]) == (exit_codes.EXIT_UNFAITHFUL, False)
    assert "p99" in done.stderr or "waited for a processor" in done.stderr
