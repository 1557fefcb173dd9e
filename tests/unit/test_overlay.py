"""The overlay: DATA in the shape of TCP, cut by nobody, by anybody, merged again, lost, forged."""

from __future__ import annotations

import errno
import struct
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtstack.capture.captured import Captured
from smtstack.capture.decode import Decoder, Message
from smtstack.capture.decrypt import Decrypter
from smtstack.capture.lines import Lines
from smtstack.crypto.keys import demo_keys
from smtstack.errors import ConfigError, Unsupported
from smtstack.io.tcp_guard import TcpGuard, rule_batch
from smtstack.nic.device import NicConfig
from smtstack.nic.impairments import ImpairmentRates
from smtstack.sim.link import LinkParams
from smtstack.sim.network import Network
from smtstack.sim.pair import CLIENT_IP, SERVER_IP, SERVER_PORT
from smtstack.transport.events import Failed, Reason, Request, Response
from smtstack.transport.params import SOFTWARE, TransportParams
from smtstack.wire import frame as wire_frame
from smtstack.wire import homa, ipv4, overlay
from smtstack.wire.frame import CHECKSUM_AT, PAYLOAD_AT, PROTOCOL_AT, TRANSPORT_OFFSET, TYPE_AT
from tests.gro import merge
from tests.rig import Rig, answer
from tests.unit.test_engine import content

SUPER = TransportParams(max_gso_size=65_535, unsched_bytes=60_000)
#: How one message may be sent; all but the last as software seals or the device does.
WAYS = {
    "super-frames": NicConfig(),
    "super-frames, device seals": NicConfig(tls_hw_tx_offload=True),
    "cut by the device": NicConfig(gso=False),
    "cut by the device, which seals": NicConfig(gso=False, tls_hw_tx_offload=True),
    "cut by software": NicConfig(tso=False),
    "cut by software, device seals": NicConfig(tso=False, tls_hw_tx_offload=True),
    "a small ring": NicConfig(tso=False, ring_size=3),
}


def sent(size: int, nic: NicConfig, overlaid: bool = True, profile: str = "smt") -> list[bytes]:
    """The frames of one request."""
    rig = Rig(profile, SUPER, nic=nic, overlay=overlaid)
    rig.request(content(1, size))
    rig.run()
    assert rig.answered() == 1
    rig.assert_empty()
    return [frame for from_client, frame in rig.sent_frames if from_client and frame[TYPE_AT] == homa.DATA]


def message(frames: list[bytes]) -> bytes:
    """The bytes that frames carry, each where it says that it belongs."""
    out = bytearray()
    for frame in frames:
        ip, packet, payload = wire_frame.parse_untrusted(frame, homa.SMT)
        assert isinstance(packet, homa.Data)
        at = packet.segment_offset + packet.offset_in_segment(ip.identification)
        out[len(out):] = bytes(max(0, at + len(payload) - len(out)))
        out[at:at + len(payload)] = payload
    return bytes(out)


# -- what is sent ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1419, 1440, 8000, 64_000, 70_000, 200_000])
def test_every_way_of_sending_carries_the_same_records(size: int) -> None:
    plain = message(sent(size, NicConfig(), overlaid=False))
    for way, nic in WAYS.items():
        frames = sent(size, nic)
        assert message(frames) == plain, way
        assert all(overlay.is_overlay(frame) for frame in frames), way
        assert all(frame[PROTOCOL_AT] == ipv4.PROTO_TCP for frame in frames)


@pytest.mark.parametrize("size", [2000, 64_000, 200_000])
def test_what_the_kernel_makes_of_a_super_frame_is_what_the_device_makes(size: int) -> None:
    whole, cut = sent(size, WAYS["super-frames"]), sent(size, WAYS["cut by the device"])
    assert max(map(len, whole)) > 1514 >= max(map(len, cut))
    assert [packet for frame in whole for packet in overlay.cut_untrusted(frame)] == cut
    # By software: each packet is its own, with the number that a descriptor can give it.
    assert [f[:18] + f[20:24] + f[26:] for f in sent(size, WAYS["cut by software"])] == [
        f[:18] + f[20:24] + f[26:] for f in cut]


