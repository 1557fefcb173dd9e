"""The controller's application in a process of its own: Ryu's event loop replaces half of the standard library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ryu", reason="Ryu is not installed: make venv")

TESTS = Path(__file__).resolve().parents[1] / "ryu_fanout.py"


def test_switches_that_refuse():
    """All of tests/ryu_fanout.py."""
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider",
                           str(TESTS)], cwd=TESTS.parents[1], capture_output=True, text=True, timeout=200,
                          check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout
