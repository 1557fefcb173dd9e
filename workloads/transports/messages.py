"""smt, homa, linux and upstream under the contract: an :class:`~smtstack.socket.SmtSocket` each.

The caller takes events from the endpoint itself, without the futures of ``SmtSocket``: what it costs to
account for an RPC should be the same for every transport, and as little as possible.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from smtstack.errors import LocalError, PeerError
from smtstack.io.neighbours import obstacle
from smtstack.socket import Address, RpcError, RpcTimeout, SmtSocket
from smtstack.transport import events
from smtstack.transport.rpc import Rpc
from smtstack.wire.ipv4 import address
from workloads.transports.contract import Call, Caller, Handler, Server, Transport
from workloads.transports.sessions import FROM_SESSIONS

#: Seconds for the sessions with all peers to begin; a handshake that fails is noticed sooner.
SESSION_S = 10.0
#: Sessions begun at a time: many hosts share few processors here, and a handshake must not take too long.
SESSIONS_AT_ONCE = 8


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
        return counters["socket_dropped"] + counters["rx_dropped"], counters["socket_send_drops"]

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
        self._resumed = False

    def prepare(self, concurrency: int) -> None:
        """Have a session with every peer, so that no call waits for a handshake, or is part of one.

        Modes ``psk``: what a first session gave is used for a second one, which the calls are under.
        """
        sessions = self.socket.sessions
        if sessions is None:
            return
        self._begin_sessions()
        if self.socket.context.session in FROM_SESSIONS and not self._resumed:
            manager = sessions.manager
            for peer in self.peers:
                self.socket.end_session(peer)
            self._await(lambda: not manager.closing())
            self._begin_sessions()
            self._check_resumed()
            self._resumed = True

    def _begin_sessions(self) -> None:
        for first in range(0, len(self.peers), SESSIONS_AT_ONCE):
            self._begin_some(self.peers[first:first + SESSIONS_AT_ONCE])

    def _begin_some(self, peers: Sequence[Address]) -> None:
        socket = self.socket
        socket.begin_sessions(peers)
        self._await(lambda: not socket.beginning(peers))
        # A server whose handshake we refuse is to know why.
        socket.loop.flush()
        try:
            socket.check_sessions(peers, SESSION_S)
        except PeerError as e:
            raise PeerError(f"{e}{self._hint()}") from None

    def _hint(self) -> str:
        """What may be wrong, where nothing came back at all."""
        counters = self.counters()
        silence = counters["tx_packets"] and not counters["socket_received"]
        if not silence and not counters["unresolved"]:
            return ""
        seen = obstacle([ip for ip, _port in self._addresses], self.socket.context.interface)
        return f"; {seen or 'is the server running?'}"

    def _check_resumed(self) -> None:
        mode = self.socket.context.session
        for ip, port in self.peers:
            session = self.socket.session_of((ip, port))
            if session is not None and session.mode not in FROM_SESSIONS:
                raise PeerError(f"no session with {ip}:{port} is resumed: the server gave us nothing to come back "
                                f"with; it must be started with --session {mode}, too")

    def _await(self, done: Callable[[], bool]) -> None:
        """For as long as a session may take to begin."""
        end = time.monotonic_ns() + int(SESSION_S * 1e9)
        while not done() and time.monotonic_ns() < end:
            self.socket.loop.step(end)
            self._dispatch()

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
                text = f"RPC to {event.rpc.peer}: {self.socket.failure_text(event)}"
                call.error = RpcTimeout(text) if event.reason is events.Reason.TIMEOUT else RpcError(text)
            call.ended = time.perf_counter_ns()
            self.finished.append(call)


class MessageServer(_OnSocket, Server):
    """Requests of one socket, each given to the handler as it comes."""

    def __init__(self, socket: SmtSocket, handler: Handler) -> None:
        super().__init__(socket)
        self._handler = handler
        self._dispatching = False
        #: Why an answer could not be sent the last time; "": never.
        self._unsent = ""

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

    def failure(self) -> str:
        return self._unsent or self.socket.last_failure

    def answer(self, rpc: Rpc, data: bytes) -> bool:
        """What a request's ``reply`` does. Answers given at once leave together."""
        endpoint = self.socket.endpoint
        try:
            sent = endpoint.send_reply(rpc, data, time.monotonic_ns())
        except LocalError as e:
            # Lengths and padding are what each client agreed on: one that wants more than it takes gets nothing,
            # and does not end the server for all.
            endpoint.abort(rpc)
            self._unsent = f"{rpc.peer}: no answer: {e}"
            return False
        if not self._dispatching:
            self.socket.loop.flush()
        return sent


@dataclass(slots=True, eq=False)
class _Request:
    """A request, for the handler."""

    _server: MessageServer
    _rpc: Rpc
    data: bytes

    @property
    def longest(self) -> int:
        """Bytes of the longest answer in this session."""
        return self._rpc.peer.max_message

    def reply(self, data: bytes) -> bool:
        """Answer; False if the client gave up meanwhile."""
        return self._server.answer(self._rpc, data)

