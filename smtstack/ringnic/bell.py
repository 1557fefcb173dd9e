"""A page by which a guarded process and its monitor wake each other, and the host answers questions.

Nothing in it has to be true. Who sleeps says so, looks once more whether there is something to do, and then
sleeps: whoever makes something to do afterwards sees that he sleeps. A host that writes other things here makes us
sleep too long, or not at all; nobody sleeps longer than he wants to.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import struct
import threading
import time
from typing import Final

from smtstack.errors import Unsupported

# Linux <linux/futex.h>, <asm/unistd.h>
_SYS_FUTEX: Final = {"x86_64": 202}
_WAIT, _WAKE = 0, 1

#: Words of 32 bits: the guarded process sleeps (a futex); the monitor does; monitors that the control process had
#: to start again; packets that the host's kernel lost for want of a frame or of room, descriptors it refused.
GUARDED_SLEEPS: Final = 0
MONITOR_SLEEPS: Final = 16
RESTARTS: Final = 32
LOST: Final = 33
REFUSED: Final = 34
#: A question: its number, and the address whose next hop is wanted; the number of the last one answered, whether
#: there is such a neighbour, its MAC in two words.
QUESTION: Final = 48
_ADDRESS, _ANSWERED, _FOUND, _MAC = 49, 64, 65, 66
SIZE: Final = mmap.PAGESIZE


class Bell:
    """One side's access to the page."""

    def __init__(self, memory: mmap.mmap) -> None:
        number = _SYS_FUTEX.get(platform.machine())
        if number is None:
            # Where stores may be seen in another order, indices need fences, which Python has not.
            raise Unsupported(f"hosting=ring is not known to work on {platform.machine()}, only on "
                              f"{', '.join(_SYS_FUTEX)}; use hosting=inline")
        self._memory = memory
        self.words = memoryview(memory).cast("I")
        self._futex = number
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._word = ctypes.c_uint32.from_buffer(memory, 4 * GUARDED_SLEEPS)
        self._lock = threading.Lock()

    def fence(self) -> None:
        """What we wrote is seen by all before we read on: taking a lock is a full barrier on this machine."""
        with self._lock:
            pass

    def sleep(self, timeout_ns: int) -> None:
        """Until the monitor wakes us, at most this long; at once if it has since we said that we sleep."""
        time_spec = struct.pack("=qq", *divmod(timeout_ns, 1_000_000_000))
        self._call(self._futex, ctypes.byref(self._word), _WAIT, 1, time_spec, None, 0)

    def wake(self) -> None:
        """Wake the guarded process."""
        self.words[GUARDED_SLEEPS] = 0
        self._call(self._futex, ctypes.byref(self._word), _WAKE, 1, None, None, 0)

    def ask(self, address: int, bell: int, patience_s: float) -> bytes | None:
        """MAC of the next hop towards ``address``, by the host; ``bell``: an eventfd that it watches."""
        words = self.words
        number = (words[_ANSWERED] + 1) & 0xFFFFFFFF
        words[_ADDRESS], words[QUESTION] = address, number
        os.write(bell, (1).to_bytes(8, "little"))
        end = time.monotonic() + patience_s
        while words[_ANSWERED] != number:
            if time.monotonic() > end:
                return None
            time.sleep(0.0005)
        return struct.pack("=II", words[_MAC], words[_MAC + 1])[:6] if words[_FOUND] else None

    def question(self) -> int | None:
        """The address that is asked for; None: all is answered."""
        return self.words[_ADDRESS] if self.words[QUESTION] != self.words[_ANSWERED] else None

    def answer(self, mac: bytes | None) -> None:
        """Answer the question."""
        words = self.words
        if mac is not None:
            words[_MAC], words[_MAC + 1] = struct.unpack("=II", mac + bytes(2))
        words[_FOUND] = mac is not None
        words[_ANSWERED] = words[QUESTION]

    def close(self) -> None:
        """Unmap."""
        del self._word
        self.words.release()
        self._memory.close()
