"""Which record: YCSB's key choosers, number for number as in YCSB 0.17 (``site.ycsb.generator``).

Every draw takes one number from the random generator it was given, so a seeded run repeats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

from smtstack.errors import ConfigError

#: Of the records that are asked for (YCSB's requestdistribution).
DISTRIBUTIONS = ("zipfian", "latest", "uniform", "hotspot", "exponential", "sequential")
#: Of the lengths of scans and fields; those of fields may be constant.
LENGTHS = ("uniform", "zipfian")

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
        return self.at(self._random())

    def at(self, u: float) -> int:
        """The rank that a random number from 0 to 1 stands for."""
        scaled = u * self._zeta
        if scaled < 1:
            return 0
        if scaled < self._second:
            return 1
        return int(self._counted * (self._eta * u - self._eta + 1) ** self._alpha)


#: The numbers of the records that can be asked for: 0 to what it returns, without gaps.
Newest = Callable[[], int]


class Uniform:
    """Every record as often as any other; the first is ``first``."""

    def __init__(self, records: int, random: Random, first: int = 0) -> None:
        self._first = first
        self._records = records
        self._random = random.random

    def draw(self) -> int:
        """A record's number."""
        return self._first + int(self._random() * self._records)


class ScrambledZipfian:
    """Few records are wanted often, and they lie anywhere among the ``records`` from ``first`` on."""

    def __init__(self, records: int, random: Random, first: int = 0) -> None:
        self._first = first
        self._records = records
        self._zipfian = Zipfian(SCRAMBLED_ITEMS, random, SCRAMBLED_ZETA)

    def draw(self) -> int:
        """A record's number."""
        return self._first + fnv64(self._zipfian.draw()) % self._records


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


class Hotspot:
    """The share ``operations`` asks for the first ``share`` of the records, the rest for the others; within both
    all are asked for as often. Raises :class:`ConfigError` if one of them is asked for and has no record."""

    def __init__(self, records: int, share: float, operations: float, random: Random, first: int = 0) -> None:
        self._first = first
        self._hot = int(records * share)
        self._cold = records - self._hot
        self._operations = operations
        self._random = random.random
        if (operations and not self._hot) or (operations < 1 and not self._cold):
            raise ConfigError(f"hotspotdatafraction {share:g} of {records} records leaves "
                              f"{'hot' if operations and not self._hot else 'cold'} ones none, which "
                              f"hotspotopnfraction {operations:g} asks for")

    def draw(self) -> int:
        """A record's number."""
        u, hot = self._random(), self._operations
        if u < hot:
            return self._first + int(u / hot * self._hot)
        return self._first + self._hot + int((u - hot) / (1 - hot) * self._cold)


class Exponential:
    """The newest records most often: ``percentile`` % of the time one of the ``reach`` newest."""

    def __init__(self, newest: Newest, percentile: float, reach: float, random: Random) -> None:
        self._newest = newest
        self._mean = -reach / math.log(1 - percentile / 100)
        self._random = random.random

    def draw(self) -> int:
        """A record's number. What would lie before the first one is drawn again."""
        newest = self._newest()
        while (place := newest - int(-math.log(1 - self._random()) * self._mean)) < 0:
            pass
        return place


class Sequential:
    """One after the other, and again from the first on."""

    def __init__(self, records: int, first: int = 0) -> None:
        self._first = first
        self._records = records
        self._drawn = 0

    def draw(self) -> int:
        """A record's number."""
        self._drawn += 1
        return self._first + (self._drawn - 1) % self._records
