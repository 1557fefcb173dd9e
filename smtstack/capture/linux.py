"""Messages of profile ``linux`` in a capture: the kernel module's, sealed or plain Homa."""

from __future__ import annotations

from smtstack.capture.copies import Copies, Opened, Verdict, judge
from smtstack.capture.messages import PlainMessage, SeenMessage, Tally, clear_segments
from smtstack.capture.nonces import NonceLedger
from smtstack.crypto import tls12
from smtstack.crypto.aead import DirectionKeys
from smtstack.errors import AuthError
from smtstack.transport.linux_message import SEGMENT_HEADER, SEGMENT_HEADER_LEN, nominal_range
from smtstack.wire import homa

_RECORD_PREFIX = b"\x17\x03\x03"
#: More bytes than a record can have.
_ALL = 1 << 32


class LinuxMessage(SeenMessage):
    """Profile ``linux``: a TLS 1.2 record a segment; or plain Homa, if its packets are that."""

    __slots__ = ("_first", "_keys", "_plain", "_plain_packets", "_records", "sealed")

    def __init__(self, keys: DirectionKeys | None, sender_id: int) -> None:
        super().__init__()
        self._keys = keys
        self._first = tls12.first_sequence(sender_id)
        self._plain = PlainMessage(module=True)
        self._plain_packets = 0
        #: By record offset: copies by packet number.
        self._records: dict[int, Copies] = {}
        #: A record began in a packet of it. One way or the other: a message is not sealed in part.
        self.sealed = False

    def add(self, header: homa.Data, index: int, payload: bytes) -> None:
        if clear_segments(payload, header.message_length) is not None:
            self._plain.add(header, index, payload)
            self._plain_packets += 1
            self.held = max(self.held, self._plain.held)
            return
        self._claims[header.message_length] += 1
        copies = self._records.setdefault(header.segment_offset, Copies(counted=True))
        self.held += copies.add(index, payload)
        self.sealed |= index == 0 and payload.startswith(_RECORD_PREFIX)

    @property
    def seems_whole(self) -> bool:
        return super().seems_whole if self._claims else self._plain.seems_whole

    def evaluate(self, tally: Tally) -> bytes | None:
        if self._plain_packets and not self.sealed:
            tally.bad_packets += self._claims.total()
            return self._plain.evaluate(tally)
        length = self._first_claim()
        tally.bad_packets += self._plain_packets + self._lies(length)
        offsets = sorted(self._records)
        whole = bytearray()
        #: Where the next record begins, and its number; None after a hole.
        expected: int | None = 0
        index: int | None = 0
        for n, offset in enumerate(offsets):
            copies = self._records[offset]
            if offset != expected:
                index = None
            verdict = self._judge(copies, offset, index, tally.ledger)
            opened = verdict.opened
            end = _nominal_end(copies, offset)
            # Its packets reach to the next record: all of them are there, whatever its header claims.
            closed = end > offset and end == (offsets[n + 1] if n + 1 < len(offsets) else length)
            if opened is not None:
                tally.opened(opened)
                # Packets beyond the end of an authentic record belong to nothing.
                tally.bad_packets += len(copies) - len(copies.row(0, 0, verdict.size, {}))
                if offset == len(whole):
                    whole += opened.data
                expected, index = offset + len(opened.data), opened.number + 1
            elif verdict.whole or closed:
                expected, index = end, None if index is None else index + 1
            else:
                expected = index = None
            if verdict.unexplained or (opened is None and (verdict.whole or closed or verdict.size == 0)):
                tally.records_bad += 1
            tally.bad_packets += copies.crowded
        return bytes(whole) if len(whole) == length else None

    def _judge(self, copies: Copies, offset: int, index: int | None, ledger: NonceLedger | None) -> Verdict:
        def open_untrusted(parts: list[bytes], size: int) -> Opened:
            return self._open_untrusted(parts, size, offset, index, ledger)

        return judge(copies, 0, 0, tls12.HEADER_LEN, tls12.record_length_untrusted, open_untrusted)

    def _open_untrusted(self, parts: list[bytes], size: int, offset: int, index: int | None,
                        ledger: NonceLedger | None) -> Opened:
        record = b"".join(parts)
        if self._keys is None:
            raise AuthError("no key for this pair of hosts")
        if len(record) != size:
            raise AuthError("the packets of the record hold more than the record")
        # The receiver counts records itself (reference §2). The number on the wire must agree, and is
        # all there is where records before this one are missing.
        claimed = int.from_bytes(record[5:tls12.HEADER_LEN], "big")
        if index is None:
            index = claimed - self._first
        if claimed != self._first + index or not 0 <= index <= 0xFFFF:
            raise AuthError(f"explicit nonce {claimed:#018x} is not the record's number")
        plain = tls12.open_untrusted(self._keys, claimed, record)
        fresh = ledger is None or ledger.observe(self._keys, claimed, tls12.aad(claimed, len(plain)),
                                                 record[tls12.HEADER_LEN:])
        return Opened(index, _without_headers_untrusted(plain, offset, [len(p) for p in parts]), False, fresh)


def _nominal_end(copies: Copies, offset: int) -> int:
    """Where a record ends by the lengths of its packets (reference §5.3), as far as they go without a hole."""
    row = copies.row(0, 0, _ALL, {})
    spans = [nominal_range(offset, number, len(piece), 0) for number, (_place, piece) in enumerate(row)]
    return offset + sum(stop - start for start, stop in spans)


def _without_headers_untrusted(plain: bytes, offset: int, sizes: list[int]) -> bytes:
    """Data of a decrypted record; raises :class:`AuthError` where its segment headers are wrong.

    Each packet begins with one (reference §1.6). A record captured in one frame before TSO cut it is
    taken on the word of its headers.
    """
    starts: list[int] = []
    out = bytearray()
    at = 0
    while at < len(plain):
        if len(plain) - at < SEGMENT_HEADER_LEN:
            raise AuthError("a record ends inside a segment header")
        where, size, _client_id, _client_port, _server_port = SEGMENT_HEADER.unpack_from(plain, at)
        data_at = at + SEGMENT_HEADER_LEN
        if where != offset + len(out) or not size or data_at + size > len(plain):
            raise AuthError(f"segment header says {size} bytes at {where}, data stands at {offset + len(out)}")
        starts.append(at)
        out += plain[data_at:data_at + size]
        at = data_at + size
    cuts = [0]
    for size in sizes[:-1]:
        cuts.append(cuts[-1] + size - (tls12.HEADER_LEN if len(cuts) == 1 else 0))
    if len(sizes) > 1 and starts != [c for c in cuts if c < len(plain)]:
        raise AuthError("segment headers do not stand at the beginning of the packets")
    return bytes(out)