def test_without_the_overlay_nothing_is_different() -> None:
    """Messages of one packet, control packets and whoever does not want it stay what they were."""
    plain, shaped = (Rig("smt", SUPER, overlay=on) for on in (False, True))
    for rig in (plain, shaped):
        for number in range(5):
            rig.request(content(number, 1 + 300 * number))
        rig.run()
    assert plain.sent_frames == shaped.sent_frames
    for frame in sent(200_000, NicConfig(), overlaid=False):
        assert frame[PROTOCOL_AT] == homa.PROTO_HOMA
    rig = Rig("smt", SUPER, overlay=True)
    rig.request(content(1, 300_000))
    rig.run()
    others = [frame for _from, frame in rig.sent_frames if frame[TYPE_AT] != homa.DATA]
    assert len(others) > 2
    assert all(frame[PROTOCOL_AT] == homa.PROTO_HOMA for frame in others)


def test_every_field_that_segmentation_copies_is_the_same_in_all_packets() -> None:
    """Else GRO would not merge consecutive super-frames; and only place, IP ID and lengths may differ."""
    rig = Rig("smt", SUPER, overlay=True)
    # Whoever heard the other's CUTOFFS says so.
    rig.request(b"first")
    rig.run()
    rig.request(content(1, 200_000))
    rig.run()
    frames = [packet for from_client, frame in rig.sent_frames if from_client and overlay.is_overlay(frame)
              for packet in overlay.cut_untrusted(frame)]
    first = frames[0]
    assert len(frames) > 100
    for frame in frames:
        assert frame[TRANSPORT_OFFSET:TRANSPORT_OFFSET + 4] == first[TRANSPORT_OFFSET:TRANSPORT_OFFSET + 4]
        assert frame[TRANSPORT_OFFSET + 8:PAYLOAD_AT] == first[TRANSPORT_OFFSET + 8:PAYLOAD_AT]


def test_what_goes_to_a_socket_that_offloads() -> None:
    frame = sent(50_000, NicConfig())[0]
    head = overlay.offload_head(frame)
    flags, kind, header, size, start, at = struct.unpack_from("=BBHHHH", head)
    assert (flags, kind, header, size, start, at) == (1, 1, PAYLOAD_AT, 1440, TRANSPORT_OFFSET, 16)
    assert head[10:-2] == frame[:CHECKSUM_AT]
    assert overlay.HEAD == CHECKSUM_AT + 2
    # The kernel adds the sum over header and payload, and turns it round: as RFC 793 has it.
    length = len(frame) - TRANSPORT_OFFSET
    pseudo = frame[26:34] + b"\0\x06" + length.to_bytes(2, "big")
    assert int.from_bytes(head[-2:], "big") == 0xFFFF - ipv4.checksum(pseudo)
    single = overlay.cut_untrusted(frame)[-1]
    virtio = struct.unpack_from("=BBHHHH", overlay.offload_head(single))
    assert virtio == (1, 0, PAYLOAD_AT, 0, TRANSPORT_OFFSET, 16)


@given(buf=st.binary(max_size=200), at=st.integers(0, 75), value=st.binary(min_size=1, max_size=4))
def test_hostile_frames_are_cut_without_an_error(buf: bytes, at: int, value: bytes) -> None:
    genuine = _GENUINE[0]
    for frame in (buf, genuine[:at] + value + genuine[at + len(value):], genuine[:PAYLOAD_AT + at]):
        packets = overlay.cut_untrusted(frame)
        assert packets == [frame] or b"".join(p[PAYLOAD_AT:] for p in packets) == frame[PAYLOAD_AT:][
            :sum(len(p) - PAYLOAD_AT for p in packets)]


_GENUINE = sent(20_000, NicConfig())


# -- what becomes of it on the way -------------------------------------------------------------------------


