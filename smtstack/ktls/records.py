"""TLS records on a stream: their headers, sealing and opening, for TLS 1.2 (RFC 5288, RFC 7905) and 1.3 (RFC
8446).

A TLS 1.2 GCM record is ``kind 03 03 length``, 8 bytes of nonce, ciphertext, tag: 29 bytes more than its payload;
with ChaCha20-Poly1305 it has no nonce: 21. A TLS 1.3 record is ``17 03 03 length``, ciphertext of payload and
kind, tag: 22.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from smtstack.crypto import stream_gcm
from smtstack.crypto.stream_gcm import MAX_PLAINTEXT, TAG_LEN, inner_untrusted
from smtstack.errors import AuthError, BadPacket
from smtstack.ktls.params import VERSION_1_3

#: Record types.
ALERT: Final = stream_gcm.ALERT
HANDSHAKE: Final = stream_gcm.HANDSHAKE
DATA: Final = stream_gcm.APPLICATION_DATA
HEADER_LEN: Final = stream_gcm.PREFIX_LEN
_MASK64: Final = (1 << 64) - 1

#: Bytes that are read and not kept; what is sent may be of any of these.
Buffer = bytes | bytearray | memoryview


class Aead(Protocol):
    """What seals: OpenSSL's objects of ``cryptography``, or those of :mod:`smtstack.ktls.purepy`."""

    def encrypt(self, nonce: bytes, data: Buffer, associated_data: bytes, /) -> bytes:
        """Ciphertext and tag."""

    def decrypt(self, nonce: bytes, data: Buffer, associated_data: bytes, /) -> bytes:
        """Plaintext; raises InvalidTag."""


#: By cipher: makes the AEAD of a key.
AeadMakers = Mapping[str, Callable[[bytes], Aead]]
OPENSSL: Final[AeadMakers] = {"aes-128-gcm": AESGCM, "aes-256-gcm": AESGCM, "chacha20-poly1305": ChaCha20Poly1305}


class BadRecord(BadPacket):
    """A record header that cannot be: ``errno`` is EINVAL for its version, EMSGSIZE (Linux, for one too short for
    its tag: EBADMSG) for its length."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.errno = number


class Record(NamedTuple):
    """A record that was opened, as ``recvmsg`` with ``TLS_GET_RECORD`` tells of it."""

    kind: int
    """The record's type; in TLS 1.3 the one inside of it."""
    version: int
    """The version in the record's header: 0x0303."""
    length: int
    """Bytes of data."""
    data: bytes


class Shape(NamedTuple):
    """What a record of one version and cipher is besides its payload."""

    version: int
    explicit: bool
    """Whether 8 bytes of nonce follow its header."""
    header: int
    """``hlen``: 5 or 13."""
    trailer: int
    """``tlen``: the tag, and in TLS 1.3 the type before it."""


def shape(version: int, cipher: str) -> Shape:
    """What records of version 0x0303 or 0x0304 and an AEAD look like."""
    explicit = version < VERSION_1_3 and cipher.endswith("-gcm")
    return Shape(version, explicit, HEADER_LEN + 8 if explicit else HEADER_LEN,
                 TAG_LEN + (1 if version >= VERSION_1_3 else 0))


def make_header(form: Shape, kind: int, size: int, explicit_nonce: int) -> bytes:
    """``hlen`` bytes in front of ``size`` bytes of payload."""
    length = (form.header + size + form.trailer - HEADER_LEN).to_bytes(2, "big")
    if form.version >= VERSION_1_3:
        return b"\x17\x03\x03" + length
    start = bytes((kind, 3, 3)) + length
    return start + (explicit_nonce & _MASK64).to_bytes(8, "big") if form.explicit else start


def plain_parts(form: Shape, kind: int, payload: Buffer, explicit_nonce: int) -> list[Buffer]:
    """A record as a NIC takes it: in clear, with room for the tag."""
    header = make_header(form, kind, len(payload), explicit_nonce)
    if form.version >= VERSION_1_3:
        return [header, payload, bytes((kind,)) + bytes(TAG_LEN)]
    return [header, payload, bytes(TAG_LEN)]


