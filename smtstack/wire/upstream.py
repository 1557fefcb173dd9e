"""The packets of upstream Homa (PlatformLab/HomaModule, and what is going into Linux): the same, in other bytes.

====  ====  ==============================================================================
off   size  field
====  ====  ==============================================================================
0     2+2   source and destination port
4     4     sequence. DATA: offset in the message, to which a segmenting NIC adds. Else 0
8     3     0
11    1     packet type
12    1     TCP's header length: 0xE0 (56 bytes) in DATA, else 0x50
13    1     TCP's flags: 0x06, SYN and RST, which no TCP sends together
14    2     window, 0
16    2     TCP's checksum, which nobody verifies
18    2     TCP's urgent pointer: 0xB97D
20    8     sender_id: the RPC id as the sender sees it (client even, server odd)
28    4     DATA: message length
32    4     DATA: bytes that come without a (further) grant
36    8+2   DATA: an RPC of the sender's that the server of this port may forget: id (0: none), port
46    2     DATA: version of the cutoffs heard last
48    1     DATA: sent again
49    3     0
52    4     DATA: offset of the packet in its message; 0xFFFFFFFF: it is what the sequence says
====  ====  ==============================================================================

Flags and urgent pointer are how a packet in the shape of TCP (IP protocol 6) is told from TCP; packets of Homa's
own protocol have them, too, and nobody looks. Nothing here is authenticated.

A packet is one of :mod:`~smtstack.wire.homa`: of DATA, ``segment_offset`` is the sequence and, where the last
field is not -1, ``placed`` is set and ``packet_offset`` is what lies between. So the place in the message is their
sum, as in the other formats.
"""

from __future__ import annotations

import struct
from typing import Final

from smtstack.errors import BadPacket
from smtstack.wire import homa
from smtstack.wire.homa import COMMON_LEN, MAX_ACKS, NUM_PRIORITIES, TYPE_NAMES, AckEntry
from smtstack.wire.ipv4 import PROTO_TCP

#: Where fields begin that are read by themselves.
TYPE_OFFSET: Final = 11
FLAGS_OFFSET: Final = 13
CHECKSUM_OFFSET: Final = 16
URGENT_OFFSET: Final = 18
PLACE_OFFSET: Final = 52
DATA_LEN: Final = 56
ACK_LEN: Final = 80
FLAGS: Final = 0x06
URGENT: Final = 0xB97D
#: The header's length as TCP counts it: of DATA, and of everything else.
DATA_DOFF: Final = 0xE0
CONTROL_DOFF: Final = 0x50
#: In the last field of DATA: the sequence says where.
BY_SEQUENCE: Final = 0xFFFFFFFF
#: Length in a RESEND that asks for all that was sent.
ALL: Final = -1

_COMMON: Final = struct.Struct("!HHI3xBBB2x2xHQ")
#: sport, dport, sequence, type, data offset, flags, urgent, sender_id, message_length, incoming, ack id and port,
#: cutoff_version, retransmit, offset
DATA_HEADER: Final = struct.Struct("!HHI3xBBB2x2xHQIIQHHB3xI")
#: A whole frame. ethertype, vihl, total, fragment, protocol, src, dst, sport, dport, sequence, flags, urgent,
#: sender_id, message_length, incoming, ack id and port, cutoff_version, offset
DATA_FRAME: Final = struct.Struct("!12xHBxH2xHxB2xIIHHI3xxxB2x2xHQIIQHH4xI")
_GRANT: Final = struct.Struct("!IB")
_RESEND: Final = struct.Struct("!IiB")
_CUTOFFS: Final = struct.Struct("!8IH")
_ENTRY: Final = struct.Struct("!QH")
_COUNT_LEN: Final = 2
_ENTRIES_AT: Final = COMMON_LEN + _COUNT_LEN
_LENGTHS: Final = {homa.GRANT: 33, homa.RESEND: 37, homa.UNKNOWN: 28, homa.BUSY: 28, homa.CUTOFFS: 62,
                   homa.FREEZE: 28, homa.NEED_ACK: 28, homa.ACK: ACK_LEN}


def tcp_shaped(transport: bytes) -> bool:
    """Whether what follows an IP header of protocol 6 is Homa, and not TCP."""
    return (len(transport) >= COMMON_LEN and transport[FLAGS_OFFSET] == FLAGS
            and transport[URGENT_OFFSET] << 8 | transport[URGENT_OFFSET + 1] == URGENT)


def tcp_checksum(src: int, dst: int, transport: bytes) -> int:
    """TCP's checksum (RFC 9293 §3.1) of a packet whose checksum field is zero."""
    size = len(transport)
    total = int.from_bytes(transport, "big") << (size & 1) * 8
    return (0xFFFF - (total + src + dst + PROTO_TCP + size) % 0xFFFF) % 0xFFFF


def _common(p: homa.Packet, kind: int) -> bytes:
    return _COMMON.pack(p.sport, p.dport, 0, kind, CONTROL_DOFF, FLAGS, URGENT, p.sender_id)


