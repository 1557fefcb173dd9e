"""Fields of variable length in tickets and hellos: written plainly, read with suspicion."""

from __future__ import annotations

from smtstack.errors import BadPacket
from smtstack.session.identity import MAX_CHAIN


def vector(data: bytes) -> bytes:
    """A field of up to 65535 bytes, with its length before it."""
    return len(data).to_bytes(2, "big") + data


def pack_chain(chain: tuple[bytes, ...]) -> bytes:
    """Certificates on the wire: count, then each with its length."""
    return bytes((len(chain),)) + b"".join(vector(c) for c in chain)


class Reader:
    """Takes fields off bytes that came from outside; raises :class:`BadPacket`."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what
        self.at = 0

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        if size > len(self._data) - self.at:
            raise BadPacket(f"{self._what} is cut short")
        self.at += size
        return self._data[self.at - size:self.at]

    def vector(self, size_len: int) -> bytes:
        """The next field, with a length of ``size_len`` bytes before it."""
        return self.take(int.from_bytes(self.take(size_len), "big"))

    def chain(self) -> tuple[bytes, ...]:
        """The next certificates."""
        count = self.take(1)[0]
        if not 0 < count <= MAX_CHAIN:
            raise BadPacket(f"{self._what} has {count} certificates; 1 to {MAX_CHAIN} are allowed")
        return tuple(self.vector(2) for _ in range(count))

    def end(self) -> None:
        """Nothing may follow."""
        if self.at != len(self._data):
            raise BadPacket(f"{self._what} has {len(self._data) - self.at} bytes too many")
