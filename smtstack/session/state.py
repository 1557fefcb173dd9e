"""What a server must remember to accept sessions that begin with data: its tickets, its clients' hellos, a key.

All processes of a server share it. Lost state is no danger: without the tickets' private halves and the sealing
key nothing that was recorded can be replayed. Only state that is *older* than it should be would be.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace
from typing import Protocol

from smtstack.errors import SmtError
from smtstack.session.tickets import SKEW_S, TicketSecret

#: A sealing key seals for so long, and opens for twice as long: what it sealed lives at most an hour.
SEALING_S = 3600
SEALING_KEY_LEN = 32
#: Hellos remembered at a time; 32 bytes each, and at most an hour's.
MAX_HELLOS = 1 << 20
#: Hellos of a process between two looks for what expired, and at how many there are.
LOOK_EVERY = 4096


class StateError(SmtError):
    """The state cannot be read or written; nobody is let in meanwhile."""


@dataclass(frozen=True, slots=True)
class SealingKey:
    """Seals what a server gives its clients to keep."""

    number: int
    key: bytes = field(repr=False)
    #: Unix seconds.
    since: int

    def seals(self, utc: int) -> bool:
        """Whether it may seal; later it only opens."""
        return self.since <= utc < self.since + SEALING_S

    def opens(self, utc: int) -> bool:
        """Whether it may open."""
        return utc < self.since + 2 * SEALING_S


class ServerState(Protocol):
    """Every method may raise :class:`StateError`."""

    def remember(self, mark: bytes, until: int, utc: int) -> bool:
        """Whether ``mark`` (32 bytes) is new; it is remembered through second ``until``.

        One step for all processes: of several that ask at once, one is told so. What ended before the last purge
        is not new, as it may have been forgotten: so nothing comes back when the clock is set back.
        """

    def add_ticket(self, secret: TicketSecret) -> None:
        """Accept sessions that begin with this ticket."""

    def ticket(self, ticket_id: bytes) -> TicketSecret | None:
        """The ticket, revoked and expired ones included; None: never had it, or long forgotten."""

    def tickets(self) -> list[TicketSecret]:
        """All tickets, the oldest first."""

    def revoke(self, ticket_id: bytes) -> bool:
        """From now on nobody gets in with this ticket; False: there is none."""

    def sealing_key(self, utc: int) -> SealingKey:
        """The key to seal with."""

    def opening_key(self, number: int, utc: int) -> SealingKey | None:
        """The key of that number, if it still opens."""

    def purge(self, utc: int) -> int:
        """Forget what expired ``SKEW_S`` ago; the number of hellos forgotten."""


class MemoryState:
    """State of one process, gone with it."""

    def __init__(self, max_hellos: int = MAX_HELLOS) -> None:
        self._max_hellos = max_hellos
        self._hellos: dict[bytes, int] = {}
        #: What ended before is forgotten.
        self._forgotten = 0
        self._added = 0
        self._tickets: dict[bytes, TicketSecret] = {}
        self._keys: list[SealingKey] = []

    def remember(self, mark: bytes, until: int, utc: int) -> bool:
        """Whether ``mark`` (32 bytes) is new; it is remembered through second ``until``."""
        if mark in self._hellos or until < self._forgotten:
            return False
        full = len(self._hellos) >= self._max_hellos
        if full or self._added >= LOOK_EVERY:
            self._added = 0
            full = not self.purge(utc) and full
        if full:
            raise StateError(f"it is full: {self._max_hellos} hellos of the last hour")
        self._added += 1
        self._hellos[mark] = until
        return True

    def add_ticket(self, secret: TicketSecret) -> None:
        """Accept sessions that begin with this ticket."""
        self._tickets[secret.ticket.ticket_id] = secret

    def ticket(self, ticket_id: bytes) -> TicketSecret | None:
        """The ticket, revoked and expired ones included; None: never had it, or long forgotten."""
        return self._tickets.get(ticket_id)

    def tickets(self) -> list[TicketSecret]:
        """All tickets, the oldest first."""
        return sorted(self._tickets.values(), key=lambda s: s.ticket.not_before)

    def revoke(self, ticket_id: bytes) -> bool:
        """From now on nobody gets in with this ticket; False: there is none."""
        secret = self._tickets.get(ticket_id)
        if secret is not None:
            self._tickets[ticket_id] = replace(secret, revoked=True)
        return secret is not None

    def sealing_key(self, utc: int) -> SealingKey:
        """The key to seal with."""
        if not self._keys or not self._keys[-1].seals(utc):
            self._keys = [k for k in self._keys if k.opens(utc)]
            self._keys.append(SealingKey(secrets.randbits(32), secrets.token_bytes(SEALING_KEY_LEN), utc))
        return self._keys[-1]

    def opening_key(self, number: int, utc: int) -> SealingKey | None:
        """The key of that number, if it still opens."""
        return next((k for k in self._keys if k.number == number and k.opens(utc)), None)

    def purge(self, utc: int) -> int:
        """Forget what expired ``SKEW_S`` ago; the number of hellos forgotten."""
        before = len(self._hellos)
        self._forgotten = max(self._forgotten, utc - SKEW_S)
        self._hellos = {mark: until for mark, until in self._hellos.items() if until >= self._forgotten}
        self._tickets = {i: s for i, s in self._tickets.items() if s.ticket.not_after >= utc}
        self._keys = [k for k in self._keys if k.opens(utc)]
        return before - len(self._hellos)
