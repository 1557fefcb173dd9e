"""Cables with a smart NIC at the hosts' ends: rate, priorities, impairments, offload.

Without impairments a link is one veth pair, with them two and a wire (:mod:`topo.wire`) between::

    h1-eth0 <----------------------------------------> s1-eth1
    h1-eth0 <---> w-h1-eth0 | wire process | w-s1-eth1 <---> s1-eth1

The rate is applied where a frame is sent: at the host's end and at the switch's. Impairments come after it.
Netem is not used, even where the kernel has it: it has no seed before Linux 6.6, and records nothing.
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from mininet.link import Intf, Link
from mininet.node import Host, Switch

from smtstack.errors import ConfigError, Unsupported
from smtstack.io.namespaces import within
from smtstack.io.nic_settings import Settings, parse_share
from smtstack.io.nic_state import NicState
from smtstack.nic.impairments import ImpairmentRates
from topo.commands import batch
from topo.devices import Device, End, answer_for_itself, make_cable, silence, unused_name
from topo.shaping import check_rate, set_aside, shape
from topo.wire import Wire

# Linux <linux/sockios.h>, <linux/ethtool.h>.
_SIOCETHTOOL = 0x8946
_STXCSUM, _STSO, _SGSO = 0x17, 0x1F, 0x24
_CHOICES = {"wire": ("auto", "yes", "no"), "tso": ("auto", "on", "off")}
_SHARES = ("loss", "duplicate", "reorder", "corrupt")
#: Bytes. The least IPv4 may be given, and the largest frame Linux lets a veth have.
_LEAST_MTU, _MOST_MTU = 576, 9000
#: Before the name of an interface: the end of its cable that the wire has.
_INNER = "w-"


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """What a link is like, the same both ways. ``mn --link smartnic,rate_mbps=100,loss=1%`` sets these too."""

    rate_mbps: float | None = None
    """Megabits per second on the cable, 24 bytes a frame included; None: as fast as the machine."""
    fabric_mbps: float | None = None
    """The rate of links between switches; None: as all others. A lower one moves the bottleneck there."""
    buffer_bytes: int = 100_000
    """Of each of the eight priorities, at either end; only with a rate."""
    mtu: int = 1500
    delay_us: float = 0.0
    """One way."""
    jitter_us: float = 0.0
    """More delay, uniform from 0: frames overtake each other."""
    loss: float = 0.0
    """Share of frames, as are the next three; 0.01 or "1%"."""
    duplicate: float = 0.0
    reorder: float = 0.0
    """Frames held back by 0.1 ms."""
    corrupt: float = 0.0
    """One bit is flipped."""
    seed: int = 1
    """Of the impairments."""
    wire: str = "auto"
    """``yes``: a programmable wire on the path, ``auto``: if there are impairments."""
    tso: str = "auto"
    """The kernel's checksum and segmentation offload, for TCP and TLS: ``on``, ``off``, or ``auto``: off as soon
    as there is a switch or a wire, since neither a wire nor a user-space switch can finish half-made frames."""
    nic: tuple[str, ...] = ()
    """Settings of the hosts' smart NICs, as ``smtnet nic --set`` takes them: ``("tso=off", "max-contexts=4")``."""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"link option {name} is {getattr(self, name)!r}; one of {', '.join(choices)}")
        for rate in (self.rate_mbps, self.fabric_mbps):
            if rate is not None:
                check_rate(rate)
        if not _LEAST_MTU <= self.mtu <= _MOST_MTU:
            raise ConfigError(f"link option mtu is {self.mtu}; from {_LEAST_MTU} to {_MOST_MTU}")
        if self.buffer_bytes < self.mtu + 14:
            raise ConfigError(f"link option buffer_bytes is {self.buffer_bytes}; a frame of {self.mtu + 14} "
                              "must fit")
        if self.impaired and self.wire == "no":
            raise ConfigError("link option wire=no: delay, loss and the like need the wire; use wire=auto")
        if self.tso == "on" and self.has_wire:
            raise ConfigError("link option tso=on: a wire cannot cut frames of 64 KB; use tso=off")
        self.settings()

    @property
    def impaired(self) -> bool:
        """Whether frames are delayed, lost or changed."""
        return self.rates() != ImpairmentRates()

    @property
    def has_wire(self) -> bool:
        """Whether a programmable wire is on the path."""
        return self.wire == "yes" or (self.impaired and self.wire == "auto")

    def rates(self) -> ImpairmentRates:
        """What the wire is to do to frames."""
        return ImpairmentRates(drop=self.loss, duplicate=self.duplicate, reorder=self.reorder,
                               corrupt=self.corrupt, delay_ns=round(self.delay_us * 1000),
                               jitter_ns=round(self.jitter_us * 1000))

    def settings(self) -> Settings:
        """What is set at the hosts' smart NICs."""
        settings = Settings()
        for text in self.nic:
            settings = settings.assign(text)
        return settings

    def changed(self, given: dict[str, Any]) -> LinkOptions:
        """These with others in their place; text is read as mn gives it: ``1%``, ``tso:off+max-contexts:4``."""
        return replace(self, **{name: _value(name, value) for name, value in given.items()})


NAMES = tuple(f.name for f in fields(LinkOptions))
_KINDS = {f.name: type(f.default) for f in fields(LinkOptions)}


