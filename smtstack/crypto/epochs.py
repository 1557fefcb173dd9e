"""Sessions: what two ports of two hosts share. Ids, key epochs, replay guards.

An RPC belongs to the epoch its client chose, and its response is sealed under the same epoch. Within one
epoch an id (with its role bit: even asks, odd answers) is used once per direction; that makes every composite
record number, hence every nonce, unique.

Key update: both ends use one row of epochs. Either moves on with a request of its own (the key nears its
limit, the ids end, or :meth:`SmtSession.update_keys` was called), and the other follows with what it asks next.
Nothing stops meanwhile. RPCs under way keep the keys of their epoch to their end. Requests of an epoch that was
left, late or sent again, are taken for ``late_ticks`` after the other side proved to have left it, too; what
did not arrive in that time has failed by then. Afterwards the epoch's keys are forgotten; the secrets they came
from were when it was left. So that neither end loses the other, nobody goes more than ``EPOCHS_AHEAD`` epochs
beyond the last that the other proved to know, nor leaves one while ``MAX_LATE`` others wait to be forgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from smtstack.crypto import padding, tls12
from smtstack.crypto.aead import AES_128_GCM, INTEGRITY_LIMIT, Cipher, DirectionKeys, NoKeys
from smtstack.crypto.composite import CompositeNumber
from smtstack.crypto.replay import DEFAULT_WINDOW, ReplayGuard
from smtstack.errors import LocalError
from smtstack.wire import naming
from smtstack.wire.naming import EPOCHS

NO_KEYS: Final = NoKeys()
FIRST_ID: Final = 2
#: Ids are 64 bits on the wire.
WIRE_ID_LIMIT: Final = 1 << 64
#: Epochs that may follow the last the peer proved to know: it opens requests of so many on trial. Several, as
#: of workers that share a port one may have seen no request of an epoch.
EPOCHS_AHEAD: Final = 4
#: Epochs that may wait to be forgotten at a time.
MAX_LATE: Final = 16
#: How far an RPC under way may be behind; the wire shows 8 bits of its epoch.
_MAX_BEHIND: Final = 200

#: Ticks for which late requests are taken, unless somebody is waited for longer.
LATE_TICKS: Final = 400


@dataclass(frozen=True, slots=True)
class SessionParams:
    """What both sides of an ``smt`` session must agree on, and two limits of our own."""

    cipher: Cipher = AES_128_GCM
    #: Bits of record index in the composite number (paper Fig. 5).
    index_bits: int = 16
    padding: padding.Padding = padding.none
    #: Records, in both directions, after which new RPCs use the next key epoch. 0: half the AEAD's limit.
    #: Several for each of the peer's workers: one that sees no request of too many epochs understands no more.
    key_update_records: int = 0
    #: Ids the replay guard keeps above a gap.
    replay_window: int = DEFAULT_WINDOW
    #: First id this side uses for a request; even. A key that outlives a process needs a fresh range.
    first_id: int = FIRST_ID
    #: Ticks for which late requests of an epoch are taken once both ends have left it: some lives of an RPC
    #: that nobody answers (65 ticks by default). Where this is the default, an endpoint that is more patient
    #: makes it as long as that.
    late_ticks: int = LATE_TICKS


class EpochKeys:
    """Both directions' keys of one epoch, their use, and the guard of the requests received under it."""

    __slots__ = ("active", "end", "epoch", "expires", "failed", "guard", "opened", "proven", "rx", "sealed", "tx",
                 "wire_epoch")

    def __init__(self, epoch: int, tx: DirectionKeys, rx: DirectionKeys, window: int) -> None:
        #: Absolute; and what of it the wire carries.
        self.epoch = epoch
        self.wire_epoch = naming.wire_epoch(epoch)
        self.tx = tx
        self.rx = rx
        self.guard = ReplayGuard(window)
        self.sealed = 0
        self.opened = 0
        #: Records that did not authenticate.
        self.failed = 0
        #: RPCs still running under this epoch, ours and the peer's.
        self.active = 0
        #: The peer asked or answered under it.
        self.proven = False
        #: Ids of ours were all below this; known once the epoch is left.
        self.end = 0
        #: Tick at which late requests are refused and the keys forgotten; -1: not known yet.
        self.expires = -1

    def retire(self) -> None:
        """The keys serve RPCs under way to their end, and nothing new."""
        for keys in (self.tx, self.rx):
            if keys is not NO_KEYS:
                keys.retired = True
        if not self.active:
            self.wipe()

    def wipe(self) -> None:
        """Let go of retired keys. Whoever keeps hold of this, the handle of an RPC perhaps, has none."""
        self.tx = self.rx = NO_KEYS


