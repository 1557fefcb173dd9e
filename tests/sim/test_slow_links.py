"""Parameters that follow the rate of the link: they fill it, keep queues short, and do not ask twice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from smtstack.crypto.keys import demo_keys
from smtstack.sim.host import SimEndpoint
from smtstack.sim.link import LinkParams
from smtstack.sim.network import Network, star
from smtstack.transport.events import Event, Request
from smtstack.transport.params import SOFTWARE, SOFTWARE_RTT_NS, TransportParams, software

PORT = 4000


class Rush:
    """Hosts that all send messages to the first, at once, through one switch."""

    def __init__(self, profile: str, rate: int, sizes: list[int], senders: int = 1,
                 params: TransportParams | None = None) -> None:
        # A quarter of the round trip in each passage between endpoint and wire.
        self.net: Network = star(senders + 1, link=LinkParams(rate), host_delay_ns=SOFTWARE_RTT_NS // 4)
        self.arrived: list[tuple[int, int]] = []
        self.ends = [host.listen(PORT, profile, demo_keys(profile), self._on_event, params or software(rate))
                     for host in self.net.hosts.values()]
        for end in self.ends[1:]:
            # All know each other's cutoffs.
            self._ask(end, 1)
        self.net.run()
        self.arrived.clear()
        begin = self.net.now
        for size in sizes:
            for end in self.ends[1:]:
                self._ask(end, size)
        self.net.run()
        #: Messages whose senders gave up.
        self.lost = len(sizes) * senders - len(self.arrived)
        #: Share of the receiver's link that delivered bytes took.
        self.goodput = sum(size for _at, size in self.arrived) * 8000 / (self.arrived[-1][0] - begin) / rate
        self.resends = sum(end.endpoint.counters.resends_sent for end in self.ends)

    def _ask(self, end: SimEndpoint, size: int) -> None:
        end.send_request(self.ends[0].host.ip, PORT, bytes(size))

    def _on_event(self, here: SimEndpoint, event: Event) -> None:
        if isinstance(event, Request):
            self.arrived.append((self.net.now, len(event.data)))
            here.send_reply(event.rpc, b"!")


@pytest.mark.parametrize("sizes", [[1_000_000], [50_000] * 20, [1_000 * n for n in range(1, 45)]],
                         ids=["one", "equal", "mixed"])
@pytest.mark.parametrize("rate", [20, 100, 500])
@pytest.mark.parametrize("profile", ["smt", "homa", "upstream"])
def test_one_sender_fills_the_link(profile, rate, sizes):
    """Full packets carry 92 (smt), 93 or 92.5 % (upstream) of the link's bytes; the pacer leaves one per cent."""
    rush = Rush(profile, rate, sizes)
    assert rush.lost == 0
    assert rush.goodput >= (0.89 if profile == "upstream" else 0.9)
    if len(sizes) == 1:
        assert rush.resends == 0


@pytest.mark.parametrize("rate", [20, 100])
def test_several_senders_fill_it_and_nobody_asks_twice(rate):
    rush = Rush("smt", rate, [50_000] * 2, senders=8)
    assert rush.lost == 0
    assert rush.goodput >= 0.9
    assert rush.resends == 0
    # All at once send what needs no grant; while that is more than the budget, nobody is granted anything.
    params = software(rate)
    assert rush.net.queue_peak() < 1.2 * max(16 * params.unsched_bytes, params.max_incoming)


def test_the_parameters_of_a_fast_link_do_worse_on_a_slow_one():
    """The reason for all this: many round trips of queue, and RESENDs for what waits in it."""
    rush = Rush("smt", 20, [50_000] * 2, senders=8, params=replace(SOFTWARE, link_mbps=20))
    assert rush.net.queue_peak() > 700_000
    assert rush.resends > 50


@pytest.mark.parametrize("rate", [20, 100, 500])
def test_a_short_message_waits_for_a_few_packets_only(rate):
    """Behind a long one of the same host: for what the pacer let out, not for the whole window."""
    net = star(2, link=LinkParams(rate), host_delay_ns=SOFTWARE_RTT_NS // 4)
    seen: dict[int, int] = {}

    def note(here: SimEndpoint, event: Event) -> None:
        if isinstance(event, Request):
            seen[len(event.data)] = net.now
            here.send_reply(event.rpc, b"!")

    client, server = (host.listen(PORT, "smt", demo_keys("smt"), note, software(rate))
                      for host in net.hosts.values())
    start = 10_000_000
    for at, size in ((0, 100), (start, 1_000_000), (start + 5_000_000, 101)):
        net.clock.schedule(at, client.send_request, server.host.ip, PORT, bytes(size))
    net.run()
    alone, behind = seen[100], seen[101] - start - 5_000_000
    frame_ns = 1538 * 8000 // rate
    params = software(rate)
    segment_ns = params.segment_packets * frame_ns
    # Once in its host, once in the switch: a packet that is being sent, of lower priority.
    assert behind <= alone + params.max_nic_queue_ns + segment_ns + frame_ns
