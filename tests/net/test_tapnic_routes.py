"""Routes of TLS connections that NICs encrypt change while data flows: to another NIC, to a plain interface.

``SMTNET_ROUTE_FLIPS=50`` changes them that often for each policy, at instants that ``SMTNET_SEED`` decides.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.net.test_tapnic import inside

pytestmark = pytest.mark.root

FLIPS = os.environ.get("SMTNET_ROUTE_FLIPS", "4")
SEED = os.environ.get("SMTNET_SEED", "1")


def flipped(policy: str, way: str) -> dict[str, Any]:
    """The result, which says how much was in clear on which cable."""
    got = inside("routes", policy, way, FLIPS, SEED)
    assert got["flips"] == int(FLIPS)
    return got


@pytest.mark.parametrize("policy", ["linux", "freebsd"])
def test_another_nic_goes_on(policy: str):
    got = flipped(policy, "nic")
    assert not any(got["leaked"].values()), got
    assert got["bad"] == []
    # By software, or with a context there: as the systems do.
    assert (got["fallback"] > 0, got["resets"] > 0) == (policy == "linux", policy == "freebsd")


def test_without_a_policy_it_would_leak():
    got = flipped("none", "nic")
    assert got["leaked"]["n-h1-eth1"] > 0


def test_a_plain_interface_gets_nothing_and_linux_goes_on_when_the_route_is_back():
    got = flipped("linux", "plain")
    assert not any(got["leaked"].values()), got
    assert got["bad"] == []


def test_a_plain_interface_gets_nothing_and_freebsd_ends_the_connection():
    got = flipped("freebsd", "plain")
    assert not any(got["leaked"].values()), got
    assert got["bad"]
    assert set(got["bad"]) == {"ConnectionAbortedError"}
    assert got["failed"] == len(got["bad"])


def test_without_the_guard_it_would_leak():
    got = flipped("linux", "open")
    assert got["leaked"]["h1-eth2"] > 0