def pack(packet: homa.Packet, doff: int = DATA_DOFF) -> bytes:
    """The bytes of a packet; of DATA the header. Checksum 0. What this format has no room for is left out."""
    if isinstance(packet, homa.Data):
        place = packet.segment_offset + packet.packet_offset if packet.placed else BY_SEQUENCE
        return DATA_HEADER.pack(
            packet.sport, packet.dport, packet.segment_offset, homa.DATA, doff, FLAGS, URGENT, packet.sender_id,
            packet.message_length, packet.incoming, packet.acked_id, packet.acked_port, packet.cutoff_version,
            packet.retransmit, place)
    if isinstance(packet, homa.Grant):
        return _common(packet, homa.GRANT) + _GRANT.pack(packet.offset, packet.priority)
    if isinstance(packet, homa.Resend):
        return _common(packet, homa.RESEND) + _RESEND.pack(packet.offset, packet.length, packet.priority)
    if isinstance(packet, homa.Cutoffs):
        return _common(packet, homa.CUTOFFS) + _CUTOFFS.pack(*packet.cutoffs, packet.cutoff_version)
    if isinstance(packet, homa.Ack):
        entries = b"".join([_ENTRY.pack(e.client_id, e.server_port) for e in packet.acks])
        count = len(packet.acks).to_bytes(_COUNT_LEN, "big")
        return _common(packet, homa.ACK) + count + entries + bytes(_ENTRY.size * (MAX_ACKS - len(packet.acks)))
    if isinstance(packet, homa.NeedAck):
        return _common(packet, homa.NEED_ACK)
    if isinstance(packet, homa.Busy):
        return _common(packet, homa.BUSY)
    if isinstance(packet, homa.Unknown):
        return _common(packet, homa.UNKNOWN)
    return _common(packet, homa.FREEZE)


def parse_untrusted(buf: bytes) -> homa.Packet:
    """The packet whose transport header starts ``buf``; raises :class:`BadPacket`.

    ``buf`` must be trimmed to the IP total length. For DATA only the header is parsed; the payload is ``buf[56:]``
    and never empty. Flags and urgent pointer are the IP protocol's affair: :func:`tcp_shaped`.
    """
    size = len(buf)
    if size < COMMON_LEN:
        raise BadPacket(f"{size} bytes are too few for a Homa header")
    sport, dport, _sequence, kind, _doff, _flags, _urgent, sid = _COMMON.unpack_from(buf)
    if kind == homa.DATA:
        return _data(buf)
    minimum = _LENGTHS.get(kind)
    if minimum is None:
        raise BadPacket(f"unknown packet type {kind:#04x}")
    if size < minimum:
        raise BadPacket(f"{TYPE_NAMES[kind]} of {size} bytes, expected {minimum}")
    if kind == homa.GRANT:
        offset, priority = _GRANT.unpack_from(buf, COMMON_LEN)
        return homa.Grant(sport, dport, sid, offset, priority & 7)
    if kind == homa.RESEND:
        offset, length, priority = _RESEND.unpack_from(buf, COMMON_LEN)
        if length < ALL:
            raise BadPacket(f"RESEND of {length} bytes")
        return homa.Resend(sport, dport, sid, offset, length, priority & 7)
    if kind == homa.CUTOFFS:
        values = _CUTOFFS.unpack_from(buf, COMMON_LEN)
        return homa.Cutoffs(sport, dport, sid, values[:NUM_PRIORITIES], values[NUM_PRIORITIES])
    if kind == homa.ACK:
        # A count beyond is taken as five, as the module does.
        count = min(buf[COMMON_LEN] << 8 | buf[COMMON_LEN + 1], MAX_ACKS)
        entries = tuple([AckEntry(client_id, 0, port) for client_id, port in
                         _ENTRY.iter_unpack(buf[_ENTRIES_AT:_ENTRIES_AT + _ENTRY.size * count])])
        return homa.Ack(sport, dport, sid, entries)
    if kind == homa.NEED_ACK:
        return homa.NeedAck(sport, dport, sid)
    if kind == homa.BUSY:
        return homa.Busy(sport, dport, sid)
    if kind == homa.UNKNOWN:
        return homa.Unknown(sport, dport, sid)
    return homa.Freeze(sport, dport, sid)


def _data(buf: bytes) -> homa.Data:
    if len(buf) <= DATA_LEN:
        raise BadPacket(f"DATA of {len(buf)} bytes carries no payload")
    (sport, dport, sequence, _type, _doff, _flags, _urgent, sender_id, length, incoming, acked_id, acked_port,
     version, retransmit, place) = DATA_HEADER.unpack_from(buf)
    if length == 0:
        raise BadPacket("DATA of a message of length 0")
    placed = place != BY_SEQUENCE
    return homa.Data(sport, dport, sender_id, length, incoming, sequence, cutoff_version=version,
                     retransmit=retransmit, packet_offset=place - sequence if placed else 0, placed=placed,
                     acked_id=acked_id, acked_port=acked_port)
