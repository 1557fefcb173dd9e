"""The scripts of examples/ do what their first lines say, started as these say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.net import starting
from tests.net.netns import PATIENCE, Net, run
from tests.net.starting import ROOT

pytestmark = pytest.mark.root
EXAMPLES = {path.stem: path for path in sorted((ROOT / "examples").glob("*.py"))}


@pytest.fixture
def here(net: Net, tmp_path: Path) -> tuple[Net, str]:
    """A host with a loopback interface, and its credentials."""
    subprocess.run(["ip", "-n", net.a, "link", "set", "lo", "up"], check=True)
    done = run([sys.executable, "-m", "workloads", "ca", str(tmp_path / "ca"), "--host", "here=127.0.0.1"])
    assert done.returncode == 0, done.stderr
    return net, str(tmp_path / "ca" / "here")


@pytest.mark.parametrize(("name", "said"), [
    ("socket_echo", "HELLO\n"), ("asyncio_echo", "".join(f"HELLO {n}\n" for n in range(20)))])
def test_sockets(here: tuple[Net, str], name: str, said: str) -> None:
    net, certs = here
    done = run(["ip", "netns", "exec", net.a, sys.executable, str(EXAMPLES[name]), certs])
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")


def test_a_network() -> None:
    done = run([sys.executable, str(EXAMPLES["network"])])
    assert done.returncode == 0, done.stderr
    assert "100" in done.stdout


def test_a_topology_by_itself() -> None:
    done = run([sys.executable, str(EXAMPLES["own_topology"]), "3"])
    assert done.returncode == 0, done.stderr
    assert "50" in done.stdout


def test_a_topology_in_plain_mn() -> None:
    program = Path(sys.executable).with_name("mn")
    if not program.exists():
        pytest.skip("there is no mn here")
    line = re.search(r"^ +sudo mn (.*)$", EXAMPLES["own_topology"].read_text().replace("\\\n", ""), re.MULTILINE)
    assert line is not None
    # In a sandbox: nobody else's switches are there.
    done = starting.run([sys.executable, "-m", "tests.net.mn_driver", str(program), *line[1].split()],
                        timeout=4 * PATIENCE)
    result = json.loads(done.stdout)
    assert result["code"] == 0, result["said"]
    assert "smtecho" in result["said"]


def test_an_experiment(tmp_path: Path) -> None:
    done = run([sys.executable, str(EXAMPLES["own_experiment"]), "sealing", "--size", "64,2000", "--json",
                "--results", str(tmp_path)])
    assert done.returncode == 0, done.stderr
    points = json.loads(done.stdout)["points"]
    assert [(transport, int(size)) for transport, size, _time in points] == [
        ("homa", 64), ("smt", 64), ("homa", 2000), ("smt", 2000)]
    assert all(time > 0 for _transport, _size, time in points)
    page, = {path.resolve() for path in tmp_path.glob("*/index.html")}  # "latest" is a link
    assert "smt" in page.read_text()


def test_a_transport(tmp_path: Path) -> None:
    """The ``"own_transport"`` that its first lines name, from nothing to a report."""
    line = re.search(r"smtnet (run echo .*)$", EXAMPLES["own_transport"].read_text(), re.MULTILINE)
    assert line is not None
    done = subprocess.run([sys.executable, "-m", "workloads", *line[1].split(), "--trials", "1", "--json",
                           "--allow-unfaithful", "--results", str(tmp_path)], cwd=ROOT, capture_output=True,
                          text=True, check=False, timeout=4 * PATIENCE,
                          env={**os.environ, "SMTNET_TRANSPORTS": "examples.own_transport"})
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["transport"], result["rpcs"], result["content_ok"]) == ("turned", 100, True)


def test_there_is_a_test_for_each() -> None:
    tested = Path(__file__).read_text()
    assert all(f'"{name}"' in tested for name in EXAMPLES)
