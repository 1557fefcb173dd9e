"""Sums of fractions as Redis makes them for INCRBYFLOAT: in the 64-bit mantissa of an x86 ``long double``."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction

from workloads.kv.arguments import number
from workloads.kv.store import CommandError

_MANTISSA = 64
#: Digits behind the point that Redis writes.
_DIGITS = 17
#: Largest power of ten that fits.
_MOST = 4932
_DECIMAL = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,9})?")


def parse(text: bytes, complaint: str) -> Fraction | None:
    """A number as precise as Redis keeps it; None: infinite. Raises :class:`CommandError`."""
    if _DECIMAL.fullmatch(text) is None:
        value = number(text, complaint)
        return None if math.isinf(value) else Fraction(value)
    if len(text) > 2 * _MOST:
        raise CommandError(complaint)
    exact = Decimal(text.decode())
    # Written out as a fraction, an exponent can take for ever.
    if not exact or exact.adjusted() < -_MOST:
        return Fraction()
    if exact.adjusted() >= _MOST:
        raise CommandError(complaint)
    return _rounded(Fraction(exact))


def increased(old: bytes | None, amount: Fraction | None, complaint: str) -> bytes:
    """What was there (None: nothing, so 0) and ``amount`` together, as Redis writes it. Raises
    :class:`CommandError`: ``complaint`` if ``old`` is no number, another one if the sum is infinite."""
    before = Fraction() if old is None else parse(old, complaint)
    if before is None or amount is None:
        raise CommandError("ERR increment would produce NaN or Infinity")
    scaled = round(_rounded(before + amount) * 10 ** _DIGITS)
    # Decimal, as an int that long is not written by Python.
    whole, fraction = (f"{Decimal(part):f}" for part in divmod(abs(scaled), 10 ** _DIGITS))
    text = f"{whole}.{fraction:0>{_DIGITS}}".rstrip("0").rstrip(".")
    return (b"-" if scaled < 0 else b"") + text.encode()


def _rounded(value: Fraction) -> Fraction:
    if not value:
        return value
    bits = abs(value.numerator).bit_length() - value.denominator.bit_length()
    # The mantissa, or one bit more than that.
    scale = Fraction(2) ** (_MANTISSA - bits)
    if abs(value * scale) >= 1 << _MANTISSA:
        scale /= 2
    return Fraction(round(value * scale)) / scale
