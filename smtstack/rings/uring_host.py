"""The host's half of an io_uring in memory: what the kernel does with its queues, where a kernel has none.

Honest: it does what is asked for once, and says what came of it. Nobody has to believe it for that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from smtstack.rings.certified import WIDTH, ConsumerRing, ProducerRing
from smtstack.rings.memory import SharedMemory
from smtstack.rings.uring_layout import (
    BUFFERS,
    COMPLETION_LEN,
    COMPLETIONS,
    ENTRIES,
    MEMORIES,
    QUEUES,
    SUBMISSION_LEN,
    SUBMISSIONS,
    Submission,
    UringConfig,
    submission,
)


def uring_memory(config: UringConfig) -> dict[str, bytearray]:
    """Memories of a ring, all zeros."""
    return {name: bytearray(config.bytes_of(name)) for name in MEMORIES}


class MemoryUring:
    """Takes what is submitted, and completes it. ``base``: what addresses of buffers begin at."""

    def __init__(self, memories: Mapping[str, SharedMemory], config: UringConfig, base: int = 0,
                 width: int = WIDTH, first: int = 0) -> None:
        self.memories = dict(memories)
        self.config = config
        self._base = base
        queues = memories[QUEUES]
        self._submissions = ConsumerRing(queues, config.entries, SUBMISSION_LEN, True, width, first, SUBMISSIONS)
        self._completions = ProducerRing(queues, config.completions, COMPLETION_LEN, True, width, first,
                                         COMPLETIONS)
        #: Completions for which there was no place.
        self._kept: deque[tuple[int, int]] = deque()

    def has_work(self) -> bool:
        """Whether anything is submitted, or waits for a place."""
        return self._submissions.available() > 0 or (bool(self._kept) and self._completions.room() > 0)

    def take(self) -> list[Submission]:
        """What is submitted, oldest first."""
        ring, entries = self._submissions, self.memories[ENTRIES]
        taken = [submission(entries.copy(ring.next(), SUBMISSION_LEN)) for _number in range(ring.available())]
        # Also if there is nothing: an index that was overwritten is right again.
        ring.publish()
        self._place()
        return taken

    def complete(self, tag: int, result: int) -> None:
        """Say what an operation came to."""
        self._kept.append((tag, result))
        self._place()

    def _place(self) -> None:
        ring, kept = self._completions, self._kept
        for _number in range(min(ring.room(), len(kept))):
            self.memories[QUEUES].put_completion(ring.next(), *kept.popleft())
        ring.publish()

    def read(self, address: int, length: int) -> bytes:
        """Bytes of a buffer. Raises IndexError for what is none."""
        return self.memories[BUFFERS].copy(address - self._base, length)

    def write(self, address: int, data: bytes) -> None:
        """Put bytes into a buffer. Raises IndexError for what is none."""
        self.memories[BUFFERS].write(address - self._base, data)
