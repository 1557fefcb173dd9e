"""What TLS says between data once keys are on: alerts, session tickets, key updates (RFC 8446 §4.6, §6). Judged
here, done by :mod:`smtstack.ktls_io.socket`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from smtstack.errors import BadPacket

WARNING: Final = 1
FATAL: Final = 2
CLOSE_NOTIFY: Final = 0
UNEXPECTED_MESSAGE: Final = 10
NO_RENEGOTIATION: Final = 100

HELLO_REQUEST: Final = 0
CLIENT_HELLO: Final = 1
NEW_SESSION_TICKET: Final = 4
KEY_UPDATE: Final = 24
#: A session ticket has at most 2^16 bytes and some; nothing else here is longer.
_MOST: Final = 1 << 17


class HandshakeMessages:
    """Handshake messages out of records, which cut them anywhere."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def partial(self) -> bool:
        """Whether a message is under way: no record of another type may come now, and no new keys."""
        return bool(self._buffer)

    def take_untrusted(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """(type, body) of each message that is whole. Raises :class:`BadPacket` for one that is too long."""
        buffer = self._buffer
        buffer += data
        while len(buffer) >= 4:
            length = int.from_bytes(buffer[1:4], "big")
            if length > _MOST:
                raise BadPacket(f"a handshake message of {length} bytes")
            if len(buffer) < 4 + length:
                return
            kind, body = buffer[0], bytes(buffer[4:4 + length])
            del buffer[:4 + length]
            yield kind, body


def key_update(request: bool) -> bytes:
    """The message. ``request``: the peer is to do the same."""
    return bytes((KEY_UPDATE, 0, 0, 1, 1 if request else 0))


def wants_update_untrusted(body: bytes) -> bool:
    """Whether a key update asks for ours. Raises :class:`BadPacket` for one that is malformed."""
    if body not in (b"\0", b"\1"):
        raise BadPacket(f"a key update of {body[:8].hex()}")
    return body == b"\1"


def alert_untrusted(data: bytes) -> tuple[int, int]:
    """(level, description). Raises :class:`BadPacket`."""
    if len(data) != 2:
        raise BadPacket(f"an alert of {len(data)} bytes")
    return data[0], data[1]
