"""The nonce ledger: has one (key, nonce) ever protected two different things?

An observer: whoever opens records tells it about each authentic one. AES-GCM and ChaCha20-Poly1305 lose
both secrecy and integrity when a nonce is used twice for different bytes (RFC 5116 §3.1), and the
composite record numbers exist to prevent just that; identical retransmissions are no second use.
"""

from __future__ import annotations

import hashlib
from array import array

from smtstack.crypto.aead import DirectionKeys

#: Different uses remembered of one nonce; more are only counted.
MAX_VALUES = 16
#: Tables that one is made of: while one grows, the others need no room for it.
_SHARDS = 64
_FIRST_SLOTS = 16


class Pairs:
    """Many (name, value) pairs of 64-bit numbers, a name with several values perhaps.

    20 to 40 bytes a pair, where a dict takes five times that.
    """

    __slots__ = ("_counts", "_tables")

    def __init__(self) -> None:
        #: Names and values in turn, open addressing; a name of 0 is a free slot.
        self._tables = [array("Q", bytes(16 * _FIRST_SLOTS)) for _ in range(_SHARDS)]
        self._counts = [0] * _SHARDS

    def __len__(self) -> int:
        return sum(self._counts)

    def values(self, name: int) -> list[int]:
        """All values of a name, in no order."""
        name = name or 1
        table = self._tables[name % _SHARDS]
        out: list[int] = []
        at = _place(name, table)
        while table[at]:
            if table[at] == name:
                out.append(table[at + 1])
            at = (at + 2) % len(table)
        return out

    def add(self, name: int, value: int) -> None:
        """One more; whoever adds one twice finds it twice."""
        name = name or 1
        shard = name % _SHARDS
        table = self._tables[shard]
        if 8 * self._counts[shard] >= 3 * len(table):
            table = self._tables[shard] = _doubled(table)
        _put(table, name, value)
        self._counts[shard] += 1


def _place(name: int, table: array[int]) -> int:
    return 2 * (name // _SHARDS % (len(table) // 2))


def _put(table: array[int], name: int, value: int) -> None:
    at = _place(name, table)
    while table[at]:
        at = (at + 2) % len(table)
    table[at], table[at + 1] = name, value


def _doubled(table: array[int]) -> array[int]:
    out = array("Q", bytes(2 * len(table) * table.itemsize))
    for at in range(0, len(table), 2):
        if table[at]:
            _put(out, table[at], table[at + 1])
    return out


class NonceLedger:
    """Digests of (AAD, ciphertext) by key and nonce.

    Of 64 bits each: that two of ten million records share one by chance has a probability of three in a million.
    """

    __slots__ = ("_seen", "reuse")

    def __init__(self) -> None:
        self._seen = Pairs()
        #: How many times a used (key, nonce) came with another (AAD, ciphertext).
        self.reuse = 0

    def observe(self, keys: DirectionKeys, sequence: int, aad: bytes, ciphertext: bytes) -> bool:
        """Something authenticated under record number ``sequence`` of ``keys``; whether that is a new number.

        Only what authenticates counts: anybody can write a forged record with a used number, only the
        key's owner can misuse the nonce.
        """
        digest = hashlib.blake2b(len(aad).to_bytes(2, "big") + aad, digest_size=8)
        digest.update(ciphertext)
        content = int.from_bytes(digest.digest(), "big")
        name = fingerprint(keys.key + keys.nonce(sequence))
        seen = self._seen.values(name)
        if content not in seen:
            self.reuse += bool(seen)
            if len(seen) < MAX_VALUES:
                self._seen.add(name, content)
        return not seen


def fingerprint(data: bytes) -> int:
    """64 bits that stand for ``data``."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
