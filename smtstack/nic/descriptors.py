"""What a driver posts to a TX queue. Everything the device needs is in the descriptor itself."""

from __future__ import annotations

import struct
from typing import Final

from smtstack.wire.ethernet import Ethernet
from smtstack.wire.ipv4 import DEFAULT_TTL, FLAG_DF, HEADER_LEN, PROTO_TCP, VERSION_IHL
from smtstack.wire.upstream import CHECKSUM_OFFSET, tcp_checksum

_FRAME_HEADER: Final = struct.Struct("!14sBBHHHBBHII")


class Route:
    """Ethernet and IP header fields of frames to one destination, with the constant part of the checksum."""

    __slots__ = ("_base_sum", "dst", "ethernet", "protocol", "src")

    def __init__(self, ethernet: Ethernet, src: int, dst: int, protocol: int) -> None:
        self.ethernet = ethernet.pack()
        self.src = src
        self.dst = dst
        self.protocol = protocol
        words = (VERSION_IHL << 8, FLAG_DF, DEFAULT_TTL << 8 | protocol,
                 src >> 16, src & 0xFFFF, dst >> 16, dst & 0xFFFF)
        self._base_sum = sum(words)

    def frame(self, tos: int, ip_id: int, header: bytes, payload: bytes) -> bytes:
        """A whole frame; the device computes the IP checksum."""
        total = HEADER_LEN + len(header) + len(payload)
        # A ones' complement sum folds by itself when taken modulo 65535.
        checksum = (0xFFFF - (self._base_sum + tos + total + ip_id) % 0xFFFF) % 0xFFFF
        return _FRAME_HEADER.pack(self.ethernet, VERSION_IHL, tos, total, ip_id, FLAG_DF, DEFAULT_TTL,
                                  self.protocol, checksum, self.src, self.dst) + header + payload


class TcpRoute(Route):
    """Frames whose packets look like TCP's: the device computes that checksum, too."""

    __slots__ = ()

    def __init__(self, ethernet: Ethernet, src: int, dst: int) -> None:
        super().__init__(ethernet, src, dst, PROTO_TCP)

    def frame(self, tos: int, ip_id: int, header: bytes, payload: bytes) -> bytes:
        checksum = tcp_checksum(self.src, self.dst, header + payload)
        summed = b"".join((header[:CHECKSUM_OFFSET], checksum.to_bytes(2, "big"), header[CHECKSUM_OFFSET + 2:]))
        return super().frame(tos, ip_id, summed, payload)


class Send:
    """Send a segment: cut it if it is longer than ``mss``; encrypt its records if a context is named."""

    __slots__ = ("context", "header", "ip_id", "mss", "payload", "route", "tos")

    def __init__(self, route: Route, tos: int, header: bytes, payload: bytes, mss: int, context: int = 0,
                 ip_id: int = 0) -> None:
        self.route = route
        self.tos = tos
        self.header = header
        self.payload = payload
        #: Payload bytes of every packet but the last; 0: send as one packet.
        self.mss = mss
        #: TLS context; 0: the payload goes out as it is.
        self.context = context
        #: IP identification of the first packet.
        self.ip_id = ip_id


class Resync:
    """Set the record sequence number of a context: the only thing that ever corrects it."""

    __slots__ = ("context", "sequence")

    def __init__(self, context: int, sequence: int) -> None:
        self.context = context
        self.sequence = sequence


Descriptor = Send | Resync
