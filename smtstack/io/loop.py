"""Drives one endpoint on a real interface: frames in, timers, frames out; polls, then blocks."""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass

from smtstack.io.neighbours import LIFETIME, Neighbours
from smtstack.io.packet_socket import FRAME_EXTRA, PacketSocket
from smtstack.nic.device import SmartNic
from smtstack.nic.driver import NicDriver
from smtstack.nic.impairments import Impairments
from smtstack.transport.endpoint import Endpoint
from smtstack.transport.segment import Segment

#: Frames taken before transmitting again: large enough to batch, small enough to answer in time.
RECEIVE_BATCH = 64
#: Nothing to do: wake up this often all the same.
IDLE_NS = 1_000_000_000


@dataclass(slots=True)
class LoopStatistics:
    """How the loop fared; the fidelity of a run is judged by these."""

    wakeups: int = 0
    """Times it blocked."""
    late_ns: int = 0
    """Most that a timer was late."""


class PacketLoop:
    """Endpoint, driver and device on a packet socket. ``poll_ns``: busy-wait before blocking (0: never)."""

    def __init__(self, endpoint: Endpoint, nic: SmartNic, socket: PacketSocket, neighbours: Neighbours,
                 poll_ns: int = 0, tx: Impairments | None = None, rx: Impairments | None = None) -> None:
        self.endpoint = endpoint
        self.nic = nic
        self.socket = socket
        self.driver = NicDriver(nic, socket.mac, endpoint.ip, endpoint.protocol, neighbours)
        self.statistics = LoopStatistics()
        self._poll_ns = poll_ns
        self._tx = tx
        self._rx = rx
        self._frame_size = endpoint.params.mtu + FRAME_EXTRA
        self._held: Segment | None = None
        #: Impaired frames under way: (when, number, outwards?, frame).
        self._later: list[tuple[int, int, bool, bytes]] = []
        self._numbers = 0
        #: When to ask the kernel again where neighbours are.
        self._routes_until = 0

    def step(self, deadline: int | None = None) -> bool:
        """Do what can be done now; if that is nothing, wait until something happens or ``deadline``.

        ``deadline`` is a ``time.monotonic_ns()``. Returns whether a frame came in or a timer fired. The
        caller looks for events after every step.
        """
        now = time.monotonic_ns()
        if now >= self._routes_until:
            self._routes_until = now + int(LIFETIME * 1e9)
            self.driver.forget_routes()
        self._transmit(now)
        if self._work(now):
            return True
        poll_until = now + self._poll_ns
        wake = self._wake(deadline, now)
        while now < poll_until and now < wake:
            now = time.monotonic_ns()
            if self._work(now):
                return True
        if now < wake:
            self.statistics.wakeups += 1
            self.socket.wait(wake - now)
            now = time.monotonic_ns()
        return self._work(now)

    def flush(self) -> None:
        """Send what is ready, without waiting for anything."""
        self._transmit(time.monotonic_ns())

    def _work(self, now: int) -> bool:
        busy = self._receive(now)
        timeout = self.endpoint.next_timeout()
        if timeout is not None and timeout <= now:
            if timeout > 0:
                self.statistics.late_ns = max(self.statistics.late_ns, now - timeout)
            self.endpoint.handle_timeout(now)
            busy = True
        while self._later and self._later[0][0] <= now:
            _at, _n, outwards, frame = heapq.heappop(self._later)
            if outwards:
                self.socket.send(frame)
            else:
                self.nic.receive(frame)
                self._deliver(now)
            busy = True
        if busy:
            self._transmit(now)
        return busy

    def next_wake(self) -> int | None:
        """When to call :meth:`step` at the latest, if no frame comes: for event loops."""
        timeout = self.endpoint.next_timeout()
        if not self._later:
            return timeout
        at = self._later[0][0]
        return at if timeout is None or at < timeout else timeout

    def _wake(self, deadline: int | None, now: int) -> int:
        wake = now + IDLE_NS
        if deadline is not None:
            wake = min(wake, deadline)
        timeout = self.next_wake()
        return wake if timeout is None else min(wake, timeout)

    def _receive(self, now: int) -> bool:
        receive = self.socket.receive
        size = self._frame_size
        count = 0
        while count < RECEIVE_BATCH and (frame := receive(size)) is not None:
            count += 1
            if self._rx is not None:
                self._delay(self._rx, frame, False, now)
            else:
                self.nic.receive(frame)
        if count:
            self._deliver(now)
        return count > 0

    def _deliver(self, now: int) -> None:
        handle = self.endpoint.handle_packet
        for queue in range(self.nic.config.rx_queues):
            while (frame := self.nic.take(queue)) is not None:
                handle(frame, now)

    def _transmit(self, now: int) -> None:
        poll = self.endpoint.poll_transmit
        post = self.driver.transmit
        while (segment := self._held or poll(now)) is not None:
            self._held = None
            if not post(segment):
                self._held = segment
                self._send(self.nic.process(), now)
        self._send(self.nic.process(), now)

    def _send(self, frames: list[bytes], now: int) -> None:
        send = self.socket.send
        for frame in frames:
            if self._tx is not None:
                self._delay(self._tx, frame, True, now)
            else:
                send(frame)

    def _delay(self, path: Impairments, frame: bytes, outwards: bool, now: int) -> None:
        for at, changed in path.apply(frame, now):
            self._numbers += 1
            heapq.heappush(self._later, (at, self._numbers, outwards, changed))

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()
