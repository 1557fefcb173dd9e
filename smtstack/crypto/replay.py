"""The replay guard: which message ids of one key epoch were delivered before."""

from __future__ import annotations

from typing import Final

DEFAULT_WINDOW: Final = 4096
#: Ticks for which a delivered request is known that may come again by a detour, and after which a module that was
#: loaded anew may use the id again.
RECENT_TICKS: Final = 1000


class ReplayGuard:
    """Floor and the set of ids seen above it; exact while ids come without lasting gaps.

    Fed only by *authenticated* messages. The kernel module moves its window before it authenticates, so
    one forged packet with a high id blocks every genuine one (reference §3.4); here a forger changes
    nothing. When more than ``window`` ids wait above a gap, the floor moves up and ids below it are
    refused: a bounded memory must forget, and forgetting must not admit a replay.
    """

    __slots__ = ("floor", "seen", "window")

    def __init__(self, window: int = DEFAULT_WINDOW) -> None:
        #: Every id below this was seen, or counts as seen. In units of RPCs: ids step by 2.
        self.floor = 1
        self.seen: set[int] = set()
        self.window = window

    def is_replay(self, message_id: int) -> bool:
        """Whether this id was marked before, or is too old to know."""
        n = message_id >> 1
        return n < self.floor or n in self.seen

    def mark(self, message_id: int) -> bool:
        """Remember an authenticated message; False if it was there already (do not deliver it)."""
        n = message_id >> 1
        floor = self.floor
        if n == floor:
            floor += 1
            seen = self.seen
            while floor in seen:
                seen.remove(floor)
                floor += 1
            self.floor = floor
            return True
        if n < floor or n in self.seen:
            return False
        self.seen.add(n)
        if len(self.seen) > self.window:
            self._forget_oldest()
        return True

    def _forget_oldest(self) -> None:
        ordered = sorted(self.seen)
        floor = ordered[len(ordered) // 4] + 1
        self.seen.difference_update(ordered[:len(ordered) // 4 + 1])
        while floor in self.seen:
            self.seen.remove(floor)
            floor += 1
        self.floor = floor


class RecentIds(ReplayGuard):
    """Which requests were delivered lately: profile ``upstream``, whose ids begin anew when its module is loaded.

    Nothing is authenticated there, so this is against the network's own duplicates only. ``tick`` is for whoever
    asks or marks to set first.
    """

    __slots__ = ("_marked", "tick")

    def __init__(self, window: int = DEFAULT_WINDOW) -> None:
        super().__init__(window)
        #: Tick of delivery by id, oldest first.
        self._marked: dict[int, int] = {}
        self.tick = 0

    def is_replay(self, message_id: int) -> bool:
        """Whether this id was marked in the last :data:`RECENT_TICKS`, and not ``window`` others since."""
        at = self._marked.get(message_id)
        return at is not None and self.tick - at < RECENT_TICKS

    def mark(self, message_id: int) -> bool:
        """Remember a message; False if it was there already."""
        if self.is_replay(message_id):
            return False
        marked = self._marked
        marked.pop(message_id, None)
        marked[message_id] = self.tick
        if len(marked) > self.window:
            del marked[next(iter(marked))]
        return True
