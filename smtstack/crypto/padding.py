"""Length concealment: how long a message pretends to be (paper §6.1, RFC 8446 §5.4)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from smtstack.errors import ConfigError

#: Length of the message, in bytes, to length with padding.
Padding = Callable[[int], int]


def none(length: int) -> int:
    """No padding."""
    return length


def power_of_two(length: int) -> int:
    """The next power of two, at least 16."""
    return max(16, 1 << (length - 1).bit_length())


def buckets(sizes: tuple[int, ...]) -> Padding:
    """The smallest of ``sizes`` that holds the message; longer ones go to multiples of the largest."""
    ordered = sorted(sizes)
    if not ordered or ordered[0] < 1:
        raise ConfigError("padding buckets must be positive lengths in bytes, e.g. buckets:256,1024,8192")

    def pad(length: int) -> int:
        if length <= ordered[-1]:
            return ordered[bisect_left(ordered, length)]
        return -(-length // ordered[-1]) * ordered[-1]

    return pad


def padding_named(text: str) -> Padding:
    """``none``, ``power-of-two`` or ``buckets:256,1024``; raises :class:`ConfigError`."""
    if text == "none":
        return none
    if text == "power-of-two":
        return power_of_two
    if text.startswith("buckets:"):
        try:
            return buckets(tuple(int(s) for s in text[8:].split(",")))
        except ValueError:
            pass
    raise ConfigError(f"unknown padding {text!r}; try none, power-of-two or buckets:256,1024,8192")
