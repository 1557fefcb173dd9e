"""Links by LLDP, in virtual time: which are there, which are not, which are elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllers.discovery import PATIENCE, Discovery, End, is_lldp
from controllers.fabric import Fabric, fabric_of_topo
from topo.topologies import make_topo

PERIOD = 2.0
#: Where a probe comes in that was sent out of an end; None: nowhere.
Cabling = Callable[[End], End | None]


def fabric() -> Fabric:
    return fabric_of_topo(make_topo("leafspine,2,2,1"))


def ends_of(net: Fabric) -> set[End]:
    links = {end for k in net.links for end in ((k.a, k.a_port), (k.b, k.b_port))}
    return links | {(h.switch, h.port) for h in net.hosts}


def right(net: Fabric) -> Cabling:
    """As the fabric says."""
    peer: dict[End, End] = {}
    for k in net.links:
        peer |= {(k.a, k.a_port): (k.b, k.b_port), (k.b, k.b_port): (k.a, k.a_port)}
    return peer.get


def run(discovery: Discovery, cabling: Cabling, live: set[End], begin: float, seconds: float) -> int:
    """Ten looks a period; the number of probes."""
    sent = 0
    for step in range(round(10 * seconds / PERIOD)):
        for end in discovery.due(live, begin + step * PERIOD / 10):
            sent += 1
            at = cabling(end)
            if at is not None:
                assert discovery.received_untrusted(at, discovery.probe(end))
    return sent


def test_all_links_are_found_and_hosts_get_nothing():
    net = fabric()
    discovery = Discovery(net, PERIOD, bytes(8))
    live = ends_of(net)
    assert not discovery.complete(live)
    first = discovery.due(live, 0.0)
    assert sorted(first) == sorted(e for k in net.links for e in ((k.a, k.a_port), (k.b, k.b_port)))
    sent = run(discovery, right(net), live, 0.0, 20 * PERIOD)
    assert sent == pytest.approx(20 * 8, rel=0.1)
    assert discovery.complete(live)
    assert discovery.lost() == set()
    findings = discovery.findings()
    assert (len(findings.found), findings.missing, findings.unexpected) == (8, (), ())
    assert findings.found == findings.expected


def test_probes_are_spread_over_the_period():
    net = fabric()
    discovery = Discovery(net, PERIOD, bytes(8))
    live = ends_of(net)
    at_once = [len(discovery.due(live, step * PERIOD / 10)) for step in range(60)]
    assert at_once[0] == 8
    assert max(at_once[1:]) <= 3


def test_one_direction_is_enough_to_be_lost_and_both_are_needed_to_be_back():
    net = fabric()
    discovery = Discovery(net, PERIOD, bytes(8))
    live, good = ends_of(net), right(net)
    run(discovery, good, live, 0, 2 * PERIOD)
    broken = net.links[1]

    def one_way(end: End) -> End | None:
        return None if end == (broken.b, broken.b_port) else good(end)

    run(discovery, one_way, live, 100, (PATIENCE - 1) * PERIOD)
    assert discovery.lost() == set()
    run(discovery, one_way, live, 200, 4 * PERIOD)
    assert discovery.lost() == {broken}
    assert len(discovery.findings().missing) == 1
    run(discovery, good, live, 300, 2 * PERIOD)
    assert discovery.lost() == set()


def test_swapped_cables_are_seen_at_once_and_named():
    net = fabric()
    discovery = Discovery(net, PERIOD, bytes(8))
    good = right(net)
    swapped = {("s1", 2): ("s1", 3), ("s1", 3): ("s1", 2)}

    def wrong(end: End) -> End | None:
        at = good(swapped.get(end, end))
        return None if at is None else swapped.get(at, at)

    run(discovery, wrong, ends_of(net), 0, PERIOD / 10)
    assert {str(link) for link in discovery.lost()} == {"s1:2-s3:1", "s1:3-s4:1"}
    assert set(discovery.findings().unexpected) == {
        "s1:2 -> s4:1", "s1:3 -> s3:1", "s3:1 -> s1:3", "s4:1 -> s1:2"}


def test_a_port_that_was_down_has_a_fresh_start():
    net = fabric()
    discovery = Discovery(net, PERIOD, bytes(8))
    live, good = ends_of(net), right(net)
    down = {("s1", 2), ("s3", 1)}
    run(discovery, lambda end: None if end in down else good(end), live, 0, 10 * PERIOD)
    assert [str(link) for link in discovery.lost()] == ["s1:2-s3:1"]
    discovery.due(live - down, 1000)
    assert discovery.lost() == set()
    assert set(discovery.due(live, 1000.1)) >= down


def test_only_probes_of_this_controller_count():
    net = fabric()
    mine, other = Discovery(net, PERIOD, b"12345678"), Discovery(net, PERIOD, b"12345679")
    probe = other.probe(("s1", 2))
    assert is_lldp(probe)
    assert not mine.received_untrusted(("s3", 1), probe)
    assert mine.received_untrusted(("s3", 1), mine.probe(("s1", 2)))
    assert mine.findings().found == ("s1:2 -> s3:1",)
    assert not is_lldp(probe[:12] + b"\x08\x00" + probe[14:])


@given(st.binary(max_size=80), st.integers(0, 60), st.integers(0, 255))
def test_whatever_comes_in_does_no_harm(noise: bytes, cut: int, change: int):
    net = fabric()
    discovery = Discovery(net, PERIOD, bytes(8))
    probe = bytearray(discovery.probe(("s1", 2)))
    probe[cut % len(probe)] ^= change
    for frame in (noise, bytes(probe), bytes(probe[:cut]), bytes(probe) + noise):
        discovery.received_untrusted(("s3", 1), frame)
    assert isinstance(discovery.findings().found, tuple)
