"""From a fabric to a plan: who forwards what by which port. Pure: the same arguments, the same plan.

**Forwarding** is by destination. To every host lead ``path_count`` numbered paths, and a frame's destination
address names one (:func:`smtstack.wire.ethernet.path_mac`). Each rule sends a frame to a switch that is one hop
nearer to the host, counted in switches, so there are no loops; and all ways are shortest. The last switch puts
the host's own address back.

**Table 0** tells frames of hosts from those of other switches. At a host's port an ARP request for a known host
is answered by the switch, and other ARP is dropped. A frame to a host's own address gets a path, by policy; one
that names a path already keeps it. **Table 1** forwards. What no rule wants is dropped: broadcasts, multicasts,
unknown addresses. Nothing is flooded, nothing is learnt, and only LLDP between switches goes to the controller.

**Balance.** At each switch the paths to a host are dealt to its equally near next hops, so that the numbers of
paths by any two of them differ by at most 1. They are dealt in the order of where they come from, so that the
same is true for those that arrive there from one switch, if any two switches' paths through it are the same or
have none in common. That is so in ``leafspine`` and ``fattree``: there a pair's paths are as different as ways
there are. In other networks only the first sentence is promised.

**Policies.** ``flow``: a pair of hosts is a flow, and stays on one path. The flows of a host differ by at most
1 in number over the paths, and so do those of all hosts at a switch; over the ports of that switch too, where
it relays for nobody, every other host is reached by the same ports and their number divides ``path_count``.
``message``: the same plan; the senders' NICs name paths, one for each message, and what names none goes as with
``flow``. ``ecmp``: SELECT groups of all equally near next hops. Open vSwitch hashes addresses and TCP ports
there, but not the ports of protocols it does not know, 146 and 253 among them: SMT and Homa between two hosts
stay on one way, wherever it may be.

**Failures.** Where a switch has several equally near next hops, a FAST_FAILOVER group takes the next of them as
soon as a port goes down. They are equally near, so this cannot loop either. The rest is for a new plan, with
``down``.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from controllers.fabric import Fabric, Host, host_key
from controllers.plan import (
    ANY_PATH,
    ARP_REQUEST,
    ETH_ARP,
    ETH_LLDP,
    FAST_FAILOVER,
    LLDP_MAC,
    SELECT,
    Action,
    AnswerArp,
    Bucket,
    Down,
    Flow,
    Group,
    Match,
    Output,
    Plan,
    QueueSetting,
    SetEthDst,
    SwitchPlan,
    ToController,
    ToGroup,
    path_address,
)
from controllers.policies import DEFAULT, POLICIES, hashed
from smtstack.errors import ConfigError
from smtstack.wire.ethernet import format_mac

#: More paths than that are not numbered, whatever ways there are: each is a rule at every switch for every host.
MOST_PATHS = 64

#: Priorities in table 0, the highest first.
_LLDP, _FROM_SWITCH, _ARP_ANSWER, _ARP_DROP, _CHOOSE_PATH, _FROM_HOST = 600, 500, 400, 300, 200, 100
#: And in table 1: one path; all of them, and the host's own address.
_ONE_PATH, _ALL_PATHS = 200, 100
#: Group numbers are below this (OpenFlow 1.3, OFPG_MAX).
_MAX_GROUP = 0xFFFF_FF00


@dataclass(frozen=True)
class _Ways:
    """To the hosts at one switch: how far each switch is, its equally near next hops, and each path's one."""

    distance: dict[str, int]
    nearer: dict[str, tuple[int, ...]]
    ports: dict[str, tuple[int, ...]]


