"""TLS 1.2 AES-128-GCM records as the SMT kernel module (branch main) makes them.

``17 03 03 length`` + 8-byte explicit nonce + ciphertext + tag. The AAD is the TLS 1.2 one with the
plaintext length. The receiver counts records itself and ignores the explicit nonce on the wire
(``smt_sw.c:smt_sw_decrypt``).
"""

from __future__ import annotations

from typing import Final

from smtstack.crypto.aead import TAG_LEN, DirectionKeys
from smtstack.errors import AuthError

EXPLICIT_NONCE_LEN: Final = 8
HEADER_LEN: Final = 5 + EXPLICIT_NONCE_LEN
OVERHEAD: Final = HEADER_LEN + TAG_LEN
_PREFIX: Final = b"\x17\x03\x03"


#: Ids from here on would share their record numbers with lower ones.
ID_LIMIT: Final = 1 << 49


def first_sequence(rpc_id: int) -> int:
    """Record number of record 0: 48 bits of ``rpc_id / 2``, 16 bits of index.

    The module drops the role bit: request and response share numbers and differ by key
    (``smt_impl.h:smt_set_composite_rec_seq_num``).
    """
    return (rpc_id % ID_LIMIT >> 1) << 16


def aad(sequence: int, plain_len: int) -> bytes:
    """The 13 bytes the tag covers besides the plaintext."""
    return sequence.to_bytes(8, "big") + _PREFIX + plain_len.to_bytes(2, "big")


def header(sequence: int, plain_len: int) -> bytes:
    """Record header with its explicit nonce, 13 bytes."""
    length = EXPLICIT_NONCE_LEN + plain_len + TAG_LEN
    return _PREFIX + length.to_bytes(2, "big") + sequence.to_bytes(8, "big")


def seal(keys: DirectionKeys, sequence: int, plaintext: bytes) -> bytes:
    """One whole record."""
    return header(sequence, len(plaintext)) + keys.encrypt(sequence, plaintext, aad(sequence, len(plaintext)))


def frame(sequence: int, plaintext: bytes) -> bytes:
    """The record as handed to an offloading NIC: in clear, with room for the tag."""
    return header(sequence, len(plaintext)) + plaintext + bytes(TAG_LEN)


def record_length_untrusted(record: bytes | memoryview) -> int:
    """Whole length of the record that starts here, or 0 if there cannot be one."""
    if len(record) < HEADER_LEN or record[0] != 0x17 or record[1] != 3 or record[2] != 3:
        return 0
    length = record[3] << 8 | record[4]
    return 5 + length if length > EXPLICIT_NONCE_LEN + TAG_LEN else 0


def open_untrusted(keys: DirectionKeys, sequence: int, record: bytes) -> bytes:
    """Plaintext of one whole record; raises :class:`~smtstack.errors.AuthError`."""
    plain_len = len(record) - OVERHEAD
    if plain_len < 0:
        raise AuthError(f"{len(record)} bytes are no record")
    return keys.decrypt(sequence, record[HEADER_LEN:], aad(sequence, plain_len))
