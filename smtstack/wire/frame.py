"""Whole frames: Ethernet + IPv4 + DATA in one struct, for the hot path.

Parsing a frame field by field through three modules costs several microseconds; one ``unpack_from``
costs 0.4. The layout is the same as in :mod:`~smtstack.wire.ethernet`, :mod:`~smtstack.wire.ipv4` and
:mod:`~smtstack.wire.homa`, and a test holds them against each other.
"""

from __future__ import annotations

import struct
from typing import Final

from smtstack.errors import BadPacket
from smtstack.wire import ethernet, homa, ipv4, upstream

#: Where headers and fields of them start in a frame, and the payload of DATA.
IP_OFFSET: Final = ethernet.HEADER_LEN
TRANSPORT_OFFSET: Final = IP_OFFSET + ipv4.HEADER_LEN
ETHERTYPE_AT: Final = ethernet.ETHERTYPE_OFFSET
TOS_AT: Final = IP_OFFSET + ipv4.TOS_OFFSET
PROTOCOL_AT: Final = IP_OFFSET + ipv4.PROTOCOL_OFFSET
SRC_AT: Final = IP_OFFSET + ipv4.SRC_OFFSET
DST_AT: Final = IP_OFFSET + ipv4.DST_OFFSET
SPORT_AT: Final = TRANSPORT_OFFSET + homa.SPORT_OFFSET
DPORT_AT: Final = TRANSPORT_OFFSET + homa.DPORT_OFFSET
SENDER_ID_AT: Final = TRANSPORT_OFFSET + homa.SENDER_ID_OFFSET
PLACE_AT: Final = TRANSPORT_OFFSET + homa.PLACE_OFFSET
SIZE_AT: Final = TRANSPORT_OFFSET + homa.SEGMENT_SIZE_OFFSET
FLAGS_AT: Final = TRANSPORT_OFFSET + homa.FLAGS_OFFSET
TCP_HEADER_AT: Final = TRANSPORT_OFFSET + homa.TCP_HEADER_OFFSET
CHECKSUM_AT: Final = TRANSPORT_OFFSET + homa.CHECKSUM_OFFSET
TYPE_AT: Final = TRANSPORT_OFFSET + homa.TYPE_OFFSET
PAYLOAD_AT: Final = TRANSPORT_OFFSET + homa.DATA_LEN
MIN_LEN: Final = TRANSPORT_OFFSET + homa.COMMON_LEN

#: ethertype, vihl, tos, total, ip_id, frag, proto, src, dst, sport, dport, packet offset, segment size,
#: epoch, flags, offset high, offset low, sender_id, message_length, incoming, cutoff_version, retransmit, index
DATA_FRAME: Final = struct.Struct("!12xHBBHHHxB2xIIHHIHBB2xH2xHQIIHBB")
#: The same up to and with sender_id, for control packets.
COMMON_FRAME: Final = struct.Struct("!12xHBBHHHxB2xIIHH6xB9xQ")


def is_handshake(frame: bytes) -> bool:
    """Whether a frame, of whatever length, has the flag of the handshake plane (profile ``smt``)."""
    return len(frame) >= MIN_LEN and frame[FLAGS_AT] & homa.HANDSHAKE != 0


def parse_untrusted(frame: bytes, fmt: homa.WireFormat) -> tuple[ipv4.IPv4, homa.Packet, bytes]:
    """IP header, packet and payload (empty but for DATA) of one Ethernet frame; raises :class:`BadPacket`.

    The readable way to take a frame apart, for captures and tests; the engine unpacks
    :data:`DATA_FRAME` itself.
    """
    eth = ethernet.parse_untrusted(frame)
    if eth.ethertype != ethernet.ETHERTYPE_IPV4:
        raise BadPacket(f"EtherType {eth.ethertype:#06x} is not IPv4")
    ip = ipv4.parse_untrusted(frame[IP_OFFSET:])
    transport = frame[TRANSPORT_OFFSET:IP_OFFSET + ip.total_length]
    if not carries(ip.protocol, transport, fmt):
        raise BadPacket(f"IP protocol {ip.protocol}, profile {fmt.name} speaks {fmt.protocol}")
    packet = packet_untrusted(transport, fmt)
    if fmt.extended and (ip.protocol == ipv4.PROTO_TCP) != (isinstance(packet, homa.Data) and packet.overlay):
        raise BadPacket(f"IP protocol {ip.protocol}, and what follows is of another")
    payload = transport[fmt.data_len:] if isinstance(packet, homa.Data) else b""
    return ip, packet, payload


def carries(protocol: int, transport: bytes, fmt: homa.WireFormat) -> bool:
    """Whether an IP packet of ``protocol`` may be of this format; under TCP's number, by what marks it there."""
    if protocol != ipv4.PROTO_TCP:
        return protocol == fmt.protocol
    return upstream.tcp_shaped(transport) if fmt.tcp_shaped else fmt.extended and homa.tcp_shaped(transport)


def packet_untrusted(transport: bytes, fmt: homa.WireFormat) -> homa.Packet:
    """The packet whose transport header starts ``transport``, in any format; raises :class:`BadPacket`."""
    if fmt is homa.UPSTREAM:
        return upstream.parse_untrusted(transport)
    return homa.parse_untrusted(transport, fmt)
