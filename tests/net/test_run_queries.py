"""``smtnet run incast`` and ``run fanout`` as users have them, on small and slow networks."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import pytest

from tests.net.test_run import secrets_in

pytestmark = pytest.mark.root

ROOT = Path(__file__).resolve().parents[2]
#: Seconds for a whole run on a loaded machine.
PATIENCE = 120


def run(folder: Path, *words: str) -> tuple[dict[str, Any], Path]:
    """(its JSON, its folder). How busy this machine is, is not the test's business."""
    done = subprocess.run([sys.executable, "-m", "workloads", "run", *words, "--results", str(folder),
                           "--json", "--allow-unfaithful"], cwd=ROOT, capture_output=True, text=True,
                          timeout=PATIENCE, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    assert "was killed" not in done.stderr, done.stderr
    result = json.loads(done.stdout)
    assert (result["errors"], result["content_ok"]) == (0, True)
    return result, Path(result["results"])


def saved(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open() as f:
        return list(csv.DictReader(f))


@pytest.mark.first("four answers have to come at once, each from a process of its own")
def test_incast_loses_frames_in_small_buffers_and_fewer_with_control(tmp_path):
    rounds = 6
    # Four answers of 10 KB at once into a buffer of two; what is lost is asked for after 40 ms.
    result, folder = run(tmp_path, "incast", "--senders", "1,4", "--size", "10000", "--buffer", "20000",
                         "--rate-mbps", "20", "--rounds", str(rounds), "--trials", "1", "--transport", "smt,tls",
                         "--incast-control", "1", "--param", "max_incoming=12000", "--param", "resend_ticks=8")
    systems = ["smt-sw", "smt-sw, incast control 1", "tls"]
    by_point = {(line["servers"], line["system"]): line for line in result["points"]}
    assert list(by_point) == [(servers, system) for servers in (1, 4) for system in systems]
    for system in systems:
        alone, together = by_point[1, system], by_point[4, system]
        assert alone["lost_frames"] == 0
        assert 0 < alone["goodput_mbps"] < 30
        assert together["p99_ms"] > alone["p50_ms"]
    uncontrolled, controlled, tls = (by_point[4, system] for system in systems)
    # The detectors of loss and of what it costs do fire.
    assert uncontrolled["lost_frames"] >= rounds
    assert uncontrolled["sent_again"] >= rounds
    assert uncontrolled["resends_or_rtos"] > 0
    assert 10_000 < uncontrolled["queue_peak"] <= 20_000
    assert tls["lost_frames"] > 0
    assert tls["sent_again"] > 0
    assert controlled["lost_frames"] < uncontrolled["lost_frames"] / 2
    rows = saved(folder, "results.csv")
    assert len(rows) == len(saved(folder, "incast.csv")) == 6
    assert [int(row["queries"]) for row in rows] == [rounds] * 6
    assert [int(row["rpcs"]) for row in rows] == [rounds] * 3 + [4 * rounds] * 3
    leaves = array("Q", (folder / "raw" / "tls-of-4-trial-1.leaves.u64").read_bytes())
    whole = array("Q", (folder / "raw" / "tls-of-4-trial-1.u64").read_bytes())
    # A round is over with its slowest answer.
    assert [max(leaves[4 * n:4 * n + 4]) for n in range(rounds)] == list(whole)
    assert not secrets_in(folder), "throw-away keys are thrown away"


@pytest.mark.first("a busy machine draws the queries out, past the end of the background that is set by time")
def test_queries_in_other_traffic(tmp_path):
    result, folder = run(tmp_path, "fanout", "--leaves", "2", "--size", "2000", "--rate-mbps", "20", "--load",
                         "10%", "--seconds", "1", "--trials", "1", "--transport", "smt,tcp", "--background", "w2",
                         "--background-load", "2%")
    assert [(line["leaves"], line["system"]) for line in result["points"]] == [(2, "smt-sw"), (2, "tcp")]
    rows = json.loads((folder / "run.json").read_text())["results"]
    for row, line in zip(rows, result["points"], strict=True):
        # 10 % of 20 Mbit/s are 57 queries of two answers of 2 KB a second.
        assert 28 < row["queries"] < 90
        assert row["rpcs"] == 2 * row["queries"]
        assert line["p50_ms"] > 1, "the answers take 1.7 ms on the link, less what it sends at once"
        behind = row["background"]
        # 231 a second, for as long as the queries took, and before and after.
        assert behind["rpcs"] > 500
        assert (behind["errors"], behind["content_ok"]) == (0, True)
        assert "the background was over" not in " ".join(row["fidelity"]["reasons"])
    assert len(saved(folder, "fanout.csv")) == 2


@pytest.mark.first("it compares times of two runs, one after the other")
def test_the_controls_of_incast(tmp_path):
    result, _folder = run(tmp_path, "incast", "--senders", "3", "--size", "8000", "--buffer", "10000",
                          "--rate-mbps", "20", "--rounds", "5", "--trials", "1", "--transport", "homa",
                          "--controls", "--param", "resend_ticks=8")
    rounds, spread, roomy = result["points"]
    assert [line["control"] for line in (rounds, spread, roomy)] == ["", "not at the same moment",
                                                                     "a buffer for everything"]
    assert rounds["lost_frames"] > 0
    assert roomy["lost_frames"] == 0
    assert spread["lost_frames"] < rounds["lost_frames"]
    assert roomy["p50_ms"] < rounds["p50_ms"]
