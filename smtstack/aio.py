"""SMT sockets for asyncio: the same protocol, moved by the event loop.

    >>> async with AioSocket(("10.0.0.1", 40000), SmtContext("h1-eth0", certs=Path("certs/h1"))) as sock:
    ...     replies = await asyncio.gather(*(sock.request(server, q, timeout=1.0) for q in queries))

A socket waits as its context says (smtstack/waiting.py). To look for frames again and again, it keeps the event
loop from sleeping: that goes on asking all its descriptors, without waiting, and runs whatever else is ready.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress

from smtstack.io.processors import outnumbered
from smtstack.socket import Address, IncomingRequest, RpcFuture, RpcTimeout, SmtContext, SmtSocket
from smtstack.transport import events
from smtstack.transport.rpc import Rpc
from smtstack.waiting import STALL_NS, Waiter
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
        self._waiter = Waiter(context.wait, outnumbered)
        #: The next look, until when to look, and when the last one was.
        self._look: asyncio.Handle | None = None
        self._look_until = self._looked = 0
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
        came = self.socket.poll()
        if self._waiter.looks:
            self._waiter.end(time.monotonic_ns(), came)
        self._stirred.set()
        while (request := self.socket.receive(0)) is not None:
            self._arrived.put_nowait(request)
        self._arm()

    def _arm(self) -> None:
        """Nothing is to be done now: say when there will be, at the latest, and begin to wait."""
        self._disarm()
        wake = self.socket.loop.next_wake()
        now = time.monotonic_ns()
        if wake is not None:
            self._timer = self._loop.call_later(max(0, wake - now) / 1e9, self._pump)
        if self._waiter.looks:
            self._look_until = self._waiter.begin(now)
            self._look_again(now)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _look_again(self, now: int) -> None:
        """Something that is ready at once keeps the event loop awake, which then looks at our descriptor."""
        self._looked = now
        self._look = self._loop.call_soon(self._looks) if now < self._look_until else None

    def _looks(self) -> None:
        now = time.monotonic_ns()
        if now - self._looked > STALL_NS:
            # Another program had the processor, or another task the event loop.
            self._waiter.stalled()
            self._look_until = now
        self._look_again(now)

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
        self._disarm()
        self.socket.close()

    async def __aenter__(self) -> AioSocket:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.close()
