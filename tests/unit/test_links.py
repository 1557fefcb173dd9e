"""Every way into a frame: link types, tags and tunnels lead to the same packet, or have a name."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import pytest

from smtstack.capture import links
from smtstack.capture.captured import Captured
from smtstack.capture.decrypt import Decrypter
from smtstack.capture.pcapfile import Reader, Writer
from smtstack.crypto.keys import demo_keys
from smtstack.wire import homa
from smtstack.wire.ipv4 import IPv4
from tests.unit.test_decode import Collector, talk

WANTED = (homa.PROTO_HOMA, homa.PROTO_LINUX)
MACS = bytes(range(12))
SAID = talk("smt", (64, 5000), seed=1)
#: IP packets, from frames without padding.
PACKETS = [frame[14:14 + int.from_bytes(frame[16:18], "big")] for frame in SAID.sent]


def ether(kind: int, inside: bytes) -> bytes:
    return MACS + kind.to_bytes(2, "big") + inside


def ip4(protocol: int, inside: bytes) -> bytes:
    return IPv4(0x01020304, 0x05060708, protocol, 20 + len(inside)).pack() + inside


def with_options(packet: bytes) -> bytes:
    """The outer header with four bytes of options; its checksum is nobody's business here."""
    return bytes([0x46]) + packet[1:20] + bytes(4) + packet[20:]


def ip6(protocol: int, inside: bytes, extensions: bytes = b"") -> bytes:
    kind = 60 if extensions else protocol
    return struct.pack("!IHBB32x", 6 << 28, len(extensions + inside), kind, 64) + extensions + inside


def udp(port: int, inside: bytes) -> bytes:
    return struct.pack("!HHHH", 40_000, port, 8 + len(inside), 0) + inside


def gre(flags: int, kind: int, inside: bytes) -> bytes:
    extra = bytes(4 * sum(bool(flags & bit) for bit in (0x8000, 0x2000, 0x1000)))
    return struct.pack("!HH", flags, kind) + extra + inside


def in_gre(flags: int) -> Callable[[bytes], bytes]:
    return lambda packet: ether(0x0800, ip4(47, gre(flags, 0x0800, packet)))


def vxlan(inside: bytes) -> bytes:
    return struct.pack("!II", 0x08000000, 42 << 8) + inside


