"""Drives one stack on a real interface: frames in, timers, frames out; looks for more, then sleeps.

Between the wake-up and the answer stands what the answer needs, and nothing else: frames are read and handed to
the endpoint, the application gets them, and what it says is sent. Timers, counters and routes come behind that,
before the next wait; settings of the NIC before it where there are new ones. Whoever wakes up is cold: each line
costs three times what it does in a loop.

A frame waits in two places. The kernel's ring is the wire's end: a host that runs takes everything out of it at
once, and after a stall finds there what came meanwhile. All that goes through the device into its receive rings,
as it would have without the stall, so these overflow when more comes than they hold before the host gets to it.
The endpoint is given some frames at a time, or answers and grants would wait for the whole backlog.
"""

from __future__ import annotations

import heapq
import socket as sockets
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic_ns
from typing import Protocol

from smtstack.errors import PeerError
from smtstack.io.frame_socket import FrameSocket
from smtstack.io.neighbours import LIFETIME
from smtstack.nic.device import SmartNic
from smtstack.nic.driver import Neighbours, NicDriver
from smtstack.nic.impairments import Impairments
from smtstack.nicshare.control import NicControl
from smtstack.nicshare.state import Port
from smtstack.stack import Stack
from smtstack.transport.endpoint import Endpoint
from smtstack.waiting import AS_TCP, STALL_NS, Waiter
from smtstack.wire.naming import peer_key
from smtstack.wire.overlay import cut_untrusted

#: Frames given to the endpoint before transmitting again: large enough to batch, small enough to answer in time.
RECEIVE_BATCH = 64
#: Frames given to the endpoint while others wait before timers are looked at all the same: those of a full ring of
#: the kernel's, and no more are taken out of it at once.
MAX_BACKLOG = 4096
#: Nothing to do: wake up this often all the same.
IDLE_NS = 1_000_000_000
#: Counters that others watch are this old at most.
PUBLISH_NS = 20_000_000
#: Bytes of the longest message of another process.
MAX_MESSAGE = 1 << 16
#: Later than any ``time.monotonic_ns()``.
NEVER = 1 << 63


@dataclass(slots=True)
class LoopStatistics:
    """How the loop fared; the fidelity of a run is judged by these."""

    wakeups: int = 0
    """Times it blocked."""
    late_ns: int = 0
    """Most that a timer was late."""


class KeyHost(Protocol):
    """What an endpoint's keys want of the loop."""

    #: Messages of another process, one a datagram; None: there are none.
    inbox: sockets.socket | None

    def deliver(self, message: bytes, now: int) -> None:
        """One of these. It comes before frames that it may have to do with."""

    def idle(self) -> None:
        """There is time for something short. Also called now and then when there is none."""

    def counters(self) -> dict[str, int]:
        """To be seen with all others."""


