"""How io_uring lays out its rings, what its entries say, and how large ours are (Linux ``<linux/io_uring.h>``).

A ring is one memory with both queues' indices and the completions, one with the entries that are submitted, and
one with buffers; the kernel has the first two from us (IORING_SETUP_NO_MMAP), so that memory of our own, where a
kernel has no io_uring and in tests, is laid out the same way. There is no array of indices (NO_SQARRAY).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from smtstack.rings.layout import Places

#: Names of the three memories.
QUEUES: Final = "queues"
ENTRIES: Final = "entries"
BUFFERS: Final = "buffers"
MEMORIES: Final = (QUEUES, ENTRIES, BUFFERS)
# struct io_rings of Linux: heads and tails, masks, sizes, what the kernel counts, and the completions.
SUBMISSIONS: Final = Places(producer=4, consumer=0, entries=0)
COMPLETIONS: Final = Places(producer=12, consumer=8, entries=64)
#: struct io_uring_sqe, struct io_uring_cqe.
SUBMISSION_LEN: Final = 64
COMPLETION_LEN: Final = 16
#: opcode, flags, ioprio, descriptor, offset or second address, address, length, flags of the operation, tag, and
#: what no operation of ours has.
_SUBMISSION: Final = struct.Struct("=BBHiQQIIQ24x")

# Operations of io_uring that we ask for.
FSYNC: Final = 3
ACCEPT: Final = 13
CONNECT: Final = 16
OPENAT: Final = 18
CLOSE: Final = 19
READ: Final = 22
WRITE: Final = 23
SEND: Final = 26
RECV: Final = 27
SHUTDOWN: Final = 34
# By an exit only: numbers that are none of Linux'. A socket that listens, one to connect by; an address of a
# socket; size of a file, cutting it, a lock on it; which of some sockets are ready.
LISTEN: Final = 200
SOCKET: Final = 201
NAME: Final = 202
SIZE: Final = 203
TRUNCATE: Final = 204
LOCK: Final = 205
POLL: Final = 206
#: What a ring does; and what there is besides, by an exit.
OPERATIONS: Final = {FSYNC: "fsync", ACCEPT: "accept", CONNECT: "connect", CLOSE: "close",
                     READ: "read", WRITE: "write", SEND: "send", RECV: "recv", SHUTDOWN: "shutdown"}
EXITS: Final = {OPENAT: "openat", LISTEN: "listen", SOCKET: "socket", NAME: "name", SIZE: "size",
                TRUNCATE: "truncate", LOCK: "lock", POLL: "poll"}
NAMES: Final = {**OPERATIONS, **EXITS}
#: FSYNC: what the kernel calls fdatasync.
DATA_ONLY: Final = 1
#: Bytes of a struct sockaddr_in, where ACCEPT has it, with its length behind it.
ADDRESS_LEN: Final = 16
#: POLL: a socket's number and what it is to be ready for, or is. What is asked becomes what is answered.
READY: Final = struct.Struct("=iI")


@dataclass(frozen=True, slots=True)
class Submission:
    """What is asked for."""

    code: int
    descriptor: int
    offset: int
    address: int
    """Where the buffer is, as the host counts."""
    length: int
    flags: int
    tag: int

    def pack(self) -> bytes:
        """The 64 bytes that lie in the ring."""
        return _SUBMISSION.pack(self.code, 0, 0, self.descriptor, self.offset, self.address, self.length,
                                self.flags, self.tag)


def submission(data: bytes) -> Submission:
    """What :meth:`Submission.pack` made of it, for a host."""
    code, _flags, _priority, descriptor, offset, address, length, flags, tag = _SUBMISSION.unpack(data)
    return Submission(code, descriptor, offset, address, length, flags, tag)


@dataclass(frozen=True, slots=True)
class UringConfig:
    """Sizes of a ring's memories, computed here and believed of nobody."""

    entries: int = 256
    """Places for submissions, a power of two; for completions there are twice as many."""
    buffers: int = 256
    """An operation under way that has bytes has one of these."""
    buffer_size: int = 65_536
    """Bytes, a power of two: the most that an operation reads or writes."""

    @property
    def completions(self) -> int:
        """Places for completions. So many operations are under way at most: each has a place."""
        return 2 * self.entries

    def bytes_of(self, memory: str) -> int:
        """Bytes of a memory."""
        if memory == QUEUES:
            return COMPLETIONS.entries + self.completions * COMPLETION_LEN
        # The last buffer is the exits'.
        return self.entries * SUBMISSION_LEN if memory == ENTRIES else (self.buffers + 1) * self.buffer_size
