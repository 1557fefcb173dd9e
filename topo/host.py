"""A Mininet host that runs programs of this project, and ends all of them when it goes."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from typing import Any

from mininet.node import Host

from smtstack.errors import ConfigError
from topo.commands import batch, die_with_parent
from topo.forked import Forked
from topo.interpreter import host_environment, host_python

#: Seconds a program gets to end by itself.
_PATIENCE_S = 3.0


class SmtHost(Host):
    """IPv6 is off, so nothing is on the wire that no program sent.

    ``session``: how sessions of smt begin with the programs that ``smt ...`` in mn starts here; empty: as
    ``smtnet`` does by default.
    """

    def __init__(self, name: str, session: str = "", **params: Any) -> None:
        self.session = session
        self._programs: list[subprocess.Popen[Any] | Forked] = []
        super().__init__(name, **params)
        if not self.inNamespace:
            return  # these would be the machine's settings
        # Before there is any interface, so that no router is ever asked for.
        self.cmd("for f in all default; do echo 1 > /proc/sys/net/ipv6/conf/$f/disable_ipv6; done 2>/dev/null; "
                 "ip link set dev lo up")

    def config(self, **params: Any) -> dict[str, Any]:
        """Set addresses and routes; Mininet's own also brings ``lo`` up once more by ifconfig."""
        results: dict[str, Any] = {}
        for method, name in (("setMAC", "mac"), ("setIP", "ip"), ("setDefaultRoute", "defaultRoute")):
            self.setParam(results, method, **{name: params.get(name)})
        return results

    def python(self, module: str, *args: str, **popen: Any) -> subprocess.Popen[Any]:
        """Start ``python -m module args`` on this host; ``popen`` as for :class:`subprocess.Popen`.

        The caller says where ``stdout`` and ``stderr`` go and reads pipes: one nobody reads stops the program
        when it is full. Ends with the host, and with this process.
        """
        if not {"stdout", "stderr"} <= popen.keys():
            raise ConfigError(f"{self.name}: python() needs stdout and stderr: a file, DEVNULL, or a pipe that "
                              "is read")
        popen.setdefault("stdin", subprocess.DEVNULL)
        popen.setdefault("env", host_environment())
        popen.setdefault("preexec_fn", die_with_parent)
        program: subprocess.Popen[Any] = self.popen([host_python(), "-m", module, *args], **popen)
        self.keep(program)
        return program

    def keep(self, program: subprocess.Popen[Any] | Forked) -> None:
        """See to it that a program on this host ends with it."""
        self._programs = [p for p in self._programs if p.poll() is None]
        self._programs.append(program)

    def set_neighbours(self, neighbours: dict[str, str]) -> None:
        """Fixed MAC addresses by IP address, so that nobody asks by ARP while something is measured."""
        interface = self.defaultIntf().name
        batch("ip", [f"neigh replace {ip} lladdr {mac} dev {interface} nud permanent"
                     for ip, mac in neighbours.items()], where=self.name, pid=self.pid)

    def end_programs(self) -> None:
        """End the programs that :meth:`keep` was given: SIGTERM, and SIGKILL where that is not enough."""
        running = [p for p in self._programs if p.poll() is None]
        self._programs = []
        for program in running:
            with contextlib.suppress(ProcessLookupError):
                program.send_signal(signal.SIGTERM)
        for program in running:
            try:
                program.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()

    def terminate(self) -> None:
        """End the host, after its programs have ended."""
        self.end_programs()
        super().terminate()
