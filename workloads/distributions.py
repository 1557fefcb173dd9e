"""Message sizes: the workloads W1 to W5 of the Homa papers, and tables from files.

W1 is Facebook's memcached (ETC), W2 Google's search, W3 all of a Google datacenter, W4 Facebook's Hadoop,
W5 DCTCP's web search. The tables here are our own digest of the published ones (PlatformLab/HomaModule,
``util/dist.cc``): 25 bins of probability, each with its mean size, so that a workload keeps its mean and
its shape at 1/30 of the length. For the full tables give a file to :func:`load_table`.
"""

from __future__ import annotations

import csv
from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path
from random import Random

from smtstack.errors import ConfigError

#: Bytes; longer messages are cut to this. HomaModule's HOMA_MAX_MESSAGE_LENGTH.
DEFAULT_CAP = 1_000_000

#: Upper ends of the bins, in cumulative probability.
_EDGES = (*(n / 20 for n in range(1, 20)), 0.97, 0.98, 0.99, 0.995, 0.999, 1.0)
#: Mean size in bytes of the messages in each bin, when those over 1 MB are cut to 1 MB ...
_MEANS = {
    "w1": (8, 8, 8, 8, 8, 8, 10, 11, 13, 19, 39, 65, 95, 131, 176, 233, 310, 427, 636, 934, 1206, 1572, 2167,
           3341, 7897),
    "w2": (8, 8, 8, 23, 38, 48, 83, 154, 204, 265, 282, 301, 323, 347, 376, 410, 449, 497, 649, 1126, 1711,
           2489, 3599, 6765, 100_141),
    "w3": (8, 25, 47, 71, 82, 99, 121, 145, 180, 235, 275, 304, 339, 384, 441, 516, 717, 1240, 3282, 7366,
           11_303, 18_766, 54_617, 157_813, 645_256),
    "w4": (213, 308, 324, 357, 424, 490, 521, 551, 584, 625, 696, 820, 1248, 2961, 27_986, 46_487, 62_859,
           91_086, 185_850, 459_464, 976_634, *[1_000_000] * 4),
    "w5": (2145, 5005, 7865, 14_614, 22_050, 26_460, 33_810, 44_100, 54_919, 66_209, 83_309, 154_243, 397_511,
           794_070, *[1_000_000] * 11),
}
#: ... and, of the last bins of each, when they are not.
_UNCUT_TAILS = {
    "w1": (),
    "w2": (108_426,),
    "w3": (1_149_824,),
    "w4": (1_202_792, 2_201_359, 4_531_538, 7_672_165, 10_000_000),
    "w5": (1_237_491, 1_727_001, 2_731_260, 4_201_260, 14_945_397, 21_805_245, 24_745_001, 26_704_927,
           28_175_343, 29_093_200, 29_400_000),
}
WORKLOADS = tuple(_MEANS)


class Distribution:
    """Sizes and their probabilities. ``rows`` are (bytes, cumulative probability), both rising.

    Messages longer than ``cap`` bytes are cut to it. Raises :class:`ConfigError` for a table that is none.
    """

    def __init__(self, name: str, rows: Iterable[tuple[int, float]], cap: int = DEFAULT_CAP) -> None:
        self.name = name
        self.cap = cap
        sizes: list[int] = []
        shares: list[float] = []
        last_size, last_share = 0, 0.0
        for size, share in rows:
            if size < max(1, last_size) or not last_share <= share <= 1 + 1e-9:
                raise ConfigError(f"{name}: {size} bytes at {share} do not continue {last_size} at {last_share}")
            last_size, last_share = size, share
            cut = min(size, cap)
            if sizes and sizes[-1] == cut:
                shares[-1] = share
            elif share > (shares[-1] if shares else 0):
                sizes.append(cut)
                shares.append(share)
        if cap < 1 or abs(last_share - 1) > 1e-6:
            raise ConfigError(f"{name}: the table ends at probability {last_share}, the cap is {cap} bytes")
        shares[-1] = 1.0
        #: Distinct sizes in bytes, rising.
        self.sizes = tuple(sizes)
        #: Share of messages of at most that size.
        self.shares = tuple(shares)

    def quantile(self, u: float) -> int:
        """Bytes of the message at cumulative probability ``u``, 0 to 1: the first row that reaches it."""
        return self.sizes[bisect_left(self.shares, u)]

    def sample(self, random: Random) -> int:
        """Bytes of one message drawn at random."""
        return self.quantile(random.random())

    def items(self) -> list[tuple[int, float]]:
        """(bytes, probability) of every size."""
        return [(size, share - (self.shares[i - 1] if i else 0.0))
                for i, (size, share) in enumerate(zip(self.sizes, self.shares, strict=True))]

    def mean(self) -> float:
        """Mean size in bytes."""
        return sum(size * share for size, share in self.items())


def workload(name: str, cap: int = DEFAULT_CAP) -> Distribution:
    """One of :data:`WORKLOADS` from the tables here; raises :class:`ConfigError` for another name."""
    name = name.lower()
    if name not in _MEANS:
        raise ConfigError(f"unknown workload {name!r}; there are {', '.join(WORKLOADS)}")
    means = _MEANS[name]
    tail = _UNCUT_TAILS[name]
    if cap > DEFAULT_CAP and tail:
        means = (*means[:-len(tail)], *tail)
    return Distribution(name, zip(means, _EDGES, strict=True), cap)


def load_table(path: Path, cap: int = DEFAULT_CAP) -> Distribution:
    """A full table: CSV with the columns ``bytes`` and ``cum_frac``, as HomaModule's dist.cc tabulates them.

    Raises :class:`ConfigError` for a file that is missing or no such table.
    """
    try:
        with path.open(newline="") as f:
            rows = [(int(row["bytes"]), float(row["cum_frac"])) for row in csv.DictReader(f)]
    except OSError as e:
        raise ConfigError(f"size table {path}: {e.strerror}") from None
    except (KeyError, TypeError, ValueError) as e:
        raise ConfigError(f"size table {path}: wants columns bytes,cum_frac ({type(e).__name__}: {e})") from None
    return Distribution(path.stem.lower(), rows, cap)
