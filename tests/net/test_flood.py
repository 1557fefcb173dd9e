"""Who is flooded goes on serving, however it waits for frames."""

from __future__ import annotations

import pytest

from smtstack.waiting import HYBRID, INTERRUPT, POLL
from tests.net.netns import Net

pytestmark = pytest.mark.root

#: Bounds of the flood, for a test that dies: seconds, and frames.
SECONDS, FRAMES = "120", "20000000"
SIZES, COUNT = [64, 5000], 500


# Hybrid where processors are few sleeps, as the flood wants one: polling looks for frames in any case.
@pytest.mark.parametrize("wait", [HYBRID, POLL, INTERRUPT])
def test_a_flood_beside_a_server_does_not_starve_it(net: Net, wait: str):
    with net.serve("smt", "--wait", wait) as server:
        with net.start(net.a, "tests.net.drivers", "flood", SECONDS, FRAMES, ready="flooding") as flood:
            result, errors, code = net.call("smt", "--wait", HYBRID, "--size", ",".join(map(str, SIZES)),
                                            "--count", str(COUNT), "--concurrency", "2", "--warm-up", "0")
            flooded = flood.stop()
        served = server.stop()
    assert code in {0, 4}, errors
    found = [(r["rpcs"], r["errors"], r["content_ok"]) for r in result["results"]]
    assert found == [(COUNT, 0, True)] * len(SIZES)
    assert served["requests"] == COUNT * len(SIZES)
    # It went on until all was answered, and it did arrive; what was for other ports did not.
    assert flooded["stopped"]
    counters = served["counters"]
    assert counters["packets_received"] > 10 * served["requests"]
    assert counters["socket_received"] < flooded["server"] + flooded["others"]
    # Nothing of it was taken for a request, and each of its kinds was there.
    assert all(counters[kind] > 0 for kind in ("bad_packets", "no_session", "stray", "handshakes_unexpected"))
