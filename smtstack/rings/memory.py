"""Shared memory, and the one place that touches it.

Whoever shares it may change it at any moment, also between two reads of the same word. So each function here reads
once what it returns, by copy, and nobody keeps a view. :meth:`SharedMemory.view` is the one exception.
"""

from __future__ import annotations

import struct
from typing import Any, Final, Protocol

#: struct xdp_desc: where in the memory of frames, how many bytes, options.
_DESCRIPTOR: Final = struct.Struct("=QII")
DESCRIPTOR_LEN: Final = _DESCRIPTOR.size
#: struct io_uring_cqe: the operation's tag, what it came to, flags, of which none is used.
_COMPLETION: Final = struct.Struct("=QiI")
ADDRESS_LEN: Final = 8


class Watcher(Protocol):
    """Sees every access, before it happens."""

    def accessed(self, memory: str, write: bool, start: int, end: int) -> None:
        """Bytes [``start``, ``end``) of the memory of that name are read, or written."""


class SharedMemory:
    """``buffer`` (bytearray, mmap: anything flat) under a name. Raises IndexError for what is not in it, which
    certified rings never ask for."""

    __slots__ = ("_bytes", "_words", "length", "name", "watcher")

    def __init__(self, name: str, buffer: Any) -> None:
        view = memoryview(buffer).cast("B")
        self.name = name
        self.length = len(view)
        self._bytes = view
        # Single 32-bit loads and stores, so that an index is never seen half written.
        self._words = view[:self.length & ~3].cast("I")
        #: None: nobody watches.
        self.watcher: Watcher | None = None

    def load(self, at: int) -> int:
        """The 32-bit word at byte ``at``, read once."""
        self._check(False, at, 4)
        return int(self._words[at >> 2])

    def store(self, at: int, value: int) -> None:
        """Write the word at byte ``at``."""
        self._check(True, at, 4)
        self._words[at >> 2] = value

    def descriptor(self, at: int) -> tuple[int, int, int]:
        """A copy of the descriptor at byte ``at``: address, bytes, options."""
        self._check(False, at, DESCRIPTOR_LEN)
        copied = bytes(self._bytes[at:at + DESCRIPTOR_LEN])
        address, length, options = _DESCRIPTOR.unpack(copied)
        return int(address), int(length), int(options)

    def put_descriptor(self, at: int, address: int, length: int) -> None:
        """Write a descriptor without options."""
        self._check(True, at, DESCRIPTOR_LEN)
        self._bytes[at:at + DESCRIPTOR_LEN] = _DESCRIPTOR.pack(address, length, 0)

    def completion(self, at: int) -> tuple[int, int]:
        """A copy of the completion at byte ``at``: tag and result."""
        self._check(False, at, _COMPLETION.size)
        copied = bytes(self._bytes[at:at + _COMPLETION.size])
        tag, result, _flags = _COMPLETION.unpack(copied)
        return int(tag), int(result)

    def put_completion(self, at: int, tag: int, result: int) -> None:
        """Write a completion."""
        self.write(at, _COMPLETION.pack(tag, result, 0))

    def address(self, at: int) -> int:
        """A copy of the 64-bit address at byte ``at``."""
        return int.from_bytes(self.copy(at, ADDRESS_LEN), "little")

    def put_address(self, at: int, address: int) -> None:
        """Write a 64-bit address."""
        self.write(at, address.to_bytes(ADDRESS_LEN, "little"))

    def copy(self, start: int, length: int) -> bytes:
        """A copy of so many bytes."""
        self._check(False, start, length)
        return bytes(self._bytes[start:start + length])

    def view(self, start: int, length: int) -> memoryview:
        """So many bytes where they lie: whoever shares them may change them under the reader's eyes."""
        self._check(False, start, length)
        return self._bytes[start:start + length]

    def write(self, start: int, data: bytes) -> None:
        """Write bytes."""
        self._check(True, start, len(data))
        self._bytes[start:start + len(data)] = data

    def release(self) -> None:
        """Let go of the buffer, so that it can be closed."""
        self._words.release()
        self._bytes.release()

    def _check(self, write: bool, start: int, length: int) -> None:
        if self.watcher is not None:
            self.watcher.accessed(self.name, write, start, start + length)
        if start < 0 or start + length > self.length:
            raise IndexError(f"{self.name}: bytes {start} to {start + length} of {self.length}")
