"""The network as the planner sees it: switches, hosts at them, links between them. A file of it is JSON.

It comes from a topology (:func:`fabric_of_topo`), from a running network, or from a file.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from smtstack.errors import ConfigError
from smtstack.wire.ethernet import format_mac, parse_mac
from topo.topologies import SmtTopo

#: Mininet gives hosts the addresses of this network in the order of their names.
_FIRST_IP = ipaddress.IPv4Address("10.0.0.0")
#: OpenFlow 1.3: ports from here on have meanings of their own (OFPP_MAX).
_MAX_PORT = 0xFFFF_FF00


@dataclass(frozen=True, slots=True)
class Switch:
    """``dpid`` is the datapath id by which OpenFlow knows it."""

    name: str
    dpid: int


@dataclass(frozen=True, slots=True)
class Host:
    """A host and the switch port it is at.

    ``interface`` is the switch's, "" if not known; ``rate_mbps`` and ``buffer_bytes`` (each of eight priorities)
    are its sending side's, None where it has no limit.
    """

    name: str
    mac: str
    ip: str
    switch: str
    port: int
    interface: str = ""
    rate_mbps: float | None = None
    buffer_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """A cable between two switches, ``a`` and ``b``, from port to port. Interfaces and limits as in :class:`Host`,
    the same both ways."""

    a: str
    a_port: int
    b: str
    b_port: int
    a_interface: str = ""
    b_interface: str = ""
    rate_mbps: float | None = None
    buffer_bytes: int | None = None

    def __str__(self) -> str:
        return f"{self.a}:{self.a_port}-{self.b}:{self.b_port}"


@dataclass(frozen=True, slots=True, order=True)
class Port:
    """A switch's port to another switch, and where its cable ends."""

    number: int
    neighbour: str
    neighbour_port: int


@dataclass(frozen=True)
class Fabric:
    """All of it. Raises :class:`ConfigError`, naming what is wrong, for what cannot be."""

    switches: tuple[Switch, ...]
    hosts: tuple[Host, ...]
    links: tuple[Link, ...]

    def __post_init__(self) -> None:
        _unique("two nodes have the name", [s.name for s in self.switches] + [h.name for h in self.hosts])
        _unique("two switches have the dpid", [s.dpid for s in self.switches])
        _unique("two hosts have the IP address", [h.ip for h in self.hosts])
        _unique("two hosts have the MAC address", [h.mac for h in self.hosts])
        _unique("two hosts have MAC addresses that differ in their second byte only, which names paths:",
                [format_mac(host_key(h.mac)) for h in self.hosts])
        for switch in self.switches:
            if not 0 < switch.dpid < 1 << 64:
                raise ConfigError(f"switch {switch.name} has the dpid {switch.dpid}; 1 to 2^64-1")
        for host in self.hosts:
            if parse_mac(host.mac)[0] & 1 or host.mac != host.mac.lower():
                raise ConfigError(f"host {host.name} has the MAC address {host.mac}: one of a single host, in "
                                  "lower case, is needed")
            _check_ip(host)
            if host.switch not in self._switch:
                raise ConfigError(f"host {host.name} is at switch {host.switch}, which is not there")
        for link in self.links:
            for end in (link.a, link.b):
                if end not in self._switch:
                    raise ConfigError(f"link {link} ends at {end}, which is no switch here")
            if link.a == link.b:
                raise ConfigError(f"link {link} leads from a switch to itself")
        ports = [(h.switch, h.port) for h in self.hosts]
        ports += [end for k in self.links for end in ((k.a, k.a_port), (k.b, k.b_port))]
        for name, port in ports:
            if not 0 < port < _MAX_PORT:
                raise ConfigError(f"switch {name} has a port {port}; OpenFlow counts them from 1")
        _unique("two cables are in the port", [f"{port} of switch {name}" for name, port in ports])
        rates = [(h.name, h.rate_mbps) for h in self.hosts] + [(str(k), k.rate_mbps) for k in self.links]
        for where, rate in rates:
            if rate is not None and not 0 < rate < float("inf"):
                raise ConfigError(f"the link {where} has a rate of {rate} Mbit/s; more than 0, or none")

    @cached_property
    def _switch(self) -> dict[str, Switch]:
        return {s.name: s for s in self.switches}

    @cached_property
    def _host(self) -> dict[str, Host]:
        return {h.name: h for h in self.hosts}

    @cached_property
    def _ports(self) -> dict[str, tuple[Port, ...]]:
        found: dict[str, list[Port]] = {s.name: [] for s in self.switches}
        for k in self.links:
            found[k.a].append(Port(k.a_port, k.b, k.b_port))
            found[k.b].append(Port(k.b_port, k.a, k.a_port))
        return {name: tuple(sorted(ports)) for name, ports in found.items()}

    @cached_property
    def _links(self) -> dict[tuple[str, int], Link]:
        return {end: k for k in self.links for end in ((k.a, k.a_port), (k.b, k.b_port))}

    @cached_property
    def _hosts_at(self) -> dict[str, tuple[Host, ...]]:
        found: dict[str, list[Host]] = {s.name: [] for s in self.switches}
        for h in self.hosts:
            found[h.switch].append(h)
        return {name: tuple(sorted(hosts, key=lambda h: h.port)) for name, hosts in found.items()}

    @cached_property
    def _dpids(self) -> dict[int, Switch]:
        return {s.dpid: s for s in self.switches}

    def switch(self, name: str) -> Switch:
        """By name; raises :class:`ConfigError`."""
        return _named(self._switch, "switch", name)

    def host(self, name: str) -> Host:
        """By name; raises :class:`ConfigError`."""
        return _named(self._host, "host", name)

    def by_dpid(self, dpid: int) -> Switch | None:
        """The switch with that datapath id."""
        return self._dpids.get(dpid)

    def ports(self, switch: str) -> tuple[Port, ...]:
        """The ports of a switch that lead to other switches, in order."""
        return self._ports[switch]

    def hosts_at(self, switch: str) -> tuple[Host, ...]:
        """The hosts at a switch, by port."""
        return self._hosts_at[switch]

    def link_at(self, switch: str, port: int) -> Link | None:
        """The cable in a switch's port; None for a host's port and for one nothing is known of."""
        return self._links.get((switch, port))

    def links_between(self, a: str, b: str) -> tuple[Link, ...]:
        """The cables between two switches: none, one, or several in parallel."""
        return tuple(k for k in self.links if {k.a, k.b} == {a, b})

    def to_json(self) -> str:
        """What :meth:`from_json` reads."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Fabric:
        """Raises :class:`ConfigError` naming what is missing or wrong."""
        try:
            raw = json.loads(text)
        except ValueError as e:
            raise ConfigError(f"a fabric is JSON, as 'smtnet plan TOPO --fabric FILE' writes it: {e}") from None
        if not isinstance(raw, dict) or set(raw) != {"switches", "hosts", "links"}:
            raise ConfigError("a fabric has switches, hosts and links, and nothing else: "
                              "'smtnet plan TOPO --fabric FILE' writes one")
        return cls(*(tuple(_item(kind, name, item) for item in _list(raw, name))
                     for name, kind in (("switches", Switch), ("hosts", Host), ("links", Link))))


def host_key(mac: str) -> bytes:
    """What tells hosts apart whatever the path: the address with byte 1, which names the path, made 0."""
    octets = parse_mac(mac)
    return octets[:1] + b"\0" + octets[2:]


def fabric_of_topo(topo: SmtTopo) -> Fabric:
    """The fabric of a topology, with the numbers and addresses Mininet will give: ports as the topology has them,
    a switch's dpid is the number its name ends in, hosts are 10.0.0.1 and so on. Raises :class:`ConfigError`."""
    switches = [Switch(name, _number_of(name)) for name in topo.switches()]
    if not switches:
        raise ConfigError("a topology without switches has nothing to plan: use one with switches, e.g. star,4")
    at: dict[str, Host] = {}
    links = []
    addresses = {name: _FIRST_IP + n for n, name in enumerate(topo.hosts(), 1)}
    for _a, _b, info in topo.links(withInfo=True):
        a, b, a_port, b_port = (info[key] for key in ("node1", "node2", "port1", "port2"))
        limits = {key: info.get(key) for key in ("rate_mbps", "buffer_bytes")}
        if topo.isSwitch(a) and topo.isSwitch(b):
            links.append(Link(a, a_port, b, b_port, f"{a}-eth{a_port}", f"{b}-eth{b_port}", **limits))
            continue
        if not topo.isSwitch(a) and not topo.isSwitch(b):
            raise ConfigError(f"hosts {a} and {b} are linked to each other: a controller has no part in that")
        host, switch, port = (b, a, a_port) if topo.isSwitch(a) else (a, b, b_port)
        if host in at:
            raise ConfigError(f"host {host} has several interfaces; a controller knows hosts with one")
        node = topo.nodeInfo(host)
        at[host] = Host(host, _mac_of(host, node), str(node.get("ip", addresses[host])).partition("/")[0], switch,
                        port, f"{switch}-eth{port}", **limits)
    for host in topo.hosts():
        if host not in at:
            raise ConfigError(f"host {host} is at no switch")
    return Fabric(tuple(switches), tuple(at[h] for h in topo.hosts()), tuple(links))


