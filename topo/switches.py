"""Switches: Open vSwitch in the kernel, Open vSwitch in user space, or a Linux bridge.

``--switch auto`` takes the first of these that works here. Without a controller they learn. So where a network has
several ways, all but a spanning tree of its switch-to-switch links are left unplugged (the interface is there, the
switch does not have it). With a controller every port is plugged in, and a switch that has no rules, or has lost
its controller, learns nothing: it does what its rules say.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from functools import cache
from typing import Any

from mininet.log import output
from mininet.node import Switch
from mininet.util import natural

from smtstack.errors import ConfigError, SmtError, Unsupported
from topo import ovs
from topo.commands import batch, run
from topo.devices import Device, check_free, check_name, firewalled, make_bridge, silence
from topo.links import keep_apart

#: Names of --switch, and what Mininet's classes call the datapath.
DATAPATHS = {"ovs": "kernel", "ovs-user": "user", "bridge": "bridge"}
KINDS = ("auto", *DATAPATHS)
#: Of all the versions that OVS speaks: the one whose groups a controller uses for fail-over.
OPENFLOW = "OpenFlow13"
_NO_OPENFLOW = "a controller needs Open vSwitch, and a bridge has no OpenFlow: use --switch auto or ovs-user"
#: Milliseconds between a switch's attempts to reach its controller; OVS takes no less.
_RETRY_MS = 1000


def choose(kind: str = "auto", controlled: bool = False) -> tuple[str, str]:
    """(one of :data:`DATAPATHS`, why). Raises :class:`Unsupported` for one this machine cannot do.

    Open vSwitch has to run: in a sandbox :class:`topo.ovs.PrivateOvs` does, else the machine's may. If
    ``controlled``, a controller needs it, and a bridge will not do.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown switch {kind!r}; there are {', '.join(KINDS)}")
    if kind == "bridge":
        if controlled:
            raise ConfigError(_NO_OPENFLOW)
        return kind, "as asked"
    if not ovs.is_running():
        why = "Open vSwitch does not run" if ovs.is_installed() else "Open vSwitch is not installed"
        if kind == "auto" and not controlled:
            return "bridge", why
        fix = "systemctl start openvswitch-switch" if ovs.is_installed() else "apt-get install openvswitch-switch"
        raise Unsupported(f"{why}, which a controller needs: {fix}" if controlled else
                          f"{why}: {fix}, or use --switch bridge")
    if kind == "ovs-user":
        return kind, "as asked"
    if ovs.has_kernel_datapath():
        return "ovs", "as asked" if kind == "ovs" else "the kernel has Open vSwitch's datapath"
    if kind == "ovs":
        raise Unsupported("this kernel lacks Open vSwitch's datapath (module openvswitch): use --switch ovs-user")
    return "ovs-user", "this kernel lacks Open vSwitch's datapath"


@cache
def _choice() -> str:
    kind, why = choose()
    output(f"*** Switches: {kind} ({why})\n")
    return kind


@cache
def _say_firewall() -> None:
    """In a sandbox there is none; the machine's is not ours to change."""
    if settings := firewalled():
        off = " ".join(f"{name}=0" for name in settings)
        output("*** Bridges: this machine's firewall judges what they switch: it may drop frames between hosts, "
               f"and a NAT does not work. Take --switch auto,kind=ovs-user, or: sudo sysctl -w {off}\n")


