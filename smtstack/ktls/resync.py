"""What a receiving application tells a NIC that has lost where records begin (Linux's ``tls_device``): answers
to its questions, at once or from memory, or hints it did not ask for."""

from __future__ import annotations

from typing import Final, Protocol

from smtstack.ktls.stats import TlsStats
from smtstack.nic.marks import MarkReader, Range
from smtstack.nic.tls_flow import ASYNC, HINT
from smtstack.wire.tcp import advance, distance

#: Beginnings of records that are remembered for a question that is still to come (TLS_DEVICE_RESYNC_ASYNC_LOGMAX).
MOST_REMEMBERED: Final = 13
#: Hints: after so many records by software, then after twice as many, up to this, and then every so many.
FIRST_HINT: Final = 2
LONGEST_PAUSE: Final = 128
#: Questions that wait for their record, at most.
_MOST_QUESTIONS: Final = 8


class MarkSource(Protocol):
    """What :class:`~smtstack.ktls.receive.ReceiveMachine` asks and tells. ``at``: bytes of the stream since TLS
    was turned on, of the first byte of a record."""

    def forms(self, at: int, size: int) -> list[Range]:
        """In which forms these bytes came up, all of which are here."""

    def record(self, at: int, size: int, number: int, decrypted: bool) -> None:
        """Record ``number`` lies there. ``decrypted``: a NIC did all of it."""

    def passed(self, at: int) -> None:
        """Nothing before this will be asked for again."""


class HintSchedule:
    """When to tell a NIC unasked: it has missed that it lost the records, as often as software opens whole
    ones."""

    __slots__ = ("_failed", "_target")

    def __init__(self) -> None:
        self._failed = 0
        self._target = FIRST_HINT

    def record(self, decrypted: bool) -> bool:
        """One more record; whether to tell the NIC where the next begins."""
        if decrypted:
            self._failed, self._target = 0, FIRST_HINT
            return False
        self._failed += 1
        if self._failed <= self._target:
            return False
        self._target += min(self._target, LONGEST_PAUSE)
        return True


class NicMarks:
    """A :class:`MarkSource` over the marks of all NICs. ``seq``: of TCP, where TLS was turned on."""

    __slots__ = ("_hints", "_questions", "_reader", "_remembered", "_remembering", "_resync", "_seq", "_stats")

    def __init__(self, reader: MarkReader, seq: int, resync: str, stats: TlsStats) -> None:
        self._reader = reader
        self._seq = seq
        self._resync = resync
        self._stats = stats
        self._hints = HintSchedule()
        #: (which NIC, sequence number) that no record was found at yet.
        self._questions: list[tuple[int, int]] = []
        #: NICs that will ask about the past: (from, to) in sequence numbers.
        self._remembering: dict[int, tuple[int, int]] = {}
        #: By NIC: record numbers by the sequence numbers at which they begin.
        self._remembered: dict[int, dict[int, int]] = {}

    def forms(self, at: int, size: int) -> list[Range]:
        return self._reader.forms(advance(self._seq, at), size)

    def record(self, at: int, size: int, number: int, decrypted: bool) -> None:
        seq = advance(self._seq, at)
        if self._resync == HINT:
            if self._hints.record(decrypted):
                self._stats.add("TlsRxDeviceResync", self._reader.nics)
                for which in range(self._reader.nics):
                    self._reader.answer(which, advance(seq, size), number + 1)
            return
        if self._resync == ASYNC:
            self._remember(seq, number)
        self._questions = (self._questions + self._reader.questions())[-_MOST_QUESTIONS:]
        left = []
        for which, asked in self._questions:
            known = self._remembered.get(which, {}).get(asked)
            if asked == seq:
                known = number
            if known is not None:
                self._reader.answer(which, asked, known)
                self._stats.add("TlsRxDeviceResync")
                self._remembering.pop(which, None)
                self._remembered.pop(which, None)
            elif distance(seq, asked) > 0:
                left.append((which, asked))
        self._questions = left

    def passed(self, at: int) -> None:
        self._reader.release(advance(self._seq, at))

    def _remember(self, seq: int, number: int) -> None:
        for which, start, length in self._reader.announced():
            self._remembering[which] = (start, advance(start, length))
            self._remembered[which] = {}
        for which, (start, end) in self._remembering.items():
            log = self._remembered[which]
            if len(log) < MOST_REMEMBERED and distance(start, seq) >= 0 and distance(seq, end) >= 0:
                log[seq] = number