def geneve(kind: int, options: bytes, inside: bytes) -> bytes:
    return struct.pack("!BBHI", len(options) // 4, 0, kind, 42 << 8) + options + inside


def snap(kind: int, inside: bytes) -> bytes:
    return b"\xaa\xaa\x03\0\0\0" + kind.to_bytes(2, "big") + inside


#: Link type, and the frame of an IP packet.
Way = tuple[int, Callable[[bytes], bytes]]
WAYS: dict[str, Way] = {
    "ethernet": (1, lambda p: ether(0x0800, p)),
    "padded": (1, lambda p: ether(0x0800, p) + bytes(7)),
    "802.1Q": (1, lambda p: ether(0x8100, b"\0\5\x08\0" + p)),
    "802.1ad": (1, lambda p: ether(0x88A8, b"\0\5\x81\0\0\6\x08\0" + p)),
    "QinQ of 0x9100": (1, lambda p: ether(0x9100, b"\0\5\x81\0\0\6\x08\0" + p)),
    "QinQ of 0x9200": (1, lambda p: ether(0x9200, b"\0\5\x08\0" + p)),
    "QinQ of 0x8100": (1, lambda p: ether(0x8100, b"\0\5\x81\0\0\6\x08\0" + p)),
    "three tags": (1, lambda p: ether(0x88A8, b"\0\1\x88\xa8\0\2\x81\0\0\3\x08\0" + p)),
    "SNAP": (1, lambda p: ether(8 + len(p), snap(0x0800, p))),
    "SLL": (113, lambda p: bytes(14) + b"\x08\0" + p),
    "SLL, tagged": (113, lambda p: bytes(14) + b"\x81\0\0\5\x08\0" + p),
    "SLL2": (276, lambda p: b"\x08\0" + bytes(18) + p),
    "raw": (101, lambda p: p), "raw of OpenBSD": (14, lambda p: p), "raw of BSD": (12, lambda p: p),
    "raw IPv4": (228, lambda p: p),
    "null, little": (0, lambda p: b"\2\0\0\0" + p), "null, big": (0, lambda p: b"\0\0\0\2" + p),
    "loop": (108, lambda p: b"\0\0\0\2" + p),
    "PPP": (9, lambda p: b"\xff\x03\0\x21" + p), "PPP, short": (9, lambda p: b"\x21" + p),
    "PPP with HDLC": (50, lambda p: b"\xff\x03\0\x21" + p),
    "PPPoE link": (51, lambda p: bytes(6) + b"\0\x21" + p),
    "Cisco HDLC": (104, lambda p: b"\x0f\0\x08\0" + p),
    "PPPoE": (1, lambda p: ether(0x8864, bytes(6) + b"\0\x21" + p)),
    "MPLS": (1, lambda p: ether(0x8847, b"\0\1\1\x40" + p)),
    "MPLS, three labels": (1, lambda p: ether(0x8847, b"\0\1\0\x40\0\2\0\x40\0\3\1\x40" + p)),
    "MPLS multicast": (1, lambda p: ether(0x8848, b"\0\1\1\x40" + p)),
    "IP in IP": (1, lambda p: ether(0x0800, ip4(4, p))),
    "IP in IP with options": (1, lambda p: ether(0x0800, with_options(ip4(4, p)))),
    "IP in IPv6": (1, lambda p: ether(0x86DD, ip6(4, p))),
    "IP in IPv6 with extensions": (1, lambda p: ether(0x86DD, ip6(4, p, b"\4\0" + bytes(6)))),
    "IP in IPv6 in IP": (1, lambda p: ether(0x0800, ip4(41, ip6(4, p)))),
    **{f"GRE {flags:#06x}": (1, in_gre(flags)) for flags in (0, 0x8000, 0x2000, 0x1000, 0xB000)},
    "GRE with Ethernet": (1, lambda p: ether(0x0800, ip4(47, gre(0x2000, 0x6558, ether(0x0800, p))))),
    "GRE over IPv6": (1, lambda p: ether(0x86DD, ip6(47, gre(0, 0x0800, p)))),
    "ERSPAN I": (1, lambda p: ether(0x0800, ip4(47, gre(0, 0x88BE, ether(0x0800, p))))),
    "ERSPAN II": (1, lambda p: ether(0x0800, ip4(47, gre(0x1000, 0x88BE, bytes(8) + ether(0x0800, p))))),
    "VXLAN": (1, lambda p: ether(0x0800, ip4(17, udp(4789, vxlan(ether(0x0800, p)))))),
    "VXLAN, tagged in and out": (1, lambda p: ether(0x8100, b"\0\5\x08\0" + ip4(17, udp(4789, vxlan(
        ether(0x8100, b"\0\6\x08\0" + p)))))),
    "VXLAN of Linux": (1, lambda p: ether(0x0800, ip4(17, udp(8472, vxlan(ether(0x0800, p)))))),
    "VXLAN over IPv6": (1, lambda p: ether(0x86DD, ip6(17, udp(4789, vxlan(ether(0x0800, p)))))),
    "Geneve": (1, lambda p: ether(0x0800, ip4(17, udp(6081, geneve(0x6558, b"", ether(0x0800, p)))))),
    "Geneve with options": (1, lambda p: ether(0x0800, ip4(17, udp(6081, geneve(0x0800, bytes(8), p))))),
}

#: What is not looked into has a name.
NAMES: dict[str, Way] = {
    "ARP": (1, lambda _p: ether(0x0806, bytes(46))),
    "LLDP": (1, lambda _p: ether(0x88CC, bytes(46))),
    "MACsec, encrypted": (1, lambda p: ether(0x88E5, bytes(14) + p)),
    "ethertype 0x9999": (1, lambda p: ether(0x9999, p)),
    "802.2 LLC": (1, lambda _p: ether(46, b"\x42\x42\x03" + bytes(43))),
    "TCP": (1, lambda p: ether(0x0800, ip4(6, p))),
    "IPv6 UDP": (1, lambda _p: ether(0x86DD, ip6(17, udp(53, bytes(20))))),
    "IPv6 IP protocol 200": (1, lambda p: ether(0x86DD, ip6(200, p))),
    "IPv6 with protocol 146 of ours, which is read over IPv4 only": (1, lambda p: ether(0x86DD, ip6(146, p[20:]))),
    "IPv6 fragments": (1, lambda p: ether(0x86DD, ip6(44, bytes(8) + p))),
    "IPv4 fragments": (1, lambda p: ether(0x0800, ip4(47, p)[:6] + b"\0\7" + ip4(47, p)[8:])),
    "IP version 5": (101, lambda p: b"\x55" + p[1:]),
    "GRE of version 1": (1, lambda p: ether(0x0800, ip4(47, gre(1, 0x880B, p)))),
    "ERSPAN of type III": (1, lambda p: ether(0x0800, ip4(47, gre(0x1000, 0x22EB, bytes(12) + p)))),
    "MPLS of another protocol than IP": (1, lambda p: ether(0x8847, b"\0\1\1\x40\0\0\0\0" + ether(0x0800, p))),
    "PPP protocol 0xc021": (9, lambda p: b"\xff\x03\xc0\x21" + p),
    "PPPoE discovery": (1, lambda p: ether(0x8863, p)),
    "address family 7": (0, lambda p: b"\7\0\0\0" + p),
    "link type 127 (802.11 with radiotap)": (127, lambda p: p),
    "link type 147": (147, lambda p: p),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_leads_to_the_packet(way):
    link, wrap = WAYS[way]
    for packet in PACKETS:
        found = links.find_untrusted(link, wrap(packet), WANTED)
        assert (found.name, found.cut) == ("", False)
        assert found.packet is not None
        assert found.packet[:len(packet)] == packet


@pytest.mark.parametrize("name", NAMES)
def test_everything_else_has_a_name(name):
    link, wrap = NAMES[name]
    assert links.find_untrusted(link, wrap(PACKETS[0]), WANTED) == links.Frame(None, name)


@pytest.mark.parametrize("way", WAYS)
def test_what_ends_in_its_headers_is_cut(way):
    link, wrap = WAYS[way]
    whole = wrap(PACKETS[0])
    headers = whole.index(PACKETS[0]) + 20
    for size in range(headers):
        found = links.find_untrusted(link, whole[:size], WANTED)
        assert found.packet is None
        # Only where nothing yet says what is to come may it be taken for something else.
        assert found.cut or found.name


@pytest.mark.parametrize("way", WAYS)
def test_captures_of_every_kind_are_decoded_and_decrypted(way):
    link, wrap = WAYS[way]
    stream = io.BytesIO()
    writer = Writer(stream, link)
    for n, packet in enumerate(PACKETS):
        writer.write(n * 1000, wrap(packet))
    stream.seek(0)
    decoder, decrypter = Collector("smt", demo_keys("smt")), Decrypter("smt", demo_keys("smt"))
    for captured in Reader(stream).frames_untrusted():
        decoder.add(captured.link_type, captured.frame, captured.missing)
        decrypter.add(captured)
    assert {(m.sender_id, m.epoch): m.data for m in decoder.messages()} == SAID.messages
    result, counts = decoder.result(), decrypter.finish()
    assert (result.bad_packets, result.ignored, result.truncated, result.others) == (0, 0, {}, {})
    assert (counts.records, counts.ignored, counts.bad_packets) == (result.records_ok, 0, 0)
    assert decoder.why_nothing() == decrypter.why_nothing() == ""


@pytest.mark.parametrize("name", NAMES)
def test_captures_of_anything_else_say_what_they_hold(name):
    link, wrap = NAMES[name]
    decoder, decrypter = Collector("smt", demo_keys("smt")), Decrypter("smt", demo_keys("smt"))
    for packet in PACKETS:
        decoder.add(link, wrap(packet))
        decrypter.add(Captured(0, link, wrap(packet)))
    result, counts = decoder.result(), decrypter.finish()
    assert result.others == counts.others == {name: len(PACKETS)}
    assert result.ignored == counts.ignored == len(PACKETS)
    assert decoder.hints() == [f"nothing was verified: {decoder.why_nothing()}"]
    assert name in decoder.why_nothing()
    assert name in decrypter.why_nothing()


def test_a_tunnel_of_ours_is_not_looked_into_when_it_is_ours_itself():
    # Homa that carries something is a packet of Homa.
    packet = ip4(homa.PROTO_HOMA, PACKETS[0])
    assert links.find_untrusted(101, packet, WANTED).packet == packet


def test_headers_without_end_come_to_one():
    packet = PACKETS[0]
    for _n in range(40):
        packet = ip4(4, packet)
    assert "one in another" in links.find_untrusted(101, packet, WANTED).name
    # And long ones do not take their square in time: no copy is made at each step.
    tags = ether(0x8100, b"\0\1\x81\0" * 200_000)
    assert links.find_untrusted(1, tags, WANTED).cut


def test_names_are_bounded():
    decoder = Collector("smt", demo_keys("smt"))
    for kind in range(0x1000, 0x1800):
        decoder.add(1, ether(kind, bytes(46)))
    others = decoder.result().others
    assert sum(others.values()) == 0x800
    assert len(others) < 300


