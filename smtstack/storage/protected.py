"""The protected block device: sealed sectors, atomic commits by a journal, and a hash tree against old disks.

What it promises (docs/storage.md):

- What was written since the last commit is committed together: after a crash all of it is there or none. A commit
  is
  :meth:`~ProtectedDevice.commit` (survives the end of this process), :meth:`~ProtectedDevice.flush` (survives a
  power cut, too), or one that a write begins by itself when the next sectors would not fit into the journal
  together with those before. Commits survive in order: never a later one without those before.
- What :meth:`~ProtectedDevice.flush` has returned for is there after any crash, or opening the device is refused.
- After an error of the disk while committing nothing is written any more: every later write, commit and flush
  raises that error again. Opening the device again recovers what was acknowledged, at least.

It is used by one process at a time (the device below is locked). ``flush`` may run in one other thread.
"""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import replace
from typing import Final

from smtstack.errors import ConfigError
from smtstack.storage.device import SECTOR, BlockDevice, ResizableDevice, check_range
from smtstack.storage.keys import NO_KEY, ScryptCost, Secret, derive
from smtstack.storage.layout import (
    ENTRY,
    FRESHNESS,
    GROUP,
    JOURNAL,
    MODES,
    MOST_SECTORS,
    NO_ROOT,
    Record,
    Superblock,
    is_tagged,
    keyed,
    most_items,
    pack_record,
    pack_superblock,
    record_size,
)
from smtstack.storage.recovery import Recovered, read_superblock, recover
from smtstack.storage.seal import Sealer
from smtstack.storage.tree import HashTree, leaf, whole_root
from smtstack.storage.trusted import Mark, TrustedState

#: Sectors of a journal: 1 MiB.
JOURNAL_SECTORS: Final = 256
_ZEROS: Final = bytes(SECTOR)
#: Each opening begins a new range of sequence numbers, so that what an earlier one left can never be the latest.
_RANGE: Final = 1 << 32


def master_key(device: BlockDevice, secret: Secret) -> bytes:
    """The key of a formatted device by what was given for it. Raises :class:`ConfigError`, OSError."""
    return key_of(read_superblock(device), secret)


def key_of(block: Superblock, secret: Secret) -> bytes:
    """The key of the device with this superblock. Raises :class:`ConfigError` for a wrong kind of secret."""
    if block.mode == "plain" and block.freshness == "none":
        return NO_KEY
    if bool(secret.passphrase) != (block.cost is not None):
        raise ConfigError(f"the device wants a {'passphrase' if block.cost else 'key file'}")
    return secret.master(block.salt, block.cost or ScryptCost())


