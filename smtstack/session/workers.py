"""What the worker that shakes hands tells the others of its port, over a socket of their own. Trusted."""

from __future__ import annotations

from smtstack.session.established import Established

_OPENED, _CLOSED = b"+", b"-"


def opened(session: Established) -> bytes:
    """A session is there."""
    return _OPENED + session.pack()


def closed(peer: tuple[int, int]) -> bytes:
    """The session with this (ip, port) is over."""
    return _CLOSED + (peer[0] << 16 | peer[1]).to_bytes(6, "big")


def unpack(message: bytes) -> Established | tuple[int, int]:
    """What was told."""
    if message[:1] == _OPENED:
        return Established.unpack(message[1:])
    number = int.from_bytes(message[1:], "big")
    return number >> 16, number & 0xFFFF
