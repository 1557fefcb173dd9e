"""DATA in the shape of TCP: frames that the kernel, a NIC or nobody cuts, and GRO merges.

One frame may hold as many packets of a message as fit IP's 64 KB. Who segments TCP makes packets of it by adding
to the sequence number (bytes 4..7, here the offset in the message) and to the IP ID, and copies everything else.
The drop of such packets before the host's own TCP is in :mod:`smtstack.io.tcp_guard`; what each field is, in
docs/protocol.md, "The overlay".
"""

from __future__ import annotations

import struct
from typing import Final

from smtstack.wire.frame import (
    CHECKSUM_AT,
    DST_AT,
    ETHERTYPE_AT,
    IP_OFFSET,
    PAYLOAD_AT,
    PLACE_AT,
    PROTOCOL_AT,
    SIZE_AT,
    SRC_AT,
    TCP_HEADER_AT,
    TRANSPORT_OFFSET,
    TYPE_AT,
)
from smtstack.wire.homa import (
    CHECKSUM_OFFSET,
    DATA,
    DATA_LEN,
    FLAGS_OFFSET,
    OVERLAY_MARK,
    PLACE_LEN,
    PLACE_OFFSET,
    PLACED,
    TYPE_OFFSET,
)
from smtstack.wire.ipv4 import IDENTIFICATION_OFFSET, PROTO_TCP, TOTAL_LENGTH_OFFSET, VERSION_IHL, checksum

#: What users choose from: no overlay, or this one.
NONE: Final = "none"
TCP: Final = "tcp"
OVERLAYS: Final = (NONE, TCP)
#: Bytes of the longest IP packet, so of the longest super-frame without its Ethernet header.
MAX_IP: Final = 0xFFFF

_TOTAL_AT: Final = IP_OFFSET + TOTAL_LENGTH_OFFSET
_ID_AT: Final = IP_OFFSET + IDENTIFICATION_OFFSET
_IP_SUM_AT: Final = IP_OFFSET + 10
_PLACE_END: Final = PLACE_OFFSET + PLACE_LEN
_IPV4: Final = b"\x08\x00"
#: struct virtio_net_hdr of <linux/virtio_net.h>: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
_VNET: Final = struct.Struct("=BBHHHH")
_NEEDS_CSUM: Final = 1
_GSO_NONE: Final = 0
_GSO_TCPV4: Final = 1
_U16: Final = struct.Struct("!H")
#: Bytes at the front of a frame that :func:`offload_head` returns anew.
HEAD: Final = CHECKSUM_AT + 2


def is_overlay(frame: bytes) -> bool:
    """Whether an Ethernet frame, of whatever bytes, is DATA in the shape of TCP."""
    return (len(frame) > PAYLOAD_AT and frame[PROTOCOL_AT] == PROTO_TCP and frame[IP_OFFSET] == VERSION_IHL
            and frame[ETHERTYPE_AT:IP_OFFSET] == _IPV4 and frame[TCP_HEADER_AT:TYPE_AT + 1] == OVERLAY_MARK)


def place(header: bytes, offset: int) -> bytes:
    """A DATA header for the packet ``offset`` bytes further on: what ``tso-seq``, or TCP's TSO, makes of it."""
    at = (int.from_bytes(header[PLACE_OFFSET:_PLACE_END], "big") + offset & 0xFFFFFFFF).to_bytes(PLACE_LEN, "big")
    if header[TYPE_OFFSET] != DATA:
        # Upstream Homa's, in which the sequence says all.
        return b"".join((header[:PLACE_OFFSET], at, header[_PLACE_END:]))
    return b"".join((header[:PLACE_OFFSET], at, header[_PLACE_END:FLAGS_OFFSET],
                     bytes((header[FLAGS_OFFSET] | PLACED,)), header[FLAGS_OFFSET + 1:]))


def offload_head(frame: bytes) -> bytes:
    """What stands before ``frame[HEAD:]`` where a frame of ours goes to a socket with PACKET_VNET_HDR.

    The virtio header and the frame's first bytes: whoever sends it on is to cut it into packets of the segment
    size in it, if it is longer, and to finish TCP's checksum, which begins with the sum over the pseudo header
    (RFC 793).
    """
    size = _U16.unpack_from(frame, SIZE_AT)[0]
    length = len(frame) - TRANSPORT_OFFSET
    longer = length - DATA_LEN > size > 0
    pseudo = int.from_bytes(frame[SRC_AT:DST_AT + 4], "big") + PROTO_TCP + length
    # A sum that is not 0 never folds to 0, as that of an address does not.
    folded = pseudo % 0xFFFF or 0xFFFF
    return (_VNET.pack(_NEEDS_CSUM, _GSO_TCPV4 if longer else _GSO_NONE, PAYLOAD_AT, size if longer else 0,
                       TRANSPORT_OFFSET, CHECKSUM_OFFSET) + frame[:CHECKSUM_AT] + _U16.pack(folded))


def cut_untrusted(frame: bytes) -> list[bytes]:
    """The packets that TCP's segmentation makes of a frame; itself, if it is one packet or none of ours.

    By the segment size in its header, as who sends it says the same to the kernel. Raises nothing.
    """
    if not is_overlay(frame):
        return [frame]
    size = _U16.unpack_from(frame, SIZE_AT)[0]
    stop = IP_OFFSET + _U16.unpack_from(frame, _TOTAL_AT)[0]
    if not size or not PAYLOAD_AT + size < stop <= len(frame):
        return [frame]
    out = []
    first_id = _U16.unpack_from(frame, _ID_AT)[0]
    first_place = int.from_bytes(frame[PLACE_AT:PLACE_AT + PLACE_LEN], "big")
    head = bytearray(frame[:PAYLOAD_AT])
    for number, at in enumerate(range(PAYLOAD_AT, stop, size)):
        payload = frame[at:min(at + size, stop)]
        head[_TOTAL_AT:_TOTAL_AT + 2] = _U16.pack(PAYLOAD_AT - IP_OFFSET + len(payload))
        head[_ID_AT:_ID_AT + 2] = _U16.pack(first_id + number & 0xFFFF)
        head[_IP_SUM_AT:_IP_SUM_AT + 2] = b"\0\0"
        head[_IP_SUM_AT:_IP_SUM_AT + 2] = _U16.pack(checksum(bytes(head[IP_OFFSET:TRANSPORT_OFFSET])))
        place_now = first_place + at - PAYLOAD_AT & 0xFFFFFFFF
        head[PLACE_AT:PLACE_AT + PLACE_LEN] = place_now.to_bytes(PLACE_LEN, "big")
        out.append(bytes(head) + payload)
    return out