class Path:
    """Cuts, merges, reorders, by chance; whole bursts, as the kernel sees them."""

    def __init__(self, seed: int, cut: float, merged: float) -> None:
        self._random = Random(seed)
        self._cut = cut
        self._merged = merged

    def __call__(self, _from_client: bool, frame: bytes) -> list[bytes]:
        rng = self._random
        packets = overlay.cut_untrusted(frame) if rng.random() < self._cut else [frame]
        if len(packets) > 1 and rng.random() < 0.3:
            rng.shuffle(packets)
        if rng.random() < self._merged:
            packets = merge(packets, rng.choice((3000, 20_000, overlay.MAX_IP)))
        return packets


@given(profile=st.sampled_from(["smt", "homa"]), offload=st.booleans(), gso=st.booleans(),
       sizes=st.lists(st.tuples(st.integers(1, 150_000), st.booleans()), min_size=1, max_size=4),
       cut=st.sampled_from([0.0, 0.5, 1.0]), merged=st.sampled_from([0.0, 0.5, 1.0]),
       drop=st.floats(0, 0.1), duplicate=st.floats(0, 0.2), reorder=st.floats(0, 0.3), seed=st.integers(0, 2**32))
@example(profile="homa", offload=False, gso=True, sizes=[(150_000, True)] * 3, cut=1.0, merged=1.0, drop=0.1,
         duplicate=0.2, reorder=0.3, seed=3)
def test_any_cut_merge_order_and_loss(profile: str, offload: bool, gso: bool, sizes: list[tuple[int, bool]],
                                      cut: float, merged: float, drop: float, duplicate: float, reorder: float,
                                      seed: int) -> None:
    rates = ImpairmentRates(drop=drop, duplicate=duplicate, reorder=reorder, reorder_ns=40_000, jitter_ns=3_000)
    rig = Rig(profile, SUPER, rates=rates, seed=seed, tamper=Path(seed, cut, merged), overlay=True,
              nic=NicConfig(tls_hw_tx_offload=offload, gso=gso))
    for number, (size, from_client) in enumerate(sizes):
        rig.request(content(number, size), from_client)
    rig.run()
    good = rig.answered()
    rig.assert_empty()
    if not drop:
        assert good == len(sizes)
    for events in rig.outcomes.values():
        event = events[0]
        assert isinstance(event, Response) or (isinstance(event, Failed) and event.reason is Reason.TIMEOUT)


@pytest.mark.parametrize("gso", [True, False])
@pytest.mark.parametrize("profile", ["smt", "homa"])
def test_loss_and_reordering_over_super_frames_lose_nothing(profile: str, gso: bool) -> None:
    """A tenth is lost, of whole super-frames or of packets, and a tenth overtaken."""
    rates = ImpairmentRates(drop=0.1, reorder=0.1, reorder_ns=200_000, jitter_ns=3_000)
    rig = Rig(profile, SOFTWARE, rates=rates, seed=5, nic=NicConfig(gso=gso), overlay=True)
    for number in range(20):
        rig.request(content(number, 30_000 * (number + 1)), number % 2 == 0)
    rig.run()
    assert rig.answered() == 20
    rig.assert_empty()
    counters = rig.server.endpoint.counters
    assert counters.packets_resent > 0
    assert (counters.data_merged > 100) == gso


def test_the_simulated_network_carries_it() -> None:
    """Over a switch, whose links take packets: the device cuts."""
    net = Network(seed=3)
    switch = net.add_switch()
    got: list[bytes] = []
    hosts = [net.add_host(mtu=1500) for _ in range(2)]
    for host in hosts:
        net.connect(host, switch, LinkParams(rate_mbps=1000))

    def serve(where: object, event: object) -> None:
        if isinstance(event, Request):
            hosts[1].endpoints[2000].send_reply(event.rpc, answer(event.data))

    def done(where: object, event: object) -> None:
        if isinstance(event, Response):
            got.append(event.data)

    client = hosts[0].listen(0x8000, "smt", demo_keys("smt"), done, SUPER, overlay=True)
    hosts[1].listen(2000, "smt", demo_keys("smt"), serve, SUPER, overlay=True)
    client.send_request(hosts[1].ip, 2000, content(1, 300_000))
    net.run()
    assert got == [answer(content(1, 300_000))]
    assert hosts[0].nic.counters.tx_gso_packets == hosts[1].too_long == 0
    assert hosts[0].nic.counters.tx_tso_packets > 0


