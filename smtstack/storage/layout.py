"""How a protected device lies on the device below it: superblocks, journal, sectors and what is known of each.

Numbers are little-endian. ``J`` is the length of the journal in sectors::

    sector 0, 1     superblock, two slots; the valid one with the higher sequence number counts
    2 .. 2+J        journal: records one after the other from the start, since the last checkpoint
    2+J ..          without tags: data sector n is at 2+J+n
                    with tags: groups of 129 sectors, an entry sector and the 128 data sectors it is about

    superblock      magic 8, mode u8, freshness u8, 0 u16, J u32, device 16 (random), scrypt salt 16,
                    scrypt log N, r, p u32 each (0: a key file), 0 u32, data sectors u64, sequence u64, length u64,
                    root 32, key check 16, HMAC-SHA256 of all that 32
    record          HMAC-SHA256 of the rest of the record 32, magic 8, device 16, session u64, sequence u64,
                    durable u64, length u64, data sectors u64, root 32, count u32, header sectors u32,
                    count x (sector u64, tag 16), 0 up to a whole sector; then the sealed sectors themselves
    entry           tag 16, session u64, version u64; all 0: the sector was never written

``sequence`` counts commits and is the version of each sector that a commit wrote. ``durable`` is the last sequence
number that was known to be on stable storage: a record up to there that is missing was taken away. ``length`` is
a number of the user's, committed with the data. ``root`` is that of the hash tree, or 0. ``session`` is random,
drawn at each opening.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hmac import compare_digest
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.hmac import HMAC

from smtstack.errors import BadPacket
from smtstack.storage.device import SECTOR
from smtstack.storage.keys import ScryptCost

MODES: Final = ("plain", "xts", "xts+hmac", "aead")
FRESHNESS: Final = ("none", "sealed", "counter")
MAGIC: Final = b"smtblk01"
_RECORD_MAGIC: Final = b"smtjrn01"
_SUPER: Final = struct.Struct("<8sBBHI16s16sIIIIQQQ32s16s")
_RECORD: Final = struct.Struct("<8s16sQQQQQ32sII")
_ITEM: Final = struct.Struct("<Q16s")
ENTRY: Final = struct.Struct("<16sQQ")
#: Data sectors that one sector of entries is about.
GROUP: Final = SECTOR // ENTRY.size
#: Where the journal begins.
JOURNAL: Final = 2
MAC_SIZE: Final = 32
NO_ROOT: Final = bytes(32)
#: No device has more: sector numbers are part of a nonce by 32 bits.
MOST_SECTORS: Final = 1 << 32
_MOST_JOURNAL: Final = 1 << 24
_FIRST_ITEM: Final = MAC_SIZE + _RECORD.size


@dataclass(frozen=True, slots=True)
class Superblock:
    """What a device is, and where it stood at the last checkpoint."""

    mode: str
    freshness: str
    journal: int
    """Sectors of the journal."""
    device: bytes
    """16 random bytes: which device this is."""
    salt: bytes
    cost: ScryptCost | None
    """None: the key is not from a passphrase."""
    sectors: int
    sequence: int
    length: int
    root: bytes
    key_check: bytes

    @property
    def tagged(self) -> bool:
        """Whether there is an entry for each sector."""
        return is_tagged(self.mode, self.freshness)

    def place(self, sector: int) -> int:
        """Where a data sector is on the device below."""
        first = JOURNAL + self.journal
        if not self.tagged:
            return first + sector
        group, within = divmod(sector, GROUP)
        return first + group * (GROUP + 1) + 1 + within

    def entries_place(self, group: int) -> int:
        """Where the entries of a group of data sectors are."""
        return JOURNAL + self.journal + group * (GROUP + 1)


def is_tagged(mode: str, freshness: str) -> bool:
    """Whether these keep an entry for each sector. A hash tree needs them whatever the mode."""
    return mode in ("xts+hmac", "aead") or freshness != "none"


def pack_superblock(block: Superblock, mac: HMAC) -> bytes:
    """A whole sector. ``mac`` is keyed."""
    cost = block.cost
    costs = (cost.log_n, cost.r, cost.p) if cost is not None else (0, 0, 0)
    head = _SUPER.pack(MAGIC, MODES.index(block.mode), FRESHNESS.index(block.freshness), 0, block.journal,
                       block.device, block.salt, *costs, 0, block.sectors, block.sequence, block.length,
                       block.root, block.key_check)
    return (head + authentic(mac, head)).ljust(SECTOR, b"\0")


def parse_superblock_untrusted(buf: bytes) -> Superblock:
    """What a sector says, before anybody knows whether it is true. Raises :class:`BadPacket`."""
    if len(buf) < _SUPER.size + MAC_SIZE:
        raise BadPacket("too short for a superblock")
    (magic, mode, freshness, _zero, journal, device, salt, log_n, r, p, _zero, sectors, sequence, length, root,
     check) = _SUPER.unpack_from(buf)
    if magic != MAGIC:
        raise BadPacket("no superblock")
    if mode >= len(MODES) or freshness >= len(FRESHNESS):
        raise BadPacket("a superblock of another version")
    if not 2 <= journal <= _MOST_JOURNAL or not 0 < sectors <= MOST_SECTORS:
        raise BadPacket("a superblock with impossible sizes")
    return Superblock(MODES[mode], FRESHNESS[freshness], journal, device, salt,
                      ScryptCost(log_n, r, p) if log_n else None, sectors, sequence, length, root, check)


def superblock_is_authentic(buf: bytes, mac: HMAC) -> bool:
    """Whether its code is right."""
    head = bytes(buf[:_SUPER.size])
    return same(authentic(mac, head), buf[_SUPER.size:_SUPER.size + MAC_SIZE])


@dataclass(frozen=True, slots=True)
class Record:
    """The head of a commit in the journal."""

    device: bytes
    session: int
    sequence: int
    durable: int
    length: int
    sectors: int
    root: bytes
    items: Sequence[tuple[int, bytes]]
    """Sector and tag of each sealed sector that follows, in order."""

    @property
    def size(self) -> int:
        """In sectors, payload included."""
        return record_size(len(self.items))


def _header_size(count: int) -> int:
    return -(-(_FIRST_ITEM + count * _ITEM.size) // SECTOR)


def record_size(count: int) -> int:
    """Sectors of a record about so many data sectors."""
    return _header_size(count) + count


def most_items(journal: int) -> int:
    """How many data sectors a record that fills the journal is about."""
    count = max(0, (journal * SECTOR - _FIRST_ITEM) // (SECTOR + _ITEM.size))
    return count if record_size(count) <= journal else count - 1


def pack_record(record: Record, payload: bytes, mac: HMAC) -> bytes:
    """Whole sectors. ``payload``: the sealed sectors."""
    count = len(record.items)
    header = _header_size(count)
    rest = _RECORD.pack(_RECORD_MAGIC, record.device, record.session, record.sequence, record.durable,
                        record.length, record.sectors, record.root, count, header)
    rest += b"".join(_ITEM.pack(*item) for item in record.items)
    rest = rest.ljust(header * SECTOR - MAC_SIZE, b"\0")
    return b"".join((authentic(mac, rest, payload), rest, payload))


def parse_record_untrusted(buf: bytes | memoryview, most: int) -> tuple[Record, int, int]:
    """What the first sectors of a record say: the record, sectors of its header, and of all of it.

    ``buf`` is what is left of the journal, ``most`` how many data sectors there can be. Raises :class:`BadPacket`.
    """
    if len(buf) < _FIRST_ITEM:
        raise BadPacket("too short for a record")
    (magic, device, session, sequence, durable, length, sectors, root, count, header) = _RECORD.unpack_from(
        buf, MAC_SIZE)
    if magic != _RECORD_MAGIC:
        raise BadPacket("no record")
    if header != _header_size(count) or record_size(count) * SECTOR > len(buf) or not 0 < sectors <= most:
        raise BadPacket("a record with impossible sizes")
    items = [_ITEM.unpack_from(buf, _FIRST_ITEM + i * _ITEM.size) for i in range(count)]
    if any(sector >= sectors for sector, _tag in items):
        raise BadPacket("a record about sectors that are not there")
    return Record(device, session, sequence, durable, length, sectors, root, items), header, header + count


def record_is_authentic(buf: memoryview, size: int, mac: HMAC) -> bool:
    """Whether the code of a record of ``size`` sectors is right: then it is whole, too."""
    return same(authentic(mac, buf[MAC_SIZE:size * SECTOR]), buf[:MAC_SIZE])


def authentic(mac: HMAC, *parts: bytes | memoryview) -> bytes:
    """The code of these bytes; ``mac`` stays as it is."""
    code = mac.copy()
    for part in parts:
        code.update(part)
    return code.finalize()


def keyed(key: bytes) -> HMAC:
    """HMAC-SHA256 with this key, of nothing yet."""
    return HMAC(key, hashes.SHA256())


#: In a time that does not depend on where they differ.
same: Final = compare_digest
