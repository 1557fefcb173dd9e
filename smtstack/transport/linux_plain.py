"""Plain Homa as the SMT module speaks it on a socket without keys: profile ``linux`` in clear.

The packets of profile ``linux`` with nothing around what they carry: a segment header, which everybody can read,
and the data it tells of. It alone says where these belong: the places that profile ``linux`` has for that in the
header of DATA are 0.
"""

from __future__ import annotations

from typing import Final

from smtstack.transport.linux_message import MAX_RECORD_PACKETS, SEGMENT_HEADER, SEGMENT_HEADER_LEN, Acks
from smtstack.transport.message import OutMessage
from smtstack.transport.params import TransportParams
from smtstack.transport.stream_message import StreamIn

#: What no acknowledgement looks like.
_NO_ACK: Final = (0, 0, 0)


class LinuxPlainGeometry:
    """``homa_outgoing.c:homa_message_out_init`` of that module: as with records, but for what these cost."""

    __slots__ = ("mss", "packet_data", "segment_data", "unsched_bytes")

    def __init__(self, params: TransportParams) -> None:
        #: Bytes after the 40-byte header: a segment header and ``packet_data`` bytes.
        self.mss = params.segment_payload
        self.packet_data = self.mss - SEGMENT_HEADER_LEN
        self.segment_data = min(params.segment_packets, MAX_RECORD_PACKETS) * self.packet_data
        self.unsched_bytes = params.unsched_bytes

    def unscheduled(self, length: int) -> int:
        """Message bytes sent without a grant: whole segments."""
        return min(length, -(-self.unsched_bytes // self.segment_data) * self.segment_data)


class LinuxPlainOut(OutMessage):
    """A message in clear. ``acks`` is drained, one acknowledgement a packet."""

    __slots__ = ("_acks", "_data", "_geo", "_made")

    placed = False

    def __init__(self, data: bytes, geo: LinuxPlainGeometry, acks: Acks) -> None:
        length = len(data)
        self.init(length, -(-length // geo.segment_data), geo.mss, geo.unscheduled(length))
        self._data = data
        self._geo = geo
        self._acks = acks
        self._made: list[bytes | None] = [None] * self.count

    def start(self, index: int) -> int:
        return index * self._geo.segment_data

    def wire_size(self, index: int) -> int:
        data = super().wire_size(index)
        return data + SEGMENT_HEADER_LEN * -(-data // self._geo.packet_data)

    def payload(self, index: int) -> bytes:
        # Kept: with other acknowledgements in it, it would not be the same when it is sent again.
        made = self._made[index]
        if made is None:
            at = self.start(index)
            end = min(self.length, at + self._geo.segment_data)
            parts = []
            while at < end:
                size = min(self._geo.packet_data, end - at)
                ack = self._acks.pop(0) if self._acks else _NO_ACK
                parts += [SEGMENT_HEADER.pack(at, size, *ack), self._data[at:at + size]]
                at += size
            made = self._made[index] = b"".join(parts)
        return made

    def packet_range(self, index: int, packet: int, size: int) -> tuple[int, int]:
        at = self.start(index) + packet * self._geo.packet_data
        return at, at + size - SEGMENT_HEADER_LEN


class LinuxPlainIn(StreamIn):
    """Packets by what their segment headers say of them."""

    __slots__ = ()

    def add(self, segment_offset: int, index: int, inside: int, payload: bytes) -> int:
        if len(payload) <= SEGMENT_HEADER_LEN:
            return -1
        at, size, client_id, client_port, server_port = SEGMENT_HEADER.unpack_from(payload)
        # A record of a peer with keys has other bytes here, and lies nowhere in the message.
        if size != len(payload) - SEGMENT_HEADER_LEN:
            return -1
        new = super().add(at, 0, 0, payload[SEGMENT_HEADER_LEN:])
        if client_id and new >= 0:
            self.acks.append((client_id, client_port, server_port))
        return new
