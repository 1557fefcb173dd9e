"""Messages of a capture while it is read: every record as soon as all its packets were there.

The decoder (``decode.py``) keeps everything to judge it in the end; here a record that is open is forgotten but
for digests of its packets, by which repetitions are told from something new. The rules of the formats are the
decoder's own.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from bisect import bisect_right
from typing import NamedTuple

from smtstack.capture.copies import Copies, Opened, Verdict
from smtstack.capture.flows import SmtFlow
from smtstack.capture.linux import LinuxMessage
from smtstack.capture.messages import clear_segments
from smtstack.capture.smt import SmtMessage, place_of
from smtstack.crypto.aead import DirectionKeys
from smtstack.transport.ranges import Gaps
from smtstack.wire import homa

#: Bytes of a plain message that make a piece.
PLAIN_PIECE = 60_000
_DIGEST_LEN = 8


class Piece(NamedTuple):
    """Plaintext that became known: a record, or so much of a plain message."""

    data: bytes
    #: Which of the message's it is, from 0.
    nth: int
    #: How many there are, by what the packets' headers claim; 0: they do not tell.
    of: int
    #: Of the record; None: not sealed.
    number: int | None
    #: Key epoch; None in profiles without.
    epoch: int | None


class News(NamedTuple):
    """What a packet brought."""

    pieces: tuple[Piece, ...] = ()
    #: Records that are whole and do not authenticate.
    failed: int = 0
    #: The packet had been there before, byte for byte.
    repeated: bool = False


class Incoming(ABC):
    """One message, packet by packet."""

    __slots__ = ("_done", "_paths", "_told", "complete", "held")

    def __init__(self) -> None:
        #: Bytes kept.
        self.held = 0
        #: Everything was there.
        self.complete = False
        #: Who sealed the packets of the record under way, where the capture says so; told when it was open.
        self._paths: set[str] = set()
        self._told = False
        #: Digests of what was kept and is gone, by place.
        self._done: dict[int, bytes] = {}

    def knows(self, header: homa.Data, index: int, payload: bytes) -> bool | None:
        """Whether the packet was there and is done with; None: something else was, so it is of another message.

        As for :meth:`feed`: the number in its segment (IP ID + packet_index), and what follows the header.
        """
        done = self._done.get(self._place(header, index, payload))
        return False if done is None else done == _digest(payload) or None

    @abstractmethod
    def feed(self, header: homa.Data, index: int, payload: bytes) -> News:
        """One packet that :meth:`knows` is False about."""

    @property
    def digests(self) -> int:
        """How many packets it remembers."""
        return len(self._done)

    def sealed_by(self, path: str) -> None:
        """The capture says who sealed the packet fed last: ``hw`` or ``sw``."""
        if self._told:
            self._paths.clear()
            self._told = False
        self._paths.add(path)

    def offload(self) -> str:
        """Who sealed the record that is open now; several: parts of it were sealed again by another."""
        self._told = True
        return "+".join(sorted(self._paths)) or "unknown"

    @abstractmethod
    def _place(self, header: homa.Data, index: int, payload: bytes) -> int:
        """Names the packet's place in the message."""


def _digest(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=_DIGEST_LEN).digest()


class SmtIncoming(Incoming):
    """Profile ``smt``."""

    __slots__ = ("_records",)

    def __init__(self, flow: SmtFlow, sender_id: int, wire_epoch: int) -> None:
        super().__init__()
        self._records = _SmtRecords(flow, sender_id, wire_epoch)

    def _place(self, header: homa.Data, index: int, payload: bytes) -> int:
        return place_of(header, index)

    def feed(self, header: homa.Data, index: int, payload: bytes) -> News:
        records = self._records
        if not records.takes_copy(place_of(header, index), payload):
            return News(repeated=True)
        records.add(header, index, payload)
        self.held += len(payload)
        pieces, failed = records.advance(header, place_of(header, index))
        for place, gone in records.drain() if pieces else ():
            self.held -= len(gone)
            self._done[place] = _digest(gone)
        self.complete = bool(records.end) and not records.done.holes
        return News(tuple(pieces), failed)


