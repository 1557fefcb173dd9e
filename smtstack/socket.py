"""What applications use: blocking SMT sockets.

    >>> context = SmtContext("h1-eth0", keys="pair.json")
    >>> with SmtSocket(("10.0.0.1", 40000), context) as sock:
    ...     reply = sock.request(("10.0.0.2", 2000), b"ping", timeout=1.0)

One socket is client and server at once, of any number of peers. It has no thread of its own: the protocol
moves while a call waits, so a server must sit in :meth:`SmtSocket.receive` and a client collect its futures.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from smtstack.crypto import keys as key_files
from smtstack.crypto.keys import KeyStore
from smtstack.errors import ConfigError, PeerError
from smtstack.io.loop import PacketLoop
from smtstack.io.neighbours import Neighbours
from smtstack.io.nic_state import Port
from smtstack.io.packet_socket import Fanout, PacketSocket, interface_mtu
from smtstack.nic.device import NicConfig, SmartNic
from smtstack.nic.impairments import Impairments
from smtstack.transport import events
from smtstack.transport.endpoint import Endpoint
from smtstack.transport.params import SOFTWARE, TransportParams
from smtstack.transport.rpc import Rpc
from smtstack.wire.ipv4 import address, format_address

Address = tuple[str, int]


class RpcError(PeerError):
    """A request ended without a response. The server may have executed it, once at most."""


class RpcTimeout(RpcError):
    """The peer stopped answering, or the caller's own timeout passed."""


@dataclass(frozen=True, slots=True)
class SmtContext:
    """What sockets of one interface have in common."""

    interface: str
    profile: str = "smt"
    keys: str = "demo"
    """A key file, or ``demo`` (profiles ``linux`` and ``homa`` only: everybody knows those keys)."""
    params: TransportParams | None = None
    """Transport parameters; by default ``SOFTWARE``, with the interface's MTU."""
    nic: NicConfig = field(default_factory=NicConfig)
    poll_ns: int = 0
    """Busy-wait this long before blocking: 0 is pure interrupt mode."""
    fanout: Fanout | None = None
    """This process is one of several workers that share the port."""
    tx_impairments: Impairments | None = None
    rx_impairments: Impairments | None = None

    def load_keys(self) -> KeyStore:
        """Raises :class:`ConfigError` for keys that would protect nothing."""
        if self.profile == "smt" and self.keys == "demo":
            raise ConfigError("profile smt takes no demo keys: everybody knows them; make a key file")
        # A process that starts over with the same keys and port must not start over with its ids.
        return key_files.load(self.keys, self.profile, key_files.fresh_first_id(time.time_ns()))


class RpcFuture:
    """A request under way."""

    __slots__ = ("_response", "_socket", "error", "rpc")

    def __init__(self, socket: SmtSocket, rpc: Rpc) -> None:
        self._socket = socket
        self.rpc = rpc
        self._response: bytes | None = None
        self.error: RpcError | None = None

    def done(self) -> bool:
        """Whether :meth:`result` returns at once."""
        return self._response is not None or self.error is not None

    def settle(self, event: events.Response | events.Failed) -> None:
        """Take the event that ends the RPC."""
        if isinstance(event, events.Response):
            self._response = event.data
        else:
            peer = event.rpc.peer
            text = f"RPC to {peer}: {event.reason.value}"
            self.error = RpcTimeout(text) if event.reason is events.Reason.TIMEOUT else RpcError(text)

    def result(self, timeout: float | None = None) -> bytes:
        """The response. Raises :class:`RpcError`; after ``timeout`` seconds it aborts with :class:`RpcTimeout`."""
        self._socket.drive(self.done, timeout)
        if not self.done():
            self._socket.abort(self)
            self.error = RpcTimeout(f"RPC to {self.rpc.peer}: no response within {timeout} s")
        if self.error is not None:
            raise self.error
        assert self._response is not None
        return self._response


class IncomingRequest:
    """A request to answer with :meth:`reply`, now or later, in any order."""

    __slots__ = ("_rpc", "_socket", "data")

    def __init__(self, socket: SmtSocket, rpc: Rpc, data: bytes) -> None:
        self._socket = socket
        self._rpc = rpc
        self.data = data

    @property
    def peer(self) -> Address:
        """Who asks."""
        return format_address(self._rpc.peer.host.ip), self._rpc.peer.port

    def reply(self, data: bytes) -> bool:
        """Answer; False if the client gave up meanwhile."""
        return self._socket.answer(self._rpc, data)


