"""Records on their way into TCP. They are made in order, and may be sealed in any: TCP only ever sees those before
the first that is not ready (FreeBSD's M_NOTREADY)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from smtstack.ktls.records import Buffer
from smtstack.ktls.session import OutRecord, TlsSession
from smtstack.ktls.stats import SW, TlsStats

#: Buffers that one system call takes (IOV_MAX is 1024).
MOST_BUFFERS: Final = 512


class SendQueue:
    """Records of one connection."""

    __slots__ = ("_records", "_stats", "backlog")

    def __init__(self, stats: TlsStats) -> None:
        self._records: deque[OutRecord] = deque()
        self._stats = stats
        #: Bytes of all records here, ready or not, that TCP has not taken.
        self.backlog = 0

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[OutRecord]:
        return iter(list(self._records))

    def append(self, record: OutRecord) -> None:
        """At the end."""
        self._records.append(record)
        self.backlog += record.size
        if record.session.mode == SW:
            self._stats.add("stats.sw_tx_inqueue")

    def failed(self) -> bool:
        """Whether a record could not be sealed."""
        return any(record.failed for record in self._records)

    def sessions(self) -> set[TlsSession]:
        """Whose records are here."""
        return {record.session for record in self._records}

    def head(self) -> OutRecord | None:
        """The first one, ready or not."""
        return self._records[0] if self._records else None

    def ready(self) -> list[Buffer]:
        """Buffers of the ready prefix, as many as one system call takes; only of the first one's session."""
        parts: list[Buffer] = []
        session: TlsSession | None = None
        for record in self._records:
            if not record.ready or len(parts) >= MOST_BUFFERS:
                break
            if session is None:
                session = record.session
            if record.session is not session:
                break
            parts += record.parts
        return parts

    def sent(self, count: int) -> None:
        """TCP took so many bytes of them: records that are wholly taken let their sessions go."""
        self.backlog -= count
        while count:
            record = self._records[0]
            parts = record.parts
            while parts and count >= len(parts[0]):
                count -= len(parts[0])
                del parts[0]
            if parts:
                if count:
                    parts[0] = memoryview(parts[0])[count:]
                return
            self._records.popleft()
            self._let_go(record)

    def clear(self) -> None:
        """All go, sent or not."""
        for record in self._records:
            self._let_go(record)
        self._records.clear()
        self.backlog = 0

    def _let_go(self, record: OutRecord) -> None:
        if record.session.mode == SW:
            self._stats.add("stats.sw_tx_inqueue", -1)
        record.session.free()
