"""TCP over IPv4 as a NIC sees it (RFC 9293): where fields are, checksums, segmentation, sequence numbers.

A NIC changes nothing in the headers but what segmentation asks for, so there is nothing here that makes a header.
"""

from __future__ import annotations

import struct
from typing import Final

from smtstack.errors import BadPacket
from smtstack.wire.ethernet import ETHERTYPE_IPV4
from smtstack.wire.ipv4 import FRAGMENT_MASK, PROTO_TCP

FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
PSH: Final = 0x08
ACK: Final = 0x10
CWR: Final = 0x80
#: Of a super-frame, only the last packet has these, and only the first has that.
_LAST_ONLY: Final = FIN | PSH
_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000

IP_AT: Final = 14
_TYPE_AT: Final = 12
_PROTOCOL_AT: Final = IP_AT + 9
_IPV4: Final = ETHERTYPE_IPV4.to_bytes(2, "big")
_TOTAL_AT: Final = IP_AT + 2
_ID_AT: Final = IP_AT + 4
_IP_SUM_AT: Final = IP_AT + 10
_SRC_AT: Final = IP_AT + 12
_ADDRESSES_END: Final = IP_AT + 20
_SEQ: Final = 4
_FLAGS: Final = 13
_SUM: Final = 16
_MIN_LEN: Final = IP_AT + 20 + 20
_IP: Final = struct.Struct("!HBxHxxHxB")
_TCP: Final = struct.Struct("!IIBB")
_ENDS: Final = struct.Struct("!IIHH")
_U16: Final = struct.Struct("!H")
_U32: Final = struct.Struct("!I")


class TcpPacket:
    """Where things are in a frame of TCP, which may be a super-frame that is still to be cut."""

    __slots__ = ("ack", "end", "flags", "flow", "payload_at", "seq", "tcp_at")

    def __init__(self, seq: int, ack: int, flags: int, flow: bytes, tcp_at: int, payload_at: int,
                 end: int) -> None:
        #: Sequence number of the first payload byte.
        self.seq = seq
        self.ack = ack
        #: Byte 13 of the header: :data:`FIN` and so on.
        self.flags = flags
        #: What :func:`flow_key` gives for the addresses and ports.
        self.flow = flow
        #: Offsets in the frame: of the TCP header, the payload, and what may follow the IP packet (padding).
        self.tcp_at = tcp_at
        self.payload_at = payload_at
        self.end = end

    @property
    def ends(self) -> tuple[int, int, int, int]:
        """Source and destination address, 32-bit integers, and both ports."""
        src, dst, sport, dport = _ENDS.unpack(self.flow)
        return src, dst, sport, dport

    @property
    def length(self) -> int:
        """Payload bytes."""
        return self.end - self.payload_at


def flow_key(src: int, dst: int, sport: int, dport: int) -> bytes:
    """Name of one direction of a connection: 12 bytes, addresses (32-bit integers) and ports."""
    return _ENDS.pack(src, dst, sport, dport)


def is_tcp(frame: bytes) -> bool:
    """Whether a frame of whatever bytes claims to be TCP over IPv4: what :func:`parse_untrusted` is for."""
    return (len(frame) >= _MIN_LEN and frame[_PROTOCOL_AT] == PROTO_TCP and frame[_TYPE_AT] == _IPV4[0]
            and frame[_TYPE_AT + 1] == _IPV4[1] and frame[IP_AT] >> 4 == 4)


def parse_untrusted(frame: bytes) -> TcpPacket:
    """Where fields are in an Ethernet frame; raises :class:`BadPacket` where it is no whole TCP over IPv4.

    IP and TCP options may be there; fragments are refused. Checksums are not looked at.
    """
    size = len(frame)
    if size < _MIN_LEN:
        raise BadPacket(f"{size} bytes are too few for TCP over IPv4")
    ethertype, first, total, fragment, protocol = _IP.unpack_from(frame, 12)
    if ethertype != ETHERTYPE_IPV4 or first >> 4 != 4 or protocol != PROTO_TCP:
        raise BadPacket("no TCP over IPv4")
    if fragment & FRAGMENT_MASK:
        raise BadPacket("a fragment of an IP packet")
    tcp_at = IP_AT + (first & 15) * 4
    end = IP_AT + total
    if tcp_at < _ADDRESSES_END or not tcp_at + 20 <= end <= size:
        raise BadPacket(f"an IP header of {tcp_at - IP_AT} bytes, IP length {total}, in a frame of {size}")
    seq, ack, offset, flags = _TCP.unpack_from(frame, tcp_at + _SEQ)
    payload_at = tcp_at + (offset >> 4) * 4
    if not tcp_at + 20 <= payload_at <= end:
        raise BadPacket(f"a TCP header of {payload_at - tcp_at} bytes in a packet of {end - tcp_at}")
    flow = frame[_SRC_AT:_ADDRESSES_END] + frame[tcp_at:tcp_at + _SEQ]
    return TcpPacket(seq, ack, flags, flow, tcp_at, payload_at, end)


def advance(seq: int, by: int) -> int:
    """A sequence number ``by`` bytes further on, modulo 2^32."""
    return seq + by & _MASK


def distance(start: int, seq: int) -> int:
    """How far ``seq`` is behind ``start``: from -2^31 to 2^31 - 1, negative where it is before it."""
    return ((seq - start + _HALF) & _MASK) - _HALF


# -- checksums -----------------------------------------------------------------------------------------------


