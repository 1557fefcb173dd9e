"""The pacer's estimate against a real queue: what leaves a busy host must not pile up in its NIC."""

from __future__ import annotations

import pytest

from smtstack.crypto.keys import demo_keys
from smtstack.sim.apps import echo
from smtstack.sim.link import LinkParams
from smtstack.sim.network import star
from smtstack.transport.params import TransportParams

PORT = 4000


@pytest.mark.parametrize("profile", ["smt", "homa", "linux"])
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
