"""Two hosts of one cable: network namespaces "a" (10.9.0.1) and "b" (10.9.0.2), for commands run in them."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from smtstack.capture.pcapfile import Reader
from tests.net import starting
from tests.net.starting import ROOT
from tests.patience import FACTOR

A, B = "10.9.0.1", "10.9.0.2"
#: The interface's name in either namespace.
IFACE = "e0"
#: Seconds for what takes one on a loaded machine.
PATIENCE = 30.0 * FACTOR
#: Where nobody should fail, a machine that takes the processor away for long must not make it so; by default a
#: host that is silent for 6 s is given up.
PATIENT = ["--timeout-resends", "1000"]
IMPATIENT = ["--timeout-resends", "5"]

_numbers = count()


def run_environment() -> dict[str, str]:
    """For programs in a namespace: they find the checkout."""
    path = os.pathsep.join(p for p in (os.environ.get("PYTHONPATH"), str(ROOT)) if p)
    return {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "default"}


class Running:
    """A process in a namespace, ready when it has said so on stderr; stopped at the end, whatever happens."""

    def __init__(self, argv: list[str], ready: str) -> None:
        self._process = starting.popen(argv, run_environment())
        self.errors = ""
        self.output = ""
        self.code: int | None = None
        try:
            self._await(ready)
        except BaseException:
            self._process.kill()
            self.stop()
            raise

    def _await(self, ready: str) -> None:
        assert self._process.stderr is not None
        descriptor = self._process.stderr.fileno()
        end = time.monotonic() + PATIENCE
        while ready not in self.errors:
            readable, _w, _x = select.select([descriptor], [], [], max(0, end - time.monotonic()))
            text = os.read(descriptor, 4096).decode() if readable else ""
            assert text, f"never said {ready!r}: {self.errors}"
            self.errors += text

    def send_signal(self, number: int) -> None:
        """Send it a signal, and leave it at that."""
        self._process.send_signal(number)

    def wait(self) -> None:
        """Until it ends by itself."""
        if self.code is None:
            output, errors = self._process.communicate("", PATIENCE)
            self.output += output
            self.errors += errors
            self.code = self._process.returncode

    def stop(self, number: int = signal.SIGTERM) -> dict[str, Any]:
        """End it; the JSON it printed, if any."""
        if self.code is None:
            self._process.send_signal(number)
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self._process.kill()
                self.wait()
                raise
        return json.loads(self.output) if self.output.startswith("{") else {}

    def __enter__(self) -> Running:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.stop()
        if kind is None:
            assert "Traceback" not in self.errors, self.errors


class Net:
    """The two namespaces. ``a`` and ``b`` are their names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        # Unique in the machine, so that two runs of the tests do not meet.
        prefix = f"smtnet-{os.getpid()}-{next(_numbers)}"
        self.a, self.b = f"{prefix}-a", f"{prefix}-b"
        self._ports = count(40_000)
        self.keys = self.make_keys("run.keys")

    def up(self) -> None:
        """Make them. The cable is made inside, so nothing of it is ever seen outside."""
        for name in (self.a, self.b):
            _ip("netns", "add", name)
        _ip("link", "add", IFACE, "netns", self.a, "type", "veth", "peer", "name", IFACE, "netns", self.b)
        for name, address in ((self.a, A), (self.b, B)):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", IFACE)
            _ip("-n", name, "link", "set", IFACE, "up")

    def down(self) -> None:
        """Remove them, as far as they are there."""
        for name in (self.a, self.b):
            starting.leave(name)
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def make_keys(self, name: str) -> str:
        """A fresh key file."""
        path = self.folder / name
        done = run([sys.executable, "-m", "workloads", "keys", str(path), "--pair", f"{A},{B}"])
        assert done.returncode == 0, done.stderr
        return str(path)

    def port(self) -> int:
        """A client port not used before."""
        return next(self._ports)

    def keys_for(self, profile: str) -> list[str]:
        """The option; linux takes the demo keys, so that both ways are used."""
        return {"smt": ["--keys", self.keys], "linux": ["--keys", "demo"]}.get(profile, [])

    def serve(self, profile: str, *options: str, port: int = 2000) -> Running:
        """An echo server on host b."""
        return self.start(self.b, "workloads", "serve", "echo", "--iface", IFACE, "--addr", f"{B}:{port}",
                          "--profile", profile, *self.keys_for(profile), "--json", *PATIENT, *options,
                          ready="serving")

    def call(self, profile: str, *options: str, port: int = 2000) -> tuple[dict[str, Any], str, int]:
        """An echo client on host a: (its JSON, its stderr, exit code)."""
        done = run(["ip", "netns", "exec", self.a, *self.call_command(profile, *options, port=port)])
        assert "Traceback" not in done.stderr, done.stderr
        return json.loads(done.stdout) if done.stdout.startswith("{") else {}, done.stderr, done.returncode

    def call_command(self, profile: str, *options: str, port: int = 2000) -> list[str]:
        """What :meth:`call` runs. Options given twice: the last one counts, and a peer is none besides B."""
        peer = [] if "--peer" in options else ["--peer", f"{B}:{port}"]
        return [sys.executable, "-m", "workloads", "call", "echo", "--iface", IFACE,
                "--addr", f"{A}:{self.port()}", *peer, "--profile", profile,
                *self.keys_for(profile), "--json", *PATIENT, *options]

    def start(self, namespace: str, module: str, *args: str, ready: str) -> Running:
        """``python -m module`` in a namespace, when it has said ``ready``."""
        return Running(["ip", "netns", "exec", namespace, sys.executable, "-m", module, *args], ready)

    def drive(self, *args: str) -> dict[str, Any]:
        """What a client of tests/net/drivers.py on host a prints."""
        done = run(["ip", "netns", "exec", self.a, sys.executable, "-m", "tests.net.drivers", *args])
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @contextmanager
    def sniff(self, frames: list[bytes]) -> Iterator[None]:
        """All frames on host a's end of the cable, both ways, put into ``frames`` at the end."""
        path = self.folder / f"capture{next(_numbers)}.pcap"
        with self.start(self.a, "topo.sniffer", IFACE, str(path), ready="sniffing") as sniffer:
            yield
            assert sniffer.stop()["missed"] == 0
        with path.open("rb") as f:
            frames += [c.frame for c in Reader(f).frames_untrusted()]


def run(argv: list[str], timeout: float = 2 * PATIENCE) -> subprocess.CompletedProcess[str]:
    """A command to its end, which has so many seconds."""
    return starting.run(argv, timeout=timeout, environment=run_environment())


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True, text=True)
