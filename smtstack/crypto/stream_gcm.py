"""TLS records in a byte stream: sealed whole, or piece by piece wherever the stream is cut, as a NIC does it.

TLS 1.2 (RFC 5246, RFC 5288, RFC 7905) and 1.3 (RFC 8446) over TCP. A *framed* record is what an application
with offload writes: header, explicit nonce where there is one, plaintext, in TLS 1.3 the type byte, and room for
the tag. It is as long as the sealed one, so that sealing moves nothing in TCP's sequence.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import (
    AEADDecryptionContext,
    AEADEncryptionContext,
    Cipher,
    CipherContext,
    algorithms,
    modes,
)
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.constant_time import bytes_eq
from cryptography.hazmat.primitives.poly1305 import Poly1305

from smtstack.errors import AuthError, ConfigError, LocalError

TLS12: Final = 0x0303
TLS13: Final = 0x0304
AES_128_GCM: Final = "aes-128-gcm"
AES_256_GCM: Final = "aes-256-gcm"
CHACHA20_POLY1305: Final = "chacha20-poly1305"
#: Key bytes by name of the cipher.
CIPHERS: Final = {AES_128_GCM: 16, AES_256_GCM: 32, CHACHA20_POLY1305: 32}
TAG_LEN: Final = 16
#: The five bytes every record begins with: type, version, length of what follows.
PREFIX_LEN: Final = 5
EXPLICIT_NONCE_LEN: Final = 8
MAX_PLAINTEXT: Final = 1 << 14
#: Longest value of the length field (RFC 8446 §5.2), and so of a whole record.
MAX_LENGTH_FIELD: Final = MAX_PLAINTEXT + 256
MAX_RECORD: Final = PREFIX_LEN + MAX_LENGTH_FIELD
#: Content types (RFC 8446 §5.1).
CHANGE_CIPHER_SPEC: Final = 20
ALERT: Final = 21
HANDSHAKE: Final = 22
APPLICATION_DATA: Final = 23

_VERSION: Final = b"\x03\x03"
_MASK64: Final = (1 << 64) - 1
_MASK32: Final = (1 << 32) - 1
_BLOCK: Final = {AES_128_GCM: 16, AES_256_GCM: 16, CHACHA20_POLY1305: 64}

Data = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class StreamKeys:
    """Key and iv of one direction of a TLS connection. Raises :class:`ConfigError` where they do not fit."""

    version: int
    """:data:`TLS12` or :data:`TLS13`."""
    cipher: str
    """A name in :data:`CIPHERS`."""
    key: bytes
    iv: bytes
    """12 bytes; the 4 bytes of salt for AES-GCM in TLS 1.2, whose records carry the other 8."""

    def __post_init__(self) -> None:
        if self.version not in (TLS12, TLS13):
            raise ConfigError(f"TLS version {self.version:#06x}; there are 0x0303 (1.2) and 0x0304 (1.3)")
        if self.cipher not in CIPHERS:
            raise ConfigError(f"unknown cipher {self.cipher!r}; there are {', '.join(CIPHERS)}")
        if len(self.key) != CIPHERS[self.cipher]:
            raise ConfigError(f"{self.cipher} needs a key of {CIPHERS[self.cipher]} bytes, got {len(self.key)}")
        wanted = 4 if self.explicit else 12
        if len(self.iv) != wanted:
            raise ConfigError(f"{self.cipher} needs an iv of {wanted} bytes, got {len(self.iv)}")

    def __repr__(self) -> str:
        # Keys must not reach a log by way of somebody's %r.
        return f"<StreamKeys {self.version:#06x} {self.cipher}>"

    @property
    def explicit(self) -> bool:
        """Whether every record carries 8 bytes of its nonce after the prefix."""
        return self.version == TLS12 and self.cipher != CHACHA20_POLY1305

    @property
    def header_len(self) -> int:
        """Bytes before what is encrypted: 5, or 13 with an explicit nonce."""
        return PREFIX_LEN + EXPLICIT_NONCE_LEN if self.explicit else PREFIX_LEN

    @property
    def overhead(self) -> int:
        """Bytes by which a record is longer than the data in it: 29, 22, or 21."""
        return self.header_len + TAG_LEN + (1 if self.version == TLS13 else 0)

    def nonce(self, number: int, header: bytes) -> bytes:
        """The 12-byte nonce of record ``number``, whose whole header is ``header``.

        An explicit nonce is read from the header, never made of the number: senders begin it where they like.
        """
        if self.explicit:
            return self.iv + header[PREFIX_LEN:PREFIX_LEN + EXPLICIT_NONCE_LEN]
        return (int.from_bytes(self.iv, "big") ^ number).to_bytes(12, "big")

    def aad(self, number: int, header: bytes) -> bytes:
        """What the tag covers besides the ciphertext: 13 bytes in TLS 1.2, in 1.3 the 5 of the header."""
        if self.version == TLS13:
            return header[:PREFIX_LEN]
        return number.to_bytes(8, "big") + header[:3] + self.body_len(header).to_bytes(2, "big")

    def body_len(self, header: bytes) -> int:
        """Encrypted bytes of the record without its tag, as its header says."""
        return (header[3] << 8 | header[4]) - TAG_LEN - self.header_len + PREFIX_LEN


def record_len_untrusted(keys: StreamKeys, prefix: Data, any_kind: bool = False) -> int:
    """Length of the whole record that begins with these 5 bytes, or 0 if no sealed record of ``keys`` does.

    ``any_kind``: TLS 1.2 records may have a content type that is none of TLS's own four.
    """
    if len(prefix) < PREFIX_LEN or prefix[1] != 3 or prefix[2] != 3:
        return 0
    kind = prefix[0]
    if kind != APPLICATION_DATA and (keys.version == TLS13
                                     or not (any_kind or CHANGE_CIPHER_SPEC <= kind < APPLICATION_DATA)):
        return 0
    length = prefix[3] << 8 | prefix[4]
    # A TLS 1.3 record has its type inside; one of TLS 1.2 may be empty.
    if not keys.overhead - PREFIX_LEN <= length <= MAX_LENGTH_FIELD:
        return 0
    return PREFIX_LEN + length


# -- whole records -------------------------------------------------------------------------------------------


def frame_record(keys: StreamKeys, kind: int, payload: Data, explicit_nonce: int = 0) -> bytes:
    """A framed record of content type ``kind``: what is written where a NIC seals it.

    ``explicit_nonce`` counts only for keys that have one. It must never repeat under a key.
    """
    if len(payload) > MAX_PLAINTEXT:
        raise ConfigError(f"{len(payload)} bytes do not fit a record: at most {MAX_PLAINTEXT}")
    length = len(payload) + keys.overhead - PREFIX_LEN
    if keys.version == TLS13:
        return b"".join((bytes((APPLICATION_DATA,)), _VERSION, length.to_bytes(2, "big"), payload, bytes((kind,)),
                         bytes(TAG_LEN)))
    nonce = (explicit_nonce & _MASK64).to_bytes(8, "big") if keys.explicit else b""
    return b"".join((bytes((kind,)), _VERSION, length.to_bytes(2, "big"), nonce, payload, bytes(TAG_LEN)))


def seal_framed(keys: StreamKeys, number: int, framed: Data) -> bytes:
    """The sealed record ``number`` of a framed one, in one shot."""
    at = keys.header_len
    header = bytes(framed[:at])
    aead = ChaCha20Poly1305(keys.key) if keys.cipher == CHACHA20_POLY1305 else AESGCM(keys.key)
    # Sliced as they are: a memoryview is not copied.
    return header + aead.encrypt(keys.nonce(number, header), framed[at:-TAG_LEN], keys.aad(number, header))


def seal_record(keys: StreamKeys, number: int, kind: int, payload: Data, explicit_nonce: int = 0) -> bytes:
    """Record ``number``, in one shot: the encryptor that everything else is compared with."""
    return seal_framed(keys, number, frame_record(keys, kind, payload, explicit_nonce))


def open_record_untrusted(keys: StreamKeys, number: int, record: Data) -> tuple[int, bytes]:
    """(content type, data) of one whole record; raises :class:`AuthError`.

    In TLS 1.3 the type is the last byte that is not zero (RFC 8446 §5.4); a record of zeros is refused.
    """
    at = keys.header_len
    if not record or record_len_untrusted(keys, record[:PREFIX_LEN], any_kind=True) != len(record):
        raise AuthError(f"{len(record)} bytes are no record")
    header = bytes(record[:at])
    aead = ChaCha20Poly1305(keys.key) if keys.cipher == CHACHA20_POLY1305 else AESGCM(keys.key)
    try:
        plain = aead.decrypt(keys.nonce(number, header), record[at:], keys.aad(number, header))
    except InvalidTag:
        raise AuthError(f"record {number} does not authenticate") from None
    if keys.version == TLS12:
        return header[0], plain
    return inner_untrusted(plain)


def inner_untrusted(plain: bytes) -> tuple[int, bytes]:
    """(content type, data) of what a TLS 1.3 record holds; raises :class:`AuthError` where it is all zeros."""
    if plain and not plain[-1]:
        plain = plain.rstrip(b"\0")
    if not plain:
        raise AuthError("a TLS 1.3 record without a content type")
    return plain[-1], plain[:-1]


# -- piece by piece ------------------------------------------------------------------------------------------


class RecordCrypto:
    """One record under way: encrypts or decrypts its body in pieces of any length, in order, then knows the tag.

    It cannot be rewound or copied, as the state in a NIC cannot: who needs an earlier position begins anew.
    """

    __slots__ = ("_aad_len", "_context", "_encrypt", "_length", "_mac", "_opener", "_sealer")

    def __init__(self, keys: StreamKeys, number: int, header: bytes, encrypt: bool = True) -> None:
        nonce, aad = keys.nonce(number, header), keys.aad(number, header)
        self._encrypt = encrypt
        self._length = 0
        self._aad_len = len(aad)
        self._mac: Poly1305 | None = None
        self._sealer: AEADEncryptionContext | None = None
        self._opener: AEADDecryptionContext | None = None
        if keys.cipher == CHACHA20_POLY1305:
            # RFC 8439 §2.8: the first block of the key stream keys the tag, the message begins with the second.
            once = Cipher(algorithms.ChaCha20(keys.key, bytes(4) + nonce), None).encryptor().update(bytes(32))
            self._mac = Poly1305(once)
            self._mac.update(aad + bytes(-len(aad) % 16))
            stream = Cipher(algorithms.ChaCha20(keys.key, b"\1\0\0\0" + nonce), None)
            self._context: CipherContext = stream.encryptor()
            return
        cipher = Cipher(algorithms.AES(keys.key), modes.GCM(nonce))
        if encrypt:
            sealer = cipher.encryptor()
            sealer.authenticate_additional_data(aad)
            self._context = self._sealer = sealer
        else:
            opener = cipher.decryptor()
            opener.authenticate_additional_data(aad)
            self._context = self._opener = opener

    def update(self, data: Data) -> bytes:
        """The next bytes of the body, encrypted or decrypted."""
        out = self._context.update(data)
        if self._mac is not None:
            self._length += len(out)
            self._mac.update(out if self._encrypt else bytes(data))
        return out

    def tag(self) -> bytes:
        """The tag of an encrypted record; ends it."""
        if self._mac is not None:
            return self._chacha_tag(self._mac)
        sealer = self._sealer
        if sealer is None:
            raise LocalError("a record that is decrypted has its tag already")
        sealer.finalize()
        return sealer.tag

    def verify(self, tag: bytes) -> bool:
        """Whether the tag of a decrypted record is right; ends it."""
        if self._mac is not None:
            return bytes_eq(self._chacha_tag(self._mac), tag)
        opener = self._opener
        if opener is None:
            raise LocalError("a record that is encrypted has no tag to verify")
        try:
            opener.finalize_with_tag(tag)
        except InvalidTag:
            return False
        return True

    def _chacha_tag(self, mac: Poly1305) -> bytes:
        mac.update(bytes(-self._length % 16) + struct.pack("<QQ", self._aad_len, self._length))
        return mac.finalize()


def apply_keystream(keys: StreamKeys, number: int, header: bytes, offset: int, data: Data) -> bytes:
    """Bytes of a record's body from ``offset`` on, XORed with the key stream: encrypts plaintext, and back.

    Any part of a body by itself, without its tag: the middle of a record, or what a device has decrypted of one
    that it could not finish.
    """
    block = _BLOCK[keys.cipher]
    first, skip = divmod(offset, block)
    nonce = keys.nonce(number, header)
    algorithm: algorithms.AES | algorithms.ChaCha20
    if keys.cipher == CHACHA20_POLY1305:
        algorithm = algorithms.ChaCha20(keys.key, struct.pack("<I", first + 1 & _MASK32) + nonce)
        context = Cipher(algorithm, None).encryptor()
    else:
        # GCM counts in the last 4 bytes, and keeps 1 for the tag (SP 800-38D §7.1).
        algorithm = algorithms.AES(keys.key)
        context = Cipher(algorithm, modes.CTR(nonce + struct.pack("!I", first + 2 & _MASK32))).encryptor()
    if skip:
        context.update(bytes(skip))
    return context.update(data)
