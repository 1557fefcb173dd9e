"""Upstream Homa's format: frames of the real module decoded and made again, round trips, refusals."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtstack.errors import BadPacket
from smtstack.nic.descriptors import TcpRoute
from smtstack.wire import ethernet, homa, ipv4, upstream
from smtstack.wire import frame as wire_frame
from smtstack.wire.homa import UPSTREAM, AckEntry
from tests.golden import golden

U8, U16 = st.integers(0, 0xFF), st.integers(0, 0xFFFF)
U32, U64 = st.integers(0, 0xFFFFFFFF), st.integers(0, (1 << 64) - 1)
MINIMUM = {homa.DATA: 57, homa.GRANT: 33, homa.RESEND: 37, homa.UNKNOWN: 28, homa.BUSY: 28, homa.CUTOFFS: 62,
           homa.FREEZE: 28, homa.NEED_ACK: 28, homa.ACK: 80}
_ETHERNET, _IPV6 = 14, 40


def data(**fields: Any) -> st.SearchStrategy[homa.Packet]:
    """DATA with its offset in its own field, or in the sequence."""
    def make(place: int | None, sequence: int, **rest: Any) -> homa.Data:
        if place is None or place == upstream.BY_SEQUENCE:
            return homa.Data(segment_offset=sequence, **rest)
        return homa.Data(segment_offset=sequence, placed=True, packet_offset=place - sequence, **rest)

    return st.builds(make, place=st.none() | U32, sequence=U32, message_length=st.integers(1, 0xFFFFFFFF),
                     incoming=U32, cutoff_version=U16, retransmit=U8, acked_id=U64, acked_port=U16, **fields)


ENDS: dict[str, Any] = {"sport": U16, "dport": U16, "sender_id": U64}
PACKETS = st.one_of(
    data(**ENDS), st.builds(homa.Grant, **ENDS, offset=U32, priority=st.integers(0, 7)),
    st.builds(homa.Resend, **ENDS, offset=U32, length=st.integers(-1, 0x7FFFFFFF), priority=st.integers(0, 7)),
    *(st.builds(kind, **ENDS) for kind in (homa.Unknown, homa.Busy, homa.Freeze, homa.NeedAck)),
    st.builds(homa.Cutoffs, **ENDS, cutoffs=st.tuples(*[U32] * 8), cutoff_version=U16),
    st.builds(homa.Ack, **ENDS, acks=st.lists(st.builds(AckEntry, U64, st.just(0), U16), max_size=5).map(tuple)))


@given(packet=PACKETS, payload=st.binary(min_size=1, max_size=50))
def test_what_is_packed_is_parsed(packet, payload):
    wire = upstream.pack(packet) + (payload if isinstance(packet, homa.Data) else b"")
    assert upstream.parse_untrusted(wire) == packet
    assert upstream.tcp_shaped(wire)


# -- frames of the module ----------------------------------------------------------------------------------


def vectors() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(golden("vectors", "upstream-frames.json").read_text())["vectors"]
    return found


def transport_of(entry: dict[str, Any]) -> bytes:
    """What follows the IP header. The format is the same in IPv6, which smtnet does not speak."""
    at = _ETHERNET + (_IPV6 if entry["fields"]["v"] == 6 else ipv4.HEADER_LEN)
    return bytes.fromhex(entry["frame"])[at:at + entry["fields"]["tlen"]]


def expected(f: dict[str, Any]) -> homa.Packet:
    """The packet that the vector's fields tell of."""
    ends = f["sport"], f["dport"], f["id"]
    match f["type"]:
        case "DATA":
            placed = f["segoff"] != upstream.BY_SEQUENCE
            return homa.Data(*ends, f["mlen"], f["incoming"], f["seq"], cutoff_version=f["cutver"],
                             retransmit=f["retx"], packet_offset=f["off"] - f["seq"] if placed else 0,
                             placed=placed, acked_id=f["ack_id"], acked_port=f["ack_port"])
        case "GRANT":
            return homa.Grant(*ends, f["off"], f["gprio"])
        case "RESEND":
            return homa.Resend(*ends, f["off"], f["rlen"], f["gprio"])
        case "CUTOFFS":
            return homa.Cutoffs(*ends, tuple(f["cut"]), f["cutver"])
        case "ACK":
            return homa.Ack(*ends, tuple(AckEntry(client_id, 0, port) for client_id, port in f["acks"]))
        case "NEED_ACK":
            return homa.NeedAck(*ends)
        case "BUSY":
            return homa.Busy(*ends)
    assert f["type"] == "UNKNOWN"
    return homa.Unknown(*ends)


def test_every_frame_of_the_module_decodes_to_its_fields_and_encodes_to_its_bytes():
    entries = vectors()
    assert len(entries) == 55
    for name, entry in entries.items():
        f, transport = entry["fields"], transport_of(entry)
        packet = upstream.parse_untrusted(transport)
        assert packet == expected(f), name
        header = transport
        if isinstance(packet, homa.Data):
            assert packet.segment_offset + packet.packet_offset == f["off"], name
            assert transport[upstream.DATA_LEN:].hex() == f["data"], name
            header = transport[:upstream.DATA_LEN]
        # The checksum is the frame's affair: the next test.
        blank = header[:16] + b"\0\0" + header[18:]
        assert upstream.pack(packet, f["doff"]) == blank, name
        if f["v"] == 4:
            ip, read, payload = wire_frame.parse_untrusted(bytes.fromhex(entry["frame"]), UPSTREAM)
            assert (read, payload.hex()) == (packet, f.get("data", "")), name
            assert (ip.protocol, ip.tos, ip.identification) == (f["proto"], f["tos"], f["ipid"])


