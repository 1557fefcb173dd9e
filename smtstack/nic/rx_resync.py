"""What a receiving application tells a NIC about records, so that it decrypts again (Linux: ``tls_device.c``).

Fed with every record as it is taken from the stream. A NIC that searched asks about a place in the stream, and is
answered if a record begins there: with ``scan`` at once, with ``async`` from what was remembered since the NIC
said that a question would follow. With ``hint`` nobody asks: records that came encrypted make the application tell
where the next one begins, more and more seldom as it does not help. With ``every`` each of them does, until one
comes decrypted: that confirms it (FreeBSD). A hint is of use only if the NIC has not passed on that place yet, so
where the head of the next record is here already, it is about the one behind that.
"""

from __future__ import annotations

from typing import Final

from smtstack.nic.marks import DECRYPTED, ENCRYPTED, MarkReader
from smtstack.nic.tls_flow import EVERY, HINT
from smtstack.wire.tcp import advance, distance

#: Beginnings that are remembered (TLS_DEVICE_RESYNC_ASYNC_LOGMAX), and records after which nobody asks any more.
LOG_LIMIT: Final = 13
DELTA_LIMIT: Final = 65535
#: Encrypted records after which a hint is given, at first; from the second number on that many more each time.
FIRST_HINT: Final = 2
HINT_STEP: Final = 128


class _Asked:
    """What one NIC wants to know."""

    __slots__ = ("begun", "delta", "length", "log", "seq", "start")

    def __init__(self) -> None:
        #: Place in the stream that is asked about; -1: none.
        self.seq = -1
        #: A question was announced: for headers in so many bytes from ``start``.
        self.begun = False
        self.start = self.length = self.delta = 0
        #: (place, record number) of those.
        self.log: list[tuple[int, int]] = []


class RxResync:
    """The application's end of the three ways to get a NIC back into step."""

    __slots__ = ("_asked", "_due", "_every", "_failed", "_hints", "_marks", "_open", "_target", "confirmed",
                 "resyncs")

    def __init__(self, marks: MarkReader, resync: str) -> None:
        """``resync``: as the flow's."""
        self._marks = marks
        self._every = resync == EVERY
        self._hints = resync == HINT or self._every
        self._asked = [_Asked() for _ in range(marks.nics)]
        self._failed = 0
        self._target = FIRST_HINT
        #: Answers and hints given (``TlsRxDeviceResync``).
        self.resyncs = 0
        #: Times that a record came decrypted after hints of ``every``.
        self.confirmed = 0
        self._open = False
        #: A hint is to be given with the next header.
        self._due = False

    def record(self, seq: int, length: int, number: int, form: int, queued: bool = False) -> None:
        """Record ``number`` of ``length`` bytes begins at ``seq``.

        ``form``: in which its bytes came, ambiguous if not all in the same; ``queued``: bytes behind it are here,
        too, so that :meth:`head` will be called. To be called in order, before the next record is looked at.
        """
        if self._hints:
            self._hint(advance(seq, length), number + 1, form, queued)
            return
        for which, start, size in self._marks.announced():
            asked = self._asked[which]
            asked.begun, asked.start, asked.length, asked.delta = True, start, size, 0
            asked.log.clear()
        for asked in self._asked:
            if asked.begun:
                if 0 <= distance(asked.start, seq) <= asked.length and len(asked.log) < LOG_LIMIT:
                    asked.log.append((seq, number))
                asked.delta += 1
                if asked.delta > DELTA_LIMIT:
                    asked.begun = False
                    asked.log.clear()
        for which, place in self._marks.questions():
            asked = self._asked[which]
            asked.seq = place
            asked.begun = False
            for logged, its_number in asked.log:
                if logged == place:
                    self._answer(which, place, its_number)
        for which, asked in enumerate(self._asked):
            if asked.seq >= 0:
                if asked.seq == seq:
                    self._answer(which, seq, number)
                elif distance(asked.seq, seq) > 0:
                    # No record begins there. Only a yes is ever said.
                    asked.seq = -1

    def _answer(self, which: int, seq: int, number: int) -> None:
        self._marks.answer(which, seq, number)
        self._asked[which].seq = -1
        self.resyncs += 1

    def head(self, seq: int, length: int, number: int, here: int) -> None:
        """Record ``number`` of ``length`` bytes begins at ``seq``, as its header says.

        ``here``: bytes from there on that have come. To be called once that is known, before the record is whole.
        """
        if self._due and here <= length:
            self._due = False
            self._tell(advance(seq, length), number + 1)

    def _hint(self, next_seq: int, next_number: int, form: int, queued: bool) -> None:
        if form == DECRYPTED:
            self._failed, self._target = 0, FIRST_HINT
            self.confirmed += self._open
            self._open = self._due = False
            return
        if self._every:
            self._open = True
        elif form == ENCRYPTED:
            self._failed += 1
            if self._failed <= self._target:
                return
            self._target += min(self._target, HINT_STEP)
        else:
            return
        if queued:
            self._due = True
        else:
            self._tell(next_seq, next_number)

    def _tell(self, seq: int, number: int) -> None:
        for which in range(self._marks.nics):
            self._marks.answer(which, seq, number)
        self.resyncs += 1
