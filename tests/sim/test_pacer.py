"""The pacer's estimate against a real queue: what leaves a busy host must not pile up in its NIC."""

from __future__ import annotations

import pytest

from smtstack.crypto.keys import demo_keys
from smtstack.sim.apps import echo
from smtstack.sim.link import LinkParams
from smtstack.sim.network import star
from smtstack.transport.params import SOFTWARE_RTT_NS, TransportParams, software

PORT = 4000


@pytest.mark.parametrize("profile", ["smt", "homa", "linux", "upstream"])
def test_a_host_busy_for_long_keeps_its_nic_queue_short(profile):
    net = star(3, link=LinkParams(10_000, 1000))
    params = TransportParams(max_gso_size=1500, max_nic_queue_ns=0)
    ends = [host.listen(PORT, profile, demo_keys(profile), echo, params) for host in net.hosts.values()]
    one, others = ends[0], ends[1:]
    # 10 ms of long messages at 10 Gbit/s, and short ones both ways for the ACKs they cause.
    for other in others:
        for _ in range(6):
            one.send_request(other.host.ip, PORT, bytes(1_000_000))
        for n in range(1500):
            net.clock.schedule(n * 6000, other.send_request, one.host.ip, PORT, bytes(200))
            net.clock.schedule(n * 6000, one.send_request, other.host.ip, PORT, bytes(200))
    net.run(10_000_000)
    port = one.host.port
    assert port is not None
    assert port.bytes > 0.9 * 10_000_000 * 10 / 8, "the link was not busy: nothing was tested"
    # The packet on its way, and a few short ones that do not wait for the pacer.
    assert port.queue_peak < 2500


@pytest.mark.parametrize("rate", [20, 100, 500])
@pytest.mark.parametrize("profile", ["smt", "homa", "linux", "upstream"])
def test_so_it_does_behind_a_slow_link(profile, rate):
    """With the parameters that go with the rate, and segments of several packets."""
    params = software(rate)
    net = star(3, link=LinkParams(rate), host_delay_ns=SOFTWARE_RTT_NS // 4)
    one, *others = [host.listen(PORT, profile, demo_keys(profile), echo, params) for host in net.hosts.values()]
    # As many messages as keep the link busy this long, and a short one now and then.
    period = 100_000_000 * 100 // rate
    for other in others:
        for _ in range(10):
            one.send_request(other.host.ip, PORT, bytes(100_000))
        for n in range(100):
            net.clock.schedule(n * period // 100, one.send_request, other.host.ip, PORT, bytes(200))
    net.run(period)
    port = one.host.port
    assert port is not None
    assert port.bytes > 0.95 * period * rate / 8000, "the link was not busy: nothing was tested"
    allowed = params.max_nic_queue_ns * rate // 8000 + params.segment_packets * 1514
    # Beyond what the pacer allows there is a control packet at most.
    assert port.queue_peak <= allowed + 200