def _sum(data: bytes | bytearray | memoryview) -> int:
    """The ones' complement sum, modulo 65535; an odd last byte counts as if a zero followed."""
    size = len(data)
    value = int.from_bytes(data, "big")
    if size & 1:
        value <<= 8
    # The same sum in half as many words, and again: a division of the whole number costs more than all of that.
    while size > 180:
        size = (size + 3 >> 2) << 1
        value = (value >> 8 * size) + (value & (1 << 8 * size) - 1)
        size += 1
    return value % 0xFFFF


def finish_checksum(frame: bytes, start: int, offset: int) -> bytes:
    """The frame with the checksum that its sender left to the device (virtio_net_hdr's csum_start, csum_offset).

    The field at ``start + offset`` holds the sum over the pseudo header. Raises :class:`BadPacket` if that is
    not inside of the frame.
    """
    at = start + offset
    if not 0 < start <= at <= len(frame) - 2:
        raise BadPacket(f"a checksum at {start}+{offset} in a frame of {len(frame)}")
    # 0 would mean "none" to UDP (RFC 768), whose field is the only one at 6; to others both zeros are the same.
    checksum = 0xFFFF - _sum(frame[start:])
    if checksum == 0xFFFF and offset != 6:
        checksum = 0
    return b"".join((frame[:at], _U16.pack(checksum), frame[at + 2:]))


def checksum_ok(frame: bytes, packet: TcpPacket) -> bool:
    """Whether the TCP checksum of a packet is right."""
    tcp_at = packet.tcp_at
    if tcp_at == _ADDRESSES_END:
        summed = _sum(frame[_SRC_AT:packet.end])
    else:
        summed = _sum(frame[tcp_at:packet.end]) + _sum(frame[_SRC_AT:_ADDRESSES_END])
    return (summed + PROTO_TCP + packet.end - tcp_at) % 0xFFFF == 0


def replace_payload(frame: bytes, packet: TcpPacket, payload: bytes) -> bytes:
    """A packet with another payload of the same length, and the right TCP checksum."""
    tcp_at, at, payload_at = packet.tcp_at, packet.tcp_at + _SUM, packet.payload_at
    head = int.from_bytes(frame[_SRC_AT:_ADDRESSES_END] + frame[tcp_at:at] + frame[at + 2:payload_at], "big")
    summed = (head + _sum(payload) + PROTO_TCP + packet.end - tcp_at) % 0xFFFF
    parts = [frame[:at], _U16.pack((0xFFFF - summed) % 0xFFFF), frame[at + 2:payload_at], payload]
    if packet.end < len(frame):
        parts.append(frame[packet.end:])
    return b"".join(parts)


# -- segmentation --------------------------------------------------------------------------------------------


def cut(frame: bytes, packet: TcpPacket, payload: bytes, size: int) -> list[bytes]:
    """The packets that TSO makes of a super-frame: at most ``size`` payload bytes in each, in order.

    ``payload`` is what goes out, as long as what stands in the frame: that itself, or encrypted. IP ID and
    sequence count on, FIN and PSH stay with the last, CWR with the first, both checksums are right. What fits one
    packet becomes one, as it is but for the checksums. ``size`` is at least 1.
    """
    tcp_at, head_len = packet.tcp_at, packet.payload_at
    head = bytearray(frame[:head_len])
    flags_at, sum_at, seq_at = tcp_at + _FLAGS, tcp_at + _SUM, tcp_at + _SEQ
    last_flags = packet.flags
    flags = last_flags & ~_LAST_ONLY
    head[_TOTAL_AT:_TOTAL_AT + 2] = head[_ID_AT:_ID_AT + 2] = head[_IP_SUM_AT:_IP_SUM_AT + 2] = b"\0\0"
    head[seq_at:seq_at + 4] = b"\0\0\0\0"
    head[sum_at:sum_at + 2] = b"\0\0"
    head[flags_at] = 0
    # What does not change from packet to packet is summed once.
    ip_sum = _sum(head[IP_AT:tcp_at])
    tcp_sum = _sum(head[tcp_at:]) + _sum(head[_SRC_AT:_ADDRESSES_END]) + PROTO_TCP + head_len - tcp_at
    number = _U16.unpack_from(frame, _ID_AT)[0]
    seq = packet.seq
    whole = len(payload)
    # As _sum does it, with all that is the same for every packet found once.
    folds = []
    folded = size + (size & 1)
    while folded > 180:
        folded = (folded + 3 >> 2) << 1
        folds.append((8 * folded, (1 << 8 * folded) - 1))
        folded += 1
    out = []
    at = 0
    while True:
        piece = payload[at:at + size]
        length = len(piece)
        end = at + length
        if end >= whole:
            flags |= last_flags & _LAST_ONLY
        total = head_len - IP_AT + length
        value = int.from_bytes(piece, "big")
        if length & 1:
            value <<= 8
        for bits, mask in folds:
            value = (value >> bits) + (value & mask)
        summed = (value + tcp_sum + length + (seq >> 16) + (seq & 0xFFFF) + flags) % 0xFFFF
        _U16.pack_into(head, _TOTAL_AT, total)
        _U16.pack_into(head, _ID_AT, number)
        _U16.pack_into(head, _IP_SUM_AT, (0xFFFF - (ip_sum + total + number) % 0xFFFF) % 0xFFFF)
        _U32.pack_into(head, seq_at, seq)
        head[flags_at] = flags
        _U16.pack_into(head, sum_at, (0xFFFF - summed) % 0xFFFF)
        out.append(bytes(head) + piece)
        if end >= whole:
            return out
        flags &= ~CWR
        number = number + 1 & 0xFFFF
        seq = seq + length & _MASK
        at = end
