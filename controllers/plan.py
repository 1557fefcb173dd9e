"""What switches are to do: flows, groups and queues of OpenFlow 1.3, described without any OpenFlow library.

Every description is immutable and compares by content, so that what a switch has can be compared with what it
should have. MAC addresses are text in lower case, as in :mod:`controllers.fabric`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

from controllers.fabric import Fabric, Link
from smtstack.errors import ConfigError
from smtstack.wire.ethernet import format_mac, parse_mac, path_mac

ETH_ARP, ETH_LLDP = 0x0806, 0x88CC
ARP_REQUEST = 1
#: Where LLDP frames go: a bridge passes none of them on (IEEE 802.1AB).
LLDP_MAC = "01:80:c2:00:00:0e"
#: The mask of a MAC address that leaves out byte 1, which names the path.
ANY_PATH = "ff:00:ff:ff:ff:ff"


def path_address(mac: str, path: int) -> str:
    """:func:`smtstack.wire.ethernet.path_mac`, as text."""
    return format_mac(path_mac(parse_mac(mac), path))


@dataclass(frozen=True, slots=True)
class Match:
    """What a frame must be like; None: whatever. ``eth_dst_mask`` None: the whole of ``eth_dst`` counts."""

    in_port: int | None = None
    eth_dst: str | None = None
    eth_dst_mask: str | None = None
    eth_type: int | None = None
    arp_op: int | None = None
    arp_tpa: str | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """Send the frame by that port (never by the one it came from: OpenFlow drops it then)."""

    port: int


@dataclass(frozen=True, slots=True)
class SetEthDst:
    """Change the destination address."""

    mac: str


@dataclass(frozen=True, slots=True)
class ToGroup:
    """Let a group of this switch decide."""

    group: int


@dataclass(frozen=True, slots=True)
class AnswerArp:
    """Make the ARP request at hand the answer "``ip`` is at ``mac``", and send it back by the port it came from.

    In OpenFlow: destination and target become the request's source and sender, source and sender ``mac`` and
    ``ip``, the operation 2.
    """

    mac: str
    ip: str


@dataclass(frozen=True, slots=True)
class ToController:
    """Hand the whole frame to the controller. Only for LLDP, by which links are found."""


Action = Output | SetEthDst | ToGroup | AnswerArp | ToController


@dataclass(frozen=True, slots=True)
class Flow:
    """A rule. The matching one with the highest priority counts; actions happen in order, then table ``goto``.
    Without actions and ``goto`` the frame is dropped."""

    table: int
    priority: int
    match: Match
    actions: tuple[Action, ...] = ()
    goto: int | None = None

    @property
    def key(self) -> tuple[int, int, Match]:
        """A switch has one flow for each: another with the same key takes its place."""
        return self.table, self.priority, self.match

    @property
    def groups(self) -> tuple[int, ...]:
        """The groups it uses."""
        return tuple(a.group for a in self.actions if isinstance(a, ToGroup))


FAST_FAILOVER, SELECT = "fast_failover", "select"


@dataclass(frozen=True, slots=True)
class Bucket:
    """Output to ``port``, as long as ``watch_port`` is up."""

    port: int
    watch_port: int


@dataclass(frozen=True, slots=True)
class Group:
    """``fast_failover``: the first bucket whose port is up. ``select``: one of those, by the switch's own hash."""

    number: int
    kind: str
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True, slots=True)
class QueueSetting:
    """A port that sends at ``rate_mbps`` with eight strict priorities, by the upper three bits of the DSCP (7 is
    sent first), each with a buffer of ``buffer_bytes``; None: as the link's default is."""

    port: int
    interface: str
    rate_mbps: float
    buffer_bytes: int | None


@dataclass(frozen=True, slots=True)
class SwitchPlan:
    """All that one switch is to have."""

    name: str
    dpid: int
    flows: tuple[Flow, ...]
    groups: tuple[Group, ...]
    queues: tuple[QueueSetting, ...] = ()


