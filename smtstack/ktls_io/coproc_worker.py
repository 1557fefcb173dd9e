"""The process of :mod:`smtstack.ktls_io.coproc`: ``python -m smtstack.ktls_io.coproc_worker MEMORY SOCKET``, both
inherited descriptors. Works off the ring; ends when the socket does."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys

from smtstack.errors import AuthError
from smtstack.ktls.records import RecordAead
from smtstack.ktls_io.coproc import CIPHERS, seconds_a_record
from smtstack.ktls_io.ring import DONE, FAILED, FORGET, KEY, NOT_AUTHENTIC, OPEN, SEAL, Descriptor, Ring


class Worker:
    """``keys``: by the application's numbers."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._done = 0
        self.keys: dict[int, RecordAead] = {}

    def work(self) -> bool:
        """All that is submitted; whether that was anything."""
        ring = self._ring
        left = ring.submitted - self._done & 0xFFFFFFFF
        for _ in range(left):
            what, data = ring.get(self._done)
            self._one(what, data)
            data.release()
            self._done += 1
            ring.complete(self._done)
        return bool(left)

    def _one(self, what: Descriptor, data: memoryview) -> None:
        out: tuple[bytes, ...] = ()
        status, kind = DONE, what.kind
        try:
            if what.operation == KEY:
                cipher = CIPHERS[what.kind]
                iv_len = 4 if what.version == 0x0303 and cipher.endswith("-gcm") else 12
                secret = bytes(data)
                self.keys[what.key] = RecordAead(what.version, cipher, secret[:-iv_len], secret[-iv_len:])
                # No longer where both can read it.
                data[:] = bytes(len(data))
            elif what.operation == FORGET:
                self.keys.pop(what.key, None)
            elif what.operation == SEAL:
                out = self.keys[what.key].seal(what.number, what.kind, bytes(data), what.explicit_nonce)
            elif what.operation == OPEN:
                kind, opened = self.keys[what.key].open_untrusted(what.number, bytes(data))
                out = (opened,)
        except AuthError:
            status = NOT_AUTHENTIC
        except (KeyError, ValueError, OverflowError):
            status = FAILED
        self._ring.put(self._done, what._replace(status=status, kind=kind, length=sum(map(len, out))), *out)


def main() -> int:
    """Until the application's socket ends."""
    memory, descriptor = map(int, sys.argv[1:3])
    # It ends with its application, not before it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = Worker(Ring(memory))
    # An application that goes leaves doorbells unread: that is an end like any other.
    with socket.socket(fileno=descriptor) as bell, contextlib.suppress(ConnectionError):
        bell.send(f"{seconds_a_record():.9f}".encode())
        while bell.recv(64):
            if worker.work():
                with contextlib.suppress(BlockingIOError):
                    bell.send(b"!", socket.MSG_DONTWAIT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
