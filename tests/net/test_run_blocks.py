"""The block store on networks as users have it: ``run blocks``, ``reproduce fig9``, ``serve`` and ``call
blocks``."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.net import starting
from tests.net.starting import ROOT

pytestmark = pytest.mark.root

#: Seconds for a whole run on a loaded machine.
PATIENCE = 120
#: Commands over a bad wire; ``SMTNET_COMMANDS=1000000``: all of them, at depth 32.
COMMANDS = int(os.environ.get("SMTNET_COMMANDS", "400"))


def run_blocks(folder: Path, *words: str) -> tuple[Any, str, int]:
    """(its JSON, its stderr, exit code)."""
    done = starting.run([sys.executable, "-m", "workloads", "run", "blocks", *words, "--trials", "1", "--results",
                         str(folder), "--json"], timeout=PATIENCE + COMMANDS / 100)
    assert "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout) if done.stdout else None, done.stderr, done.returncode


def check(result: Any, errors: str, code: int, commands: int | None = None) -> None:
    """Every block right; how busy this machine is, is not the test's business."""
    assert result is not None, errors
    assert (result["errors"], result["content_ok"]) == (0, True), errors
    assert commands is None or result["commands"] == commands
    assert code == (0 if result["fidelity"]["ok"] else 4), errors


def test_every_kind_of_command_over_a_bad_wire(tmp_path):
    """``--processes 2``: initiators side by side, each with its part of the blocks."""
    large = COMMANDS > 10_000
    wire = ["--loss", "1%"] if large else ["--loss", "1%", "--reorder", "2%", "--duplicate", "2%", "--capture",
                                           "--processes", "2"]
    result, errors, code = run_blocks(tmp_path, "--pattern", "all", "--iodepth", "32", "--commands", str(COMMANDS),
                                      "--blocks", "256", *wire)
    check(result, errors, code, COMMANDS)
    if not large:
        capture = result["capture"]
        assert (capture["records_bad"], capture["nonce_reuse"], capture["canary_frames"]) == (0, 0, 0)
        assert capture["retransmitted"] > 0, "the wire did lose something"
    folder = Path(result["results"])
    with (folder / "results.csv").open() as f:
        (line,) = csv.DictReader(f)
    assert (line["rpcs"], line["variant"], line["ops.read.errors"]) == (str(COMMANDS), "all", "0")
    assert int(line["ops.compare.count"]) > 0
    (row,) = json.loads((folder / "run.json").read_text())["results"]
    assert sum(found["count"] for found in row["ops"].values()) == COMMANDS
    assert (folder / "iodepth.png").exists()
    assert "median of a command in us" in (folder / "summary.txt").read_text()


def test_the_detector_of_plaintext_fires_without_encryption(tmp_path):
    result, errors, code = run_blocks(tmp_path, "--transport", "homa", "--pattern", "randread", "--iodepth", "2",
                                      "--commands", "60", "--blocks", "64", "--capture")
    check(result, errors, code, 60)
    assert result["capture"]["canary_frames"] >= 60
    (point,) = result["points"]
    assert (point["paper_p50_us"], point["paper_p99_us"]) == (107.0, 134.1)


@pytest.mark.parametrize(("transport", "store", "more"), [
    # Over smt silence is what tells: else it takes seconds.
    ("smt", "file", ["--param", "timeout_resends=4"]), ("tls", "protected", [])])
def test_the_target_is_killed_and_no_acknowledged_write_is_lost(tmp_path, transport, store, more):
    result, errors, code = run_blocks(tmp_path, "--transport", transport, "--pattern", "all", "--iodepth", "8",
                                      "--seconds", "2", "--store", store, "--blocks", "128", "--kill", "1", *more)
    check(result, errors, code)
    assert result["kills"] == 1
    assert result["sent_again"] > 0
    left = list((Path(result["results"]) / "hosts").rglob("store-*"))
    assert left == [], "the store goes with the run"


@pytest.mark.parametrize(("words", "said"), [
    (["--kill", "1"], "--kill needs --store file or protected"),
    (["--pattern", "randrad"], "'randrad' is none of randread, randwrite, randrw, all"),
    (["--iodepth", "5000"], "a queue of 5000; 1 to 1024")])
def test_mistakes_cost_one_line_and_no_results(tmp_path, words, said):
    result, errors, code = run_blocks(tmp_path, *words)
    assert (result, code) == (None, 2)
    assert said in errors.splitlines()[-1]
    assert not list(tmp_path.iterdir())


#: As the command, of few points, in the sandbox already.
_FIGURE = """
import sys
from workloads.commands import main as cli
from workloads.experiments import fig9
fig9.PATTERNS, fig9.QUICK_DEPTHS, fig9.QUICK_SECONDS, fig9.BLOCKS = ("randread",), (1, 8), 0.1, 128
sys.exit(cli.main(["reproduce", "fig9", "--quick", "--json", "--results", sys.argv[1]]))
"""


def test_the_figure_beside_the_papers(tmp_path):
    pytest.importorskip("matplotlib")
    inner = ("import sys; from topo import sandbox; "
             f"sys.exit(sandbox.run_command([sys.executable, '-c', {_FIGURE!r}, {str(tmp_path)!r}]))")
    done = subprocess.run([sys.executable, "-c", inner], cwd=ROOT, capture_output=True, text=True,
                          timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    systems = list(dict.fromkeys(point["system"] for point in result["points"]))
    assert {"smt-sw", "smt-hw", "homa", "tcp"} < set(systems)
    assert [point["iodepth"] for point in result["points"] if point["system"] == "tcp"] == [1, 8]
    assert all(point["paper_p50_us"] and point["content_ok"] for point in result["points"])
    folder = Path(result["results"])
    beside = json.loads((folder / "published.json").read_text())
    ratios = [value for value in beside if value["series"] == "homa / tcp" and value["at"] == "iodepth 8"]
    assert [value["published"] for value in ratios] == [pytest.approx(121.3 / 129.3, abs=1e-3),
                                                        pytest.approx(175.1 / 186.6, abs=1e-3)]
    assert (folder / "iodepth.png").exists()
