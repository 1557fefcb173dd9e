"""Time of an untrusted host, as a guarded process counts it."""

from __future__ import annotations

from collections.abc import Callable


class SteadyClock:
    """Nanoseconds that never go back: what ``host``, a clock of the host's, went forward. Where that is set back,
    time stands for a moment and goes on from there, so that no timer waits until the host's clock is again where
    it was. One that runs fast, slow or not at all cannot be told from a machine that was busy."""

    def __init__(self, host: Callable[[], int]) -> None:
        self._host = host
        self._last = host()
        self._ahead = 0
        #: How often the host's clock was behind what it had said before.
        self.turned_back = 0

    def __call__(self) -> int:
        """Now; with a host's clock that is never set back, what that says."""
        at = self._host()
        if at < self._last:
            self._ahead += self._last - at
            self.turned_back += 1
        self._last = at
        return at + self._ahead