def _number_of(name: str) -> int:
    digits = re.search(r"\d+$", name)
    if digits is None:
        raise ConfigError(f"switch {name}: its name ends in no number, its dpid to be; call it s1, s2, ...")
    return int(digits.group())


def _mac_of(host: str, node: dict[str, Any]) -> str:
    mac = node.get("mac")
    if mac is None:
        raise ConfigError(f"host {host} has no MAC address in the topology: give it one, addHost(..., mac=...)")
    return str(mac).lower()


def _unique(what: str, values: Iterable[object]) -> None:
    for value, count in Counter(values).items():
        if count > 1:
            raise ConfigError(f"{what} {value}")


def _check_ip(host: Host) -> None:
    try:
        ipaddress.IPv4Address(host.ip)
    except ValueError as e:
        raise ConfigError(f"host {host.name}: {e}") from None


def _named(known: dict[str, Any], kind: str, name: str) -> Any:
    if name not in known:
        raise ConfigError(f"there is no {kind} {name!r}; there are {', '.join(known)}")
    return known[name]


def _list(raw: dict[str, Any], name: str) -> list[Any]:
    if not isinstance(raw[name], list):
        raise ConfigError(f"a fabric's {name} are a list")
    return list(raw[name])


def _item(kind: type, name: str, item: Any) -> Any:
    known = {f.name: f for f in fields(kind)}
    if not isinstance(item, dict) or not set(item) <= set(known):
        raise ConfigError(f"one of a fabric's {name} is {json.dumps(item)}; it has {', '.join(known)}")
    for key, value in item.items():
        wanted = _JSON_KINDS[str(known[key].type)]
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ConfigError(f"one of a fabric's {name} has {key} {json.dumps(value)}, which makes no sense")
    try:
        return kind(**item)
    except TypeError:
        missing = [n for n in list(known) if n not in item]
        raise ConfigError(f"one of a fabric's {name} lacks {missing[0]}: {json.dumps(item)}") from None


#: Annotations above, and what JSON has for them.
_JSON_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "float | None": (int, float, type(None)), "int | None": (int, type(None))}
