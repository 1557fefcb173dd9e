"""What callers and servers on streams have in common: one epoll for all their connections."""

from __future__ import annotations

import errno
import select
import socket
import time
from collections import Counter
from collections.abc import Callable

from smtstack.errors import ConfigError
from smtstack.io.processors import outnumbered
from smtstack.ringio.queue import IoRing
from smtstack.ringio.sockets import Poller
from smtstack.socket import Address
from smtstack.waiting import STALL_NS, Waiter, Waiting
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
    """Watches, waits, counts. ``ring``: whose sockets they are, if not the kernel's of this process."""

    def __init__(self, waiting: Waiting, ring: IoRing | None = None) -> None:
        self._epoll: select.epoll | Poller = select.epoll() if ring is None else Poller(ring)
        self._waiter = Waiter(waiting, outnumbered)
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


def wait(epoll: select.epoll | Poller, waiter: Waiter, timeout_s: float) -> list[tuple[int, int]]:
    """Events; [] if nothing has come in that time. Looks for them as long as ``waiter`` says, then sleeps."""
    if isinstance(epoll, Poller):
        # The ring has a way to wait of its own.
        return epoll.poll(timeout_s)
    if not waiter.looks:
        return _sleep(epoll, timeout_s)
    poll = epoll.poll
    now = time.monotonic_ns()
    end = now + int(timeout_s * 1e9)
    until = min(waiter.begin(now), end)
    events: list[tuple[int, int]] = []
    while now < until and not events:
        events = poll(0)
        at = time.monotonic_ns()
        if at - now > STALL_NS and not events:
            waiter.stalled()
            until = at
        now = at
    if not events and now < end:
        events = _sleep(epoll, (end - now) / 1e9)
        now = time.monotonic_ns()
    waiter.end(now, bool(events))
    return events


def _sleep(epoll: select.epoll, timeout_s: float) -> list[tuple[int, int]]:
    if timeout_s >= _COARSE_S or epoll.fileno() >= _SELECT_LIMIT:
        return epoll.poll(timeout_s)
    if timeout_s > 0:
        select.select([epoll], [], [], timeout_s)
    return epoll.poll(0)


def address_error(error: OSError, local: Address) -> ConfigError:
    """Why ``local`` cannot be had, and the fix."""
    name = f"{local[0]}:{local[1]}"
    if error.errno == errno.EADDRINUSE:
        return ConfigError(f"{name} is in use by another socket; take another port")
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigError(f"{local[0]} is no address of this host")
    return ConfigError(f"{name}: {error.strerror}")
