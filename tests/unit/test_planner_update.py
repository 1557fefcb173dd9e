"""From plan to plan: no loop in any state on the way, in whatever order switches make their changes."""

from __future__ import annotations

import dataclasses
import random

from hypothesis import given
from hypothesis import strategies as st

from controllers.fabric import Fabric
from controllers.plan import Down, Flow, Match, Output, Plan, path_address
from controllers.planner import make_plan
from controllers.policies import POLICIES
from controllers.update import ADD, DELETE, MODIFY, Held, Phase, held_by, phases
from tests.fabrics import SEEDS, build, fabrics, real
from tests.fake_switch import FakeNetwork, FakeSwitch, Loop, masked


def walk_through(net: FakeNetwork, steps: list[Phase], plans: list[Plan], rng: random.Random) -> None:
    """All changes, in a random order within each phase; no loop after any single one."""
    paths = max(p.path_count for p in plans)
    addresses = {h.mac: [h.mac, *(path_address(h.mac, p) for p in range(paths))] for h in net.fabric.hosts}
    for step in steps:
        for change in rng.sample(step, len(step)):
            net.change(change)
            concerned = list(net.fabric.hosts)
            if isinstance(change.item, Flow):
                mac = change.item.match.eth_dst if change.item.table else None
                concerned = [h for h in net.fabric.hosts if mac and masked(h.mac) == masked(mac)]
            elif change.verb != MODIFY:
                concerned = []
            for host in concerned:
                for address in addresses[host.mac]:
                    loop = net.loop(address, change.switch)
                    if loop:
                        raise Loop(f"{address} after {change}: {loop}")


@st.composite
def outages(draw: st.DrawFn, fabric: Fabric) -> Down:
    links = draw(st.sets(st.sampled_from(fabric.links), max_size=3)) if fabric.links else set()
    names = draw(st.sets(st.sampled_from([s.name for s in fabric.switches]), max_size=1))
    return Down(frozenset(links), frozenset(names))


@given(fabrics(), st.data())
def test_no_state_on_the_way_loops(fabric, data):
    """Plan after plan: other outages, seeds and policies, and fail-over groups with ports that are down or up."""
    rng = random.Random(data.draw(st.integers(0, 1 << 30)))
    net = FakeNetwork(fabric, rng.choice)
    plan: Plan | None = None
    for _ in range(3):
        down = data.draw(outages(fabric))
        for k in fabric.links:
            net.set_link(k, up=k not in down.links or rng.random() < 0.3)
        new = make_plan(fabric, data.draw(st.sampled_from(list(POLICIES))), data.draw(SEEDS), down)
        walk_through(net, phases(plan, new), [p for p in (plan, new) if p], rng)
        assert {n: s.held() for n, s in net.switches.items()} == {s.name: held_by(s) for s in new.switches}
        assert phases(new, new) == []
        plan = new


@given(fabrics(), st.data())
def test_a_switch_that_was_away_comes_back_with_its_old_rules(fabric, data):
    """While it is away the others get another plan, in which it relays nothing; it goes on by its own."""
    rng = random.Random(data.draw(st.integers(0, 1 << 30)))
    net = FakeNetwork(fabric, rng.choice)
    first = make_plan(fabric, down=data.draw(outages(fabric)))
    net.install(phases(None, first))
    away = data.draw(st.sampled_from(fabric.switches)).name
    second = make_plan(fabric, seed=2, down=Down(data.draw(outages(fabric)).links, frozenset({away})))
    steps = [tuple(c for c in step if c.switch != away) for step in phases(first, second)]
    walk_through(net, steps, [first, second], rng)
    if data.draw(st.booleans()):
        # It lost what it had, or got something foreign.
        net.switches[away] = FakeSwitch(away, net.switches[away].up, rng.choice)
        net.switches[away].apply(ADD, Flow(1, 7, Match(eth_dst="02:00:00:00:00:63"), (Output(1),)))
    third = make_plan(fabric, seed=3, down=data.draw(outages(fabric)))
    walk_through(net, phases(second, third, {away: net.switches[away].held()}), [first, second, third], rng)
    assert {n: s.held() for n, s in net.switches.items()} == {s.name: held_by(s) for s in third.switches}


