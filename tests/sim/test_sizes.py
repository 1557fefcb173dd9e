"""Messages of every awkward size, sealed by software and by the device: intact, and the same bytes on the wire."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise, product
from random import Random

import pytest

from smtstack.crypto import tls12, tls13
from smtstack.crypto.keys import demo_keys
from smtstack.nic.device import NicConfig
from smtstack.nic.impairments import ImpairmentRates
from smtstack.sim.apps import call, echo
from smtstack.sim.host import SimEndpoint
from smtstack.sim.network import Network, back_to_back
from smtstack.transport.events import Event, Response
from smtstack.transport.linux_message import LinuxGeometry
from smtstack.transport.params import TransportParams
from smtstack.transport.stream_message import Geometry
from smtstack.wire import homa
from smtstack.wire.frame import PAYLOAD_AT, parse_untrusted

PORT = 4000
LONGEST = 1_000_000
CONTENT = Random(1).randbytes(LONGEST)
SOFTWARE, DEVICE = NicConfig(), NicConfig(tls_hw_tx_offload=True)
GEOMETRIES = list(product((1500, 10_000, 65_535), (1500, 9000)))
#: (place, frame) of everything on the wire, in order.
Trace = list[tuple[str, bytes]]


def content(size: int) -> bytes:
    """Different for each size, and nowhere periodic."""
    at = size * 7919 % LONGEST
    return (CONTENT[at:] + CONTENT)[:size]


def edges(profile: str, params: TransportParams) -> list[int]:
    """Plaintext lengths on and beside the ends of packets, records and segments; 1 B and 1 MB."""
    units = set()
    if profile == "linux":
        linux = LinuxGeometry(params)
        first = linux.packet_data - tls12.HEADER_LEN
        units |= {linux.record_data, linux.packet_data, first, linux.packet_data - tls12.OVERHEAD}
    else:
        geo = Geometry(params, sealed=profile == "smt")
        overhead = tls13.OVERHEAD if profile == "smt" else 0
        units |= {geo.segment, geo.mss, geo.mss - overhead}
        if profile == "smt":
            units |= {geo.record_plain, geo.record_plain * geo.segment_records}
    sizes = {1, 2, 15, 16, 17, LONGEST - 1, LONGEST}
    for unit in units:
        for count in (1, 2, 3, LONGEST // unit):
            sizes |= {unit * count + d for d in (-1, 0, 1)}
    return sorted(size for size in sizes if 0 < size <= LONGEST)


def converse(profile: str, params: TransportParams, nic: NicConfig, sizes: list[int], at_once: bool) -> Trace:
    """Echo messages of these sizes one by one or all at once; checks what comes back."""
    net = back_to_back(nic=nic)
    a, b = net.hosts.values()
    trace: Trace = []
    net.tap(lambda _at, place, frame: trace.append((place, frame)))
    client = a.listen(5000, profile, demo_keys(profile), params=params)
    server = b.listen(PORT, profile, demo_keys(profile), echo, params)
    if not at_once:
        for size in sizes:
            end = call(net, client, b.ip, PORT, content(size))
            assert isinstance(end, Response), f"{size} bytes: {end}"
            assert end.data == content(size), f"{size} bytes came back changed"
    else:
        came_back: list[int] = []

        def keep(_here: SimEndpoint, event: Event) -> None:
            assert isinstance(event, Response), event
            size = event.rpc.cookie
            assert isinstance(size, int)
            assert event.data == content(size)
            came_back.append(size)

        client.on_event = keep
        for size in sizes:
            client.send_request(b.ip, PORT, content(size), cookie=size)
        net.run()
        assert sorted(came_back) == sizes
    for side in (client, server):
        counters = side.endpoint.counters
        assert (counters.records_failed, counters.bad_packets, counters.packets_resent) == (0, 0, 0)
        assert {**side.endpoint.snapshot(), "peers": 0} == dict.fromkeys(side.endpoint.snapshot(), 0)
    offloaded = a.nic.counters.tx_tls_encrypted_packets
    assert (offloaded > 0) == (nic.tls_hw_tx_offload and profile != "homa")
    assert a.nic.counters.tx_tls_fallback == 0
    return trace


def assert_same(one: Trace, other: Trace) -> None:
    for number, (x, y) in enumerate(zip(one, other, strict=False)):
        assert x[0] == y[0], f"frame {number} is on {x[0]} and on {y[0]}"
        assert x[1] == y[1], f"frame {number} on {x[0]}: {x[1][:100].hex()} against {y[1][:100].hex()}"
    assert len(one) == len(other)


@pytest.mark.parametrize(("gso", "mtu"), GEOMETRIES)
@pytest.mark.parametrize("profile", ["smt", "linux", "homa"])
def test_every_size_arrives_and_the_device_seals_as_software_does(profile, gso, mtu):
    params = TransportParams(mtu=mtu, max_gso_size=gso)
    sizes = edges(profile, params)
    software = converse(profile, params, SOFTWARE, sizes, at_once=False)
    if profile != "homa":
        assert_same(software, converse(profile, params, DEVICE, sizes, at_once=False))


@pytest.mark.parametrize("profile", ["smt", "linux"])
def test_messages_under_way_together_make_the_device_resync_and_change_no_byte(profile):
    params = TransportParams()
    sizes = [size for size in edges(profile, params) if size < 100_000]
    software = converse(profile, params, SOFTWARE, sizes, at_once=True)
    assert_same(software, converse(profile, params, DEVICE, sizes, at_once=True))


@pytest.mark.parametrize("profile", ["smt", "homa", "linux"])
def test_software_segmentation_puts_the_same_frames_on_the_wire(profile):
    params = TransportParams()
    sizes = [size for size in edges(profile, params) if size < 100_000]
    assert_same(converse(profile, params, SOFTWARE, sizes, at_once=False),
                converse(profile, params, NicConfig(tso=False), sizes, at_once=False))


#: Sender, message, offset of the segment and index of the packet in it.
Place = tuple[int, int, int, int]


def data_of(trace: Trace, fmt: homa.WireFormat) -> Iterator[tuple[Place, bytes, bool]]:
    """(where it belongs, payload, whether it is a retransmission) of every DATA packet."""
    for _place, frame in trace:
        ip, packet, payload = parse_untrusted(frame, fmt)
        if isinstance(packet, homa.Data):
            where = (ip.src, packet.sender_id, packet.segment_offset, packet.packet_index + ip.identification)
            yield where, payload, bool(packet.retransmit)


def lossy(profile: str, nic: NicConfig, gso: int) -> dict[Place, bytes]:
    """Echoes at 5 % loss: what every place of every message carried, whenever it was sent."""
    net = Network(seed=7)
    a, b = (net.add_host(nic=nic, rx_rates=ImpairmentRates(drop=0.05)) for _ in range(2))
    net.connect(a, b)
    trace: Trace = []
    net.tap(lambda _at, place, frame: trace.append((place, frame)))
    params = TransportParams(max_gso_size=gso)
    client = a.listen(5000, profile, demo_keys(profile), params=params)
    server = b.listen(PORT, profile, demo_keys(profile), echo, params)
    for size in (1, 100, 1391, 1419, 5000, 20_000, 64_000, 250_000):
        end = call(net, client, b.ip, PORT, content(size))
        assert isinstance(end, Response)
        assert end.data == content(size)
    assert a.rx_faults is not None
    assert a.rx_faults.dropped > 20
    assert client.endpoint.counters.packets_resent > 5
    assert server.endpoint.counters.records_failed == client.endpoint.counters.records_failed == 0

    sent = defaultdict(list)
    for where, payload, again in data_of(trace, homa.FORMATS[profile]):
        sent[where].append((again, payload))
    for where, copies in sent.items():
        assert len({payload for _again, payload in copies}) == 1, f"{where}: one nonce, two ciphertexts"
        assert [again for again, _payload in copies] == sorted(again for again, _payload in copies)
    assert max(map(len, sent.values())) > 1
    return {where: copies[0][1] for where, copies in sent.items()}


@pytest.mark.parametrize("gso", [1500, 10_000])
@pytest.mark.parametrize("profile", ["smt", "linux", "homa"])
def test_retransmissions_carry_the_same_ciphertext_whoever_seals(profile, gso):
    software = lossy(profile, SOFTWARE, gso)
    if profile != "homa":
        assert lossy(profile, DEVICE, gso) == software


def test_a_trace_comparison_would_notice():
    # The control: other keys, other bytes; and payload sits where the test looks for it.
    trace = converse("smt", TransportParams(), SOFTWARE, [5000], at_once=False)
    changed = [(place, frame[:PAYLOAD_AT] + b"\0" + frame[PAYLOAD_AT + 1:]) for place, frame in trace]
    with pytest.raises(AssertionError):
        assert_same(trace, changed)
    places = [where for where, _payload, _again in data_of(trace, homa.SMT)]
    assert len(set(places)) == len(places) == 8
    assert all(x[2] <= y[2] for x, y in pairwise(places[:4]))
