"""``smtnet serve kv`` on a cable: RESP inside messages, several transports on one keyspace, losses."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tests.net.netns import IFACE, PATIENT, B, Net, Running, run
from tests.redis_server import redis_server

pytestmark = pytest.mark.root


def serve(net: Net, *options: str) -> Running:
    """A key-value server on host b."""
    return net.start(net.b, "workloads", "serve", "kv", "--iface", IFACE, "--keys", net.keys, "--json",
                     *PATIENT, *options, ready="serving")


def drive(net: Net, *args: str) -> dict[str, Any]:
    """What clients of kv_driver.py on host a print."""
    done = run(["ip", "netns", "exec", net.a, sys.executable, "-m", "tests.net.kv_driver", *args])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_one_keyspace_however_it_is_reached(net: Net):
    places = [f"smt:{B}:6001", f"homa:{B}:5001", f"tcp:{B}:7001"]
    with serve(net, *[word for place in places for word in ("--listen", place)]) as server:
        said = drive(net, "mixed", net.keys, "6001", "5001", "7001")
        result = server.stop()
    refused = ("-ERR Protocol error: invalid multibulk length: a message has at most 1000000 bytes "
               "(max_message_length)\r\n")
    assert said == {"smt": ["$3\r\ntcp\r\n", "+OK\r\n", refused, "+OK\r\n", ":500000\r\n"],
                    "homa": ["$3\r\nsmt\r\n", "+OK\r\n", refused, "+OK\r\n", ":500000\r\n"],
                    "tcp": ["$4\r\nhoma\r\n", ":500000\r\n"]}
    assert server.code == 0
    assert [x["transport"] for x in result["listeners"]] == ["smt", "homa", "tcp"]
    assert result["counters"]["protocol_errors"] == 2
    assert result["counters"]["connections_accepted"] == 1
    assert result["kv"]["commands"] == 13
    assert result["kv"]["keys"] == 2
    assert isinstance(result["fidelity"]["ok"], bool)


def test_any_commands_of_several_clients_over_a_lossy_wire_have_the_replies_of_redis(net: Net):
    with redis_server() as (path, _pid), serve(net, "--transport", "smt", "--addr", f"{B}:6001"), \
            serve(net, "--transport", "smt", "--addr", f"{B}:6002", "--store", f"redis:unix:{path}"):
        said = drive(net, "model", net.keys, "6001", "6002", "25")
    assert said["compared"] > 100
    assert said["transactions"] > 5
    assert said["lost"] > 0


@pytest.mark.parametrize("fsync", ["", "always"])
def test_no_write_is_lost_or_done_twice(net: Net, fsync, tmp_path):
    # Written anew again and again meanwhile.
    aof = ["--aof", str(tmp_path / "aof"), "--fsync", fsync, "--aof-rewrite-min-size", "3kb"] if fsync else []
    with serve(net, "--transport", "smt", "--addr", f"{B}:6001", *aof) as server:
        said = drive(net, "counting", net.keys, "6001", "300")
        result = server.stop()
    assert said["once"]
    assert said["last"] == "$3\r\n900\r\n"
    assert said["lost"] > 0
    if fsync:
        # A group of commands shares a sync.
        assert 0 < result["kv"]["aof_syncs"] < 900
        assert result["kv"]["aof_rewrites"] > 0


def test_a_busy_port_is_one_line(net: Net):
    with serve(net, "--transport", "tcp", "--addr", f"{B}:7001"):
        done = run(["ip", "netns", "exec", net.b, sys.executable, "-m", "workloads", "serve", "kv",
                    "--transport", "tcp", "--addr", f"{B}:7001"])
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"{B}:7001 is in use" in done.stderr
