"""Each call an exit: what is asked is written into shared memory, another process does it, and we wait until it
has.

That is what a guarded process costs that leaves its enclave for each call. The change of process is real; what
entering and leaving an enclave costs beside it is not known here, and may be added as a busy wait that is a
parameter (``exit_ns``): a model, no measurement.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from smtstack.errors import SmtError, Unsupported
from smtstack.hostcalls.results import MAX_INTERRUPTED, NEIGHBOUR, RECEIVE, SEND, WAIT, Answer, HostLie, check
from smtstack.io.memory import sealed_memory
from smtstack.rings.memory import SharedMemory

#: Bytes of the longest packet or datagram.
ROOM: Final = 1 << 16
# Words by their bytes: the call, bytes, an address, a port, microseconds; then what the host says.
_CALL, _LENGTH, _ADDRESS, _PORT, _TIMEOUT = range(0, 20, 4)
_RESULT, _FROM, _FROM_PORT = range(64, 76, 4)
_DATA_AT: Final = 4096
SIZE: Final = _DATA_AT + ROOM
_SET_DEATH_SIGNAL, _SET_NAME = 1, 15
_NAME: Final = "host-calls"
_LONGEST_US: Final = 1_000_000
_MAC_LEN: Final = 6


class HostSocket(Protocol):
    """What the host has; raises OSError."""

    def send(self, data: bytes, address: int, port: int) -> int:
        """Bytes that went."""

    def receive(self, room: int) -> tuple[bytes, int, int]:
        """Something, and who sent it; BlockingIOError: there is nothing."""

    def wait(self, timeout_s: float) -> bool:
        """Until something is there."""

    def neighbour(self, address: int) -> bytes | None:
        """MAC of the next hop towards it."""


class HostCalls:
    """The guarded side. ``leave`` has the host do what is written, and comes back when it has; ``datagrams``:
    there are addresses. All results are checked (:mod:`~smtstack.hostcalls.results`)."""

    def __init__(self, memory: SharedMemory, leave: Callable[[], None], datagrams: bool, exit_ns: int = 0) -> None:
        self._memory = memory
        self._leave = leave
        self._datagrams = datagrams
        self._exit_ns = exit_ns
        self._interrupted = 0
        self.calls = self.refused = 0

    def send(self, data: bytes, address: int = 0, port: int = 0) -> int:
        """Send one packet. Raises OSError, :class:`HostLie`."""
        self._memory.write(_DATA_AT, data)
        return self._call(SEND, len(data), address, port)[0]

    def receive(self) -> tuple[bytes, int, int] | None:
        """The next packet, and who sent it, says the host; None: there is none, or it could not be had. Raises
        :class:`HostLie`."""
        try:
            length, answer = self._call(RECEIVE, ROOM)
        except OSError:
            return None
        return self._memory.copy(_DATA_AT, length), answer.address, answer.port

    def wait(self, timeout_ns: int) -> None:
        """Until something is there, or so long, says the host. Raises :class:`HostLie`."""
        with suppress(OSError):
            self._call(WAIT, 0, timeout_us=min(-(-timeout_ns // 1000), _LONGEST_US))

    def neighbour(self, address: int) -> bytes | None:
        """MAC of the next hop towards ``address``, says the host; None: nobody knows. Raises :class:`HostLie`."""
        try:
            length, _answer = self._call(NEIGHBOUR, _MAC_LEN, address)
        except OSError:
            return None
        return self._memory.copy(_DATA_AT, length)

    def _call(self, call: int, length: int, address: int = 0, port: int = 0,
              timeout_us: int = 0) -> tuple[int, Answer]:
        memory = self._memory
        for at, value in ((_CALL, call), (_LENGTH, length), (_ADDRESS, address), (_PORT, port),
                          (_TIMEOUT, timeout_us)):
            memory.store(at, value)
        self.calls += 1
        self._leave()
        if self._exit_ns:
            end = time.perf_counter_ns() + self._exit_ns
            while time.perf_counter_ns() < end:
                pass
        result = memory.load(_RESULT)
        answer = Answer(result - (1 << 32) if result >> 31 else result, memory.load(_FROM),
                        memory.load(_FROM_PORT))
        try:
            checked = check(call, length, answer, self._datagrams)
        except HostLie:
            self.refused += 1
            raise
        except InterruptedError:
            self._interrupted += 1
            if self._interrupted > MAX_INTERRUPTED:
                self.refused += 1
                raise HostLie(f"the host says {self._interrupted} times that we were interrupted") from None
            raise
        self._interrupted = 0
        return checked, answer

    def counters(self) -> dict[str, int]:
        """How often we left, and what was refused."""
        return {"ocalls": self.calls, "ocall_refused": self.refused}


class HostProcess:
    """The host's side, a process of its own, with ``make``'s socket; ends with this one, or by :meth:`close`.
    Raises :class:`Unsupported` if it did not start."""

    def __init__(self, make: Callable[[], HostSocket], datagrams: bool, exit_ns: int = 0) -> None:
        descriptor, self._mapping = sealed_memory("smtnet-calls", SIZE)
        os.close(descriptor)
        ask, self._asks = os.pipe2(os.O_CLOEXEC)
        self._answers, answer = os.pipe2(os.O_CLOEXEC)
        ours = os.getpid()
        self.pid = os.fork()
        if not self.pid:
            try:
                os.close(self._asks)
                os.close(self._answers)
                become(ours, _NAME)
                with suppress(OSError, SmtError):
                    _serve(make(), self._mapping, ask, answer)
            finally:
                os._exit(1)
        os.close(ask)
        os.close(answer)
        self._memory = SharedMemory("calls", self._mapping)
        self.calls = HostCalls(self._memory, self._leave, datagrams, exit_ns)
        try:
            self.calls.wait(0)
        except SmtError:
            self.close()
            raise

    def _leave(self) -> None:
        # It may be gone.
        with suppress(BrokenPipeError):
            os.write(self._asks, b"!")
        if not os.read(self._answers, 1):
            raise Unsupported("the host's process, which makes our calls, has ended")

    def close(self) -> None:
        """End it."""
        if self.pid:
            end(self.pid)
            self.pid = 0
            os.close(self._asks)
            os.close(self._answers)
            self._memory.release()
            self._mapping.close()


def become(parent: int, name: str) -> None:
    """Give this forked process a name; it ends with its parent."""
    libc = ctypes.CDLL(None)
    libc.prctl(_SET_NAME, name.encode(), 0, 0, 0)
    libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def end(pid: int) -> None:
    """End a process that we have forked."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _serve(sock: HostSocket, mapping: mmap.mmap, ask: int, answer: int) -> None:
    while os.read(ask, 1):
        call, length, address, port, timeout_us = struct.unpack_from("=5I", mapping)
        source = [0, 0]
        try:
            if call == SEND:
                result = sock.send(mapping[_DATA_AT:_DATA_AT + length], address, port)
            elif call == RECEIVE:
                data, *source = sock.receive(length)
                mapping[_DATA_AT:_DATA_AT + len(data)] = data
                result = len(data)
            elif call == NEIGHBOUR:
                mac = sock.neighbour(address)
                result = -errno.EHOSTUNREACH if mac is None else _MAC_LEN
                mapping[_DATA_AT:_DATA_AT + _MAC_LEN] = mac or bytes(_MAC_LEN)
            else:
                result = int(sock.wait(timeout_us / 1e6))
        except OSError as e:
            result = -(e.errno or 1)
        struct.pack_into("=iII", mapping, _RESULT, result, *source)
        os.write(answer, b"!")