class _SmtRecords(SmtMessage):
    """The parts of a sealed message that are not open yet."""

    __slots__ = ("_closed", "_failed", "_open", "done", "end")

    def __init__(self, flow: SmtFlow, sender_id: int, wire_epoch: int) -> None:
        super().__init__(flow, sender_id, wire_epoch)
        #: Where a record may begin that is not open: its number, if those before it are known.
        self._closed: dict[int, int | None] = {}
        self._open: set[int] = set()
        #: Where records are whole and failed: they are reported once.
        self._failed: set[int] = set()
        #: Bytes of open records.
        self.done = Gaps()
        #: Where the record ends that is marked last; 0: not seen.
        self.end = 0

    def takes_copy(self, place: int, payload: bytes) -> bool:
        """Whether these bytes are new in this place."""
        return place not in self._copies.places() or payload not in self._copies.of(place)

    def advance(self, header: homa.Data, place: int) -> tuple[list[Piece], int]:
        """Records that can be opened now that there is something in ``place``, and how many failed."""
        pieces: list[Piece] = []
        failed = 0
        if header.segment_offset not in self._open:
            self._closed.setdefault(header.segment_offset, None if header.segment_offset else 0)
        frontiers = sorted(self._closed)
        n = bisect_right(frontiers, place)
        at = frontiers[n - 1] if n else -1
        while at >= 0 and at not in self._open and self._copies.holding(at) is not None:
            index = self._closed.get(at)
            verdict = self._judge(at, index, index is not None, None)
            opened, size = verdict.opened, verdict.size
            if opened is not None:
                pieces.append(self._piece(opened, at, size, header.message_length))
                self._closed.pop(at, None)
                self._open.add(at)
                self.done.add(at, at + size)
                if opened.last:
                    self.end = at + size
                    break
                self._record = size
                if at + size not in self._open:
                    self._closed[at + size] = opened.number + 1
            elif verdict.whole:
                failed += at not in self._failed
                self._failed.add(at)
                self._closed.setdefault(at + size, None)
            else:
                break
            at += size
        return pieces, failed

    def _piece(self, opened: Opened, at: int, size: int, claimed: int) -> Piece:
        assert self._known is not None, "it was opened"
        session, keys = self._known
        of = opened.number + 1 if opened.last else -(-max(claimed, at + size + 1) // size)
        return Piece(opened.data, opened.number, of, session.numbers.first(self._sender_id) + opened.number,
                     keys.epoch)

    def drain(self) -> list[tuple[int, bytes]]:
        """Take out what is in open records only."""
        out: list[tuple[int, bytes]] = []
        for place in list(self._copies.places()):
            copies = self._copies.of(place)
            stop = place + max(map(len, copies))
            if stop <= self.done.end and not any(a < stop and place < b for a, b in self.done.holes):
                out.append((place, copies[0]))
                self._copies.drop(place)
        return out


class LinuxIncoming(Incoming):
    """Profile ``linux``, sealed: records by their offset."""

    __slots__ = ("_got", "_records", "_sealed")

    def __init__(self, keys: DirectionKeys, sender_id: int) -> None:
        super().__init__()
        self._sealed = _LinuxRecords(keys, sender_id)
        self._records: dict[int, Copies] = {}
        #: Bytes opened.
        self._got = 0

    def _place(self, header: homa.Data, index: int, payload: bytes) -> int:
        return header.segment_offset << 16 | index

    def feed(self, header: homa.Data, index: int, payload: bytes) -> News:
        copies = self._records.setdefault(header.segment_offset, Copies(counted=True))
        if index in copies.places() and payload in copies.of(index):
            return News(repeated=True)
        copies.add(index, payload)
        self.held += len(payload)
        verdict = self._sealed.judge(copies, header.segment_offset)
        if verdict.opened is None:
            return News(failed=int(verdict.whole))
        del self._records[header.segment_offset]
        for place in copies.places():
            gone = copies.of(place)
            self.held -= sum(map(len, gone))
            self._done[header.segment_offset << 16 | place] = _digest(gone[0])
        opened = verdict.opened
        self._got += len(opened.data)
        self.complete = self._got == header.message_length
        return News((Piece(opened.data, opened.number, 0, self._sealed.first + opened.number, None),))


class PlainIncoming(Incoming):
    """Nothing sealed; ``module``: with the segment headers of the kernel module."""

    __slots__ = ("_at", "_collected", "_module", "_payloads", "_pieces")

    def __init__(self, module: bool) -> None:
        super().__init__()
        self._module = module
        self._payloads: dict[int, bytes] = {}
        self._collected = bytearray()
        #: Where what is collected ends in the message.
        self._at = 0
        self._pieces = 0

    def _place(self, header: homa.Data, index: int, payload: bytes) -> int:
        # The module's packets say in a header of their own what they begin with.
        return int.from_bytes(payload[:4], "big") if self._module else place_of(header, index)

    def feed(self, header: homa.Data, index: int, payload: bytes) -> News:
        segments: list[tuple[int, bytes]] | None = [(place_of(header, index), payload)]
        if self._module:
            segments = clear_segments(payload, header.message_length)
        if segments is None:
            return News(failed=1)
        self._done[self._place(header, index, payload)] = _digest(payload)
        for offset, data in segments:
            self._payloads.setdefault(offset, data)
            self.held += len(data)
        while (data := self._payloads.pop(self._at, b"")):
            self._collected += data
            self._at += len(data)
        self.complete = self._at >= header.message_length
        pieces: list[Piece] = []
        while len(self._collected) >= PLAIN_PIECE or (self.complete and self._collected):
            pieces.append(Piece(bytes(self._collected[:PLAIN_PIECE]), self._pieces,
                                -(-header.message_length // PLAIN_PIECE), None, None))
            self.held -= len(pieces[-1].data)
            del self._collected[:PLAIN_PIECE]
            self._pieces += 1
        return News(tuple(pieces))


class _LinuxRecords(LinuxMessage):
    """Opens the records of a sealed message."""

    __slots__ = ()

    @property
    def first(self) -> int:
        """Number of the message's first record."""
        return self._first

    def judge(self, copies: Copies, offset: int) -> Verdict:
        """The record at this offset, under the number it claims."""
        return self._judge(copies, offset, None, None)
