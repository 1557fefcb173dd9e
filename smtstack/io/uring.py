"""io_uring(7): queues of operations that a process shares with the kernel, in memory of its own.

The memory is one that others may have, too (IORING_SETUP_NO_MMAP, Linux 6.5): the kernel sends no descriptor of an
io_uring to another process.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import struct
from typing import Final

from smtstack.errors import Unsupported
from smtstack.io.memory import address_of
from smtstack.rings.uring_layout import COMPLETIONS, SUBMISSIONS, UringConfig

# Linux <linux/io_uring.h>, <asm/unistd.h>
_SYS_SETUP: Final = {"x86_64": 425}
_SYS_ENTER: Final = {"x86_64": 426}
_COMPLETION_SIZE, _NO_MMAP, _NO_ARRAY = 1 << 3, 1 << 14, 1 << 16
_GET_EVENTS: Final = 1
#: struct io_uring_params: 10 words, then offsets in the submission queue (8 words, an address) and the completion
#: queue (alike).
_PARAMS_LEN: Final = 120
_SUBMISSION_OFFSETS, _COMPLETION_OFFSETS = 40, 80
_ADDRESS_IN_OFFSETS: Final = 32


class Uring:
    """A ring of the kernel in ``queues`` and ``entries``. Raises :class:`Unsupported` where there is none."""

    def __init__(self, queues: mmap.mmap, entries: mmap.mmap, config: UringConfig) -> None:
        machine = platform.machine()
        if machine not in _SYS_SETUP:
            raise Unsupported(f"io_uring: not known on {machine}, only on {', '.join(_SYS_SETUP)}")
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._enter = _SYS_ENTER[machine]
        params = bytearray(_PARAMS_LEN)
        struct.pack_into("=III", params, 0, 0, config.completions, _COMPLETION_SIZE | _NO_MMAP | _NO_ARRAY)
        for where, memory in ((_SUBMISSION_OFFSETS, entries), (_COMPLETION_OFFSETS, queues)):
            struct.pack_into("=Q", params, where + _ADDRESS_IN_OFFSETS, address_of(memory))
        shared = (ctypes.c_char * _PARAMS_LEN).from_buffer(params)
        self._descriptor: int = self._call(_SYS_SETUP[machine], config.entries, shared)
        if self._descriptor < 0:
            number = ctypes.get_errno()
            raise Unsupported(f"io_uring: {os.strerror(number)}" + (
                "; rings in memory of ours need Linux 6.5" if number == errno.EINVAL else ""))
        #: Where the kernel says that indices and entries are.
        self.offsets = (*struct.unpack_from("=II", params, _SUBMISSION_OFFSETS),
                        *struct.unpack_from("=II", params, _COMPLETION_OFFSETS),
                        struct.unpack_from("=I", params, _COMPLETION_OFFSETS + 20)[0])
        if self.offsets != EXPECTED_OFFSETS:
            self.close()
            raise Unsupported("io_uring: this kernel lays its rings out in another way")

    def fileno(self) -> int:
        """The ring's descriptor: readable when something is complete."""
        return self._descriptor

    def enter(self, count: int) -> int:
        """Have the kernel take so many submissions; how many it took. Raises OSError."""
        taken: int = self._call(self._enter, self._descriptor, count, 0, _GET_EVENTS, None, 0)
        if taken < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return taken

    def close(self) -> None:
        """Give it up; what is under way is cancelled."""
        os.close(self._descriptor)


#: Heads and tails of both queues, and where completions begin.
EXPECTED_OFFSETS: Final = (SUBMISSIONS.consumer, SUBMISSIONS.producer, COMPLETIONS.consumer, COMPLETIONS.producer,
                           COMPLETIONS.entries)