class SmtSocket:
    """A message socket on ``(address, port)`` of ``context.interface``. Needs root (CAP_NET_RAW)."""

    def __init__(self, local: Address, context: SmtContext) -> None:
        try:
            ip = address(local[0])
        except ValueError as e:
            raise ConfigError(str(e)) from None
        self.context = context
        mtu = interface_mtu(context.interface)
        params = context.params or replace(SOFTWARE, mtu=min(mtu, 65535))
        if params.mtu > mtu:
            raise ConfigError(f"mtu {params.mtu} is more than the {mtu} of {context.interface}")
        self.endpoint = Endpoint(ip, local[1], context.profile, context.load_keys(), params)
        with ExitStack() as undo:
            socket = PacketSocket(context.interface, ip, local[1], self.endpoint.protocol, params.mtu,
                                  context.fanout)
            undo.callback(socket.close)
            port = Port.attach(context.interface, ip, local[1], self.endpoint.protocol, context.profile)
            if port is not None:
                undo.callback(port.detach)
            nic = SmartNic(port.configure(context.nic) if port is not None else context.nic)
            self.loop = PacketLoop(self.endpoint, nic, socket, Neighbours(context.interface), context.poll_ns,
                                   context.tx_impairments, context.rx_impairments, port)
            undo.pop_all()
        self._requests: deque[IncomingRequest] = deque()
        self._closed = False

    # -- client ------------------------------------------------------------------------------------------

    def send_request(self, peer: Address, data: bytes) -> RpcFuture:
        """Begin an RPC; any number may be under way. Raises LocalError, ConfigError (no key)."""
        rpc = self.endpoint.send_request(address(peer[0]), peer[1], data, time.monotonic_ns())
        future = RpcFuture(self, rpc)
        rpc.cookie = future
        self.loop.flush()
        return future

    def request(self, peer: Address, data: bytes, timeout: float | None = None) -> bytes:
        """Send and wait for the response: :meth:`send_request` and :meth:`RpcFuture.result`."""
        return self.send_request(peer, data).result(timeout)

    def abort(self, future: RpcFuture) -> None:
        """Give up a request; it never executes twice, and may have executed once."""
        self.endpoint.abort(future.rpc)
        self._dispatch()

    # -- server ------------------------------------------------------------------------------------------

    def receive(self, timeout: float | None = None) -> IncomingRequest | None:
        """The next request; None after ``timeout`` seconds."""
        if not self._requests:
            self.drive(lambda: bool(self._requests), timeout)
        return self._requests.popleft() if self._requests else None

    def answer(self, rpc: Rpc, data: bytes) -> bool:
        """What :meth:`IncomingRequest.reply` does."""
        sent = self.endpoint.send_reply(rpc, data, time.monotonic_ns())
        self.loop.flush()
        return sent

    # -- both --------------------------------------------------------------------------------------------

    def drive(self, done: Callable[[], bool], timeout: float | None = None) -> None:
        """Move the protocol until ``done()`` or ``timeout`` seconds have passed."""
        deadline = None if timeout is None else time.monotonic_ns() + int(timeout * 1e9)
        step = self.loop.step
        while not done():
            step(deadline)
            self._dispatch()
            if deadline is not None and time.monotonic_ns() >= deadline:
                break
        if self.endpoint.grants_due():
            self.loop.flush()

    def poll(self) -> None:
        """Move the protocol without waiting: for event loops."""
        self.loop.step(0)
        self._dispatch()
        self.loop.flush()

    def _dispatch(self) -> None:
        next_event = self.endpoint.next_event
        while (event := next_event()) is not None:
            if isinstance(event, events.Request):
                self._requests.append(IncomingRequest(self, event.rpc, event.data))
            elif isinstance(event.rpc.cookie, RpcFuture):
                event.rpc.cookie.settle(event)

    def fileno(self) -> int:
        """For event loops: readable when frames wait."""
        return self.loop.socket.fileno()

    def counters(self) -> dict[str, int]:
        """Endpoint's, NIC's and socket's counters in one."""
        return self.loop.counters()

    def linger(self, timeout: float = 1.0) -> None:
        """Serve retransmissions and acknowledgements until no RPC is left, at most ``timeout`` seconds."""
        self.drive(lambda: not self.endpoint.snapshot()["rpcs"], timeout)

    def close(self) -> None:
        """Close. Peers in mid-RPC time out: :meth:`linger` first to be kind."""
        if not self._closed:
            self._closed = True
            self.loop.close()

    def __enter__(self) -> SmtSocket:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
