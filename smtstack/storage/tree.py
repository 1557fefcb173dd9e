"""A hash tree (Merkle's) over sectors of entries: one root stands for the contents of a whole device.

All of it is in memory, 32 bytes for a leaf, which is 128 sectors of data: a sector that changes costs a hash of
its entries and one of up to 32 others for each level. Leaves and nodes are hashed apart, so none is taken for the
other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

WIDTH: Final = 32
_HASH: Final = 32
_LEAF: Final = b"\0"
_NODE: Final = b"\1"


def leaf(entries: bytes | bytearray) -> bytes:
    """The hash of a sector of entries."""
    code = hashlib.sha256(_LEAF)
    code.update(entries)
    return code.digest()


def whole_root(tree: HashTree, sectors: int, length: int) -> bytes:
    """What stands for all a device holds: with its size, and the number that goes with the data."""
    return leaf(tree.top + sectors.to_bytes(8, "little") + length.to_bytes(8, "little"))


class HashTree:
    """Over these leaves."""

    def __init__(self, leaves: Iterable[bytes]) -> None:
        self._levels = [bytearray(b"".join(leaves))]
        while len(self._levels[-1]) > _HASH:
            below = self._levels[-1]
            self._levels.append(bytearray(b"".join(_node(below, i) for i in range(_parents(below)))))

    def update(self, changed: dict[int, bytes]) -> None:
        """Replace leaves, by number; the next number makes the tree longer."""
        level = 0
        while True:
            here = self._levels[level]
            for number in sorted(changed):
                if number * _HASH > len(here):
                    raise ValueError(f"leaf {number} would leave a gap")
                here[number * _HASH:(number + 1) * _HASH] = changed[number]
            if len(here) <= _HASH:
                # Only ever longer: there is nothing above it.
                return
            above = {number // WIDTH for number in changed}
            if level + 1 == len(self._levels):
                # It has grown a level: all of that is new.
                self._levels.append(bytearray())
                above = set(range(_parents(here)))
            changed = {number: _node(here, number) for number in above}
            level += 1

    @property
    def top(self) -> bytes:
        """The hash of all."""
        return bytes(self._levels[-1])


def _parents(below: bytearray) -> int:
    return -(-len(below) // (_HASH * WIDTH))


def _node(below: bytearray, number: int) -> bytes:
    size = _HASH * WIDTH
    return hashlib.sha256(_NODE + below[number * size:(number + 1) * size]).digest()
