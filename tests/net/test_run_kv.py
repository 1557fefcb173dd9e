"""YCSB on networks as users have it: ``run kv``, ``reproduce fig8``, ``call kv``, the shell, ``smt kv`` in mn."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.net import starting
from tests.net.netns import IFACE, PATIENT, A, B, Net, run
from tests.net.starting import ROOT
from tests.net.test_mn import SMT, answers, mn
from workloads.fleet import redis as redis_program

pytestmark = pytest.mark.root

#: Seconds for a whole run on a loaded machine.
PATIENCE = 120
redis = pytest.mark.skipif(not redis_program.is_installed(),
                           reason="no redis-server (apt-get install redis-tools)")


def command(folder: Path, *args: str) -> list[str]:
    return [sys.executable, "-m", "workloads", "run", "kv", *args, "--results", str(folder), "--json"]


def run_kv(folder: Path, *args: str):
    """(its JSON, its stderr, exit code)."""
    done = starting.run(command(folder, *args), timeout=PATIENCE)
    assert "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout) if done.stdout else None, done.stderr, done.returncode


def check(result, errors, code, ops):
    """Every value right; how busy this machine is, is not the test's business."""
    assert result is not None, errors
    assert (result["rpcs"], result["errors"], result["content_ok"]) == (ops, 0, True)
    assert sum(found["count"] for found in result["ops"].values()) == ops
    assert code == (0 if result["fidelity"]["ok"] else 4)


def test_four_hosts_over_a_bad_wire(tmp_path):
    result, errors, code = run_kv(
        tmp_path, "--topo", "star,4", "--switch", "bridge", "--transport", "smt", "--nic", "hw", "--workload", "d",
        "--value", "1024", "--records", "150", "--clients", "9", "--ops", "300", "--trials", "2",
        "--processes", "2", "--loss", "1%", "--reorder", "2%", "--duplicate", "1%", "--capture")
    check(result, errors, code, 300)
    assert set(result["ops"]) == {"read", "insert"}
    assert (result["workload"], result["value_bytes"], result["store"]) == ("d", 1024, "embedded")
    assert len(result["trials"]) == 2
    capture = result["capture"]
    assert (capture["records_bad"], capture["nonce_reuse"], capture["canary_frames"]) == (0, 0, 0)
    assert capture["retransmitted"] > 0, "the wire did lose something"
    assert result["load_phase"]["rpcs"] == 150
    folder = Path(result["results"])
    with (folder / "results.csv").open() as f:
        lines = list(csv.DictReader(f))
    assert len(lines) == 2
    for line in lines:
        assert (line["rpcs"], line["variant"], line["ops.read.errors"]) == ("300", "ycsb d", "0")
    for trial in (1, 2):
        assert (folder / "raw" / f"trial{trial}.u64").stat().st_size == 300 * 8
        assert (folder / "raw" / f"trial{trial}.kinds.u64").stat().st_size == 300 * 8
    assert (folder / "workloads.png").exists()
    assert "operations/s" in (folder / "summary.txt").read_text()
    assert json.loads((folder / "counters.json").read_text()).keys() == {"h1"}


def test_the_detector_of_plaintext_fires_without_encryption(tmp_path):
    result, errors, code = run_kv(tmp_path, "--transport", "homa", "--workload", "f", "--ops", "60", "--records",
                                  "50", "--value", "64", "--trials", "1", "--capture")
    check(result, errors, code, 60)
    assert result["capture"]["canary_frames"] > 60


@pytest.mark.parametrize(("transport", "workload"), [("tls", "a"), ("tcp", "e"), ("linux", "b")])
def test_other_transports_and_an_open_loop(tmp_path, transport, workload):
    result, errors, code = run_kv(tmp_path, "--transport", transport, "--workload", workload, "--records", "120",
                                  "--rate", "300", "--ops", "90", "--trials", "1", "--distribution", "uniform")
    check(result, errors, code, 90)
    assert result["distribution"] == "uniform"


