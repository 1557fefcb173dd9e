"""Packet formats: layouts byte by byte, round trips, refusals, and scapy as an outside judge."""

from __future__ import annotations

import struct
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtstack.errors import BadPacket
from smtstack.nic.descriptors import Route
from smtstack.wire import ethernet, homa, ipv4
from smtstack.wire import frame as wire_frame
from smtstack.wire.homa import HOMA, LINUX, SMT, AckEntry, WireFormat
from tests.pair import CLIENT, SERVER, Pair, pattern

U8, U16 = st.integers(0, 0xFF), st.integers(0, 0xFFFF)
U32, U64 = st.integers(0, 0xFFFFFFFF), st.integers(0, (1 << 64) - 1)
PRIORITY = st.integers(0, 7)
FORMATS = pytest.mark.parametrize("fmt", [SMT, HOMA, LINUX], ids=lambda f: f.name)
MINIMUM = {homa.DATA: 41, homa.GRANT: 33, homa.RESEND: 37, homa.UNKNOWN: 28, homa.BUSY: 28, homa.CUTOFFS: 62,
           homa.FREEZE: 28, homa.NEED_ACK: 28, homa.ACK: 90}


@cache
def packets(fmt: WireFormat) -> st.SearchStrategy[homa.Packet]:
    """Every packet ``fmt`` can carry. Once: Hypothesis looks through every new strategy."""
    nothing = st.just(0)
    ends: dict[str, Any] = {"sport": U16, "dport": U16, "sender_id": U64, "epoch": U8 if fmt.extended else nothing}
    return st.one_of(
        st.builds(homa.Data, **ends, message_length=st.integers(1, 0xFFFFFFFF), incoming=U32, segment_offset=U32,
                  segment_size=U16 if fmt.extended else nothing, cutoff_version=U16, retransmit=U8,
                  packet_index=U8, packet_offset=U32 if fmt.extended else nothing,
                  placed=st.booleans() if fmt.extended else st.just(False),
                  incast=st.booleans() if fmt.extended else st.just(False)),
        st.builds(homa.Grant, **ends, offset=U32, priority=PRIORITY),
        st.builds(homa.Resend, **ends, offset=U32, length=U32, priority=PRIORITY),
        *(st.builds(kind, **ends) for kind in (homa.Unknown, homa.Busy, homa.Freeze, homa.NeedAck)),
        st.builds(homa.Cutoffs, **ends, cutoffs=st.tuples(*[U32] * 8), cutoff_version=U16),
        st.builds(homa.Ack, **ends, acks=st.lists(st.builds(AckEntry, U64, U16, U16), max_size=5).map(tuple),
                  proof=st.binary(min_size=16, max_size=16) if fmt.ack_proof else st.just(b"")),
    )


@FORMATS
@given(data=st.data(), payload=st.binary(min_size=1, max_size=50))
def test_what_is_packed_is_parsed(fmt, data, payload):
    packet = data.draw(packets(fmt))
    tail = payload if isinstance(packet, homa.Data) else b""
    assert homa.parse_untrusted(packet.pack() + tail, fmt) == packet


