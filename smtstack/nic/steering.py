"""Receive side: which queue a frame goes to, by flow or by message."""

from __future__ import annotations

import zlib
from collections.abc import Callable

from smtstack.errors import ConfigError
from smtstack.wire.frame import DST_AT, MIN_LEN, SENDER_ID_AT, SRC_AT, TRANSPORT_OFFSET

Steering = Callable[[bytes, int], int]

_SRC = slice(SRC_AT, DST_AT)
_PORTS = slice(TRANSPORT_OFFSET, TRANSPORT_OFFSET + 4)
_SENDER_ID = slice(SENDER_ID_AT, SENDER_ID_AT + 8)


def by_flow(frame: bytes, queues: int) -> int:
    """One queue per (source, ports), like RSS for TCP: one core a connection."""
    return _mix(frame[_SRC] + frame[_PORTS]) % queues


def by_message(frame: bytes, queues: int) -> int:
    """Messages of one flow spread over all queues: they need no order (paper §2)."""
    if len(frame) < MIN_LEN:
        return 0
    return _mix(frame[_SRC] + frame[_PORTS] + frame[_SENDER_ID]) % queues


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