class Session:
    """Ids and replay protection without any keys: profile ``homa``, and the base of the others."""

    __slots__ = ("anonymous", "current", "forget_at", "id_limit", "next_id", "take_id")

    def __init__(self, take_id: Callable[[], int] | None = None, first_id: int = FIRST_ID,
                 window: int = DEFAULT_WINDOW) -> None:
        self.next_id = first_id
        #: Ids, role bit included, stay below this.
        self.id_limit = WIRE_ID_LIMIT
        #: Where ids come from, if not from this session: the kernel module counts per host.
        self.take_id = take_id
        self.current = EpochKeys(0, NO_KEYS, NO_KEYS, window)
        #: Tick at which to call :meth:`forget` first, set when an epoch is left; -1: there is nothing to forget.
        self.forget_at = -1
        #: The peer began it and did not show who it is: it may be answered, but nothing asked of it.
        self.anonymous = False

    def begin_rpc(self, tick: int = 0) -> tuple[EpochKeys, int]:
        """Epoch and a fresh id for a request; counted in ``EpochKeys.active`` until the RPC is over."""
        keys = self.current
        rpc_id = self.take_id() if self.take_id is not None else self.next_id
        self.next_id = rpc_id + 2
        keys.active += 1
        return keys, rpc_id

    def issued(self, wire_epoch: int, rpc_id: int) -> bool:
        """Whether this side ever used the id for a request (acknowledging a future one would be a gift)."""
        return wire_epoch == 0 and rpc_id < self.next_id

    def own_keys(self, wire_epoch: int) -> EpochKeys | None:
        """Keys of a request of ours under ``wire_epoch``; None: long over."""
        return self.current if wire_epoch == 0 else None

    def request_keys(self, wire_epoch: int) -> EpochKeys | None:
        """Keys and guard for a request the peer sent under ``wire_epoch``; None: no such epoch."""
        return self.current if wire_epoch == 0 else None

    def accept(self, keys: EpochKeys, tick: int = 0) -> None:
        """A request of the peer authenticated under ``keys``, the first time."""
        keys.proven = True

    def proved(self, keys: EpochKeys, tick: int = 0) -> None:
        """A response of the peer authenticated under ``keys``, the first time."""
        keys.proven = True

    def outlive(self, ticks: int) -> None:
        """Requests may come so many ticks late."""

    def forget(self, tick: int) -> int:
        """Forget epochs whose time is over; the tick at which to call again, or -1."""
        return -1

    def end(self) -> None:
        """The session is over: forget its keys."""


class NoSession(Session):
    """Stands where there is no session yet. It makes no ids and has no keys: nothing can be sent under it."""

    __slots__ = ()

    def begin_rpc(self, tick: int = 0) -> tuple[EpochKeys, int]:
        raise LocalError("there is no session with this peer")


NO_SESSION: Final = NoSession()


class KeySchedule(Protocol):
    """Makes the keys of one epoch: (ours, the peer's)."""

    def __call__(self, epoch: int, oldest: int = 0) -> tuple[DirectionKeys, DirectionKeys]:
        """``oldest``: no epoch before this one will be asked for again."""


def _no_keys(epoch: int, oldest: int = 0) -> tuple[DirectionKeys, DirectionKeys]:
    """The schedule of a session that is over."""
    raise LocalError("the session is over")


