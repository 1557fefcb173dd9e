"""TCP of the host's, by a ring: what ``socket`` has for connections of our own.

A connection always has a RECV under way, and at most one SEND; so what is to be had at once can be had without
waiting, as from a socket that does not block, and who waits does so by the ring. Who looks after many has a
:class:`Poller`, in the place of an epoll. Where everything is done by exits, each call is one.
"""

from __future__ import annotations

import errno
import math
import select
import socket
import time
from collections import deque
from contextlib import suppress
from functools import partial
from typing import Final, Protocol

from smtstack.errors import ConfigError
from smtstack.ringio.calls import LONGEST_POLL_MS, pack_address, unpack_address
from smtstack.ringio.queue import MOST_AGAIN, HostRefused, IoRing, check
from smtstack.rings.uring import Completion
from smtstack.rings.uring_layout import (
    ACCEPT,
    CLOSE,
    CONNECT,
    LISTEN,
    NAME,
    POLL,
    READY,
    RECV,
    SEND,
    SHUTDOWN,
    SOCKET,
)

Address = tuple[str, int]
_IN, _OUT, _HUP, _ERR, _RDHUP = (select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP, select.EPOLLERR,
                                 select.EPOLLRDHUP)
_NONE: Final = ("0.0.0.0", 0)  # noqa: S104 - no address: the kernel chooses
#: Connections that wait to be accepted, of those that the kernel has.
_ACCEPTS: Final = 4
#: A socket that blocks waits so long, in seconds, for what it sent to be with the host's kernel when it is closed.
_CLOSING_S: Final = 2.0
_AGAIN: Final = (errno.EAGAIN, errno.EINTR)