def test_a_frame_in_the_shape_of_tcp_comes_out_whole():
    """Checksums of both headers: the whole frame is that of the module, Ethernet and IP ID as given."""
    seen = 0
    for name, entry in vectors().items():
        f = entry["fields"]
        if f["v"] != 4 or f["enc"] != "hijacked":
            continue
        frame, transport = bytes.fromhex(entry["frame"]), transport_of(entry)
        addresses = ethernet.parse_untrusted(frame)
        route = TcpRoute(ethernet.Ethernet(addresses.dst, addresses.src), ipv4.address(f["src"]),
                         ipv4.address(f["dst"]))
        header = upstream.pack(upstream.parse_untrusted(transport), f["doff"])
        assert route.frame(f["tos"], f["ipid"], header, transport[len(header):]) == frame, name
        seen += 1
    assert seen > 15


@given(packet=PACKETS, payload=st.binary(min_size=1, max_size=51), src=U32, dst=U32)
def test_the_checksum_of_tcp(packet, payload, src, dst):
    transport = upstream.pack(packet) + (payload if isinstance(packet, homa.Data) else b"")
    checksum = upstream.tcp_checksum(src, dst, transport)
    whole = struct.pack("!IIHH", src, dst, 6, len(transport)) + transport + b"\0" * (len(transport) % 2)
    total = sum(word for (word,) in struct.iter_unpack("!H", whole)) + checksum
    assert total % 0xFFFF == 0


# -- what is no packet -------------------------------------------------------------------------------------


@given(packet=PACKETS)
def test_shorter_than_the_minimum_is_refused(packet):
    wire = upstream.pack(packet) + b"x" * isinstance(packet, homa.Data)
    minimum = MINIMUM[wire[upstream.TYPE_OFFSET]]
    assert len(wire) == minimum
    for size in range(minimum):
        with pytest.raises(BadPacket):
            upstream.parse_untrusted(wire[:size])


@pytest.mark.parametrize("kind", [k for k in range(256) if k not in homa.TYPE_NAMES])
def test_unknown_types_are_refused(kind):
    wire = bytearray(upstream.pack(homa.Busy(1, 2, 3)) + bytes(100))
    wire[upstream.TYPE_OFFSET] = kind
    with pytest.raises(BadPacket, match="unknown packet type"):
        upstream.parse_untrusted(bytes(wire))


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(BadPacket, match="length 0"):
        upstream.parse_untrusted(upstream.pack(homa.Data(1, 2, 4, 0, 0)) + b"x")
    with pytest.raises(BadPacket, match="RESEND of -2"):
        upstream.parse_untrusted(upstream.pack(homa.Resend(1, 2, 4, 0, -2, 7)))


def test_a_count_of_acks_beyond_five_is_taken_as_five():
    entries = tuple(AckEntry(n, 0, 9) for n in (2, 4, 6, 8, 10))
    wire = bytearray(upstream.pack(homa.Ack(1, 2, 12, entries)))
    wire[28:30] = b"\xff\xff"
    assert upstream.parse_untrusted(bytes(wire)) == homa.Ack(1, 2, 12, entries)


@given(noise=st.binary(min_size=8, max_size=8), packet=PACKETS)
def test_fields_that_nobody_reads(noise, packet):
    """ack, data offset, window and checksum; natively flags and urgent pointer as well (reference §0.7)."""
    wire = bytearray(upstream.pack(packet) + b"x" * isinstance(packet, homa.Data))
    wire[8:11] = noise[:3]
    wire[12:18] = noise[2:]
    wire[18:20] = noise[:2]
    assert upstream.parse_untrusted(bytes(wire)) == packet


@pytest.mark.parametrize(("at", "value"), [(13, 0x02), (13, 0x10), (13, 0x0E), (13, 0x16), (18, 0xB8), (19, 0x7C)])
def test_of_tcp_only_the_exact_pattern_is_homa(at, value):
    wire = bytearray(upstream.pack(homa.Busy(1, 2, 3)))
    frame = [ethernet.Ethernet(b"\2abcde", b"\2fghij").pack() + ipv4.IPv4(1, 2, protocol, 48).pack()
             for protocol in (6, 146)]
    for head in frame:
        wire_frame.parse_untrusted(head + wire, UPSTREAM)
    wire[at] = value
    with pytest.raises(BadPacket, match="IP protocol 6"):
        wire_frame.parse_untrusted(frame[0] + wire, UPSTREAM)
    wire_frame.parse_untrusted(frame[1] + wire, UPSTREAM)


@given(packet=PACKETS, payload=st.binary(min_size=1, max_size=20), src=U32, dst=U32, pad=st.integers(0, 9))
def test_one_struct_reads_what_the_parsers_read(packet, payload, src, dst, pad):
    if not isinstance(packet, homa.Data):
        return
    transport = upstream.pack(packet) + payload
    frame = (ethernet.Ethernet(b"\2abcde", b"\2fghij").pack()
             + ipv4.IPv4(src, dst, 6, 20 + len(transport)).pack() + transport + bytes(pad))
    place = packet.segment_offset + packet.packet_offset if packet.placed else upstream.BY_SEQUENCE
    assert upstream.DATA_FRAME.unpack_from(frame) == (
        0x0800, 0x45, 20 + len(transport), 0x4000, 6, src, dst, packet.sport, packet.dport, packet.segment_offset,
        upstream.FLAGS, upstream.URGENT, packet.sender_id, packet.message_length, packet.incoming, packet.acked_id,
        packet.acked_port, packet.cutoff_version, place)
    assert upstream.DATA_FRAME.size == _ETHERNET + ipv4.HEADER_LEN + upstream.DATA_LEN
    assert wire_frame.parse_untrusted(frame, UPSTREAM)[2] == payload
