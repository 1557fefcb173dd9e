"""Messages of profile ``smt`` in a capture: a string of TLS 1.3 records."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache

from smtstack.capture.copies import Copies, Opened, Verdict, judge
from smtstack.capture.flows import SmtFlow
from smtstack.capture.messages import SeenMessage, Tally
from smtstack.capture.nonces import NonceLedger
from smtstack.crypto import tls13
from smtstack.crypto.epochs import EpochKeys, SmtSession
from smtstack.errors import AuthError, ConfigError, LocalError
from smtstack.transport.params import MAX_SEGMENT_PACKETS, PACKET_HEADERS, TransportParams
from smtstack.transport.stream_message import Geometry
from smtstack.wire import homa


class SmtMessage(SeenMessage):
    """Profile ``smt``: every segment begins with a record.

    Records are found by walking from header to header. After a hole the walk goes on where a segment
    begins, or where a record must begin because all but the last are equally long; its number follows
    from that length, and authentication proves it.
    """

    __slots__ = ("_copies", "_epoch", "_flow", "_known", "_record", "_segment_size", "_sender_id", "_starts")

    def __init__(self, flow: SmtFlow | None, sender_id: int, wire_epoch: int) -> None:
        super().__init__()
        self._flow = flow
        self._sender_id = sender_id
        self._epoch = wire_epoch
        self._copies = Copies(counted=False)
        #: Offsets at which segments begin.
        self._starts = {0}
        self._segment_size = 0
        #: Known once the first record authenticates.
        self._known: tuple[SmtSession, EpochKeys] | None = None
        #: Bytes of every record but the last, likewise.
        self._record = 0

    def add(self, header: homa.Data, index: int, payload: bytes) -> None:
        self._claims[header.message_length] += 1
        self._starts.add(header.segment_offset)
        self._segment_size = max(self._segment_size, header.segment_size)
        self.held += self._copies.add(place_of(header, index), payload)

    def takes(self, header: homa.Data, index: int, payload: bytes) -> bool:
        # Where there is but one session, a copy that differs is forged, or shows a nonce used twice.
        several = self._flow is not None and self._flow.several
        return not several or self._copies.takes(place_of(header, index), payload)

    def evaluate(self, tally: Tally) -> bytes | None:
        starts = sorted(self._starts)
        end = self._copies.end()
        length = max(self._claims)
        at = 0
        #: Number the record at ``at`` should have; ``certain`` if all before it are known.
        index: int | None = 0
        certain = True
        chain: list[bytes] | None = []
        result: bytes | None = None
        while at < end:
            verdict = self._judge(at, index, certain, tally.ledger)
            opened = verdict.opened
            size = verdict.size
            n = bisect_right(starts, at)
            # A header that reaches into the next segment was changed.
            crosses = n < len(starts) and starts[n] < at + size
            if opened is not None:
                tally.opened(opened)
                if not opened.last:
                    self._record = size
                if chain is not None:
                    chain.append(opened.data)
                    if opened.last and result is None:
                        result = b"".join(chain)
                        length = at + size
            else:
                chain = None
            known_start = certain or at in self._starts
            if verdict.unexplained or (opened is None and (
                    verdict.whole or crosses or (known_start and (size == 0 or self._dead_end(at, length))))):
                tally.records_bad += 1
            if opened is not None:
                at, index, certain = at + size, opened.number + 1, True
            elif size > 0 and not crosses:
                at, index, certain = at + size, None if index is None else index + 1, False
            else:
                at, index, certain = self._resume(at, starts[n] if n < len(starts) else end), None, False
        tally.bad_packets += self._lies(length) + self._copies.crowded
        return result

    def _judge(self, at: int, index: int | None, certain: bool, ledger: NonceLedger | None) -> Verdict:
        place = self._copies.holding(at)
        if place is None:
            return Verdict(-1, False, None, False)

        def open_untrusted(parts: list[bytes], size: int) -> Opened:
            numbers = [index] if index is not None and certain else self._numbers(at, index, size)
            return self._open_untrusted(b"".join(parts)[:size], numbers, ledger)

        return judge(self._copies, place, at - place, tls13.HEADER_LEN,
                     lambda head: tls13.record_length_untrusted(head, 0), open_untrusted)

    def _open_untrusted(self, record: bytes, numbers: list[int], ledger: NonceLedger | None) -> Opened:
        flow = self._flow
        if flow is None:
            raise AuthError("no key for this pair of hosts")
        for session, keys in self._epochs(flow):
            rx = keys.rx
            try:
                first = session.numbers.first(self._sender_id)
            except LocalError:
                continue
            limit = session.numbers.max_records
            for number in numbers:
                if number >= limit:
                    continue
                try:
                    last, data = tls13.open_untrusted(rx, first + number, record)
                except AuthError:
                    continue
                self._known = session, keys
                flow.proved(session, keys)
                fresh = ledger is None or ledger.observe(rx, first + number, record[:tls13.HEADER_LEN],
                                                         record[tls13.HEADER_LEN:])
                return Opened(number, data, last, fresh)
        raise AuthError("the record authenticates under no key and number it could have")

    def _epochs(self, flow: SmtFlow) -> Iterator[tuple[SmtSession, EpochKeys]]:
        known = self._known
        if known is not None:
            yield known
        # Also then: what is left of an earlier round of the epoch byte has other keys.
        for session, keys in flow.epochs(self._epoch):
            if known is None or keys is not known[1]:
                yield session, keys

    def _numbers(self, at: int, index: int | None, size: int) -> list[int]:
        """Numbers the record at ``at`` may have where those before it are not all known."""
        out = [] if index is None else [index]
        for record in self._record_sizes(size):
            if at % record == 0 and at // record not in out:
                out.append(at // record)
        return out

    def _record_sizes(self, size: int) -> tuple[int, ...]:
        """Lengths the message's full records may have."""
        return (self._record,) if self._record else (size, *_possible_records(self._segment_size))

    def _dead_end(self, at: int, length: int) -> bool:
        """Every byte of the message from here on was captured, and still they make no record."""
        place = self._copies.holding(at)
        if place is None or at >= length:
            return False
        row = self._copies.row(place, at - place, length - at, {})
        return sum(len(piece) for _place, piece in row) >= length - at

    def _resume(self, at: int, start: int) -> int:
        """Where the next record may begin after a hole or a broken header: ``start`` at the latest."""
        copies = self._copies
        beyond = at + 1
        if copies.holding(at) is None:
            following = copies.next_place(at)
            if following is None:
                return start
            beyond = following
        if self._record:
            return min(start, _round_up(beyond, self._record))
        # No full record was seen yet. Every size of segment would put records elsewhere: look for headers.
        sizes = _possible_records(self._segment_size)
        while beyond < start:
            slots = sorted({_round_up(beyond, record) for record in sizes})
            found = next((slot for slot in slots if slot < start and self._header_at(slot)), None)
            following = copies.next_place(beyond)
            if found is not None or following is None:
                return start if found is None else found
            beyond = following
        return start

    def _header_at(self, at: int) -> bool:
        place = self._copies.holding(at)
        if place is None:
            return False
        head = b"".join([p for _place, p in self._copies.row(place, at - place, tls13.HEADER_LEN, {})])
        return len(head) >= tls13.HEADER_LEN and tls13.record_length_untrusted(head, 0) > 0


def place_of(header: homa.Data, index: int) -> int:
    """Where in the message a packet's payload begins."""
    return header.segment_offset + (header.packet_offset if header.placed else index * header.segment_size)


def _round_up(offset: int, unit: int) -> int:
    return -(-offset // unit) * unit


@lru_cache(maxsize=64)
def _possible_records(segment_size: int) -> tuple[int, ...]:
    """Lengths of full records at senders of this segment size: one for each number of packets a segment."""
    out: list[int] = []
    for packets in range(1, MAX_SEGMENT_PACKETS + 1):
        try:
            params = TransportParams(mtu=segment_size + PACKET_HEADERS,
                                     max_gso_size=packets * segment_size + PACKET_HEADERS)
        except ConfigError:
            break
        record = Geometry(params, sealed=True).record_plain + tls13.OVERHEAD
        if record not in out:
            out.append(record)
    return tuple(out)