@redis
def test_a_real_redis_behind_our_front_end(tmp_path):
    before = set(Path("/run").iterdir())
    result, errors, code = run_kv(tmp_path, "--transport", "smt", "--store", "redis", "--workload", "e",
                                  "--records", "100", "--ops", "60", "--clients", "4", "--value", "64",
                                  "--trials", "1")
    check(result, errors, code, 60)
    assert result["store"] == "redis"
    assert set(Path("/run").iterdir()) == before


@redis
def test_redis_itself_and_an_outside_yardstick(tmp_path):
    result, errors, code = run_kv(tmp_path, "--transport", "tcp", "--store", "redis", "--direct",
                                  "--records", "100", "--ops", "200", "--clients", "4", "--value", "64",
                                  "--trials", "1")
    check(result, errors, code, 200)
    assert result["store"] == "redis, direct"
    if shutil.which("redis-benchmark"):
        assert result["redis_benchmark"].keys() == {"set", "get"}
        assert result["redis_benchmark"]["get"]["per_s"] > 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--workload", "z"], ["'z'", "a, b, c, d, e, f"]),
        (["--value", "63"], ["63", "multiple of 8"]),
        (["--direct"], ["--direct", "--store redis --transport tcp"]),
        (["--topo", "star,0"], ["star,N"]),
        (["--records", "10", "--topo", "ring,2"], ["ring"]),
    ])
def test_mistakes_cost_one_line_and_no_results(tmp_path, args, words):
    result, errors, code = run_kv(tmp_path, *args)
    assert (result, code) == (None, 2)
    lines = errors.splitlines()
    assert len(lines) == 1, errors
    assert all(word in lines[0] for word in words), lines
    assert not list(tmp_path.iterdir())


@redis
@pytest.mark.parametrize(("victim", "words"), [("serve", "h1: kv server ended"),
                                               ("redis-server", "the store behind this server")])
