"""A topology over several machines, by Mininet's cluster edition (``mininet.examples.cluster``).

Hosts and switches are on the machines, over SSH; a link between two machines is an Ethernet tunnel of SSH's. A
machine needs an SSH server that lets root in by key and permits tunnels (``PermitTunnel yes``), tun, Mininet's
``mnexec``, and this smtnet at the same path. For a tunnel root of one machine logs in at the other: with a key of
its own, or by the agent that is forwarded. Switches are Linux bridges, so topologies have no loops.

What crosses a tunnel shares a TCP connection: this is for more hosts than one machine can be, and no measure of
time.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import subprocess
import tarfile
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mininet.log import lg
from mininet.net import Mininet
from mininet.node import Node, Switch

from smtstack.errors import ConfigError, SmtError, Unsupported
from topo.topologies import SmtTopo

with warnings.catch_warnings():
    # It takes a version comparison from distutils, which Python 3.12 has no more: setuptools brings it there.
    warnings.simplefilter("ignore", DeprecationWarning)
    from mininet.examples.cluster import MininetCluster, Placer, RemoteLink, RemoteMixin

#: Who logs in: only root may make namespaces, and needs no sudo.
USER = "root"
#: Seconds until a machine must have answered.
_CONNECT_S = 10
_SSH = ("ssh", "-q", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_S}", "-o", "ForwardAgent=yes")
_SUDO = ("sudo", "-E")


class _Remote(RemoteMixin):
    """A node on another machine, for root: Mininet's own goes by sudo at both ends."""

    sshbase = [*_SSH, "-tt"]
    _sshcmd: list[str] = []

    @property
    def sshcmd(self) -> list[str]:
        """How its machine is reached."""
        return self._sshcmd

    @sshcmd.setter
    def sshcmd(self, words: list[str]) -> None:
        self._sshcmd = words[words.index("ssh"):] if "ssh" in words else words

    def rpopen(self, *cmd: Any, **opts: Any) -> Any:
        """Mininet's, which forgets that Python 3 has bytes."""
        return super().rpopen(*cmd, **{"encoding": "utf-8", **opts})

    def _popen(self, cmd: Any, sudo: bool = True, tt: bool = True, **params: Any) -> Any:
        del sudo
        return super()._popen(cmd, sudo=False, tt=tt, **params)


class ClusterHost(_Remote, Node):
    """A host on one of the machines."""

    def start(self, *words: str) -> subprocess.Popen[str]:
        """A program on this host. The first line that comes back is its number there, for :meth:`end`; then
        what it prints."""
        script = f"echo $$; exec {shlex.join(words)}"
        program: subprocess.Popen[str] = self.popen(["sh", "-c", shlex.quote(script)], stdin=subprocess.DEVNULL,
                                                    stderr=subprocess.STDOUT, encoding="utf-8")
        return program

    def end(self, pid: int) -> None:
        """Have a program of this host end in order."""
        self.cmd("kill", "-TERM", str(pid))


class ClusterBridge(_Remote, Switch):
    """A Linux bridge on one of the machines."""

    def start(self, _controllers: Any) -> None:
        """Make it, with the interfaces that it has by now."""
        self.rcmd(["ip", "link", "add", "name", self.name, "type", "bridge"])
        for name in self.intfNames():
            if name != "lo":
                self.rcmd(["ip", "link", "set", "dev", name, "master", self.name, "up"])
        self.rcmd(["ip", "link", "set", "dev", self.name, "up"])

    def stop(self, deleteIntfs: bool = True) -> None:
        """Remove it."""
        self.rcmd(["ip", "link", "del", "dev", self.name])
        super().stop(deleteIntfs)


