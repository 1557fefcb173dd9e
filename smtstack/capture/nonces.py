"""The nonce ledger: has one (key, nonce) ever protected two different things?

An observer: whoever opens records tells it about each authentic one. AES-GCM and ChaCha20-Poly1305 lose
both secrecy and integrity when a nonce is used twice for different bytes (RFC 5116 §3.1), and the
composite record numbers exist to prevent just that; identical retransmissions are no second use.
"""

from __future__ import annotations

import hashlib

from smtstack.crypto.aead import DirectionKeys

_DIGEST_LEN = 16


class NonceLedger:
    """Digests of (AAD, ciphertext) by key and nonce."""

    __slots__ = ("_seen", "reuse")

    def __init__(self) -> None:
        self._seen: dict[tuple[bytes, bytes], set[bytes]] = {}
        #: How many times a used (key, nonce) came with another (AAD, ciphertext).
        self.reuse = 0

    def observe(self, keys: DirectionKeys, sequence: int, aad: bytes, ciphertext: bytes) -> None:
        """Something authenticated under record number ``sequence`` of ``keys``.

        Only what authenticates counts: anybody can write a forged record with a used number, only the
        key's owner can misuse the nonce.
        """
        digest = hashlib.blake2b(len(aad).to_bytes(2, "big") + aad, digest_size=_DIGEST_LEN)
        digest.update(ciphertext)
        seen = self._seen.setdefault((keys.key, keys.nonce(sequence)), set())
        if seen and digest.digest() not in seen:
            self.reuse += 1
        seen.add(digest.digest())
