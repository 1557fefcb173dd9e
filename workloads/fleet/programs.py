"""What a fleet finds out about its programs: their processor time, and the round trips they wrote down."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from pathlib import Path

import psutil


def cpu_s(process: psutil.Process) -> float:
    """Processor time it has taken, in seconds; 0.0 if it has ended."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def take_raw(paths: Sequence[Path]) -> array[int]:
    """What client processes wrote, which is removed."""
    values = array("Q")
    for path in paths:
        if path.exists():
            values.frombytes(path.read_bytes())
            path.unlink()
    if sys.byteorder == "big":
        values.byteswap()
    return values
