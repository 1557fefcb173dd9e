"""TCP as the NIC sees it, against scapy: fields, checksums, segmentation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from smtstack.errors import BadPacket
from smtstack.nic.tls_device import TlsNic, TlsNicConfig
from smtstack.wire import tcp

SRC, DST = "02:00:00:00:00:01", "02:00:00:00:00:02"


def make(payload: bytes, options=(), flags="A", seq=1, ident=7, tos=0) -> bytes:
    return bytes(Ether(src=SRC, dst=DST) / IP(src="10.0.0.1", dst="10.0.0.2", id=ident, flags="DF", tos=tos)
                 / TCP(sport=1234, dport=443, seq=seq, ack=99, flags=flags, options=list(options)) / payload)


def left_to_the_device(frame: bytes) -> bytes:
    """With the sum over the pseudo header where the checksum belongs, as the kernel hands it over."""
    at = 34 + 16
    pseudo = sum(int.from_bytes(frame[n:n + 2], "big") for n in range(26, 34, 2)) + 6 + len(frame) - 34
    while pseudo >> 16:
        pseudo = (pseudo & 0xFFFF) + (pseudo >> 16)
    return frame[:at] + pseudo.to_bytes(2, "big") + frame[at + 2:]


TIMESTAMP = (("NOP", None), ("NOP", None), ("Timestamp", (5, 6)))


@given(st.binary(max_size=12_000), st.integers(1, 9000), st.integers(0, 2**32 - 1),
       st.integers(0, 65535), st.sampled_from(["A", "PA", "FPA", "CPA"]), st.booleans())
def test_segmentation_is_scapys(payload, size, seq, ident, flags, options):
    super_frame = make(payload, TIMESTAMP if options else (), flags, seq, ident)
    frames = TlsNic(TlsNicConfig(1)).transmit(left_to_the_device(super_frame), size, True, 34, 16)
    pieces = [payload[n:n + size] for n in range(0, len(payload), size)] or [b""]
    for number, (piece, frame) in enumerate(zip(pieces, frames, strict=True)):
        last = number == len(pieces) - 1
        own = "".join(f for f in flags if (f not in "FP" or last) and (f != "C" or number == 0))
        assert frame == make(piece, TIMESTAMP if options else (), own, (seq + number * size) % 2**32,
                             (ident + number) % 2**16)


@given(st.binary(max_size=100), st.booleans())
def test_checksums_are_finished(payload, udp):
    if udp:
        ip = IP(src="10.0.0.1", dst="10.0.0.2")
        whole = bytes(Ether(src=SRC, dst=DST) / ip / UDP(sport=1, dport=2) / payload)
        pseudo = (0x0A00 + 1 + 0x0A00 + 2 + 17 + len(whole) - 34) % 0xFFFF
        frame, offset = whole[:40] + pseudo.to_bytes(2, "big") + whole[42:], 6
    else:
        whole = make(payload)
        frame, offset = left_to_the_device(whole), 16
    nic = TlsNic(TlsNicConfig(1))
    assert nic.transmit(frame, 0, True, 34, offset) == [whole]
    assert nic.transmit(whole) == [whole]
    assert nic.counters.tx_packets == 2


def test_a_checksum_of_zero_is_none_to_udp_only():
    # Chosen so that the sum is 0xFFFF.
    rest = bytes(8)
    udp = bytes(34) + b"\0\1\0\2\0\x0a\xff\xf2" + rest
    assert tcp.finish_checksum(udp, 34, 6)[40:42] == b"\xff\xff"
    other = bytes(34) + b"\xff\xfe\0\1" + bytes(16)
    assert tcp.finish_checksum(other, 34, 16)[50:52] == b"\0\0"


def test_fields():
    frame = make(b"payload", TIMESTAMP, "PA", seq=2**32 - 3) + bytes(3)
    packet = tcp.parse_untrusted(frame)
    assert packet.ends == (0x0A000001, 0x0A000002, 1234, 443)
    assert (packet.seq, packet.ack, packet.flags) == (2**32 - 3, 99, tcp.PSH | tcp.ACK)
    assert frame[packet.payload_at:packet.end] == b"payload"
    assert packet.length == 7
    assert packet.flow == tcp.flow_key(0x0A000001, 0x0A000002, 1234, 443)
    assert tcp.is_tcp(frame)
    assert tcp.checksum_ok(frame, packet)
    assert not tcp.checksum_ok(frame[:-5] + b"X" + frame[-4:], packet)
    other = tcp.replace_payload(frame, packet, b"PAYLOAD")
    assert other == make(b"PAYLOAD", TIMESTAMP, "PA", seq=2**32 - 3) + bytes(3)


def test_ip_options_stand_between():
    options = make(b"payload")
    frame = bytes(Ether(src=SRC, dst=DST) / IP(src="10.0.0.1", dst="10.0.0.2", options=[IPOption(b"\x94\x04\0\0")])
                  / TCP(sport=1234, dport=443, seq=1, ack=99, flags="A") / b"payload")
    packet = tcp.parse_untrusted(frame)
    assert packet.tcp_at == 38
    assert packet.flow == tcp.parse_untrusted(options).flow
    assert tcp.checksum_ok(frame, packet)
    assert tcp.cut(frame, packet, b"payload", 7) == [frame] == [tcp.replace_payload(frame, packet, b"payload")]


def test_what_is_no_tcp_is_refused_and_forwarded():
    good = make(b"data")
    fragment = good[:20] + b"\x20\0" + good[22:]
    no_ip = good[:12] + b"\x86\xdd" + good[14:]
    short_header = good[:46] + b"\x40" + good[47:]
    too_long = good[:16] + b"\xff\xff" + good[18:]
    for frame in (good[:50], fragment, no_ip, short_header, too_long, b""):
        with pytest.raises(BadPacket):
            tcp.parse_untrusted(frame)
        nic = TlsNic(TlsNicConfig(1))
        assert nic.transmit(frame) == [frame]
        assert nic.receive(frame) == frame
        # Nobody can cut it, and nobody can say that it has no payload.
        assert nic.transmit(frame, 1000) == []
        assert nic.transmit(frame, marked=True) == []
        assert nic.counters.tx_dropped == 2
    assert bytes(Raw(good)) == good


def test_marked_payload_of_no_flow_is_dropped():
    nic = TlsNic(TlsNicConfig(1))
    assert nic.transmit(make(b"secret"), marked=True) == []
    assert nic.counters.tx_tls_drop_bypass_req == 1
    # The control, and what carries nothing.
    assert nic.transmit(make(b"secret")) == [make(b"secret")]
    assert nic.transmit(make(b"", flags="FA"), marked=True) == [make(b"", flags="FA")]


def test_sequence_numbers_wrap():
    assert tcp.advance(2**32 - 1, 2) == 1
    assert tcp.distance(2**32 - 1, 1) == 2
    assert tcp.distance(1, 2**32 - 1) == -2
    assert tcp.distance(5, 5 + 2**31) == -2**31
