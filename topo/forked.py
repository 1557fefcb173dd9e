"""Programs of ours that are forked, with everything imported, from one process for all hosts
(:mod:`topo.fork_server`): they start at once, and share the memory of what they imported."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from smtstack.errors import SmtError
from topo.commands import die_with_parent
from topo.fork_server import LONGEST, Order
from topo.interpreter import host_python

#: Beginnings of variables that Python, OpenSSL, the linker and our modules read when they are imported.
_AT_IMPORT = ("PYTHON", "SMTNET_", "OPENSSL_", "SSL_", "LD_", "LC_", "LANG")
_OPENSSL_CONF = "OPENSSL_CONF"
_CHUNK = 1 << 16
#: Seconds between two looks for what another thread has heard.
_LOOK_S = 0.25


class Forked:
    """A program that was forked: what this project uses of :class:`subprocess.Popen`, with the same meaning."""

    def __init__(self, server: ForkServer, args: Sequence[str], pid: int, stdin: TextIO,
                 stdout: TextIO | None) -> None:
        self.args = args
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self.returncode: int | None = None
        self._server = server
        self._said = b""

    def poll(self) -> int | None:
        """The program's exit code, or minus the signal that ended it; None while it runs."""
        if self.returncode is None:
            self._server.hear(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Until it has ended: what :meth:`poll` says then. :class:`subprocess.TimeoutExpired` after so many
        seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            # Another thread may have heard of this end just now: then nothing more comes.
            self._server.hear(min(_LOOK_S, self._left(end, timeout) or _LOOK_S))
        assert self.returncode is not None
        return self.returncode

    def _left(self, end: float | None, timeout: float | None) -> float | None:
        if end is None or timeout is None:
            return None
        left = end - time.monotonic()
        if left <= 0:
            raise subprocess.TimeoutExpired(list(self.args), timeout)
        return left

    def send_signal(self, number: int) -> None:
        """Nothing, if it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str | None, None]:
        """Close its stdin, read its stdout to the end (None if that is no pipe), and wait. May be called again
        after :class:`subprocess.TimeoutExpired`."""
        end = None if timeout is None else time.monotonic() + timeout
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        if self.stdout is not None and not self.stdout.closed:
            poll = select.poll()
            poll.register(self.stdout, select.POLLIN)
            while True:
                left = self._left(end, timeout)
                if not poll.poll(None if left is None else left * 1000):
                    continue
                data = os.read(self.stdout.fileno(), _CHUNK)
                if not data:
                    break
                self._said += data
            self.stdout.close()
        self.wait(None if end is None else max(0.001, end - time.monotonic()))
        return (None if self.stdout is None else self._said.decode(errors="replace")), None


class ForkServer:
    """The run's end of a :mod:`topo.fork_server`, which ends with this process at the latest."""

    def __init__(self, environment: Mapping[str, str], imports: Sequence[str]) -> None:
        self._environment = dict(environment)
        self._running: dict[int, Forked] = {}
        self._started: int | None = None
        #: Exit codes of those that ended before we had read that they were started.
        self._ended: dict[int, int] = {}
        #: Who starts or takes a message has it: threads share a server.
        self._lock = threading.RLock()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # A session of its own: Ctrl-C in a terminal is the run's.
            self.process = subprocess.Popen(
                [host_python(), "-m", "topo.fork_server", str(theirs.fileno()), *imports], env=self._environment,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
                start_new_session=True,
                preexec_fn=die_with_parent)  # noqa: PLW1509 - one system call, which takes no lock

    def start(self, pid: int, module: str, arguments: Sequence[str], environment: Mapping[str, str],
              errors: TextIO, *, answers: bool = True, cores: Collection[int] = ()) -> Forked:
        """``python -m module arguments`` in the namespaces of process ``pid``. ``errors`` takes its stderr, and
        with ``answers`` False its stdout, too. Raises :class:`SmtError` if there is no server any more."""
        changed = {name: environment.get(name) for name in {*environment, *self._environment}
                   if environment.get(name) != self._environment.get(name)}
        order = Order(pid, module, list(arguments), os.getcwd(), changed, sorted(cores))
        reader, stdin = os.pipe()
        stdout, writer = os.pipe() if answers else (-1, os.dup(errors.fileno()))
        try:
            with self._lock:
                socket.send_fds(self._control, [order.encode()], [reader, writer, errors.fileno()])
                self._started = None
                while self._started is None:
                    if not self.hear(None):
                        raise ConnectionError("it has ended")
                pid = self._started
        except OSError as e:
            for fd in (stdin, *([stdout] if answers else [])):
                os.close(fd)
            raise SmtError(f"the process that starts programs on hosts: {e}") from None
        finally:
            os.close(reader)
            os.close(writer)
        program = Forked(self, [host_python(), "-m", module, *arguments], pid, os.fdopen(stdin, "w"),
                         os.fdopen(stdout) if answers else None)
        with self._lock:
            program.returncode = self._ended.pop(program.pid, None)
            if program.returncode is None:
                self._running[program.pid] = program
        return program

    def hear(self, timeout: float | None) -> bool:
        """Take what the server says within that time (None: however long that takes) about starts and ends;
        whether it is still there. With it all its programs have ended."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        while poll.poll(None if timeout is None else timeout * 1000):
            timeout = 0.0
            with self._lock:
                try:
                    said = self._control.recv(LONGEST, socket.MSG_DONTWAIT)
                except BlockingIOError:  # another thread has taken it
                    return True
                except ConnectionResetError:
                    said = b""
                if not said:
                    for program in self._running.values():
                        program.returncode = -signal.SIGKILL
                    self._running.clear()
                    return False
                self._take(json.loads(said))
        return True

    def _take(self, message: dict[str, Any]) -> None:
        if "started" in message:
            self._started = message["started"]
            return
        program = self._running.pop(message["ended"], None)
        if program is None:
            self._ended[message["ended"]] = message["code"]
        else:
            program.returncode = message["code"]

    def close(self) -> None:
        """End it, and all its programs."""
        self._control.close()
        self.process.wait()


#: By what matters when modules are imported.
_servers: dict[tuple[object, ...], ForkServer] = {}


def fork_server(environment: Mapping[str, str], imports: Sequence[str]) -> ForkServer:
    """The one for programs with this environment and these modules: started when it is needed first, it stays.

    What differs between programs and is not read by imports, they get when they are forked.
    """
    relevant = {name: value for name, value in environment.items() if name.startswith(_AT_IMPORT)}
    if _OPENSSL_CONF in relevant:
        # Every host has a copy of its own.
        with contextlib.suppress(OSError):
            relevant[_OPENSSL_CONF] = Path(relevant[_OPENSSL_CONF]).read_text()
    key = (*sorted(relevant.items()), *imports)
    server = _servers.get(key)
    if server is None or server.process.poll() is not None:
        server = _servers[key] = ForkServer(environment, imports)
    return server


def end_servers() -> None:
    """End all of :func:`fork_server`, with their programs; the next that is asked for starts anew."""
    while _servers:
        _servers.popitem()[1].close()