class Spread(Placer):
    """Switches in turn over the machines; hosts at their switch where every machine has one, else in turn, too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        hosts, switches = list(self.hosts), list(self.switches)
        self._place = {name: self.servers[number % len(self.servers)] for names in (switches, hosts)
                       for number, name in enumerate(names)}
        if len(switches) >= len(self.servers):
            beside = {end: other for link in self.links for end, other in (link, link[::-1]) if other in switches}
            self._place |= {host: self._place[beside[host]] for host in hosts}

    def place(self, node: str) -> str:
        """The machine of a node."""
        return self._place[node]


class ClusterNet(MininetCluster):
    """A network of hosts on several machines; ``flows`` as the topology has them."""

    hosts: list[ClusterHost]

    def __init__(self, topo: SmtTopo, machines: Sequence[str]) -> None:
        # Mininet would change limits and sysctls of this machine.
        Mininet.inited = True
        lg.setLogLevel("warning")
        self.machines = list(machines)
        # All that is done on a machine goes by one connection, as far as its SSH server lets it.
        self._sockets = tempfile.mkdtemp(prefix="smtnet-ssh-")
        common = {"controlPath": f"{self._sockets}/%C"}
        with _home(self._sockets):
            super().__init__(topo=topo, host=partial(ClusterHost, **common), link=RemoteLink, controller=None,
                             switch=partial(ClusterBridge, **common), servers=self.machines, user=USER,
                             placement=Spread, precheck=False, build=False, waitConnected=False)
        self.flows: list[tuple[ClusterHost, ClusterHost]] = []

    def start(self) -> None:
        """Make it all."""
        super().start()
        self.flows = [(self[client], self[server]) for client, server in self.topo.flows]

    def stop(self) -> None:
        """Remove it all."""
        super().stop()
        shutil.rmtree(self._sockets, ignore_errors=True)

    def on_machine(self, machine: str, *words: str, data: bytes = b"") -> bytes:
        """What a command says on a machine, not in a host of it. Raises :class:`SmtError`."""
        return _call(machine, words, data)

    def put(self, folder: Path) -> None:
        """A folder, at the same path of every machine, for root alone."""
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as archive:
            archive.add(folder, arcname=".")
        where = shlex.quote(str(folder))
        for machine in self.machines:
            self.on_machine(machine, f"umask 077 && mkdir -p {where} && tar -C {where} -xf -",
                            data=data.getvalue())

    def remove(self, folder: Path) -> None:
        """What :meth:`put` put there."""
        for machine in self.machines:
            self.on_machine(machine, "rm", "-rf", shlex.quote(str(folder)))


@contextlib.contextmanager
def _home(folder: str) -> Iterator[None]:
    """Another home, where Mininet would leave a folder in ours."""
    before = os.environ.get("HOME")
    os.environ["HOME"] = folder
    try:
        yield
    finally:
        del os.environ["HOME"]
        if before is not None:
            os.environ["HOME"] = before


def _call(machine: str, words: Sequence[str], data: bytes = b"") -> bytes:
    try:
        done = subprocess.run([*_SSH, f"{USER}@{machine}", *words], input=data, capture_output=True, check=False,
                              timeout=60)
    except subprocess.TimeoutExpired:
        raise SmtError(f"{machine}: {' '.join(words)} did not end within a minute") from None
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split()) or f"exit code {done.returncode}"
        raise SmtError(f"{machine}: ssh {' '.join(words)}: {said}")
    return done.stdout


def check(topo: SmtTopo, machines: Sequence[str]) -> None:
    """Raises :class:`ConfigError` for a topology or machines that cannot be, :class:`Unsupported` for one that
    does not let us in or lacks something."""
    if shutil.which("ssh") is None:
        raise Unsupported("ssh is not installed: apt-get install openssh-client")
    if len(set(machines)) < len(machines) or len(machines) < 2:
        raise ConfigError("a cluster is two machines or more, each named once")
    if len(topo.links()) != len(topo.nodes()) - 1:
        raise ConfigError("this topology has loops: over several machines switches are plain bridges, so take one "
                          "without, as star,4 or fanout,2,2")
    for machine in machines:
        try:
            _call(machine, ("command -v mnexec ip tar && test -c /dev/net/tun",))
        except SmtError as e:
            raise Unsupported(f"{e}: {machine} is to let root in by key (ssh {USER}@{machine} true), and to have "
                              "mnexec, ip, tar and /dev/net/tun") from None


@contextlib.contextmanager
def open_cluster(topo: SmtTopo, machines: Sequence[str]) -> Iterator[ClusterNet]:
    """A network that runs, removed afterwards. Raises as :func:`check`, and :class:`SmtError`."""
    check(topo, machines)
    net = ClusterNet(topo, machines)
    try:
        try:
            net.start()
        except Exception as e:
            # Mininet raises nothing more telling; what it says has lines and tuples.
            said = " ".join(str(part).strip() for part in e.args)
            raise SmtError(f"the network over {', '.join(machines)} cannot be made: {said}") from None
        yield net
    finally:
        net.stop()
