"""The planner, by following frames through fake switches that have its plans, over random and real networks."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict, deque
from itertools import combinations, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllers.fabric import Host, Link, fabric_of_topo
from controllers.plan import (
    LLDP_MAC,
    Action,
    Down,
    Flow,
    Match,
    Output,
    Plan,
    SetEthDst,
    ToController,
    ToGroup,
    path_address,
)
from controllers.planner import MOST_PATHS, make_plan, path_count
from controllers.policies import POLICIES
from controllers.update import ADD, DELETE
from smtstack.errors import ConfigError
from tests.fabrics import REAL, SEEDS, addresses, build, distances, fabrics, real, running
from tests.fake_switch import BROADCAST, CONTROLLER, FakeNetwork, Frame, Loop, Refused, arp_request
from topo.topologies import make_topo


def check_pair(plan: Plan, net: FakeNetwork, src: Host, dst: Host, hops: int) -> None:
    """A frame to each address of ``dst`` arrives there once, with its own address, on a shortest way."""
    ways = plan.paths(src.name, dst.name)
    assert len(ways) == plan.path_count
    for address in addresses(plan, dst):
        sent = net.send(src.name, Frame(address, src.mac))
        assert sent.arrived == ((dst.name, Frame(dst.mac, src.mac)),)
        assert len(sent.passed) == hops + 1
        if plan.policy != "ecmp" and address != dst.mac:
            assert sent.passed == ways[addresses(plan, dst).index(address) - 1]
    path = plan.flow_path(src.name, dst.name)
    if path is not None:
        assert net.send(src.name, Frame(dst.mac, src.mac)).passed == ways[path]
    elif plan.policy != "ecmp":
        assert plan.path_count == 1 or src.switch == dst.switch


def check_balance(plan: Plan, net: FakeNetwork) -> None:
    """The paths to a host differ by at most 1 in number over the equally near next hops, of all switches."""
    known = distances(plan.fabric, plan.down)
    for host in plan.fabric.hosts:
        for switch in plan.fabric.switches:
            here = known.get((switch.name, host.switch))
            if not here:
                continue
            nearer = {p.number for p in plan.fabric.ports(switch.name)
                      if known.get((p.neighbour, host.switch)) == here - 1
                      and (p.neighbour not in plan.down.switches or p.neighbour == host.switch)
                      and plan.fabric.link_at(switch.name, p.number) not in plan.down.links}
            used = Counter(dict.fromkeys(nearer, 0))
            for path in range(plan.path_count):
                used.update(net.switches[switch.name].ways(path_address(host.mac, path)))
            assert set(used) == nearer
            assert max(used.values()) - min(used.values()) <= 1


def check_all(plan: Plan, chosen: int = 0) -> FakeNetwork:
    """Everything that is promised of any plan whose ``down`` is in truth out of order."""
    fabric = plan.fabric
    net = running(plan, chosen)
    for k in plan.down.links:
        net.set_link(k, up=False)
    known = distances(fabric, plan.down)
    cut_off = set()
    for src, dst in permutations(fabric.hosts, 2):
        hops = known.get((src.switch, dst.switch))
        if hops is None:
            cut_off.add((src.name, dst.name))
            assert plan.paths(src.name, dst.name) == ()
            assert all(net.send(src.name, Frame(a, src.mac)).arrived == () for a in addresses(plan, dst))
        else:
            check_pair(plan, net, src, dst, hops)
    assert plan.unreachable == cut_off
    for host in fabric.hosts:
        assert not any(net.loop(a) for a in addresses(plan, host))
    if plan.policy != "ecmp":
        check_balance(plan, net)
    return net


@given(fabrics(), st.sampled_from(list(POLICIES)), SEEDS)
def test_every_pair_is_connected_by_shortest_ways(fabric, policy, seed):
    check_all(make_plan(fabric, policy, seed), seed)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("text", REAL)
def test_every_pair_of_our_topologies_is_connected(text, policy):
    check_all(make_plan(real(text), policy))


@given(fabrics(), st.data())
def test_what_is_down_is_gone_around(fabric, data):
    links = data.draw(st.sets(st.sampled_from(fabric.links), max_size=4)) if fabric.links else set()
    names = data.draw(st.sets(st.sampled_from([s.name for s in fabric.switches]), max_size=2))
    policy = data.draw(st.sampled_from(list(POLICIES)))
    whole = make_plan(fabric, policy)
    plan = make_plan(fabric, policy, down=Down(frozenset(links), frozenset(names)))
    check_all(plan)
    # Senders and hosts' ports need not be told.
    assert plan.path_count == whole.path_count
    assert [[f for f in s.flows if f.table == 0] for s in plan.switches] == [
        [f for f in s.flows if f.table == 0] for s in whole.switches]


@given(fabrics())
def test_arp_is_answered_and_nothing_is_flooded(fabric):
    net = running(make_plan(fabric))
    for src in fabric.hosts:
        for dst in fabric.hosts:
            answer = net.send(src.name, arp_request(src.mac, src.ip, dst.ip))
            assert answer.arrived == ((src.name, Frame(src.mac, dst.mac, 0x0806, 2, dst.ip, src.ip)),)
            assert answer.passed == (src.switch,)
            # The kernel asks one it knows already by a frame to it alone.
            again = dataclasses.replace(arp_request(src.mac, src.ip, dst.ip), eth_dst=dst.mac)
            assert net.send(src.name, again) == answer
        for nobodys in (arp_request(src.mac, src.ip, "10.0.0.99"),
                        Frame(BROADCAST, src.mac, 0x0806, 2, src.ip, src.ip),
                        Frame(BROADCAST, src.mac), Frame("33:33:00:00:00:02", src.mac, 0x86DD),
                        Frame("01:00:5e:00:00:01", src.mac), Frame("02:00:00:00:01:63", src.mac),
                        Frame(LLDP_MAC, src.mac, 0x88CC), Frame(src.mac, src.mac)):
            sent = net.send(src.name, nobodys)
            assert sent.arrived == ()
            assert sent.passed == (src.switch,)
    for switch in net.switches.values():
        for port in fabric.ports(switch.name):
            # From another switch: no answers, no flood; LLDP alone goes to the controller.
            request = arp_request("02:00:00:00:00:01", "10.0.0.1", "10.0.0.2")
            assert switch.receive(request, port.number) == []
            lldp = Frame(LLDP_MAC, "02:00:00:00:00:77", 0x88CC)
            assert switch.receive(lldp, port.number) == [(CONTROLLER, lldp)]
        # A port that the fabric does not know.
        assert switch.receive(Frame("02:00:00:00:00:01", "02:00:00:00:00:77"), 60) == []


@given(fabrics(), st.sampled_from(list(POLICIES)))
def test_a_cable_breaks_and_fail_over_alone_never_loops(fabric, policy):
    plan = make_plan(fabric, policy)
    net = running(plan)
    known = distances(fabric)
    passing = defaultdict(list)
    for src, dst in permutations(fabric.hosts, 2):
        for path in range(plan.path_count):
            for switch, port in plan.hops(src.name, dst.name, path)[:-1]:
                passing[fabric.link_at(switch, port)].append((src, dst, path))
    for link in fabric.links:
        net.set_link(link, up=False)
        for host in fabric.hosts:
            assert not any(net.loop(a) for a in addresses(plan, host))
        for src, dst, path in passing[link]:
            sent = net.send(src.name, Frame(path_address(dst.mac, path), src.mac))
            # Either it arrives, or it came to a switch where no other next hop is as near.
            end = sent.passed[-1]
            assert [name for name, _frame in sent.arrived] == [dst.name] or not any(
                known[p.neighbour, dst.switch] < known[end, dst.switch] and p.number in net.switches[end].up
                for p in fabric.ports(end))
        net.set_link(link, up=True)


def test_fail_over_alone_heals_the_way_up_a_fat_tree():
    """A cable to the core: only frames on their way down by it are lost until there is a new plan."""
    fabric = real("fattree,4")
    plan = make_plan(fabric)
    net = running(plan)
    (link,) = fabric.links_between("s9", "s17")
    net.set_link(link, up=False)
    lost = set()
    for src, dst in permutations(fabric.hosts, 2):
        for path, way in enumerate(plan.paths(src.name, dst.name)):
            sent = net.send(src.name, Frame(path_address(dst.mac, path), src.mac))
            if not sent.arrived:
                lost.add((way.index("s17"), way[way.index("s17") + 1]))
    assert lost == {(2, "s9")}


@pytest.mark.parametrize("text", ["leafspine,2,4,2", "leafspine,3,3,2", "fattree,4", "fattree,6"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_all_ways_of_a_pair_are_used_and_flows_spread(text, seed):
    fabric = real(text)
    plan = make_plan(fabric, "flow", seed)
    (size, *more) = (int(n) for n in text.split(",")[1:])
    assert plan.path_count == (more[0] if more else (size // 2) ** 2)
    known = distances(fabric)
    far = max(known.values())
    for src, dst in permutations(fabric.hosts, 2):
        if known[src.switch, dst.switch] == far:
            assert len(set(plan.paths(src.name, dst.name))) == plan.path_count
    for switch in fabric.switches:
        none_yet = dict.fromkeys((p.number for p in fabric.ports(switch.name)), 0)
        uplinks: Counter[int] = Counter(none_yet)
        for src in fabric.hosts_at(switch.name):
            used: Counter[int] = Counter(dict.fromkeys(range(plan.path_count), 0))
            first: Counter[int] = Counter(none_yet)
            for dst in fabric.hosts:
                path = plan.flow_path(src.name, dst.name) if dst is not src else None
                if path is not None:
                    used[path] += 1
                    first[plan.hops(src.name, dst.name, path)[0][1]] += 1
            assert max(used.values()) - min(used.values()) <= 1
            assert max(first.values()) - min(first.values()) <= 1
            uplinks.update(first)
        assert set(uplinks) == set(none_yet)
        assert max(uplinks.values()) - min(uplinks.values()) <= 1


@given(fabrics(), SEEDS)
def test_flows_spread_over_the_paths(fabric, seed):
    plan = make_plan(fabric, "flow", seed)
    for switch in fabric.switches:
        at_switch: Counter[int] = Counter(dict.fromkeys(range(plan.path_count), 0))
        for src in fabric.hosts_at(switch.name):
            used: Counter[int] = Counter(dict.fromkeys(range(plan.path_count), 0))
            used.update(path for dst in fabric.hosts if dst is not src
                        and (path := plan.flow_path(src.name, dst.name)) is not None)
            assert max(used.values()) - min(used.values()) <= 1
            at_switch.update(used)
        assert max(at_switch.values()) - min(at_switch.values()) <= 1


def test_hosts_at_one_place_of_two_leaves_take_different_paths():
    plan = make_plan(real("leafspine,2,4,4"))
    assert len({plan.flow_path(a, b) for a, b in (("h1", "h5"), ("h2", "h6"), ("h3", "h7"), ("h4", "h8"))}) == 4


def test_the_seed_turns_choices_and_repeats():
    fabric = real("fattree,4")
    assert make_plan(fabric, seed=3) == make_plan(fabric, seed=3)
    assert make_plan(fabric, seed=3).switches != make_plan(fabric, seed=4).switches
    assert make_plan(fabric, "message").switches == make_plan(fabric, "flow").switches
    assert hash(make_plan(fabric)) == hash(make_plan(fabric))


def test_paths_are_counted_to_a_limit():
    assert path_count(build([(1, 2)] * 3 + [(2, 3)] * 2, [1, 3])) == 6
    assert path_count(build([(1, 2)] * 9 + [(2, 3)] * 9, [1, 3])) == MOST_PATHS
    assert path_count(build([], [1, 1])) == 1
    # By the hosts' ways only, not those between switches without any.
    assert path_count(build([(1, 2), (2, 3), (2, 3)], [1, 2])) == 1


def test_a_plan_for_people_and_for_programs():
    plan = make_plan(real("leafspine,2,2,1"))
    raw = json.loads(json.dumps(plan.to_json()))
    assert raw["path_count"] == 2
    assert raw["switches"][0]["name"] == "s1"
    assert {"AnswerArp": {"mac": "02:00:00:00:00:02", "ip": "10.0.0.2"}} in [
        a for f in raw["switches"][0]["flows"] for a in f["actions"]]
    assert raw["switches"][0]["groups"][0]["kind"] == "fast_failover"
    assert plan.switch("s1") is plan.switches[0]
    with pytest.raises(ConfigError, match="there is no switch 's9'; there are s1, s2"):
        plan.switch("s9")
    for arguments in (("h1", "h1", 0), ("h1", "h2", 2), ("h1", "h9", 0)):
        with pytest.raises(ConfigError):
            plan.hops(*arguments)


def test_queues_are_as_the_links_are():
    topo = make_topo("leafspine,2,1,1")
    topo.setlinkInfo("h1", "s1", {**topo.linkInfo("h1", "s1"), "rate_mbps": 100.0, "buffer_bytes": 5000})
    topo.setlinkInfo("s1", "s3", {**topo.linkInfo("s1", "s3"), "rate_mbps": 20.0})
    plan = make_plan(fabric_of_topo(topo))
    assert [(q.interface, q.rate_mbps, q.buffer_bytes) for s in plan.switches for q in s.queues] == [
        ("s1-eth1", 100.0, 5000), ("s1-eth2", 20.0, None), ("s3-eth1", 20.0, None)]


@pytest.mark.parametrize(("arguments", "words"), [
    ({"policy": "fastest"}, "unknown multi-path policy 'fastest'; there are flow, message, ecmp"),
    ({"down": Down(switches=frozenset({"s9"}))}, "there is no switch 's9'"),
    ({"down": Down(frozenset({Link("s1", 1, "s2", 1)}))}, "there is no link s1:1-s2:1"),
])
def test_what_cannot_be_planned(arguments, words):
    with pytest.raises(ConfigError) as e:
        make_plan(real("leafspine,2,2,1"), **arguments)
    assert words in str(e.value)


# Controls: the checks above do see what they are there to see.

def with_flow(plan: Plan, name: str, flow: Flow) -> Plan:
    return dataclasses.replace(plan, switches=tuple(
        dataclasses.replace(s, flows=(*(f for f in s.flows if f.key != flow.key), flow)) if s.name == name else s
        for s in plan.switches))


def turned(plan: Plan, name: str, host: str, action: Action) -> Plan:
    """With the rules of a switch for a host replaced."""
    mac = plan.fabric.host(host).mac
    for flow in plan.switch(name).flows:
        if flow.table and flow.match.eth_dst is not None and flow.match.eth_dst[6:] == mac[6:]:
            plan = with_flow(plan, name, dataclasses.replace(flow, actions=(action,)))
    return plan


def test_the_checker_sees_a_loop():
    fabric = build([(1, 2), (2, 3), (3, 1)], [1, 2, 3])
    # s2 and s3 send what is for h1 to each other.
    there, back = fabric.links_between("s2", "s3")[0].a_port, fabric.links_between("s2", "s3")[0].b_port
    plan = turned(turned(make_plan(fabric), "s2", "h1", Output(there)), "s3", "h1", Output(back))
    net = running(plan)
    assert net.loop("02:00:00:00:00:01") == ["s2", "s3", "s2"]
    with pytest.raises(AssertionError):
        check_all(plan)
    ring = build([(1, 2), (2, 3), (3, 4), (4, 2)], [1, 2])
    plan = make_plan(ring)
    for a, b in (("s2", "s3"), ("s3", "s4"), ("s4", "s2")):
        link = ring.links_between(a, b)[0]
        plan = turned(plan, a, "h1", Output(link.a_port if link.a == a else link.b_port))
    with pytest.raises(Loop):
        running(plan).send("h2", Frame("02:00:00:00:00:01", "02:00:00:00:00:02"))


@pytest.mark.parametrize("action", [SetEthDst(BROADCAST), ToController(), Output(1)])
def test_the_checker_sees_what_goes_elsewhere(action):
    plan = make_plan(real("leafspine,2,2,2"))
    check_all(plan)
    with pytest.raises(AssertionError):
        check_all(turned(plan, "s2", "h4", action))


def test_the_checker_sees_two_copies_a_detour_and_an_imbalance():
    plan = make_plan(real("leafspine,2,2,1"))
    mac = plan.fabric.host("h2").mac
    last = next(f for f in plan.switch("s2").flows if Output(plan.fabric.host("h2").port) in f.actions)
    with pytest.raises(AssertionError):
        check_all(with_flow(plan, "s2", dataclasses.replace(last, actions=last.actions + last.actions[-1:])))
    one, other = (next(f for f in plan.switch("s1").flows if f.table and f.match.eth_dst == path_address(mac, p))
                  for p in range(2))
    with pytest.raises(AssertionError):
        check_balance(plan, running(with_flow(plan, "s1", dataclasses.replace(one, actions=other.actions))))
    line = make_plan(build([(1, 2), (2, 3), (1, 3)], [1, 3]))
    detour = next(p.number for p in line.fabric.ports("s1") if p.neighbour == "s2")
    with pytest.raises(AssertionError):
        check_all(turned(line, "s1", "h2", Output(detour)))


def test_the_fake_switch_refuses_what_real_ones_do():
    net = running(make_plan(real("leafspine,2,2,1")))
    switch = net.switches["s1"]
    group = next(iter(switch.groups.values()))
    flow = next(f for f in switch.flows.values() if f.groups)
    for verb, item in ((ADD, group), (DELETE, dataclasses.replace(group, number=5)),
                       (ADD, Flow(1, 1, flow.match, (ToGroup(5),))),
                       (DELETE, dataclasses.replace(flow, priority=5))):
        with pytest.raises(Refused):
            switch.apply(verb, item)
    switch.apply(DELETE, group)
    assert not any(group.number in f.groups for f in switch.flows.values())
    switch.apply(ADD, Flow(1, 100, Match(eth_type=0x0800), (Output(1),)))
    with pytest.raises(Refused, match="overlap"):
        switch.ways("02:00:00:00:00:01")


def test_distances_by_another_way():
    """The test's own distances, against a plain search."""
    fabric = real("fattree,4")
    known = distances(fabric)
    for a, b in combinations(fabric.switches, 2):
        seen, row = {a.name: 0}, deque([a.name])
        while row:
            here = row.popleft()
            for p in fabric.ports(here):
                if p.neighbour not in seen:
                    seen[p.neighbour] = seen[here] + 1
                    row.append(p.neighbour)
        assert known[a.name, b.name] == seen[b.name]
