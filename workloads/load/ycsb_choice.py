"""Which record: YCSB's key choosers, number for number as in YCSB 0.17 (``site.ycsb.generator``).

Every draw takes one number from the random generator it was given, so a seeded run repeats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count
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


#: Gives the number of a record that is to be asked for.
Draw = Callable[[], int]
#: The numbers of the records that can be asked for: 0 to what it returns, without gaps.
Newest = Callable[[], int]


def uniform(records: int, random: Random, first: int = 0) -> Draw:
    """Every record as often as any other; the first is ``first``."""
    draw = random.random
    return lambda: first + int(draw() * records)


def scrambled_zipfian(records: int, random: Random, first: int = 0) -> Draw:
    """Few records are wanted often, and they lie anywhere among the ``records`` from ``first`` on."""
    zipfian = Zipfian(SCRAMBLED_ITEMS, random, SCRAMBLED_ZETA)
    return lambda: first + fnv64(zipfian.draw()) % records


def latest(newest: Newest, random: Random) -> Draw:
    """The newest record most often: ``newest()`` is its number, and grows."""
    # As many items as the newest one's number: the oldest record of all is never asked for, in YCSB neither.
    zipfian = Zipfian(max(newest(), 1), random)

    def draw() -> int:
        last = newest()
        zipfian.grow(last)
        return max(last - zipfian.draw(), 0)

    return draw


def hotspot(records: int, share: float, operations: float, random: Random, first: int = 0) -> Draw:
    """The share ``operations`` asks for the first ``share`` of the records, the rest for the others; within both
    all are asked for as often. Raises :class:`ConfigError` if one of them is asked for and has no record."""
    hot = int(records * share)
    cold = records - hot
    if (operations and not hot) or (operations < 1 and not cold):
        raise ConfigError(f"hotspotdatafraction {share:g} of {records} records leaves "
                          f"{'hot' if operations and not hot else 'cold'} ones none, which "
                          f"hotspotopnfraction {operations:g} asks for")

    def draw() -> int:
        u = random.random()
        if u < operations:
            return first + int(u / operations * hot)
        return first + hot + int((u - operations) / (1 - operations) * cold)

    return draw


def exponential(newest: Newest, percentile: float, reach: float, random: Random) -> Draw:
    """The newest records most often: ``percentile`` % of the time one of the ``reach`` newest."""
    mean = -reach / math.log(1 - percentile / 100)

    def draw() -> int:
        last = newest()
        # What would lie before the first one is drawn again.
        while (place := last - int(-math.log(1 - random.random()) * mean)) < 0:
            pass
        return place

    return draw


def sequential(records: int, first: int = 0) -> Draw:
    """One after the other, and again from the first on."""
    drawn = count()
    return lambda: first + next(drawn) % records