def make_plan(fabric: Fabric, policy: str = DEFAULT, seed: int = 1, down: Down | None = None) -> Plan:
    """The plan for what is in order. ``seed`` turns the choices among equally short ways.

    Table 0 and the number of paths do not depend on ``down``. Raises :class:`ConfigError` for an unknown policy,
    and for links or switches in ``down`` that are not there.
    """
    if policy not in POLICIES:
        raise ConfigError(f"unknown multi-path policy {policy!r}; there are {', '.join(POLICIES)}")
    out = down or Down()
    for name in out.switches:
        fabric.switch(name)
    for link in out.links:
        if link not in fabric.links:
            raise ConfigError(f"there is no link {link}")
    with_hosts = [s.name for s in fabric.switches if fabric.hosts_at(s.name)]
    paths = path_count(fabric)
    turns = {s.name: random.Random(f"{seed} {s.name}").randrange(1 << 16) for s in fabric.switches}
    ways = {}
    for name in with_hosts:
        distance, nearer = _shortest(fabric, name, out)
        ways[name] = _Ways(distance, nearer, _deal(fabric, distance, nearer, paths, turns))
    choices = {} if hashed(policy) or paths == 1 else _flow_paths(fabric, paths, turns)
    return Plan(
        fabric=fabric, policy=policy, seed=seed, down=out, path_count=paths,
        switches=tuple(_switch_plan(fabric, s.name, policy, paths, ways, choices) for s in fabric.switches),
        unreachable=frozenset((a.name, b.name) for a in fabric.hosts for b in fabric.hosts
                              if a.switch not in ways[b.switch].distance),
        distances={(s, h.name): n for h in fabric.hosts for s, n in ways[h.switch].distance.items()},
        next_ports={(s, h.name): p for h in fabric.hosts for s, p in ways[h.switch].ports.items()})


def path_count(fabric: Fabric) -> int:
    """The most distinct shortest ways that any pair of hosts has while all is in order, at most
    :data:`MOST_PATHS`."""
    most = 1
    for there in fabric.switches:
        if not fabric.hosts_at(there.name):
            continue
        distance, nearer = _shortest(fabric, there.name, Down())
        ways = {there.name: 1}
        for name in sorted(nearer, key=distance.__getitem__):
            neighbours = {p.number: p.neighbour for p in fabric.ports(name)}
            ways[name] = sum(ways[neighbours[port]] for port in nearer[name])
            if fabric.hosts_at(name):
                most = max(most, ways[name])
    return min(most, MOST_PATHS)


def _shortest(fabric: Fabric, there: str, down: Down) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """Distances to the switch ``there``, and each other switch's ports that lead one hop nearer.

    What is down relays nothing, but its own frames may leave it and arrive.
    """
    distance, row = {there: 0}, [there]
    nearer: dict[str, tuple[int, ...]] = {}
    while row:
        below: dict[str, list[int]] = {}
        for here in row:
            if here in down.switches and here != there:
                continue
            for port in fabric.ports(here):
                if port.neighbour not in distance and fabric.link_at(here, port.number) not in down.links:
                    below.setdefault(port.neighbour, []).append(port.neighbour_port)
        for name, ports in below.items():
            distance[name] = distance[row[0]] + 1
            nearer[name] = tuple(sorted(ports))
        row = list(below)
    return distance, nearer