def test_a_killed_server_ends_the_run_with_its_name(tmp_path, victim, words):
    process = subprocess.Popen(command(tmp_path, "--transport", "smt", "--store", "redis", "--seconds", "60",
                                       "--clients", "8", "--trials", "1"),
                               cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        parent = psutil.Process(process.pid)
        end = time.monotonic() + PATIENCE
        found: list[psutil.Process] = []
        # Under way: the client has worked for a while, so the records are loaded or being so.
        while not (found and sum(sum(c.cpu_times()[:2]) for c in _find(parent, "workloads.fleet.agent")) > 1):
            assert process.poll() is None
            assert time.monotonic() < end
            found = _find(parent, victim)
            time.sleep(0.05)
        family = parent.children(recursive=True)
        found[0].kill()
        _output, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 1
    lines = [text for text in errors.splitlines() if text.startswith("smtnet: ")]
    assert len(lines) == 1
    assert words in lines[0]
    _gone, alive = psutil.wait_procs(family, timeout=20)
    assert not alive


def _find(process: psutil.Process, word: str) -> list[psutil.Process]:
    found = []
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            # Redis writes its path and its socket into one word.
            words = " ".join(child.cmdline()).split()
            if words and "mnexec" not in words[0] and any(Path(w).name == word for w in words):
                found.append(child)
    return found


# -- without a topology --------------------------------------------------------------------------------------

@pytest.fixture
def server(net: Net):
    keys = net.make_keys("kv.keys")
    options = ["--listen", f"smt:{B}:2100", "--listen", f"tcp:{B}:2101", "--keys", keys, "--iface", IFACE,
               *PATIENT]
    with net.start(net.b, "workloads", "serve", "kv", *options, "--json", ready="serving") as running:
        assert running.code is None
        yield lambda *words: run(["ip", "netns", "exec", net.a, sys.executable, "-m", "workloads", *words]), [
            "--transport", "smt", "--iface", IFACE, "--keys", keys, "--peer", f"{B}:2100", *PATIENT]


def test_the_shell_and_ycsb_over_smt_and_tcp_on_one_keyspace(server):
    smtnet, smt = server
    tcp = ["--transport", "tcp", "--peer", f"{B}:2101"]
    here = ["--addr", A]
    for words, said in ((["SET", "foo", "bar"], "OK\n"), (["GET", "foo"], "bar\n"), (["INCR", "n"], "1\n")):
        done = smtnet("kv", *smt, *here, *words)
        assert (done.stdout, done.returncode) == (said, 0), done.stderr
    done = smtnet("kv", *tcp, "--json", "MGET", "foo", "n", "none")
    assert json.loads(done.stdout) == ["bar", "1", None]
    done = smtnet("kv", *tcp, "INCR", "foo")
    assert (done.stdout, done.returncode) == ("ERR value is not an integer or out of range\n", 1)
    done = smtnet("call", "kv", *smt, "--addr", f"{A}:41000", "--ops", "300", "--records", "100", "--clients", "8",
                  "--workload", "f", "--json")
    check(json.loads(done.stdout), done.stderr, done.returncode, 300)
    # They are still there, for another transport.
    done = smtnet("call", "kv", *tcp, "--ops", "100", "--records", "100", "--workload", "b", "--loaded", "--json")
    check(json.loads(done.stdout), done.stderr, done.returncode, 100)
    done = smtnet("call", "kv", *tcp, "--ops", "10", "--records", "200", "--workload", "c", "--loaded",
                  "--distribution", "uniform", "--json")
    assert done.returncode == 1
    assert "not a record of 8 fields" in done.stderr


def test_ycsb_at_the_prompt_of_mn():
    done = mn("--topo", "back2back", *SMT, script="smt kv h1 h2 a 200\nsmt kv h2 h1 e 40 tls\nsmt kv h1 h2 q\n")
    over_smt, over_tls, wrong, *_eof = answers(done)
    assert "h1 -> h2, smt, YCSB a" in over_smt
    assert [line.split()[0] for line in over_smt.splitlines()[2:4]] == ["read", "update"]
    assert "every value right" in over_tls
    assert "workload 'q'; YCSB has" in wrong
    assert done["left"] == []


# -- the figure ----------------------------------------------------------------------------------------------

#: As the command, of one workload with one value, in the sandbox already.
_FIGURE = """
import sys
from workloads.commands import main as cli
from workloads.experiments import fig8
fig8.VALUES, fig8.WORKLOADS = (64,), ("a", "d")
fig8.QUICK_RECORDS, fig8.QUICK_SECONDS = 100, 0.1
sys.exit(cli.main(["reproduce", "fig8", "--quick", "--json", "--clients", "4", "--results", sys.argv[1]]))
"""


def test_the_figure_and_its_table(tmp_path):
    pytest.importorskip("matplotlib")
    inner = ("import sys; from topo import sandbox; "
             f"sys.exit(sandbox.run_command([sys.executable, '-c', {_FIGURE!r}, {str(tmp_path)!r}]))")
    done = subprocess.run([sys.executable, "-c", inner], cwd=ROOT, capture_output=True, text=True,
                          timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [(point["workload"], point["value_bytes"]) for point in result["points"]] == [("a", 64), ("d", 64)]
    systems = {"smt-sw", "smt-hw", "tls", "ktls-sw", "homa", "tcp"}
    assert all(point["ops_per_s"].keys() == systems for point in result["points"])
    assert result["points"][0]["paper"]["smt-sw/tls"] == [1.05, 1.24]
    assert result["ratios"]["smt-sw/tls"]["min"] > 0
    folder = Path(result["results"])
    with (folder / "fig8.csv").open() as f:
        lines = list(csv.DictReader(f))
    assert [line["smt-sw/tls paper low"] for line in lines] == ["1.05", "1.05"]
    for line, point in zip(lines, result["points"], strict=True):
        assert float(line["smt-sw ops_per_s"]) == point["ops_per_s"]["smt-sw"]
    assert (folder / "workloads.png").exists()
    assert len(json.loads((folder / "run.json").read_text())["results"]) == 12
