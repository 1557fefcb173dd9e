"""Programs of ours for the tests: each forked from a process that has imported everything, as a run's programs are
(topo/forked.py), since to import is half of what most would need of a processor. Those of others start as ever."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from topo.forked import fork_server
from workloads.fleet.programs import IMPORTS

ROOT = Path(__file__).resolve().parents[2]
#: What the process imports: what most programs here need, and nothing that they would not import themselves.
MODULES = (*IMPORTS, "workloads.commands.run", "workloads.commands.call", "workloads.commands.keys",
           "workloads.experiments.echo", "workloads.experiments.kv", "topo.network", "topo.sniffer",
           "controllers.launch", "topo.mn_plugin", "mininet.examples.clustercli", "tests.net.drivers",
           "tests.net.mn_driver", "tests.net.foreign_driver")
_CHUNK = 1 << 16
#: By namespace's name ("ip netns"): a process that is in it and does nothing.
_holders: dict[str, subprocess.Popen[bytes]] = {}


class Started:
    """A program that was forked: what these tests use of :class:`subprocess.Popen`, its streams pipes for text.

    ``namespace``: the name of one of "ip netns"; empty: where we are.
    """

    def __init__(self, module: str, arguments: Sequence[str], environment: Mapping[str, str],
                 namespace: str = "") -> None:
        ours, theirs = os.pipe()
        self.stderr = os.fdopen(ours)
        pid = _holder(namespace) if namespace else os.getpid()
        with os.fdopen(theirs, "w") as errors:
            # Python's path is the server's; what the program starts itself has that of the environment.
            server = fork_server({**environment, "PYTHONPATH": str(ROOT)}, MODULES)
            self._forked = server.start(pid, module, arguments, environment, errors)
        self.pid, self.args = self._forked.pid, self._forked.args
        self.stdin = self._forked.stdin
        assert self._forked.stdout is not None
        self.stdout = self._forked.stdout

    @property
    def returncode(self) -> int | None:
        """None while it was not seen to have ended."""
        return self._forked.returncode

    def poll(self) -> int | None:
        """Look whether it has ended."""
        return self._forked.poll()

    def send_signal(self, number: int) -> None:
        """Nothing, if it has ended."""
        self._forked.send_signal(number)

    def terminate(self) -> None:
        """SIGTERM."""
        self._forked.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self._forked.send_signal(signal.SIGKILL)

    def communicate(self, text: str = "", timeout: float | None = None) -> tuple[str, str]:
        """(stdout, stderr) to their ends, as far as they were not read before. Raises
        :class:`subprocess.TimeoutExpired`, and goes on if called again; after the end there is nothing more."""
        if not self.stdin.closed:
            with contextlib.suppress(BrokenPipeError):  # it has ended, and says why
                self.stdin.write(text)  # less than a pipe holds
                self.stdin.close()
        if self.stdout.closed:
            return "", ""
        said: dict[int, list[bytes]] = {self.stdout.fileno(): [], self.stderr.fileno(): []}
        with selectors.DefaultSelector() as selector:
            for descriptor in said:
                selector.register(descriptor, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(timeout)
                if not ready:
                    raise subprocess.TimeoutExpired(list(self.args), timeout or 0)
                for key, _events in ready:
                    data = os.read(key.fd, _CHUNK)
                    said[key.fd].append(data)
                    if not data:
                        selector.unregister(key.fd)
        output, errors = (b"".join(parts).decode(errors="replace") for parts in said.values())
        self._forked.wait(timeout)
        self.stdout.close()
        self.stderr.close()
        return output, errors


def popen(argv: Sequence[str], environment: Mapping[str, str] | None = None,
          folder: str | Path = ROOT) -> Started | subprocess.Popen[str]:
    """Start a command with pipes; if it is ``python -m MODULE``, perhaps in a namespace, by a fork."""
    whole = dict(os.environ if environment is None else environment)
    words = list(argv)
    namespace = words[3] if words[:3] == ["ip", "netns", "exec"] else ""
    if namespace:
        del words[:4]
    if words[:2] == [sys.executable, "-m"] and str(folder) == os.getcwd():
        return Started(words[2], words[3:], whole, namespace)
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            cwd=folder, env=whole)


def run(argv: Sequence[str], *, timeout: float, text: str = "", environment: Mapping[str, str] | None = None,
        folder: str | Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A command to its end, as :func:`subprocess.run` has it; one that needs longer is killed."""
    process = popen(argv, environment, folder)
    try:
        output, errors = process.communicate(text, timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert process.returncode is not None
    return subprocess.CompletedProcess(list(argv), process.returncode, output, errors)


def leave(namespace: str) -> None:
    """Before a namespace is removed: nobody of ours stays in it."""
    holder = _holders.pop(namespace, None)
    if holder is not None:
        holder.kill()
        holder.wait()


def _holder(namespace: str) -> int:
    holder = _holders.get(namespace)
    if holder is None:
        holder = _holders[namespace] = subprocess.Popen(
            ["ip", "netns", "exec", namespace, "sh", "-c", "echo; exec sleep infinity"], stdout=subprocess.PIPE)
        assert holder.stdout is not None
        with holder.stdout as said:
            said.readline()  # it is there
    return holder.pid
