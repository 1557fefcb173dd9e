"""``smtnet doctor`` as root on this machine: quick, whole, and it leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.net.starting import ROOT
from topo.needs import NEEDS

pytestmark = pytest.mark.root


def _interfaces() -> set[str]:
    return {path.name for path in Path("/sys/class/net").iterdir()}


def test_doctor_tries_everything_and_leaves_nothing():
    before = _interfaces()
    done = subprocess.run([sys.executable, "-m", "workloads", "doctor", "--json"], cwd=ROOT, check=False,
                          capture_output=True, text=True, timeout=60)
    assert not done.stderr
    out = json.loads(done.stdout)
    checks = {check["name"]: check for check in out["checks"]}
    failed = [check for check in checks.values() if check["status"] == "fail"]
    assert (done.returncode, out["ok"]) == ((3, False) if failed else (0, True)), failed
    # As root every attempt was made, whatever came of it.
    assert {"raw sockets", "linux bridge", "tc htb", "tc u32", *NEEDS} <= set(checks)
    # These tests need them, so they are here.
    assert checks["namespaces"]["status"] == checks["raw sockets"]["status"] == "ok"
    assert _interfaces() == before


def test_the_inner_half_refuses_to_work_outside():
    done = subprocess.run([sys.executable, "-m", "topo.probes"], cwd=ROOT, check=False, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode != 0
    assert "namespaces of its own" in done.stderr
