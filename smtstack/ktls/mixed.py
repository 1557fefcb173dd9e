"""Records of which a NIC opened a part: what it opened is encrypted again, then software opens the whole, whose
tag decides. A range of which nobody knows in which form it came is tried in both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Final, NamedTuple, Protocol

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from smtstack.ktls.records import HEADER_LEN, Buffer
from smtstack.ktls.session import TlsSession

#: Ranges that are tried in both forms, at most: 2 to this many openings.
MOST_AMBIGUOUS: Final = 5
#: From, to: bytes of a record, counted from its header.
Range = tuple[int, int]


class Marks(NamedTuple):
    """What the NIC did to one record on its way up."""

    opened: Sequence[Range] = ()
    """Came decrypted."""
    ambiguous: Sequence[Range] = ()
    """Came in both forms: one of them is in the stream."""
    verified: bool = False
    """The NIC has verified its tag."""


class MarkSource(Protocol):
    """Where marks are read. ``at``: of the record's first byte, in bytes of the stream since TLS was turned on."""

    def look(self, at: int, size: int) -> Marks:
        """What was done to these bytes, all of which are here."""

    def header(self, at: int, size: int, number: int, opened: bool) -> None:
        """A record of ``size`` bytes and this number begins there: for the NIC, should it have asked.
        ``opened``: it needed no software."""

    def passed(self, at: int) -> None:
        """Nothing before this will be asked for again."""


def body(session: TlsSession, size: int) -> Range:
    """Where ciphertext, or what is in its place, is in a record of ``size`` bytes."""
    return session.shape.header, size - 16


def whole(session: TlsSession, size: int, marks: Marks) -> bool:
    """Whether the NIC has opened and verified all of it, and nothing is doubtful."""
    if not marks.verified or marks.ambiguous:
        return False
    at, end = body(session, size)
    for low, high in sorted(marks.opened):
        if low > at:
            return False
        at = max(at, high)
    return at >= end


def candidates(session: TlsSession, number: int, record: Buffer, marks: Marks) -> Iterator[Buffer]:
    """The record as it may have been on the wire: one form if nothing is ambiguous, else all there are, most of it
    taken as encrypted first."""
    doubtful = list(marks.ambiguous[:MOST_AMBIGUOUS])
    for chosen in product((False, True), repeat=len(doubtful)):
        opened = [*marks.opened, *(r for r, was in zip(doubtful, chosen, strict=True) if was)]
        yield encrypt_again(session, number, record, opened) if opened else record


def encrypt_again(session: TlsSession, number: int, record: Buffer, ranges: Sequence[Range]) -> bytearray:
    """The record with these ranges encrypted; bytes outside its body stay as they are."""
    out = bytearray(record)
    first, last = body(session, len(out))
    nonce = record_nonce(session, number, record)
    for low, high in ((max(low, first), min(high, last)) for low, high in ranges):
        if low < high:
            out[low:high] = xor_keystream(session.cipher, session.key, nonce, low - first, out[low:high])
    return out


def record_nonce(session: TlsSession, number: int, record: Buffer) -> bytes:
    """The 12 bytes of one record."""
    if session.shape.explicit:
        return session.iv + bytes(record[HEADER_LEN:HEADER_LEN + 8])
    return (int.from_bytes(session.iv, "big") ^ number).to_bytes(12, "big")


def xor_keystream(cipher: str, key: bytes, nonce: bytes, offset: int, data: bytes | bytearray) -> bytes:
    """``data``, which begins ``offset`` bytes into a record's body, encrypted or decrypted."""
    if cipher.startswith("chacha20"):
        # RFC 8439 §2.8: block 0 is the key of the tag.
        block, skip = divmod(offset, 64)
        algorithm = algorithms.ChaCha20(key, (1 + block).to_bytes(4, "little") + nonce)
        stream = Cipher(algorithm, None).encryptor()
    else:
        # SP 800-38D: block 1 is of the tag.
        block, skip = divmod(offset, 16)
        stream = Cipher(algorithms.AES(key), modes.CTR(nonce + (2 + block).to_bytes(4, "big"))).encryptor()
    stream.update(bytes(skip))
    return stream.update(bytes(data))
