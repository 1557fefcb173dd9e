"""Starts and ends the NIC of a host's interface that is a process of its own (hosting ``tap``)::

    h1-eth0 (TAP, on the host) | NIC process | n-h1-eth0 <===> s1-eth1

:mod:`smtstack.tapnic.process` is the process. Its settings and counters are where those of every NIC are:
``smtnet nic h1-eth0``.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from typing import Final

from smtstack.errors import ConfigError, SmtError, Unsupported
from smtstack.tapnic.process import NicOptions
from topo.forked import fork_server
from topo.interpreter import host_environment

_MODULE: Final = "smtstack.tapnic.process"
#: Seconds a NIC gets to start on a loaded machine, and to end.
_PATIENCE_S = 20.0
_ERRORS: dict[str, type[SmtError]] = {"config": ConfigError, "unsupported": Unsupported}


class NicProcess:
    """A NIC that is starting, or runs. It ends with :meth:`stop`, or with the process that started it."""

    def __init__(self, options: NicOptions) -> None:
        """Start it; :meth:`wait` until its interface is there."""
        self.interface = options.interface
        self.port = options.wire
        environment = host_environment()
        with open(2, "w", closefd=False) as errors:
            # Forked, since there is one for each host; in our namespaces, where the cable's end is.
            self._process = fork_server(environment, [_MODULE]).start(os.getpid(), _MODULE, [options.pack()],
                                                                     environment, errors)

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self._process.pid

    def wait(self) -> None:
        """Until its interface is there, down. Raises what it could not start for; it is ended then."""
        assert self._process.stdout is not None
        answer = ""
        if select.select([self._process.stdout], [], [], _PATIENCE_S)[0]:
            answer = self._process.stdout.readline()
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
        try:
            # With the end of its stdin it ends.
            self._process.communicate(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
