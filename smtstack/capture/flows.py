"""The keys of what a capture holds: by sender and receiver, and in profile ``smt`` by key epoch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from smtstack.capture.keylog import SeenKeys
from smtstack.crypto.aead import DirectionKeys
from smtstack.crypto.epochs import EpochKeys, LinuxSession, SmtSession
from smtstack.crypto.keys import Endpoints, KeyStore
from smtstack.wire import homa

#: The wire shows the low 8 bits of an epoch. A capture that starts late may be in a later round of them.
_FIRST_ROUNDS = 2
#: Flows whose sessions are at hand; those of others are looked up again. And epochs of each whose keys are.
MAX_FLOWS, _MAX_EPOCHS = 4096, 16
#: Pairs of hosts named that have no key.
_MAX_UNKNOWN = 1024


class Flow(NamedTuple):
    """Who sends to whom. Addresses as 32-bit integers."""

    src: int
    sport: int
    dst: int
    dport: int


def of_handshake(transport: bytes) -> bool:
    """Whether a packet of profile ``smt`` belongs to the handshake plane: plain Homa, in clear."""
    return len(transport) >= homa.COMMON_LEN and bool(transport[homa.FLAGS_OFFSET] & homa.HANDSHAKE)


class _Candidate:
    """One session that a flow may belong to, with its keys by epoch."""

    __slots__ = ("_epochs", "early", "newest", "session")

    def __init__(self, session: SmtSession, early: bool) -> None:
        self.session = session
        #: It has no epoch but 0.
        self.early = early
        self._epochs: dict[int, EpochKeys] = {}
        #: Epoch of what authenticated last; -1: nothing yet.
        self.newest = -1

    def epochs(self, wire_epoch: int) -> Iterator[EpochKeys]:
        if self.early:
            if wire_epoch == 0:
                yield self._keys(0)
            return
        if self.newest < 0:
            rounds: list[int] = list(range(_FIRST_ROUNDS))
        else:
            now = self.newest >> 8
            near = sorted((now - 1, now, now + 1), key=lambda r: abs((r << 8 | wire_epoch) - self.newest))
            rounds = [r for r in near if r >= 0]
        for number in rounds:
            yield self._keys(number << 8 | wire_epoch)

    def _keys(self, epoch: int) -> EpochKeys:
        keys = self._epochs.get(epoch)
        if keys is None:
            # Straight from the schedule: a live session admits only epochs next to its newest, but a
            # capture may begin anywhere.
            tx, rx = self.session.schedule(epoch)
            keys = self._epochs[epoch] = EpochKeys(epoch, tx, rx, self.session.params.replay_window)
            if len(self._epochs) > _MAX_EPOCHS:
                del self._epochs[next(iter(self._epochs))]
        return keys


class SmtFlow:
    """One direction between two ends in profile ``smt``, seen from its receiver: a session or several in turn."""

    __slots__ = ("_candidates", "several")

    def __init__(self, sessions: list[tuple[SmtSession, bool]]) -> None:
        #: The one that authenticated something last is tried first.
        self._candidates = [_Candidate(session, early) for session, early in sessions]
        early_ones = sum(early for _session, early in sessions)
        #: More than one session used these addresses and ports: an id and epoch may mean two messages. The
        #: early secret of a session makes no second one.
        self.several = max(early_ones, len(sessions) - early_ones) > 1

    def epochs(self, wire_epoch: int) -> Iterator[tuple[SmtSession, EpochKeys]]:
        """Keys that a packet with this epoch byte may be sealed under, the likeliest first."""
        for candidate in tuple(self._candidates):
            for keys in candidate.epochs(wire_epoch):
                yield candidate.session, keys

    def proved(self, session: SmtSession, keys: EpochKeys) -> None:
        """Something authenticated under ``keys`` of ``session``."""
        candidates = self._candidates
        for n, candidate in enumerate(candidates):
            if candidate.session is session:
                candidate.newest = keys.epoch
                if n:
                    candidates.insert(0, candidates.pop(n))
                return


class Flows:
    """Finds keys for flows."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store
        self._smt: OrderedDict[Flow, SmtFlow | None] = OrderedDict()
        #: Senders and receivers for which the store has no key.
        self.unknown: set[tuple[int, int]] = set()

    def smt(self, flow: Flow) -> SmtFlow | None:
        """The direction of this flow; None: no key for this pair of hosts."""
        if flow not in self._smt:
            ends = Endpoints(flow.dst, flow.dport, flow.src, flow.sport)
            if isinstance(self._store, SeenKeys):
                sessions = self._store.sessions(ends)
            else:
                session = self._store.session(ends)
                sessions = [(session, False)] if isinstance(session, SmtSession) else []
            self._smt[flow] = SmtFlow(sessions) if sessions else None
            if not sessions:
                self._no_key(flow)
            if len(self._smt) > MAX_FLOWS:
                self._smt.popitem(last=False)
        self._smt.move_to_end(flow)
        return self._smt[flow]

    def linux(self, flow: Flow, from_client: bool) -> DirectionKeys | None:
        """What the client's or the server's records are sealed with; None: no key."""
        session = self._store.session(Endpoints(flow.dst, flow.dport, flow.src, flow.sport))
        if not isinstance(session, LinuxSession):
            self._no_key(flow)
            return None
        return session.client if from_client else session.server

    def _no_key(self, flow: Flow) -> None:
        if len(self.unknown) < _MAX_UNKNOWN:
            self.unknown.add((flow.src, flow.dst))
