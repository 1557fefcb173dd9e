"""Messages on a byte stream: length and id in front of each, so that answers may come in any order."""

from __future__ import annotations

import struct

from smtstack.errors import PeerError

#: Bytes of the message, its id: 32 bits each, big-endian.
HEADER = struct.Struct("!II")
ID_MASK = 0xFFFFFFFF


class FramingError(PeerError):
    """The stream is not, or no longer, a series of messages: nothing after this can be believed."""


def frame(number: int, data: bytes) -> bytes:
    """A message as it goes on the stream."""
    return HEADER.pack(len(data), number) + data


class Inbox:
    """Cuts a stream into messages of at most ``limit`` bytes. Holds no more than one that is incomplete."""

    __slots__ = ("_buffer", "_limit", "_wanted")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        #: Bytes the buffer must have before it is worth looking at.
        self._wanted = HEADER.size

    def __len__(self) -> int:
        """Bytes of the incomplete message."""
        return len(self._buffer)

    def take(self, data: bytes) -> list[tuple[int, bytes]]:
        """The messages, as (id, bytes), that ``data`` completes; raises :class:`FramingError`."""
        buffer = self._buffer
        if buffer:
            buffer += data
            if len(buffer) < self._wanted:
                return []
            data = bytes(buffer)
            buffer.clear()
        messages = []
        at, size = 0, len(data)
        self._wanted = HEADER.size
        while size - at >= 8:
            length, number = HEADER.unpack_from(data, at)
            if length > self._limit:
                raise FramingError(f"a message of {length} bytes; at most {self._limit}")
            end = at + 8 + length
            if end > size:
                self._wanted = end - at
                break
            messages.append((number, data[at + 8:end]))
            at = end
        if at < size:
            buffer += data[at:] if at else data
        return messages
