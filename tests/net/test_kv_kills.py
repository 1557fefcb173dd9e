"""A key-value server on protected storage is killed again and again (SIGKILL), under YCSB A over smt with losses.

``SMTNET_KILLS=1000`` does so as often; by default it is a handful.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from smtstack.storage.files import is_protected
from tests.net.netns import IFACE, PATIENCE, PATIENT, B, Net, run_environment
from workloads.commands import kv_file

pytestmark = pytest.mark.root
KILLS = int(os.environ.get("SMTNET_KILLS", "4"))


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def kill_again_and_again(net: Net, path: Path, kills: int, *options: str,
                         meanwhile: Callable[[int], object] = lambda _kill: None) -> dict:
    """What clients have seen, over all lives of the server, which keeps what it has in ``path``. ``meanwhile`` is
    called after each kill, with its number."""
    random = Random(1)
    clients = subprocess.Popen(
        ["ip", "netns", "exec", net.a, sys.executable, "-m", "tests.net.kv_driver", "killed", net.keys, "6001"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=run_environment())
    assert clients.stdin is not None
    try:
        for kill in range(kills):
            server = net.start(
                net.b, "workloads", "serve", "kv", "--iface", IFACE, "--keys", net.keys, *PATIENT, "--transport",
                "smt", "--addr", f"{B}:6001", "--aof", str(path), "--fsync", "always",
                "--aof-rewrite-min-size", "40kb", *options, ready="serving")
            try:
                clients.stdin.write("go\n")
                clients.stdin.flush()
                assert read_line(clients) == "going\n"
                # Any moment will do; nothing is waited for.
                time.sleep(random.uniform(0.01, 0.4))
            finally:
                server.stop(signal.SIGKILL)
            assert "Traceback" not in server.errors, server.errors
            clients.stdin.write("stop\n")
            clients.stdin.flush()
            assert read_line(clients) == "stopped\n"
            meanwhile(kill)
        output, _none = clients.communicate(timeout=PATIENCE + kills)
    finally:
        clients.kill()
        clients.wait()
    assert clients.returncode == 0
    return json.loads(output)


def test_no_acknowledged_write_is_lost_in_any_kill(net: Net, tmp_path):
    path, key = tmp_path / "aof", tmp_path / "key"
    assert kv_file.run(["key", str(key)]) == 0
    options = ["--storage-key", str(key), "--storage-state", str(tmp_path / "trusted")]
    said = kill_again_and_again(net, path, KILLS, *options)
    print({**said, "kills": KILLS})
    assert said["violations"] == []
    assert said["acknowledged"] > 3 * KILLS
    assert said["read"] > 3 * KILLS
    assert said["dropped"] > 0
    assert is_protected(path)
    assert kv_file.run(["check", str(path), *options]) == 0


def test_a_disk_that_is_put_back_without_freshness_is_found_out_by_clients(net: Net, tmp_path):
    """The control: acknowledged writes that are lost are noticed, whoever loses them."""
    path, key, old = tmp_path / "aof", tmp_path / "key", tmp_path / "old"
    assert kv_file.run(["key", str(key)]) == 0

    def meanwhile(kill: int) -> None:
        if kill:
            shutil.copy(old, path)
        else:
            shutil.copy(path, old)

    said = kill_again_and_again(net, path, 3, "--storage-key", str(key), meanwhile=meanwhile)
    assert said["violations"]
