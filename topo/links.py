"""Cables with a smart NIC at the hosts' ends: rate, priorities, impairments, offload.

Without impairments a link is one veth pair, with them two and a wire (:mod:`topo.wire`) between::

    h1-eth0 <----------------------------------------> s1-eth1
    h1-eth0 <---> w-h1-eth0 | wire process | w-s1-eth1 <---> s1-eth1

With hosting=tap a host's interface is a NIC's (:mod:`topo.nic_process`), and the cable begins behind that::

    h1-eth0 | NIC process | n-h1-eth0 <--------------> s1-eth1

With hosting=ring a process beside the host's interface (:mod:`smtstack.ringnic.control`) gives its packets to a
guarded program.

The rate is applied where a frame is sent: at the host's end and at the switch's. Impairments come after it.
With impair=netem the kernel is in the wire's place (:mod:`topo.netem`); it has no seed, and records nothing.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from mininet.link import Intf, Link, TCIntf
from mininet.node import Host, Switch

from smtstack.errors import ConfigError
from smtstack.io import ethtool
from smtstack.io.namespaces import within
from smtstack.nicshare.state import TAP, NicState
from smtstack.ringnic.starter import ControlProcess
from smtstack.tapnic.process import NicOptions
from topo.commands import batch
from topo.devices import Device, End, answer_for_itself, make_cable, silence, unused_name
from topo.interpreter import host_environment
from topo.link_options import NAMES, OF_THE_LINK, LinkOptions, read, unknown
from topo.netem import Netem
from topo.nic_process import NicProcess
from topo.shaping import set_aside, shape
from topo.wire import Wire

#: Before the name of an interface: the end of its cable that the wire has.
_INNER = "w-"
#: Before the name of an interface: the end of its cable that the NIC has.
_PORT = "n-"
#: Frames that a port's queue holds: the ring behind it is short.
_PORT_QUEUE = 10_000
#: What Mininet's Link and Intf take beside the options.
_OF_MININET = ("port1", "port2", "intfName1", "intfName2", "addr1", "addr2", "params1", "params2", "intf", "cls1",
               "cls2", "fast", "ip", "mac", "ifconfig", "up")
_OF_AN_END = ("port", "moveIntfFn", "ip", "mac", "ifconfig", "up")


class SmartNicIntf(Intf):
    """An interface set up by ``ip``, whose refusals are errors; Mininet's ifconfig fails silently."""

    link: Any

    @property
    def options(self) -> LinkOptions:
        """What holds for the frames it sends."""
        ends: tuple[LinkOptions, LinkOptions] = self.link.ends
        return ends[self.link.intf1 is not self]

    @property
    def pid(self) -> int | None:
        """A process in its namespace; None: ours."""
        return namespace_pid(self.node)

    def configure(self, *lines: str) -> None:
        """``ip`` commands in the interface's namespace, in one go."""
        batch("ip", lines, where=self.node.name, pid=self.pid)

    def setIP(self, ipstr: str, prefixLen: int | None = None) -> None:
        """Replaces the address, which may have its prefix length with it."""
        self.ip, _slash, length = ipstr.partition("/")
        self.prefixLen = int(length or prefixLen or 8)
        self.configure(f"addr flush dev {self.name}", f"addr add {self.ip}/{self.prefixLen} dev {self.name}",
                       f"link set dev {self.name} up")

    def setMAC(self, macstr: str) -> None:
        """Sets the MAC address."""
        self.mac = macstr
        self.configure(f"link set dev {self.name} address {macstr}")

    def isUp(self, setUp: bool = False) -> bool:
        """Whether it is up; ``setUp`` brings it up."""
        if not setUp:
            return bool(super().isUp())
        self.configure(f"link set dev {self.name} up")
        return True

    def delete(self) -> None:
        """Removes it, and its peer; nothing happens if that is done already."""
        if self.link is not None:
            self.link.remove_end(self)
        self.node.delIntf(self)
        self.link = None


