"""Starts and ends the control process of an interface (:mod:`smtstack.ringnic.control`)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from smtstack.errors import SmtError, Unsupported
from smtstack.ringnic import messages

#: Seconds it gets to start on a loaded machine, and to end.
_PATIENCE_S = 20.0


class ControlProcess:
    """One that is starting, or runs. It ends with :meth:`stop`, or with this process.

    ``pid``: a process in whose network namespace the interface is; 0: ours. ``environment``: its variables; None:
    ours.
    """

    def __init__(self, interface: str, pid: int = 0, environment: Mapping[str, str] | None = None) -> None:
        self.interface = interface
        self._starter, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "smtstack.ringnic.control", str(theirs.fileno()), interface, str(pid)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
                # Ctrl-C at the terminal is for the program, not for the host under it.
                start_new_session=True, env=environment or os.environ)
        self._starter.settimeout(_PATIENCE_S)

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self._process.pid

    def pids(self) -> list[int]:
        """Numbers of it and its monitors."""
        with suppress(OSError):
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
            return [self.pid, *map(int, children.split())]
        return [self.pid]

    def wait(self) -> None:
        """Until it can be asked. Raises what it could not start for; it is ended then."""
        try:
            answer = self._starter.recv(messages.LONGEST)
        except OSError:
            answer = b""
        try:
            if not answer:
                raise Unsupported(f"the control process of {self.interface}'s ring did not start")
            messages.check(json.loads(answer))
        except SmtError:
            self.stop()
            raise

    def stop(self) -> None:
        """End it, and whatever it gave out goes away. May be called twice."""
        self._starter.close()
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
