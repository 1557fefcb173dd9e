"""UDP/IP without I/O: what is sent comes, in whatever pieces; what contradicts itself does not."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP, fragment
from scapy.layers.l2 import Ether

from smtstack.errors import BadPacket, LocalError
from smtstack.udp.reassembly import OVERHEAD, PATIENCE_NS, Reassembly
from smtstack.udp.stack import FIRST_PORT, UdpStack
from smtstack.udp.wire import (
    MAX_DATA,
    Piece,
    parse_datagram_untrusted,
    parse_piece_untrusted,
    udp_checksum,
)
from smtstack.wire.ipv4 import address

ONE, TWO, THREE = (address(f"10.0.0.{n}") for n in (1, 2, 3))
MACS = {ONE: b"\x02\0\0\0\0\1", TWO: b"\x02\0\0\0\0\2", THREE: b"\x02\0\0\0\0\3"}
PORT = FIRST_PORT + 5


def end(ip: int, mtu: int = 1500, first: int = 0) -> UdpStack:
    return UdpStack(ip, PORT, MACS[ip], mtu, MACS.get, first)


def take(stack: UdpStack, frames: list[bytes], now: int = 0) -> list[bytes]:
    """The datagrams that these make."""
    return [got.data for frame in frames if (got := stack.receive(frame, now)) is not None]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_fragments_in_any_order_and_twice_make_the_datagram_once(data):
    sent = random.Random(data.draw(st.integers(0, 999))).randbytes(data.draw(st.integers(0, 9000)))
    frames = end(ONE, data.draw(st.integers(68, 1500)), data.draw(st.integers(0, 65535))).send(TWO, PORT, sent)
    order = data.draw(st.permutations(frames)) if len(frames) < 40 else frames[::-1]
    again = [frame for frame in order for _ in range(data.draw(st.integers(1, 2)) if len(order) < 40 else 1)]
    two = end(TWO)
    whole = len(frames) == 1
    assert take(two, order) == [sent]
    assert take(end(TWO), again)[:1] == [sent]
    assert two.reassembly.taken == len(two.reassembly) == 0
    assert two.fragments_received == (0 if whole else len(frames))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6), st.booleans()), max_size=10), st.randoms())
def test_whatever_overlaps_what_is_delivered_was_sent_by_one(pieces, draw):
    """Pieces of two different packets under one identification: never a mixture of them."""
    texts = [bytes([65 + n]) * 104 for n in range(2)]
    made = Reassembly()
    for offset, length, second in pieces:
        data = texts[second][8 * offset:8 * (offset + length)]
        if data:
            more = 8 * offset + len(data) < 104
            got = made.add(Piece(ONE, TWO, 17, 7, 8 * offset, more, data), 0)
            if got is not None:
                # All of it was there, without one byte said twice.
                assert len(got.payload) == 104
                covered = [set(range(8 * o, min(104, 8 * (o + k)))) for o, k, _s in pieces]
                assert set().union(*covered) == set(range(104))
    assert made.taken >= 0
    _ = draw


def test_a_fragment_that_overlaps_ends_the_packet_and_nothing_of_it_comes_later():
    made = Reassembly()
    first, last = Piece(ONE, TWO, 17, 1, 0, True, b"a" * 16), Piece(ONE, TWO, 17, 1, 16, False, b"b" * 8)
    assert made.add(first, 0) is None
    assert made.add(Piece(ONE, TWO, 17, 1, 8, True, b"x" * 8), 0) is None
    assert made.add(last, 0) is None
    assert made.add(first, 0) is None
    assert made.overlaps == 3
    # The control: without it, they do make one. And after its time the identification is free again.
    again = Reassembly()
    again.add(first, 0)
    whole = again.add(last, 0)
    assert whole is not None
    assert whole.payload == b"a" * 16 + b"b" * 8
    assert made.add(first, PATIENCE_NS) is None
    assert made.add(last, PATIENCE_NS) is not None


@pytest.mark.parametrize("piece", [
    Piece(ONE, TWO, 17, 1, 16, False, b"c" * 8), Piece(ONE, TWO, 17, 1, 0, False, b"c" * 8),
    Piece(ONE, TWO, 17, 1, 32, True, b"c" * 8), Piece(ONE, TWO, 17, 1, 0, True, b"c" * 24)])
def test_lengths_that_contradict_each_other_end_it(piece):
    made = Reassembly()
    made.add(Piece(ONE, TWO, 17, 1, 8, True, b"a" * 8), 0)
    made.add(Piece(ONE, TWO, 17, 1, 24, False, b"b" * 8), 0)
    assert made.add(piece, 0) is None
    assert made.overlaps == 1


def test_two_senders_with_one_identification_are_two_packets():
    data = [random.Random(n).randbytes(4000) for n in range(2)]
    frames = [end(ip, first=9).send(TWO, PORT, sent) for ip, sent in zip((ONE, THREE), data, strict=True)]
    mixed = [frame for pair in zip(*frames, strict=True) for frame in pair]
    assert take(end(TWO), mixed) == data


def test_memory_is_bounded_and_the_oldest_goes():
    made = Reassembly(max_packets=8, max_bytes=20_000)
    for number in range(1000):
        made.add(Piece(ONE, TWO, 17, number, 8, True, b"x" * 1400), number)
        assert made.taken <= 20_000
        assert len(made) <= 8
    assert made.evicted > 900
    # Many of a byte each are bounded, too.
    small = Reassembly(max_bytes=10_000)
    for number in range(4000):
        small.add(Piece(ONE, TWO, 17, 1, 16 * number, True, b"x" * 8), 0)
        assert small.taken <= 10_000
    assert OVERHEAD > 8


def test_scapy_understands_what_we_send_and_we_what_scapy_sends():
    sent = random.Random(3).randbytes(5000)
    frames = end(ONE, 700).send(TWO, PORT, sent)
    packets = [Ether(frame) for frame in frames]
    assert all(packet[IP].len <= 700 for packet in packets)
    for packet in packets:
        found = packet[IP].chksum
        del packet[IP].chksum
        assert IP(bytes(packet[IP])).chksum == found
    short = Ether(end(ONE).send(TWO, PORT, b"odd")[0])
    found = short[UDP].chksum
    del short[UDP].chksum
    assert Ether(bytes(short))[UDP].chksum == found
    theirs = IP(src="10.0.0.1", dst="10.0.0.2", id=77) / UDP(sport=9, dport=PORT) / sent
    ether = Ether(dst="02:00:00:00:00:02")
    two = end(TWO)
    assert take(two, [bytes(ether / part) for part in fragment(theirs, 480)]) == [sent]
    assert take(two, [bytes(ether / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=9, dport=PORT) / b"")]) == [b""]


def _scapy(ip: dict, udp: dict, data: bytes = b"abc") -> bytes:
    return bytes(Ether(dst="02:00:00:00:00:02") / IP(**{"src": "10.0.0.1", "dst": "10.0.0.2", **ip})
                 / UDP(**{"sport": 9, "dport": PORT, **udp}) / data)


@pytest.mark.parametrize(("ip", "udp", "counter"), [
    ({}, {"chksum": 0}, "udp_bad"), ({}, {"chksum": 1}, "udp_bad"), ({"chksum": 5}, {}, "udp_bad"),
    ({}, {"len": 9}, "udp_bad"), ({}, {"len": 500}, "udp_bad"), ({"options": [("NOP")] * 4}, {}, "udp_bad"),
    ({"dst": "10.0.0.9"}, {}, "udp_not_ours"), ({"src": "224.0.0.1"}, {}, "udp_not_ours"),
    ({}, {"dport": PORT + 1}, "udp_not_ours"), ({"proto": 6}, {}, "udp_not_ours"),
    ({"len": 1000}, {}, "udp_bad")])
def test_what_is_wrong_is_counted_and_dropped(ip, udp, counter):
    two = end(TWO)
    assert take(two, [_scapy({}, {})]) == [b"abc"]
    assert take(two, [_scapy(ip, udp)]) == []
    assert two.counters()[counter] == 1


def test_what_cannot_be_sent_is_said():
    one = end(ONE)
    with pytest.raises(LocalError, match="at most 65507"):
        one.send(TWO, PORT, bytes(MAX_DATA + 1))
    with pytest.raises(LocalError, match="port 0"):
        one.send(TWO, 0, b"")
    with pytest.raises(LocalError, match="57344 to 65535"):
        UdpStack(ONE, FIRST_PORT - 1, MACS[ONE], 1500, MACS.get)
    assert one.send(address("10.0.0.99"), PORT, b"") == []
    assert one.counters()["udp_unresolved"] == 1
    assert len(take(end(TWO), one.send(TWO, PORT, bytes(MAX_DATA)))[0]) == MAX_DATA


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=120), st.integers(0, 60), st.integers(0, 255))
def test_nothing_that_comes_raises(noise, at, value):
    two = end(TWO)
    frame = bytearray(_scapy({"flags": 1}, {}, noise))
    frame[at % len(frame)] = value
    two.receive(bytes(frame), 0)
    two.receive(noise, 1)
    with pytest.raises(BadPacket):
        parse_piece_untrusted(noise[:20])


def test_a_checksum_is_never_0():
    assert {udp_checksum(0, 0, bytes(8)) for _ in range(1)} & {0} == set()
    with pytest.raises(BadPacket):
        parse_datagram_untrusted(Piece(ONE, TWO, 17, 0, 8, False, bytes(8)))
