"""Quantities as people write them: ``10G``, ``1ms``, ``5%``, ``64KB``, ``2s``, or a plain number.

Every option, of a command line or of a link, that has a unit is read here. A plain number is in the option's own
unit. Units of time are those of tc (iproute2); those of rates and sizes count in thousands, KiB, MiB and GiB in
1024.
"""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smtstack.errors import ConfigError

_NUMBER = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?)\s*(.*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Kind:
    """What can be measured: its name, its units (lower case, with their sizes), and those that an error names."""

    name: str
    units: dict[str, float] = field(compare=False)
    shown: str
    examples: str


def _with_prefixes(*ends: str) -> dict[str, float]:
    prefixes = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
    return {prefix + end: factor for prefix, factor in prefixes.items() for end in ends if prefix + end}


TIME = Kind("time", {
    **dict.fromkeys(("ns", "nsec", "nsecs"), 1e-9),
    **dict.fromkeys(("us", "µs", "μs", "usec", "usecs"), 1e-6),
    **dict.fromkeys(("ms", "msec", "msecs"), 1e-3),
    **dict.fromkeys(("s", "sec", "secs"), 1.0),
    "min": 60.0, "h": 3600.0, "d": 86_400.0}, "ns, us, ms, s, min, h, d", "2ms or 50us")
#: Bits. For tc, bps is bytes; people who write 100Mbps mean bits.
RATE = Kind("rate", _with_prefixes("", "bit", "bps", "bit/s"), "bit, kbit, Mbit, Gbit, or k, M, G",
            "0.5 or 10Gbit")
SIZE = Kind("size", {
    **_with_prefixes("", "b"), "byte": 1.0, "bytes": 1.0,
    **{unit: 1024.0 ** n for n, letter in enumerate("kmg", 1) for unit in (f"{letter}i", f"{letter}ib")},
}, "B, KB, MB, GB (thousands), KiB, MiB, GiB (1024)", "1500 or 64KB")
SHARE = Kind("share", {"%": 0.01}, "%", "0.01 or 1%")
PERCENTAGE = Kind("percentage", {"%": 1.0}, "%", "1 or 0.5%")
COUNT = Kind("number", _with_prefixes(""), "k, M, G", "20 or 10k")
FREQUENCY = Kind("number a second", {**_with_prefixes("", "/s", "hz"), "/min": 1 / 60}, "k, M, G, /s",
                 "500 or 10k")


@dataclass(frozen=True, slots=True)
class Quantity:
    """How an option is read: as ``type=`` of argparse, and by :meth:`read` for values that have a name."""

    kind: Kind
    own: str
    """The unit of a plain number, and of the value; "" for 1 (a share of 1, a number a second)."""
    least: float = 0.0
    most: float = math.inf
    above: bool = False
    """``least`` itself is not possible."""
    whole: bool = False
    """The value is a whole number of the own unit, an ``int``."""

    def __call__(self, text: str) -> Any:
        """For argparse, which puts the option's name before the error."""
        try:
            return self.value(text)
        except ValueError as e:
            raise argparse.ArgumentTypeError(str(e)) from None

    def read(self, name: str, value: Any) -> Any:
        """The quantity that a text or a plain number says; raises :class:`ConfigError` with the name."""
        try:
            return self.value(value)
        except ValueError as e:
            raise ConfigError(f"{name}: {e}") from None

    def value(self, given: Any) -> Any:
        """A number, or text, in the own unit. Raises :class:`ValueError` that says what is possible."""
        found = None if isinstance(given, bool) else _NUMBER.fullmatch(str(given).strip())
        factor = None
        if found is not None:
            unit = found[2].lower()
            if not unit:
                factor = 1.0
            elif unit in self.kind.units:
                factor = self.kind.units[unit] / self.kind.units.get(self.own.lower(), 1.0)
        if found is None or factor is None:
            raise ValueError(f"{given!r} is not {self.possible()}")
        number = float(f"{float(found[1]) * factor:.15g}")  # 50 ms are not 50000.00000000001 us
        if not (self.least <= number <= self.most) or math.isinf(number) or (self.above and number <= self.least):
            raise ValueError(f"{given!r} is not {self.possible()}")
        if not self.whole:
            return number
        if number != int(number):
            raise ValueError(f"{given!r} is not {self.possible()}")
        return int(number)

    def possible(self) -> str:
        """What may be written, in words."""
        unit = f" {self.own}" if self.own else ""
        text = f"a {'whole ' if self.whole else ''}{self.kind.name} such as {self.examples()}, "
        text += f"above {self.least:,.15g}" if self.above else f"from {self.least:,.15g}"
        if self.most < _ENDLESS:
            text += f"{', at most' if self.above else ' to'} {self.most:,.15g}"
        return f"{text}{unit}; units: {self.kind.shown}" + (f"; a plain number is {self.own}" if self.own else "")

    def examples(self) -> str:
        """Two values, in the order of size that is meant."""
        return {"d": "7 or 48h", "s": "2 or 500ms", "ns": "500 or 2us"}.get(self.own, self.kind.examples)


#: Bounds that nobody has to know.
_ENDLESS = 1e9
#: Longer is no time for an option: about 11 days, in seconds.
_MOST_S = 1e6
_MOST_BYTES = float(1 << 40)

DAYS = Quantity(TIME, "d", least=1, most=3650, whole=True)
NANOSECONDS = Quantity(TIME, "ns", most=_MOST_S * 1e9, whole=True)
SECONDS = Quantity(TIME, "s", above=True, most=_MOST_S)
MICROSECONDS = Quantity(TIME, "us", most=_MOST_S * 1e6)
WHOLE_MICROSECONDS = Quantity(TIME, "us", most=_MOST_S * 1e6, whole=True)
BYTES = Quantity(SIZE, "B", least=1, most=_MOST_BYTES, whole=True)
MBPS = Quantity(RATE, "Mbit", above=True, most=1e6)
WHOLE_MBPS = Quantity(RATE, "Mbit", least=1, most=1e6, whole=True)
POSITIVE = Quantity(COUNT, "", least=1, most=1 << 53, whole=True)
NOT_NEGATIVE = Quantity(COUNT, "", most=1 << 53, whole=True)
PER_SECOND = Quantity(FREQUENCY, "", above=True, most=1e9)
#: 0 to 1.
FRACTION = Quantity(SHARE, "", most=1.0)
#: 0 to 100.
PER_CENT = Quantity(PERCENTAGE, "%", most=100.0)


def sizes(text: str, between: str = ",") -> str:
    """For argparse: ``64KB,w3`` as ``64000,w3``, so sizes in bytes, and other words (also paths) as they are."""
    def one(part: str) -> str:
        return str(BYTES(part)) if part[:1] in tuple("0123456789-+") and not Path(part).is_file() else part

    return between.join(map(one, text.split(between)))


def size_and_number(text: str) -> str:
    """For argparse: ``1MBx10k`` as ``1000000x10000``."""
    size, x, number = text.partition("x")
    return f"{BYTES(size)}x{POSITIVE(number)}" if x else text
