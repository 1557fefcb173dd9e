"""Which switches refused something, and when each is tried again. No clock, no I/O."""

from __future__ import annotations

from collections.abc import Collection

#: Seconds until a switch is tried again, by how often it was before. After the last it is left alone until
#: something else happens: a link, a connection.
DELAYS_S = (0.1, 0.3, 1.0, 3.0)


class Retries:
    """Told of every refusal and of every success; says what is to be done, and what to tell."""

    def __init__(self) -> None:
        self._attempts: dict[str, int] = {}
        self._why: dict[str, str] = {}

    def refused(self, switch: str, why: str) -> None:
        """A switch refused something, or gave no answer."""
        self._why[switch] = why

    def failed(self, switch: str) -> float | None:
        """An attempt has ended, and the switch does not have what it should: seconds until the next attempt; None:
        there is none."""
        attempt = self._attempts.get(switch, 0)
        self._attempts[switch] = attempt + 1
        return DELAYS_S[attempt] if attempt < len(DELAYS_S) else None

    def succeeded(self, switches: Collection[str]) -> None:
        """They have what they should."""
        for switch in switches:
            self._attempts.pop(switch, None)
            self._why.pop(switch, None)

    def start_over(self) -> None:
        """Something has changed: the next attempt is the first again."""
        self._attempts.clear()

    def forget(self, switch: str) -> None:
        """A switch is gone: nothing is held against it."""
        self.succeeded([switch])

    @property
    def refusing(self) -> dict[str, str]:
        """What each switch refused last that does not have all it should, with how often it was tried."""
        return {switch: f"{why} (tried {self._attempts.get(switch, 0)} times)" for switch, why in
                sorted(self._why.items())}

    @property
    def given_up(self) -> bool:
        """Whether one is left as it is."""
        return any(attempts > len(DELAYS_S) for attempts in self._attempts.values())
