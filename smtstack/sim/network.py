"""Hosts, switches and links put together, and run in virtual time."""

from __future__ import annotations

from collections import deque
from random import Random

from smtstack.errors import ConfigError
from smtstack.nic.device import NicConfig, SmartNic
from smtstack.nic.driver import ContextPolicy
from smtstack.nic.impairments import ImpairmentRates, Impairments, Script
from smtstack.sim.clock import Clock
from smtstack.sim.host import SimHost
from smtstack.sim.link import EgressPort, LinkParams, Tap
from smtstack.sim.switch import Switch
from smtstack.transport.params import MAX_MTU
from smtstack.wire.ipv4 import address

Device = SimHost | Switch
#: Where a star's hosts get their addresses from.
_FIRST_IP = address("10.0.0.1")


class Network:
    """A whole network. The same calls with the same ``seed`` give the same run, frame for frame."""

    def __init__(self, seed: int = 1) -> None:
        self.seed = seed
        self.clock = Clock()
        #: By name, in the order they were added.
        self.hosts: dict[str, SimHost] = {}
        self.switches: dict[str, Switch] = {}
        #: Every direction of every link, by place (``h1->s1``).
        self.ports: dict[str, EgressPort] = {}
        self._macs: dict[int, bytes] = {}
        self._stale = False

    def random(self, name: str) -> Random:
        """A generator of its own for each ``name``, so that one user's draws do not shift another's."""
        return Random(f"{self.seed}/{name}")

    # -- building ----------------------------------------------------------------------------------------

    def add_host(self, name: str | None = None, ip: int | None = None, nic: NicConfig | None = None, *,
                 host_delay_ns: int = 0, strict_priority: bool = False,
                 policy: ContextPolicy = ContextPolicy.PER_QUEUE, mtu: int = MAX_MTU,
                 tx_rates: ImpairmentRates | None = None, rx_rates: ImpairmentRates | None = None,
                 tx_script: Script | None = None, rx_script: Script | None = None) -> SimHost:
        """A host, by default ``h<n>`` at 10.0.0.<n>.

        ``host_delay_ns`` is added on each way between endpoint and wire. ``strict_priority`` makes its
        own port serve priorities; a NIC's FIFO, the default, does not. Rates and scripts are the faults
        behind its transmit half and before its receive half (:mod:`smtstack.nic.impairments`). It takes no IP
        packet longer than ``mtu`` bytes; what its endpoints send is their ``params``' affair.
        """
        number = len(self.hosts)
        name = name or f"h{number + 1}"
        ip = _FIRST_IP + number if ip is None else ip
        self._check_name(name)
        if ip in self._macs:
            raise ConfigError(f"{name}: its address is in use")
        mac = self._macs[ip] = b"\x02\x00" + ip.to_bytes(4, "big")
        host = SimHost(self.clock, name, ip, mac, SmartNic(nic), self._macs.get, host_delay_ns=host_delay_ns,
                       strict_priority=strict_priority, policy=policy, mtu=mtu,
                       tx_faults=self._faults(f"{name} tx", tx_rates, tx_script),
                       rx_faults=self._faults(f"{name} rx", rx_rates, rx_script))
        self.hosts[name] = host
        return host

    def _faults(self, name: str, rates: ImpairmentRates | None, script: Script | None) -> Impairments | None:
        if rates is None and script is None:
            return None
        return Impairments(rates, self.random(name).getrandbits(64), script)

    def add_switch(self, name: str | None = None, *, forwarding_ns: int = 0,
                   strict_priority: bool = True) -> Switch:
        """A switch, by default ``s<n>``; ``forwarding_ns`` as in :class:`Switch`."""
        name = name or f"s{len(self.switches) + 1}"
        self._check_name(name)
        switch = self.switches[name] = Switch(name, forwarding_ns, strict_priority)
        return switch

    def _check_name(self, name: str) -> None:
        if name in self.hosts or name in self.switches:
            raise ConfigError(f"there is a {name} already")

    def connect(self, a: Device, b: Device, params: LinkParams | None = None) -> None:
        """A full-duplex link between two devices; a host has one."""
        params = params or LinkParams()
        for one, other in ((a, b), (b, a)):
            place = f"{one.name}->{other.name}"
            if place in self.ports or (isinstance(one, SimHost) and one.port is not None):
                raise ConfigError(f"{place}: already connected")
        for one, other in ((a, b), (b, a)):
            place = f"{one.name}->{other.name}"
            extra = one.forwarding_ns if isinstance(one, Switch) else 0
            port = EgressPort(self.clock, place, params, other.receive, strict=one.strict_priority,
                              extra_delay_ns=extra)
            self.ports[place] = port
            if isinstance(one, Switch):
                one.ports[other.name] = port
            else:
                one.port = port
        self._stale = True

    def tap(self, tap: Tap, place: str | None = None) -> None:
        """Show ``tap(time, place, frame)`` every frame at the end of a link, or of all links."""
        if place is not None and place not in self.ports:
            raise ConfigError(f"no link {place}; there are {', '.join(self.ports)}")
        for name, port in self.ports.items():
            if place in (None, name):
                port.tap(tap)

    def _fill_tables(self) -> None:
        """Shortest paths from every host outwards; of equal ones, the first connected."""
        neighbours: dict[str, list[str]] = {name: [] for name in (*self.hosts, *self.switches)}
        for place in self.ports:
            one, _, other = place.partition("->")
            neighbours[one].append(other)
        for host in self.hosts.values():
            seen = {host.name}
            todo = deque([host.name])
            while todo:
                here = todo.popleft()
                for near in neighbours[here]:
                    # Frames pass through switches only, and so does the search.
                    if near in seen or near not in self.switches:
                        continue
                    seen.add(near)
                    switch = self.switches[near]
                    switch.table[host.mac] = switch.ports[here]
                    todo.append(near)
        self._stale = False

    # -- running -----------------------------------------------------------------------------------------

    @property
    def now(self) -> int:
        """The present, in ns."""
        return self.clock.now

    def run(self, until: int | None = None) -> None:
        """Run up to time ``until`` (ns), or until nothing is left to happen (all RPCs are over)."""
        if self._stale:
            self._fill_tables()
        self.clock.run(until)

    def drops(self) -> int:
        """Frames dropped by full queues of links."""
        return sum(sum(port.drops) for port in self.ports.values())

    def queue_peak(self) -> int:
        """Most frame bytes that ever waited at one port."""
        return max((port.queue_peak for port in self.ports.values()), default=0)


def back_to_back(seed: int = 1, link: LinkParams | None = None, nic: NicConfig | None = None,
                 host_delay_ns: int = 0) -> Network:
    """Two hosts, ``h1`` and ``h2``, and a cable."""
    net = Network(seed)
    a, b = (net.add_host(nic=nic, host_delay_ns=host_delay_ns) for _ in range(2))
    net.connect(a, b, link)
    return net


def star(hosts: int, seed: int = 1, link: LinkParams | None = None, nic: NicConfig | None = None,
         host_delay_ns: int = 0, forwarding_ns: int = 250, strict_priority: bool = True) -> Network:
    """``hosts`` hosts at one switch ``s1``. The defaults are SIGCOMM'18's: 10 Gbit/s, 250 ns of switching."""
    net = Network(seed)
    switch = net.add_switch(forwarding_ns=forwarding_ns, strict_priority=strict_priority)
    for _ in range(hosts):
        net.connect(net.add_host(nic=nic, host_delay_ns=host_delay_ns), switch, link)
    return net