# Reference §1.7-1.11 and §13.1, written out by hand. Server port 2000 = 07d0, client port 32768 = 8000.
HEAD = "07d08000 00000000 0000{e}00 00{t} 0000 0000 0000 0000000000000003"
LAYOUTS: list[tuple[WireFormat, homa.Packet, str]] = [
    (LINUX, homa.Data(0x8000, 2000, 2, 64, 64),
     "8000 07d0 00000000 00000000 a0 10 0000 0000 0000 0000000000000002 00000040 00000040 0000 00 00"),
    (SMT, homa.Data(0x8000, 2000, 4, 0x0F4240, 0x2710, 0x00123456, 0x05A0, 0x0102, 1, 0x0B, 0x0708090A, 0xEE,
                    placed=True),
     "8000 07d0 0708090a 05a0 ee 01 a0 10 0012 0000 3456 0000000000000004 000f4240 00002710 0102 01 0b"),
    (HOMA, homa.Data(0x8000, 2000, 4, 9, 9, incast=True),
     "8000 07d0 00000000 0000 00 02 a0 10 0000 0000 0000 0000000000000004 00000009 00000009 0000 00 00"),
    (LINUX, homa.Grant(2000, 0x8000, 3, 10_000, 3), HEAD.format(e="00", t="11") + "00002710 03"),
    (LINUX, homa.Resend(2000, 0x8000, 3, 1407, 1420, 7), HEAD.format(e="00", t="12") + "0000057f 0000058c 07"),
    (LINUX, homa.Unknown(2000, 0x8000, 3), HEAD.format(e="00", t="13")),
    (LINUX, homa.Busy(2000, 0x8000, 3), HEAD.format(e="00", t="14")),
    (LINUX, homa.Cutoffs(2000, 0x8000, 3, (0, 0, 0, 0, 1_000_000, 15_000, 2800, 200), 1),
     HEAD.format(e="00", t="15") + "00000000" * 4 + "000f4240 00003a98 00000af0 000000c8 0001"),
    (LINUX, homa.Freeze(2000, 0x8000, 3), HEAD.format(e="00", t="16")),
    (LINUX, homa.NeedAck(2000, 0x8000, 3), HEAD.format(e="00", t="17")),
    (LINUX, homa.Ack(2000, 0x8000, 3, (AckEntry(2, 0x8000, 2000), AckEntry(0x1122334455667788, 1, 0xFFFE))),
     HEAD.format(e="00", t="18") + "0002 0000000000000002 8000 07d0 1122334455667788 0001 fffe" + "00" * 36),
    (SMT, homa.Ack(2000, 0x8000, 3, (), 5, bytes(range(16))),
     HEAD.format(e="05", t="18") + "0000" + "00" * 60 + "000102030405060708090a0b0c0d0e0f"),
    (SMT, homa.Busy(2000, 0x8000, 3, 0xFF), HEAD.format(e="ff", t="14")),
]


@pytest.mark.parametrize(("fmt", "packet", "text"), LAYOUTS, ids=lambda v: type(v).__name__)
def test_layout(fmt, packet, text):
    wire = bytes.fromhex(text)
    assert packet.pack() == wire
    tail = b"x" if isinstance(packet, homa.Data) else b""
    assert homa.parse_untrusted(wire + tail, fmt) == packet


def test_every_type_has_a_layout_above():
    assert {p.pack()[homa.TYPE_OFFSET] for _f, p, _t in LAYOUTS} == set(homa.TYPE_NAMES)


@given(data=st.data(), noise=st.binary(min_size=8, max_size=8))
def test_linux_ignores_what_the_kernel_never_writes(data, noise):
    packet = data.draw(packets(LINUX))
    wire = bytearray(packet.pack() + (b"x" if isinstance(packet, homa.Data) else b""))
    wire[4:12] = noise
    wire[12] = noise[0]
    wire[16:18] = noise[1:3]
    if not isinstance(packet, homa.Data):
        # The kernel sends control packets with uninitialised memory here (reference §1.2).
        wire[14:16] = wire[18:20] = noise[3:5]
    assert homa.parse_untrusted(bytes(wire), LINUX) == packet


def test_smt_does_read_bytes_4_to_11():
    wire = bytearray(homa.Data(1, 2, 4, 9, 9).pack() + b"x")
    wire[4:12] = range(1, 9)
    genuine = homa.Data(1, 2, 4, 9, 9, segment_size=0x0506, packet_offset=0x01020304, epoch=7)
    assert homa.parse_untrusted(bytes(wire), SMT) == genuine  # of the flags, 8, we know none
    wire[11] = 0xFF
    assert homa.parse_untrusted(bytes(wire), SMT) == replace(genuine, placed=True, incast=True)
    wire[11] = 2
    assert homa.parse_untrusted(bytes(wire), SMT) == replace(genuine, incast=True)


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFF), st.integers(0, 0xFFFF), U32)
def test_place_in_the_segment(ip_id, index, size, offset):
    data = homa.Data(1, 2, 4, 9, 9, segment_size=size, packet_index=index, packet_offset=offset)
    assert data.offset_in_segment(ip_id) == (ip_id + index) % 65536 * size
    assert replace(data, placed=True).offset_in_segment(ip_id) == offset