def _value(name: str, value: Any) -> Any:
    if name not in NAMES:
        raise ConfigError(f"a link has no option {name!r}; there are {', '.join(NAMES)}")
    if name == "nic" and isinstance(value, str):
        return tuple(text.replace(":", "=", 1) for text in value.split("+"))
    if name in _SHARES:
        return parse_share(name, str(value))
    if name in _CHOICES or name == "nic":
        return value
    if name in ("rate_mbps", "fabric_mbps") and value in (None, "none"):
        return None
    try:
        return int(value) if _KINDS[name] is int else float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"link option {name} is {value!r}; a number") from None


class SmartNicIntf(Intf):
    """An interface set up by ``ip``, whose refusals are errors; Mininet's ifconfig fails silently."""

    link: Any

    @property
    def options(self) -> LinkOptions:
        """Of the link it is an end of."""
        options: LinkOptions = self.link.options
        return options

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
    """A cable between two nodes. ``options`` and single ones by name; ``wire`` is the :class:`Wire` or None."""

    def __init__(self, node1: Any, node2: Any, options: LinkOptions | None = None, **params: Any) -> None:
        given = {name: params.pop(name) for name in NAMES if name in params}
        self.options = (options or LinkOptions()).changed(given)
        if self.options.fabric_mbps is not None and isinstance(node1, Switch) and isinstance(node2, Switch):
            self.options = replace(self.options, rate_mbps=self.options.fabric_mbps)
        self.wire: Wire | None = None
        self._states: list[NicState] = []
        self._made: list[Device] = []
        #: The ends that the wire has, on a link that has one.
        self._inner: tuple[str, ...] = ()
        userspace = [n.name for n in (node1, node2) if getattr(n, "datapath", "") == "user"]
        if self.options.tso == "on" and userspace:
            raise ConfigError(f"link option tso=on: {userspace[0]} is a switch in user space, which cannot cut "
                              "frames of 64 KB; use tso=off or --switch bridge")
        # Not fast: Mininet would make them elsewhere, and remove what has their names there.
        params.update(cls1=SmartNicIntf, cls2=SmartNicIntf, fast=True)
        try:
            super().__init__(node1, node2, **params)
            self._configure()
        except BaseException:
            self.stop()
            raise

    def __str__(self) -> str:
        return f"{self.intf1}<->{self.intf2}"

    def makeIntfPair(self, name1: str, name2: str, addr1: str | None = None, addr2: str | None = None,
                     node1: Any = None, node2: Any = None, deleteIntfs: bool = True) -> None:
        """The veth pair, or the two pairs of a link with a wire, each end in its node's namespace."""
        where = f"link {node1.name}-{node2.name}"
        mtu = self.options.mtu
        ends = (End(name1, namespace_pid(node1), addr1), End(name2, namespace_pid(node2), addr2))
        if not self.options.has_wire:
            self._made += make_cable(*ends, mtu, where)
            return
        for end in ends:
            inner = unused_name(_INNER, end.name)
            self._made += make_cable(End(inner), end, mtu, where)
            self._inner += (inner,)
            silence(inner)

    def _configure(self) -> None:
        options = self.options
        ends = (self.intf1, self.intf2)
        plain = options.has_wire or not all(isinstance(i.node, Host) for i in ends)
        for intf in ends:
            keep_apart(intf)
            if options.rate_mbps is not None:
                queues = intf.name
                if getattr(intf.node, "datapath", "") == "user":
                    aside = set_aside(intf.name, options.mtu)
                    self._made.append(aside)
                    queues = aside.name
                shape(queues, options.rate_mbps, options.buffer_bytes, options.mtu, intf.pid)
            if isinstance(intf.node, Host):
                if options.tso == "off" or (options.tso == "auto" and plain):
                    set_kernel_offload(intf.name, False, intf.pid)
                # Kept by the link, so that counters outlive the programs that made them.
                state = NicState.open(intf.name, pid=intf.pid, persistent=True)
                self._states.append(state)
                state.assign(*options.nic)
        if options.has_wire:
            self.wire = Wire.start(self._inner[0], self._inner[1], options.rates(), seed=options.seed)

    def record(self, path: Path) -> None:
        """Record what passes, on a link that has a wire."""
        if self.wire is None:
            raise ConfigError(f"link {self}: only a link with a wire records; use wire=yes")
        self.wire.record(path)

    def remove_end(self, intf: SmartNicIntf) -> None:
        """Remove one interface of the link, with its peer."""
        for device in self._made:
            if (device.name, device.pid) == (intf.name, intf.pid):
                device.remove()

    def delete(self) -> None:
        """Remove the wire, the cables and the NICs' settings, as far as they are there."""
        if self.wire is not None:
            self.wire.stop()
        for state in self._states:
            state.remove()
        self._states = []
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


def namespace_pid(node: Any) -> int | None:
    """A process in the node's network namespace; None where that is ours."""
    return node.pid if node.inNamespace else None


def set_kernel_offload(interface: str, on: bool, pid: int | None = None) -> None:
    """The kernel's transmit checksum and segmentation offload (ethtool -K tx, tso, gso), for TCP and UDP."""
    def change() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            for command in (_STXCSUM, _STSO, _SGSO):
                value = ctypes.create_string_buffer(struct.pack("II", command, on))
                request = struct.pack("16sP16x", interface.encode(), ctypes.addressof(value))
                try:
                    fcntl.ioctl(s, _SIOCETHTOOL, request)
                except OSError as e:
                    raise Unsupported(f"{interface}: the kernel refuses to switch checksum and segmentation "
                                      f"offload {'on' if on else 'off'}: {e.strerror}") from None

    within(pid, change)

