"""Message sizes: the workloads W1 to W5 of the Homa papers, and tables from files.

W1 is Facebook's memcached (ETC), W2 Google's search, W3 all of a Google datacenter, W4 Facebook's Hadoop,
W5 DCTCP's web search. The tables here are our own digest of the published ones (PlatformLab/HomaModule,
``util/dist.cc``): 25 bins of probability, each with its mean size, so that a workload keeps its mean and
its shape at 1/30 of the length. For the full tables, or sizes of one's own, give a file to :func:`load_table`.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from itertools import accumulate
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
#: How far from 1 a table may end: published ones are rounded.
_ENDS_AT_ONE = 1e-6


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


def find(text: str, cap: int = DEFAULT_CAP) -> Distribution:
    """A workload by its name, or a file of sizes (:func:`load_table`). Raises :class:`ConfigError`."""
    if text.lower() in WORKLOADS:
        return workload(text, cap)
    path = Path(text)
    if not path.exists():
        raise ConfigError(f"size {text!r}: a workload ({', '.join(WORKLOADS)}), or a file; there is no such file")
    return load_table(path, cap)


def name(text: str) -> str:
    """What results call the sizes that :func:`find` finds: a workload, or a file without folder and ending."""
    return text.lower() if text.lower() in WORKLOADS else Path(text).stem.lower()


def load_table(path: Path, cap: int = DEFAULT_CAP) -> Distribution:
    """Sizes from a file, which is one of three:

    - a CSV with the columns ``bytes`` and ``cum_frac`` (cumulative probability), as HomaModule's dist.cc tabulates
      them;
    - the same two numbers a line, without the names;
    - a size a line, each as likely as any other.

    Between the numbers are commas or blanks; empty lines and what follows a ``#`` do not count. Raises
    :class:`ConfigError`, with file and line, for a file that is missing or none of these.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as e:
        raise ConfigError(f"size table {path}: {e.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"size table {path}: no text") from None
    lines = [(number, re.split(r"[\s,;]+", said)) for number, line in enumerate(text.splitlines(), 1)
             if (said := line.partition("#")[0].strip().strip(",;"))]
    columns: tuple[int, ...] = ()
    if lines and not _is_number(lines[0][1][0]):
        columns = _columns(path, *lines.pop(0))
    if not lines:
        raise ConfigError(f"size table {path}: there are no sizes in it")
    if not columns:
        columns = tuple(range(min(len(lines[0][1]), 2)))
    width = max(len(lines[0][1]), max(columns) + 1)
    table: list[tuple[int, float]] = []
    for number, words in lines:
        where = f"size table {path}, line {number}"
        if len(words) != width:
            raise ConfigError(f"{where}: {len(words)} values, where there are to be {width}")
        size = _size(where, words[columns[0]])
        table.append((size, _share(where, words[columns[1]]) if len(columns) > 1 else 0.0))
        if len(columns) > 1 and len(table) > 1 and (table[-1][0] < table[-2][0] or table[-1][1] < table[-2][1]):
            raise ConfigError(f"{where}: sizes and cumulative probabilities rise from line to line, but "
                              f"{' '.join(words)} follows {table[-2][0]} {table[-2][1]:g}")
    if len(columns) == 1:
        counts = sorted(Counter(size for size, _share in table).items())
        table = [(size, total / len(table)) for (size, _n), total in
                 zip(counts, accumulate(n for _size, n in counts), strict=True)]
    elif abs(table[-1][1] - 1) > _ENDS_AT_ONE:
        raise ConfigError(f"size table {path}, line {lines[-1][0]}: the last cumulative probability is "
                          f"{table[-1][1]:g}, not 1")
    return Distribution(path.stem.lower(), table, cap)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _columns(path: Path, number: int, names: list[str]) -> tuple[int, ...]:
    """Which columns are meant, by the names in the first line."""
    lowered = [name.lower().strip("\"'") for name in names]
    if lowered == ["bytes"]:
        return (0,)
    if not {"bytes", "cum_frac"} <= set(lowered):
        raise ConfigError(f"size table {path}, line {number}: wants columns bytes,cum_frac, not "
                          f"{','.join(names)[:60]}")
    return lowered.index("bytes"), lowered.index("cum_frac")


def _size(where: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not int(text):
        raise ConfigError(f"{where}: {text[:40]!r} is no size: a whole number of bytes, from 1")
    return int(text)


def _share(where: str, text: str) -> float:
    if not _is_number(text) or not 0 <= float(text) <= 1 + _ENDS_AT_ONE:
        raise ConfigError(f"{where}: {text[:40]!r} is no cumulative probability: 0 to 1")
    return float(text)