@dataclass(frozen=True, slots=True)
class Down:
    """What is out of order: cables, and switches that relay nothing.

    A host stays planned though its switch is down: the switch may have lost nothing but its controller, and then
    goes on serving its hosts.
    """

    links: frozenset[Link] = frozenset()
    switches: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Plan:
    """What all switches are to do, and what follows from it.

    ``path_count``: paths that senders may name, 0 to ``path_count`` - 1: the same for every pair, and whatever is
    down. For some pairs several of them are the same way. ``unreachable``: pairs (from, to) of hosts that ``down``
    cuts off; there are no rules for them.
    """

    fabric: Fabric
    policy: str
    seed: int
    down: Down
    path_count: int
    switches: tuple[SwitchPlan, ...]
    unreachable: frozenset[tuple[str, str]]
    distances: dict[tuple[str, str], int] = field(repr=False, hash=False)
    """(switch, host) -> switches on the way to the host, that switch left out."""
    next_ports: dict[tuple[str, str], tuple[int, ...]] = field(repr=False, hash=False)
    """(switch, host) -> the port for each path; under ``ecmp`` one of those that the switch chooses from."""

    def switch(self, name: str) -> SwitchPlan:
        """The plan of one switch; raises :class:`ConfigError`."""
        wanted = self.fabric.switch(name)
        return next(s for s in self.switches if s.name == wanted.name)

    def distance(self, switch: str, host: str) -> int | None:
        """Switches on the way from ``switch`` (left out) to the host; None: cut off, or not known at all."""
        return self.distances.get((switch, host))

    def hops(self, src: str, dst: str, path: int) -> tuple[tuple[str, int], ...]:
        """(switch, port it sends by) on the way of a path; empty if it is cut off. Raises :class:`ConfigError`."""
        here, there = self.fabric.host(src), self.fabric.host(dst)
        if src == dst:
            raise ConfigError(f"{src} needs no path to itself")
        if not 0 <= path < self.path_count:
            raise ConfigError(f"there is no path {path}; there are 0 to {self.path_count - 1}")
        name, found = here.switch, []
        while name != there.switch:
            ports = self.next_ports.get((name, dst))
            if ports is None:
                return ()
            found.append((name, ports[path]))
            link = self.fabric.link_at(name, ports[path])
            assert link is not None
            name = link.b if (link.a, link.a_port) == found[-1] else link.a
        return (*found, (name, there.port))

    def paths(self, src: str, dst: str) -> tuple[tuple[str, ...], ...]:
        """The switches that each path from one host to another passes; empty if they are cut off.

        Under ``ecmp``, where switches choose, the ways that there are.
        """
        found = (tuple(name for name, _port in self.hops(src, dst, path)) for path in range(self.path_count))
        return tuple(way for way in found if way)

    def flow_path(self, src: str, dst: str) -> int | None:
        """The path that the policy gives to frames from ``src`` which name none; None: its switch chooses, or
        there is nothing to choose."""
        here, there = self.fabric.host(src), self.fabric.host(dst)
        addresses = {path_address(there.mac, p): p for p in range(self.path_count)}
        for flow in self.switch(here.switch).flows:
            if flow.match.in_port == here.port and flow.match.eth_dst == there.mac:
                for action in flow.actions:
                    if isinstance(action, SetEthDst):
                        return addresses[action.mac]
        return None

    def to_json(self) -> dict[str, Any]:
        """For people and programs: what each switch does, which pairs are cut off."""
        return {
            "policy": self.policy, "seed": self.seed, "path_count": self.path_count,
            "down": {"links": sorted(map(str, self.down.links)), "switches": sorted(self.down.switches)},
            "unreachable": sorted(map(list, self.unreachable)),
            "switches": [_plain(s) for s in self.switches],
        }


def _plain(value: Any) -> Any:
    # Actions keep their names, and what is None says nothing.
    if isinstance(value, Action):
        return {type(value).__name__: asdict(value)}
    if is_dataclass(value):
        items = ((f.name, getattr(value, f.name)) for f in fields(value))
        return {name: _plain(item) for name, item in items if item is not None}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value
