"""tcp, tls and ktls under the contract, the client: calls framed on connections.

A connection may carry several RPCs at a time; they are told apart by id and may be answered in any order.
With as many connections as RPCs under way each has one of its own, which is how RPCs are done over streams.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections import deque
from collections.abc import Sequence

from smtstack.errors import ConfigError, PeerError, Unsupported
from smtstack.io.neighbours import obstacle
from smtstack.socket import Address, RpcError, RpcTimeout
from smtstack.waiting import AS_TCP, Waiting
from smtstack.wire.ipv4 import address
from workloads.transports.contract import Call, Caller, rpc_to
from workloads.transports.epoll import EpollTransport, StreamMaker, address_error, wait
from workloads.transports.framing import ID_MASK, FramingError, frame
from workloads.transports.stream import Stream, StreamError

#: Seconds to connect and shake hands. A server may be busy with hundreds of others.
CONNECT_S = 10.0
#: Linux <linux/in.h>; Python has no name for it.
_IP_BIND_ADDRESS_NO_PORT = 24
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT


class StreamCaller(EpollTransport, Caller):
    """Calls over ``connections`` connections to each peer; 0: as many as calls are under way.

    :meth:`prepare` makes them. A connection that is lost stays lost: its calls fail, and later ones share
    what is left.
    """

    def __init__(self, make: StreamMaker, peers: Sequence[Address], connections: int = 0,
                 local_ip: str | None = None, waiting: Waiting = AS_TCP) -> None:
        Caller.__init__(self, peers)
        EpollTransport.__init__(self, waiting)
        self._make = make
        self._connections = connections
        self._local_ip = local_ip
        self._number = 0
        #: Connections of each peer with nothing under way; the one used last is used next.
        self._idle: list[list[Stream]] = [[] for _peer in self.peers]
        self._alive: list[deque[Stream]] = [deque() for _peer in self.peers]

    def prepare(self, concurrency: int) -> None:
        for index, peer in enumerate(self.peers):
            for _n in range((self._connections or concurrency) - len(self._alive[index])):
                stream = _connect(self._make, peer, self._local_ip)
                stream.peer_index = index
                self._alive[index].append(stream)
                self._idle[index].append(stream)
                self.watch(stream, _IN)

    def begin(self, call: Call) -> None:
        idle = self._idle[call.peer]
        if idle:
            stream = idle.pop()
        else:
            alive = self._alive[call.peer]
            if not alive:
                self.fail(call, RpcError(f"{rpc_to(self.peers[call.peer])}: no connection is left"))
                return
            stream = alive[0]
            alive.rotate(-1)
        number = call.number = self._number = self._number + 1 & ID_MASK
        call.handle = stream
        stream.pending[number] = call
        try:
            if not stream.send(self.frame(number, call.data)):
                self.watch(stream, _IN | _OUT)
        except StreamError as e:
            self._lose(stream, str(e))

    def frame(self, number: int, data: bytes) -> bytes:
        """A request as it goes on the stream."""
        return frame(number, data)

    def abort(self, call: Call) -> None:
        stream = call.handle
        if isinstance(stream, Stream) and stream.pending.get(call.number) is call:
            # Its answer may still come, and nothing else can before it has.
            stream.pending[call.number] = None
        self.fail(call, RpcTimeout(f"{rpc_to(self.peers[call.peer])}: no answer in time"))

    def poll(self) -> None:
        self._handle(self._epoll.poll(0))

    def drive(self, timeout_s: float) -> None:
        if not self.finished:
            self._handle(wait(self._epoll, self._waiter, timeout_s))

    def linger(self, timeout_s: float) -> None:
        # The kernel acknowledges for us.
        pass

    def _handle(self, events: list[tuple[int, int]]) -> None:
        streams, finished = self._streams, self.finished
        for fd, mask in events:
            stream = streams.get(fd)
            if stream is None:
                continue  # Lost by what came before.
            try:
                if mask & _OUT and stream.flush():
                    self.watch(stream, _IN)
                if mask == _OUT:
                    continue
                data = stream.receive()
                if not data:
                    if data is not None:
                        self._lose(stream, "the server closed the connection")
                    continue
                now = time.perf_counter_ns()
                pending = stream.pending
                for number, response in stream.inbox.take(data):
                    if number not in pending:
                        raise FramingError(f"an answer to {number}, which was not asked")
                    call = pending.pop(number)
                    if call is not None:
                        call.response = response
                        call.ended = now
                        finished.append(call)
                    if not pending:
                        self._idle[stream.peer_index].append(stream)
            except (StreamError, FramingError) as e:
                self._lose(stream, str(e))

    def _lose(self, stream: Stream, reason: str) -> None:
        """All its calls fail."""
        self.forget(stream)
        self._counters["connections_lost"] += 1
        self._alive[stream.peer_index].remove(stream)
        idle = self._idle[stream.peer_index]
        if stream in idle:
            idle.remove(stream)
        for call in list(stream.pending.values()):
            if call is not None:
                self.fail(call, RpcError(f"{rpc_to(stream.peer)}: {reason}"))


def _connect(make: StreamMaker, peer: Address, local_ip: str | None) -> Stream:
    """A connection whose handshake is over."""
    stream = None
    try:
        sock = _connected(peer, local_ip)
        stream = make(sock, peer)
        _shake_hands(stream)
    except StreamError as e:
        reason = f"handshake failed: {e}"
    except TimeoutError:
        reason = f"no connection within {CONNECT_S:.0f} s"
    except OSError as e:
        if e.errno == errno.EMFILE:
            raise Unsupported("too many connections for one process; allow more: ulimit -n 8192") from None
        reason = e.strerror or str(e)
        if e.errno == errno.ECONNREFUSED:
            reason += "; is the server running?"
        if e.errno == errno.EHOSTUNREACH and (seen := obstacle([address(peer[0])])):
            reason += f"; {seen}"
    else:
        return stream
    if stream is not None:
        stream.close()
    raise PeerError(f"{rpc_to(peer)}: {reason}")


def _connected(peer: Address, local_ip: str | None) -> socket.socket:
    """Raises OSError; ConfigError for a local address that is not ours."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if local_ip is not None:
            # The kernel chooses the port when it connects: by then it knows which ones are free.
            sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            try:
                sock.bind((local_ip, 0))
            except OSError as e:
                raise address_error(e, (local_ip, 0)) from None
        sock.settimeout(CONNECT_S)
        sock.connect(peer)
    except (OSError, ConfigError):
        sock.close()
        raise
    return sock


def _shake_hands(stream: Stream) -> None:
    """Wait for it. Raises TimeoutError, StreamError."""
    end = time.monotonic() + CONNECT_S
    waiter = select.poll()
    waiter.register(stream.fd, select.POLLIN)
    while not stream.handshake():
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        waiter.poll(left * 1000)
    stream.ready = True
