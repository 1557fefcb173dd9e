"""UDP (RFC 768) in IPv4 packets that may be fragments (RFC 791). :mod:`smtstack.wire.ipv4` knows none of these:
SMT never has any.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, TypeAlias

from smtstack.errors import BadPacket
from smtstack.wire import ethernet
from smtstack.wire.ipv4 import FLAG_DF, HEADER_LEN, VERSION_IHL, IPv4, checksum_ok

#: IANA's number.
PROTO_UDP: Final = 17
UDP_HEADER_LEN: Final = 8
#: Bytes of the longest datagram that fits a packet of IPv4.
MAX_DATA: Final = 65535 - HEADER_LEN - UDP_HEADER_LEN
#: The flag of a fragment behind which others come; what is in units of 8 bytes.
MORE: Final = 0x2000
_OFFSET: Final = 0x1FFF
#: A packet: bytes of our own, or a view of memory in which it lies.
Buffer: TypeAlias = "bytes | memoryview"
_IPV4: Final = ethernet.ETHERTYPE_IPV4.to_bytes(2, "big")
_IP: Final = struct.Struct("!BBHHHBBHII")
_UDP: Final = struct.Struct("!HHHH")
_PSEUDO: Final = struct.Struct("!IIHH")


@dataclass(frozen=True, slots=True)
class Piece:
    """An IPv4 packet: a datagram, or a fragment of one."""

    src: int
    dst: int
    protocol: int
    identification: int
    offset: int
    """In bytes, of the first one in the whole."""
    more: bool
    """Others come behind it."""
    payload: Buffer

    @property
    def whole(self) -> bool:
        """Whether this is no fragment."""
        return not self.more and not self.offset


@dataclass(frozen=True, slots=True)
class Datagram:
    """A datagram and its ends: 32-bit addresses, ports."""

    src: int
    sport: int
    dst: int
    dport: int
    data: bytes


def parse_piece_untrusted(frame: Buffer) -> Piece:
    """The IPv4 packet in an Ethernet frame; a whole one's payload is part of it, a fragment's a copy. Raises
    :class:`BadPacket` for anything else, options and wrong checksums included."""
    header = bytes(frame[:ethernet.HEADER_LEN + HEADER_LEN])
    if len(header) < ethernet.HEADER_LEN + HEADER_LEN:
        raise BadPacket(f"{len(header)} bytes are too few for the header of an IPv4 packet")
    if header[ethernet.ETHERTYPE_OFFSET:ethernet.HEADER_LEN] != _IPV4:
        raise BadPacket(f"EtherType {header[ethernet.ETHERTYPE_OFFSET:ethernet.HEADER_LEN].hex()} is not IPv4")
    header = header[ethernet.HEADER_LEN:]
    vihl, _tos, total, ident, place, _ttl, protocol, _sum, src, dst = _IP.unpack(header)
    if vihl != VERSION_IHL:
        raise BadPacket(f"IP version/IHL byte {vihl:#04x}, expected 0x45 (IPv4 without options)")
    if not checksum_ok(header):
        raise BadPacket("wrong checksum of an IPv4 header")
    payload = frame[ethernet.HEADER_LEN + HEADER_LEN:ethernet.HEADER_LEN + total]
    if total < HEADER_LEN or len(payload) != total - HEADER_LEN:
        raise BadPacket(f"an IPv4 packet of {total} bytes in a frame of {len(frame)}")
    offset, more = 8 * (place & _OFFSET), bool(place & MORE)
    if (more and (len(payload) % 8 or not payload)) or offset + len(payload) > 65535 - HEADER_LEN:
        raise BadPacket(f"a fragment of {len(payload)} bytes at {offset}")
    return Piece(src, dst, protocol, ident, offset, more, bytes(payload) if more or offset else payload)


def parse_datagram_untrusted(piece: Piece) -> Datagram:
    """The datagram in a whole packet (or what fragments were put together to). Raises :class:`BadPacket`.

    A checksum of 0 says that there is none, and is refused: whoever sends to us has one.
    """
    payload = piece.payload
    if piece.protocol != PROTO_UDP or not piece.whole or len(payload) < UDP_HEADER_LEN:
        raise BadPacket(f"no datagram: {len(payload)} bytes of protocol {piece.protocol}")
    sport, dport, length, found = _UDP.unpack_from(payload)
    if length != len(payload):
        raise BadPacket(f"a datagram of {length} bytes in {len(payload)}")
    if not found or udp_checksum(piece.src, piece.dst, payload) != 0xFFFF:
        raise BadPacket("wrong checksum of a datagram")
    return Datagram(piece.src, sport, piece.dst, dport, bytes(payload[UDP_HEADER_LEN:]))


def udp_checksum(src: int, dst: int, segment: Buffer) -> int:
    """RFC 768 over pseudo header and ``segment``: what belongs into a field that is 0; of a segment that has the
    right one, 0xFFFF. Never 0."""
    total = int.from_bytes(_PSEUDO.pack(src, dst, PROTO_UDP, len(segment)) + segment, "big")
    return 0xFFFF - (total << 8 * (len(segment) & 1)) % 0xFFFF


def pack_segment(datagram: Datagram) -> bytes:
    """UDP header and data, with a checksum."""
    length = UDP_HEADER_LEN + len(datagram.data)
    bare = _UDP.pack(datagram.sport, datagram.dport, length, 0) + datagram.data
    found = udp_checksum(datagram.src, datagram.dst, bare)
    return bare[:6] + found.to_bytes(2, "big") + datagram.data


def pack_packets(src: int, dst: int, segment: bytes, mtu: int, identification: int) -> list[bytes]:
    """IPv4 packets of at most ``mtu`` bytes with ``segment``: one that must not be fragmented, or fragments."""
    if HEADER_LEN + len(segment) <= mtu:
        return [IPv4(src, dst, PROTO_UDP, HEADER_LEN + len(segment), 0, flags_fragment=FLAG_DF).pack() + segment]
    room = (mtu - HEADER_LEN) // 8 * 8
    packets = []
    for at in range(0, len(segment), room):
        part = segment[at:at + room]
        place = at // 8 | (MORE if at + room < len(segment) else 0)
        packets.append(IPv4(src, dst, PROTO_UDP, HEADER_LEN + len(part), identification,
                            flags_fragment=place).pack() + part)
    return packets
