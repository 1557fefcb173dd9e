"""What RPCs leave behind: no cycles, so that the collector may look seldom, and nothing that grows."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from smtstack.nic.device import NicConfig
from tests.command_lines import ROOT
from tests.pair import Pair, pattern

BATCH = 400


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def exchange(pair: Pair, count: int) -> None:
    """So many RPCs of several sizes, and time until nothing is pending of them."""
    for number in range(count):
        pair.request(pattern((64, 1024, 9000)[number % 3], number))
        pair.run()
    pair.run(settle=True)
    assert len(pair.responses) == count
    for kept in (pair.sent, pair.responses, pair.delivered, pair.frames):
        kept.clear()


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("profile", ["smt", "homa", "linux", "upstream"])
@pytest.mark.usefixtures("_no_collector")
def test_rpcs_leave_no_cycles_and_nothing_grows(profile, offload):
    pair = Pair(profile, config=NicConfig(tls_hw_tx_offload=offload))
    exchange(pair, BATCH)
    gc.collect()
    before = len(gc.get_objects())
    exchange(pair, 3 * BATCH)
    grown = len(gc.get_objects()) - before
    found = gc.collect()
    # Of the order of an RPC, not of thousands.
    assert (grown < 100, found < 100) == (True, True), (grown, found)


@pytest.mark.usefixtures("_no_collector")
def test_growth_would_be_seen():
    """The control: an object for every RPC that somebody keeps, or that keeps itself."""
    before = len(gc.get_objects())
    kept: list[list[object]] = [[] for _number in range(3 * BATCH)]
    assert len(gc.get_objects()) - before > BATCH
    for own in kept:
        own.append(own)
    del own, kept
    assert gc.collect() > BATCH


def test_a_server_still_finds_cycles():
    """With fewer looks: of ten times as many cycles as there are objects between two looks, few are left."""
    program = """
import gc, weakref
from workloads.results.fidelity import COLLECTIONS, shorten_pauses
class Thing: pass
def cycle():
    one = Thing()
    one.self = one
    return weakref.ref(one)
early = cycle()
shorten_pauses()
assert early() is None, "garbage of the start is not kept for ever"
assert gc.get_freeze_count() > 1000
count = 10 * COLLECTIONS[0]
print(sum(ref() is not None for ref in [cycle() for _ in range(count)]) <= COLLECTIONS[0] + 1)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("True\n", "")