# -- who does not have it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("client_has_it", [True, False])
def test_a_mismatch_is_a_clear_failure(client_has_it: bool) -> None:
    """Without handshakes nobody can agree; whoever has no overlay counts what is shaped as TCP, and takes none."""
    params = TransportParams(max_gso_size=65_535, timeout_resends=3)
    rig = Rig("smt", params, overlay=False)
    shaped = Rig("smt", params, overlay=True)
    if client_has_it:
        rig.client = shaped.client
    else:
        rig.server = shaped.server
    small = rig.request(content(0, 100))
    rig.run()
    assert isinstance(rig.outcomes[small][0], Response)
    rpc = rig.request(content(1, 50_000))
    rig.run()
    event, = rig.outcomes[rpc]
    assert isinstance(event, Failed)
    assert event.reason is Reason.TIMEOUT
    plain, other = (rig.server, rig.client) if client_has_it else (rig.client, rig.server)
    assert plain.endpoint.counters.overlay_unexpected > 0
    assert plain.endpoint.counters.overlay_received == other.endpoint.counters.overlay_unexpected == 0


def test_a_profile_of_the_kernel_module_has_none() -> None:
    with pytest.raises(ConfigError, match="overlay"):
        Rig("linux", overlay=True)


# -- forgers -----------------------------------------------------------------------------------------------


def forged(frame: bytes, **fields: int) -> bytes:
    """A genuine frame of the overlay with fields of its header changed."""
    names = ("sport", "dport", "place", "size", "epoch", "flags", "doff", "kind", "high", "sum", "low",
             "sender_id", "length", "incoming", "version", "retransmit", "index")
    header = dict(zip(names, homa.DATA_HEADER.unpack_from(frame, TRANSPORT_OFFSET), strict=True)) | fields
    changed = bytearray(frame)
    homa.DATA_HEADER.pack_into(changed, TRANSPORT_OFFSET, *header.values())
    return bytes(changed)


def super_frame(payload: bytes, protocol: int = ipv4.PROTO_TCP, **fields: int) -> bytes:
    """One that a forger makes of nothing but addresses."""
    data = homa.Data(0x8000, SERVER_PORT, 2, len(payload), len(payload), segment_size=1440, placed=True,
                     overlay=True)
    ip = ipv4.IPv4(CLIENT_IP, SERVER_IP, protocol, 60 + len(payload))
    return forged(bytes(12) + b"\x08\x00" + ip.pack() + data.pack() + payload, **fields)


def test_forged_super_frames_cost_a_repetition_at_most() -> None:
    rig = Rig("smt", SUPER, overlay=True)
    rpc = rig.request(content(0, 120_000))
    rng = Random(2)
    for place in (0, 100, 1440, 60_000, 64_000, 119_000, 2**32 - 1):
        for size in (0, 1, 1440, 0xFFFF):
            payload = rng.randbytes(rng.randrange(1, 65_000))
            rig.inject(True, super_frame(payload, place=place, size=size, length=120_126, sender_id=rpc.id))
    rig.run()
    assert rig.answered() == 1
    rig.assert_empty()
    counters = rig.server.endpoint.counters
    assert counters.records_failed > 0
    assert counters.beyond_message > 0


