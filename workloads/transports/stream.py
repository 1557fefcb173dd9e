"""One non-blocking TCP connection; tls.py and ktls.py make encrypted ones of it."""

from __future__ import annotations

import socket
import struct
from collections import Counter, deque
from collections.abc import Callable

from smtstack.errors import PeerError
from smtstack.socket import Address
from workloads.transports.contract import Call
from workloads.transports.framing import Inbox

#: Bytes asked of the kernel at a time.
CHUNK = 65_536
#: Offsets in ``struct tcp_info`` (linux/tcp.h), which has grown at its end only.
_TCP_INFO = {"tcp_retransmits": ("=I", 100), "tcp_bytes_acked": ("=Q", 120), "tcp_bytes_received": ("=Q", 128),
             "tcp_segments_sent": ("=I", 136), "tcp_segments_received": ("=I", 140)}
_TCP_INFO_LEN = 144


class StreamError(PeerError):
    """A connection is of no use any more."""


class Stream:
    """A connection and the calls, or answers, that are on it. ``peer`` is for messages to people."""

    __slots__ = ("_empty", "_full", "_get", "_put", "backlog", "fd", "inbox", "peer", "peer_index", "pending",
                 "ready", "sock", "watched", "writing")

    def __init__(self, sock: socket.socket, peer: Address, limit: int) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.fd = sock.fileno()
        self.peer = peer
        self.peer_index = 0
        self.inbox = Inbox(limit)
        #: How bytes come and go, and what is raised if none can now. Bound once, for every message.
        self._get: Callable[[int], bytes] = sock.recv
        self._put: Callable[[bytes | memoryview], int] = sock.send
        self._empty: type[OSError] = BlockingIOError
        self._full: type[OSError] = BlockingIOError
        #: Bytes that :attr:`writing` holds.
        self.backlog = 0
        #: What the kernel would not take yet, in order.
        self.writing: deque[bytes | memoryview] = deque()
        #: Client: calls by id; None for one that was given up, whose answer may still come.
        self.pending: dict[int, Call | None] = {}
        #: Whether the handshake is over.
        self.ready = False
        #: The epoll events asked for; 0: none any more.
        self.watched = 0

    def handshake(self) -> bool:
        """Go on with it; whether it is over. Raises :class:`StreamError`. Plain TCP has none."""
        return True

    def reason(self, error: OSError) -> str:
        """For people."""
        return error.strerror or str(error)

    def receive(self) -> bytes | None:
        """What has come; None if nothing has, b"" at the end. Raises :class:`StreamError`."""
        try:
            return self._get(CHUNK)
        except self._empty:
            return None
        except OSError as e:
            raise StreamError(self.reason(e)) from None

    def send(self, data: bytes | memoryview) -> bool:
        """Send now, or keep it for :meth:`flush`; whether all is gone. Raises :class:`StreamError`."""
        if not self.writing:
            taken = self._offer(data)
            if taken == len(data):
                return True
            if taken:
                # Never what is left of a long one again and again.
                data = memoryview(data)[taken:]
        self.writing.append(data)
        self.backlog += len(data)
        return False

    def flush(self) -> bool:
        """Send what was kept; whether all is gone. Raises :class:`StreamError`."""
        writing = self.writing
        while writing:
            data = writing[0]
            taken = self._offer(data)
            self.backlog -= taken
            if taken < len(data):
                if taken:
                    writing[0] = memoryview(data)[taken:]
                return False
            writing.popleft()
        return True

    def _offer(self, data: bytes | memoryview) -> int:
        """Bytes that were taken, perhaps 0."""
        try:
            return self._put(data)
        except self._full:
            return 0
        except OSError as e:
            raise StreamError(self.reason(e)) from None

    def finish(self) -> None:
        """No more of ours will go; the peer is told. Raises OSError."""
        if isinstance(self.sock, socket.socket):
            # Not of the class of TLS, which would not read any more.
            socket.socket.shutdown(self.sock, socket.SHUT_WR)
        else:
            self.sock.shutdown(socket.SHUT_WR)

    def count_into(self, counters: Counter[str]) -> None:
        """Add what the kernel has counted of this connection."""
        info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_LEN)
        for name, (form, offset) in _TCP_INFO.items():
            if len(info) >= offset + struct.calcsize(form):
                counters[name] += struct.unpack_from(form, info, offset)[0]

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()
