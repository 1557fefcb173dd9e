"""Messages of the profiles ``smt`` and ``homa``: a string of bytes cut into segments.

Profile ``smt`` seals the plaintext into TLS 1.3 records first; the transport then counts sealed bytes
and never looks inside, which is why ``homa`` is the same code with nothing sealed.
"""

from __future__ import annotations

from typing import Final

from smtstack.crypto import tls13
from smtstack.crypto.aead import DirectionKeys
from smtstack.crypto.epochs import EpochKeys, SmtSession
from smtstack.errors import AuthError
from smtstack.transport.message import InMessage, OutMessage
from smtstack.transport.params import TransportParams
from smtstack.transport.ranges import Gaps

_MAX_RECORD: Final = tls13.HEADER_LEN + tls13.MAX_LENGTH_FIELD
#: Packets of a message kept beyond its first gap; more have to come again. Each may be a forger's, and cost time.
MAX_PIECES: Final = 4096
#: What such a packet costs beside its bytes.
_PIECE_OVERHEAD: Final = 256


class Geometry:
    """How messages are cut, from MTU and segment size alone: both ends of a context compute the same."""

    __slots__ = ("mss", "packet_plain", "record_plain", "segment", "segment_records", "unsched_bytes")

    def __init__(self, params: TransportParams, sealed: bool) -> None:
        self.mss = params.segment_payload
        self.unsched_bytes = params.unsched_bytes
        full = self.mss * params.segment_packets
        if sealed:
            # Records of equal size fill the segment: whole records in every segment (paper §4.3).
            self.segment_records = -(-full // _MAX_RECORD)
            record = full // self.segment_records
            self.record_plain = record - tls13.OVERHEAD
            self.segment = record * self.segment_records
            #: Plaintext of the longest message that is one record in one packet.
            self.packet_plain = min(self.mss, record) - tls13.OVERHEAD
        else:
            self.segment_records = 0
            self.record_plain = 0
            self.segment = full
            self.packet_plain = self.mss

    def unscheduled(self, length: int) -> int:
        """Bytes of a message of ``length`` that go without a grant: whole segments."""
        segments = -(-self.unsched_bytes // self.segment)
        return min(length, segments * self.segment)


class PlainOut(OutMessage):
    """Profile ``homa``: the segments are slices of the message."""

    __slots__ = ("_data", "_segment")

    def __init__(self, data: bytes, geo: Geometry) -> None:
        length = len(data)
        if length <= geo.packet_plain:
            self.init_packet(length, geo.mss)
        else:
            self.init(length, -(-length // geo.segment), geo.mss, geo.unscheduled(length))
        self._data = data
        self._segment = geo.segment

    def start(self, index: int) -> int:
        return index * self._segment

    def payload(self, index: int) -> bytes:
        at = index * self._segment
        return self._data[at:at + self._segment]

    def packet_range(self, index: int, packet: int, size: int) -> tuple[int, int]:
        at = index * self._segment + packet * self.mss
        return at, at + size


class SealedPacket(OutMessage):
    """Profile ``smt``: a message that is one record in one packet, as most are."""

    __slots__ = ("_data", "_keys", "_padding", "_sealed", "_sequence")

    version = 0x0304

    def __init__(self, session: SmtSession, epoch: EpochKeys, message_id: int, data: bytes, padded: int,
                 mss: int) -> None:
        self.init_packet(padded + tls13.OVERHEAD, mss)
        self._sequence = session.reserve(epoch, message_id, 1)
        self._data = data
        self._padding = padded - len(data)
        self._keys = epoch.tx
        self._sealed: bytes | None = None

    def start(self, index: int) -> int:
        return 0

    def first_sequence(self, index: int) -> int:
        return self._sequence

    def records(self, index: int) -> int:
        return 1

    def keys(self) -> DirectionKeys | None:
        return self._keys

    def payload(self, index: int) -> bytes:
        sealed = self._sealed
        if sealed is None:
            sealed = self._sealed = tls13.seal(self._keys, self._sequence, self._data, True, self._padding)
        return sealed

    def framed(self, index: int) -> bytes:
        return tls13.frame(self._data, True, self._padding)

    def packet_range(self, index: int, packet: int, size: int) -> tuple[int, int]:
        return 0, size


class SealedOut(OutMessage):
    """Profile ``smt``: every segment holds whole TLS 1.3 records."""

    __slots__ = ("_data", "_first", "_geo", "_keys", "_padded", "_records", "_sealed")

    version = 0x0304

    def __init__(self, session: SmtSession, epoch: EpochKeys, message_id: int, data: bytes, padded: int,
                 geo: Geometry) -> None:
        #: Plaintext bytes, padding included.
        self._padded = padded
        self._records = -(-padded // geo.record_plain)
        length = padded + self._records * tls13.OVERHEAD
        self.init(length, -(-self._records // geo.segment_records), geo.mss, geo.unscheduled(length))
        self._first = session.reserve(epoch, message_id, self._records)
        self._data = data
        self._keys = epoch.tx
        self._geo = geo
        self._sealed: list[bytes | None] = [None] * self.count

    def start(self, index: int) -> int:
        return index * self._geo.segment

    def first_sequence(self, index: int) -> int:
        return self._first + index * self._geo.segment_records

    def records(self, index: int) -> int:
        return min(self._geo.segment_records, self._records - index * self._geo.segment_records)

    def keys(self) -> DirectionKeys | None:
        return self._keys

    def payload(self, index: int) -> bytes:
        sealed = self._sealed[index]
        if sealed is None:
            keys = self._keys
            first = self.first_sequence(index)
            parts: list[bytes] = []
            with memoryview(self._data) as data:
                for number, (start, stop, last, padding) in enumerate(self._contents(index), first):
                    tls13.seal_parts(keys, number, data[start:stop], last, padding, parts)
            sealed = self._sealed[index] = b"".join(parts)
        return sealed

    def framed(self, index: int) -> bytes:
        data = self._data
        return b"".join([tls13.frame(data[start:stop], last, padding)
                         for start, stop, last, padding in self._contents(index)])

    def _contents(self, index: int) -> list[tuple[int, int, bool, int]]:
        """(where its data starts and stops, is last, padding) of every record of a segment."""
        size = self._geo.record_plain
        first = index * self._geo.segment_records
        out = []
        for number in range(first, first + self.records(index)):
            at = number * size
            whole = min(size, self._padded - at)
            length = max(0, min(size, len(self._data) - at))
            out.append((at, at + length, number == self._records - 1, whole - length))
        return out

    def packet_range(self, index: int, packet: int, size: int) -> tuple[int, int]:
        at = index * self._geo.segment + packet * self.mss
        return at, at + size


class StreamIn(InMessage):
    """Reassembly by byte offset; whole when nothing is missing. Profile ``homa``.

    A packet costs its own bytes, wherever in the message it claims to belong.
    """

    __slots__ = ("_ahead", "_buf", "_gaps", "_pieces")

    def __init__(self, length: int) -> None:
        super().__init__(length)
        #: Everything before the first gap.
        self._buf = bytearray()
        self._gaps = Gaps()
        #: What arrived beyond it, by its place; disjoint. The bytes of all these.
        self._pieces: dict[int, bytes] = {}
        self._ahead = 0

    def add(self, segment_offset: int, index: int, inside: int, payload: bytes) -> int:
        start = segment_offset + inside
        stop = start + len(payload)
        if stop > self.length:
            return -1
        buf = self._buf
        gaps = self._gaps
        if start == gaps.end == len(buf):
            # In order, which is nearly always.
            buf += payload
            gaps.end = stop
            self.received += stop - start
            return stop - start
        pieces = self._pieces
        if start > len(buf) and len(pieces) >= MAX_PIECES:
            return 0
        new = 0
        for a, b in gaps.add(start, stop):
            pieces[a] = payload[a - start:b - start]
            new += b - a
        self._ahead += new
        self.received += new
        while (piece := pieces.pop(len(buf), None)) is not None:
            buf += piece
            self._ahead -= len(piece)
        return new

    def _cut(self, start: int) -> bytes:
        """Take everything before the first gap out from ``start`` on."""
        rest = bytes(self._buf[start:])
        del self._buf[start:]
        return rest

    def finish(self) -> bytes | None:
        if self._gaps.holes or self._gaps.end < self.length:
            return None
        return bytes(self._buf)

    def missing(self) -> list[tuple[int, int]]:
        return self._gaps.missing(max(min(self.granted, self.length), self._gaps.end))

    def buffered(self) -> int:
        return len(self._buf) + self._ahead + len(self._pieces) * _PIECE_OVERHEAD

    def extend(self, length: int) -> None:
        # Nothing in profile homa can tell which length is right: keep the first.
        return


class SealedIn(StreamIn):
    """Profile ``smt``: records are opened in order as they become whole.

    What the headers say (length, places) is a hint; what the records say is true. The message ends with
    the record marked last, wherever the clear length says it does.
    """

    __slots__ = ("_epoch", "_first", "_index", "_next_at", "_open_at", "_plain", "_session")

    def __init__(self, session: SmtSession, epoch: EpochKeys, message_id: int, length: int) -> None:
        super().__init__(length)
        self._session = session
        self._epoch = epoch
        self._first = session.numbers.first(message_id)
        #: Offset and index of the next record.
        self._open_at = 0
        #: Nothing can be opened before everything below this has arrived.
        self._next_at = tls13.HEADER_LEN
        self._index = 0
        self._plain: list[memoryview] = []

    def extend(self, length: int) -> None:
        if length > self.length:
            self.length = length
            self.truncated = False

    def authenticated(self) -> int:
        return self._index

    def finish(self) -> bytes | None:
        gaps = self._gaps
        ready = gaps.holes[0][0] if gaps.holes else gaps.end
        if ready < self._next_at and ready < self.length:
            return None
        buf = self._buf
        keys = self._epoch.rx
        while True:
            at = self._open_at
            ready = gaps.contiguous()
            if ready - at < tls13.HEADER_LEN:
                if ready >= self.length:
                    self._dead_end(at, ready)
                return None
            size = tls13.record_length_untrusted(buf, at)
            if size == 0:
                self._discard(at, min(at + _MAX_RECORD, ready))
                return None
            if at + size > ready:
                self._next_at = at + size
                if ready >= self.length:
                    self._dead_end(at, ready)
                return None
            if self._index >= self._session.numbers.max_records:
                self._discard(at, ready)
                return None
            try:
                last, data = tls13.open_at_untrusted(keys, self._first + self._index, buf, at, size)
            except AuthError:
                self._discard(at, at + size)
                return None
            self._epoch.opened += 1
            self._plain.append(data)
            self._open_at = at + size
            self._next_at = at + size + tls13.HEADER_LEN
            self._index += 1
            if last:
                return b"".join(self._plain)

    def _dead_end(self, at: int, ready: int) -> None:
        # The clear length ends in the middle of a record, or between records with none marked last.
        # Either it was shortened on the way, or the bytes at ``at`` are forged. Ask for both again.
        self.truncated = True
        if ready > at:
            self._discard(at, ready)

    def _discard(self, start: int, stop: int) -> None:
        self.auth_failures += 1
        self._next_at = self._open_at + tls13.HEADER_LEN
        self._epoch.failed += 1
        self._gaps.remove(start, stop)
        rest = self._cut(start)[stop - start:]
        if rest:
            self._pieces[stop] = rest
            self._ahead += len(rest)
        self.received -= stop - start
        self.discarded.append((start, stop - start))

    def doubt(self) -> list[tuple[int, int]]:
        start = self._open_at
        stop = max(self._gaps.end, min(self.granted, self.length))
        if stop <= start:
            return []
        self.received = start
        self._gaps.holes = []
        self._gaps.end = start
        self._cut(start)
        self._pieces.clear()
        self._ahead = 0
        self._next_at = start + tls13.HEADER_LEN
        # The next packet says how long the message is.
        self.length = start + 1
        self.truncated = False
        return [(start, stop - start)]

    def missing(self) -> list[tuple[int, int]]:
        holes = super().missing()
        if not holes and self.truncated:
            # Whatever follows the false end.
            return [(self.length, _MAX_RECORD)]
        return holes
