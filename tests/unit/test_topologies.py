"""Topologies, spanning trees and link options, before anything of them is made."""

from __future__ import annotations

import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtstack.errors import ConfigError, SmtError, Unsupported
from topo import commands, ovs, sandbox, switches
from topo.link_options import LinkOptions
from topo.shaping import HIGHEST_MBPS, LOWEST_MBPS
from topo.switches import choose, spanning_tree
from topo.topologies import TOPOS, SmtTopo, make_topo

#: (text, hosts, switches, links, flows)
SHAPES = [
    ("back2back", 2, 0, 1, 1),
    ("star", 4, 1, 4, 4),
    ("star,2", 2, 1, 2, 2),
    ("star,7", 7, 1, 7, 7),
    ("fanout", 5, 1, 5, 4),
    ("fanout,1,1", 2, 1, 2, 1),
    ("fanout,3,2", 10, 4, 13, 9),
    ("fanout,2,3", 9, 7, 15, 8),
    ("dumbbell,3", 6, 2, 7, 3),
    ("incast,5", 6, 2, 7, 5),
    ("leafspine,2,1,1", 2, 3, 4, 2),
    ("leafspine,3,2,4", 12, 5, 18, 12),
    ("fattree", 16, 20, 48, 16),
    ("fattree,2", 2, 5, 6, 2),
    ("fattree,6", 54, 45, 162, 54),
]
#: Those of them with several ways between two hosts.
MESHES = {"leafspine,3,2,4", "fattree", "fattree,6"}


def edges(topo: SmtTopo) -> list[tuple[str, str, int]]:
    return [(info["node1"], info["node2"], n) for n, (_a, _b, info) in enumerate(topo.iterLinks(withInfo=True))]


def parts(nodes: list[str], links: list[tuple[str, str, int]]) -> int:
    """How many pieces the graph is in."""
    group = {n: n for n in nodes}
    for a, b, _n in links:
        old, new = group[a], group[b]
        group = {n: new if g == old else g for n, g in group.items()}
    return len(set(group.values()))


@pytest.mark.parametrize(("text", "hosts", "switches_", "links", "flows"), SHAPES)
def test_shapes(text, hosts, switches_, links, flows):
    topo = make_topo(text)
    assert (len(topo.hosts()), len(topo.switches()), len(topo.links())) == (hosts, switches_, links)
    assert parts(list(topo.nodes()), edges(topo)) == 1
    assert (links == hosts + switches_ - 1) is (text not in MESHES)
    assert len(topo.flows) == len(set(topo.flows)) == flows
    assert all(a != b and {a, b} <= set(topo.hosts()) for a, b in topo.flows)


@pytest.mark.parametrize("text", [s[0] for s in SHAPES])
def test_every_host_has_one_link_and_a_mac_address_by_its_number(text):
    topo = make_topo(text)
    assert topo.hosts() == [f"h{n}" for n in range(1, len(topo.hosts()) + 1)]
    assert topo.switches() == [f"s{n}" for n in range(1, len(topo.switches()) + 1)]
    for n, host in enumerate(topo.hosts(), 1):
        assert topo.nodeInfo(host)["mac"] == f"02:00:00:00:00:{n:02x}"
        assert sum(host in (a, b) for a, b, _n in edges(topo)) == 1
    # A name with -eth and a port, and "w-" before it, has to fit the kernel's 15 characters.
    assert max(len(f"w-{n}-eth10") for n in topo.nodes()) <= 15


def test_flows_are_what_the_topologies_are_about():
    assert make_topo("fanout,2,2").flows == [("h1", f"h{n}") for n in range(2, 6)]
    assert make_topo("incast,3").flows == [(f"h{n}", "h1") for n in range(2, 5)]
    assert make_topo("dumbbell,2").flows == [("h1", "h3"), ("h2", "h4")]
    assert make_topo("leafspine,2,2,2").flows == [("h1", "h3"), ("h2", "h4"), ("h3", "h1"), ("h4", "h2")]
    assert make_topo("fattree,2").flows == [("h1", "h2"), ("h2", "h1")]
    assert make_topo("fattree,4").flows[3:13:9] == [("h4", "h8"), ("h13", "h1")]


