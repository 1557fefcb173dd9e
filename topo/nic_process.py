"""Starts and ends the NIC of a host's interface that is a process of its own (hosting ``tap``)::

    h1-eth0 (TAP, on the host) | NIC process | n-h1-eth0 <===> s1-eth1

:mod:`smtstack.tapnic.process` is the process. Its settings and counters are where those of every NIC are:
``smtnet nic h1-eth0``.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess

from smtstack.errors import ConfigError, SmtError, Unsupported
from smtstack.tapnic.process import NicOptions
from topo.interpreter import host_environment, host_python

#: Seconds a NIC gets to start on a loaded machine, and to end.
_PATIENCE_S = 20.0
_LONGEST = 1 << 16
_ERRORS: dict[str, type[SmtError]] = {"config": ConfigError, "unsupported": Unsupported}


class NicProcess:
    """A NIC that is starting, or runs. It ends with :meth:`stop`, or with the thread that started it."""

    def __init__(self, options: NicOptions) -> None:
        """Start it; :meth:`wait` until its interface is there."""
        self.interface = options.interface
        self.port = options.wire
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [host_python(), "-m", "smtstack.tapnic.process", str(theirs.fileno()), options.pack()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
                # Ctrl-C at the terminal is for Mininet's CLI, not for the NIC under it.
                start_new_session=True, env=host_environment())
        self._control.settimeout(_PATIENCE_S)

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self._process.pid

    def wait(self) -> None:
        """Until its interface is there, down. Raises what it could not start for; it is ended then."""
        try:
            answer = self._control.recv(_LONGEST)
        except OSError:
            answer = b""
        reply = json.loads(answer) if answer else {"error": f"its process {self._end()}"}
        if "error" in reply:
            self.stop()
            raise _ERRORS.get(reply.get("kind", ""), SmtError)(f"NIC of {self.interface}: {reply['error']}")

    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def _end(self) -> str:
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "does not answer"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def stop(self) -> None:
        """End it; its interface goes away. May be called twice."""
        self._control.close()
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
