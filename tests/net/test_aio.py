"""The asyncio face of sockets."""

from __future__ import annotations

import pytest

from tests.net.netns import B, Net

pytestmark = pytest.mark.root


def test_a_hundred_requests_at_once_and_one_cancelled(net: Net):
    with net.serve("smt"):
        result = net.drive("gather", str(net.port()), net.keys)
    assert result["good"] == 100
    # The client's link takes 3 ms.
    assert 0.003 <= result["fastest"] < 0.1
    assert (result["ended"], result["left"]) == ("CancelledError", 0)
    assert f"{B}:2999: no response within 0.01 s" in result["silence"]


def test_a_server_answers_at_the_rate_of_its_link(net: Net):
    """At 200 Mbit/s the 9000 bytes of an answer take 0.36 ms."""
    with net.start(net.b, "tests.net.drivers", "aio_serve", net.keys, ready="serving"):
        result, errors, code = net.call("smt", "--size", "9000", "--count", "20")
    assert code in {0, 4}, errors
    assert (result["rpcs"], result["content_ok"]) == (20, True)
    assert result["rtt_us"]["min"] > 300