class PacketLoop:
    """Endpoint, driver and device on a socket for frames. ``waiter``: how it waits for frames; None: asleep.

    ``port``: where the device's settings come from and its counters are seen, if anywhere. ``clock``: another
    one than ``time.monotonic_ns``.
    """

    def __init__(self, endpoint: Endpoint, nic: SmartNic, socket: FrameSocket, neighbours: Neighbours,
                 waiter: Waiter | None = None, tx: Impairments | None = None, rx: Impairments | None = None,
                 port: Port | None = None, key_host: KeyHost | None = None,
                 clock: Callable[[], int] | None = None) -> None:
        #: Nanoseconds, of all that asks for the time here.
        self.clock = clock or monotonic_ns
        self.endpoint = endpoint
        self.nic = nic
        self.socket = socket
        self.driver = NicDriver(nic, socket.mac, endpoint.ip, endpoint.protocol, neighbours)
        self.stack = Stack(endpoint, self.driver)
        self.statistics = LoopStatistics()
        self._waiter = waiter or Waiter(AS_TCP)
        seed = peer_key(endpoint.ip, endpoint.port)
        nic.memory = port
        self._control = control = NicControl(port, self.driver, seed, tx, rx)
        self._tx = tx
        self._rx = rx
        self._key_host = key_host
        self._inbox = key_host.inbox if key_host is not None else None
        if self._inbox is not None:
            socket.watch(self._inbox)
        #: There is something new about the device when the first is not the second.
        self._generation, self._seen = control.generation, 0
        #: When counters are to be published: some time after the first change.
        self._publish_at = NEVER
        self._publish_ns = PUBLISH_NS if port is not None else NEVER
        #: Impaired frames under way: (when, number, outwards?, frame).
        self._later: list[tuple[int, int, bool, bytes]] = []
        self._numbers = 0
        #: When to ask the kernel again where neighbours are.
        self._routes_until = 0
        self._grain = endpoint.params.tick_ns
        #: While frames keep coming, timers are not looked at before this: they count in ticks anyway.
        self._timers_at = 0
        #: When they were looked at last, or nobody had to: asleep, with none due that was known.
        self._looked = 0
        #: The first that was known when somebody asked and went to sleep; 0: nobody sleeps.
        self._next = 0
        #: When a frame ended a wait, until somebody takes note of it; 0: none did.
        self._woke = 0
        self._backlog = 0
        self._sync_nic()

    def step(self, deadline: int | None = None) -> bool:
        """Do what can be done now; if that is nothing, wait until something happens or ``deadline``.

        ``deadline`` is a reading of :attr:`clock`. Returns whether a frame came in or a timer fired. The
        caller looks for events after every step, and what came of a frame (a GRANT, an ACK) leaves with the
        next: with an answer, if there is one to give.
        """
        now = self.clock()
        if self._generation[0] != self._seen:
            self._sync_nic()
        self._transmit(now)
        if self._woke:
            self._woken(self._woke)
            if self._publish_at == NEVER:
                self._publish_at = now + self._publish_ns
            self._woke = 0
        elif self._next:
            self._woken(now)
        if now >= self._publish_at:
            self._sync_nic()
        if now >= self._routes_until:
            self._routes_until = now + int(LIFETIME * 1e9)
            self.driver.forget_routes()
            if self._key_host is not None:
                self._key_host.idle()
        if self._work(now):
            return True
        if self._key_host is not None:
            self._key_host.idle()
            now = self.clock()
        wake = self._wake(deadline, now)
        if now < wake:
            frames = self._wait(now, wake)
            if frames:
                # Nothing here but what the answer needs; the next step does the rest.
                self._woke = now = self.clock()
                if self._generation[0] != self._seen:
                    self._sync_nic()
                if self._inbox is not None:
                    self._take_messages(self._inbox, now)
                self._arrive(frames, now)
                return True
            now = self.clock()
            self._woken(now)
            if self._generation[0] != self._seen:
                self._sync_nic()
        if self._work(now):
            return True
        self.socket.clear_error()
        return False

    def _wait(self, now: int, wake: int) -> list[bytes]:
        """The frames that come before ``wake``, if any do: looks for them as long as that pays, then sleeps."""
        waiter, receive, inbox, clock = self._waiter, self.socket.receive, self._inbox, self.clock
        frames: list[bytes] = []
        until = min(waiter.begin(now), wake)
        while now < until:
            if inbox is not None:
                self._take_messages(inbox, now)
            frames = receive(MAX_BACKLOG)
            at = clock()
            if frames:
                waiter.end(at, True)
                return frames
            if at - now > STALL_NS:
                waiter.stalled()
                now = at
                break
            now = at
        if now < wake:
            # What came since the last look ends it at once: the socket is readable as long as a frame is there.
            self.statistics.wakeups += 1
            self.socket.wait(wake - now)
            frames = receive(MAX_BACKLOG)
        waiter.end(self.clock(), bool(frames))
        return frames

    def _woken(self, now: int) -> None:
        """Until ``now``, or the first timer that was known, there was none to look at."""
        self._looked = max(self._looked, min(now, self._next))
        self._next = 0

    def flush(self) -> None:
        """Send what is ready, without waiting for anything."""
        if self._generation[0] != self._seen:
            self._sync_nic()
        self._transmit(self.clock())

    def _sync_nic(self) -> None:
        """Take new settings of the device, publish its counters."""
        control = self._control
        control.sync(self.counters())
        self._seen = control.seen
        self._tx, self._rx = control.tx, control.rx
        self._publish_at = NEVER

    def counters(self) -> dict[str, int]:
        """Endpoint's, NIC's and socket's counters in one."""
        received, dropped = self.socket.statistics()
        others = self._key_host.counters() if self._key_host is not None else {}
        return {**others, **self.socket.more_counters(), **self.endpoint.counters.snapshot(),
                **self.nic.counters.snapshot(), **self._control.counters(), "socket_received": received,
                "socket_dropped": dropped, "socket_send_drops": self.socket.send_drops,
                "unresolved": self.driver.unresolved}

    def _work(self, now: int) -> bool:
        if self._inbox is not None:
            self._take_messages(self._inbox, now)
        count = self._arrive(self.socket.receive(MAX_BACKLOG), now)
        busy = count > 0
        if self.nic.waiting and self._backlog < MAX_BACKLOG:
            # After a stall, what timers wait for may be in the rings behind these frames.
            self._backlog += count
        else:
            self._backlog = 0
            if not busy or now >= self._timers_at or self._later:
                self._timers_at = now + self._grain
                busy |= self._fire(now)
        if busy and self._publish_at == NEVER:
            self._publish_at = now + self._publish_ns
        return busy

    def _take_messages(self, inbox: sockets.socket, now: int) -> None:
        assert self._key_host is not None
        try:
            while True:
                message = inbox.recv(MAX_MESSAGE, sockets.MSG_DONTWAIT)
                if not message:
                    raise PeerError("the first worker of this port is gone")
                self._key_host.deliver(message, now)
        except BlockingIOError:
            return

    def _fire(self, now: int) -> bool:
        """Timers, and frames that were delayed, whose time has come."""
        busy = False
        timeout = self.stack.next_timeout()
        if timeout is not None and timeout <= now:
            if timeout > 0:
                # One that was not there the last time is not late: the pacer names the time the link fell idle,
                # however long ago, when a grant gives it something to send.
                self.statistics.late_ns = max(self.statistics.late_ns, now - max(timeout, self._looked))
            self.stack.handle_timeout(now)
            busy = True
        self._looked = now
        while self._later and self._later[0][0] <= now:
            _at, _n, outwards, frame = heapq.heappop(self._later)
            if outwards:
                self.socket.send([frame])
            else:
                self.stack.receive([frame], now)
            busy = True
        return busy

    def next_wake(self) -> int | None:
        """When to call :meth:`step` at the latest, if no frame comes: for event loops. 0: frames wait already."""
        timeout = self.stack.next_timeout()
        self._next = NEVER if timeout is None else timeout
        if self.nic.waiting:
            return 0
        at = self._publish_at
        if self._key_host is not None:
            # It has things to do now and then, whether or not anybody calls: tickets to publish.
            at = min(at, self.clock() + IDLE_NS)
        if self._later:
            at = min(at, self._later[0][0])
        if at >= NEVER:
            return timeout
        return at if timeout is None or at < timeout else timeout

    def _wake(self, deadline: int | None, now: int) -> int:
        wake = now + IDLE_NS
        if deadline is not None:
            wake = min(wake, deadline)
        timeout = self.next_wake()
        return wake if timeout is None else min(wake, timeout)

    def _arrive(self, frames: list[bytes], now: int) -> int:
        """Take what came; how many frames there were to do something about."""
        delayed = 0
        if self._rx is not None and frames:
            for frame in frames:
                for packet in cut_untrusted(frame):
                    self._delay(self._rx, packet, False, now)
            delayed, frames = len(frames), []
        if not frames and not self.nic.waiting:
            return delayed
        return delayed + self.stack.receive(frames, now, RECEIVE_BATCH)

    def _transmit(self, now: int) -> None:
        frames = self.stack.transmit(now)
        if frames:
            self._send(frames, now)

    def _send(self, frames: list[bytes], now: int) -> None:
        if self._tx is None:
            self.socket.send(frames)
            return
        for frame in frames:
            # Impairments happen to packets, as on a wire.
            for packet in cut_untrusted(frame):
                self._delay(self._tx, packet, True, now)

    def _delay(self, path: Impairments, frame: bytes, outwards: bool, now: int) -> None:
        for at, changed in path.apply(frame, now):
            self._numbers += 1
            heapq.heappush(self._later, (at, self._numbers, outwards, changed))

    def close(self) -> None:
        """Leave the interface's NIC, close the socket."""
        try:
            self._control.close(self.counters())
            self._generation = self._control.generation
        finally:
            self.socket.close()
