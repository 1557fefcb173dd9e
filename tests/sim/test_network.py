"""The simulated network by itself: time, queues, priorities, rates, tables, determinism."""

from __future__ import annotations

import hashlib

import pytest

from smtstack.crypto.keys import demo_keys
from smtstack.errors import ConfigError, LocalError
from smtstack.nic.device import NicConfig
from smtstack.nic.impairments import ImpairmentRates
from smtstack.sim.apps import call, echo
from smtstack.sim.clock import Clock
from smtstack.sim.host import SimEndpoint
from smtstack.sim.link import EgressPort, LinkParams, wire_bytes
from smtstack.sim.network import Network, back_to_back, star
from smtstack.transport.events import Event, Failed, Request, Response
from smtstack.transport.params import TransportParams

PORT = 4000


def frame(size: int, priority: int = 0, dst: bytes = b"\2" * 6) -> bytes:
    """An IPv4 frame as far as a port looks: MAC, EtherType, TOS."""
    return (dst + bytes(6) + b"\x08\x00\x45" + bytes([priority << 5])).ljust(size, b"\0")


def ask(net: Network, client: SimEndpoint, ip: int, port: int, data: bytes) -> bytes:
    """What the server answers."""
    end = call(net, client, ip, port, data)
    assert isinstance(end, Response), end
    return end.data


class Wire:
    """A port on a clock of its own, and what arrives at the far end when."""

    def __init__(self, strict: bool = True, **params: int) -> None:
        self.clock = Clock()
        self.arrived: list[tuple[int, bytes]] = []
        self.port = EgressPort(self.clock, "a->b", LinkParams(**params),
                               lambda f: self.arrived.append((self.clock.now, f)), strict=strict)

    def priorities(self) -> list[int]:
        self.clock.run()
        return [f[15] >> 5 for _at, f in self.arrived]


def test_clock_runs_in_order_of_time_then_of_scheduling():
    clock = Clock()
    seen: list[str] = []
    for at, name in ((20, "c"), (10, "a"), (10, "b")):
        clock.schedule(at, seen.append, name)
    clock.run(until=15)
    assert (seen, clock.now, len(clock)) == (["a", "b"], 15, 1)
    with pytest.raises(LocalError):
        clock.schedule(14, seen.append, "past")
    clock.run()
    assert (seen, clock.now) == (["a", "b", "c"], 20)


@pytest.mark.parametrize(("size", "cost"), [(14, 84), (60, 84), (61, 85), (1514, 1538), (9014, 9038)])
def test_frames_cost_24_bytes_more_and_84_at_least(size, cost):
    assert wire_bytes(size) == cost
    wire = Wire(rate_mbps=1000, delay_ns=500)
    wire.port.send(frame(size))
    wire.clock.run()
    assert wire.arrived[0][0] == cost * 8 + 500


@pytest.mark.parametrize("rate", [7, 100, 10_000, 123_457])
def test_n_frames_take_the_computed_time(rate):
    # No rate divides evenly by all these sizes: rounding must not add up.
    wire = Wire(rate_mbps=rate, delay_ns=11)
    sizes = [60 + 13 * n % 1455 for n in range(1000)]
    for size in sizes:
        wire.port.send(frame(size))
    wire.clock.run()
    assert wire.arrived[-1][0] == sum(map(wire_bytes, sizes)) * 8000 // rate + 11
    assert (wire.port.frames, wire.port.bytes) == (1000, sum(map(wire_bytes, sizes)))


def test_p7_overtakes_queued_p0_but_not_the_frame_on_the_wire():
    wire = Wire()
    for priority in (0, 0, 0, 7, 3, 7):
        wire.port.send(frame(1000, priority))
    assert wire.priorities() == [0, 7, 7, 3, 0, 0]


def test_a_latecomer_overtakes_what_still_waits():
    wire = Wire(rate_mbps=1000)
    for _ in range(4):
        wire.port.send(frame(1000, 0))
    wire.clock.schedule(wire_bytes(1000) * 8 + 1, wire.port.send, frame(100, 6))
    assert wire.priorities() == [0, 0, 6, 0, 0]


def test_a_fifo_port_keeps_the_order():
    wire = Wire(strict=False)
    for priority in (0, 1, 7, 3):
        wire.port.send(frame(1000, priority))
    assert wire.priorities() == [0, 1, 7, 3]


