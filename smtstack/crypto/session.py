"""Sessions: what two ports of two hosts share. Ids, key epochs, replay guards.

An RPC belongs to the epoch its client chose, and its response is sealed under the same epoch, so the
side that asks decides when keys change. Within one epoch an id (with its role bit: even asks, odd
answers) is used once per direction; that makes every composite record number, hence every nonce, unique.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from smtstack.crypto import padding, tls12
from smtstack.crypto.aead import AES_128_GCM, INTEGRITY_LIMIT, Cipher, DirectionKeys, NoKeys
from smtstack.crypto.composite import CompositeNumber
from smtstack.crypto.replay import DEFAULT_WINDOW, ReplayGuard
from smtstack.errors import LocalError

NO_KEYS = NoKeys()
FIRST_ID = 2
#: Ids are 64 bits on the wire.
WIRE_ID_LIMIT = 1 << 64


@dataclass(frozen=True, slots=True)
class SessionParams:
    """What both sides of an ``smt`` session must agree on, and two limits of our own."""

    cipher: Cipher = AES_128_GCM
    #: Bits of record index in the composite number (paper Fig. 5).
    index_bits: int = 16
    padding: padding.Padding = padding.none
    #: Records, in both directions, after which new RPCs use the next key epoch. 0: half the AEAD's limit.
    key_update_records: int = 0
    #: Ids the replay guard keeps above a gap.
    replay_window: int = DEFAULT_WINDOW
    #: First id this side uses for a request; even. A key that outlives a process needs a fresh range.
    first_id: int = FIRST_ID


class EpochKeys:
    """Both directions' keys of one epoch, their use, and the guard of the requests received under it."""

    __slots__ = ("active", "epoch", "failed", "guard", "opened", "rx", "sealed", "tx")

    def __init__(self, epoch: int, tx: DirectionKeys, rx: DirectionKeys, window: int) -> None:
        #: Absolute; the wire carries its low 8 bits.
        self.epoch = epoch
        self.tx = tx
        self.rx = rx
        self.guard = ReplayGuard(window)
        self.sealed = 0
        self.opened = 0
        #: Records that did not authenticate.
        self.failed = 0
        #: RPCs of our own still running under this epoch.
        self.active = 0


class Session:
    """Ids and replay protection without any keys: profile ``homa``, and the base of the others."""

    __slots__ = ("current", "id_limit", "next_id", "take_id")

    def __init__(self, take_id: Callable[[], int] | None = None, first_id: int = FIRST_ID,
                 window: int = DEFAULT_WINDOW) -> None:
        self.next_id = first_id
        #: Ids, role bit included, stay below this.
        self.id_limit = WIRE_ID_LIMIT
        #: Where ids come from, if not from this session: the kernel module counts per host.
        self.take_id = take_id
        self.current = EpochKeys(0, NO_KEYS, NO_KEYS, window)

    def begin_rpc(self) -> tuple[EpochKeys, int]:
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

    def accept(self, keys: EpochKeys) -> None:
        """A request of the peer authenticated under ``keys``."""


#: Makes the keys of one epoch: (ours, the peer's).
KeySchedule = Callable[[int], "tuple[DirectionKeys, DirectionKeys]"]


