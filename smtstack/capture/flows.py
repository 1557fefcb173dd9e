"""The keys of what a capture holds: by sender and receiver, and in profile ``smt`` by key epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from smtstack.crypto.aead import DirectionKeys
from smtstack.crypto.keys import Endpoints, KeyStore
from smtstack.crypto.session import EpochKeys, LinuxSession, SmtSession

#: The wire shows the low 8 bits of an epoch. A capture that starts late may be in a later round of them.
_FIRST_ROUNDS = 2


class Flow(NamedTuple):
    """Who sends to whom. Addresses as 32-bit integers."""

    src: int
    sport: int
    dst: int
    dport: int


class SmtFlow:
    """One direction of a session of profile ``smt``, seen from its receiver."""

    __slots__ = ("_epochs", "_newest", "session")

    def __init__(self, session: SmtSession) -> None:
        self.session = session
        self._epochs: dict[int, EpochKeys] = {}
        #: Epoch of what authenticated last; -1: nothing yet.
        self._newest = -1

    def epochs(self, wire_epoch: int) -> Iterator[EpochKeys]:
        """Keys that a packet with this epoch byte may be sealed under, the likeliest first."""
        if self._newest < 0:
            rounds: list[int] = list(range(_FIRST_ROUNDS))
        else:
            now = self._newest >> 8
            near = sorted((now - 1, now, now + 1), key=lambda r: abs((r << 8 | wire_epoch) - self._newest))
            rounds = [r for r in near if r >= 0]
        for number in rounds:
            yield self._keys(number << 8 | wire_epoch)

    def proved(self, keys: EpochKeys) -> None:
        """Something authenticated under ``keys``."""
        self._newest = keys.epoch

    def _keys(self, epoch: int) -> EpochKeys:
        keys = self._epochs.get(epoch)
        if keys is None:
            # Straight from the schedule: a live session admits only epochs next to its newest, but a
            # capture may begin anywhere.
            tx, rx = self.session.schedule(epoch)
            keys = self._epochs[epoch] = EpochKeys(epoch, tx, rx, self.session.params.replay_window)
        return keys


class Flows:
    """Finds keys for flows."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store
        self._smt: dict[Flow, SmtFlow | None] = {}
        #: Flows for which the store has no key.
        self.unknown: set[Flow] = set()

    def smt(self, flow: Flow) -> SmtFlow | None:
        """The direction of this flow; None: no key for this pair of hosts."""
        if flow not in self._smt:
            session = self._store.session(Endpoints(flow.dst, flow.dport, flow.src, flow.sport))
            self._smt[flow] = SmtFlow(session) if isinstance(session, SmtSession) else None
            if session is None:
                self.unknown.add(flow)
        return self._smt[flow]

    def linux(self, flow: Flow, from_client: bool) -> DirectionKeys | None:
        """What the client's or the server's records are sealed with; None: no key."""
        session = self._store.session(Endpoints(flow.dst, flow.dport, flow.src, flow.sport))
        if not isinstance(session, LinuxSession):
            self.unknown.add(flow)
            return None
        return session.client if from_client else session.server
