"""smt, homa and linux under the contract: an :class:`~smtstack.socket.SmtSocket` each.

The caller takes events from the endpoint itself, without the futures of ``SmtSocket``: what it costs to
account for an RPC should be the same for every transport, and as little as possible.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence

from smtstack.errors import PeerError
from smtstack.socket import Address, RpcError, RpcTimeout, SmtSocket
from smtstack.transport import events
from smtstack.transport.rpc import Rpc
from smtstack.wire.ipv4 import address
from workloads.transports.contract import Call, Caller, Handler, Server, Transport


class _OnSocket(Transport):
    """What caller and server do the same way."""

    def __init__(self, socket: SmtSocket) -> None:
        self.socket = socket

    def fileno(self) -> int:
        return self.socket.fileno()

    def next_wake(self) -> int | None:
        return self.socket.loop.next_wake()

    def poll(self) -> None:
        self.socket.loop.step(0)
        self._dispatch()
        self.socket.loop.flush()

    @abstractmethod
    def _dispatch(self) -> None:
        """Take the endpoint's events."""

    def counters(self) -> dict[str, int]:
        return self.socket.counters()

    def drops(self) -> tuple[int, int]:
        counters = self.socket.counters()
        return counters["socket_dropped"], counters["socket_send_drops"]

    def take_late_ns(self) -> int:
        statistics = self.socket.loop.statistics
        late, statistics.late_ns = statistics.late_ns, 0
        return late

    def close(self) -> None:
        self.socket.close()


class MessageCaller(_OnSocket, Caller):
    """Calls as RPCs of one socket."""

    def __init__(self, socket: SmtSocket, peers: Sequence[Address]) -> None:
        Caller.__init__(self, peers)
        _OnSocket.__init__(self, socket)
        self._addresses = [(address(ip), port) for ip, port in peers]

    def begin(self, call: Call) -> None:
        ip, port = self._addresses[call.peer]
        rpc = call.handle = self.socket.endpoint.send_request(ip, port, call.data, time.monotonic_ns())
        rpc.cookie = call
        # It leaves with the next drive or poll, together with others begun meanwhile.

    def abort(self, call: Call) -> None:
        rpc = call.handle
        assert isinstance(rpc, Rpc)
        self.socket.endpoint.abort(rpc)
        self._dispatch()

    def drive(self, timeout_s: float) -> None:
        if not self.finished:
            self.socket.loop.step(time.monotonic_ns() + int(timeout_s * 1e9))
            self._dispatch()

    def linger(self, timeout_s: float) -> None:
        # For the whole time: an idle client does not know that its server will ask for an acknowledgement.
        self.socket.drive(lambda: False, timeout_s)

    def _dispatch(self) -> None:
        next_event = self.socket.endpoint.next_event
        while (event := next_event()) is not None:
            call = event.rpc.cookie
            if not isinstance(call, Call):
                continue  # A request: we serve nobody, and the peer's time-out tells it so.
            if isinstance(event, events.Response):
                call.response = event.data
            elif isinstance(event, events.Failed):
                call.error = _error(event)
            call.ended = time.perf_counter_ns()
            self.finished.append(call)


class MessageServer(_OnSocket, Server):
    """Requests of one socket, each given to the handler as it comes."""

    def __init__(self, socket: SmtSocket, handler: Handler) -> None:
        super().__init__(socket)
        self._handler = handler
        self._dispatching = False

    def drive(self, timeout_s: float) -> None:
        self.socket.loop.step(time.monotonic_ns() + int(timeout_s * 1e9))
        self._dispatch()

    def linger(self, timeout_s: float) -> None:
        self.socket.linger(timeout_s)

    def _dispatch(self) -> None:
        next_event, handler = self.socket.endpoint.next_event, self._handler
        self._dispatching = True
        while (event := next_event()) is not None:
            if isinstance(event, events.Request):
                handler(_Request(self, event.rpc, event.data))
        self._dispatching = False
        self.socket.loop.flush()

    def answer(self, rpc: Rpc, data: bytes) -> bool:
        """What a request's ``reply`` does. Answers given at once leave together."""
        sent = self.socket.endpoint.send_reply(rpc, data, time.monotonic_ns())
        if not self._dispatching:
            self.socket.loop.flush()
        return sent


class _Request:
    """A request, for the handler."""

    __slots__ = ("_rpc", "_server", "data")

    def __init__(self, server: MessageServer, rpc: Rpc, data: bytes) -> None:
        self._server = server
        self._rpc = rpc
        self.data = data

    def reply(self, data: bytes) -> bool:
        """Answer; False if the client gave up meanwhile."""
        return self._server.answer(self._rpc, data)


def _error(event: events.Failed) -> PeerError:
    text = f"RPC to {event.rpc.peer}: {event.reason.value}"
    return RpcTimeout(text) if event.reason is events.Reason.TIMEOUT else RpcError(text)
