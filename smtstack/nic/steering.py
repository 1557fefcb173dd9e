"""Receive side: which queue a frame goes to, by flow or by message."""

from __future__ import annotations

import zlib
from collections.abc import Callable

from smtstack.errors import ConfigError
from smtstack.wire.frame import MIN_LEN

Steering = Callable[[bytes, int], int]


def by_flow(frame: bytes, queues: int) -> int:
    """One queue per (source, ports), like RSS for TCP: one core a connection."""
    return _mix(frame[26:30] + frame[34:38]) % queues


def by_message(frame: bytes, queues: int) -> int:
    """Messages of one flow spread over all queues: they need no order (paper §2)."""
    if len(frame) < MIN_LEN:
        return 0
    # Source address, ports, sender_id.
    return _mix(frame[26:30] + frame[34:38] + frame[54:62]) % queues


def _mix(data: bytes) -> int:
    # The same in every run, unlike hash(). Multiplied: ids and ports step by 2, and a CRC is linear.
    return zlib.crc32(data) * 0x9E3779B1 >> 16


def steering_named(name: str) -> Steering:
    """``flow`` or ``message``; raises :class:`ConfigError`."""
    if name == "flow":
        return by_flow
    if name == "message":
        return by_message
    raise ConfigError(f"unknown steering {name!r}; there are flow and message")
