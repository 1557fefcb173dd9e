"""``smtnet run`` and ``demo`` as a user has them: in sandboxes of their own, from the command line."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import ARP
from scapy.utils import PcapReader, checksum

from tests.net import starting

pytestmark = pytest.mark.root

ROOT = Path(__file__).resolve().parents[2]
CANARY = "*leak-canary*"
#: Seconds for a whole run on a loaded machine.
PATIENCE = 120


def command(folder: Path, *args: str) -> list[str]:
    return [sys.executable, "-m", "workloads", *args, "--results", str(folder), "--json"]


def smtnet(folder: Path, *args: str):
    """(its JSON, its stderr, exit code)."""
    done = starting.run(command(folder, *args), timeout=PATIENCE)
    assert "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout) if done.stdout else None, done.stderr, done.returncode


def secrets_in(folder: Path) -> list[Path]:
    """Keys, certificates with theirs, and secrets of sessions that were left behind."""
    return [path for pattern in ("*.keys", "*.keylog", "*.pem") for path in folder.rglob(pattern)]


def check(result, code, rpcs):
    """Right answers to all; how busy this machine is, is not the test's business."""
    assert (result["rpcs"], result["errors"], result["content_ok"]) == (rpcs, 0, True)
    assert code == (0 if result["fidelity"]["ok"] else 4)


@pytest.mark.parametrize("transport", ["smt", "linux", "tls"])
def test_a_run_leaves_its_results(tmp_path, transport):
    nic = ["--nic", "hw"] if transport != "tls" else []
    result, _errors, code = smtnet(tmp_path, "run", "echo", "--transport", transport, *nic, "--size", "3000",
                                   "--count", "40", "--concurrency", "4", "--trials", "2", "--processes", "2",
                                   "--workers", "2")
    check(result, code, 40)
    assert len(result["trials"]) == 2
    folder = Path(result["results"])
    assert (tmp_path / "latest").resolve() == folder
    saved = json.loads((folder / "run.json").read_text())
    assert [row["trial"] for row in saved["results"]] == [1, 2]
    with (folder / "results.csv").open() as f:
        assert [row["rpcs"] for row in csv.DictReader(f)] == ["40", "40"]
    assert (folder / "raw" / "trial1.u64").stat().st_size == 40 * 8
    # The servers saw what the clients sent: twice two processes' warm-up, and the RPCs.
    assert json.loads((folder / "counters.json").read_text()).keys() == {"h2"}
    assert result.get("session", {}).get("mode", "") == ("mtls" if transport == "smt" else "")
    assert not secrets_in(folder), "throw-away keys are thrown away"


def test_four_hosts_over_a_bad_wire_and_nothing_leaks(tmp_path):
    bad = ["--loss", "1%", "--reorder", "2%", "--duplicate", "1%", "--size", "w3", "--also", "200000x5", "--count",
           "150", "--concurrency", "12", "--trials", "1", "--pattern", "all", "--topo", "star,4", "--capture",
           "--canary", CANARY, "--switch", "bridge"]
    captures = {}
    for transport in ("smt", "homa"):
        result, _errors, code = smtnet(tmp_path, "run", "echo", "--transport", transport, "--nic", "hw", *bad)
        check(result, code, 155)
        captures[transport] = result["capture"]
        seen = sum(scapy_agrees(path) for path in sorted(Path(result["results"], "pcap").glob("*.pcap")))
        assert seen == result["capture"]["frames"]
    assert captures["smt"]["records_ok"] > 4 * 155
    assert (captures["smt"]["records_bad"], captures["smt"]["nonce_reuse"]) == (0, 0)
    assert captures["smt"]["canary_frames"] == 0
    assert captures["homa"]["canary_frames"] > 155, "the detector sees what is in clear"
    for capture in captures.values():
        assert capture["missed"] == 0
        assert capture["retransmitted"] > 0, "the wire did lose something"
        assert capture["bad_packets"] == 0


def scapy_agrees(path: Path) -> int:
    """Somebody else's idea of Ethernet and IPv4, over every frame of a capture; how many there were."""
    count = 0
    with PcapReader(str(path)) as frames:
        for frame in frames:
            count += 1
            assert IP in frame or ARP in frame
            if IP in frame:
                assert frame[IP].len == len(frame.original) - 14
                # With the sum in it, a header sums up to nothing.
                assert checksum(frame.original[14:34]) == 0
    return count