def _deal(fabric: Fabric, distance: dict[str, int], nearer: dict[str, tuple[int, ...]], paths: int,
          turns: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """For each switch the port of each path, far switches first."""
    bits = {s.name: 1 << n for n, s in enumerate(fabric.switches) if fabric.hosts_at(s.name)}
    # For each switch and path: which switches' hosts it comes from.
    origins = {name: [bits.get(name, 0)] * paths for name in distance}
    dealt = {}
    for name in sorted(nearer, key=lambda s: -distance[s]):
        from_where, ports = origins[name], nearer[name]
        chosen = [0] * paths
        for turn, path in enumerate(sorted(range(paths), key=lambda p: (from_where[p], p)), turns[name]):
            chosen[path] = ports[turn % len(ports)]
        neighbours = {p.number: p.neighbour for p in fabric.ports(name)}
        for path, port in enumerate(chosen):
            origins[neighbours[port]][path] |= from_where[path]
        dealt[name] = tuple(chosen)
    return dealt


def _flow_paths(fabric: Fabric, paths: int, turns: dict[str, int]) -> dict[tuple[str, str], int]:
    """The path of each pair (from, to) of hosts at different switches.

    The hosts at a switch take turns through all paths, each with the others in the same order, beginning behind
    its own: so hosts that call the one at the same place of the next switch take different paths if possible.
    """
    chosen = {}
    for switch in fabric.switches:
        own = fabric.hosts_at(switch.name)
        if not own:
            continue
        last = max(fabric.hosts.index(h) for h in own)
        others = [h for h in (*fabric.hosts[last + 1:], *fabric.hosts[:last]) if h.switch != switch.name]
        turn = turns[switch.name]
        for src in own:
            for dst in others:
                chosen[src.name, dst.name] = turn % paths
                turn += 1
    return chosen


def _switch_plan(fabric: Fabric, name: str, policy: str, paths: int, ways: dict[str, _Ways],
                 choices: dict[tuple[str, str], int]) -> SwitchPlan:
    groups = _Groups(SELECT if hashed(policy) else FAST_FAILOVER)
    flows = _entry(fabric, name, choices)
    for host in fabric.hosts:
        if host.switch == name:
            flows.append(_to_all(host, SetEthDst(host.mac), Output(host.port)))
        elif name in ways[host.switch].ports:
            there = ways[host.switch]
            flows += _towards(host, there.nearer[name], there.ports[name], policy, groups)
    queues = [QueueSetting(h.port, h.interface, h.rate_mbps, h.buffer_bytes)
              for h in fabric.hosts_at(name) if h.rate_mbps is not None]
    for port in fabric.ports(name):
        link = fabric.link_at(name, port.number)
        assert link is not None
        if link.rate_mbps is not None:
            interface = link.a_interface if (link.a, link.a_port) == (name, port.number) else link.b_interface
            queues.append(QueueSetting(port.number, interface, link.rate_mbps, link.buffer_bytes))
    return SwitchPlan(name, fabric.switch(name).dpid, tuple(flows), groups.all(), tuple(queues))


def _entry(fabric: Fabric, name: str, choices: dict[tuple[str, str], int]) -> list[Flow]:
    """Table 0."""
    flows = []
    for port in fabric.ports(name):
        lldp = Match(in_port=port.number, eth_type=ETH_LLDP, eth_dst=LLDP_MAC)
        flows += [Flow(0, _LLDP, lldp, (ToController(),)),
                  Flow(0, _FROM_SWITCH, Match(in_port=port.number), goto=1)]
    own = fabric.hosts_at(name)
    if own:
        flows += [Flow(0, _ARP_ANSWER, Match(eth_type=ETH_ARP, arp_op=ARP_REQUEST, arp_tpa=h.ip),
                       (AnswerArp(h.mac, h.ip),)) for h in fabric.hosts]
        flows.append(Flow(0, _ARP_DROP, Match(eth_type=ETH_ARP)))
    for src in own:
        flows += [Flow(0, _CHOOSE_PATH, Match(in_port=src.port, eth_dst=dst.mac),
                       (SetEthDst(path_address(dst.mac, choices[src.name, dst.name])),), goto=1)
                  for dst in fabric.hosts if (src.name, dst.name) in choices]
        flows.append(Flow(0, _FROM_HOST, Match(in_port=src.port), goto=1))
    return flows


class _Groups:
    """The groups of a switch, one for each list of ports, in the order in which they are to be tried."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._made: dict[int, Group] = {}

    def of(self, ports: Sequence[int]) -> ToGroup:
        """The group of these ports. Its number follows from them: two plans mean the same by a number, unless
        two lists happen to have the same checksum."""
        buckets = tuple(Bucket(port, port) for port in ports)
        number = zlib.crc32(f"{self.kind} {list(ports)}".encode()) % (_MAX_GROUP - 1) + 1
        while (known := self._made.get(number)) is not None and known.buckets != buckets:
            number = number % (_MAX_GROUP - 1) + 1
        self._made[number] = Group(number, self.kind, buckets)
        return ToGroup(number)

    def all(self) -> tuple[Group, ...]:
        """By number."""
        return tuple(self._made[number] for number in sorted(self._made))


def _towards(host: Host, nearer: tuple[int, ...], ports: tuple[int, ...], policy: str,
             groups: _Groups) -> list[Flow]:
    """Table 1 at a switch that ``host`` is not at: one rule for all paths where they go the same way."""
    if len(nearer) == 1:
        return [_to_all(host, Output(nearer[0]))]
    if hashed(policy):
        return [_to_all(host, groups.of(nearer))]
    actions: list[Action] = []
    for port in ports:
        first = nearer.index(port)
        actions.append(groups.of(nearer[first:] + nearer[:first]))
    if len(set(ports)) == 1:
        return [_to_all(host, actions[0])]
    return [Flow(1, _ONE_PATH, Match(eth_dst=path_address(host.mac, path)), (action,))
            for path, action in enumerate(actions)]


def _to_all(host: Host, *actions: Action) -> Flow:
    """A rule for the host's own address and for all that name a path to it."""
    return Flow(1, _ALL_PATHS, Match(eth_dst=format_mac(host_key(host.mac)), eth_dst_mask=ANY_PATH), actions)
