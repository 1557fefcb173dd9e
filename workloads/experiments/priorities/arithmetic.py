"""Strict priorities as arithmetic: what each class of a port must get of what it is offered, and what it may not.

A class is the upper three bits of the DSCP, 7 the highest, as Homa's priorities are. Shares are of the port's
rate.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace

from smtstack import quantities
from topo.shaping import PRIORITIES

#: Of the rows, as results/row.py has it.
MODE = "priorities"
#: Share of a port, by class.
Shares = dict[int, float]

#: Share of the port below which nothing counts as denied, or as got in the place of a higher class. What is under
#: way at the edges of the time that counts is some frames either way, and HTB lends to whoever waits when a late
#: sender leaves the buffer of a higher class empty for a moment.
TOLERANCE = 0.005
#: Seconds in which a class may send one frame by right, whoever else waits: topo/shaping.py has to leave it a rate
#: above zero, and HTB forgets older debts.
BY_RIGHT_S = 60.0
_MOST = 10.0
_SHARE = replace(quantities.FRACTION, above=True, most=_MOST)


def classes(text: str) -> Shares:
    """For argparse: ``7:0.75,0:75%``, in descending order."""
    shares: Shares = {}
    for part in text.split(","):
        name, colon, share = part.partition(":")
        number = int(name) if name.isascii() and name.isdigit() else PRIORITIES
        try:
            value = _SHARE.value(share)
        except ValueError:
            value = 0.0
        if not colon or number >= PRIORITIES or not 0 < value <= _MOST:
            raise argparse.ArgumentTypeError(f"{part!r} is no CLASS:SHARE, as 7:0.75 or 0:75%; classes are 0 to "
                                             f"{PRIORITIES - 1}, shares above 0 and at most {_MOST:g}")
        if number in shares:
            raise argparse.ArgumentTypeError(f"class {number} is in {text!r} twice")
        shares[number] = value
    return dict(sorted(shares.items(), reverse=True))


def all_classes(share: float) -> Shares:
    """Each of them the same."""
    return dict.fromkeys(reversed(range(PRIORITIES)), share)


def named(shares: Shares) -> str:
    """``7:75%,0:75%``, or ``all:30%``; :func:`classes` reads the first."""
    share = next(iter(shares.values()))
    if shares == all_classes(share):
        return f"all:{share * 100:g}%"
    return ",".join(f"{number}:{part * 100:g}%" for number, part in shares.items())


def expected(offered: Mapping[int, float]) -> Shares:
    """What strict priority gives each class: all it is offered, as far as the higher ones leave it."""
    left, shares = 1.0, {}
    for number in sorted(offered, reverse=True):
        shares[number] = min(offered[number], left)
        left -= shares[number]
    return shares


def tolerance(seconds: float, frames_per_s: float) -> float:
    """Share of a port that sends ``frames_per_s`` which says nothing in a measurement of ``seconds``."""
    by_right = 1 + seconds / BY_RIGHT_S
    return max(TOLERANCE, by_right / (seconds * frames_per_s))


def breach(offered: Mapping[int, float], got: Mapping[int, float], within: float) -> str:
    """The worst case of a class that got what a higher one was denied, in words; "" if priorities were strict.

    ``within``: see :func:`tolerance`.
    """
    worst, text = 0.0, ""
    for high in sorted(offered, reverse=True):
        denied = offered[high] - got[high]
        for low in (number for number in offered if number < high):
            taken = min(denied, got[low])
            if taken > max(within, worst):
                worst = taken
                text = (f"priorities are not strict: class {low} got {got[low]:.1%} of the port while class "
                        f"{high} was denied {denied:.1%}")
    return text
