"""Sees every access of a certified socket to shared memory, and what of it must not be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from smtstack.rings.frames import RECEIVING, SENDING
from smtstack.rings.layout import COMPLETION, CONSUMER_AT, ENTRIES_AT, FILL, PRODUCER_AT, RX, TX, UMEM
from smtstack.rings.memory import SharedMemory, Watcher
from smtstack.rings.xsk import CertifiedXsk

#: The index that is ours, in each ring.
_OWN: Final = {FILL: PRODUCER_AT, TX: PRODUCER_AT, RX: CONSUMER_AT, COMPLETION: CONSUMER_AT}


class Audit:
    """A :class:`~smtstack.rings.memory.Watcher` that knows whose frames are.

    Only what was received is read, only what we send is written, each within its frame. Of a ring we write our
    index, and entries only where we fill it; we read the peer's index, and entries where we empty it. ``then``
    sees each access next.
    """

    def __init__(self, xsk: CertifiedXsk, memories: Mapping[str, SharedMemory], frame_size: int,
                 then: Watcher | None = None) -> None:
        self._xsk = xsk
        self._lengths = {name: memory.length for name, memory in memories.items()}
        self._frame_size = frame_size
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
        elif memory == UMEM:
            self._judge_frame(write, start, end)
        elif start >= ENTRIES_AT:
            if write != (memory in (FILL, TX)):
                self.violations[f"{memory}: entry of the wrong side"] += 1
        elif end - start != 4 or write != (start == _OWN[memory]) or start not in (PRODUCER_AT, CONSUMER_AT):
            self.violations[f"{memory}: index of the wrong side"] += 1
        if self._then is not None:
            self._then.accessed(memory, write, start, end)

    def _judge_frame(self, write: bool, start: int, end: int) -> None:
        frame = start // self._frame_size
        if frame != (end - 1) // self._frame_size:
            self.violations["umem: across frames"] += 1
        elif self._xsk.owners.owner(frame) != (SENDING if write else RECEIVING):
            self.violations["umem: a frame that is not ours to touch now"] += 1
