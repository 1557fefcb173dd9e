"""Switches that follow our flow and group descriptions, in memory, and a network of them.

They are strict where a real switch refuses or errs silently: two rules of one priority that both match, a rule
with a group that is not there, a group made twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from controllers.fabric import Fabric
from controllers.plan import (
    ANY_PATH,
    ETH_ARP,
    FAST_FAILOVER,
    AnswerArp,
    Bucket,
    Flow,
    Group,
    Match,
    Output,
    SetEthDst,
    ToController,
    ToGroup,
)
from controllers.update import ADD, DELETE, MODIFY, Change, Held, Phase

BROADCAST = "ff:ff:ff:ff:ff:ff"
#: Where frames for the controller go.
CONTROLLER = 0xFFFF_FFFD


@dataclass(frozen=True)
class Frame:
    """As much of a frame as rules look at or change."""

    eth_dst: str
    eth_src: str
    eth_type: int = 0x0800
    arp_op: int | None = None
    arp_spa: str | None = None
    arp_tpa: str | None = None


def arp_request(mac: str, ip: str, wanted: str) -> Frame:
    """As a kernel sends it."""
    return Frame(BROADCAST, mac, ETH_ARP, 1, ip, wanted)


class Refused(AssertionError):
    """A real switch would answer with an OpenFlow error."""


class FakeSwitch:
    """One switch; ``up`` are its ports with a link. ``choose`` picks a bucket of a SELECT group."""

    def __init__(self, name: str, ports: Iterable[int], choose: Callable[[list[Bucket]], Bucket]) -> None:
        self.name = name
        self.up = set(ports)
        self.choose = choose
        self.flows: dict[tuple[int, int, Match], Flow] = {}
        self.groups: dict[int, Group] = {}
        # By table and what they match of the destination, to find them fast.
        self._index: defaultdict[tuple[int, str | None, str | None], dict[tuple, Flow]] = defaultdict(dict)
        # What ways() found, with these ports up; a change of flows or groups ends it.
        self._ways: dict[str, set[int]] = {}
        self._ways_of = set(self.up)

    def held(self) -> Held:
        return Held(frozenset(self.flows.values()), frozenset(self.groups.values()))

    def apply(self, verb: str, item: Flow | Group) -> None:
        """A flow-mod or group-mod. Raises :class:`Refused`."""
        self._ways.clear()
        if isinstance(item, Flow):
            if not {ADD: True, DELETE: item.key in self.flows}[verb]:
                raise Refused(f"{self.name} has no such flow: {item}")
            if verb == DELETE:
                self._remove(item)
                return
            if missing := [n for n in item.groups if n not in self.groups]:
                raise Refused(f"{self.name} has no group {missing[0]}: {item}")
            address, mask = item.match.eth_dst, item.match.eth_dst_mask
            if mask is not None and (mask != ANY_PATH or address is None or address != masked(address)):
                raise Refused(f"{self.name}: bits of an address outside its mask: {item}")
            self.flows[item.key] = item
            self._index[item.table, address, mask][item.key] = item
        else:
            if (item.number in self.groups) is not (verb in (MODIFY, DELETE)):
                raise Refused(f"{self.name} cannot {verb} {item}")
            if verb == DELETE:
                # As OpenFlow says: with its flows.
                for flow in [f for f in self.flows.values() if item.number in f.groups]:
                    self._remove(flow)
                del self.groups[item.number]
                return
            self.groups[item.number] = item

    def _remove(self, flow: Flow) -> None:
        del self.flows[flow.key]
        del self._index[flow.table, flow.match.eth_dst, flow.match.eth_dst_mask][flow.key]

    def _find(self, table: int, frame: Frame, in_port: int) -> Flow | None:
        hits = [f for address, mask in ((frame.eth_dst, None), (masked(frame.eth_dst), ANY_PATH), (None, None))
                for f in self._index[table, address, mask].values() if matches(f.match, frame, in_port)]
        if not hits:
            return None
        highest = max(f.priority for f in hits)
        best = [f for f in hits if f.priority == highest]
        if len(best) > 1:
            raise Refused(f"{self.name}: {best[0]} and {best[1]} overlap")
        return best[0]

    def _buckets(self, number: int) -> list[Bucket]:
        group = self.groups[number]
        live = [b for b in group.buckets if b.watch_port in self.up]
        return live[:1] if group.kind == FAST_FAILOVER else live

    def ways(self, address: str) -> set[int]:
        """The ports by which a frame from another switch to ``address`` may leave, wherever it came from."""
        if self._ways_of != self.up:
            self._ways.clear()
            self._ways_of = set(self.up)
        if address not in self._ways:
            self._ways[address] = self._look_for_ways(address)
        return self._ways[address]

    def _look_for_ways(self, address: str) -> set[int]:
        flow = self._find(1, Frame(address, "00:00:00:00:00:00"), 0)
        found = set()
        for action in flow.actions if flow else ():
            if isinstance(action, ToGroup):
                found |= {b.port for b in self._buckets(action.group)}
            elif isinstance(action, Output):
                found.add(action.port)
        return found & self.up

    def receive(self, frame: Frame, in_port: int) -> list[tuple[int, Frame]]:
        """What leaves, by which port."""
        sent: list[tuple[int, Frame]] = []
        answers: list[tuple[int, Frame]] = []
        table: int | None = 0
        while table is not None:
            flow = self._find(table, frame, in_port)
            if flow is None:
                break
            for action in flow.actions:
                match action:
                    case SetEthDst(mac=mac):
                        frame = replace(frame, eth_dst=mac)
                    case Output(port=port):
                        sent.append((port, frame))
                    case ToGroup(group=number):
                        live = self._buckets(number)
                        if live:
                            sent.append((self.choose(live).port, frame))
                    case AnswerArp(mac=mac, ip=ip):
                        answers.append((in_port, Frame(frame.eth_src, mac, ETH_ARP, 2, ip, frame.arp_spa)))
                    case ToController():
                        answers.append((CONTROLLER, frame))
            table = flow.goto
        # By the port it came from leaves only what is sent back on purpose.
        return answers + [(port, f) for port, f in sent if port in self.up and port != in_port]


def matches(match: Match, frame: Frame, in_port: int) -> bool:
    """Whether a frame is like that."""
    return ((match.in_port is None or match.in_port == in_port)
            and (match.eth_type is None or match.eth_type == frame.eth_type)
            and (match.arp_op is None or match.arp_op == frame.arp_op)
            and (match.arp_tpa is None or match.arp_tpa == frame.arp_tpa)
            and (match.eth_dst is None
                 or match.eth_dst == (masked(frame.eth_dst) if match.eth_dst_mask else frame.eth_dst)))


def masked(mac: str) -> str:
    """Without byte 1."""
    return mac[:3] + "00" + mac[5:]


@dataclass(frozen=True)
class Delivery:
    """Frames that arrived at hosts or the controller, and the switches they passed."""

    arrived: tuple[tuple[str, Frame], ...]
    passed: tuple[str, ...]


class Loop(AssertionError):
    """A frame came to a switch for the second time."""


class FakeNetwork:
    """All switches of a fabric, without any rules."""

    def __init__(self, fabric: Fabric, choose: Callable[[list[Bucket]], Bucket] = lambda live: live[0]) -> None:
        self.fabric = fabric
        self.switches = {
            s.name: FakeSwitch(s.name, [p.number for p in fabric.ports(s.name)]
                               + [h.port for h in fabric.hosts_at(s.name)], choose)
            for s in fabric.switches}
        self._ends: dict[tuple[str, int], tuple[str, int]] = {}
        for k in fabric.links:
            self._ends[k.a, k.a_port] = k.b, k.b_port
            self._ends[k.b, k.b_port] = k.a, k.a_port
        self._hosts = {(h.switch, h.port): h.name for h in fabric.hosts}

    def change(self, change: Change) -> None:
        self.switches[change.switch].apply(change.verb, change.item)

    def install(self, phases: Iterable[Phase]) -> None:
        for phase in phases:
            for change in phase:
                self.change(change)

    def set_link(self, link: object, up: bool) -> None:
        """Unplug a cable between switches, or plug it in."""
        for k in self.fabric.links:
            if k == link:
                for name, port in ((k.a, k.a_port), (k.b, k.b_port)):
                    (self.switches[name].up.add if up else self.switches[name].up.discard)(port)

    def beyond(self, switch: str, port: int) -> str | None:
        """The switch at the other end of a port's cable."""
        return self._ends[switch, port][0] if (switch, port) in self._ends else None

    def send(self, host: str, frame: Frame) -> Delivery:
        """Follow every copy of a frame that a host sends. Raises :class:`Loop`."""
        start = self.fabric.host(host)
        arrived, passed = [], []
        under_way: list[tuple[str, int, Frame, tuple[str, ...]]] = [(start.switch, start.port, frame, ())]
        while under_way:
            name, port, frame, trail = under_way.pop()
            if name in trail:
                raise Loop(f"{frame} from {host}: {' '.join((*trail, name))}")
            passed.append(name)
            for out, copy in self.switches[name].receive(frame, port):
                if out == CONTROLLER:
                    arrived.append(("controller", copy))
                elif (name, out) in self._hosts:
                    arrived.append((self._hosts[name, out], copy))
                else:
                    under_way.append((*self._ends[name, out], copy, (*trail, name)))
        return Delivery(tuple(arrived), tuple(passed))

    def loop(self, address: str, start: str | None = None) -> list[str] | None:
        """Switches among which a frame to ``address`` could go round, entering at ``start`` or anywhere."""
        safe: set[str] = set()

        def walk(name: str, trail: list[str]) -> list[str] | None:
            if name in trail:
                return [*trail[trail.index(name):], name]
            if name not in safe:
                for port in self.switches[name].ways(address):
                    following = self.beyond(name, port)
                    found = walk(following, [*trail, name]) if following else None
                    if found:
                        return found
                safe.add(name)
            return None

        for name in self.switches if start is None else [start]:
            if found := walk(name, []):
                return found
        return None