@pytest.mark.parametrize(("fields", "protocol", "counter"), [
    ({"doff": 0xA0}, ipv4.PROTO_TCP, "wrong_address"),
    ({"doff": 0xA3}, ipv4.PROTO_TCP, "wrong_address"),
    ({"flags": 0}, ipv4.PROTO_TCP, "wrong_address"),
    ({"flags": homa.PLACED | homa.HANDSHAKE}, ipv4.PROTO_TCP, "wrong_address"),
    ({"kind": homa.GRANT}, ipv4.PROTO_TCP, "wrong_address"),
    ({}, 7, "wrong_address"),
    ({"length": 0}, ipv4.PROTO_TCP, "bad_packets"),
    ({"length": 2**31}, ipv4.PROTO_TCP, "bad_packets"),
    ({}, ipv4.PROTO_TCP, "records_failed"),
])
def test_what_is_not_quite_the_overlay_is_counted_and_dropped(fields: dict[str, int], protocol: int,
                                                              counter: str) -> None:
    rig = Rig("smt", SUPER, overlay=True)
    before = rig.server.endpoint.counters.snapshot()
    frame = super_frame(b"\x17\x03\x03\x07\x00" + bytes(0x700), protocol, **fields)
    rig.server.receive([frame], 0)
    after = rig.server.endpoint.counters.snapshot()
    assert after[counter] == before[counter] + 1
    assert rig.server.endpoint.next_event() is None


# -- captures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["smt", "homa"])
def test_a_capture_with_super_frames_is_read(profile: str) -> None:
    """Every message and record, as of a capture of packets under our own protocol number; TCP stays TCP."""
    results = []
    kernels = bytes(12) + b"\x08\x00" + ipv4.IPv4(CLIENT_IP, SERVER_IP, ipv4.PROTO_TCP, 120).pack() + bytes(100)
    for overlaid, nic in ((False, NicConfig()), (True, NicConfig(gso=False)), (True, NicConfig())):
        rig = Rig(profile, SUPER, nic=nic, overlay=overlaid)
        rig.request(content(1, 200_000))
        rig.request(content(2, 500))
        rig.run()
        messages: list[Message] = []
        decoder = Decoder(profile, demo_keys(profile), on_message=messages.append)
        decrypter = Decrypter(profile, demo_keys(profile))
        lines = Lines(profile)
        for _from_client, frame in rig.sent_frames:
            decoder.add(1, frame)
            decrypter.add(Captured(0, 1, frame))
            assert "malformed" not in lines.line_untrusted(Captured(0, 1, frame))
        decoder.add(1, kernels)
        result = decoder.result()
        assert result.packets["DATA"] > 250
        assert result.others == {"TCP": 1}
        assert result.bad_packets == 0
        assert sorted(m.data or b"" for m in messages) == sorted([*rig.delivered, *map(answer, rig.delivered)])
        counts = decrypter.finish()
        assert (counts.records_failed, counts.messages_incomplete, counts.ignored) == (0, 0, 0)
        results.append((result.records_ok, counts.records, counts.bytes, result.packets["DATA"]))
    assert results[0] == results[1] == results[2]


# -- the guard ---------------------------------------------------------------------------------------------


def test_without_nf_tables_the_error_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(errno.EPROTONOSUPPORT, "Protocol not supported")

    monkeypatch.setattr("smtstack.io.tcp_guard.socket.socket", refuse)
    with pytest.raises(Unsupported, match=r"nf_tables.*--overlay"):
        TcpGuard()


def test_the_guards_messages_are_whole() -> None:
    """Lengths of netlink's messages and of their attributes add up; the mark is in the rule, once."""
    batch = rule_batch("t")
    kinds = []
    while batch:
        length, kind = struct.unpack_from("=IH", batch)
        kinds.append(kind)
        at = 20
        while at < length:
            size, = struct.unpack_from("=H", batch, at)
            assert 4 <= size <= length - at
            at += size + 3 & ~3
        assert at == length
        assert batch[:length].count(homa.OVERLAY_MARK) == (kind == 10 << 8 | 6)
        batch = batch[length:]
    assert kinds == [0x10, 10 << 8, 10 << 8 | 3, 10 << 8 | 6, 0x11]