@FORMATS
@pytest.mark.parametrize("packet", {p.pack()[13]: p for _f, p, _t in LAYOUTS if len(p.pack()) != 90}.values(),
                         ids=lambda p: type(p).__name__)
def test_shorter_than_the_minimum_is_refused(fmt, packet):
    kind = packet.pack()[homa.TYPE_OFFSET]
    minimum = MINIMUM[kind] + (16 if fmt.ack_proof and kind == homa.ACK else 0)
    wire = (packet.pack() + bytes(200))[:minimum]
    homa.parse_untrusted(wire, fmt)
    for size in range(minimum):
        with pytest.raises(BadPacket):
            homa.parse_untrusted(wire[:size], fmt)


@pytest.mark.parametrize("kind", [k for k in range(256) if k not in homa.TYPE_NAMES])
def test_unknown_types_are_refused(kind):
    wire = bytearray(homa.Busy(1, 2, 3).pack() + bytes(100))
    wire[homa.TYPE_OFFSET] = kind
    with pytest.raises(BadPacket, match="unknown packet type"):
        homa.parse_untrusted(bytes(wire), SMT)


@pytest.mark.parametrize("count", [6, 7, 255, 256, 0xFFFF])
def test_ack_with_more_entries_than_fit_is_refused(count):
    wire = homa.Ack(1, 2, 4).pack()
    homa.parse_untrusted(wire[:28] + b"\0\5" + wire[30:], LINUX)
    with pytest.raises(BadPacket, match="entries"):
        homa.parse_untrusted(wire[:28] + count.to_bytes(2, "big") + wire[30:], LINUX)


def test_smt_wants_a_proof_in_every_ack():
    wire = homa.Ack(1, 2, 4).pack()
    assert homa.parse_untrusted(wire, HOMA) == homa.Ack(1, 2, 4)
    with pytest.raises(BadPacket):
        homa.parse_untrusted(wire, SMT)
    with pytest.raises(BadPacket):
        homa.parse_untrusted(wire + bytes(15), SMT)


@FORMATS
def test_data_without_payload_or_length_is_refused(fmt):
    with pytest.raises(BadPacket, match="no payload"):
        homa.parse_untrusted(homa.Data(1, 2, 4, 9, 9).pack(), fmt)
    with pytest.raises(BadPacket, match="length 0"):
        homa.parse_untrusted(homa.Data(1, 2, 4, 0, 9).pack() + b"x", fmt)


# -- frames ------------------------------------------------------------------------------------------------


@FORMATS
@given(data=st.data(), payload=st.binary(min_size=1, max_size=50), pad=st.integers(0, 20),
       ip=st.builds(ipv4.IPv4, U32, U32, st.just(0), st.just(0), U16, U8, U8))
def test_one_struct_reads_what_three_parsers_read(fmt, data, payload, pad, ip):
    packet = data.draw(packets(fmt))
    transport = packet.pack() + (payload if isinstance(packet, homa.Data) else b"")
    header = ipv4.IPv4(ip.src, ip.dst, fmt.protocol, 20 + len(transport), ip.identification, ip.tos, ip.ttl)
    frame = ethernet.Ethernet(b"\2abcde", b"\2fghij").pack() + header.pack() + transport + bytes(pad)
    got_ip, got, got_payload = wire_frame.parse_untrusted(frame, fmt)
    assert (got_ip, got) == (header, packet)
    common = (0x0800, 0x45, header.tos, header.total_length, header.identification, 0x4000, fmt.protocol,
              header.src, header.dst, packet.sport, packet.dport)
    assert wire_frame.COMMON_FRAME.unpack_from(frame) == (*common, packet.epoch, packet.sender_id)
    if isinstance(packet, homa.Data):
        assert got_payload == payload  # trimmed: Ethernet padding is no payload
        assert wire_frame.DATA_FRAME.unpack_from(frame) == (
            *common, packet.packet_offset, packet.segment_size, packet.epoch, packet.placed | packet.incast << 1,
            packet.segment_offset >> 16,
            packet.segment_offset & 0xFFFF, packet.sender_id, packet.message_length, packet.incoming,
            packet.cutoff_version, packet.retransmit, packet.packet_index)
        assert wire_frame.DATA_FRAME.size == wire_frame.PAYLOAD_AT == len(frame) - len(payload) - pad
    assert frame[wire_frame.TYPE_AT] == packet.pack()[homa.TYPE_OFFSET]
    assert wire_frame.COMMON_FRAME.size == wire_frame.MIN_LEN


