"""Messages of profile ``linux``: one TLS 1.2 record a segment, a 20-byte header in every packet, encrypted.

The receiver cannot read those headers when a packet arrives, so the kernel module computes *nominal*
positions from packet lengths (``smt_incoming.c:smt_add_packet``; reference §5.3) and RESEND speaks of
these. Here packets are kept by (record offset, index), and nominal ranges only tell what is missing.
"""

from __future__ import annotations

import struct
from typing import Final

from smtstack.crypto import tls12
from smtstack.crypto.aead import DirectionKeys
from smtstack.errors import AuthError
from smtstack.transport.message import InMessage, OutMessage
from smtstack.transport.params import TransportParams
from smtstack.transport.ranges import Gaps

#: offset, segment_length, ack: client_id, client_port, server_port.
SEGMENT_HEADER: Final = struct.Struct("!IIQHH")
SEGMENT_HEADER_LEN: Final = SEGMENT_HEADER.size
#: Record header and tag: what a record costs beside its data and segment headers.
RECORD_OVERHEAD: Final = tls12.OVERHEAD
#: The module provides for so many pieces of a record; keep below (reference §5.4).
MAX_RECORD_PACKETS: Final = 60

Acks = list[tuple[int, int, int]]


class LinuxGeometry:
    """``smt_outgoing.c:smt_message_out_init``, from MTU and max_gso_size."""

    __slots__ = ("mss", "packet_data", "record_data", "unsched_bytes")

    def __init__(self, params: TransportParams) -> None:
        #: Bytes after the 40-byte header: a segment header and ``packet_data`` bytes.
        self.mss = params.segment_payload
        self.packet_data = self.mss - SEGMENT_HEADER_LEN
        self.record_data = min(params.segment_packets, MAX_RECORD_PACKETS) * self.packet_data - RECORD_OVERHEAD
        self.unsched_bytes = params.unsched_bytes

    def unscheduled(self, length: int) -> int:
        """Message bytes sent without a grant: whole records."""
        if length + RECORD_OVERHEAD <= self.packet_data:
            return length
        whole = self.record_data + RECORD_OVERHEAD
        return min(length, -(-self.unsched_bytes // whole) * self.record_data)


class LinuxOut(OutMessage):
    """A message as the module sends it. ``acks`` is drained, one acknowledgement a packet."""

    __slots__ = ("_acks", "_data", "_first", "_geo", "_keys", "_plain", "_sealed")

    version = 0x0303

    def __init__(self, keys: DirectionKeys, rpc_id: int, data: bytes, geo: LinuxGeometry, acks: Acks) -> None:
        length = len(data)
        self.init(length, -(-length // geo.record_data), geo.mss, geo.unscheduled(length))
        self._keys = keys
        self._first = tls12.first_sequence(rpc_id)
        self._data = data
        self._geo = geo
        self._acks = acks
        self._plain: list[bytes | None] = [None] * self.count
        self._sealed: list[bytes | None] = [None] * self.count

    def start(self, index: int) -> int:
        return index * self._geo.record_data

    def wire_size(self, index: int) -> int:
        data = super().wire_size(index)
        beyond = max(0, data - (self._geo.packet_data - tls12.HEADER_LEN))
        return data + RECORD_OVERHEAD + SEGMENT_HEADER_LEN * (1 - -beyond // self._geo.packet_data)

    def first_sequence(self, index: int) -> int:
        return self._first + index

    def records(self, index: int) -> int:
        return 1

    def keys(self) -> DirectionKeys | None:
        return self._keys

    def _plaintext(self, index: int) -> bytes:
        # Kept: piggybacked acks make it differ if built twice, and a nonce serves one plaintext only.
        plain = self._plain[index]
        if plain is None:
            at = self.start(index)
            end = min(self.length, at + self._geo.record_data)
            parts = []
            room = self._geo.packet_data - tls12.HEADER_LEN
            while at < end:
                size = min(room, end - at)
                ack = self._acks.pop(0) if self._acks else (0, 0, 0)
                parts += [SEGMENT_HEADER.pack(at, size, *ack), self._data[at:at + size]]
                at += size
                room = self._geo.packet_data
            plain = self._plain[index] = b"".join(parts)
        return plain

    def payload(self, index: int) -> bytes:
        sealed = self._sealed[index]
        if sealed is None:
            sealed = tls12.seal(self._keys, self._first + index, self._plaintext(index))
            self._sealed[index] = sealed
        return sealed

    def framed(self, index: int) -> bytes:
        return tls12.frame(self._first + index, self._plaintext(index))

    def packet_range(self, index: int, packet: int, size: int) -> tuple[int, int]:
        return nominal_range(self.start(index), packet, size, self._geo.packet_data)


def nominal_range(record_offset: int, index: int, size: int, packet_data: int) -> tuple[int, int]:
    """Where the module believes a packet of ``size`` payload bytes to lie (``smt_impl.h:smt_fake_*``)."""
    if index == 0:
        size -= RECORD_OVERHEAD
        start = record_offset
    else:
        start = record_offset + index * packet_data - RECORD_OVERHEAD
    # A packet too short for a segment header carries the end of the tag only.
    return start, start + (size - SEGMENT_HEADER_LEN if size > SEGMENT_HEADER_LEN else max(size, 0))


class LinuxIn(InMessage):
    """Packets by record, records in order of their offsets."""

    __slots__ = ("_bytes", "_data", "_first", "_gaps", "_geo", "_index", "_keys", "_packets")

    def __init__(self, keys: DirectionKeys, rpc_id: int, length: int, geo: LinuxGeometry) -> None:
        super().__init__(length)
        self._keys = keys
        self._first = tls12.first_sequence(rpc_id)
        self._geo = geo
        #: record offset -> packet index -> payload
        self._packets: dict[int, dict[int, bytes]] = {}
        #: Nominal ranges that arrived.
        self._gaps = Gaps()
        self._index = 0
        self._data = bytearray()
        self._bytes = 0

    def add(self, segment_offset: int, index: int, inside: int, payload: bytes) -> int:
        if segment_offset < len(self._data):
            return 0
        start, stop = nominal_range(segment_offset, index, len(payload), self._geo.packet_data)
        if stop > self.length or stop <= start:
            return -1
        record = self._packets.setdefault(segment_offset, {})
        if index in record:
            return 0
        record[index] = bytes(payload)
        self._bytes += len(payload)
        new = sum(b - a for a, b in self._gaps.add(start, stop))
        self.received += new
        # A stored packet is progress even where a forged one claimed its nominal range before.
        return max(new, 1)

    def authenticated(self) -> int:
        return self._index

    def finish(self) -> bytes | None:
        while len(self._data) < self.length:
            offset = len(self._data)
            packets = self._packets.get(offset)
            if packets is None or 0 not in packets:
                return None
            size = tls12.record_length_untrusted(packets[0])
            if size == 0:
                self._discard(offset)
                return None
            pieces: list[bytes] = []
            have = 0
            while have < size and len(pieces) in packets:
                pieces.append(packets[len(pieces)])
                have += len(pieces[-1])
            if have < size:
                return None
            try:
                plain = tls12.open_untrusted(self._keys, self._first + self._index, b"".join(pieces)[:size])
                data = self._strip(plain, [len(p) for p in pieces], offset)
            except AuthError:
                self._discard(offset)
                return None
            self._data += data
            self._index += 1
            self._bytes += len(data) - sum(map(len, packets.values()))
            del self._packets[offset]
        return bytes(self._data)

    def _strip(self, plain: bytes, sizes: list[int], offset: int) -> bytes:
        """Data of a record without its segment headers; collects the acks. AuthError: a broken peer."""
        out = bytearray()
        at = 0
        room = sizes[0] - tls12.HEADER_LEN
        for nxt in [*sizes[1:], 0]:
            piece = plain[at:at + room]
            if not piece:
                break
            if len(piece) < SEGMENT_HEADER_LEN:
                raise AuthError("a packet ends inside its segment header")
            where, length, client_id, client_port, server_port = SEGMENT_HEADER.unpack_from(piece)
            if where != offset + len(out) or length != len(piece) - SEGMENT_HEADER_LEN or length == 0:
                raise AuthError(f"segment header says {length} bytes at {where}, they are at {offset + len(out)}")
            if client_id:
                self.acks.append((client_id, client_port, server_port))
            out += piece[SEGMENT_HEADER_LEN:]
            at += room
            room = nxt
        return bytes(out)

    def _discard(self, offset: int) -> None:
        self.auth_failures += 1
        self.discarded += self._drop(offset)

    def _drop(self, offset: int) -> list[tuple[int, int]]:
        """Forget the packets of a record; the ranges they claimed."""
        dropped = []
        packets = self._packets.pop(offset)
        for index, payload in packets.items():
            start, stop = nominal_range(offset, index, len(payload), self._geo.packet_data)
            before = sum(length for _o, length in self._gaps.missing(self.length))
            self._gaps.remove(start, stop)
            self.received -= sum(length for _o, length in self._gaps.missing(self.length)) - before
            self._bytes -= len(payload)
            dropped.append((start, stop - start))
        return dropped

    def doubt(self) -> list[tuple[int, int]]:
        offset = len(self._data)
        if offset in self._packets and not self._gaps.holes:
            self._drop(offset)
            # Not just what is dropped: the end of the message may be missing as well.
            return self.missing()
        return []

    def missing(self) -> list[tuple[int, int]]:
        holes = self._gaps.missing(max(min(self.granted, self.length), self._gaps.end))
        if holes or self._gaps.end < self.length:
            return holes
        # Every nominal byte is there and yet no record: misplaced packets. Ask for the next record.
        at = len(self._data)
        return [(at, min(self.length - at, self._geo.record_data))]

    def buffered(self) -> int:
        return self._bytes

    def extend(self, length: int) -> None:
        # The record format of this profile does not authenticate the length: keep the first.
        return