@given(fabrics(), st.data())
def test_a_new_controller_takes_over_what_it_finds(fabric, data):
    """The old one died in the midst of a change; the new one knows nothing but what switches have."""
    rng = random.Random(data.draw(st.integers(0, 1 << 30)))
    net = FakeNetwork(fabric, rng.choice)
    first, second = make_plan(fabric), make_plan(fabric, seed=2, down=data.draw(outages(fabric)))
    net.install(phases(None, first))
    steps = phases(first, second)
    walk_through(net, steps[:data.draw(st.integers(0, len(steps)))], [first, second], rng)
    third = make_plan(fabric, down=data.draw(outages(fabric)))
    found = {n: s.held() for n, s in net.switches.items()}
    walk_through(net, phases(None, third, found), [first, second, third], rng)
    assert {n: s.held() for n, s in net.switches.items()} == {s.name: held_by(s) for s in third.switches}
    assert phases(None, third, {n: s.held() for n, s in net.switches.items()}) == []


def test_a_cut_changes_little():
    """A core link of a fat tree: groups come before the rules that use them, the entrance stays as it is."""
    fabric = real("fattree,4")
    (link,) = fabric.links_between("s9", "s17")
    old, new = make_plan(fabric), make_plan(fabric, down=Down(frozenset({link})))
    steps = phases(old, new)
    changes = [c for step in steps for c in step]
    assert 0 < len(changes) < 200 < sum(len(s.flows) for s in new.switches)
    assert all(c.item.table == 1 for c in changes if isinstance(c.item, Flow))
    assert new.unreachable == frozenset()
    # Only the core switch is farther from the pod now.
    gone = {c.switch for c in steps[0] if c.verb == DELETE}
    assert gone == {"s17"}


def test_a_group_number_with_another_meaning():
    """Two lists of ports may have one checksum: the rules that use it go before it changes, and come after."""
    fabric = real("leafspine,2,2,1")
    new = make_plan(fabric)
    have = new.switch("s1")
    group = have.groups[0]
    other = dataclasses.replace(group, buckets=group.buckets[::-1])
    old = dataclasses.replace(new, switches=tuple(
        dataclasses.replace(s, groups=(other, *s.groups[1:])) if s.name == "s1" else s for s in new.switches))
    steps = phases(old, new)
    verbs = [{(c.verb, type(c.item).__name__) for c in step} for step in steps]
    assert verbs == [{(DELETE, "Flow")}, {(MODIFY, "Group")}, {(ADD, "Flow")}]
    net = FakeNetwork(fabric)
    net.install(phases(None, old))
    net.install(steps)
    assert net.switches["s1"].held() == held_by(have)


def test_changes_in_one_go_would_loop():
    """The same changes without phases: some order does loop, and the checker says so."""
    fabric = build([(1, 2), (2, 3), (3, 4), (4, 5), (5, 1)], [1, 3])
    cut = fabric.links_between("s1", "s2")[0]
    old, new = make_plan(fabric), make_plan(fabric, down=Down(frozenset({cut})))
    loops = 0
    for seed in range(20):
        net = FakeNetwork(fabric)
        net.install(phases(None, old))
        at_once = [c for name in net.switches for c in flat(old, new, name)]
        try:
            walk_through(net, [tuple(at_once)], [old, new], random.Random(seed))
        except Loop:
            loops += 1
    assert loops


def flat(old: Plan, new: Plan, name: str) -> list:
    """Each rule that differs, replaced; without any regard for order."""
    there = {f.key: f for f in old.switch(name).flows}
    return [dataclasses.replace(c, switch=name) for step in phases(None, new) for c in step
            if c.switch == name and (not isinstance(c.item, Flow) or there.get(c.item.key) != c.item)]


def test_held_is_what_a_switch_has():
    assert Held() == Held(frozenset(), frozenset())
    switch = make_plan(real("star,2")).switches[0]
    assert held_by(switch).flows == set(switch.flows)
