"""TLS 1.3 records as profile ``smt`` uses them (RFC 8446 §5; docs/protocol.md, "Records").

On the wire: ``17 03 03 length`` (the AAD), then AEAD(data || inner type || zero padding).
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag

from smtstack.crypto.aead import IV_LEN, TAG_LEN, DirectionKeys
from smtstack.errors import AuthError

HEADER_LEN: Final = 5
#: Header, inner type byte and tag.
OVERHEAD: Final = HEADER_LEN + 1 + TAG_LEN
MAX_PLAINTEXT: Final = 1 << 14
#: Longest value of the length field (RFC 8446 §5.2 allows 256 bytes of expansion; we use 17).
MAX_LENGTH_FIELD: Final = MAX_PLAINTEXT + 1 + TAG_LEN
_PREFIX: Final = b"\x17\x03\x03"
#: Inner type of the last record of a message, and of every other. Ours, so that a message cut short
#: at a record boundary (by rewriting the clear length) is noticed.
LAST: Final = 0x17
MORE: Final = 0x57
_LAST: Final = b"\x17"
_MORE: Final = b"\x57"


def seal(keys: DirectionKeys, sequence: int, data: bytes, last: bool, padding: int = 0) -> bytes:
    """One whole record of ``len(data) + padding + OVERHEAD`` bytes."""
    # Written out: for a small message every call here weighs as much as the encryption.
    aad = _PREFIX + (len(data) + 1 + padding + TAG_LEN).to_bytes(2, "big")
    plain = data + (_LAST if last else _MORE)
    if padding:
        plain += bytes(padding)
    return aad + keys.aead.encrypt((keys.iv_number ^ sequence).to_bytes(IV_LEN, "big"), plain, aad)


def seal_parts(keys: DirectionKeys, sequence: int, data: memoryview, last: bool, padding: int,
               out: list[bytes]) -> None:
    """Append the record that :func:`seal` makes of ``data``, in pieces: for who puts several together anyway."""
    size = len(data) + 1 + padding
    aad = _PREFIX + (size + TAG_LEN).to_bytes(2, "big")
    plain = b"".join((data, _LAST if last else _MORE, bytes(padding)))
    out.append(aad)
    out.append(keys.aead.encrypt((keys.iv_number ^ sequence).to_bytes(IV_LEN, "big"), plain, aad))


def frame(data: bytes, last: bool, padding: int = 0) -> bytes:
    """The record as a driver hands it to an offloading NIC: in clear, with room for the tag."""
    length = len(data) + 1 + padding + TAG_LEN
    return b"".join((_PREFIX, length.to_bytes(2, "big"), data, _LAST if last else _MORE, bytes(padding + TAG_LEN)))


def record_length_untrusted(buf: bytes | bytearray | memoryview, start: int) -> int:
    """Whole length of the record whose header is at ``start``, or 0 if there cannot be one."""
    if buf[start] != 0x17 or buf[start + 1] != 3 or buf[start + 2] != 3:
        return 0
    length = buf[start + 3] << 8 | buf[start + 4]
    if not TAG_LEN < length <= MAX_LENGTH_FIELD:
        return 0
    return HEADER_LEN + length


def open_untrusted(keys: DirectionKeys, sequence: int, record: bytes) -> tuple[bool, bytes]:
    """(is last, data) of one whole record; raises :class:`AuthError`.

    The caller has checked the header with :func:`record_length_untrusted`; it is authenticated here as
    the AAD.
    """
    opened = open_single_untrusted(keys, sequence, record)
    if opened is None:
        raise AuthError(f"record {sequence:#018x} does not authenticate")
    return opened


def open_at_untrusted(keys: DirectionKeys, sequence: int, buf: bytearray, start: int,
                      size: int) -> tuple[bool, memoryview]:
    """(is last, data) of the whole record of ``size`` bytes at ``start``; raises :class:`AuthError`.

    As :func:`open_untrusted`, for long records: without a copy of what is sealed, or of the data without its type.
    """
    aad = bytes(buf[start:start + HEADER_LEN])
    # Released in any case: a bytearray that somebody looks into cannot grow.
    with memoryview(buf) as whole, whole[start + HEADER_LEN:start + size] as sealed:
        try:
            plain = keys.aead.decrypt((keys.iv_number ^ sequence).to_bytes(IV_LEN, "big"), sealed, aad)
        except InvalidTag:
            raise AuthError(f"record {sequence:#018x} does not authenticate") from None
    end = len(plain)
    if not plain[-1]:
        end = len(plain.rstrip(b"\0"))
    kind = plain[end - 1] if end else 0
    if kind in (LAST, MORE):
        return kind == LAST, memoryview(plain)[:end - 1]
    raise AuthError(f"record {sequence:#018x} has inner type {kind:#04x}")


def open_single_untrusted(keys: DirectionKeys, sequence: int, buf: bytes) -> tuple[bool, bytes] | None:
    """Open a buffer that is one record: its plaintext and padding; None if its header says it is not."""
    aad = buf[:HEADER_LEN]
    size = len(buf) - HEADER_LEN
    if not TAG_LEN < size <= MAX_LENGTH_FIELD or aad != _PREFIX + size.to_bytes(2, "big"):
        return None
    try:
        plain = keys.aead.decrypt((keys.iv_number ^ sequence).to_bytes(IV_LEN, "big"), buf[HEADER_LEN:], aad)
    except InvalidTag:
        raise AuthError(f"record {sequence:#018x} does not authenticate") from None
    if plain.endswith(_LAST):
        return True, plain[:-1]
    if not plain[-1]:
        plain = plain.rstrip(b"\0")
    kind = plain[-1] if plain else 0
    if kind in (LAST, MORE):
        return kind == LAST, plain[:-1]
    raise AuthError(f"record {sequence:#018x} has inner type {kind:#04x}")
