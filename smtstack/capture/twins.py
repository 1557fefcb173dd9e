"""Plaintext twins: packets that never were on a wire, beside those of a capture that they explain.

*Upper PDUs* carry data with tags that say what it is and whose (LINKTYPE_WIRESHARK_UPPER_PDU; tags as in
Wireshark's ``wsutil/exported_pdu_tlvs.h``). Readers that know the dissector named in them use it, others show the
bytes. A *TCP twin* is a handshake as if it had gone over TCP, which is what readers of TLS want.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from smtstack.capture.flows import Flow
from smtstack.wire import ethernet, ipv4

LINK_UPPER_PDU = 252
#: Names of the dissector in our Lua script.
PLAINTEXT = "smt.plaintext"

_DISSECTOR, _IPV4_SRC, _IPV4_DST, _PORT_TYPE, _SRC_PORT, _DST_PORT, _COL_PROTOCOL, _COL_INFO = (
    12, 20, 21, 24, 25, 26, 33, 36)
#: What a port is: of TCP and UDP only; ours stand under UDP, as nothing of TCP is to be looked for.
_PORT_TYPE_UDP = 3

_TCP = struct.Struct("!HHIIBBHHH")
_SYN, _PSH, _ACK = 0x02, 0x08, 0x10
_WINDOW = 0xFFFF
#: Payload bytes of a packet of a TCP twin.
_MSS = 1400
_PROTO_TCP = 6


def upper_pdu(flow: Flow, data: bytes, info: str) -> bytes:
    """A packet of LINKTYPE_WIRESHARK_UPPER_PDU; ``info`` is for the column of that name."""
    return b"".join((
        _tag(_DISSECTOR, PLAINTEXT.encode()),
        _tag(_IPV4_SRC, flow.src.to_bytes(4, "big")), _tag(_IPV4_DST, flow.dst.to_bytes(4, "big")),
        _tag(_PORT_TYPE, _PORT_TYPE_UDP.to_bytes(4, "big")),
        _tag(_SRC_PORT, flow.sport.to_bytes(4, "big")), _tag(_DST_PORT, flow.dport.to_bytes(4, "big")),
        _tag(_COL_PROTOCOL, b"SMT plaintext"), _tag(_COL_INFO, info.encode()[:1000]),
        bytes(4), data))


def _tag(code: int, value: bytes) -> bytes:
    # Texts are filled up with zeros, and their length counts those.
    padded = value + bytes(-len(value) % 4)
    return struct.pack("!HH", code, len(padded)) + padded


class TwinFrame(NamedTuple):
    """One packet of a TCP twin."""

    frame: bytes
    comment: str


class TcpTwin:
    """Two strings of bytes between two ends, as Ethernet frames of a TCP connection."""

    __slots__ = ("_client", "_number", "_opened", "_seq")

    def __init__(self, client: Flow) -> None:
        #: From the client to the server.
        self._client = client
        #: Next sequence numbers, by whether it is the client's.
        self._seq = {True: 0, False: 0}
        self._opened = False
        self._number = 0

    def send(self, from_client: bool, data: bytes, comment: str) -> list[TwinFrame]:
        """The packets that carry ``data``, those that begin the connection before the first."""
        out: list[TwinFrame] = []
        if not self._opened:
            self._opened = True
            out = [self._packet(True, _SYN, b"", "a TCP twin of the handshake begins"),
                   self._packet(False, _SYN | _ACK, b"", ""), self._packet(True, _ACK, b"", "")]
        out += [self._packet(from_client, _PSH | _ACK, data[at:at + _MSS], comment)
                for at in range(0, len(data), _MSS)]
        return out

    def _packet(self, from_client: bool, flags: int, data: bytes, comment: str) -> TwinFrame:
        way = self._client
        if not from_client:
            way = Flow(way.dst, way.dport, way.src, way.sport)
        seq, ack = self._seq[from_client], self._seq[not from_client] if flags & _ACK else 0
        self._seq[from_client] += len(data) + bool(flags & _SYN)
        segment = _TCP.pack(way.sport, way.dport, seq, ack, 5 << 4, flags, _WINDOW, 0, 0) + data
        pseudo = struct.pack("!IIBBH", way.src, way.dst, 0, _PROTO_TCP, len(segment))
        segment = segment[:16] + _checksum(pseudo + segment).to_bytes(2, "big") + segment[18:]
        self._number += 1
        header = ipv4.IPv4(src=way.src, dst=way.dst, protocol=_PROTO_TCP, total_length=20 + len(segment),
                           identification=self._number & 0xFFFF).pack()
        return TwinFrame(ethernet.Ethernet(bytes(6), bytes(6)).pack() + header + segment, comment)


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
