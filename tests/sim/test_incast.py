"""One client, many servers, one small buffer in front of the client: with and without incast control."""

from __future__ import annotations

from dataclasses import replace

import pytest

from smtstack.crypto.keys import demo_keys
from smtstack.sim.host import SimEndpoint
from smtstack.sim.link import LinkParams, wire_bytes
from smtstack.sim.network import star
from smtstack.transport.events import Event, Request, Response
from smtstack.transport.params import SOFTWARE_RTT_NS, software

PORT = 4000
RATE = 100
BUFFER = 128_000
#: Requests under way that may still be answered all at once: theirs fit the buffer.
THRESHOLD = 4


class Incast:
    """``servers`` answer with ``size`` bytes at the same time."""

    def __init__(self, servers: int, size: int, profile: str = "smt", threshold: int = 0) -> None:
        params = replace(software(RATE), incast_threshold=threshold, timeout_resends=100)
        net = star(servers + 1, link=LinkParams(RATE, queue_bytes=BUFFER), host_delay_ns=SOFTWARE_RTT_NS // 4)
        self._size = 1
        done: list[int] = []

        def on_event(here: SimEndpoint, event: Event) -> None:
            if isinstance(event, Request):
                here.send_reply(event.rpc, bytes(self._size))
            else:
                assert isinstance(event, Response)
                assert len(event.data) == self._size
                done.append(net.now)

        client, *others = [host.listen(PORT, profile, demo_keys(profile), on_event, params)
                           for host in net.hosts.values()]
        for self._size in (1, size):
            done.clear()
            begin = net.now
            for server in others:
                client.send_request(server.host.ip, PORT, b"?")
            net.run()
            assert len(done) == servers
        #: Time until all answers are there; with full packets on the client's link without a gap.
        self.time_ns = done[-1] - begin
        self.ideal_ns = -(-servers * size // 1418) * wire_bytes(1514) * 8000 // RATE
        self.drops = net.drops()
        self.queue_peak = net.ports["s1->h1"].queue_peak
        self.resends = client.endpoint.counters.resends_sent
        self.marked = client.endpoint.counters.incast_marked


@pytest.mark.parametrize("size", [10_000, 20_000, 64_000])
@pytest.mark.parametrize("profile", ["smt", "homa"])
def test_control_keeps_32_answers_within_the_buffer(profile, size):
    without = Incast(32, size, profile)
    assert without.drops > 100
    assert without.resends > 10
    assert without.time_ns > without.ideal_ns + 100_000_000, "it hardly hurt: nothing was tested"
    control = Incast(32, size, profile, THRESHOLD)
    assert control.drops == 0
    assert control.time_ns < 1.1 * control.ideal_ns + 2_000_000
    assert control.marked == 2 * (32 - THRESHOLD)


def test_control_has_a_limit_too():
    """A packet of each is sent all the same, and 128 of them do not fit."""
    assert Incast(128, 10_000, threshold=THRESHOLD).drops > 0


@pytest.mark.parametrize("servers", [1, 2, 4, 6, 8])
@pytest.mark.parametrize("size", [1_000, 10_000, 64_000])
def test_few_answers_wait_for_a_round_trip_at_most(servers, size):
    """Those that need no control; with threshold 1 all but the first come by grant nevertheless."""
    without, control = Incast(servers, size), Incast(servers, size, threshold=1)
    assert without.drops == control.drops == 0
    frame_ns = 1538 * 8000 // RATE
    assert control.time_ns <= without.time_ns + SOFTWARE_RTT_NS + 4 * frame_ns
    if servers > 2 and size > 1_418:
        assert control.queue_peak < without.queue_peak


def test_below_the_threshold_nothing_changes():
    one, other = Incast(THRESHOLD, 20_000), Incast(THRESHOLD, 20_000, threshold=THRESHOLD)
    assert other.marked == 0
    assert (one.time_ns, one.queue_peak) == (other.time_ns, other.queue_peak)