class SmtSession(Session):
    """A session of profile ``smt``: TLS 1.3 records, epochs, composite numbers."""

    __slots__ = ("_known", "_late", "_late_ticks", "_left", "_record_limit", "_trials", "_update_at", "may_ask",
                 "numbers", "pads", "params", "schedule")

    def __init__(self, schedule: KeySchedule, params: SessionParams) -> None:
        super().__init__(None, params.first_id, params.replay_window)
        self.schedule = schedule
        self.params = params
        self.numbers = CompositeNumber(params.index_bits)
        self.pads = params.padding is not padding.none
        #: Whether requests may be made here. Workers with one session must not: they would make the same ids.
        self.may_ask = True
        self._record_limit = params.cipher.record_limit
        self.id_limit = self.numbers.id_limit
        self._late_ticks = params.late_ticks
        self._update_at = self._update_interval()
        #: Epochs that were left, by number, as long as late packets of them are taken.
        self._late: dict[int, EpochKeys] = {}
        #: Epochs to come under which somebody claims to have asked. One object an epoch: a replay guard
        #: must not exist twice.
        self._trials: dict[int, EpochKeys] = {}
        #: Epochs that were left and may have RPCs under way, oldest first.
        self._left: list[EpochKeys] = []
        #: Last epoch that the peer proved to know; it has the session, so it knows the first.
        self._known = 0
        self.current = self._make(0)

    def _update_interval(self) -> int:
        return self.params.key_update_records or self.params.cipher.record_limit // 2

    def _make(self, epoch: int, oldest: int = 0) -> EpochKeys:
        tx, rx = self.schedule(epoch, oldest)
        return EpochKeys(epoch, tx, rx, self.params.replay_window)

    def complete(self, schedule: KeySchedule) -> None:
        """All keys are known now: of a session that began with what seals its first flight."""
        self.schedule = schedule
        self.current.rx = schedule(0)[1]

    def begin_rpc(self, tick: int = 0) -> tuple[EpochKeys, int]:
        """Epoch and fresh id; moves to the next epoch when the key or the ids near their end.

        Raises :class:`LocalError` where only others may ask, and when ids are used up while the next epoch must
        wait.
        """
        if not self.may_ask:
            raise LocalError("this process shares its sessions with other workers and cannot ask under them: "
                             "send requests from a port of its own")
        keys = self.current
        if (keys.sealed + keys.opened >= self._update_at or self.next_id >= self.id_limit
                or keys.failed > INTEGRITY_LIMIT):
            keys = self._advance(keys)
        rpc_id = self.next_id
        self.next_id = rpc_id + 2
        keys.active += 1
        return keys, rpc_id

    def _advance(self, keys: EpochKeys) -> EpochKeys:
        epoch = keys.epoch + 1
        why = ""
        if keys.rx is NO_KEYS:
            why = "the handshake has not ended"
        elif epoch - self._known > EPOCHS_AHEAD:
            why = f"the peer answered nothing under the last {EPOCHS_AHEAD} keys"
        elif len(self._late) >= MAX_LATE:
            why = f"the last {MAX_LATE} lasted less than {self._late_ticks} ticks together"
        elif self._too_far(epoch):
            why = f"an RPC still runs under the key of epoch {self._left[0].epoch}"
        if why:
            if self.next_id >= self.id_limit:
                raise LocalError(f"message ids of this key are used up, and the next key must wait: {why}")
            return keys
        self._move(self._trials.get(epoch) or self._make(epoch, epoch))
        return self.current

    def _too_far(self, epoch: int) -> bool:
        """Whether an RPC runs under an epoch so old that the wire could soon not tell it from this one."""
        self._left = [keys for keys in self._left if keys.active or keys.epoch in self._late]
        return bool(self._left) and epoch - self._left[0].epoch > _MAX_BEHIND

    def _move(self, keys: EpochKeys) -> None:
        """``keys``, of a later epoch, are the current ones from now on."""
        before = self.current
        before.end = self.next_id
        left = [before]
        # What the peer asked under epochs that it passed over may still be on its way.
        left += [self._trials.get(epoch) or self._make(epoch, epoch)
                 for epoch in range(before.epoch + 1, keys.epoch)]
        self._left += left
        self._late.update((old.epoch, old) for old in left)
        for epoch in [e for e in self._trials if e <= keys.epoch]:
            del self._trials[epoch]
        # From here on the schedule cannot go back to any of them.
        self.schedule(keys.epoch, keys.epoch)
        while len(self._late) > 2 * MAX_LATE:
            # No honest peer is so fast.
            self._late.pop(min(self._late)).retire()
        self.current = keys
        # Not FIRST_ID: a process that starts over with these keys comes to this epoch, too.
        self.next_id = self.params.first_id
        self._update_at = self._update_interval()

    def proved(self, keys: EpochKeys, tick: int = 0) -> None:
        """The peer asked or answered under ``keys``, the first time: it has left the epochs before."""
        keys.proven = True
        if keys.epoch <= self._known:
            return
        self._known = keys.epoch
        expires = tick + self._late_ticks
        for late in self._late.values():
            if late.expires < 0 and late.epoch < keys.epoch:
                late.expires = self.forget_at = expires

    def accept(self, keys: EpochKeys, tick: int = 0) -> None:
        """The peer asked under ``keys``, the first time: if they are newer than ours, we follow."""
        if keys.epoch > self.current.epoch:
            self._move(keys)
        self.proved(keys, tick)

    def outlive(self, ticks: int) -> None:
        if self.params.late_ticks == LATE_TICKS:
            self._late_ticks = max(LATE_TICKS, ticks)

    def forget(self, tick: int) -> int:
        at = -1
        for epoch, keys in list(self._late.items()):
            if keys.expires < 0:
                continue
            if keys.expires <= tick:
                del self._late[epoch]
                keys.retire()
            elif at < 0 or keys.expires < at:
                at = keys.expires
        self._left = [keys for keys in self._left if keys.active or keys.epoch in self._late]
        return at

    def end(self) -> None:
        for keys in (self.current, *self._late.values(), *self._trials.values()):
            keys.retire()
        self._late.clear()
        self._trials.clear()
        self._left.clear()
        self.schedule = _no_keys

    def update_keys(self) -> None:
        """Use the next epoch for the next request, or as soon as that may be."""
        self._update_at = 0

    def issued(self, wire_epoch: int, rpc_id: int) -> bool:
        """Whether this side ever used the id under this epoch for a request."""
        keys = self.own_keys(wire_epoch)
        return keys is not None and rpc_id < (self.next_id if keys is self.current else keys.end)

    def own_keys(self, wire_epoch: int) -> EpochKeys | None:
        """Keys of a request of ours under ``wire_epoch``; None: long over."""
        current = self.current
        behind = naming.wire_epoch(current.epoch - wire_epoch)
        return current if behind == 0 else self._late.get(current.epoch - behind)

    def request_keys(self, wire_epoch: int) -> EpochKeys | None:
        """Keys of the current epoch, of one that was left lately, or (on trial) of one of the next."""
        current = self.current
        # naming.wire_epoch(), without the call.
        ahead = (wire_epoch - current.epoch) % EPOCHS
        if ahead == 0:
            # After that many forgeries one may have passed (RFC 9147 §4.5.3): only the next key will do.
            return current if current.failed <= INTEGRITY_LIMIT else None
        if ahead > EPOCHS_AHEAD:
            return self._late.get(current.epoch + ahead - EPOCHS)
        epoch = current.epoch + ahead
        if current.rx is NO_KEYS or self._too_far(epoch):
            return None
        keys = self._trials.get(epoch)
        if keys is None:
            keys = self._trials[epoch] = self._make(epoch, current.epoch + 1)
        return keys

    def reserve(self, keys: EpochKeys, message_id: int, records: int) -> int:
        """Number of the first of ``records`` records about to be sealed for a message.

        Raises :class:`LocalError` when they do not fit the numbers or the AEAD's limit, before anything
        is sealed.
        """
        if message_id >= self.id_limit or records > self.numbers.max_records:
            self.numbers.first(message_id, records)  # which says what is wrong
        if keys.sealed + records > self._record_limit:
            raise LocalError(f"{self.params.cipher.name} key of epoch {keys.epoch} has protected all the "
                             "records it may (RFC 8446 §5.5)")
        keys.sealed += records
        # CompositeNumber.first(), without the call.
        return message_id << self.numbers.index_bits


class LinuxPlainSession(Session):
    """A session of profile ``linux`` in which nothing is sealed: the module's plain Homa.

    A kind of its own, so that it comes from a store that was asked for by name and from nothing else.
    """

    __slots__ = ()


class LinuxSession(Session):
    """A session of profile ``linux``: static keys by role, ids counted per host, no epochs."""

    __slots__ = ("client", "server")

    def __init__(self, client: DirectionKeys, server: DirectionKeys, take_id: Callable[[], int],
                 window: int = DEFAULT_WINDOW) -> None:
        super().__init__(take_id, window=window)
        # Records are numbered by these bits: an id beyond would authenticate as another's replay.
        self.id_limit = tls12.ID_LIMIT
        self.client = client
        self.server = server
