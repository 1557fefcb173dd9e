"""Messages spread over parallel paths: two leaves, four spines, one pair of hosts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from smtstack.crypto.keys import demo_keys
from smtstack.sim.host import SimEndpoint
from smtstack.sim.link import LinkParams
from smtstack.sim.network import Network
from smtstack.transport.events import Event, Request
from smtstack.transport.params import SOFTWARE_RTT_NS, software
from smtstack.wire.ethernet import path_mac
from smtstack.wire.frame import DATA_FRAME, PAYLOAD_AT, TYPE_AT
from smtstack.wire.homa import DATA

PORT = 4000
SPINES = 4
HOST_MBPS = 100


class LeafSpine:
    """``sizes`` messages at once from one host to the other."""

    def __init__(self, paths: int, at_once: int, trunk_mbps: int, sizes: list[int], profile: str = "smt") -> None:
        net = Network()
        leaves = [net.add_switch(f"leaf{n}") for n in range(2)]
        spines = [net.add_switch(f"spine{n}") for n in range(SPINES)]
        for leaf in leaves:
            for spine in spines:
                net.connect(leaf, spine, LinkParams(trunk_mbps))
        hosts = [net.add_host(host_delay_ns=SOFTWARE_RTT_NS // 4) for _ in leaves]
        for host, leaf in zip(hosts, leaves, strict=True):
            net.connect(host, leaf, LinkParams(HOST_MBPS))
        net.run()
        for host, near, far in zip(hosts, leaves, reversed(leaves), strict=True):
            for path, spine in enumerate(spines):
                mac = path_mac(host.mac, path)
                far.table[mac] = far.ports[spine.name]
                spine.table[mac] = spine.ports[near.name]
                near.table[mac] = near.ports[host.name]
        #: Spines by the message that was seen there.
        self.seen: dict[int, set[str]] = {}
        net.tap(self._on_frame)
        #: Time at which messages were whole, from the first sending on.
        self.times: list[int] = []
        params = replace(software(HOST_MBPS), max_rpcs_per_peer=at_once, timeout_resends=100)
        start = 0

        def on_event(here: SimEndpoint, event: Event) -> None:
            if isinstance(event, Request):
                self.times.append(net.now - start)
                here.send_reply(event.rpc, b"!")

        client, server = (host.listen(PORT, profile, demo_keys(profile), on_event, params) for host in hosts)
        for host in hosts:
            host.driver(client.endpoint.protocol).set_paths(paths)
        client.send_request(server.host.ip, PORT, b"?")
        net.run()
        self.times.clear()
        self.seen.clear()
        before = [net.ports[f"leaf0->{spine.name}"].bytes for spine in spines]
        start = net.now
        for size in sizes:
            client.send_request(server.host.ip, PORT, bytes(size))
        net.run()
        assert len(self.times) == len(sizes)
        self.goodput_mbps = sum(sizes) * 8000 / self.times[-1]
        #: Bytes towards each spine.
        self.used = [net.ports[f"leaf0->{spine.name}"].bytes - old
                     for spine, old in zip(spines, before, strict=True)]

    def _on_frame(self, _at: int, place: str, frame: bytes) -> None:
        if place.startswith("leaf0->spine") and frame[TYPE_AT] == DATA and len(frame) > PAYLOAD_AT:
            sender_id = DATA_FRAME.unpack_from(frame)[17]
            self.seen.setdefault(sender_id, set()).add(place)


@pytest.mark.parametrize("profile", ["smt", "homa", "linux"])
def test_messages_fill_four_paths(profile):
    """A quarter of the hosts' rate on each: eight messages of 100 KB, two a path."""
    one = LeafSpine(1, 1, HOST_MBPS // SPINES, [100_000] * 8, profile)
    four = LeafSpine(SPINES, SPINES, HOST_MBPS // SPINES, [100_000] * 8, profile)
    assert sum(used > 0 for used in one.used) == 1
    assert one.goodput_mbps < HOST_MBPS / SPINES
    assert four.goodput_mbps > 3 * one.goodput_mbps
    assert max(four.used) < 1.02 * min(four.used)
    assert len(four.seen) == 8
    assert all(len(places) == 1 for places in four.seen.values())


def test_one_granted_message_fills_one_path():
    """Why a receiver must let several messages of one host come at once."""
    single = LeafSpine(SPINES, 1, HOST_MBPS // SPINES, [100_000] * 8)
    assert sum(used > 0 for used in single.used) == SPINES
    assert single.goodput_mbps < 0.4 * HOST_MBPS


@pytest.mark.parametrize("sizes", [[100_000] * 8, [20_000 * (n % 7 + 1) for n in range(40)]])
def test_several_granted_messages_cost_nothing_on_one_path(sizes):
    """The sender serves the shortest first, whatever is granted."""
    one, eight = (LeafSpine(1, at_once, HOST_MBPS, sizes) for at_once in (1, 8))
    assert sum(eight.times) <= 1.02 * sum(one.times)
    assert eight.times[-1] <= 1.02 * one.times[-1]
