"""``smtnet run priorities`` as users have it, and at a port whose priorities are broken."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.net.netns import PATIENCE, run
from tests.net.starting import ROOT
from topo import ovs

pytestmark = pytest.mark.root

EIGHT = "7:30%,6:30%,5:30%,4:30%,3:30%,2:30%,1:30%,0:30%"
#: Runs the program of priority_drivers.py in a sandbox.
DRIVER = [sys.executable, "-c", "import sys; from topo import sandbox; sys.exit(sandbox.run_command("
          "[sys.executable, '-m', 'tests.net.priority_drivers']))"]


@pytest.mark.first("it sends at given rates, and Open vSwitch switches that in user space")
@pytest.mark.parametrize("switch", [
    "bridge",
    # Where Open vSwitch learned of a lost frame, it lost others of any priority with it.
    pytest.param("ovs-user", marks=pytest.mark.skipif(not ovs.is_installed(), reason="no Open vSwitch"))])
def test_eight_classes_get_what_strict_priority_gives_them(switch, tmp_path):
    done = subprocess.run([sys.executable, "-m", "workloads", "run", "priorities", "--classes", EIGHT,
                           "--seconds", "1.5", "--trials", "1", "--switch", switch, "--buffer", "1000000",
                           "--results", str(tmp_path), "--allow-unfaithful", "--json"], cwd=ROOT,
                          capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["strict"]
    lines = {line["class"]: line for line in result["classes"]}
    assert list(lines) == [7, 6, 5, 4, 3, 2, 1, 0]
    for number in (7, 6, 5):
        assert lines[number]["got_mbps"] == pytest.approx(lines[number]["offered_mbps"], rel=0.1)
        assert lines[number]["port_dropped"] == 0
    assert lines[4]["got_mbps"] == pytest.approx(2, rel=0.5)
    for number in (3, 2, 1, 0):
        assert lines[number]["got_mbps"] <= 0.11
    folder = Path(result["results"])
    with (folder / "priorities.csv").open() as f:
        assert [line["scenario"] for line in csv.DictReader(f)] == ["all:30%"] * 8
    (row,) = json.loads((folder / "run.json").read_text())["results"]
    # Whatever was sent is known to have arrived, or to have been dropped by the port.
    for number, entry in row["classes"].items():
        assert entry["frames_sent"] == entry["frames_got"] + entry["port_dropped"], number


def test_a_port_without_priorities_is_found_out():
    done = run(DRIVER)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["errors"] == 1
    # All eight get an eighth, so which pair is the worst is chance.
    assert re.match(r"priorities are not strict: class [0-6] got [\d.]+% of the port while class [1-7] was denied",
                    row["first_error"]), row["first_error"]
    got = {number: entry["got"] for number, entry in row["classes"].items()}
    assert max(got.values()) < 2 * min(got.values()), "all eight alike"
    assert {number for number, entry in row["classes"].items() if entry["port_sent"]} == {"0"}
