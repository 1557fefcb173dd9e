"""Several processes on one port: the kernel gives each its messages, within one flow."""

from __future__ import annotations

import os
import signal

import pytest

from tests.net.netns import Net, run

pytestmark = pytest.mark.root


@pytest.mark.parametrize("profile", ["smt", "linux"])
def test_workers_share_the_messages_of_one_flow(net: Net, profile):
    with net.serve(profile, "--workers", "2") as server:
        result, errors, code = net.call(profile, "--size", "5000", "--count", "300", "--concurrency", "10",
                                        "--warm-up", "0")
        assert code in {0, 4}, errors
        assert (result["rpcs"], result["errors"], result["content_ok"]) == (300, 0, True)
        served = server.stop(signal.SIGINT)
    assert server.code == 0
    assert "Traceback" not in server.errors
    # Ids step by 2, so every second message is each worker's. In all as many as were asked: nothing was
    # served by both, and a message of several packets never came to two.
    assert served["requests_by_worker"] == [150, 150]
    counters = served["counters"]
    assert counters["replays"] == counters["unknowns_sent"] == 0


def test_workers_end_after_count_together(net: Net):
    with net.serve("smt", "--workers", "2", "--count", "40") as server:
        net.call("smt", "--count", "40", "--warm-up", "0")
        server.wait()
        assert (server.code, server.stop()["requests"]) == (0, 40)


def test_a_worker_that_dies_ends_the_server(net: Net):
    with net.serve("smt", "--workers", "2") as server:
        # The workers are the youngest processes in the namespace.
        pids = run(["ip", "netns", "pids", net.b])
        os.kill(max(map(int, pids.stdout.split())), signal.SIGKILL)
        server.wait()
    assert server.code == 1
    assert server.errors.splitlines()[-1] == "smtnet: a worker died"
