"""Receive side: which queue a frame goes to, by flow or by message."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final

from smtstack.errors import ConfigError
from smtstack.wire.frame import DST_AT, MIN_LEN, SENDER_ID_AT, SRC_AT, TRANSPORT_OFFSET

Steering = Callable[[bytes, int], int]

# Ends of the ports and of the id. Not slices: compiled, bytes take none that is a variable.
_PORTS_END: Final = TRANSPORT_OFFSET + 4
_SENDER_ID_END: Final = SENDER_ID_AT + 8


def by_flow(frame: bytes, queues: int) -> int:
    """One queue per (source, ports), like RSS for TCP: one core a connection."""
    return _mix(frame[SRC_AT:DST_AT] + frame[TRANSPORT_OFFSET:_PORTS_END]) % queues


def by_message(frame: bytes, queues: int) -> int:
    """Messages of one flow spread over all queues: they need no order (paper §2)."""
    if len(frame) < MIN_LEN:
        return 0
    ports, sender_id = frame[TRANSPORT_OFFSET:_PORTS_END], frame[SENDER_ID_AT:_SENDER_ID_END]
    return _mix(frame[SRC_AT:DST_AT] + ports + sender_id) % queues


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