class SmtLink(Link):
    """A cable between two nodes. ``options`` and single ones by name; ``wire`` is the :class:`Wire` or None.

    ``ends``: what holds for the frames that either end sends; they differ where ``params1`` and ``params2`` do.
    """

    def __init__(self, node1: Any, node2: Any, options: LinkOptions | None = None, **params: Any) -> None:
        given = {name: params.pop(name) for name in NAMES if name in params}
        for name in params:
            if name not in _OF_MININET:
                raise unknown(name, _OF_MININET)
        self.options = (options or LinkOptions()).changed(given)
        if self.options.fabric_mbps is not None and isinstance(node1, Switch) and isinstance(node2, Switch):
            self.options = replace(self.options, rate_mbps=self.options.fabric_mbps)
        one, params["params1"] = self._options_of(node1, params.pop("params1", None), given)
        two, params["params2"] = self._options_of(node2, params.pop("params2", None), given)
        self.ends = (one, two)
        self._has_wire = one.has_wire or two.has_wire
        self._switched = not (isinstance(node1, Host) and isinstance(node2, Host))
        self.wire: Wire | None = None
        #: In its place, with impair=netem.
        self.netem: Netem | None = None
        #: NICs that own an end, by its interface and namespace.
        self.nics: dict[tuple[str, int | None], NicProcess] = {}
        #: Control processes of rings, likewise.
        self.rings: dict[tuple[str, int | None], ControlProcess] = {}
        self._states: list[NicState] = []
        self._made: list[Device] = []
        #: The ends that the wire has, on a link that has one.
        self._inner: tuple[str, ...] = ()
        userspace = [n.name for n in (node1, node2) if getattr(n, "datapath", "") == "user"]
        if self.options.tso == "on" and userspace:
            raise ConfigError(f"link option tso=on: {userspace[0]} is a switch in user space, which cannot cut "
                              "frames of 64 KB; use tso=off or --switch bridge")
        common = params.pop("intf", None)
        for name in ("cls1", "cls2"):
            params[name] = _interface_class(name, params.get(name) or common)
        # Not fast: Mininet would make them elsewhere, and remove what has their names there.
        params["fast"] = True
        try:
            super().__init__(node1, node2, **params)
            self._configure()
        except BaseException:
            self.stop()
            raise

    def _options_of(self, node: Any, own: dict[str, Any] | None,
                    given: dict[str, Any]) -> tuple[LinkOptions, dict[str, Any]]:
        """What holds at one end, and what Mininet is to get of its ``params1`` or ``params2``. As in Mininet, what
        was given for both ends comes first."""
        rest = dict(own or {})
        special = {name: rest.pop(name) for name in NAMES if name in rest}
        for name in rest:
            if name not in _OF_AN_END:
                raise unknown(name, _OF_AN_END)
        for name in OF_THE_LINK:
            if name in special:
                raise ConfigError(f"link option {name} is one of the whole link: give it to addLink, not in "
                                  "params1 or params2")
        common = read(given)
        options = replace(self.options, **{n: v for n, v in read(special).items() if n not in common})
        if options.speedup and options.rate_mbps is not None and isinstance(node, Switch):
            options = replace(options, rate_mbps=options.speedup)
        return options, rest

    def __str__(self) -> str:
        return f"{self.intf1}<->{self.intf2}"

    def makeIntfPair(self, name1: str, name2: str, addr1: str | None = None, addr2: str | None = None,
                     node1: Any = None, node2: Any = None, deleteIntfs: bool = True) -> None:
        """The veth pair, or the two pairs of a link with a wire, each end in its node's namespace."""
        where = f"link {node1.name}-{node2.name}"
        mtu = self.options.mtu
        hosts = (End(name1, namespace_pid(node1), addr1), End(name2, namespace_pid(node2), addr2))
        ends = [End(unused_name(_PORT, end.name)) if self._has_nic(node) else end
                for node, end in zip((node1, node2), hosts, strict=True)]
        if not self._has_wire:
            self._made += make_cable(ends[0], ends[1], mtu, where)
        else:
            for end in ends:
                inner = unused_name(_INNER, end.name)
                self._made += make_cable(End(inner), end, mtu, where)
                self._inner += (inner,)
                silence(inner)
        for host, port in zip(hosts, ends, strict=True):
            if port is not host:
                self._plug_in(host, port.name)
        for nic in self.nics.values():
            nic.wait()

    def _has_nic(self, node: Any) -> bool:
        # Not a host in our own namespace, as --nat's: what a NIC's guard does there would be the machine's affair.
        return self.options.hosting == "tap" and isinstance(node, Host) and bool(node.inNamespace)

    def _plug_in(self, end: End, port: str) -> None:
        """Start the NIC of a host's end, whose cable begins at ``port``."""
        silence(port)
        # With a queue before it, a full ring makes the sender wait, where the kernel can do that (Linux 6.16).
        batch("tc", [f"qdisc add dev {port} root pfifo limit {_PORT_QUEUE}"], where=end.name)
        mac = (end.address or f"02:{':'.join(f'{byte:02x}' for byte in os.urandom(5))}").replace(":", "")
        assert end.pid is not None
        self.nics[end.name, end.pid] = NicProcess(NicOptions(
            end.name, end.pid, port, mac, self.options.mtu, self.options.settings().queues or 1,
            self._super_frames()))

    def _super_frames(self) -> bool:
        """Whether whoever is at the ends takes segments that are still to be cut."""
        between_hosts = not self._has_wire and not self._switched
        return self.options.tso == "on" or (self.options.tso == "auto" and between_hosts)

    def _configure(self) -> None:
        plain = self._has_wire or self._switched
        for intf, options in zip((self.intf1, self.intf2), self.ends, strict=True):
            keep_apart(intf)
            if options.rate_mbps is not None:
                queues = intf.name
                if getattr(intf.node, "datapath", "") == "user":
                    aside = set_aside(intf.name, options.mtu)
                    self._made.append(aside)
                    queues = aside.name
                shape(queues, options.rate_mbps, options.queue(), options.mtu, intf.pid)
            if isinstance(intf.node, Host):
                # A NIC that owns the interface cuts by itself.
                has_nic = (intf.name, intf.pid) in self.nics
                if options.tso == "off" or (options.tso == "auto" and plain and not has_nic):
                    set_kernel_offload(intf.name, False, intf.pid)
                # Kept by the link, so that counters outlive the programs that made them.
                state = NicState.open(intf.name, pid=intf.pid, persistent=True)
                self._states.append(state)
                state.assign(*options.nic)
                if options.hosting == "ring" and intf.node.inNamespace:
                    self.rings[intf.name, intf.pid] = ControlProcess(intf.name, intf.pid, host_environment())
        for ring in self.rings.values():
            ring.wait()
        if self._has_wire:
            one, two = self.ends
            left, right = self._inner
            if self.options.impair == "netem":
                self.netem = Netem(left, right, one.rates(), two.rates(), one.max_queue_size, two.max_queue_size)
            else:
                self.wire = Wire.start(left, right, one.rates(), back=two.rates(), most=one.max_queue_size,
                                       most_back=two.max_queue_size, seed=self.options.seed)

    def nic_drops(self) -> int:
        """Frames that NICs which own an end have lost, since they were too slow."""
        return sum(e.counters["socket_dropped"] + e.counters["socket_send_drops"]
                   for state in self._states for e in state.endpoints() if e.profile == TAP)

    def record(self, path: Path) -> None:
        """Record what passes, on a link that has a wire."""
        if self.wire is None:
            raise ConfigError(f"link {self}: only a link with a wire records; use wire=yes")
        self.wire.record(path)

    def remove_end(self, intf: SmartNicIntf) -> None:
        """Remove one interface of the link, with its peer."""
        ring = self.rings.pop((intf.name, intf.pid), None)
        if ring is not None:
            ring.stop()
        nic = self.nics.pop((intf.name, intf.pid), None)
        if nic is not None:
            nic.stop()
        for device in self._made:
            if (device.name, device.pid) in ((intf.name, intf.pid), (nic and nic.port, None)):
                device.remove()

    def delete(self) -> None:
        """Remove the wire, the cables and the NICs' settings, as far as they are there."""
        if self.wire is not None:
            self.wire.stop()
        for state in self._states:
            state.remove()
        self._states = []
        for nic in self.nics.values():
            nic.stop()
        for ring in self.rings.values():
            ring.stop()
        self.nics, self.rings = {}, {}
        for device in self._made:
            device.remove()
        self._made = []
        for intf in (getattr(self, "intf1", None), getattr(self, "intf2", None)):
            if intf is not None and intf.link is not None:
                intf.node.delIntf(intf)
                intf.link = None


