"""What the worker that shakes hands tells the others of its port, over a socket of their own. Trusted."""

from __future__ import annotations

from smtstack.session.established import Established
from smtstack.wire.naming import peer_key, peer_of

_OPENED, _CLOSED = b"+", b"-"


def opened(session: Established) -> bytes:
    """A session is there."""
    return _OPENED + session.pack()


def closed(peer: tuple[int, int]) -> bytes:
    """The session with this (ip, port) is over."""
    return _CLOSED + peer_key(*peer).to_bytes(6, "big")


def unpack(message: bytes) -> Established | tuple[int, int]:
    """What was told."""
    if message[:1] == _OPENED:
        return Established.unpack(message[1:])
    return peer_of(int.from_bytes(message[1:], "big"))
