"""SMT sockets for asyncio: the same protocol, moved by the event loop.

    >>> async with AioSocket(("10.0.0.1", 40000), SmtContext("h1-eth0", certs=Path("certs/h1"))) as sock:
    ...     replies = await asyncio.gather(*(sock.request(server, q, timeout=1.0) for q in queries))
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress

from smtstack.socket import Address, IncomingRequest, RpcFuture, RpcTimeout, SmtContext, SmtSocket
from smtstack.transport import events
from smtstack.transport.rpc import Rpc
from smtstack.wire.ipv4 import address


class _AioFuture(RpcFuture):
    """Tells an asyncio future what becomes of the RPC."""

    __slots__ = ("waiter",)

    def __init__(self, socket: SmtSocket, rpc: Rpc) -> None:
        super().__init__(socket, rpc)
        self.waiter: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def settle(self, event: events.Response | events.Failed) -> None:
        super().settle(event)
        if self.waiter.done():
            return
        if isinstance(event, events.Response):
            self.waiter.set_result(event.data)
        else:
            assert self.error is not None
            self.waiter.set_exception(self.error)


class _TimedSocket(SmtSocket):
    """Says when a reply may have started timers: nobody waits in this socket who would see them."""

    def __init__(self, local: Address, context: SmtContext, started: Callable[[], None]) -> None:
        super().__init__(local, context)
        self._started = started

    def answer(self, rpc: Rpc, data: bytes) -> bool:
        """Answer, then let the event loop look at the timers."""
        sent = super().answer(rpc, data)
        self._started()
        return sent


class AioSocket:
    """A :class:`~smtstack.socket.SmtSocket` on the running event loop; make it there."""

    def __init__(self, local: Address, context: SmtContext) -> None:
        self.socket = _TimedSocket(local, context, self._arm)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._arrived: asyncio.Queue[IncomingRequest] = asyncio.Queue()
        #: Something may have happened.
        self._stirred = asyncio.Event()
        self._closed = False
        #: Requests under way.
        self._asked: set[_AioFuture] = set()
        self._loop.add_reader(self.socket.fileno(), self._pump)
        self._arm()

    async def request(self, peer: Address, data: bytes, timeout: float | None = None) -> bytes:
        """Send and wait for the response. Raises :class:`~smtstack.socket.RpcError`; cancelling aborts the RPC."""
        rpc = self.socket.endpoint.send_request(address(peer[0]), peer[1], data, time.monotonic_ns())
        future = _AioFuture(self.socket, rpc)
        rpc.cookie = future
        self._asked.add(future)
        self._pump()
        try:
            return await asyncio.wait_for(future.waiter, timeout)
        except asyncio.TimeoutError:
            raise RpcTimeout(f"RPC to {rpc.peer}: no response within {timeout} s"
                             f"{self.socket.mtu_hint()}") from None
        finally:
            self._asked.discard(future)
            if not future.done():
                self.socket.abort(future)

    async def prepare(self, peers: Iterable[Address], timeout: float | None = None) -> None:
        """Make sessions with these peers, while other requests go on: see
        :meth:`SmtSocket.prepare <smtstack.socket.SmtSocket.prepare>`."""
        wanted = list(peers)
        self.socket.begin_sessions(wanted)
        self._arm()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._while_beginning(wanted), timeout)
        self.socket.check_sessions(wanted, timeout)

    async def _while_beginning(self, peers: Sequence[Address]) -> None:
        while self.socket.beginning(peers):
            self._stirred.clear()
            await self._stirred.wait()

    async def receive(self) -> IncomingRequest:
        """The next request; answer with its ``reply``."""
        return await self._arrived.get()

    async def requests(self) -> AsyncIterator[IncomingRequest]:
        """All requests, for ``async for``."""
        while True:
            yield await self._arrived.get()

    def _pump(self) -> None:
        self.socket.poll()
        self._stirred.set()
        while (request := self.socket.receive(0)) is not None:
            self._arrived.put_nowait(request)
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wake = self.socket.loop.next_wake()
        if wake is not None:
            delay = max(0, wake - time.monotonic_ns()) / 1e9
            self._timer = self._loop.call_later(delay, self._pump)

    def close(self) -> None:
        """Leave the event loop and close the socket. Requests under way end with an RpcError.

        Peers are told that their sessions are over, which holds up the event loop for ``FAREWELL_S`` at most.
        """
        if self._closed:
            return
        self._closed = True
        for future in list(self._asked):
            self.socket.abort(future)
        self._loop.remove_reader(self.socket.fileno())
        if self._timer is not None:
            self._timer.cancel()
        self.socket.close()

    async def __aenter__(self) -> AioSocket:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.close()
