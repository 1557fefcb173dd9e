"""What NICs have done to a stream, by position in it, and what they are told in turn."""

from __future__ import annotations

from typing import Protocol

from smtstack.ktls.stats import TlsStats
from smtstack.nic.marks import AMBIGUOUS, MarkReader, Range
from smtstack.nic.rx_resync import RxResync
from smtstack.wire.tcp import advance


class MarkSource(Protocol):
    """What :class:`~smtstack.ktls.receive.ReceiveMachine` asks and tells. ``at``: where a record's first byte
    is, in bytes of the stream since TLS was turned on."""

    def forms(self, at: int, size: int) -> list[Range]:
        """In which forms these bytes came up, all of which are here."""

    def head(self, at: int, size: int, number: int, here: int) -> None:
        """The header of record ``number`` has come, and says its ``size``; ``here``: bytes from there on."""

    def record(self, at: int, size: int, number: int, forms: list[Range], queued: bool) -> None:
        """Record ``number`` lies there, and came in these forms; ``queued``: there are bytes behind it, too."""

    def passed(self, at: int) -> None:
        """Nothing before this will be asked for again."""


class NicMarks:
    """A :class:`MarkSource` over the marks of all NICs. ``seq``: of TCP, where TLS was turned on. ``resync``:
    how NICs that lost the records are helped (:data:`smtstack.nic.tls_flow.RX_RESYNCS`)."""

    __slots__ = ("_reader", "_resync", "_seq", "_stats")

    def __init__(self, reader: MarkReader, seq: int, resync: str, stats: TlsStats) -> None:
        self._reader = reader
        self._seq = seq
        self._resync = RxResync(reader, resync)
        self._stats = stats

    def forms(self, at: int, size: int) -> list[Range]:
        return self._reader.forms(advance(self._seq, at), size)

    def head(self, at: int, size: int, number: int, here: int) -> None:
        before = self._resync.resyncs
        self._resync.head(advance(self._seq, at), size, number, here)
        self._stats.add("TlsRxDeviceResync", self._resync.resyncs - before)

    def record(self, at: int, size: int, number: int, forms: list[Range], queued: bool) -> None:
        before = self._resync.resyncs
        form = forms[0].form if len(forms) == 1 else AMBIGUOUS
        self._resync.record(advance(self._seq, at), size, number, form, queued)
        self._stats.add("TlsRxDeviceResync", self._resync.resyncs - before)

    def passed(self, at: int) -> None:
        self._reader.release(advance(self._seq, at))