class AutoSwitch(Switch):
    """``kind`` is one of :data:`KINDS`. It learns, unless it is started with controllers."""

    def __init__(self, name: str, kind: str = "auto", **params: Any) -> None:
        self.kind = _choice() if kind == "auto" else choose(kind)[0]
        self.datapath = DATAPATHS[self.kind]
        self.controlled = False
        #: What we have made: a bridge; or in Open vSwitch's database whatever has this mark.
        self._bridge: Device | None = None
        self._mark = ""
        if params.setdefault("inNamespace", False):
            raise ConfigError(f"switch {name}: --switch auto switches in the machine's namespace: leave "
                              "--innamespace (inNamespace=True) out")
        check_name(name, f"switch {name}")
        super().__init__(name, **params)

    def start(self, controllers: Iterable[Any] = ()) -> None:
        """Make the switch. Without controllers, plug in the ports that are in the spanning tree; else all."""
        targets = [f"{c.protocol}:{c.IP()}:{c.port}" for c in controllers]
        self.controlled = bool(targets)
        if self.controlled and self.kind == "bridge":
            raise ConfigError(f"{self.name}: {_NO_OPENFLOW}")
        unplugged = set() if self.controlled else redundant(self)
        ends = [i for i in self.intfList() if i.name != "lo"]
        for intf in ends:
            # One that is nobody's end is the machine's, which somebody lent to the switch.
            if intf.link is not None:
                keep_apart(intf)
        ports = [i for i in ends if i not in unplugged]
        if self.kind == "bridge":
            self._start_bridge(ports)
        else:
            self._start_ovs(ports, targets)

    def _start_bridge(self, ports: list[Any]) -> None:
        _say_firewall()
        # No forward delay: nothing could loop. No multicast snooping: nobody sends joins.
        self._bridge = make_bridge(self.name, "stp_state 0 forward_delay 0 mcast_snooping 0",
                                   f"switch {self.name}")
        silence(self.name)
        batch("ip", [*(f"link set dev {p.name} master {self.name}" for p in ports),
                     f"link set dev {self.name} addrgenmode none up"], where=self.name)

    def _start_ovs(self, ports: list[Any], targets: list[str]) -> None:
        # Open vSwitch takes such a one for its own, or fails without a word.
        check_free(self.name, f"switch {self.name}")
        self._mark = secrets.token_hex(8)
        mark = f"external-ids:{ovs.MARK}={self._mark}"
        command = ["add-br", self.name, "--", "set", "bridge", self.name, mark,
                   f"other-config:datapath-id={self.dpid}"]
        # secure: what the controller has set stays when it is gone, and nothing is learned.
        command += ([f"protocols={OPENFLOW}", "fail_mode=secure", "other-config:disable-in-band=true"] if targets
                    else ["fail_mode=standalone"])
        if self.kind == "ovs-user":
            command.append("datapath_type=netdev")
        for number, port in enumerate(ports):
            # linux-noop: or OVS removes the rates and priorities of the link (topo.shaping).
            command += ["--", "add-port", self.name, port.name,
                        "--", "set", "interface", port.name, f"ofport_request={self.ports[port]}",
                        "--", "set", "port", port.name, f"qos=@qos{number}",
                        "--", f"--id=@qos{number}", "create", "qos", "type=linux-noop", mark]
        ids = [f"@controller{n}" for n in range(len(targets))]
        for name, target in zip(ids, targets, strict=True):
            # A controller on this machine that is gone has closed its connection: no need to ask whether it lives.
            command += ["--", f"--id={name}", "create", "controller", f'target="{target}"',
                        f"max_backoff={_RETRY_MS}", "inactivity_probe=0", "connection_mode=out-of-band"]
        if targets:
            command += ["--", "set", "bridge", self.name, f"controller=[{','.join(ids)}]"]
        ovs.vsctl(*command, switch=f"switch {self.name}")
        # Its own port on the machine.
        silence(self.name)

    def connected(self) -> bool:
        """Whether one of its controllers has it, if it has controllers; for Mininet's ``waitConnected``."""
        if not self.controlled:
            return True
        ids = ovs.vsctl("get", "bridge", self.name, "controller", switch=self.name).strip("[]\n").split(", ")
        return any("true" in ovs.vsctl("get", "controller", i, "is_connected", switch=self.name) for i in ids)

    def stop(self, deleteIntfs: bool = True) -> None:
        """Remove the switch, if it was made, and (``deleteIntfs``) the ends that its links still have."""
        if self._bridge is not None:
            self._bridge.remove()
            self._bridge = None
        if self._mark:
            mark, self._mark = self._mark, ""
            ovs.remove(mark, self.name)
        for intf in self.intfList() if deleteIntfs else []:
            if intf.link is not None:
                intf.delete()

    def dpctl(self, *arguments: str) -> str:
        """``ovs-ofctl``, for Mininet's ``dpctl`` command."""
        if self.kind == "bridge":
            return f"{self.name} is a Linux bridge: no OpenFlow\n"
        version = ["-O", OPENFLOW] if self.controlled else []
        try:
            return run(["ovs-ofctl", *version, arguments[0], self.name, *arguments[1:]], where=self.name)
        except SmtError as e:
            return f"{e}\n"


def port_names(nodes: Iterable[Any]) -> set[str]:
    """The interfaces of these switches."""
    return {intf.name for switch in nodes for intf in switch.intfList()} - {"lo"}


def redundant(switch: Switch) -> set[Any]:
    """The interfaces of ``switch`` on links outside the spanning tree. Every switch finds the same tree."""
    edges: dict[tuple[str, str, int], tuple[Any, Any]] = {}
    known = {switch.name: switch}
    waiting = [switch]
    while waiting:
        here = waiting.pop()
        for intf in here.intfList():
            link = intf.link
            if link is None:
                continue
            other = link.intf2 if link.intf1 is intf else link.intf1
            if isinstance(other.node, Switch):
                ends = sorted((intf, other), key=lambda i: natural(i.name))
                edges[ends[0].node.name, ends[1].node.name, ends[0].node.ports[ends[0]]] = (ends[0], ends[1])
                if other.node.name not in known:
                    known[other.node.name] = other.node
                    waiting.append(other.node)
    tree = spanning_tree(edges)
    return {i for edge, ends in edges.items() if edge not in tree for i in ends if i.node is switch}


def spanning_tree(edges: Iterable[tuple[str, str, int]]) -> set[tuple[str, str, int]]:
    """A shortest-path tree from the node with the lowest name (h2 before h10), per connected part.

    An edge is (one node, another, a number that tells parallel ones apart).
    """
    neighbours: dict[str, list[tuple[str, tuple[str, str, int]]]] = {}
    for edge in sorted(edges, key=lambda e: (natural(e[0]), natural(e[1]), e[2])):
        neighbours.setdefault(edge[0], []).append((edge[1], edge))
        neighbours.setdefault(edge[1], []).append((edge[0], edge))
    tree: set[tuple[str, str, int]] = set()
    seen: set[str] = set()
    for root in sorted(neighbours, key=natural):
        if root in seen:
            continue
        seen.add(root)
        row = [root]
        while row:
            below = []
            for node in row:
                for other, edge in neighbours[node]:
                    if other not in seen:
                        seen.add(other)
                        tree.add(edge)
                        below.append(other)
            row = below
    return tree
