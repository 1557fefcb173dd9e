"""From the secrets of a handshake to the keys of records: TLS 1.3 (RFC 8446 §7.3) and TLS 1.2 (RFC 5246 §5,
§6.3)."""

from __future__ import annotations

from typing import Final, NamedTuple

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from smtstack.errors import Unsupported
from smtstack.ktls.params import KEY_LENGTHS, VERSION_1_2, VERSION_1_3, TlsParams


class Suite(NamedTuple):
    """What a cipher suite says of records."""

    cipher: str
    sha384: bool

    @property
    def hash(self) -> hashes.HashAlgorithm:
        """The hash of the suite's key schedule."""
        return hashes.SHA384() if self.sha384 else hashes.SHA256()


#: Ends of OpenSSL's names of suites: those of TLS 1.3, then those of TLS 1.2.
_SUITES: Final = {
    "TLS_AES_128_GCM_SHA256": Suite("aes-128-gcm", False),
    "TLS_AES_256_GCM_SHA384": Suite("aes-256-gcm", True),
    "TLS_CHACHA20_POLY1305_SHA256": Suite("chacha20-poly1305", False),
    "AES128-GCM-SHA256": Suite("aes-128-gcm", False),
    "AES256-GCM-SHA384": Suite("aes-256-gcm", True),
    "CHACHA20-POLY1305": Suite("chacha20-poly1305", False),
}


def suite_named(name: str) -> Suite:
    """By OpenSSL's name. Raises :class:`Unsupported` for one whose records we do not make."""
    for end, suite in _SUITES.items():
        if name.endswith(end):
            return suite
    raise Unsupported(f"kernel TLS makes no records of {name}; offer {', '.join(_SUITES)}")


def expand_label(suite: Suite, secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label with an empty context."""
    name = b"tls13 " + label
    info = length.to_bytes(2, "big") + bytes((len(name),)) + name + b"\0"
    return HKDFExpand(suite.hash, length, info).derive(secret)


def traffic_params(suite: Suite, secret: bytes, number: int = 0) -> TlsParams:
    """Keys of one direction in TLS 1.3."""
    key = expand_label(suite, secret, b"key", KEY_LENGTHS[suite.cipher])
    return TlsParams(suite.cipher, VERSION_1_3, key, expand_label(suite, secret, b"iv", 12), number)


def next_secret(suite: Suite, secret: bytes) -> bytes:
    """After a key update (RFC 8446 §7.2)."""
    return expand_label(suite, secret, b"traffic upd", suite.hash.digest_size)


def prf(suite: Suite, secret: bytes, label: bytes, seed: bytes, length: int) -> bytes:
    """The pseudo-random function of TLS 1.2."""
    out, a = b"", label + seed
    while len(out) < length:
        a = _hmac(suite, secret, a)
        out += _hmac(suite, secret, a + label + seed)
    return out[:length]


def key_block(suite: Suite, master: bytes, client_random: bytes, server_random: bytes,
              number: int = 0) -> tuple[TlsParams, TlsParams]:
    """(client's, server's) keys in TLS 1.2 of an AEAD."""
    key_len = KEY_LENGTHS[suite.cipher]
    iv_len = 4 if suite.cipher.endswith("-gcm") else 12
    block = prf(suite, master, b"key expansion", server_random + client_random, 2 * (key_len + iv_len))
    keys, ivs = block[:2 * key_len], block[2 * key_len:]
    client, server = (TlsParams(suite.cipher, VERSION_1_2, keys[n * key_len:(n + 1) * key_len],
                                ivs[n * iv_len:(n + 1) * iv_len], number) for n in (0, 1))
    return client, server


def _hmac(suite: Suite, key: bytes, data: bytes) -> bytes:
    mac = HMAC(key, suite.hash)
    mac.update(data)
    return mac.finalize()
