"""Opening a protected device: which superblock counts, what the journal adds, and whether it is the latest state.

Nothing is written here. What a power cut leaves is a journal that ends within a record: that one was never
acknowledged, and is dropped. A record that is known to have been durable and is not there is damage, and so is
anything older than what the trusted state says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.hmac import HMAC

from smtstack.errors import AuthError, BadPacket, ConfigError
from smtstack.storage.device import SECTOR, BlockDevice
from smtstack.storage.keys import derive
from smtstack.storage.layout import (
    ENTRY,
    GROUP,
    JOURNAL,
    MOST_SECTORS,
    NO_ROOT,
    Record,
    Superblock,
    keyed,
    parse_record_untrusted,
    parse_superblock_untrusted,
    record_is_authentic,
    superblock_is_authentic,
)
from smtstack.storage.tree import HashTree, leaf, whole_root
from smtstack.storage.trusted import TrustedState

_SLOTS: Final = 2


@dataclass(slots=True, eq=False)
class Recovered:
    """A device as its last whole commit left it."""

    block: Superblock
    slot: int
    """Which slot the superblock was in."""
    entries: list[bytearray]
    overlay: dict[int, bytes]
    """Sealed sectors that are in the journal, perhaps not in their places."""
    changed: set[int]
    """Groups whose entries the journal has changed."""
    sectors: int
    length: int
    sequence: int
    root: bytes
    tree: HashTree | None = None


def read_superblock(device: BlockDevice) -> Superblock:
    """The newest superblock that can be read, not authenticated: for what must be known before there is a key.

    Raises :class:`ConfigError` if there is none.
    """
    found = []
    for slot in range(min(_SLOTS, device.sectors)):
        try:
            found.append(parse_superblock_untrusted(device.read(slot, 1)))
        except BadPacket:
            continue
    if not found:
        raise ConfigError("this is no protected device, or both of its superblocks are damaged")
    return max(found, key=lambda block: block.sequence)


def recover(device: BlockDevice, hint: Superblock, master: bytes, trusted: TrustedState | None) -> Recovered:
    """Raises :class:`AuthError`, OSError. ``hint``: any superblock of the device."""
    block, slot = _newest(device, hint, master)
    if device.sectors < block.place(block.sectors - 1) + 1:
        raise AuthError(f"cut off: {device.sectors} sectors of {block.place(block.sectors - 1) + 1}")
    groups = -(-block.sectors // GROUP) if block.tagged else 0
    found = Recovered(block, slot, [bytearray(device.read(block.entries_place(i), 1)) for i in range(groups)], {},
                      set(), block.sectors, block.length, block.sequence, block.root)
    roots = {block.sequence: block.root}
    for record, payload in _records(device, block, master):
        _apply(found, record, payload)
        roots[record.sequence] = record.root
    if device.sectors < block.place(found.sectors - 1) + 1:
        raise AuthError(f"cut off: {device.sectors} sectors of {block.place(found.sectors - 1) + 1}")
    if block.freshness != "none":
        found.tree = HashTree([leaf(entries) for entries in found.entries])
        if whole_root(found.tree, found.sectors, found.length) != found.root:
            raise AuthError("what is known of the sectors was changed on the disk, or is of another time")
    if trusted is not None:
        _check_fresh(found, roots, trusted)
    return found


def _newest(device: BlockDevice, hint: Superblock, master: bytes) -> tuple[Superblock, int]:
    mac = keyed(derive(master, hint.device, b"superblock"))
    valid: list[tuple[Superblock, int]] = []
    for slot in range(_SLOTS):
        buf = device.read(slot, 1)
        try:
            block = parse_superblock_untrusted(buf)
        except BadPacket:
            continue
        if block.device == hint.device and superblock_is_authentic(buf, mac):
            valid.append((block, slot))
    if not valid:
        wrong_key = derive(master, hint.device, b"check", 16) != hint.key_check
        raise AuthError("the key or passphrase is wrong" if wrong_key else "the superblocks were changed")
    return max(valid, key=lambda one: one[0].sequence)


def _records(device: BlockDevice, block: Superblock, master: bytes) -> list[tuple[Record, bytes]]:
    """The whole records since the superblock, in order, with their sealed sectors."""
    mac = keyed(derive(master, block.device, b"journal"))
    journal = memoryview(device.read(JOURNAL, block.journal))
    found: list[tuple[Record, bytes]] = []
    at, sequence = 0, block.sequence
    while at < block.journal:
        one = _record_at(journal, at, block, mac)
        if one is None or one[0].sequence != sequence + 1:
            break
        record, header, size = one
        found.append((record, bytes(journal[(at + header) * SECTOR:(at + size) * SECTOR])))
        at, sequence = at + size, record.sequence
    # What follows in vain: of earlier rounds, or written after the one that is missing, and not durable either.
    for later in range(at + 1, block.journal):
        one = _record_at(journal, later, block, mac)
        if one is not None and one[0].durable > sequence:
            raise AuthError(f"commit {sequence + 1} was on the disk and is damaged or gone")
    return found


def _record_at(journal: memoryview, at: int, block: Superblock,
               mac: HMAC) -> tuple[Record, int, int] | None:
    rest = journal[at * SECTOR:]
    try:
        record, header, size = parse_record_untrusted(rest, MOST_SECTORS)
    except BadPacket:
        return None
    if record.device != block.device or not record_is_authentic(rest, size, mac):
        return None
    return record, header, size


def _apply(found: Recovered, record: Record, payload: bytes) -> None:
    block = found.block
    found.sectors, found.length, found.sequence = record.sectors, record.length, record.sequence
    found.root = record.root
    if block.tagged:
        for _group in range(len(found.entries), -(-record.sectors // GROUP)):
            found.entries.append(bytearray(SECTOR))
    for i, (sector, tag) in enumerate(record.items):
        found.overlay[sector] = payload[i * SECTOR:(i + 1) * SECTOR]
        if block.tagged:
            group, within = divmod(sector, GROUP)
            ENTRY.pack_into(found.entries[group], within * ENTRY.size, tag, record.session, record.sequence)
            found.changed.add(group)


def _check_fresh(found: Recovered, roots: dict[int, bytes], trusted: TrustedState) -> None:
    mark = trusted.mark(found.block.device)
    if mark is None:
        raise AuthError("the trusted state is about another device" if not trusted.empty else
                        "there is no trusted state: it cannot be told whether this is the latest")
    if found.sequence < mark.sequence:
        raise AuthError(f"older than what was acknowledged: commit {found.sequence} of {mark.sequence}")
    if mark.root == NO_ROOT:
        return
    # A superblock is ahead of the trusted state only by an opening that was interrupted, which changes nothing.
    root = roots.get(mark.sequence, found.block.root if found.block.sequence > mark.sequence else NO_ROOT)
    if root != mark.root:
        raise AuthError(f"commit {mark.sequence} is not the one that was acknowledged")
