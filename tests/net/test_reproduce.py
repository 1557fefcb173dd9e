"""``smtnet reproduce`` for what sessions cost: each figure once, quickly, from the command line."""

from __future__ import annotations

import csv
import json
import sys
from array import array
from pathlib import Path

import pytest

from tests.net import starting
from workloads.experiments.fig12.report import BASE, WAYS
from workloads.experiments.padding.model import POLICIES

pytestmark = pytest.mark.root

#: Seconds for a whole figure on a loaded machine.
PATIENCE = 240


def reproduce(folder: Path, *args: str):
    """(its JSON, its folder)."""
    pytest.importorskip("matplotlib")
    command = [sys.executable, "-m", "workloads", "reproduce", *args, "--results", str(folder), "--json"]
    done = starting.run(command, timeout=PATIENCE)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    return result, Path(result["results"])


def shortest(folder: Path, way: str, size: int) -> int:
    """Nanoseconds of a sample."""
    took = array("Q")
    took.frombytes((folder / "raw" / f"{way}-{size}-trial1.u64").read_bytes())
    return min(took)


@pytest.mark.first("it compares how long a first RPC takes")
def test_fig12(tmp_path):
    result, folder = reproduce(tmp_path, "fig12", "--quick", "--samples", "8")
    assert [point["size"] for point in result["points"]] == [64, 4096]
    for point in result["points"]:
        assert set(point["us"]) == {*WAYS, BASE}
        # A session that exists needs no handshake. The shortest of each: in it the machine did least beside.
        assert shortest(folder, BASE, point["size"]) < shortest(folder, "Init-1RTT", point["size"])
    with (folder / "fig12.csv").open() as f:
        assert len(list(csv.DictReader(f))) == 2 * (len(WAYS) + 1)
    assert (folder / "first-rpc.png").exists()
    assert (folder / "raw" / "Init-FS-with-DNS-64-trial1.u64").stat().st_size == 8 * 8
    assert not list(folder.rglob("*.pem"))


def test_table2_needs_no_network(tmp_path):
    result, folder = reproduce(tmp_path, "table2", "--rounds", "1")
    assert set(result["tls"]) == {"server", "client"}
    assert (folder / "table2.png").exists()
    assert (folder / "steps.csv").exists()


def test_padding(tmp_path):
    result, folder = reproduce(tmp_path, "padding", "--quick")
    assert {line["policy"] for line in result["times"]} == set(POLICIES)
    for line in result["bytes"]:
        # All that is computed for these messages, padding included, did pass the interface, and not much more: in
        # W4 and W5, whose messages are long, that is what had to be sent again.
        assert line["measured_share"]["beside_data"] > 0
        if line["workload"] in ("w4", "w5"):
            assert line["measured_share"]["beside_data"] < 0.5
    assert (folder / "padding.png").exists()


def test_many_sessions_at_once(tmp_path):
    result, folder = reproduce(tmp_path, "sessions", "--count", "150", "--session", "psk-fs")
    assert [(stage["round"], stage["name"]) for stage in result["stages"]] == [
        (0, "start"), *((number, name) for number in (1, 2) for name in ("open", "echo", "closed"))]
    assert all(stage["done"] == 150 for stage in result["stages"][1:])
    assert result["server"]["sessions_begun"] == 300
    assert result["server"]["sessions"] == 0
    assert result["server"]["requests_delivered"] == 600
    # Those of the first round that came before there was a PSK began by TLS.
    assert result["server"]["early_accepted"] >= 150
    assert result["server"]["handshakes"] >= 1
    assert result["flat"] is True
    assert result["kb_per_session"] > 0
    assert (folder / "sessions.csv").exists()


def test_all_that_is_asked_for_as_steps(tmp_path):
    pytest.importorskip("matplotlib")
    command = [sys.executable, "-m", "workloads", "reproduce", "all", "--quick", "--only", "fig11", "--results",
               str(tmp_path), "--json"]
    done = starting.run(command, timeout=PATIENCE)
    assert done.returncode in (0, 4), done.stderr
    result = json.loads(done.stdout)
    step = next(step for step in result["steps"] if step["name"] == "fig11")
    assert (step["status"] in ("done", "not faithful"), step["tries"]) == (True, 1)
    folder = Path(result["folder"])
    values = json.loads((folder / step["folder"] / "published.json").read_text())
    assert {value["series"] for value in values if value["what"] == "round trip (us)"} == {
        "smt-hw, nic tso on", "smt-hw, nic tso off"}
    assert all(value["here"] and value["published"] for value in values)
    page = (folder / "index.html").read_text()
    assert page.count("data:image/png") >= 2, "published beside here, and the step's own"
    # Finished: nothing is measured again, and what was not faithful stays so.
    again = starting.run(command, timeout=PATIENCE)
    assert again.returncode == done.returncode, again.stderr
    assert json.loads(again.stdout)["steps"] == result["steps"]
