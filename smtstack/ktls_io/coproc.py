"""Backends that are processes: ``coproc`` seals asynchronously, as a co-processor card behind a ring does (two
copies of every byte, and nothing of the application's processor time); ``openssl-noaesni`` is such a one whose
OpenSSL was told to do without the processor's AES.

What ``openssl-noaesni`` says of itself is measured when it starts: where masking has no effect, there is no such
backend.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from smtstack.errors import AuthError, Unsupported
from smtstack.ktls.params import KEY_LENGTHS
from smtstack.ktls.records import Buffer
from smtstack.ktls.session import Backend, OutRecord, Refused, TlsSession
from smtstack.ktls.stats import TlsStats
from smtstack.ktls_io.ring import DONE, FORGET, KEY, NOT_AUTHENTIC, OPEN, SEAL, SIZE, SLOTS, Descriptor, Ring

#: Masks AES-NI, PCLMULQDQ and what is built on them (OPENSSL_ia32cap(3)).
WITHOUT_AES: Final = {"OPENSSL_ia32cap": "~0x200000200000000:~0x60000000000"}
#: Masked, a record takes at least so many times as long, or the label is refused.
_LEAST_EFFECT: Final = 2.0
_PATIENCE_S: Final = 20.0
#: In the order of ciphers' numbers on the ring.
CIPHERS: Final = tuple(KEY_LENGTHS)


def seconds_a_record() -> float:
    """How long AES-128-GCM takes here for 16 KB: the best of some."""
    aead, data, best = AESGCM(bytes(16)), bytes(16_384), 1.0
    for _ in range(20):
        start = time.perf_counter()
        aead.encrypt(bytes(12), data, b"")
        best = min(best, time.perf_counter() - start)
    return best


@dataclass(slots=True)
class _Job:
    """A slot's worth, and what it is for."""

    what: Descriptor
    data: tuple[Buffer, ...]
    record: OutRecord | None = None
    answer: tuple[int, int, bytes] | None = None
    """(status, kind, data) of what was opened."""


