"""Protected devices in memory, for tests: made, opened again, with the trusted state that belongs to them."""

from __future__ import annotations

from smtstack.storage.device import SECTOR, BlockDevice, MemoryDevice
from smtstack.storage.faults import FaultyDevice, PowerSupply
from smtstack.storage.keys import NO_KEY
from smtstack.storage.layout import FRESHNESS, MODES
from smtstack.storage.protected import ProtectedDevice, device_sectors, format_device, new_superblock
from smtstack.storage.recovery import read_superblock
from smtstack.storage.trusted import Mark, TrustedState

KEY = bytes(range(32))
ALL = [(mode, freshness) for mode in MODES for freshness in FRESHNESS]


class Disk:
    """A raw disk and the small one of the trusted state, both on one power supply."""

    def __init__(self, mode="aead", freshness="sealed", sectors=40, journal=12, room=None):
        self.mode, self.freshness = mode, freshness
        self.key = NO_KEY if (mode, freshness) == ("plain", "none") else KEY
        self.supply = PowerSupply()
        self.raw = MemoryDevice(device_sectors(mode, freshness, sectors, journal))
        self.small = MemoryDevice(2)
        self.disk = FaultyDevice(self.raw, self.supply, room)
        self.trusted_disk = FaultyDevice(self.small, self.supply)
        format_device(self.disk, new_superblock(mode, freshness, sectors, journal), self.key)
        trusted = self.trusted()
        if trusted is not None:
            block = read_superblock(self.raw)
            trusted.store(block.device, Mark(0, block.root))

    def trusted(self) -> TrustedState | None:
        return TrustedState(self.trusted_disk, self.key, self.freshness) if self.freshness != "none" else None

    def open(self, **more) -> ProtectedDevice:
        return ProtectedDevice(self.disk, self.key, self.trusted(), **more)

    def save(self):
        return bytes(self.raw.data), bytes(self.small.data)

    def load(self, saved):
        self.raw.data[:], self.small.data[:] = saved


def contents(device: BlockDevice) -> list[bytes]:
    """Every sector."""
    return [device.read(sector, 1) for sector in range(device.sectors)]


def pattern(number: int) -> bytes:
    """A sector that tells its number."""
    return number.to_bytes(8, "big") * (SECTOR // 8)