def keep_apart(intf: Any) -> None:
    """Where an end of a link is in our namespace, have the machine's own addresses stay out of it: at a switch the
    kernel is deaf and mute, and for a host (as ``--nat``'s) it answers for the address of this interface alone."""
    if intf.node.inNamespace:
        return
    if isinstance(intf.node, Switch):
        silence(intf.name)
    else:
        answer_for_itself(intf.name)


def _interface_class(name: str, given: Any) -> type[SmartNicIntf]:
    # TCIntf is what people name to have the options, and SmartNicIntf has them.
    if given in (None, Intf, TCIntf):
        return SmartNicIntf
    if isinstance(given, type) and issubclass(given, SmartNicIntf):
        return given
    raise ConfigError(f"link option {name} is {getattr(given, '__name__', given)}: the ends of a smartnic link "
                      "are SmartNicIntf, or a class made from it; leave it out")


def namespace_pid(node: Any) -> int | None:
    """A process in the node's network namespace; None where that is ours."""
    return node.pid if node.inNamespace else None


def set_kernel_offload(interface: str, on: bool, pid: int | None = None) -> None:
    """The kernel's transmit checksum and segmentation offload (ethtool -K tx, tso, gso), for TCP and UDP."""
    within(pid, lambda: ethtool.switch(interface, (ethtool.TX_CSUM, ethtool.TSO, ethtool.GSO), on))

