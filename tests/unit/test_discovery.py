"""Links by LLDP, in virtual time: which are there, which are not, which are elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllers.controller import DEFAULTS
from controllers.discovery import LONG_PATIENCE, NOTICED_PERIODS, PATIENCE, Discovery, End, is_lldp
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

    run(discovery, one_way, live, 100, 4 * PERIOD)
    assert discovery.lost() == {broken}
    assert len(discovery.findings().missing) == 1
    run(discovery, good, live, 300, 2 * PERIOD)
    assert discovery.lost() == set()


class Clockwork:
    """A controller's looks at a network in virtual time, 20 in a period, by default that of the controller. Probes
    come back after ``answer_s``; those of ``silent`` ends do not, nor any while ``still``."""

    def __init__(self, topo: str, period_s: float = DEFAULTS["lldp_s"], answer_s: float = 0.001) -> None:
        self.net = fabric_of_topo(make_topo(topo))
        self.discovery = Discovery(self.net, period_s, bytes(8))
        self.period_s, self.answer_s = period_s, answer_s
        self.silent: set[End] = set()
        self.still = False
        self.now = 0.0
        self._good, self._live = right(self.net), ends_of(self.net)
        self._under_way: list[tuple[float, End, End]] = []

    def look(self) -> None:
        self.now += self.period_s / 20
        self._under_way += [(self.now + self.answer_s, end, at) for end in self.discovery.due(self._live, self.now)
                            if end not in self.silent and (at := self._good(end)) is not None]
        if self.still:
            return
        for when, end, at in [each for each in self._under_way if each[0] <= self.now + self.period_s / 20]:
            self._under_way.remove((when, end, at))
            self.discovery.received_untrusted(at, self.discovery.probe(end), when)

    def run(self, periods: float) -> None:
        for _ in range(round(20 * periods)):
            self.look()

    def until_lost(self) -> float:
        begin = self.now
        while not self.discovery.lost():
            self.look()
            assert self.now < begin + 100
        return self.now - begin


@pytest.mark.parametrize("topo", ["dumbbell,1", "leafspine,2,2,1", "fattree,4"])
def test_the_loss_of_any_one_direction_is_noticed_within_a_second(topo: str):
    for link in Clockwork(topo).net.links:
        for number, end in enumerate([(link.a, link.a_port), (link.b, link.b_port)]):
            # Whenever it happens, with respect to the probes.
            for moment in (3.0, 3.3, 3.65) if topo != "fattree,4" else (3.0 + number / 2,):
                network = Clockwork(topo)
                network.run(moment)
                network.silent = {end}
                seconds = network.until_lost()
                assert network.discovery.lost() == {link}
                assert seconds < 1.0
                assert seconds <= (NOTICED_PERIODS + (PATIENCE + 3) / 20) * network.period_s
                network.run(5)
                assert network.discovery.lost() == {link}, "and no other, later"
                network.silent = set()
                network.run(2.1)
                assert network.discovery.lost() == set()


def test_both_directions_are_missed_where_there_are_others():
    network = Clockwork("leafspine,2,2,1")
    network.run(3)
    link = network.net.links[0]
    network.silent = {(link.a, link.a_port), (link.b, link.b_port)}
    assert network.until_lost() < 5 * network.period_s
    assert network.discovery.lost() == {link}


def test_a_machine_that_stands_still_has_lost_nothing_yet():
    network = Clockwork("leafspine,2,2,1")
    network.run(3)
    network.still = True
    network.run(LONG_PATIENCE - 2)
    assert network.discovery.lost() == set()
    network.still = False
    network.run(3)
    assert network.discovery.lost() == set()
    network.still = True
    network.run(LONG_PATIENCE + 3)
    assert network.discovery.lost() == set(network.net.links), "for so long, nothing gets through at all"


@pytest.mark.parametrize("answer_s", [0.1, 0.3, 0.9])
def test_links_may_be_slow(answer_s: float):
    network = Clockwork("leafspine,2,2,1", answer_s=answer_s)
    for _ in range(100):
        network.run(1)
        assert network.discovery.lost() == set()


def test_a_busy_link_may_lose_some():
    network = Clockwork("leafspine,2,2,1")
    network.run(3)
    link = network.net.links[0]
    seconds = network.period_s * (NOTICED_PERIODS - 2 * 0.2)
    network.silent = {(link.a, link.a_port)}
    network.run(seconds / network.period_s)
    network.silent = set()
    network.run(5)
    assert network.discovery.lost() == set()


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