class SmtSession(Session):
    """A session of profile ``smt``: TLS 1.3 records, epochs, composite numbers."""

    __slots__ = ("_epochs", "_newest", "_newest_keys", "_previous", "_previous_end", "_record_limit",
                 "_update_at", "numbers", "pads", "params", "schedule")

    def __init__(self, schedule: KeySchedule, params: SessionParams) -> None:
        super().__init__(None, params.first_id, params.replay_window)
        self.schedule = schedule
        self.params = params
        self.numbers = CompositeNumber(params.index_bits)
        self.pads = params.padding is not padding.none
        self._record_limit = params.cipher.record_limit
        self.id_limit = self.numbers.id_limit
        self._update_at = self._update_interval()
        self._epochs: dict[int, EpochKeys] = {}
        #: Our own last epoch, kept until nothing runs under it.
        self._previous: EpochKeys | None = None
        #: Its ids were all below this.
        self._previous_end = 0
        #: Highest epoch under which a request of the peer authenticated.
        self._newest = 0
        self.current = self._newest_keys = self._keys(0)

    def _update_interval(self) -> int:
        return self.params.key_update_records or self.params.cipher.record_limit // 2

    def _keys(self, epoch: int) -> EpochKeys:
        # One object an epoch, whoever asks under it: both sides' traffic counts against the same keys.
        keys = self._epochs.get(epoch)
        if keys is None:
            tx, rx = self.schedule(epoch)
            keys = self._epochs[epoch] = EpochKeys(epoch, tx, rx, self.params.replay_window)
        return keys

    def _forget_old(self) -> None:
        keep = {self.current.epoch, self._newest - 1, self._newest, self._newest + 1}
        if self._previous is not None:
            keep.add(self._previous.epoch)
        for epoch in [e for e in self._epochs if e not in keep]:
            del self._epochs[epoch]

    def begin_rpc(self) -> tuple[EpochKeys, int]:
        """Epoch and fresh id; moves to the next epoch when the key or the ids near their end."""
        keys = self.current
        if (keys.sealed + keys.opened >= self._update_at or self.next_id >= self.id_limit
                or keys.failed > INTEGRITY_LIMIT):
            keys = self._advance(keys)
        rpc_id = self.next_id
        self.next_id = rpc_id + 2
        keys.active += 1
        return keys, rpc_id

    def _advance(self, keys: EpochKeys) -> EpochKeys:
        # Two epochs at a time, or the peer could not tell late packets from forged ones.
        if self._previous is not None and self._previous.active:
            if self.next_id >= self.id_limit:
                raise LocalError("message ids of this key are used up while RPCs of the last key still run")
            return keys
        self._previous = keys
        self._previous_end = self.next_id
        self.current = self._keys(keys.epoch + 1)
        # Not FIRST_ID: a process that starts over with these keys comes to this epoch, too.
        self.next_id = self.params.first_id
        self._update_at = self._update_interval()
        self._forget_old()
        return self.current

    def update_keys(self) -> None:
        """Use the next epoch for the next request, or as soon as the epoch before this has drained."""
        self._update_at = 0

    def issued(self, wire_epoch: int, rpc_id: int) -> bool:
        """Whether this side ever used the id under this epoch for a request."""
        if wire_epoch == self.current.epoch & 0xFF:
            return rpc_id < self.next_id
        previous = self._previous
        return previous is not None and wire_epoch == previous.epoch & 0xFF and rpc_id < self._previous_end

    def own_keys(self, wire_epoch: int) -> EpochKeys | None:
        """Keys of a request of ours under ``wire_epoch``; None: long over."""
        if wire_epoch == self.current.epoch & 0xFF:
            return self.current
        previous = self._previous
        return previous if previous is not None and wire_epoch == previous.epoch & 0xFF else None

    def request_keys(self, wire_epoch: int) -> EpochKeys | None:
        """Keys for the newest authenticated epoch, the one before, or (on trial) the next."""
        newest = self._newest
        if wire_epoch == newest & 0xFF:
            # After that many forgeries one may have passed (RFC 9147 §4.5.3): only the next key will do.
            return self._newest_keys if self._newest_keys.failed <= INTEGRITY_LIMIT else None
        if wire_epoch == (newest + 1) & 0xFF:
            return self._keys(newest + 1)
        if newest and wire_epoch == (newest - 1) & 0xFF:
            return self._epochs.get(newest - 1)
        return None

    def accept(self, keys: EpochKeys) -> None:
        """The peer proved that it uses ``keys``: epochs before the last are refused from now on."""
        if keys.epoch > self._newest:
            self._newest = keys.epoch
            self._newest_keys = keys
            self._forget_old()

    def reserve(self, keys: EpochKeys, message_id: int, records: int) -> int:
        """Number of the first of ``records`` records about to be sealed for a message.

        Raises :class:`LocalError` when they do not fit the numbers or the AEAD's limit, before anything
        is sealed.
        """
        if message_id >= self.id_limit or records > self.numbers.max_records:
            self.numbers.first(message_id, records)
        if keys.sealed + records > self._record_limit:
            raise LocalError(f"{self.params.cipher.name} key of epoch {keys.epoch} has protected all the "
                             "records it may (RFC 8446 §5.5)")
        keys.sealed += records
        return message_id << self.numbers.index_bits


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
