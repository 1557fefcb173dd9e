"""The ring between an application and a process that seals for it: slots in shared memory, worked off in order.

A slot is a descriptor and room for one record. Each side writes one word of the head: how many it has submitted,
or completed. Doorbells, and the news of each other's end, go over a socket.
"""

from __future__ import annotations

import mmap
import struct
from typing import Final, NamedTuple

from smtstack.crypto.stream_gcm import MAX_PLAINTEXT
from smtstack.ktls.records import Buffer

#: Operations.
KEY: Final = 1
FORGET: Final = 2
SEAL: Final = 3
OPEN: Final = 4
#: What became of one.
DONE: Final = 0
NOT_AUTHENTIC: Final = 1
FAILED: Final = 2

SLOTS: Final = 64
_HEAD: Final = 64
_DESCRIPTOR: Final = struct.Struct("<BBBxHxxIQQI")
_ROOM: Final = MAX_PLAINTEXT + 64
_SLOT: Final = 32 + _ROOM + 16
SIZE: Final = _HEAD + SLOTS * _SLOT
_WORD: Final = struct.Struct("<I")
_SUBMITTED_AT: Final = 0
_COMPLETED_AT: Final = 32
_MASK: Final = (1 << 32) - 1


class Descriptor(NamedTuple):
    """``length`` bytes of data belong to it."""

    operation: int
    kind: int
    status: int
    version: int
    key: int
    """Which key: a number that the application chose."""
    number: int
    """The record's number."""
    explicit_nonce: int
    length: int


class Ring:
    """One side's view of the memory."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, SIZE)
        self._view = memoryview(self._memory)

    @property
    def submitted(self) -> int:
        """Modulo 2^32, as :attr:`completed`."""
        return int(_WORD.unpack_from(self._memory, _SUBMITTED_AT)[0])

    @property
    def completed(self) -> int:
        """Modulo 2^32."""
        return int(_WORD.unpack_from(self._memory, _COMPLETED_AT)[0])

    def submit(self, count: int) -> None:
        """The application's word: ``count`` slots were ever submitted."""
        _WORD.pack_into(self._memory, _SUBMITTED_AT, count & _MASK)

    def complete(self, count: int) -> None:
        """The other side's word."""
        _WORD.pack_into(self._memory, _COMPLETED_AT, count & _MASK)

    def put(self, slot: int, what: Descriptor, *data: Buffer) -> None:
        """Write a slot, by its number since the beginning."""
        at = _HEAD + slot % SLOTS * _SLOT
        _DESCRIPTOR.pack_into(self._memory, at, *what)
        at += 32
        for part in data:
            self._view[at:at + len(part)] = part
            at += len(part)

    def get(self, slot: int) -> tuple[Descriptor, memoryview]:
        """A slot and its data, where they are."""
        at = _HEAD + slot % SLOTS * _SLOT
        what = Descriptor(*_DESCRIPTOR.unpack_from(self._memory, at))
        at += 32
        return what, self._view[at:at + min(what.length, _ROOM + 16)]

    def close(self) -> None:
        """Let go of the memory."""
        self._view.release()
        self._memory.close()