def a_frame(fmt: WireFormat = SMT) -> bytes:
    transport = homa.Data(1, 2, 4, 9, 9).pack() + b"payload"
    ip = ipv4.IPv4(CLIENT, SERVER, fmt.protocol, 20 + len(transport), 7, 0xC0)
    return ethernet.Ethernet(b"\2abcde", b"\2fghij").pack() + ip.pack() + transport


def test_frames_of_others_are_refused():
    frame = a_frame()
    wire_frame.parse_untrusted(frame, SMT)
    with pytest.raises(BadPacket, match="EtherType"):
        wire_frame.parse_untrusted(frame[:12] + b"\x86\xdd" + frame[14:], SMT)
    with pytest.raises(BadPacket, match="speaks 253"):
        wire_frame.parse_untrusted(frame, LINUX)
    for size in range(len(frame)):
        with pytest.raises(BadPacket):
            wire_frame.parse_untrusted(frame[:size], SMT)


def test_ethernet():
    header = ethernet.Ethernet(bytes.fromhex("020000000001"), bytes.fromhex("020000000002"))
    assert header.pack().hex() == "020000000001" + "020000000002" + "0800"
    assert ethernet.parse_untrusted(header.pack() + b"rest") == header
    assert ethernet.format_mac(header.src) == "02:00:00:00:00:02"
    with pytest.raises(BadPacket):
        ethernet.parse_untrusted(header.pack()[:13])


# -- IPv4 --------------------------------------------------------------------------------------------------

REFERENCE_IP = bytes.fromhex("450000ad 00004000 40fd2492 0a000001 0a000002".replace("4500", "45c0"))


def test_ip_header_of_the_reference():
    header = ipv4.IPv4(CLIENT, SERVER, 253, 173, 0, 0xC0)
    assert header.pack() == REFERENCE_IP  # §13.1
    assert ipv4.parse_untrusted(REFERENCE_IP + bytes(153)) == header
    assert ipv4.checksum_ok(REFERENCE_IP)


