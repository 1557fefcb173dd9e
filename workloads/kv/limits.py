"""What a client may send at most, and how people write such numbers."""

from __future__ import annotations

import re

_BYTES = re.compile(r"([0-9]{1,15})(b|k|kb|m|mb|g|gb)?", re.IGNORECASE)
_UNITS = {"b": 1, "k": 1000, "kb": 1 << 10, "m": 1000**2, "mb": 1 << 20, "g": 1000**3, "gb": 1 << 30}


def byte_count(text: str) -> int:
    """For argparse: bytes as Redis's configuration has them, ``64mb`` (k is 1000, kb 1024)."""
    found = _BYTES.fullmatch(text)
    if found is None:
        raise ValueError(text)
    return int(found[1]) * _UNITS[(found[2] or "b").lower()]
