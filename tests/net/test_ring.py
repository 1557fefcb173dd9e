"""The receive ring against the kernel that fills it. The frames go over a loopback of their own."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tests.net.netns import Net, run

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def seen(net: Net) -> dict[str, Any]:
    """What tests/net/ring_driver.py saw."""
    done = run(["ip", "netns", "exec", net.a, sys.executable, "-m", "tests.net.ring_driver"])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_frames_come_whole_and_in_order_however_often_the_ring_goes_round(seen):
    assert seen["rounds"] > 1.5
    assert seen["in_order"] is True


def test_a_limit_leaves_the_rest_readable(seen):
    assert seen["limited"] == [[True, 3], [True, 3], [True, 1], [False, 0]]


def test_a_full_ring_drops_and_counts_the_newest_and_goes_on(seen):
    assert seen["kept"] == list(range(seen["slots"]))
    assert seen["dropped"] == 10
    assert seen["afterwards"] == [7]


def test_a_frame_that_is_too_long_is_cut_and_hurts_no_other(seen):
    assert seen["cut"][0] < 60_000
    assert seen["cut"][1:] == [0, 60]