def test_two_at_once_do_not_meet(tmp_path):
    args = ["run", "echo", "--topo", "star,3", "--transport", "homa", "--count", "30", "--trials", "1"]
    runs = [subprocess.Popen(command(tmp_path, *args), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True) for _n in range(2)]
    folders = set()
    for process in runs:
        output, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode in {0, 4}, errors
        result = json.loads(output)
        assert result["rpcs"] == 30
        folders.add(result["results"])
    assert len(folders) == 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--topo", "sta,4"], ["star", "sta"]),
        (["--topo", "star,0"], ["star,N", "star,4"]),
        (["--size", "w9"], ["w9", "w1"]),
        (["--keys", "demo"], ["linux"]),
        (["--loss", "5%", "--mtu", "100"], ["mtu", "576"]),
    ])
def test_mistakes_cost_one_line_and_no_results(tmp_path, args, words):
    result, errors, code = smtnet(tmp_path, "run", "echo", *args)
    assert (result, code) == (None, 2)
    lines = errors.splitlines()
    assert len(lines) == 1, errors
    assert all(word in lines[0] for word in words), lines
    assert not list(tmp_path.iterdir())


def test_without_open_vswitch_the_fix_is_named(tmp_path):
    # A PATH with everything but Open vSwitch.
    folder = tmp_path / "bin"
    folder.mkdir()
    for place in ("/usr/sbin", "/usr/bin", "/sbin", "/bin"):
        for tool in Path(place).iterdir():
            if not tool.name.startswith("ovs"):
                with contextlib.suppress(FileExistsError):
                    (folder / tool.name).symlink_to(tool)
    done = subprocess.run(
        command(tmp_path / "results", "run", "echo", "--topo", "star,2", "--switch", "ovs-user", "--count", "1"),
        cwd=ROOT, env={**os.environ, "PATH": str(folder)}, capture_output=True, text=True, timeout=PATIENCE,
        check=False)
    assert done.returncode == 3
    assert "apt-get install openvswitch-switch" in done.stderr


def _find(process: psutil.Process, words: tuple[str, ...]) -> Iterator[psutil.Process]:
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            line = child.cmdline()
            # Who forks the programs has the names of their modules on its command line, too.
            if all(word in line for word in words) and "mnexec" not in line[0] and "topo.fork_server" not in line:
                yield child


@pytest.mark.parametrize(("number", "code", "said"),
                         [(signal.SIGINT, 130, "smtnet: interrupted"), (signal.SIGKILL, -9, "")])
def test_a_signal_ends_a_run_in_the_middle_of_its_load_and_nothing_stays(tmp_path, number, code, said):
    run = subprocess.Popen(command(tmp_path, "run", "echo", "--seconds", "600", "--trials", "1"), cwd=ROOT,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        parent = psutil.Process(run.pid)
        end = time.monotonic() + PATIENCE
        while not [c for c in _find(parent, ("workloads.fleet.agent",)) if sum(c.cpu_times()[:2]) > 1]:
            assert run.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        family = parent.children(recursive=True)
        run.send_signal(number)
        # Nobody waits for the load to end, nor (60 s) for a client to notice.
        output, errors = run.communicate(timeout=30)
    finally:
        run.kill()
    assert (output, run.returncode) == ("", code)
    assert errors.rstrip().endswith(said)
    assert "Traceback" not in errors
    _gone, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    assert not secrets_in(tmp_path)


@pytest.mark.parametrize("victim", [("serve", "echo"), ("workloads.fleet.agent",)])
def test_a_killed_peer_ends_the_run_with_its_name(tmp_path, victim):
    run = subprocess.Popen(command(tmp_path, "run", "echo", "--topo", "back2back", "--transport", "smt", "--size",
                                   "500000", "--seconds", "60", "--concurrency", "8", "--trials", "1"),
                           cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        parent = psutil.Process(run.pid)
        end = time.monotonic() + PATIENCE
        found: list[psutil.Process] = []
        # Under way: both processes are there, and the client has worked for a while.
        while not (found and [c for c in _find(parent, ("workloads.fleet.agent",)) if sum(c.cpu_times()[:2]) > 1]):
            assert run.poll() is None
            assert time.monotonic() < end
            found = list(_find(parent, victim))
            time.sleep(0.05)
        family = parent.children(recursive=True)
        found[0].kill()
        output, errors = run.communicate(timeout=PATIENCE)
    finally:
        run.kill()
    assert (output, run.returncode) == ("", 1)
    assert not secrets_in(tmp_path)
    line = [text for text in errors.splitlines() if text.startswith("smtnet: ")]
    assert len(line) == 1
    assert line[0].startswith(f"smtnet: {'h2: echo server' if victim[0] == 'serve' else 'h1: echo client'} ended")
    _gone, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
