"""A host that does to its guest whatever the memory of an io_uring lets it do, and answers what it likes."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Final

from smtstack.rings.adversary import Adversary
from smtstack.rings.memory import SharedMemory
from smtstack.rings.uring_host import MemoryUring
from smtstack.rings.uring_layout import (
    BUFFERS,
    COMPLETION_LEN,
    COMPLETIONS,
    ENTRIES,
    QUEUES,
    SUBMISSION_LEN,
    SUBMISSIONS,
    Submission,
    UringConfig,
)

_MASK: Final = 0xFFFFFFFF
_LARGEST: Final = (1 << 31) - 1
#: Kinds of mutations; each has a method of its name.
KINDS: Final = ("index_random", "index_backwards", "index_beyond", "index_near_wrap", "index_forward",
                "guests_index", "result_too_large", "result_huge", "result_negative", "result_of_no_list",
                "result_short", "result_nothing", "result_descriptor", "interrupted", "tag_foreign", "tag_next",
                "tag_zero", "tag_stale", "tag_twice", "tag_of_another", "never_asked_for", "never_complete",
                "completion_bytes", "bytes_of_a_buffer", "submission_changed")
#: Those after which the ring goes on: what hurts is what the host says that it did.
SOFT: Final = ("result_too_large", "result_negative", "result_of_no_list", "result_short", "interrupted",
               "tag_foreign", "tag_stale", "tag_twice", "bytes_of_a_buffer", "submission_changed")
#: No operation may end with these: not at all, not so.
_NO_ERRORS: Final = (errno.EPERM, errno.ENOSYS, errno.EFAULT, errno.ENOEXEC, errno.EXDEV, errno.EPROTO)
_KEPT: Final = 64


class HostileUring(Adversary):
    """Takes what is submitted like an honest one; ``complete`` is what the honest part of it does."""

    def __init__(self, memories: Mapping[str, SharedMemory], config: UringConfig, seed: int,
                 chance: float = 0.0) -> None:
        super().__init__(KINDS, seed, chance)
        self.memories = dict(memories)
        self.honest = MemoryUring(memories, config)
        self._config = config
        #: What it was asked for lately, and what of that is not complete.
        self._taken: list[Submission] = []
        self._under_way: dict[int, Submission] = {}
        #: Operations that nobody will hear of.
        self._dropped: set[int] = set()
        self._drop_next = False

    def take(self) -> list[Submission]:
        """What is to be done."""
        taken = self.honest.take()
        self._taken = [*self._taken, *taken][-_KEPT:]
        if self._drop_next and taken:
            self._drop_next = False
            self._dropped.add(taken[-1].tag)
        for entry in taken:
            self._under_way[entry.tag] = entry
        return taken

    def complete(self, tag: int, result: int) -> None:
        """Tell the guest that an operation is done, unless it is one that it is never told of."""
        self._under_way.pop(tag, None)
        if tag in self._dropped:
            self._dropped.discard(tag)
        else:
            self.honest.complete(tag, result)

    def change(self, kind: str) -> None:
        getattr(self, f"_{kind}")()

    # -- indices -------------------------------------------------------------------------------------------

    def _ring(self) -> tuple[int, int, int]:
        """Where the index is that the guest believes, where its own, and how many entries there are."""
        if self._random.random() < 0.5:
            return SUBMISSIONS.consumer, SUBMISSIONS.producer, self._config.entries
        return COMPLETIONS.producer, COMPLETIONS.consumer, self._config.completions

    def _set(self, at: int, value: int) -> None:
        self.memories[QUEUES].store(at, value & _MASK)

    def _index_random(self) -> None:
        self._set(self._ring()[0], self._random.getrandbits(32))

    def _index_backwards(self) -> None:
        at = self._ring()[0]
        self._set(at, self.memories[QUEUES].load(at) - self._random.randint(1, 64))

    def _index_beyond(self) -> None:
        at, own, entries = self._ring()
        self._set(at, self.memories[QUEUES].load(own) + entries + self._random.randint(1, 4))

    def _index_near_wrap(self) -> None:
        self._set(self._ring()[0], -self._random.randint(1, 16))

    def _index_forward(self) -> None:
        at = self._ring()[0]
        self._set(at, self.memories[QUEUES].load(at) + self._random.randint(1, 8))

    def _guests_index(self) -> None:
        self._set(self._ring()[1], self._random.getrandbits(32))

    # -- completions ---------------------------------------------------------------------------------------

    def _say(self, tag: int, result: int) -> None:
        """Have the guest see a completion: in the place of the next that it looks at."""
        memory = self.memories[QUEUES]
        head = memory.load(COMPLETIONS.consumer)
        at = COMPLETIONS.entries + (head & (self._config.completions - 1)) * COMPLETION_LEN
        memory.put_completion(at, tag & (1 << 64) - 1, max(-_LARGEST - 1, min(result, _LARGEST)))
        memory.store(COMPLETIONS.producer, (head + self._random.randint(1, 2)) & _MASK)

    def _any(self) -> Submission:
        """One of those that are under way, or were."""
        known = list(self._under_way.values()) or self._taken
        return self._random.choice(known) if known else Submission(0, 0, 0, 0, 0, 0, 1)

    def _result_too_large(self) -> None:
        entry = self._any()
        self._say(entry.tag, entry.length + self._random.choice((1, 8, 4096, self._config.buffer_size)))

    def _result_huge(self) -> None:
        self._say(self._any().tag, _LARGEST - self._random.randint(0, 8))

    def _result_negative(self) -> None:
        self._say(self._any().tag, -self._random.choice((4096, _LARGEST, _LARGEST + 1, 1 << 20)))

    def _result_of_no_list(self) -> None:
        self._say(self._any().tag, -self._random.choice(_NO_ERRORS))

    def _result_short(self) -> None:
        entry = self._any()
        self._say(entry.tag, self._random.randint(0, max(entry.length, 1)))

    def _result_nothing(self) -> None:
        self._say(self._any().tag, 0)

    def _result_descriptor(self) -> None:
        self._say(self._any().tag, self._any().descriptor)

    def _interrupted(self) -> None:
        self._say(self._any().tag, -self._random.choice((errno.EINTR, errno.EAGAIN, errno.ECANCELED)))

    def _tag_foreign(self) -> None:
        self._say(self._random.getrandbits(64), self._random.randint(0, 64))

    def _tag_next(self) -> None:
        """Complete an operation that there is not yet."""
        tags = [entry.tag for entry in self._taken]
        self._say(max(tags, default=0) + self._random.randint(1, 4), self._random.randint(0, 64))

    def _tag_zero(self) -> None:
        self._say(0, 0)

    def _tag_stale(self) -> None:
        over = [entry for entry in self._taken if entry.tag not in self._under_way]
        if over:
            entry = self._random.choice(over)
            self._say(entry.tag, entry.length)

    def _tag_twice(self) -> None:
        memory = self.memories[QUEUES]
        last = (memory.load(COMPLETIONS.consumer) - 1) & (self._config.completions - 1)
        self._say(*memory.completion(COMPLETIONS.entries + last * COMPLETION_LEN))

    def _tag_of_another(self) -> None:
        self._say(self._any().tag, self._any().length)

    def _never_asked_for(self) -> None:
        memory = self.memories[QUEUES]
        count = self._random.randint(1, self._config.completions)
        memory.store(COMPLETIONS.producer, (memory.load(COMPLETIONS.consumer) + count) & _MASK)

    def _never_complete(self) -> None:
        self._drop_next = True

    def _completion_bytes(self) -> None:
        self._say(self._random.choice((self._any().tag, self._random.getrandbits(64))),
                  self._random.randint(-1 << 31, _LARGEST))

    # -- bytes ---------------------------------------------------------------------------------------------

    def _bytes_of_a_buffer(self) -> None:
        buffer = self._random.randrange(self._config.buffers)
        at = buffer * self._config.buffer_size + self._random.randrange(self._config.buffer_size - 8)
        self.memories[BUFFERS].write(at, self._random.randbytes(8))

    def _submission_changed(self) -> None:
        at = self._random.randrange(self._config.entries * SUBMISSION_LEN - 8)
        self.memories[ENTRIES].write(at, self._random.randbytes(8))
