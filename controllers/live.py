"""The fabric of a running Mininet network, whoever described it: Mininet's own topologies and hosts, too."""

from __future__ import annotations

from typing import Any

from mininet.node import Switch as MininetSwitch

from controllers.fabric import Fabric, Host, Link, Switch
from smtstack.errors import ConfigError


def fabric_of(net: Any) -> Fabric:
    """The fabric of a network that is built: all interfaces have their names and addresses.

    Raises :class:`ConfigError` for a network that the controller cannot control: hosts with several interfaces or
    linked to each other, no switch.
    """
    if not net.switches:
        raise ConfigError("this network has no switch for a controller: leave the controller out")
    switches = tuple(Switch(s.name, int(s.dpid, 16)) for s in net.switches)
    at: dict[str, Host] = {}
    links = []
    for link in net.links:
        one, two = link.intf1, link.intf2
        limits = _limits(link)
        if _is_switch(one) and _is_switch(two):
            links.append(Link(one.node.name, _port(one), two.node.name, _port(two), one.name, two.name, **limits))
            continue
        if not _is_switch(one) and not _is_switch(two):
            raise ConfigError(f"hosts {one.node.name} and {two.node.name} are linked to each other: a controller "
                              "has no part in that")
        host, end = (two, one) if _is_switch(one) else (one, two)
        name = host.node.name
        if name in at:
            raise ConfigError(f"host {name} has several interfaces; a controller knows hosts with one")
        at[name] = Host(name, _mac(host), _ip(host), end.node.name, _port(end), end.name, **limits)
    return Fabric(switches, tuple(at[node.name] for node in net.hosts if node.name in at), tuple(links))


def _is_switch(intf: Any) -> bool:
    return isinstance(intf.node, MininetSwitch)


def _port(intf: Any) -> int:
    return int(intf.node.ports[intf])


def _mac(intf: Any) -> str:
    # Mininet does not know an address that it did not give.
    mac = intf.MAC() or intf.updateMAC()
    if not mac:
        raise ConfigError(f"{intf.name} has no MAC address: start the network with --mac")
    return str(mac).lower()


def _ip(intf: Any) -> str:
    ip = intf.IP() or intf.updateIP()
    if not ip:
        raise ConfigError(f"host {intf.node.name} has no IP address, by which switches answer for it")
    return str(ip)


def _limits(link: Any) -> dict[str, Any]:
    options = getattr(link, "options", None)
    rate = getattr(options, "rate_mbps", None)
    return {"rate_mbps": rate, "buffer_bytes": None if rate is None else getattr(options, "buffer_bytes", None)}