def test_frames_of_one_priority_keep_their_order():
    wire = Wire()
    frames = [frame(100 + n, n % 3) for n in range(60)]
    for sent in frames:
        wire.port.send(sent)
    wire.clock.run()
    for priority in range(3):
        got = [f for _at, f in wire.arrived if f[15] >> 5 == priority]
        assert got == [f for f in frames if f[15] >> 5 == priority]


def test_a_full_queue_drops_and_counts_by_priority():
    wire = Wire(queue_bytes=2500)
    for priority in (0, 5, 5, 7, 0, 7):
        wire.port.send(frame(1000, priority))
    # One is on the wire, two fit; then the queue is full for everybody.
    assert wire.port.drops == [1, 0, 0, 0, 0, 0, 0, 2]
    assert (wire.port.backlog(), wire.port.queue_peak) == (2000, 2000)
    assert wire.priorities() == [0, 5, 5]
    assert (wire.port.backlog(), wire.port.frames) == (0, 3)


def test_a_switch_forwards_by_table_and_counts_strangers():
    net = star(3, link=LinkParams(10_000, 100), forwarding_ns=250)
    seen: list[tuple[int, str]] = []
    net.tap(lambda at, place, _frame: seen.append((at, place)))
    net.run()
    port = net.hosts["h1"].port
    assert port is not None
    port.send(frame(1226, dst=net.hosts["h3"].mac))
    port.send(frame(1226, dst=b"\x02nobod"))
    net.run()
    # 1250 bytes of link time are 1000 ns at 10 Gbit/s.
    assert seen == [(1100, "h1->s1"), (2100, "h1->s1"), (2450, "s1->h3")]
    assert net.switches["s1"].unknown == 1
    # Its bytes are no packet, and the device says so.
    assert net.hosts["h3"].nic.counters.rx_packets == 1


def test_frames_find_their_way_through_several_switches():
    net = Network()
    leaves = [net.add_switch(f"leaf{n}") for n in (1, 2)]
    spine = net.add_switch("spine")
    for leaf in leaves:
        net.connect(leaf, spine)
        for _ in range(2):
            net.connect(net.add_host(), leaf)
    ends = [host.listen(PORT, "smt", demo_keys("smt"), echo) for host in net.hosts.values()]
    places = set()
    net.tap(lambda _at, place, _frame: places.add(place))
    assert ask(net, ends[0], net.hosts["h2"].ip, PORT, b"near") == b"near"
    assert not any("spine" in place for place in places)
    assert ask(net, ends[0], net.hosts["h4"].ip, PORT, b"far") == b"far"
    assert {"leaf1->spine", "spine->leaf2", "leaf2->h4"} <= places


def conversation(seed: int, loss: float = 0.02) -> str:
    """A busy lossy network; a digest of every frame with its time and place."""
    net = Network(seed)
    switch = net.add_switch()
    rates = ImpairmentRates(drop=loss, duplicate=loss, reorder=loss, corrupt=loss, jitter_ns=500)
    for _ in range(4):
        net.connect(net.add_host(tx_rates=rates, rx_rates=rates), switch, LinkParams(1000, 1000, 30_000))
    digest = hashlib.sha256()
    net.tap(lambda at, place, got: digest.update(f"{at} {place} ".encode() + got))
    ends = [host.listen(PORT, "smt", demo_keys("smt"), echo) for host in net.hosts.values()]
    random = net.random("sizes")
    for n in range(120):
        one, other = random.sample(ends, 2)
        size = int(random.paretovariate(0.6)) % 60_000 + 1
        net.clock.schedule(n * 20_000, one.send_request, other.host.ip, PORT, bytes(size))
    net.run()
    for end in ends:
        assert {**end.endpoint.snapshot(), "peers": 0} == dict.fromkeys(end.endpoint.snapshot(), 0)
    return digest.hexdigest()


def test_the_same_seed_gives_the_same_run_frame_for_frame():
    assert conversation(5) == conversation(5)
    assert conversation(5) != conversation(6)


def test_two_users_of_a_seed_do_not_shift_each_other():
    one, other = Network(3), Network(3)
    one.random("a").random()
    assert one.random("b").random() == other.random("b").random() != other.random("a").random()