class Watched:
    """What a :class:`Poller` looks after."""

    def __init__(self, ring: IoRing, descriptor: int) -> None:
        self.ring = ring
        self.descriptor = descriptor
        #: Seconds to wait; None: for ever; 0: not at all.
        self._timeout: float | None = None
        self._closed = self._gone = False
        #: Operations of ours that the host has.
        self._under_way = 0
        ring.sockets[descriptor] = self

    def fileno(self) -> int:
        """The host's number for it; no descriptor of this process."""
        return -1 if self._closed else self.descriptor

    def settimeout(self, timeout_s: float | None) -> None:
        """How long operations wait; 0: not at all, None: for ever."""
        self._timeout = timeout_s

    def setblocking(self, blocking: bool) -> None:
        """For ever, or not at all."""
        self._timeout = None if blocking else 0.0

    def readiness(self) -> int:
        """What could be done without waiting, as epoll says it."""
        raise NotImplementedError

    def arm(self) -> None:
        """Ask the host for what comes next."""
        raise NotImplementedError

    def _flags(self) -> int:
        """For an exit: whether the host's kernel may wait."""
        return socket.MSG_DONTWAIT if self._timeout == 0 else 0

    def getsockname(self) -> Address:
        """Our address. By an exit."""
        return unpack_address(self.ring.call(NAME, self.descriptor).data)

    def _wait(self, what: int) -> None:
        """Until ``what`` can be done. Raises BlockingIOError, TimeoutError."""
        if self.readiness() & what:
            return
        if self._timeout == 0:
            raise BlockingIOError(errno.EAGAIN, "nothing can be done now")
        if not self.ring.until(lambda: bool(self.readiness() & what), self._timeout):
            raise TimeoutError(errno.ETIMEDOUT, f"nothing within {self._timeout} s")

    def _begun(self, begun: int) -> bool:
        self._under_way += bool(begun)
        return bool(begun)

    def _ended(self) -> None:
        """An operation of ours is over."""
        self._under_way -= 1
        if self._closed:
            self._go_on_closing()
        else:
            self.ring.changed.add(self)

    def close(self) -> None:
        """Close it, once what was sent is with the host's kernel; may be called twice."""
        if self._closed:
            return
        self._closed = True
        ring = self.ring
        ring.changed.discard(self)
        ring.sockets.pop(self.descriptor, None)
        self._go_on_closing()
        if self._timeout != 0:
            # Else the next turn of who looks after many sees to it.
            ring.until(lambda: self._gone, _CLOSING_S)
        ring.flush()

    def _go_on_closing(self) -> None:
        raise NotImplementedError

    def _close_now(self) -> None:
        if self.ring.exits:
            with suppress(OSError):
                self.ring.call(CLOSE, self.descriptor)
        elif not self.ring.begin(CLOSE, self.descriptor, _ignore):
            self.ring.later.append(self._close_now)
            return
        self._gone = True

    def _end_now(self) -> None:
        # A number of bytes in place of how to shut down: 0 reading, 1 writing, 2 both.
        if not self.ring.begin(SHUTDOWN, self.descriptor, _ignore, length=socket.SHUT_RDWR):
            self.ring.later.append(self._end_now)

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class ProxySocket(Watched):
    """A connection: made by :func:`connect`, or accepted. It has TCP_NODELAY."""

    def __init__(self, ring: IoRing, descriptor: int, peer: Address) -> None:
        super().__init__(ring, descriptor)
        self.peer = peer
        self._came = b""
        self._ended_by_peer = False
        self._failed: OSError | None = None
        self._receiving = False
        #: How often, one after the other, the host said that it was interrupted.
        self._interrupted = 0
        #: What is being sent.
        self._leaving = b""
        self._shut = False
        #: How to shut it down when all is sent.
        self._shut_later: int | None = None

    def getpeername(self) -> Address:
        """The peer's address, as the host said."""
        return self.peer

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """TCP_NODELAY, which it has. Raises :class:`ConfigError` for others."""
        if (level, option, value) != (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1):
            raise ConfigError(f"a socket of the host's has no option {level}, {option} here")

    def getsockopt(self, _level: int, _option: int, _size: int = 0) -> bytes:
        """Nothing: who asks the kernel of TCP asks the host."""
        return b""

    def readiness(self) -> int:
        ready = 0
        if self._came or self._ended_by_peer or self._failed:
            ready |= _IN
        if not self._leaving or self._failed:
            ready |= _OUT
        if self._ended_by_peer:
            ready |= _RDHUP
        return ready | (_ERR if self._failed else 0)

    # -- receiving -----------------------------------------------------------------------------------------

    def arm(self) -> None:
        ring = self.ring
        if self._receiving or self._came or self._ended_by_peer or self._failed or self._closed:
            return
        if self._begun(ring.begin(RECV, self.descriptor, self._received, ring.buffer_size)):
            self._receiving = True
        else:
            ring.later.append(self.arm)

    def _received(self, completion: Completion) -> None:
        self._receiving = False
        self._came = completion.data
        try:
            check(RECV, completion)
            self._ended_by_peer = not completion.data
            self._interrupted = 0
        except OSError as e:
            self._failed = self._failure(e)
            self.arm()
        self._ended()

    def _failure(self, error: OSError) -> OSError | None:
        """What is to be said of an error; None: it is tried again."""
        if error.errno not in _AGAIN or isinstance(error, HostRefused):
            return error
        self._interrupted += 1
        if self._interrupted < MOST_AGAIN:
            return None
        return HostRefused(errno.EIO, f"interrupted {MOST_AGAIN} times")

    def recv(self, size: int) -> bytes:
        """What has come, at most ``size`` bytes; b"" at the end. Raises OSError."""
        ring = self.ring
        if ring.exits:
            return ring.call(RECV, self.descriptor, min(size, ring.buffer_size), flags=self._flags()).data
        self.arm()
        self._wait(_IN)
        came = self._came
        if came:
            self._came = came[size:]
            self.arm()
            return came[:size] if len(came) > size else came
        if self._failed:
            raise self._failed
        return b""

    def unread(self, data: bytes) -> None:
        """Have these bytes come again, before all others."""
        if data:
            self._came = data + self._came
            self.ring.changed.add(self)

    # -- sending -------------------------------------------------------------------------------------------

    def is_sending(self) -> bool:
        """Whether something of ours is on its way to the host's kernel; else a buffer's worth can be sent."""
        return bool(self._leaving)

    def send(self, data: bytes | memoryview) -> int:
        """Send as much as fits a buffer; how much. It leaves while we go on: what became of it, the next one says.
        Raises OSError."""
        if self._closed:
            raise OSError(errno.EBADF, "it is closed")
        ring = self.ring
        if ring.exits:
            return ring.call(SEND, self.descriptor, data=bytes(data[:ring.buffer_size]),
                             flags=self._flags()).result
        self._wait(_OUT)
        if self._failed:
            raise self._failed
        self._leaving = bytes(data[:ring.buffer_size])
        size = len(self._leaving)
        if size:
            ring.going_out += 1
            self._send_rest()
            if self._timeout != 0:
                ring.flush()
        return size

    def sendall(self, data: bytes | memoryview) -> None:
        """All of it. Raises OSError."""
        at = 0
        while at < len(data):
            at += self.send(data[at:])

    def _send_rest(self) -> None:
        if self._failed:
            self._leaving = b""
            self.ring.going_out -= 1
        elif not self._begun(self.ring.begin(SEND, self.descriptor, self._sent, data=self._leaving,
                                             flags=socket.MSG_NOSIGNAL)):
            self.ring.later.append(self._send_rest)

    def _sent(self, completion: Completion) -> None:
        try:
            check(SEND, completion)
            self._leaving = self._leaving[completion.result:]
            self._interrupted = 0
        except OSError as e:
            self._failed = self._failure(e)
        if self._leaving and not self._failed:
            self._send_rest()
        else:
            self._leaving = b""
            self.ring.going_out -= 1
            if self._shut_later is not None and not self._closed:
                self.shutdown(self._shut_later)
        self._ended()

    # -- the end -------------------------------------------------------------------------------------------

    def shutdown(self, how: int) -> None:
        """No more of ours (SHUT_WR), or of theirs, or of both, once what was sent is with the host's kernel."""
        if self.ring.exits:
            self.ring.call(SHUTDOWN, self.descriptor, how)
        elif self._leaving and not self._failed:
            self._shut_later = how
        elif not self._begun(self.ring.begin(SHUTDOWN, self.descriptor, self._was_shut, length=how)):
            self.ring.later.append(partial(self.shutdown, how))
        elif self._timeout != 0:
            self.ring.flush()

    def _was_shut(self, _completion: Completion) -> None:
        # A connection that is gone already: whoever reads will know.
        self._ended()

    def _go_on_closing(self) -> None:
        # First what was sent; then, as a RECV under way would keep it open, that is brought to its end.
        if self._leaving and not self._failed:
            return
        if self._under_way and not self._shut:
            self._shut = True
            self._end_now()
        elif not self._under_way:
            self._close_now()


