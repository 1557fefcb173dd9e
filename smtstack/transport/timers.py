"""Deadlines in ticks: of RPCs, most of which end before their timer is looked at, and of old keys."""

from __future__ import annotations

import heapq

from smtstack.crypto.epochs import Session
from smtstack.transport.rpc import Rpc


class TimerTable:
    """Buckets of RPCs by tick. Re-arming leaves the old entry behind; it is skipped when its tick comes."""

    __slots__ = ("_buckets", "_ticks")

    def __init__(self) -> None:
        self._buckets: dict[int, list[Rpc]] = {}
        self._ticks: list[int] = []

    def arm(self, rpc: Rpc, tick: int) -> None:
        """Look at ``rpc`` at ``tick``, and no longer at any other."""
        rpc.armed_tick = tick
        bucket = self._buckets.get(tick)
        if bucket is None:
            self._buckets[tick] = [rpc]
            heapq.heappush(self._ticks, tick)
        else:
            bucket.append(rpc)

    def next_tick(self) -> int | None:
        """Earliest tick with an RPC that is still armed for it."""
        while self._ticks:
            tick = self._ticks[0]
            bucket = self._buckets[tick]
            # Those let go are taken out, or every question would go past them again.
            while bucket:
                if bucket[-1].armed_tick == tick:
                    return tick
                bucket.pop()
            heapq.heappop(self._ticks)
            del self._buckets[tick]
        return None

    def due(self, tick: int) -> list[Rpc]:
        """Take out the RPCs armed for ``tick`` or earlier, in order; each is disarmed."""
        out: list[Rpc] = []
        while self._ticks and self._ticks[0] <= tick:
            at = heapq.heappop(self._ticks)
            for rpc in self._buckets.pop(at):
                if rpc.armed_tick == at:
                    rpc.armed_tick = -1
                    out.append(rpc)
        return out


class KeyTimers:
    """When sessions are to forget the keys of epochs that are over."""

    __slots__ = ("_count", "_watched", "heap")

    def __init__(self) -> None:
        #: (tick, number, session); each session once.
        self.heap: list[tuple[int, int, Session]] = []
        self._watched: set[Session] = set()
        self._count = 0

    def watch(self, session: Session) -> None:
        """``session`` has set ``forget_at``."""
        tick = session.forget_at
        session.forget_at = -1
        # Of several epochs the first to be left is the first to be forgotten.
        if session not in self._watched:
            self._watched.add(session)
            self._push(tick, session)

    def _push(self, tick: int, session: Session) -> None:
        self._count += 1
        heapq.heappush(self.heap, (tick, self._count, session))

    def next_tick(self) -> int | None:
        """Earliest tick at which there is something to forget."""
        return self.heap[0][0] if self.heap else None

    def expire(self, tick: int) -> None:
        """Let sessions forget what is due at ``tick``."""
        heap = self.heap
        while heap and heap[0][0] <= tick:
            session = heapq.heappop(heap)[2]
            again = session.forget(tick)
            if again >= 0:
                self._push(again, session)
            else:
                self._watched.discard(session)