def test_endpoints_of_one_host_share_its_nic_by_port():
    net = back_to_back()
    a, b = net.hosts.values()
    client = a.listen(5000, "smt", demo_keys("smt"))
    for port, answer in ((1, b"one"), (2, b"two")):
        def reply(here: SimEndpoint, event: Event, answer: bytes = answer) -> None:
            assert isinstance(event, Request)
            here.send_reply(event.rpc, answer)

        b.listen(port, "smt", demo_keys("smt"), reply)
    linux = a.listen(5001, "linux", demo_keys("linux"))
    b.listen(3, "linux", demo_keys("linux"), echo)
    assert ask(net, client, b.ip, 1, b"?") == b"one"
    assert ask(net, client, b.ip, 2, b"?") == b"two"
    assert ask(net, linux, b.ip, 3, b"another protocol number") == b"another protocol number"
    assert b.unclaimed == 0
    assert isinstance(call(net, client, b.ip, 9, b"?"), Failed)
    assert b.unclaimed > 0


@pytest.mark.parametrize("nic", [
    NicConfig(ring_size=1), NicConfig(ring_size=1, tso=False),
    # The device seals, so a segment may need a resync before it: two descriptors.
    NicConfig(ring_size=1, tls_hw_tx_offload=True), NicConfig(ring_size=3, queues=2, tls_hw_tx_offload=True)])
def test_a_full_tx_ring_holds_segments_back_and_loses_none(nic):
    net = back_to_back(nic=nic)
    a, b = net.hosts.values()
    params = TransportParams(unsched_bytes=200_000, max_nic_queue_ns=10**9)
    client = a.listen(5000, "smt", demo_keys("smt"), params=params)
    b.listen(PORT, "smt", demo_keys("smt"), echo, params)
    data = bytes(range(250)) * 600
    assert ask(net, client, b.ip, PORT, data) == data
    assert a.nic.counters.tx_queue_stopped > 0
    assert client.endpoint.counters.packets_resent == 0


def test_wake_ups_do_not_pile_up():
    net = star(2)
    a, b = net.hosts.values()
    client = a.listen(5000, "homa", demo_keys("homa"))
    b.listen(PORT, "homa", demo_keys("homa"), echo)
    deepest = 0

    def look(_at: int, _place: str, _frame: bytes) -> None:
        nonlocal deepest
        deepest = max(deepest, len(net.clock))

    net.tap(look)
    # The pacer wakes the endpoint for each of some 700 packets, and a timer is always armed far ahead.
    assert len(ask(net, client, b.ip, PORT, bytes(1_000_000))) == 1_000_000
    assert deepest < 60


def test_host_delay_is_added_each_way():
    times = []
    for delay in (0, 1000):
        net = back_to_back(host_delay_ns=delay)
        a, b = net.hosts.values()
        done: list[int] = []

        def note(_here: SimEndpoint, _event: Event, net: Network = net, done: list[int] = done) -> None:
            done.append(net.now)

        client = a.listen(5000, "homa", demo_keys("homa"), note)
        b.listen(PORT, "homa", demo_keys("homa"), echo)
        client.send_request(b.ip, PORT, b"ping")
        net.run()
        times.append(done[0])
    assert times[1] - times[0] == 4 * 1000


def test_faults_sit_between_device_and_wire():
    net = Network()
    a = net.add_host(tx_rates=ImpairmentRates(drop=1.0))
    b = net.add_host()
    net.connect(a, b)
    on_wire = []
    net.tap(lambda _at, place, _frame: on_wire.append(place))
    client = a.listen(5000, "homa", demo_keys("homa"))
    b.listen(PORT, "homa", demo_keys("homa"), echo)
    assert isinstance(call(net, client, b.ip, PORT, b"lost"), Failed)
    assert on_wire == []
    assert a.tx_faults is not None
    assert a.nic.counters.tx_packets == a.tx_faults.dropped > 0


def test_mistakes_are_named():
    net = back_to_back()
    a, b = net.hosts.values()
    a.listen(1, "homa", demo_keys("homa"))
    with pytest.raises(ConfigError, match="port 1 is in use"):
        a.listen(1, "homa", demo_keys("homa"))
    with pytest.raises(ConfigError, match="already connected"):
        net.connect(a, net.add_host())
    with pytest.raises(ConfigError, match="no link"):
        net.tap(lambda _at, _place, _frame: None, "h1->h9")
    with pytest.raises(ConfigError, match="h2"):
        net.add_host("h2")
    with pytest.raises(ConfigError, match="address"):
        net.add_host("h8", ip=b.ip)
    with pytest.raises(ConfigError, match="rate"):
        LinkParams(0)
    lonely = net.add_host("lonely").listen(1, "homa", demo_keys("homa"))
    with pytest.raises(ConfigError, match="not connected"):
        lonely.send_request(b.ip, 1, b"?")