class ProxyListener(Watched):
    """A socket that listens. Raises OSError."""

    def __init__(self, ring: IoRing, local: Address) -> None:
        """At ``local``; port 0: the host's kernel chooses. By an exit."""
        super().__init__(ring, ring.call(LISTEN, -1, data=pack_address(*local)).result)
        self._came: deque[tuple[int, Address]] = deque()
        self._failed: OSError | None = None
        self._shut = False

    def readiness(self) -> int:
        return _IN if self._came or self._failed else 0

    def arm(self) -> None:
        while not self._closed and self._under_way + len(self._came) < _ACCEPTS:
            if not self._begun(self.ring.begin(ACCEPT, self.descriptor, self._accepted)):
                if not self._under_way:
                    self.ring.later.append(self.arm)
                return

    def _accepted(self, completion: Completion) -> None:
        try:
            check(ACCEPT, completion)
            self._came.append((completion.result, unpack_address(completion.data)))
        except OSError as e:
            if e.errno not in (*_AGAIN, errno.ECONNABORTED) or completion.refused:
                self._failed = e
        self._ended()

    def accept(self) -> tuple[ProxySocket, Address]:
        """The next connection, and its peer's address, as the host says. Raises OSError."""
        if self.ring.exits:
            made = self.ring.call(ACCEPT, self.descriptor, flags=self._flags())
            return ProxySocket(self.ring, made.result, unpack_address(made.data)), unpack_address(made.data)
        self.arm()
        self._wait(_IN)
        if self._came:
            descriptor, peer = self._came.popleft()
            self.arm()
            return ProxySocket(self.ring, descriptor, peer), peer
        failed, self._failed = self._failed, None
        assert failed is not None
        self.arm()
        raise failed

    def _go_on_closing(self) -> None:
        while self._came:
            ProxySocket(self.ring, *self._came.popleft()).close()
        if self._under_way and not self._shut:
            self._shut = True
            self._end_now()
        elif not self._under_way:
            self._close_now()


def _ignore(_completion: Completion) -> None:
    """Nothing depends on it."""


