"""How long to look for something again and again before sleeping, as Homa does, and when that is worth it.

Sans-IO: whoever waits for a socket asks a :class:`Waiter`, with time as an argument, and tells it what came::

    until = waiter.begin(now)      there is nothing to do: look again and again until then (now: sleep at once)
    waiter.stalled()               a look came late: somebody else had the processor; sleep now
    waiter.end(now, came)          the wait is over; whether anything came

Who sleeps is woken late, and what runs then is cold: a round trip takes several times as long as between two who
look. But who looks has a processor for himself, so it is done only where it pays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from smtstack.errors import ConfigError

#: Look where it pays and a processor is free; never look; always look.
HYBRID: Final = "hybrid"
INTERRUPT: Final = "interrupt"
POLL: Final = "poll"
MODES: Final = (HYBRID, INTERRUPT, POLL)
#: The longest look in ns: upstream Homa's ``poll_usecs`` is 50, of which here hardly a round trip is made.
LONGEST_NS: Final = 200_000
#: A look that comes so much later than the one before, in ns: somebody else had the processor in between.
STALL_NS: Final = 50_000
#: A wait longer than so many times the longest look counts as that long: one pause is no new habit.
_CLIP: Final = 3
#: The last wait's share of what is expected, as a shift: a quarter.
_SHARE: Final = 2
#: Looks in vain after which the next 1022 waits are slept through.
_MOST_FAILURES: Final = 10
#: Whether others want our processor is asked this often, in ns, and once more soon before it is believed.
_ASK_NS: Final = 20_000_000
_ASK_AGAIN_NS: Final = 1_000_000
#: When they do, nobody looks for the first of these times in ns, twice as long each time, up to the second.
_PAUSE_NS: Final = 50_000_000
_LONGEST_PAUSE_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Waiting:
    """How one waits. Raises :class:`ConfigError` for a mode that is none."""

    mode: str = HYBRID
    """One of :data:`MODES`."""
    longest_ns: int = LONGEST_NS
    """The longest look; without meaning for :data:`INTERRUPT`."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"there is no way to wait called {self.mode!r}; there are {', '.join(MODES)}")


#: As Homa does, by default; as the kernel's TCP does.
AS_HOMA: Final = Waiting()
AS_TCP: Final = Waiting(INTERRUPT)


class Waiter:
    """Whether looking pays, by what was seen lately. ``outnumbered``: whether more tasks want a processor than
    there are; None: nobody knows.

    What the next wait will take is expected from the last ones, by a moving average, and looking is worth it while
    that is no more than the longest look. Each look that was in vain, one after the other, has the next waits
    slept through, twice as many each time (the first is forgiven): it may be the looking itself that keeps the
    other side from its processor.
    """

    __slots__ = ("_adapts", "_ask_at", "_began", "_came", "_doubt", "_ended", "_expected", "_failures", "_longest",
                 "_outnumbered", "_pause", "_skip", "_until", "looks")

    def __init__(self, how: Waiting, outnumbered: Callable[[], bool] | None = None) -> None:
        self._longest = 0 if how.mode == INTERRUPT else how.longest_ns
        self._adapts = how.mode == HYBRID
        self._outnumbered = outnumbered
        #: Whether there is anything to ask: False: always sleep.
        self.looks = self._longest > 0
        #: The wait that is under way, or was the last: when it began and until when it was to be looked for; when
        #: it ended, with something or not.
        self._began = self._until = self._ended = 0
        self._came = False
        #: What the next wait will take, in ns: at first there is hope.
        self._expected = self._longest
        #: Looks in vain, one after the other, and waits to be slept through for it.
        self._failures = self._skip = 0
        #: When to ask for others again; whether they were there the last time; how long nobody looks for it.
        self._ask_at = 0
        self._doubt = False
        self._pause = 0

    def begin(self, now: int) -> int:
        """There is nothing to do: until when to look before sleeping."""
        if not self._adapts:
            return now + self._longest
        if self._ended:
            self._learn()
        self._began = self._until = now
        if self._skip:
            self._skip -= 1
        elif self._expected <= self._longest and not self._others(now):
            self._until = now + self._longest
        return self._until

    def end(self, now: int, came: bool) -> None:
        """The wait is over. What it teaches is learned when the next one begins: now there is something to do."""
        self._ended = now
        self._came = came

    def stalled(self) -> None:
        """Between two looks somebody else had the processor."""
        if self._adapts:
            self._until = self._began
            self._failed()

    def _learn(self) -> None:
        took = self._ended - self._began
        if self._came or took >= self._longest:
            self._expected += (min(took, _CLIP * self._longest) - self._expected) >> _SHARE
        if self._until > self._began:
            if self._ended >= self._until:
                self._failed()
            elif self._came:
                self._failures = 0
        self._ended = 0

    def _failed(self) -> None:
        self._failures = min(self._failures + 1, _MOST_FAILURES)
        self._skip = (1 << self._failures) - 2

    def _others(self, now: int) -> bool:
        """Whether somebody else wants the processor, or did a short time ago."""
        if self._outnumbered is None or now < self._ask_at:
            return self._pause > 0
        if not self._outnumbered():
            self._doubt, self._pause = False, 0
            self._ask_at = now + _ASK_NS
        elif not self._doubt:
            # Something short of the kernel's, maybe.
            self._doubt = True
            self._ask_at = now + _ASK_AGAIN_NS
        else:
            self._pause = min(max(2 * self._pause, _PAUSE_NS), _LONGEST_PAUSE_NS)
            self._ask_at = now + self._pause
        return self._pause > 0
