"""Which record: YCSB's key choosers, number for number as in YCSB 0.17 (``site.ycsb.generator``).

Every draw takes one number from the random generator it was given, so a seeded run repeats.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

#: YCSB's skew (``ZipfianGenerator.ZIPFIAN_CONSTANT``).
THETA = 0.99
#: Items the scrambled chooser draws from, so that the skew does not depend on how many records there are, and
#: their zeta, which would take hours to add up (``ScrambledZipfianGenerator``).
SCRAMBLED_ITEMS = 10_000_000_000
SCRAMBLED_ZETA = 26.46902820178302

_FNV_OFFSET = 0xCBF29CE484222325
_FNV_PRIME = 1_099_511_628_211
_U64 = (1 << 64) - 1
_SIGN = 1 << 63


def fnv64(value: int) -> int:
    """FNV-1a over the eight bytes of ``value``, lowest first, and Java's ``Math.abs`` of it."""
    hashed = _FNV_OFFSET
    for _n in range(8):
        hashed = ((hashed ^ (value & 0xFF)) * _FNV_PRIME) & _U64
        value >>= 8
    return hashed if hashed < _SIGN else (1 << 64) - hashed


class Zipfian:
    """Ranks from 0 on: rank k about as often as 1 / (k + 1) ** :data:`THETA` (Gray et al., SIGMOD 1994)."""

    def __init__(self, items: int, random: Random, zeta: float | None = None) -> None:
        self._random = random.random
        self._alpha = 1 / (1 - THETA)
        self._zeta = 0.0
        self._counted = 0
        if zeta is None:
            self.grow(items)
        else:
            self._settle(items, zeta)

    def grow(self, items: int) -> None:
        """There are that many now; what is known of fewer is kept."""
        if items > self._counted:
            self._settle(items, self._zeta + sum(1 / n**THETA for n in range(self._counted + 1, items + 1)))

    def _settle(self, items: int, zeta: float) -> None:
        self._counted, self._zeta = items, zeta
        two = 1 + 0.5**THETA
        self._second = two
        self._eta = (1 - (2 / items) ** (1 - THETA)) / (1 - two / zeta) if items > 2 else 0.0

    def draw(self) -> int:
        """A rank."""
        u = self._random()
        scaled = u * self._zeta
        if scaled < 1:
            return 0
        if scaled < self._second:
            return 1
        return int(self._counted * (self._eta * u - self._eta + 1) ** self._alpha)


#: The numbers of the records that can be asked for: 0 to what it returns, without gaps.
Newest = Callable[[], int]


class Uniform:
    """Every record as often as any other."""

    def __init__(self, records: int, random: Random) -> None:
        self._records = records
        self._random = random.random

    def draw(self) -> int:
        """A record's number."""
        return int(self._random() * self._records)


class ScrambledZipfian:
    """Few records are wanted often, and they lie anywhere among the ``records``."""

    def __init__(self, records: int, random: Random) -> None:
        self._records = records
        self._zipfian = Zipfian(SCRAMBLED_ITEMS, random, SCRAMBLED_ZETA)

    def draw(self) -> int:
        """A record's number."""
        return fnv64(self._zipfian.draw()) % self._records


class Latest:
    """The newest record most often: ``newest()`` is its number, and grows."""

    def __init__(self, newest: Newest, random: Random) -> None:
        self._newest = newest
        # As many items as the newest one's number: the oldest record of all is never asked for, in YCSB neither.
        self._zipfian = Zipfian(max(newest(), 1), random)

    def draw(self) -> int:
        """A record's number."""
        newest = self._newest()
        self._zipfian.grow(newest)
        return max(newest - self._zipfian.draw(), 0)
