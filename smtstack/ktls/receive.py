"""The receiving half: a stream in any cuts becomes records, one a call, by FreeBSD's rules or Linux's.

``freebsd``: a record whose tag is wrong is told (EBADMSG) and dropped, the next ones go on. ``linux``: it stays
where it is, and every further call says the same. A header that cannot be ends the connection under both.
"""

from __future__ import annotations

import errno
from typing import Final

from smtstack.crypto.stream_gcm import TAG_LEN, inner_untrusted
from smtstack.errors import AuthError
from smtstack.ktls.mixed import came_sealed, candidates, opened_whole
from smtstack.ktls.nic_marks import MarkSource
from smtstack.ktls.params import VERSION_1_3
from smtstack.ktls.records import DATA, HEADER_LEN, BadRecord, Buffer, Record, record_size_untrusted
from smtstack.ktls.session import TlsSession
from smtstack.ktls.stats import SW, TlsStats
from smtstack.nic.marks import Range

#: Bytes of the buffer: at first, and of one that is often full.
FIRST_CAPACITY: Final = 1 << 15
MOST_CAPACITY: Final = 1 << 18


class ReceiveMachine:
    """Records of one connection. Nothing is delivered whose tag neither the NIC nor we have verified."""

    __slots__ = ("_at", "_buffer", "_end", "_ended", "_error", "_linux", "_session", "_start", "_stats",
                 "_waiting", "_wanted", "expect_no_pad", "marks", "number")

    def __init__(self, session: TlsSession, number: int, linux: bool, stats: TlsStats) -> None:
        self._session = session
        self._linux = linux
        self._stats = stats
        #: Of the next record.
        self.number = number
        self._buffer = bytearray(FIRST_CAPACITY)
        self._start = self._end = 0
        #: Bytes that the next record needs; 0: its header has not come.
        self._wanted = 0
        #: Position of the next record in the stream.
        self._at = 0
        self._ended = False
        self._waiting = False
        #: What every further call raises.
        self._error: OSError | None = None
        self.marks: MarkSource | None = None
        #: TLS_RX_EXPECT_NO_PAD.
        self.expect_no_pad = False

    @property
    def session(self) -> TlsSession:
        """Whose keys open the next record."""
        return self._session

    @property
    def ended(self) -> bool:
        """Whether the stream has ended, and all its records were taken."""
        return self._ended and self._start == self._end

    @property
    def position(self) -> int:
        """Where the next record's first byte is, in bytes since TLS was turned on."""
        return self._at

    def room(self) -> memoryview:
        """Where to put what comes; tell :meth:`received` how much it was, and release the view."""
        buffer = self._buffer
        if self._start == self._end:
            self._start = self._end = 0
        elif len(buffer) - self._end < FIRST_CAPACITY // 2:
            rest = bytes(memoryview(buffer)[self._start:self._end])
            buffer[:len(rest)] = rest
            self._start, self._end = 0, len(rest)
        return memoryview(buffer)[self._end:]

    def received(self, count: int) -> None:
        """So many bytes came into :meth:`room`; 0: the stream has ended."""
        if not count:
            self._ended = True
            return
        self._end += count
        if self._end == len(self._buffer) < MOST_CAPACITY:
            self._buffer += bytes(len(self._buffer))
        self._count_waiting()

    def feed(self, data: Buffer) -> None:
        """Take in bytes of the stream that are somewhere else than in :meth:`room`; any number of them."""
        at = 0
        while at < len(data):
            room = self.room()
            take = min(len(room), len(data) - at)
            if not take:
                room.release()
                # Nobody takes records out.
                self._buffer += bytes(len(self._buffer))
                continue
            room[:take] = data[at:at + take]
            room.release()
            self._end += take
            at += take
        self._count_waiting()

    def rekey(self, session: TlsSession, number: int = 0) -> None:
        """Further records are opened with these keys. The caller frees the old session."""
        self._session = session
        self.number = number

    def fail(self, error: OSError) -> None:
        """Every further call raises this."""
        self._error = error

    def next_record(self) -> Record | None:
        """The next record, or None: it has not come whole, or the stream has ended (:attr:`ended`).

        Raises OSError: EINVAL and EMSGSIZE for a header that cannot be or a record cut off by the end, EBADMSG
        for a tag that is wrong.
        """
        if self._error is not None:
            raise OSError(*self._error.args)
        if not self._wanted and self._end - self._start >= HEADER_LEN:
            self._read_header()
        if not self._wanted or self._end - self._start < self._wanted:
            if self._ended and self._end > self._start:
                self._stats.add("stats.corrupted_records")
                self._die(errno.EMSGSIZE, "the stream ends inside a record")
            return None
        size = self._wanted
        with memoryview(self._buffer) as buffer, buffer[self._start:self._start + size] as view:
            try:
                kind, data = self._open(view, size)
            except AuthError as e:
                self._stats.add("TlsDecryptError")
                self._stats.add("stats.corrupted_records")
                if self._linux:
                    self._die(errno.EBADMSG, str(e))
                self._step(size)
                raise OSError(errno.EBADMSG, str(e)) from None
        self._step(size)
        return Record(kind, 0x0303, len(data), data)

    def close(self) -> None:
        """Forget everything."""
        self._end = self._start = self._wanted = 0
        self._count_waiting()
        self._buffer = bytearray()

    def _read_header(self) -> None:
        start = self._start
        try:
            self._wanted = record_size_untrusted(self._session.shape, self._buffer[start:start + HEADER_LEN],
                                                 self._linux)
        except BadRecord as e:
            self._stats.add("stats.corrupted_records")
            self._die(e.errno, str(e))
        if self.marks is not None:
            self.marks.head(self._at, self._wanted, self.number, self._end - start)

    def _die(self, number: int, text: str) -> None:
        self._error = OSError(number, text)
        raise OSError(number, text)

    def _step(self, size: int) -> None:
        """Past a record."""
        self._start += size
        self._at += size
        self._wanted = 0
        self.number += 1
        if self.marks is not None:
            self.marks.passed(self._at)
        self._count_waiting()

    def _count_waiting(self) -> None:
        """``stats.sw_rx_inqueue``: connections with bytes that are not opened yet."""
        waiting = self._end > self._start
        if waiting is not self._waiting:
            self._waiting = waiting
            if self._session.mode == SW:
                self._stats.add("stats.sw_rx_inqueue", 1 if waiting else -1)

    def _open(self, record: memoryview, size: int) -> tuple[int, bytes]:
        """(kind, data). Raises :class:`AuthError`."""
        session = self._session
        assert session.backend is not None
        if self.marks is None:
            kind, data = session.backend.open_untrusted(session, self.number, record)
        else:
            forms = self.marks.forms(self._at, size)
            verified = opened_whole(forms)
            self.marks.record(self._at, size, self.number, forms, self._end - self._start > size)
            if verified:
                body = bytes(record[session.shape.header:size - TAG_LEN])
                return inner_untrusted(body) if session.version == VERSION_1_3 else (record[0], body)
            if came_sealed(forms):
                kind, data = session.backend.open_untrusted(session, self.number, record)
            else:
                kind, data = self._open_mixed(record, forms)
        if self.expect_no_pad and session.version == VERSION_1_3:
            padding = size - session.shape.header - session.shape.trailer - len(data)
            if kind != DATA or padding:
                self._stats.add("TlsDecryptRetry")
            if padding:
                self._stats.add("TlsRxNoPadViolation")
        return kind, data

    def _open_mixed(self, record: memoryview, forms: list[Range]) -> tuple[int, bytes]:
        session = self._session
        assert session.backend is not None
        failure = AuthError(f"record {self.number} does not authenticate")
        for candidate in candidates(session, self.number, record, forms):
            try:
                return session.backend.open_untrusted(session, self.number, candidate)
            except AuthError as e:
                failure = e
        raise failure
