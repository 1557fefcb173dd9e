"""AEAD ciphers with their limits, and the key material of one direction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from smtstack.errors import AuthError, ConfigError

Aead = AESGCM | ChaCha20Poly1305

TAG_LEN: Final = 16
IV_LEN: Final = 12
#: Failed openings after which a key must not be trusted any longer (RFC 9147 §4.5.3).
INTEGRITY_LIMIT: Final = 1 << 36


@dataclass(frozen=True, slots=True)
class Cipher:
    """One AEAD. ``record_limit``: full-size records one key may protect (RFC 8446 §5.5)."""

    name: str
    key_len: int
    record_limit: int
    make: Callable[[bytes], Aead]


AES_128_GCM: Final = Cipher("AES-128-GCM", 16, int(2**24.5), AESGCM)
AES_256_GCM: Final = Cipher("AES-256-GCM", 32, int(2**24.5), AESGCM)
#: ChaCha20-Poly1305 would run out of record numbers first; RFC 9147 gives no lower limit.
CHACHA20_POLY1305: Final = Cipher("CHACHA20-POLY1305", 32, 1 << 62, ChaCha20Poly1305)
CIPHERS: Final = {c.name: c for c in (AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305)}


def cipher_named(name: str) -> Cipher:
    """The cipher called ``name``; raises :class:`ConfigError` listing those there are."""
    try:
        return CIPHERS[name.upper()]
    except KeyError:
        raise ConfigError(f"unknown cipher {name!r}; there are {', '.join(CIPHERS)}") from None


class DirectionKeys:
    """Key and iv of one direction, with the AEAD set up once.

    The nonce is iv XOR the 64-bit record sequence number (RFC 8446 §5.3). TLS 1.2's salt || number
    is the same with an iv whose last 8 bytes are zero.
    """

    __slots__ = ("aead", "cipher", "iv", "iv_number", "key", "retired")

    def __init__(self, cipher: Cipher, key: bytes, iv: bytes) -> None:
        if len(key) != cipher.key_len or len(iv) != IV_LEN:
            raise ConfigError(f"{cipher.name} needs a key of {cipher.key_len} and an iv of {IV_LEN} bytes, "
                              f"got {len(key)} and {len(iv)}")
        self.cipher = cipher
        self.key = key
        self.iv = iv
        self.aead: Aead = cipher.make(key)
        self.iv_number = int.from_bytes(iv, "big")
        #: Its epoch or session is over: whoever keeps a copy (a NIC, in a TLS context) is to forget it.
        self.retired = False

    def __repr__(self) -> str:
        # Keys must not reach a log by way of somebody's %r.
        return f"<{type(self).__name__}>"

    def nonce(self, sequence: int) -> bytes:
        """12-byte nonce of record ``sequence``."""
        return (self.iv_number ^ sequence).to_bytes(IV_LEN, "big")

    def encrypt(self, sequence: int, plaintext: bytes, aad: bytes) -> bytes:
        """Ciphertext with its tag."""
        return self.aead.encrypt((self.iv_number ^ sequence).to_bytes(IV_LEN, "big"), plaintext, aad)

    def decrypt(self, sequence: int, ciphertext: bytes, aad: bytes) -> bytes:
        """Plaintext; raises :class:`AuthError` when the tag does not verify."""
        try:
            return self.aead.decrypt((self.iv_number ^ sequence).to_bytes(IV_LEN, "big"), ciphertext, aad)
        except InvalidTag:
            raise AuthError(f"record {sequence:#018x} does not authenticate") from None


class NoKeys(DirectionKeys):
    """Stands where a session protects nothing. It has no key: whoever tries to seal with it fails."""

    __slots__ = ()

    def __init__(self) -> None:
        # Deliberately without super(): there is nothing else to set up.
        self.retired = False
