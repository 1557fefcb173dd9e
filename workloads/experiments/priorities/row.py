"""The rows of ``smtnet run priorities``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from workloads.results.row import Row


class ClassResult(TypedDict):
    """What one class was offered and got: shares of the port's rate, and frames."""

    asked: float
    offered: float
    expected: float
    """What a port with strict priorities gives."""
    got: float
    frames_sent: int
    frames_got: int
    port_sent: int
    port_dropped: int


class PriorityRow(Row):
    """One trial of one scenario; ``rpcs`` are frames, and an error is a priority that was not strict."""

    rate_mbps: float
    """Rate of the port."""
    buffer_bytes: int
    """Buffer of each priority of the port."""
    seconds: float
    """How long it was measured."""
    classes: Mapping[str, ClassResult]
    """What each class got, by its number, 7 the highest."""