@pytest.mark.parametrize("ports", [2, 4, 6, 8])
def test_a_fat_tree_is_of_switches_with_k_ports(ports):
    topo = make_topo(f"fattree,{ports}")
    neighbours: dict[str, set[str]] = {n: set() for n in topo.nodes()}
    for a, b, _n in edges(topo):
        neighbours[a].add(b)
        neighbours[b].add(a)
    assert all(len(neighbours[s]) == ports for s in topo.switches())
    pods: dict[str, int] = {}
    for n, host in enumerate(topo.hosts()):
        (edge,) = neighbours[host]
        pods[edge] = n // (ports // 2) ** 2
        pods.update({s: pods[edge] for s in neighbours[edge] if s in topo.switches()})
    core = set(topo.switches()) - set(pods)
    assert len(core) == (ports // 2) ** 2
    # A core switch reaches each pod over one switch, and two pods share no switch below.
    assert all(sorted(pods[s] for s in neighbours[c]) == list(range(ports)) for c in core)


@pytest.mark.parametrize(("text", "words"), [
    ("str,4", "unknown topology 'str'; did you mean star,4?"),
    ("fannout,4", "did you mean fanout,4?"),
    ("ring,4", "there are back2back, star,N, fanout,LEAVES,DEPTH, dumbbell,N, incast,N, leafspine,L,S,H"),
    ("", "unknown topology ''"),
    ("star,x", "topology star,N: N is 'x'; a number from 2 to 250, e.g. star,4"),
    ("star,1", "N is '1'"),
    ("star,4.5", "N is '4.5'"),
    ("star,", "N is ''"),
    ("star,251", "a number from 2 to 250"),
    ("star,4,2", "2 arguments are too many: topology star,N takes at most 1, e.g. star,4"),
    ("back2back,2", "back2back takes none"),
    ("fanout,4,0", "DEPTH is '0'"),
    ("fanout,100,2", "that is 10001 hosts or switches; at most 250"),
    ("leafspine,1,1,1", "L is '1'"),
    ("leafspine,200,200,1", "that is 400 hosts or switches"),
    ("fattree,3", "topology fattree,K: K is 3; an even number, e.g. fattree,4"),
    ("fattree,10", "a number from 2 to 8"),
])
def test_what_is_mistyped_is_said_with_the_right_spelling(text, words):
    with pytest.raises(ConfigError) as e:
        make_topo(text)
    assert words in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", TOPOS.values(), ids=list(TOPOS))
def test_plain_mininet_can_build_them(kind):
    """``mn --topo star,4`` gives numbers, and ``lopts`` for the links."""
    arguments = [int(a) for a in kind.example.split(",")[1:]]
    topo = kind(*arguments, lopts={"rate_mbps": 10})
    assert all(info["rate_mbps"] == 10 for _a, _b, info in topo.iterLinks(withInfo=True))
    assert make_topo(kind.example).links() == topo.links()
    assert kind.syntax in (kind.__doc__ or "") or kind.syntax.partition(",")[0] in kind.__name__.lower()


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)).filter(lambda e: e[0] != e[1]), max_size=30))
def test_spanning_tree(pairs):
    links = [(f"s{a}", f"s{b}", n) for n, (a, b) in enumerate(pairs)]
    nodes = sorted({n for link in links for n in link[:2]})
    tree = spanning_tree(links)
    assert tree <= set(links)
    assert parts(nodes, list(tree)) == parts(nodes, links)
    assert len(tree) == len(nodes) - parts(nodes, links)  # no loop
    assert tree == spanning_tree(reversed(links))  # whoever asks


def test_a_switch_is_chosen_by_what_there_is(monkeypatch):
    monkeypatch.setattr(ovs, "is_installed", lambda: False)
    monkeypatch.setattr(ovs, "is_running", lambda: False)
    assert choose("auto") == ("bridge", "Open vSwitch is not installed")
    with pytest.raises(Unsupported, match="apt-get install openvswitch-switch"):
        choose("ovs-user")
    monkeypatch.setattr(ovs, "is_installed", lambda: True)
    assert choose("auto") == ("bridge", "Open vSwitch does not run")
    monkeypatch.setattr(ovs, "is_running", lambda: True)
    monkeypatch.setattr(ovs, "has_kernel_datapath", lambda: False)
    assert choose("auto")[0] == choose("ovs-user")[0] == "ovs-user"
    with pytest.raises(Unsupported, match="--switch ovs-user"):
        choose("ovs")
    monkeypatch.setattr(ovs, "has_kernel_datapath", lambda: True)
    assert choose("auto")[0] == choose("ovs")[0] == "ovs"
    assert choose("bridge")[0] == "bridge"
    with pytest.raises(ConfigError, match="unknown switch 'hub'; there are auto, ovs, ovs-user, bridge"):
        choose("hub")
    assert set(switches.KINDS) == {"auto", "ovs", "ovs-user", "bridge"}