def record_size_untrusted(form: Shape, header: Buffer, linux: bool) -> int:
    """Whole length of the record that begins with these 5 bytes. Raises :class:`BadRecord`.

    FreeBSD asks for the version first, Linux for the length.
    """
    size = HEADER_LEN + (header[3] << 8 | header[4])
    version = BadRecord(errno.EINVAL, f"a record of version {header[1]}.{header[2]}")
    wrong_version = header[1] != 3 or header[2] != 3
    if wrong_version and not linux:
        raise version
    # RFC 8446 allows padding, within the longest plaintext.
    if size > form.header + MAX_PLAINTEXT + form.trailer:
        raise BadRecord(errno.EMSGSIZE, f"a record of {size} bytes")
    least = form.header + form.trailer
    if linux and form.version >= VERSION_1_3:
        least -= 1
    if size < least:
        raise BadRecord(errno.EBADMSG if linux else errno.EMSGSIZE, f"a record of {size} bytes")
    if wrong_version:
        raise version
    return size


class RecordAead:
    """Keys of one session, set up once."""

    __slots__ = ("_aead", "_iv_number", "_salt", "shape")

    def __init__(self, version: int, cipher: str, key: bytes, iv: bytes, makers: AeadMakers = OPENSSL) -> None:
        self.shape = shape(version, cipher)
        self._aead = makers[cipher](key)
        self._salt = iv
        self._iv_number = int.from_bytes(iv, "big")

    def __repr__(self) -> str:
        return f"<RecordAead {self.shape.version:#06x}>"

    def seal(self, number: int, kind: int, payload: Buffer, explicit_nonce: int) -> tuple[bytes, bytes]:
        """(header, ciphertext and tag) of record ``number``."""
        form = self.shape
        header = make_header(form, kind, len(payload), explicit_nonce)
        if form.version >= VERSION_1_3:
            inner = b"".join((payload, bytes((kind,))))
            return header, self._aead.encrypt((self._iv_number ^ number).to_bytes(12, "big"), inner, header)
        return header, self._aead.encrypt(self._nonce(number, header), payload,
                                          aad_1_2(number, header[0], len(payload)))

    def seal_into(self, number: int, kind: int, payload: Buffer, explicit_nonce: int, out: memoryview) -> int:
        """Write the sealed record ``number`` to ``out``; bytes written. Needs an AEAD that has
        ``encrypt_into``."""
        form = self.shape
        header = make_header(form, kind, len(payload), explicit_nonce)
        at = len(header)
        out[:at] = header
        if form.version >= VERSION_1_3:
            nonce, aad = (self._iv_number ^ number).to_bytes(12, "big"), header
            payload = b"".join((payload, bytes((kind,))))
        else:
            nonce, aad = self._nonce(number, header), aad_1_2(number, kind, len(payload))
        end = at + len(payload) + TAG_LEN
        self._aead.encrypt_into(nonce, payload, aad, out[at:end])  # type: ignore[attr-defined]
        return end

    def open_untrusted(self, number: int, record: Buffer) -> tuple[int, bytes]:
        """(kind, payload) of one whole record whose length was judged. Raises :class:`AuthError`."""
        form = self.shape
        header = bytes(record[:form.header])
        try:
            if form.version >= VERSION_1_3:
                inner = self._aead.decrypt((self._iv_number ^ number).to_bytes(12, "big"), record[HEADER_LEN:],
                                           header)
                return inner_untrusted(inner)
            size = len(record) - form.header - TAG_LEN
            return header[0], self._aead.decrypt(self._nonce(number, header), record[form.header:],
                                                 aad_1_2(number, header[0], size))
        except InvalidTag:
            raise AuthError(f"record {number} does not authenticate") from None

    def _nonce(self, number: int, header: bytes) -> bytes:
        """TLS 1.2."""
        if self.shape.explicit:
            return self._salt + header[HEADER_LEN:]
        return (self._iv_number ^ number).to_bytes(12, "big")


def aad_1_2(number: int, kind: int, size: int) -> bytes:
    """The 13 bytes that the tag of a TLS 1.2 record covers besides its payload."""
    return number.to_bytes(8, "big") + bytes((kind, 3, 3)) + size.to_bytes(2, "big")

