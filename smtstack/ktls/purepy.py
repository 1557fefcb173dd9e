"""AES-GCM (FIPS 197, SP 800-38D) and ChaCha20-Poly1305 (RFC 8439) in nothing but Python: the slow end of what can
seal a record. The same interface as the AEADs of ``cryptography``.

Not for secrets that matter: its time depends on keys and data.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from hmac import compare_digest
from typing import Final

from cryptography.exceptions import InvalidTag

from smtstack.ktls.records import Aead, Buffer

_MASK32: Final = 0xFFFFFFFF


def _make_sbox() -> bytes:
    """The S-box: inverses in GF(2^8), and an affine map."""
    box = bytearray(256)
    p = q = 1
    while True:
        p ^= (p << 1 ^ (0x1B if p & 0x80 else 0)) & 0xFF  # times 3
        for shift in (1, 2, 4):  # divided by 3
            q ^= q << shift & 0xFF
        if q & 0x80:
            q ^= 0x09
        x = q ^ (q << 1 | q >> 7) ^ (q << 2 | q >> 6) ^ (q << 3 | q >> 5) ^ (q << 4 | q >> 4)
        box[p] = (x ^ 0x63) & 0xFF
        if p == 1:
            break
    box[0] = 0x63
    return bytes(box)


_SBOX: Final = _make_sbox()


def _make_tables() -> tuple[list[int], list[int], list[int], list[int]]:
    """SubBytes, and a column of MixColumns, in one look-up for each byte of a row."""
    first = []
    for s in _SBOX:
        twice = s << 1 ^ (0x11B if s & 0x80 else 0)
        first.append(twice << 24 | s << 16 | s << 8 | twice ^ s)
    turned = [[(t >> n | t << 32 - n) & _MASK32 for t in first] for n in (8, 16, 24)]
    return first, turned[0], turned[1], turned[2]


_T0, _T1, _T2, _T3 = _make_tables()


class _Aes:
    """Encrypts blocks; keys of 16 or 32 bytes."""

    def __init__(self, key: bytes) -> None:
        words = list(struct.unpack(f">{len(key) // 4}I", key))
        size = len(words)
        rounds = size + 6
        constant = 1
        for i in range(size, 4 * (rounds + 1)):
            word = words[-1]
            if i % size == 0:
                word = _sub_word((word << 8 | word >> 24) & _MASK32) ^ constant << 24
                constant = constant << 1 ^ (0x11B if constant & 0x80 else 0)
            elif size == 8 and i % size == 4:
                word = _sub_word(word)
            words.append(words[i - size] ^ word)
        self._keys = [tuple(words[i:i + 4]) for i in range(0, len(words), 4)]

    def block(self, a: int, b: int, c: int, d: int) -> bytes:
        """One block of four words."""
        t0, t1, t2, t3, s = _T0, _T1, _T2, _T3, _SBOX
        k = self._keys[0]
        a, b, c, d = a ^ k[0], b ^ k[1], c ^ k[2], d ^ k[3]
        for k in self._keys[1:-1]:
            a, b, c, d = (
                t0[a >> 24] ^ t1[b >> 16 & 255] ^ t2[c >> 8 & 255] ^ t3[d & 255] ^ k[0],
                t0[b >> 24] ^ t1[c >> 16 & 255] ^ t2[d >> 8 & 255] ^ t3[a & 255] ^ k[1],
                t0[c >> 24] ^ t1[d >> 16 & 255] ^ t2[a >> 8 & 255] ^ t3[b & 255] ^ k[2],
                t0[d >> 24] ^ t1[a >> 16 & 255] ^ t2[b >> 8 & 255] ^ t3[c & 255] ^ k[3])
        k = self._keys[-1]
        return struct.pack(
            ">4I",
            (s[a >> 24] << 24 | s[b >> 16 & 255] << 16 | s[c >> 8 & 255] << 8 | s[d & 255]) ^ k[0],
            (s[b >> 24] << 24 | s[c >> 16 & 255] << 16 | s[d >> 8 & 255] << 8 | s[a & 255]) ^ k[1],
            (s[c >> 24] << 24 | s[d >> 16 & 255] << 16 | s[a >> 8 & 255] << 8 | s[b & 255]) ^ k[2],
            (s[d >> 24] << 24 | s[a >> 16 & 255] << 16 | s[b >> 8 & 255] << 8 | s[c & 255]) ^ k[3])


def _sub_word(word: int) -> int:
    return (_SBOX[word >> 24] << 24 | _SBOX[word >> 16 & 255] << 16 | _SBOX[word >> 8 & 255] << 8
            | _SBOX[word & 255])


class AesGcm:
    """AES-GCM with nonces of 12 bytes."""

    def __init__(self, key: bytes) -> None:
        self._aes = _Aes(key)
        h = int.from_bytes(self._aes.block(0, 0, 0, 0), "big")
        #: For each byte of a block, by its place: what it adds to the product with h.
        self._tables = _ghash_tables(h)

    def encrypt(self, nonce: bytes, data: Buffer, associated_data: bytes) -> bytes:
        """Ciphertext and tag."""
        sealed = self._xor(nonce, data)
        return sealed + self._tag(nonce, sealed, associated_data)

    def decrypt(self, nonce: bytes, data: Buffer, associated_data: bytes) -> bytes:
        """Plaintext; raises InvalidTag."""
        sealed, tag = bytes(data[:-16]), bytes(data[-16:])
        if not compare_digest(self._tag(nonce, sealed, associated_data), tag):
            raise InvalidTag
        return self._xor(nonce, sealed)

    def _xor(self, nonce: bytes, data: Buffer) -> bytes:
        a, b, c = struct.unpack(">3I", nonce)
        block, size = self._aes.block, len(data)
        stream = b"".join([block(a, b, c, n) for n in range(2, 2 + (size + 15) // 16)])
        return _xor(data, stream)

    def _tag(self, nonce: bytes, sealed: bytes, associated_data: bytes) -> bytes:
        a, b, c = struct.unpack(">3I", nonce)
        lengths = struct.pack(">2Q", 8 * len(associated_data), 8 * len(sealed))
        tables, y = self._tables, 0
        for part in (associated_data, sealed, lengths):
            for at in range(0, len(part), 16):
                y ^= int.from_bytes(part[at:at + 16].ljust(16, b"\0"), "big")
                product = 0
                for table, byte in zip(tables, y.to_bytes(16, "big"), strict=True):
                    product ^= table[byte]
                y = product
        return (y ^ int.from_bytes(self._aes.block(a, b, c, 1), "big")).to_bytes(16, "big")


def _ghash_tables(h: int) -> list[list[int]]:
    """16 tables of 256: products of h with a byte at each place of a block."""
    tables = []
    power = h  # h times x^(8·place), bits reversed as GCM has them: x is the shift to the right
    for _place in range(16):
        steps = []
        for _bit in range(8):
            steps.append(power)
            power = power >> 1 ^ (0xE1 << 120 if power & 1 else 0)
        table = [0] * 256
        for byte in range(1, 256):
            low = byte & -byte
            table[byte] = table[byte ^ low] ^ steps[8 - low.bit_length()]
        tables.append(table)
    return tables


def _xor(data: Buffer, stream: bytes) -> bytes:
    size = len(data)
    return (int.from_bytes(data, "big") ^ int.from_bytes(stream[:size], "big")).to_bytes(size, "big")


class ChaCha20Poly1305:
    """RFC 8439."""

    def __init__(self, key: bytes) -> None:
        self._key = struct.unpack("<8I", key)

    def encrypt(self, nonce: bytes, data: Buffer, associated_data: bytes) -> bytes:
        """Ciphertext and tag."""
        sealed = self._xor(nonce, data)
        return sealed + self._tag(nonce, sealed, associated_data)

    def decrypt(self, nonce: bytes, data: Buffer, associated_data: bytes) -> bytes:
        """Plaintext; raises InvalidTag."""
        sealed, tag = bytes(data[:-16]), bytes(data[-16:])
        if not compare_digest(self._tag(nonce, sealed, associated_data), tag):
            raise InvalidTag
        return self._xor(nonce, sealed)

    def _xor(self, nonce: bytes, data: Buffer) -> bytes:
        blocks = range(1, 1 + (len(data) + 63) // 64)
        return _xor(data, b"".join([self._block(n, nonce) for n in blocks]))

    def _block(self, counter: int, nonce: bytes) -> bytes:
        start = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574, *self._key, counter, *struct.unpack("<3I", nonce))
        x = list(start)
        for _double_round in range(10):
            for a, b, c, d in _QUARTERS:
                xa, xb, xc, xd = x[a], x[b], x[c], x[d]
                xa = xa + xb & _MASK32
                xd ^= xa
                xd = (xd << 16 | xd >> 16) & _MASK32
                xc = xc + xd & _MASK32
                xb ^= xc
                xb = (xb << 12 | xb >> 20) & _MASK32
                xa = xa + xb & _MASK32
                xd ^= xa
                xd = (xd << 8 | xd >> 24) & _MASK32
                xc = xc + xd & _MASK32
                xb ^= xc
                x[a], x[b], x[c], x[d] = xa, (xb << 7 | xb >> 25) & _MASK32, xc, xd
        return struct.pack("<16I", *[one + two & _MASK32 for one, two in zip(x, start, strict=True)])

    def _tag(self, nonce: bytes, sealed: bytes, associated_data: bytes) -> bytes:
        once = self._block(0, nonce)
        r = int.from_bytes(once[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
        s = int.from_bytes(once[16:32], "little")
        text = b"".join((associated_data, bytes(-len(associated_data) % 16), sealed, bytes(-len(sealed) % 16),
                         struct.pack("<2Q", len(associated_data), len(sealed))))
        prime, total = (1 << 130) - 5, 0
        for at in range(0, len(text), 16):
            total = (total + int.from_bytes(text[at:at + 16], "little") + (1 << 128)) * r % prime
        return (total + s & (1 << 128) - 1).to_bytes(16, "little")


_QUARTERS: Final = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
                    (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
MAKERS: Final[Mapping[str, type[Aead]]] = {"aes-128-gcm": AesGcm, "aes-256-gcm": AesGcm,
                                           "chacha20-poly1305": ChaCha20Poly1305}