class ProcessBackend(Backend):
    """Seals in a process of its own. One at a time uses it. ``stats`` counts it as a thread of kernel TLS."""

    name = "coproc"
    priority = 15
    asynchronous = True
    environment: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, stats: TlsStats | None = None) -> None:
        super().__init__()
        self._stats = stats
        self._bell, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        memory = os.memfd_create("ktls-ring")
        try:
            os.ftruncate(memory, SIZE)
            self._ring = Ring(memory)
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "smtstack.ktls_io.coproc_worker", str(memory), str(theirs.fileno())],
                pass_fds=(memory, theirs.fileno()), env={**os.environ, **self.environment})
        finally:
            os.close(memory)
            theirs.close()
        if stats is not None:
            stats.add("stats.threads")
        self._submitted = 0
        self._taken = 0
        self._next_key = 0
        #: In slots, and those that wait for one.
        self._running: deque[_Job] = deque()
        self._waiting: deque[_Job] = deque()
        self._bell.settimeout(_PATIENCE_S)
        #: Seconds that it needs for a record of AES-128-GCM.
        self.seconds_a_record = float(self._hear() or b"0")
        if not self.seconds_a_record:
            self.close()
            raise Unsupported(f"the process of backend {self.name} did not start")
        self._bell.setblocking(False)

    def attach(self, session: TlsSession) -> int:
        self._next_key += 1
        what = Descriptor(KEY, CIPHERS.index(session.cipher), 0, session.version, self._next_key, 0, 0, 0)
        key, iv = session.key, session.iv
        self._post(_Job(what._replace(length=len(key) + len(iv)), (key, iv)))
        return self._next_key

    def detach(self, handle: object) -> None:
        assert isinstance(handle, int)
        if self._process.poll() is None:
            self._post(_Job(Descriptor(FORGET, 0, 0, 0, handle, 0, 0, 0), ()))
            self.collect()

    def submit(self, records: Sequence[OutRecord]) -> None:
        if self._process.poll() is not None:
            raise Refused(f"the process of backend {self.name} has ended")
        for record in records:
            key = record.session.handle
            assert isinstance(key, int)
            what = Descriptor(SEAL, record.kind, 0, 0, key, record.number, record.explicit_nonce,
                              len(record.payload))
            self._waiting.append(_Job(what, (record.payload,), record))
        self._fill()

    def open_untrusted(self, session: TlsSession, number: int, record: Buffer) -> tuple[int, bytes]:
        assert isinstance(session.handle, int)
        job = _Job(Descriptor(OPEN, 0, 0, 0, session.handle, number, 0, len(record)), (bytes(record),))
        self._post(job)
        while job.answer is None:
            if not select.select([self._bell], [], [], _PATIENCE_S)[0]:
                raise Refused(f"the process of backend {self.name} does not answer")
            self.collect()
        status, kind, data = job.answer
        if status == NOT_AUTHENTIC:
            raise AuthError(f"record {number} does not authenticate")
        if status != DONE:
            raise Refused(f"the process of backend {self.name} could not open a record")
        return kind, data

    def fileno(self) -> int:
        return self._bell.fileno()

    def collect(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._hear():
                pass
        self._take()
        self._fill()
        if self._process.poll() is not None:
            for job in (*self._running, *self._waiting):
                if job.record is not None:
                    job.record.fail()
                job.answer = (NOT_AUTHENTIC + 1, 0, b"")
            self._running.clear()
            self._waiting.clear()

    def cpu_s(self) -> float:
        """Processor seconds that the process has used so far."""
        with open(f"/proc/{self._process.pid}/stat") as f:
            fields = f.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End the process."""
        self._bell.close()
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._ring.close()
        if self._stats is not None:
            self._stats.add("stats.threads", -1)

    def _post(self, job: _Job) -> None:
        self._waiting.append(job)
        self._fill()

    def _fill(self) -> None:
        """Into free slots what waits."""
        waiting, running = self._waiting, self._running
        if not waiting or len(running) == SLOTS:
            return
        while waiting and len(running) < SLOTS:
            job = waiting.popleft()
            self._ring.put(self._submitted, job.what, *job.data)
            self._submitted += 1
            running.append(job)
        self._ring.submit(self._submitted)
        # A full queue of doorbells is heard all the same.
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            self._bell.send(b"!")

    def _take(self) -> None:
        """Out of the slots what is done."""
        ready = self._ring.completed - self._taken & 0xFFFFFFFF
        for _ in range(min(ready, len(self._running))):
            job = self._running.popleft()
            what, data = self._ring.get(self._taken)
            self._taken += 1
            if job.record is not None:
                if what.status == DONE:
                    job.record.done([bytes(data)])
                else:
                    job.record.fail()
            else:
                job.answer = (what.status, what.kind, bytes(data) if what.operation == OPEN else b"")

    def _hear(self) -> bytes:
        try:
            return self._bell.recv(64)
        except ConnectionResetError:
            return b""


class Coprocessor(ProcessBackend):
    """``coproc``."""


class WithoutAesNi(ProcessBackend):
    """``openssl-noaesni``. Raises :class:`Unsupported` where masking has no effect."""

    name = "openssl-noaesni"
    priority = 1
    environment = WITHOUT_AES

    def __init__(self, stats: TlsStats | None = None) -> None:
        super().__init__(stats)
        ours = seconds_a_record()
        if self.seconds_a_record < _LEAST_EFFECT * ours:
            self.close()
            raise Unsupported(f"OPENSSL_ia32cap has no effect: with the processor's AES masked a record takes "
                              f"{self.seconds_a_record * 1e6:.1f} us, without {ours * 1e6:.1f} us; "
                              "openssl-noaesni would be a wrong name")


def open_backend(name: str, stats: TlsStats | None = None) -> ProcessBackend:
    """``coproc`` or ``openssl-noaesni``; raises :class:`Unsupported`."""
    return WithoutAesNi(stats) if name == WithoutAesNi.name else Coprocessor(stats)
