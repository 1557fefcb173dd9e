"""What the host says about the memories of an io_uring, checked before any of it is used, by the rules of
checker.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from smtstack.errors import ConfigError
from smtstack.rings.checker import ALIGNED, Range, check_range, overlap, said
from smtstack.rings.uring_layout import COMPLETIONS, ENTRIES, MEMORIES, QUEUES, SUBMISSIONS, UringConfig

#: By name, where pointers have to be: in which memory, how many bytes behind its beginning.
POINTERS: Final = {
    "submission head": (QUEUES, SUBMISSIONS.consumer), "submission tail": (QUEUES, SUBMISSIONS.producer),
    "completion head": (QUEUES, COMPLETIONS.consumer), "completion tail": (QUEUES, COMPLETIONS.producer),
    "completions": (QUEUES, COMPLETIONS.entries), "submissions": (ENTRIES, SUBMISSIONS.entries)}


@dataclass(frozen=True, slots=True)
class SharedUring:
    """All that the host says about one ring, with its memories where they are mapped."""

    descriptor: int
    """The one by which it is woken."""
    memories: Sequence[Range]
    entries: int
    completions: int
    buffer_size: int
    pointers: Sequence[int]
    """Addresses, in the order of :data:`POINTERS`."""


def check_urings(urings: Sequence[SharedUring], config: UringConfig, trusted: Sequence[Range]) -> None:
    """Raises :class:`ConfigError`, with the rule that was broken, unless all of it may be used.

    ``trusted``: memory of our own, which must not be where the host's is.
    """
    taken = list(trusted)
    for range_ in trusted:
        check_range(range_)
    for number, uring in enumerate(urings):
        _check_uring(uring, number, config)
        for range_ in uring.memories:
            for other in taken:
                if overlap(range_, other):
                    raise ConfigError(said(number, range_.name, f"overlaps {other.name}"))
            taken.append(range_)


def _check_uring(uring: SharedUring, number: int, config: UringConfig) -> None:
    if uring.descriptor <= 0:
        raise ConfigError(said(number, "the descriptor", f"is {uring.descriptor}"))
    if [memory.name for memory in uring.memories] != list(MEMORIES):
        raise ConfigError(said(number, "the memories", f"are not {', '.join(MEMORIES)}"))
    for what, given, wanted in (("entries", uring.entries, config.entries),
                                ("completions", uring.completions, config.completions),
                                ("bytes of a buffer", uring.buffer_size, config.buffer_size)):
        if given <= 0 or given & (given - 1):
            raise ConfigError(said(number, what, f"are {given}, no power of two"))
        if given != wanted:
            raise ConfigError(said(number, what, f"are {given}, not {wanted}"))
    for memory in uring.memories:
        check_range(memory, number)
        if memory.start % ALIGNED:
            raise ConfigError(said(number, memory.name, "is not aligned"))
        if memory.length != config.bytes_of(memory.name):
            raise ConfigError(said(number, memory.name, f"has {memory.length} bytes, not "
                                                        f"{config.bytes_of(memory.name)}"))
    starts = {memory.name: memory.start for memory in uring.memories}
    if len(uring.pointers) != len(POINTERS):
        raise ConfigError(said(number, "the pointers", f"are {len(uring.pointers)}, not {len(POINTERS)}"))
    for (name, (memory_name, offset)), pointer in zip(POINTERS.items(), uring.pointers, strict=True):
        if pointer == 0:
            raise ConfigError(said(number, name, "is at address 0"))
        if pointer != starts[memory_name] + offset:
            raise ConfigError(said(number, name, f"is {pointer - starts[memory_name]} bytes behind the beginning, "
                                                 f"not {offset}"))
