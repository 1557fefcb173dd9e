"""Topologies as people write them, for ``mn --custom``: names, hosts without links, routers, gateways that are not
there."""

from __future__ import annotations

from typing import Any

from mininet.node import Node
from mininet.topo import Topo


class _Router(Node):
    def config(self, **params: Any) -> None:
        super().config(**params)
        self.cmd("sysctl -w net.ipv4.ip_forward=1")


class _Named(Topo):
    """Two hosts at a switch, all called as asked."""

    def build(self, one: Any = "client0001", two: Any = "web.server", switch: Any = "s1", **_opts: Any) -> None:
        self.addSwitch(str(switch), dpid="1")
        for name in (one, two):
            self.addLink(self.addHost(str(name)), str(switch))


class _Alike(Topo):
    """Host names of any length, as their interfaces are called otherwise: all alike."""

    def build(self, **_opts: Any) -> None:
        self.addSwitch("s1")
        for number in (1, 2):
            self.addLink(self.addHost(f"a-host-with-a-very-long-name-{number}"), "s1", intfName1="eth0")


class _Mixed(Topo):
    """h1 and h2 can talk; h3 has no link, h4 no address."""

    def build(self, **_opts: Any) -> None:
        self.addSwitch("s1")
        for number in (1, 2):
            self.addLink(self.addHost(f"h{number}"), "s1")
        self.addHost("h3")
        self.addLink(self.addHost("h4", ip=None), "s1")


class _Routed(Topo):
    """a1 - r0 - b1; ``gateway``: where a1 thinks that the router is."""

    def build(self, gateway: Any = "10.0.1.4", **_opts: Any) -> None:
        router = self.addHost("r0", ip="10.0.1.4/24", cls=_Router)
        one = self.addHost("a1", ip="10.0.1.1/24", defaultRoute=f"via {gateway}")
        two = self.addHost("b1", ip="10.0.2.1/24", defaultRoute="via 10.0.2.4")
        self.addLink(one, router, intfName2="r0-eth1", params2={"ip": "10.0.1.4/24"})
        self.addLink(two, router, intfName2="r0-eth2", params2={"ip": "10.0.2.4/24"})


class _Broken(Topo):
    """A mistake of its author's."""

    def build(self, **_opts: Any) -> None:
        self.addLink(self.nodes()[7], "s1")


topos = {"named": _Named, "alike": _Alike, "mixed": _Mixed, "routed": _Routed, "broken": _Broken}
