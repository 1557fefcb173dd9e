"""What every block may hold: the initiator's model, against which all it reads is compared, byte for byte.

Each block has versions, which rise with each write; one writer begins the next when the last is over. The content
of a version is made of its block and number, so that a block that was written elsewhere, or half of another
version, is seen. A read may show any version from the one that was sure to be there when the read began up to the
last one that was begun before it ended; from then on none before it is right any more. A write without a
completion leaves both: the old version and its own.
"""

from __future__ import annotations

from collections import deque
from random import Random
from struct import Struct

from workloads.blocks.capsule import BLOCK

#: Every block begins with it, but those of zeros: captures of encrypted transports must not show it.
CANARY = b"smtblock"
#: Then come its number, the version, and the writer's seed.
_STAMP = Struct("<8sQII")
#: What the rest is cut from, and how many cuts there are.
_CUTS = 65_521
ZEROS = bytes(BLOCK)
#: More of a block than any read outlasts.
_ZEROS = 256


class Model:
    """``count`` blocks from ``first`` on, which nobody else writes to. ``seed``: of all contents.

    At first nothing is known of them: :meth:`begin` a write to each.
    """

    def __init__(self, first: int, count: int, seed: int) -> None:
        self.first = first
        self.count = count
        self._seed = seed & 0xFFFFFFFF
        self._noise = Random(seed).randbytes(_CUTS + BLOCK)
        #: By block: the version that is there at least, and the last one that was begun.
        self._floor = [0] * count
        self._last = [0] * count
        #: Versions of zeros, by block, the latest :data:`_ZEROS`: a read that is under way may have begun before
        #: the floor rose.
        self._zeros: dict[int, deque[int]] = {}
        #: Blocks with a write, or what no write may meet, under way.
        self.busy: set[int] = set()

    def content(self, block: int, version: int) -> bytes:
        """What a version holds that is not zeros."""
        cut = (block * 31 + version * 4099) % _CUTS
        return _STAMP.pack(CANARY, block, version, self._seed) + self._noise[cut:cut + BLOCK - _STAMP.size]

    def begin(self, block: int, blocks: int = 1, zeros: bool = False) -> bytes:
        """A write begins; its data. The blocks are busy until :meth:`written` or :meth:`unknown`."""
        parts = []
        for each in range(block, block + blocks):
            at = each - self.first
            version = self._last[at] = self._last[at] + 1
            self.busy.add(each)
            if zeros:
                self._zeros.setdefault(each, deque(maxlen=_ZEROS)).append(version)
            else:
                parts.append(self.content(each, version))
        return b"".join(parts)

    def written(self, block: int, blocks: int = 1) -> None:
        """The write to these blocks was completed."""
        for each in range(block, block + blocks):
            self._raise(each, self._last[each - self.first])
            self.busy.discard(each)

    def unknown(self, block: int, blocks: int = 1) -> None:
        """The write to these blocks was given up, or refused: nobody knows what is there."""
        self.busy.difference_update(range(block, block + blocks))

    def hold(self, block: int) -> bytes | None:
        """For a command that no write may meet: what is there; None: it is not known. Free it by
        :meth:`unknown`."""
        at = block - self.first
        if self._floor[at] != self._last[at] or not self._floor[at]:
            return None
        self.busy.add(block)
        return self._current(block, self._floor[at])

    def before(self, block: int, blocks: int = 1) -> list[int]:
        """For a read that begins: what :meth:`judge` has to be told."""
        at = block - self.first
        return self._floor[at:at + blocks]

    def judge(self, block: int, data: bytes, before: list[int]) -> str:
        """What is wrong with what a read brought; "": nothing."""
        if len(data) != len(before) * BLOCK:
            return f"{len(data)} bytes for {len(before)} blocks"
        for number, floor in enumerate(before):
            wrong = self._judge(block + number, data[number * BLOCK:(number + 1) * BLOCK] if len(before) > 1
                                else data, floor)
            if wrong:
                return wrong
        return ""

    def _judge(self, block: int, data: bytes, floor: int) -> str:
        last = self._last[block - self.first]
        if data == ZEROS:
            found = [version for version in self._zeros.get(block, ()) if floor <= version <= last]
            if not found:
                return f"block {block} is zeros, not a version from {floor} to {last}"
            self._raise(block, min(found))
            return ""
        _canary, stamped, version, _seed = _STAMP.unpack_from(data)
        if not floor <= version <= last or version in self._zeros.get(block, ()) \
                or data != self.content(block, version):
            return (f"block {block} is not one of its versions from {floor} to {last}: it is stamped version "
                    f"{version} of block {stamped}")
        self._raise(block, version)
        return ""

    def _current(self, block: int, version: int) -> bytes:
        return ZEROS if version in self._zeros.get(block, ()) else self.content(block, version)

    def _raise(self, block: int, version: int) -> None:
        """This version was there: none before it comes back."""
        at = block - self.first
        self._floor[at] = max(self._floor[at], version)
