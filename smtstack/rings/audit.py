"""Sees every access to shared memory of a certified socket or ring, and what of it must not be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from smtstack.rings.frames import FREE, RECEIVING, SENDING
from smtstack.rings.layout import COMPLETION, CONSUMER_AT, ENTRIES_AT, FILL, PRODUCER_AT, RX, TX, UMEM
from smtstack.rings.memory import SharedMemory, Watcher
from smtstack.rings.uring import CertifiedUring
from smtstack.rings.uring_layout import (
    ADDRESS_LEN,
    COMPLETION_LEN,
    COMPLETIONS,
    ENTRIES,
    QUEUES,
    SUBMISSION_LEN,
    SUBMISSIONS,
    UringConfig,
)
from smtstack.rings.xsk import CertifiedXsk

#: The index that is ours, in each ring.
_OWN: Final = {FILL: PRODUCER_AT, TX: PRODUCER_AT, RX: CONSUMER_AT, COMPLETION: CONSUMER_AT}
#: Of an io_uring: where we write our indices, and read the host's.
_WRITTEN: Final = (SUBMISSIONS.producer, COMPLETIONS.consumer)
_READ: Final = (SUBMISSIONS.consumer, COMPLETIONS.producer)
#: What ACCEPT has written before it, into a buffer that the host then fills: an address, and its length.
_ACCEPT_LEN: Final = ADDRESS_LEN + 4


class _Audited:
    """Counts accesses to ``memories``, and those outside of them; ``then`` sees each next."""

    def __init__(self, memories: Mapping[str, SharedMemory], then: Watcher | None) -> None:
        self._lengths = {name: memory.length for name, memory in memories.items()}
        self._then = then
        self.accesses = 0
        #: What must not have been, and how often.
        self.violations: Counter[str] = Counter()
        for memory in memories.values():
            memory.watcher = self

    def accessed(self, memory: str, write: bool, start: int, end: int) -> None:
        """Judge an access that is about to happen."""
        self.accesses += 1
        if not 0 <= start < end <= self._lengths[memory]:
            self.violations[f"{memory}: outside"] += 1
        else:
            wrong = self._judged(memory, write, start, end)
            if wrong:
                self.violations[f"{memory}: {wrong}"] += 1
        if self._then is not None:
            self._then.accessed(memory, write, start, end)

    def _judged(self, memory: str, write: bool, start: int, end: int) -> str:
        """What is wrong about an access within the memory; "": nothing."""
        raise NotImplementedError


class Audit(_Audited):
    """A :class:`~smtstack.rings.memory.Watcher` that knows whose frames are.

    Only what was received is read, only what we send is written, each within its frame. Of a ring we write our
    index, and entries only where we fill it; we read the peer's index, and entries where we empty it. ``then``
    sees each access next.
    """

    def __init__(self, xsk: CertifiedXsk, memories: Mapping[str, SharedMemory], frame_size: int,
                 then: Watcher | None = None) -> None:
        super().__init__(memories, then)
        self._xsk = xsk
        self._frame_size = frame_size

    def _judged(self, memory: str, write: bool, start: int, end: int) -> str:
        if memory == UMEM:
            frame = start // self._frame_size
            if frame != (end - 1) // self._frame_size:
                return "across frames"
            return "" if self._xsk.owners.owner(frame) == (SENDING if write else RECEIVING) else (
                "a frame that is not ours to touch now")
        if start >= ENTRIES_AT:
            return "" if write == (memory in (FILL, TX)) else "entry of the wrong side"
        if end - start != 4 or write != (start == _OWN[memory]) or start not in (PRODUCER_AT, CONSUMER_AT):
            return "index of the wrong side"
        return ""


class UringAudit(_Audited):
    """Accesses to an io_uring judged: entries are written whole, completions read whole; a buffer is touched while
    an operation of ours has it, and by exits."""

    def __init__(self, uring: CertifiedUring, memories: Mapping[str, SharedMemory], config: UringConfig,
                 then: Watcher | None = None) -> None:
        super().__init__(memories, then)
        self._uring = uring
        self._config = config

    def _judged(self, memory: str, write: bool, start: int, end: int) -> str:
        if memory == ENTRIES:
            whole = end - start == SUBMISSION_LEN and not start % SUBMISSION_LEN
            return "" if write and whole else "no whole entry of ours"
        if memory == QUEUES:
            if start >= COMPLETIONS.entries:
                whole = end - start == COMPLETION_LEN and not start % COMPLETION_LEN
                return "" if not write and whole else "no whole completion"
            ours = _WRITTEN if write else _READ
            return "" if end - start == 4 and start in ours else "index of the wrong side"
        buffer = start // self._config.buffer_size
        if buffer != (end - 1) // self._config.buffer_size:
            return "across buffers"
        if buffer == self._config.buffers:
            return ""
        owner = self._uring.owners.owner(buffer)
        right = write if owner == SENDING else not write or end - start == _ACCEPT_LEN
        return "" if owner != FREE and right else "a buffer that is not ours to touch now"
