"""What callers and servers on streams have in common: one epoll for all their connections."""

from __future__ import annotations

import errno
import select
import socket
import time
from collections import Counter
from collections.abc import Callable

from smtstack.errors import ConfigError
from smtstack.socket import Address
from workloads.transports.contract import Transport
from workloads.transports.stream import Stream

#: Makes a connection of a connected socket, for one side; the handshake is :meth:`Stream.handshake`'s. The socket
#: is the stream's then. Raises StreamError.
StreamMaker = Callable[[socket.socket, Address], Stream]

#: epoll counts in milliseconds: too coarse below this for arrivals at high rates.
_COARSE_S = 0.002
#: select() looks at descriptors below this only.
_SELECT_LIMIT = 1024


class EpollTransport(Transport):
    """Watches, waits, counts. ``poll_ns``: busy-wait before blocking (0: never)."""

    def __init__(self, poll_ns: int) -> None:
        self._epoll = select.epoll()
        self._poll_ns = poll_ns
        self._streams: dict[int, Stream] = {}
        self._counters: Counter[str] = Counter()

    def fileno(self) -> int:
        return self._epoll.fileno()

    def next_wake(self) -> int | None:
        return None

    def watch(self, stream: Stream, events: int) -> None:
        if stream.watched != events:
            if stream.watched:
                self._epoll.modify(stream.fd, events)
            else:
                self._epoll.register(stream.fd, events)
                self._streams[stream.fd] = stream
            stream.watched = events

    def forget(self, stream: Stream) -> None:
        """Count it and close it."""
        if self._streams.pop(stream.fd, None) is not None:
            self._epoll.unregister(stream.fd)
            stream.watched = 0
        stream.count_into(self._counters)
        stream.close()

    def counters(self) -> dict[str, int]:
        counters = Counter(self._counters)
        for stream in self._streams.values():
            stream.count_into(counters)
        return {**counters, "connections": len(self._streams)}

    def close(self) -> None:
        for stream in list(self._streams.values()):
            self.forget(stream)
        self._epoll.close()


def wait(epoll: select.epoll, poll_ns: int, timeout_s: float) -> list[tuple[int, int]]:
    """Events, after a busy-wait of at most ``poll_ns``; [] if nothing has come in that time."""
    poll = epoll.poll
    if poll_ns:
        start = now = time.monotonic_ns()
        spin_until = start + min(poll_ns, int(timeout_s * 1e9))
        while now < spin_until:
            if events := poll(0):
                return events
            now = time.monotonic_ns()
        timeout_s -= (now - start) / 1e9
    if timeout_s >= _COARSE_S or epoll.fileno() >= _SELECT_LIMIT:
        return poll(timeout_s)
    if timeout_s > 0:
        select.select([epoll], [], [], timeout_s)
    return poll(0)


def address_error(error: OSError, local: Address) -> ConfigError:
    """Why ``local`` cannot be had, and the fix."""
    name = f"{local[0]}:{local[1]}"
    if error.errno == errno.EADDRINUSE:
        return ConfigError(f"{name} is in use by another socket; take another port")
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigError(f"{local[0]} is no address of this host")
    return ConfigError(f"{name}: {error.strerror}")
