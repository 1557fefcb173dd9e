"""One direction of a link: a queue, a rate, a delay.

A frame occupies the link for its own bytes (60 at least) and 24 more of preamble, FCS and gap
(:mod:`smtstack.wire.ethernet`), as on real Ethernet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from smtstack.errors import ConfigError
from smtstack.sim.clock import Clock
from smtstack.wire.ethernet import FRAME_OVERHEAD, MIN_FRAME
from smtstack.wire.frame import TOS_AT

PRIORITIES = 8
#: TOS byte of an IPv4 packet in its frame; the top three bits are Homa's priority.

#: Called for a frame that reached the end of a link.
Deliver = Callable[[bytes], None]
#: Called with (time in ns, place, frame) when the last bit of a frame reaches the end of a link.
Tap = Callable[[int, str, bytes], None]


@dataclass(frozen=True, slots=True)
class LinkParams:
    """Both directions of a link. Raises :class:`ConfigError` for a rate or delay that makes no sense."""

    rate_mbps: int = 10_000
    """Mbit/s."""
    delay_ns: int = 0
    """Propagation, ns each way."""
    queue_bytes: int = 0
    """Frame bytes that may wait for the link, the one being sent not counted; 0: no limit."""

    def __post_init__(self) -> None:
        if self.rate_mbps < 1:
            raise ConfigError(f"rate_mbps is {self.rate_mbps}; a link has at least 1 Mbit/s")
        if min(self.delay_ns, self.queue_bytes) < 0:
            raise ConfigError("delay_ns and queue_bytes are at least 0")


def wire_bytes(frame_len: int) -> int:
    """Bytes of link time that a frame of ``frame_len`` bytes costs."""
    return (frame_len if frame_len > MIN_FRAME else MIN_FRAME) + FRAME_OVERHEAD


class EgressPort:
    """Where frames leave a device: they wait here, by strict priority or first in, first out.

    A frame that finds the queue full is dropped, whatever its priority. ``extra_delay_ns`` is added to
    the link's delay: a fixed processing time of the device (a switch's forwarding) that all frames through
    this port share looks the same before its queue and behind it, and costs no event here.
    """

    __slots__ = ("_backlog", "_busy_until", "_clock", "_delay", "_deliver", "_limit", "_occupied", "_queues",
                 "_rate", "_rest", "_strict", "_taps", "_waiting", "bytes", "drops", "frames", "place",
                 "queue_peak")

    def __init__(self, clock: Clock, place: str, params: LinkParams, deliver: Deliver, *, strict: bool,
                 extra_delay_ns: int = 0) -> None:
        self._clock = clock
        #: Name of this direction of the link, e.g. ``h1->s1``.
        self.place = place
        self._rate = params.rate_mbps
        self._delay = params.delay_ns + extra_delay_ns
        self._limit = params.queue_bytes
        self._deliver = deliver
        self._strict = strict
        self._taps: list[Tap] = []
        self._queues: list[deque[bytes]] = [deque() for _ in range(PRIORITIES)]
        #: Bit p is set while queue p holds something.
        self._occupied = 0
        #: Frame bytes waiting.
        self._backlog = 0
        #: When the link is free again.
        self._busy_until = 0
        #: What integer division left of the last frame's time, so that rates are exact in the long run.
        self._rest = 0
        #: An event will look at the queue.
        self._waiting = False
        #: Frames and bytes (as :func:`wire_bytes` counts) put on the link.
        self.frames = 0
        self.bytes = 0
        #: Frames dropped for want of room, by priority.
        self.drops = [0] * PRIORITIES
        #: Most frame bytes that ever waited.
        self.queue_peak = 0

    def tap(self, tap: Tap) -> None:
        """Show ``tap`` every frame from now on."""
        self._taps.append(tap)

    def backlog(self) -> int:
        """Frame bytes waiting now."""
        return self._backlog

    def send(self, frame: bytes) -> None:
        """Queue a frame, or drop and count it."""
        now = self._clock.now
        if not self._occupied and now >= self._busy_until:
            self._start(frame, now)
            return
        size = len(frame)
        priority = frame[TOS_AT] >> 5 if size > TOS_AT else 0
        backlog = self._backlog + size
        if self._limit and backlog > self._limit:
            self.drops[priority] += 1
            return
        self._backlog = backlog
        self.queue_peak = max(self.queue_peak, backlog)
        queue = priority if self._strict else 0
        self._queues[queue].append(frame)
        self._occupied |= 1 << queue
        if not self._waiting:
            self._waiting = True
            self._clock.schedule(self._busy_until, self._next)

    def _start(self, frame: bytes, now: int) -> None:
        size = len(frame)
        size = (size if size > MIN_FRAME else MIN_FRAME) + FRAME_OVERHEAD
        self.frames += 1
        self.bytes += size
        duration, self._rest = divmod(size * 8000 + self._rest, self._rate)
        end = self._busy_until = now + duration
        self._clock.schedule(end + self._delay, self._arrive if self._taps else self._deliver, frame)

    def _next(self) -> None:
        top = self._occupied.bit_length() - 1
        queue = self._queues[top]
        frame = queue.popleft()
        if not queue:
            self._occupied ^= 1 << top
        self._backlog -= len(frame)
        self._start(frame, self._clock.now)
        if self._occupied:
            self._clock.schedule(self._busy_until, self._next)
        else:
            self._waiting = False

    def _arrive(self, frame: bytes) -> None:
        for tap in self._taps:
            tap(self._clock.now, self.place, frame)
        self._deliver(frame)
