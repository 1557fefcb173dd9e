"""tcp, tls and ktls under the contract, the server."""

from __future__ import annotations

import resource
import select
import socket
import time
from dataclasses import dataclass
from typing import cast

from smtstack.errors import ConfigError
from smtstack.ringio.queue import IoRing
from smtstack.ringio.sockets import ProxyListener
from smtstack.socket import Address
from smtstack.waiting import AS_TCP, Waiting
from workloads.transports.contract import Handler, Server
from workloads.transports.epoll import EpollTransport, StreamMaker, address_error, wait
from workloads.transports.framing import FramingError, frame
from workloads.transports.stream import Stream, StreamError

#: A server reads no further requests from a client that leaves so many bytes of answers unread.
MAX_BACKLOG = 4 << 20
#: File descriptors a server keeps for other things than connections.
_SPARE_FILES = 64
_LISTEN_BACKLOG = 1024
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT


@dataclass(slots=True, eq=False)
class StreamRequest:
    """A request on a connection."""

    _server: StreamServer
    _stream: Stream
    _number: int
    data: bytes

    @property
    def longest(self) -> int:
        """Bytes of the longest answer: both ends have the same limit."""
        return self._server.limit

    def reply(self, data: bytes) -> bool:
        """Answer; False if the client is gone."""
        stream = self._stream
        if not stream.watched:
            return False
        try:
            if not stream.send(frame(self._number, data)):
                self._server.interest(stream)
        except StreamError as e:
            self._server.drop(stream, str(e))
            return False
        return True


class StreamServer(EpollTransport, Server):
    """Accepts connections on ``local`` and gives each request to ``handler``.

    ``shared``: other processes listen there too, and the kernel gives each of them connections. ``ring``: the
    sockets are an untrusted host's. Raises ConfigError for an address that is taken or not ours.
    """

    def __init__(self, make: StreamMaker, local: Address, limit: int, handler: Handler,
                 waiting: Waiting = AS_TCP, shared: bool = False,
                 ring: IoRing | None = None) -> None:
        super().__init__(waiting, ring)
        self._make = make
        self.limit = limit
        self._handler = handler
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE_FILES
        self._most = files if ring is None else ring.connections
        try:
            listener = listen(local, shared) if ring is None else _listen_by(ring, local)
        except ConfigError:
            self._epoll.close()
            raise
        # A ring's has what is used of one here, and what it accepts has what a stream uses.
        self._listener = cast(socket.socket, listener)
        self._epoll.register(self._listener, _IN)
        ip, port = self._listener.getsockname()
        #: Where it listens: the port the kernel chose, if ``local`` had port 0.
        self.address: Address = (ip, port)

    def poll(self) -> None:
        self._handle(self._epoll.poll(0))

    def drive(self, timeout_s: float) -> None:
        self._handle(wait(self._epoll, self._waiter, timeout_s))

    def linger(self, timeout_s: float) -> None:
        """Until every answer is with the kernel, which delivers it even when we are gone."""
        until = time.monotonic() + timeout_s
        while any(s.backlog for s in self._streams.values()) and (left := until - time.monotonic()) > 0:
            self._handle(wait(self._epoll, self._waiter, left))

    def close(self) -> None:
        self._listener.close()
        super().close()

    def _handle(self, events: list[tuple[int, int]]) -> None:
        streams = self._streams
        for fd, mask in events:
            stream = streams.get(fd)
            if stream is None:
                if fd == self._listener.fileno():
                    self._accept()
                continue
            try:
                if not stream.ready:
                    self._greet(stream)
                    continue
                if mask & _OUT:
                    stream.flush()
                    self.interest(stream)
                if mask == _OUT:
                    continue
                data = stream.receive()
                if data:
                    self.received(stream, data)
                elif data is not None:
                    self.forget(stream)
            except (StreamError, FramingError) as e:
                self.drop(stream, str(e))

    def received(self, stream: Stream, data: bytes) -> None:
        """Bytes that have come; may raise StreamError, FramingError."""
        handler = self._handler
        for number, request in stream.inbox.take(data):
            handler(StreamRequest(self, stream, number, request))

    def interest(self, stream: Stream) -> None:
        """Wait for what it waits for now."""
        if stream.watched:
            reading = _IN if stream.backlog <= MAX_BACKLOG else 0
            self.watch(stream, reading | (_OUT if stream.backlog else 0))

    def _accept(self) -> None:
        try:
            sock, peer = self._listener.accept()
        except OSError:
            return  # It was gone before we came, or there is no memory: the next event tells.
        if len(self._streams) >= self._most:
            self._counters["connections_refused"] += 1
            sock.close()
            return
        self._counters["connections_accepted"] += 1
        try:
            stream = self._make(sock, peer)
        except StreamError:
            self._counters["handshakes_failed"] += 1
            sock.close()
            return
        self.watch(stream, _IN)
        try:
            self._greet(stream)
        except StreamError as e:
            self.drop(stream, str(e))

    def _greet(self, stream: Stream) -> None:
        try:
            stream.ready = stream.handshake()
        except StreamError:
            self._counters["handshakes_failed"] += 1
            raise

    def drop(self, stream: Stream, reason: str) -> None:
        """End a connection of which nothing good can come."""
        if stream.watched:
            self._counters["connections_failed"] += 1
            self.last_failure = f"{stream.peer[0]}:{stream.peer[1]}: {reason}"
            self.forget(stream)


def _listen_by(ring: IoRing, local: Address) -> ProxyListener:
    try:
        listener = ProxyListener(ring, local)
    except OSError as e:
        raise address_error(e, local) from None
    listener.setblocking(False)
    return listener


def listen(local: Address, shared: bool = False) -> socket.socket:
    """A listening socket; raises :class:`ConfigError` naming the address and the fix."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(local)
        listener.listen(_LISTEN_BACKLOG)
    except OSError as e:
        listener.close()
        raise address_error(e, local) from None
    listener.setblocking(False)
    return listener