def device_sectors(mode: str, freshness: str, sectors: int, journal: int = JOURNAL_SECTORS) -> int:
    """How long the device below must be."""
    groups = -(-sectors // GROUP) if is_tagged(mode, freshness) else 0
    return JOURNAL + journal + groups + sectors


def new_superblock(mode: str, freshness: str, sectors: int, journal: int = JOURNAL_SECTORS,
                   cost: ScryptCost | None = None) -> Superblock:
    """For a device yet to be formatted; ``cost`` if its key comes from a passphrase. Raises ConfigError."""
    if mode not in MODES or freshness not in FRESHNESS:
        raise ConfigError(f"storage mode {mode}, freshness {freshness}: {', '.join(MODES)}; "
                          f"{', '.join(FRESHNESS)}")
    if not 0 < sectors <= MOST_SECTORS or most_items(journal) < 1:
        raise ConfigError(f"a device of {sectors} sectors with a journal of {journal}: impossible")
    return Superblock(mode, freshness, journal, os.urandom(16), os.urandom(16), cost, sectors, 0, 0, NO_ROOT,
                      bytes(16))


def format_device(device: BlockDevice, block: Superblock, master: bytes) -> None:
    """Make ``device``, which must read as zeros, a protected one that reads as zeros. Raises OSError."""
    below = device_sectors(block.mode, block.freshness, block.sectors, block.journal)
    if device.sectors < below:
        raise OSError(errno.ENOSPC, f"{below} sectors are needed, there are {device.sectors}")
    root = NO_ROOT
    if block.freshness != "none":
        groups = -(-block.sectors // GROUP)
        root = whole_root(HashTree([leaf(_ZEROS)] * groups), block.sectors, 0)
    check = derive(master, block.device, b"check", 16)
    block = replace(block, root=root, key_check=check)
    device.write(0, pack_superblock(block, keyed(derive(master, block.device, b"superblock"))))
    device.flush()


class ProtectedDevice:
    """A formatted ``device``, opened with its :func:`master_key`; what a crash left is put right.

    ``trusted``: needed where the device has freshness, unless the caller vouches for the device itself
    (``vouched``: it was made a moment ago). ``read_only``: nothing is written, not even what is to be put right.
    ``autocommit``: a write that does not fit into one commit with those before commits those; otherwise it raises
    OSError ENOSPC, so that whatever is between two commits stays whole.

    Raises :class:`AuthError`: changed, cut off, or older than the trusted state says, or a wrong key; ConfigError:
    no such device; OSError.
    """

    def __init__(self, device: BlockDevice, master: bytes, trusted: TrustedState | None = None, *,
                 vouched: bool = False, read_only: bool = False, autocommit: bool = True) -> None:
        self._device = device
        self._trusted = trusted
        self._read_only = read_only
        self._autocommit = autocommit
        block = read_superblock(device)
        if (block.freshness != "none") != (trusted is not None) and not vouched:
            raise ConfigError("the device has freshness: its trusted state is needed" if trusted is None
                              else "the device has no freshness: no trusted state belongs to it")
        found = recover(device, block, master, trusted)
        self._block = block = found.block
        self._sealer = Sealer(block.mode, block.tagged, master, block.device)
        self._journal_mac = keyed(derive(master, block.device, b"journal"))
        self._super_mac = keyed(derive(master, block.device, b"superblock"))
        self._session = int.from_bytes(os.urandom(8), "little")
        self._entries = found.entries
        self._tree = found.tree
        #: Sealed sectors that are in the journal only, and sectors of entries that have changed since.
        self._overlay: dict[int, bytes] = found.overlay
        self._changed: set[int] = found.changed
        self._sectors, self._length, self._root = found.sectors, found.length, found.root
        self._grown = self._sectors
        self._new_length = self._length
        self._sequence = found.sequence
        self._slot = found.slot
        self._end = 0
        self._durable = self._sequence
        #: Not committed yet, and being committed.
        self._staged: dict[int, bytes] = {}
        self._sealing: dict[int, bytes] = {}
        self._most = most_items(block.journal)
        self._failed: OSError | None = None
        #: What readers see; commits; durability. Taken in the order commits, durability, readers.
        self._lock = threading.Lock()
        self._order = threading.Lock()
        self._flushing = threading.Lock()
        self.commits = self.flushes = self.checkpoints = 0
        if not read_only:
            self._take_over(found)

    def _take_over(self, found: Recovered) -> None:
        """Make what was recovered durable, and begin a new range of sequence numbers."""
        self._device.flush()
        if self._trusted is not None:
            self._trusted.store(self._block.device, Mark(self._sequence, self._root))
        if found.overlay:
            self._put_in_place()
        self._sequence = (self._sequence // _RANGE + 1) * _RANGE
        self._write_superblock()
        if self._trusted is not None:
            self._trusted.store(self._block.device, Mark(self._sequence, self._root))
        self._durable = self._sequence

    # -- what it is --------------------------------------------------------------------------------------------

    @property
    def block(self) -> Superblock:
        """Mode, freshness and so on."""
        return self._block

    @property
    def sectors(self) -> int:
        return self._grown

    @property
    def length(self) -> int:
        """A number of the user's that is committed with the data: how many bytes of it count, say."""
        return self._new_length

    @length.setter
    def length(self, length: int) -> None:
        self._new_length = length

    @property
    def most_sectors(self) -> int:
        """How many different sectors a commit can have."""
        return self._most

    @property
    def uncommitted(self) -> int:
        """How many sectors the next commit has."""
        return len(self._staged)

    @property
    def in_journal(self) -> int:
        """How many sectors are in the journal only."""
        return len(self._overlay)

    # -- sectors -----------------------------------------------------------------------------------------------

    def read(self, sector: int, count: int) -> bytes:
        check_range(self, sector, count * SECTOR)
        if count == 1:
            return self._read_one(sector)
        return b"".join(self._read_one(one) for one in range(sector, sector + count))

    def _read_one(self, sector: int) -> bytes:
        # Commits of another thread are before or after this, whole.
        with self._lock:
            data = self._staged.get(sector)
            if data is None:
                data = self._sealing.get(sector)
            if data is not None:
                return data
            if sector >= self._sectors:
                return _ZEROS
            session = version = 0
            tag = b""
            if self._block.tagged:
                tag, session, version = ENTRY.unpack_from(self._entries[sector // GROUP],
                                                          sector % GROUP * ENTRY.size)
                if not version:
                    return _ZEROS
            sealed = self._overlay.get(sector)
            if sealed is None:
                sealed = self._device.read(self._block.place(sector), 1)
                if not self._block.tagged and sealed == _ZEROS:
                    # Never written. (Sealed ones are zeros once in 2^32768.)
                    return sealed
        return self._sealer.open(sector, session, version, tag, sealed)

    def write(self, sector: int, data: bytes) -> None:
        count = check_range(self, sector, len(data))
        self._check()
        fits = self._room(range(sector, sector + count))
        if not fits:
            if not self._autocommit:
                raise OSError(errno.ENOSPC, f"more than {self._most} sectors in one commit, which is what the "
                                            f"journal has room for")
            self.commit()
        for first in range(0, count, self._most):
            if first:
                self.commit()
            part = range(first, min(count, first + self._most))
            with self._lock:
                for i in part:
                    self._staged[sector + i] = bytes(data[i * SECTOR:(i + 1) * SECTOR])

    def _room(self, wanted: range) -> bool:
        most, staged = self._most, self._staged
        if len(staged) + len(wanted) <= most:
            return True
        return len(staged) + sum(sector not in staged for sector in wanted) <= most

    def resize(self, sectors: int) -> None:
        """Make it longer, with the next commit; what is new reads as zeros. Raises OSError."""
        self._check()
        if sectors < self._grown or sectors > MOST_SECTORS:
            raise OSError(errno.EINVAL, f"from {self._grown} sectors to {sectors}")
        below: ResizableDevice = self._device  # type: ignore[assignment]
        wanted = device_sectors(self._block.mode, self._block.freshness, sectors, self._block.journal)
        if wanted > below.sectors:
            if not hasattr(below, "resize"):
                raise OSError(errno.ENOSPC, "the device below cannot become longer")
            below.resize(wanted)
        self._grown = sectors

    # -- commits -----------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """What was written before survives the end of this process, all or none of it. Raises OSError."""
        with self._order:
            self._commit()

    def flush(self) -> None:
        """What was written before survives a power cut, too. Raises OSError: then nothing is promised of it."""
        self.commit()
        self._make_durable()

    def checkpoint(self) -> None:
        """Commit, and put what is in the journal into its place. Raises OSError."""
        with self._order:
            self._commit()
            self._checkpoint()

    def close(self) -> None:
        """Give the device below back, not the trusted state. What was not committed is dropped."""
        self._device.close()

    def retire(self) -> None:
        """Another has its place: a flush that some thread still does is none of the trusted state's business."""
        with self._flushing:
            self._trusted, self._durable = None, self._sequence

    def trust(self, trusted: TrustedState) -> None:
        """Have a device that was vouched for, and is flushed, take the place of the one that this state is about.

        Both can be opened until the next flush. Raises OSError.
        """
        trusted.adopt(self._block.device, Mark(self._sequence, self._root))
        self._trusted = trusted

    def _check(self) -> None:
        if self._failed is not None:
            raise OSError(self._failed.errno, f"writing failed before ({self._failed.strerror}): open it again")
        if self._read_only:
            raise OSError(errno.EROFS, "opened to be read only")

    def _commit(self) -> None:
        self._check()
        with self._lock:
            staged, length, sectors = self._staged, self._new_length, self._grown
            if not staged and length == self._length and sectors == self._sectors:
                return
            self._staged, self._sealing = {}, staged
        try:
            if self._end + record_size(len(staged)) > self._block.journal:
                self._checkpoint()
            self._write_record(staged, length, sectors)
        except OSError as e:
            self._failed = e
            raise
        self.commits += 1

    def _write_record(self, staged: dict[int, bytes], length: int, sectors: int) -> None:
        sequence, session, tagged = self._sequence + 1, self._session, self._block.tagged
        numbers = sorted(staged)
        sealed: dict[int, bytes] = {}
        items: list[tuple[int, bytes]] = []
        entries: dict[int, bytearray] = {}
        for number in numbers:
            sealed[number], tag = self._sealer.seal(number, session, sequence, staged[number])
            items.append((number, tag))
            if tagged:
                group = number // GROUP
                if group not in entries:
                    entries[group] = bytearray(self._entries[group] if group < len(self._entries) else _ZEROS)
                ENTRY.pack_into(entries[group], number % GROUP * ENTRY.size, tag, session, sequence)
        if tagged:
            for group in range(len(self._entries), -(-sectors // GROUP)):
                entries.setdefault(group, bytearray(SECTOR))
        root = NO_ROOT
        if self._tree is not None:
            self._tree.update({group: leaf(content) for group, content in entries.items()})
            root = whole_root(self._tree, sectors, length)
        record = Record(self._block.device, session, sequence, self._durable, length, sectors, root, items)
        buf = pack_record(record, b"".join(sealed[number] for number in numbers), self._journal_mac)
        self._device.write(JOURNAL + self._end, buf)
        with self._lock:
            self._end += len(buf) // SECTOR
            self._overlay.update(sealed)
            for group in sorted(entries):
                if group < len(self._entries):
                    self._entries[group] = entries[group]
                else:
                    self._entries.append(entries[group])
            # Groups that are new and empty are holes below, which read the same.
            self._changed.update(number // GROUP for number in (numbers if tagged else ()))
            self._sectors, self._length, self._root, self._sequence = sectors, length, root, sequence
            self._sealing = {}

    def _make_durable(self) -> None:
        with self._flushing:
            with self._lock:
                sequence, root = self._sequence, self._root
            if sequence == self._durable:
                return
            try:
                self._device.flush()
                if self._trusted is not None:
                    self._trusted.store(self._block.device, Mark(sequence, root))
            except OSError as e:
                self._failed = e
                raise
            self._durable = sequence
            self.flushes += 1

    def _checkpoint(self) -> None:
        if not self._end:
            return
        try:
            # The journal first: what is written in place may be torn.
            self._make_durable()
            self._put_in_place()
            self._write_superblock()
        except OSError as e:
            self._failed = e
            raise
        self.checkpoints += 1

    def _put_in_place(self) -> None:
        writes = {self._block.place(sector): sealed for sector, sealed in self._overlay.items()}
        for group in self._changed:
            writes[self._block.entries_place(group)] = bytes(self._entries[group])
        run: list[bytes] = []
        start = 0
        for at in sorted(writes):
            if at != start + len(run):
                if run:
                    self._device.write(start, b"".join(run))
                start, run = at, []
            run.append(writes[at])
        if run:
            self._device.write(start, b"".join(run))
        self._device.flush()

    def _write_superblock(self) -> None:
        block = replace(self._block, sectors=self._sectors, sequence=self._sequence, length=self._length,
                        root=self._root)
        slot = 1 - self._slot
        self._device.write(slot, pack_superblock(block, self._super_mac))
        # Before a record goes over those that it makes superfluous.
        self._device.flush()
        self._slot, self._block = slot, block
        with self._lock:
            self._overlay, self._changed, self._end = {}, set(), 0