@pytest.mark.parametrize(("options", "words"), [
    ({"rate_mbps": 0}, "rate_mbps: 0 is not a rate"),
    ({"rate_mbps": HIGHEST_MBPS * 2}, "rate_mbps: 20000.0 is not"),
    ({"bw": LOWEST_MBPS / 2}, "bw: 0.005 is not a rate such as 0.5 or 10Gbit, from 0.01 to 10,000 Mbit"),
    ({"rate_mbps": "fast"}, "rate_mbps: 'fast' is not a rate"),
    ({"mtu": 100}, "mtu: 100 is not a whole size such as 1500 or 64KB, from 576 to 9,000 B"),
    ({"mtu": "big"}, "mtu: 'big'"),
    ({"buffer_bytes": 1000}, "a frame of 1514 must fit"),
    ({"loss": "101"}, "loss: '101' is not a percentage such as 1 or 0.5%, from 0 to 100 %"),
    ({"loss": "1%", "wire": "no"}, "use wire=auto"),
    ({"delay_us": -1}, "delay_us: -1 is not a time"),
    ({"wire": "maybe"}, "one of auto, yes, no"),
    ({"tso": "on", "wire": "yes"}, "use tso=off"),
    ({"tso": "on", "corrupt": 0.1}, "use tso=off"),
    ({"nic": ("tso=maybe",)}, "tso is on, off or default"),
    ({"nic": "warp=on"}, "a NIC has no setting 'warp'"),
    ({"colour": "blue"}, "a link has no option 'colour'; there are rate_mbps"),
])
def test_link_options_that_cannot_be(options, words):
    with pytest.raises(ConfigError) as e:
        LinkOptions().changed(options)
    assert words in str(e.value)
    assert "\n" not in str(e.value)


def test_link_options_as_mn_writes_them():
    options = LinkOptions(loss=0.5).changed({"rate_mbps": 100, "loss": "1%", "delay_us": 20, "mtu": "9000",
                                             "nic": "tso:off+max-contexts=4"})
    assert (options.rate_mbps, options.loss, options.mtu) == (100.0, 1.0, 9000)
    assert options.rates().drop == 0.01
    assert options.has_wire
    assert options.rates().delay_ns == 20_000
    assert options.settings().features == {"tso": False}
    assert options.settings().max_contexts == 4
    assert not LinkOptions(wire="no").has_wire
    assert LinkOptions(wire="yes").has_wire
    assert not LinkOptions(rate_mbps=10).has_wire


def test_a_program_that_is_missing_and_one_that_refuses(monkeypatch, tmp_path):
    refuse = "import sys; sys.exit('no\\nsuch thing')"
    with pytest.raises(SmtError, match=r"^h1: .*no such thing$"):
        commands.run([sys.executable, "-c", refuse], where="h1")
    tool = tmp_path / "tc"
    tool.write_text("#!/bin/sh\ncat > /dev/null\necho 'Error: bad class.' >&2\n"
                    "echo 'Command failed -:2' >&2\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(SmtError) as e:
        commands.batch("tc", ["qdisc one", "class two", "class three"], where="s1-eth1")
    assert str(e.value) == "s1-eth1: tc class two: Error: bad class."
    monkeypatch.setattr(commands, "_PATH", "")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unsupported, match="ovs-vsctl is not installed: apt-get install openvswitch-switch"):
        commands.run(["ovs-vsctl", "show"])


def test_a_sandbox_needs_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Unsupported, match="sudo"):
        sandbox.enter()


def test_the_mark_of_another_sandbox_does_not_count(monkeypatch):
    monkeypatch.setenv(sandbox.VARIABLE, "1")
    assert not sandbox.inside()
