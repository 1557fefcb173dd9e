"""Memory that processes share by a descriptor (memfd_create(2)), of a size that nobody can change any more."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from collections.abc import Collection
from pathlib import Path

from smtstack.errors import ConfigError

# Linux <linux/fcntl.h>
_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
_SEAL_SEAL, _SEAL_SHRINK, _SEAL_GROW = 1, 2, 4


def sealed_memory(name: str, size: int) -> tuple[int, mmap.mmap]:
    """(descriptor, mapping) of new memory, all zeros. Who gets the descriptor sees what is written."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, _F_ADD_SEALS, _SEAL_SEAL | _SEAL_SHRINK | _SEAL_GROW)
        return descriptor, mmap.mmap(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise


def map_untrusted(descriptor: int, most: int, offset: int = 0, length: int = 0) -> mmap.mmap:
    """The mapping of memory that somebody else made, of at most ``most`` bytes; of ``length`` bytes from
    ``offset`` on, or all of it.

    Raises :class:`ConfigError` unless its size is fixed: whoever made it shorter would end us by SIGBUS.
    """
    try:
        seals = fcntl.fcntl(descriptor, _F_GET_SEALS)
        size = os.fstat(descriptor).st_size
        if not seals & _SEAL_SHRINK or not 0 < size <= most or offset + length > size:
            raise ConfigError("shared memory that may shrink, or is too large or small")
        return mmap.mmap(descriptor, length or size, offset=offset)
    except OSError as e:
        raise ConfigError(f"this descriptor is no shared memory: {e.strerror}") from None


def address_of(mapping: mmap.mmap) -> int:
    """Where it is in our memory."""
    held = ctypes.c_char.from_buffer(mapping)
    try:
        return ctypes.addressof(held)
    finally:
        del held  # or it could not be closed any more


def other_ranges(starts: Collection[int]) -> list[tuple[int, int]]:
    """(start, bytes) of all memory of this process but the mappings that begin at ``starts``."""
    ranges = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, _dash, end = line.split()[0].partition("-")
        if int(start, 16) not in starts:
            ranges.append((int(start, 16), int(end, 16) - int(start, 16)))
    return ranges
