"""Which programs are forked from one process, what that has imported, and how its end is told; root's part is
tests/net/test_forked.py."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from topo import fork_server, forked
from topo.interpreter import host_environment
from workloads.fleet.programs import IMPORTS

ROOT = Path(__file__).resolve().parents[2]
REAL = forked.ForkServer


class _Server:
    """Counts as one that runs."""

    def __init__(self, environment, imports):
        self.process = self

    def poll(self):
        return None


@pytest.fixture(autouse=True)
def servers(monkeypatch):
    monkeypatch.setattr(forked, "ForkServer", _Server)
    monkeypatch.setattr(forked, "_servers", {})


def test_programs_share_a_server_unless_imports_would_differ(tmp_path):
    for name, text in (("a", "same"), ("b", "same"), ("c", "other")):
        (tmp_path / name).write_text(text)
    one = forked.fork_server({"OPENSSL_CONF": str(tmp_path / "a"), "HOME": "/"}, ["json"])
    assert forked.fork_server({"OPENSSL_CONF": str(tmp_path / "b"), "HOME": "/root"}, ["json"]) is one
    for environment in ({"OPENSSL_CONF": str(tmp_path / "c")}, {}, {"OPENSSL_CONF": str(tmp_path / "missing")},
                        {"OPENSSL_CONF": str(tmp_path / "a"), "SMTNET_TRANSPORTS": "toy"},
                        {"OPENSSL_CONF": str(tmp_path / "a"), "PYTHONPATH": "/elsewhere"}):
        assert forked.fork_server(environment, ["json"]) is not one
    assert forked.fork_server({"OPENSSL_CONF": str(tmp_path / "a")}, ["csv"]) is not one


def test_what_a_fleet_imports_brings_no_network_and_no_pictures_and_no_thread():
    code = ("import importlib, json, os, sys\n"
            "for name in sys.argv[1:]: importlib.import_module(name)\n"
            "print(json.dumps([len(os.listdir('/proc/self/task')), sorted(sys.modules)]))")
    said = subprocess.run([sys.executable, "-c", code, "topo.fork_server", *IMPORTS], env=host_environment(),
                          check=True, capture_output=True, text=True).stdout
    threads, modules = json.loads(said)
    assert threads == 1
    # The control: these are what programs come for.
    assert {"ssl", "cryptography", "smtstack.session.manager", "workloads.fleet.agent"} <= set(modules)
    assert not {"mininet", "matplotlib", "numpy", "topo.network"} & set(modules)


def test_an_end_that_is_told_together_with_the_start_is_not_lost(monkeypatch):
    """A program that fails at once may have ended before anybody reads that it was started."""
    monkeypatch.undo()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = object.__new__(forked.ForkServer)
    server._environment, server._running, server._ended, server._control = {}, {}, {}, ours
    server._lock = threading.RLock()
    with ours, theirs, open(os.devnull, "w") as errors:
        for message in ({"started": 1 << 30}, {"ended": 1 << 30, "code": 3}):
            theirs.send(json.dumps(message).encode())
        program = server.start(os.getpid(), "nothing", [], {}, errors)
        assert program.poll() == 3
        assert program.wait(0.0) == 3
        # What the program would have had.
        _order, streams, _flags, _address = socket.recv_fds(theirs, fork_server.LONGEST, 3)
        for stream in streams:
            os.close(stream)
        assert program.communicate() == ("", None)


def test_with_the_server_its_programs_have_ended(monkeypatch):
    monkeypatch.undo()
    server = forked.ForkServer(host_environment(), [])
    reader, writer = os.pipe()
    with os.fdopen(reader), os.fdopen(writer, "w") as stdin:
        program = forked.Forked(server, ["nothing"], 1 << 30, stdin, None)
        server._running[program.pid] = program
        assert program.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            program.wait(0.0)
        server.process.kill()
        assert program.wait() == -signal.SIGKILL
        # Nobody is there to be sent a signal.
        program.terminate()
        assert program.communicate() == (None, None)
    server.close()


def test_threads_that_share_a_server_each_hear_of_their_own_programs(tmp_path):
    """One that reads what all are told of leaves nobody waiting; the beginning is the beginner's."""
    (tmp_path / "ends.py").write_text("import sys\nsys.exit(int(sys.argv[1]))\n")
    environment = {**host_environment(), "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    server = REAL(environment, ["json"])
    try:
        def codes(number: int) -> list[int]:
            found = []
            with open(os.devnull, "w") as errors:
                for turn in range(6):
                    program = server.start(os.getpid(), "ends", [str(10 * turn + number)], environment, errors)
                    found.append(program.wait(60))
                    program.communicate()
            return found

        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(codes, range(6))) == [
                [10 * turn + number for turn in range(6)] for number in range(6)]
    finally:
        server.close()
