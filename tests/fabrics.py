"""Fabrics for tests: real ones, drawn ones, and what is asked of them without the planner's help."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import strategies as st

from controllers.fabric import Fabric, Host, Link, Switch, fabric_of_topo
from controllers.plan import Down, Plan, path_address
from controllers.update import phases
from tests.fake_switch import FakeNetwork
from topo.topologies import make_topo

REAL = ["star,3", "fanout,2,3", "incast,4", "dumbbell,2", "leafspine,2,4,2", "leafspine,3,2,2", "fattree,2",
        "fattree,4"]


def real(text: str) -> Fabric:
    return fabric_of_topo(make_topo(text))


def build(cables: list[tuple[int, int]], places: list[int], second: int = 0) -> Fabric:
    """Cables between numbered switches, and the switch of each host; ``second``: byte 1 of all MAC addresses."""
    ports: Counter[int] = Counter()

    def port(switch: int) -> int:
        ports[switch] += 1
        return ports[switch]

    numbers = sorted({n for cable in cables for n in cable} | set(places))
    hosts = tuple(Host(f"h{n}", f"02:{second:02x}:00:00:00:{n:02x}", f"10.0.0.{n}", f"s{place}", port(place))
                  for n, place in enumerate(places, 1))
    links = tuple(Link(f"s{a}", port(a), f"s{b}", port(b)) for a, b in cables)
    return Fabric(tuple(Switch(f"s{n}", 100 + n) for n in numbers), hosts, links)


@st.composite
def fabrics(draw: st.DrawFn) -> Fabric:
    """Connected: 1 to 8 switches, now and then with parallel cables, and 2 to 10 hosts."""
    switches = draw(st.integers(1, 8))
    cables = [(draw(st.integers(1, n - 1)), n) for n in range(2, switches + 1)]
    if switches > 1:
        pair = st.tuples(st.integers(1, switches), st.integers(1, switches)).filter(lambda p: p[0] != p[1])
        cables += draw(st.lists(pair, max_size=10))
    places = draw(st.lists(st.integers(1, switches), min_size=2, max_size=10))
    return build(cables, places, draw(st.sampled_from([0, 1, 0x7F, 0xFF])))


SEEDS = st.integers(1, 5)


def running(plan: Plan, chosen: int = 0) -> FakeNetwork:
    net = FakeNetwork(plan.fabric, random.Random(chosen).choice)
    net.install(phases(None, plan))
    return net


def distances(fabric: Fabric, down: Down | None = None) -> dict[tuple[str, str], int]:
    """Hops between any two switches, found in another way than the planner's."""
    down = down or Down()
    found = {(s.name, s.name): 0 for s in fabric.switches}
    for k in fabric.links:
        if k not in down.links:
            found[k.a, k.b] = found[k.b, k.a] = 1
    names = [s.name for s in fabric.switches]
    for via in names:
        if via not in down.switches:
            for a in names:
                for b in names:
                    if (a, via) in found and (via, b) in found:
                        way = found[a, via] + found[via, b]
                        found[a, b] = min(found.get((a, b), way), way)
    return found


def addresses(plan: Plan, host: Host) -> list[str]:
    return [host.mac, *(path_address(host.mac, p) for p in range(plan.path_count))]