def connect(ring: IoRing, peer: Address, local: Address = _NONE, timeout_s: float | None = None) -> ProxySocket:
    """A connection to ``peer``. Raises OSError."""
    descriptor = ring.call(SOCKET, -1, data=pack_address(*local)).result
    if ring.exits:
        ring.call(CONNECT, descriptor, data=pack_address(*peer))
        return ProxySocket(ring, descriptor, peer)
    done: list[Completion] = []
    tag = ring.begin(CONNECT, descriptor, done.append, data=pack_address(*peer))
    try:
        if not tag:
            raise HostRefused(errno.EIO, "connect: the ring is full")
        if not ring.until(lambda: bool(done), timeout_s):
            ring.give_up(tag)
            raise TimeoutError(errno.ETIMEDOUT, f"no connection to {peer[0]}:{peer[1]} within {timeout_s} s")
        check(CONNECT, done[0])
    except OSError:
        ring.call(CLOSE, descriptor)
        raise
    return ProxySocket(ring, descriptor, peer)


class HasNumber(Protocol):
    """A socket."""

    def fileno(self) -> int:
        """The host's number for the socket: a name, no descriptor of this process."""


class Poller:
    """Looks after sockets of a ring as an epoll does after those of this process: by their ``fileno()``, for
    events of epoll's names, level-triggered. Where everything is done by exits, a look at all is one."""

    def __init__(self, ring: IoRing) -> None:
        self._ring = ring
        self._wanted: dict[int, int] = {}

    def fileno(self) -> int:
        """None: nobody else can wait for it."""
        return -1

    def register(self, watched: HasNumber | int, events: int) -> None:
        """Look after it."""
        self.modify(watched, events)

    def modify(self, watched: HasNumber | int, events: int) -> None:
        """For other events from now on."""
        descriptor = watched if isinstance(watched, int) else watched.fileno()
        self._wanted[descriptor] = events
        if self._ring.exits:
            return
        socket_ = self._ring.sockets[descriptor]
        socket_.arm()
        self._ring.changed.add(socket_)

    def unregister(self, watched: HasNumber | int) -> None:
        """No more."""
        self._wanted.pop(watched if isinstance(watched, int) else watched.fileno(), None)

    def poll(self, timeout_s: float | None = None) -> list[tuple[int, int]]:
        """(number, events) of those of which something can be had, after so long at the latest; None: for ever."""
        ring = self._ring
        if ring.exits:
            return self._ask(timeout_s)
        ring.turn()
        events = self._ready()
        ring.flush()
        if events or timeout_s == 0:
            return events
        end = None if timeout_s is None or timeout_s < 0 else time.monotonic() + timeout_s
        while not events:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                break
            ring.until(self._any, left)
            events = self._ready()
        return events

    def _ask(self, timeout_s: float | None) -> list[tuple[int, int]]:
        """By exits. What the host says of others than it was asked about is not believed, and counted."""
        ring, wanted = self._ring, self._wanted
        end = None if timeout_s is None or timeout_s < 0 else time.monotonic() + timeout_s
        asked = b"".join(READY.pack(*each) for each in wanted.items())
        while True:
            left_ms = LONGEST_POLL_MS if end is None else max(0, math.ceil((end - time.monotonic()) * 1000))
            said = ring.call(POLL, -1, data=asked, offset=min(left_ms, LONGEST_POLL_MS)).data
            events = [(descriptor, mask) for descriptor, said_mask in READY.iter_unpack(said)
                      if (mask := said_mask & (wanted[descriptor] | _ERR | _HUP if descriptor in wanted else 0))]
            ring.uring.results_refused += len(said) // READY.size - len(events)
            if events or (left_ms <= LONGEST_POLL_MS and end is not None):
                return events

    def _any(self) -> bool:
        return bool(self._ring.changed)

    def _ready(self) -> list[tuple[int, int]]:
        changed, wanted = self._ring.changed, self._wanted
        events = []
        for watched in list(changed):
            mask = watched.readiness() & (wanted.get(watched.descriptor, 0) | _ERR | _HUP)
            if mask and watched.descriptor in wanted:
                events.append((watched.descriptor, mask))
            else:
                changed.discard(watched)
        return events

    def close(self) -> None:
        """Nothing is looked after any more."""
        self._wanted.clear()
