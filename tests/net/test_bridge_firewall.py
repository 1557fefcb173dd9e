"""Bridges of a sandbox switch whatever comes; those of the machine's own namespace say what may come between."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.net.netns import PATIENCE
from tests.net.starting import ROOT

_SETTINGS = Path("/proc/sys/net/bridge")

pytestmark = [pytest.mark.root, pytest.mark.skipif(
    not _SETTINGS.exists(), reason="bridges of this kernel have no firewall (br_netfilter)")]


def settings() -> dict[str, str]:
    return {path.name: path.read_text() for path in _SETTINGS.iterdir()}


def test_no_firewall_comes_between_and_the_machines_stays():
    before = settings()
    done = subprocess.run([sys.executable, "-m", "tests.net.firewall_driver"], cwd=ROOT, capture_output=True,
                          text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["settings"] == []
    assert results["kept out"] == {"arrived": ["damaged", "whole"], "said": ""}
    # The control.
    assert results["let in"]["arrived"] == ["whole"]
    assert "sudo sysctl -w net.bridge.bridge-nf-call-iptables=0" in results["let in"]["said"]
    assert settings() == before
