"""What the fuzzer feeds to those who read a disk: superblocks and records of the journal."""

from __future__ import annotations

from collections.abc import Callable

from smtstack.storage.device import SECTOR
from smtstack.storage.layout import (
    JOURNAL,
    MOST_SECTORS,
    keyed,
    parse_record_untrusted,
    parse_superblock_untrusted,
    record_is_authentic,
)
from tests.disks import ALL, Disk, pattern

MODULE = "smtstack.storage.layout"
_MAC = keyed(bytes(32))


def disks() -> tuple[list[bytes], list[bytes]]:
    """Superblocks, and journals with a record."""
    blocks, records = [], []
    for mode, freshness in ALL:
        disk = Disk(mode, freshness)
        device = disk.open()
        device.write(3, pattern(1) + pattern(2))
        device.commit()
        blocks.append(bytes(disk.raw.data[:512]))
        records.append(bytes(disk.raw.data[JOURNAL * SECTOR:(JOURNAL + 4) * SECTOR]))
    return blocks, records


def read_record(buf: bytes) -> None:
    """As recovery does."""
    record, header, size = parse_record_untrusted(buf, MOST_SECTORS)
    assert 0 < header <= size
    assert len(record.items) == size - header
    record_is_authentic(memoryview(buf), size, _MAC)


def targets() -> list[tuple[str, Callable[[bytes], object], list[bytes], float]]:
    """Function, how it is called, what is mutated, and its share."""
    blocks, records = disks()
    return [(f"{MODULE}.parse_superblock_untrusted", parse_superblock_untrusted, blocks, 0.3),
            (f"{MODULE}.parse_record_untrusted", read_record, records, 0.1)]