def rfc1071(header: bytes) -> int:
    total = sum(struct.unpack("!10H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@given(src=U32, dst=U32, proto=U8, total=U16, ident=U16, tos=U8, ttl=U8)
def test_checksum_is_the_rfcs(src, dst, proto, total, ident, tos, ttl):
    header = ipv4.IPv4(src, dst, proto, total, ident, tos, ttl).pack()
    assert int.from_bytes(header[10:12], "big") == rfc1071(header[:10] + b"\0\0" + header[12:])
    assert ipv4.checksum_ok(header)


def test_checksum_of_a_header_that_sums_to_minus_zero():
    header = ipv4.IPv4(CLIENT, SERVER, 253, 173, 0x2492, 0xC0)
    route = Route(ethernet.Ethernet(b"\2abcde", b"\2fghij"), CLIENT, SERVER, 253)
    frame = route.frame(0xC0, 0x2492, bytes(40), bytes(113))
    assert rfc1071(header.pack()[:10] + b"\0\0" + header.pack()[12:]) == 0
    assert header.pack()[10:12] == frame[24:26] == b"\0\0"


def test_every_single_flipped_bit_is_noticed():
    for bit in range(160):
        wrong = bytearray(REFERENCE_IP + bytes(60_000))
        wrong[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises(BadPacket):
            ipv4.parse_untrusted(bytes(wrong))


@pytest.mark.parametrize(("at", "value", "why"), [
    (0, b"\x46", "options"), (0, b"\x65", "options"), (0, b"\x44", "options"),
    (6, b"\x60\x00", "fragment"), (6, b"\x40\x01", "fragment"), (6, b"\x20\x00", "fragment"),
    (2, b"\x00\x13", "total length"), (2, b"\x00\xae", "total length"), (2, b"\x00\x00", "total length"),
    (10, b"\x24\x93", "checksum"),
])
def test_headers_homa_never_sends_are_refused(at, value, why):
    header = bytearray(REFERENCE_IP)
    header[at:at + len(value)] = value
    if why != "checksum":
        # Only the field itself can be the reason.
        header[10:12] = b"\0\0"
        header[10:12] = rfc1071(bytes(header)).to_bytes(2, "big")
    with pytest.raises(BadPacket, match=why):
        ipv4.parse_untrusted(bytes(header) + bytes(153))


@given(U32)
def test_addresses_round_trip(value):
    text = ipv4.format_address(value)
    assert ipv4.address(text) == value
    assert text == ".".join(str(value >> s & 0xFF) for s in (24, 16, 8, 0))


@pytest.mark.parametrize("text", ["", "10.0.0", "10.0.0.0.1", "10.0.0.256", "a.b.c.d", "-1.0.0.0", "10.0.0.1 ",
                                  "10..0.1", "0x0a.0.0.1", "10.0.0.0001", "10.0.0.+1", "1.2.3.²"])
def test_what_is_no_address(text):
    with pytest.raises(ValueError):
        ipv4.address(text)


# -- an outside judge --------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["smt", "homa", "linux"])
def test_scapy_agrees_with_the_frames_of_our_nic(profile):
    pytest.importorskip("scapy")
    from scapy.layers.inet import IP
    from scapy.layers.l2 import Ether

    pair = Pair(profile)
    for size in (1, 64, 1400, 5000, 60_000):
        pair.request(pattern(size))
    pair.run(settle=True)
    assert len(pair.frames) > 100
    kinds = set()
    for frame in pair.frames:
        ether = Ether(frame)
        ip = ether[IP]
        assert (ether.type, ip.version, ip.ihl, ip.ttl, str(ip.flags), ip.frag) == (0x0800, 4, 5, 64, "DF", 0)
        assert ip.proto == (253 if profile == "linux" else 146)
        assert {ip.src, ip.dst} == {"10.0.0.1", "10.0.0.2"}
        assert (ether.src, ether.dst) == ("02:00:0a:00:00:0" + ip.src[-1], "02:00:0a:00:00:0" + ip.dst[-1])
        assert ip.len == len(frame) - 14 <= 1500
        assert ip.tos & 0x1F == 0
        transport = bytes(ip.payload)
        kinds.add(transport[13])
        if transport[13] != homa.DATA:
            assert (ip.tos, ip.id) == (0xE0, 0)
        theirs = ip.copy()
        del theirs.chksum
        assert IP(bytes(theirs)).chksum == ip.chksum
    assert {homa.DATA, homa.CUTOFFS, homa.GRANT} <= kinds
    longest = (10).to_bytes(8, "big")
    segment = [Ether(f)[IP].id for f in pair.frames if f[47] == homa.DATA and f[54:62] == longest]
    assert segment[:7] == [0, 1, 2, 3, 4, 5, 0]  # six packets a segment, counted by the IP ID


def test_the_handshake_flag_is_where_every_type_has_it():
    pair = Pair()
    pair.request(pattern(30_000))
    pair.run(settle=True)
    kinds = set()
    for frame in pair.frames:
        assert not wire_frame.is_handshake(frame)
        flags = frame[wire_frame.FLAGS_AT] | homa.HANDSHAKE
        marked = frame[:wire_frame.FLAGS_AT] + bytes((flags,)) + frame[wire_frame.FLAGS_AT + 1:]
        assert wire_frame.is_handshake(marked)
        # The parser has no other use for the bit.
        assert wire_frame.parse_untrusted(marked, SMT) == wire_frame.parse_untrusted(frame, SMT)
        kinds.add(frame[wire_frame.TYPE_AT])
        assert not wire_frame.is_handshake(marked[:wire_frame.MIN_LEN - 1])
    assert len(kinds) >= 4
    assert not wire_frame.is_handshake(b"")
