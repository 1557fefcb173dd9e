"""``smtnet run scenario``, and ``run --again`` of it: faults are seen where they are, and nowhere else."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

ROOT = Path(__file__).resolve().parents[2]
#: Seconds for a whole run on a loaded machine.
PATIENCE = 200
#: h1 asks h2, where the faults are, and h3, where there are none: the control at the same moment.
SCENARIO = """
seed = 5
transports = ["smt", "tls"]

[network]
topo = "star,3"
switch = "bridge"

[[load]]
name = "hit"
pattern = "h1:h2"
size = 3000
rate = 80
seconds = 5

[[load]]
name = "spared"
pattern = "h1:h3"
size = 3000
rate = 80
seconds = 5

[[fault]]
at = 1
for = 1
host = "h2"
loss = "12%"

[[fault]]
at = 3.5
for = "700ms"
host = "h2"
stall = true
"""


def smtnet(folder: Path, *args: str):
    done = subprocess.run([sys.executable, "-m", "workloads", *args], cwd=folder, capture_output=True, text=True,
                          timeout=PATIENCE, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """(its JSON, the folder it was typed in)."""
    folder = tmp_path_factory.mktemp("scenario")
    (folder / "short.toml").write_text(SCENARIO)
    done = smtnet(folder, "run", "scenario", "short.toml", "--json", "--allow-unfaithful")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), folder


def parts(result, transport: str, load: str):
    (point,) = (p for p in result["points"] if (p["transport"], p["load"]) == (transport, load))
    assert (point["errors"], point["content_ok"]) == (0, True)
    loss, stall, free = point["within"]
    assert (loss["fault"], stall["fault"], free["fault"]) == ("h2: loss 12%", "h2: servers stopped", "")
    return loss, stall, free


@pytest.mark.parametrize("transport", ["smt", "tls"])
def test_a_burst_of_loss_has_packets_sent_again(result, transport):
    loss, _stall, free = parts(result[0], transport, "hit")
    timeline = list(csv.DictReader(Path(result[1], result[0]["results"], "timeline.csv").read_text().splitlines()))
    own = ({"smt": "smt-sw"}.get(transport, transport), "hit", "interval")
    of_load = [line for line in timeline if (line["system"], line["load"], line["kind"]) == own]
    # What comes of a loss comes some time after it.
    before = sum(int(line["sent_again"]) for line in of_load if float(line["end_s"]) <= 1)
    burst = sum(int(line["sent_again"]) for line in of_load if 1 <= float(line["begin_s"]) < 2)
    assert burst > 5
    assert burst > 3 * before, "the same time without loss is the control"
    assert loss["p99_us"] > 2 * free["p50_us"]
    assert all("h2: loss 12%" in line["faults"] for line in of_load if 1.3 <= float(line["begin_s"]) < 1.9)
    assert not any(line["faults"] for line in of_load if float(line["end_s"]) <= 1)


@pytest.mark.parametrize("transport", ["smt", "tls"])
def test_a_stall_is_seen_by_those_who_ask_there_alone(result, transport):
    _loss, hit, free = parts(result[0], transport, "hit")
    _loss, spared, _free = parts(result[0], transport, "spared")
    # Who comes in the middle of it waits for half of it.
    assert hit["p50_us"] > 5 * free["p50_us"]
    assert hit["p50_us"] > 3 * spared["p50_us"], "the other server answers meanwhile"
    assert hit["rpc_per_s"] < spared["rpc_per_s"] / 3


def test_faults_have_the_times_that_they_had(result):
    (faults, *others) = [point["faults"] for point in result[0]["points"]]
    assert [fault["what"] for fault in faults] == ["h2: loss 12%", "h2: servers stopped"]
    for fault in (fault for found in (faults, *others) for fault in found):
        assert fault["begin_s"] >= fault["asked_begin_s"]
        assert fault["end_s"] >= fault["asked_end_s"]
        assert fault["end_s"] - fault["begin_s"] > 0.5 * (fault["asked_end_s"] - fault["asked_begin_s"])


def test_the_same_once_more(result, tmp_path):
    first = Path(result[1], result[0]["results"])
    done = smtnet(tmp_path, "run", "--again", str(first), "--seed", "6", "--results", "other")
    assert done.returncode == 0, done.stderr
    assert f"smtnet: in {result[1]}, where it was run" in done.stderr.splitlines()
    assert not (tmp_path / "short.toml").exists(), "the file is the one of the first run"
    again = json.loads((tmp_path / "other" / "latest" / "run.json").read_text())
    before = json.loads((first / "run.json").read_text())
    assert (again["seed"], before["seed"]) == (6, 5)
    assert again["parameters"]["repeats"] == str(first)
    assert "repeats" not in before["parameters"]
    assert again["command"] == f"{before['command']} --seed 6 --results {tmp_path / 'other'}"
    assert [row["load"] for row in again["results"]] == [row["load"] for row in before["results"]]
    assert (tmp_path / "other" / "latest" / "scenario.toml").read_text() == SCENARIO
