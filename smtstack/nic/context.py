"""A TLS transmit context in NIC memory: key, iv, and a record number that counts by itself.

The device never asks anybody which number a record should have: it encrypts with the one it holds,
right or wrong (paper §3.2, Fig. 2).
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from smtstack.errors import LocalError

TLS12: Final = 0x0303
TLS13: Final = 0x0304
_HEADER_LEN: Final = {TLS12: 13, TLS13: 5}
_TAG_LEN: Final = 16
_MASK: Final = (1 << 64) - 1


class TlsContext:
    """AES-GCM for one key; ``sequence`` is the number the next record gets."""

    __slots__ = ("_aead", "_header", "_iv", "_tls12", "records", "sequence")

    def __init__(self, version: int, key: bytes, iv: bytes, sequence: int) -> None:
        if version not in _HEADER_LEN:
            raise LocalError(f"TLS version {version:#06x}: the NIC speaks 1.2 and 1.3")
        self._aead = AESGCM(key)
        self._iv = int.from_bytes(iv, "big")
        self._header = _HEADER_LEN[version]
        self._tls12 = version == TLS12
        self.sequence = sequence
        #: Records encrypted so far.
        self.records = 0

    def encrypt(self, segment: bytes) -> bytes | None:
        """The segment with its records encrypted; None if it does not consist of whole records.

        The device finds records by their own headers, as autonomous offload does.
        """
        out = []
        at = 0
        size = len(segment)
        while at < size:
            body = at + self._header
            if body > size or segment[at] != 0x17:
                return None
            end = at + 5 + (segment[at + 3] << 8 | segment[at + 4])
            if end > size or end - body < _TAG_LEN:
                return None
            header = segment[at:body]
            plain = segment[body:end - _TAG_LEN]
            number = self.sequence
            if self._tls12:
                aad = number.to_bytes(8, "big") + header[:3] + len(plain).to_bytes(2, "big")
            else:
                aad = header
            nonce = (self._iv ^ number).to_bytes(12, "big")
            out += [header, self._aead.encrypt(nonce, plain, aad)]
            self.sequence = number + 1 & _MASK
            self.records += 1
            at = end
        return b"".join(out)
