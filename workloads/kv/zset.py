"""A sorted set: members with scores, in order of score, then of member."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

Pair = tuple[float, bytes]

#: Pairs of a chunk before it is halved: inserting moves what follows within a chunk only.
_CHUNK = 512


class SortedSet:
    """Scores by member, and pairs in order, in chunks."""

    __slots__ = ("_chunks", "scores")

    def __init__(self) -> None:
        self.scores: dict[bytes, float] = {}
        self._chunks: list[list[Pair]] = [[]]

    def __len__(self) -> int:
        return len(self.scores)

    def __contains__(self, member: bytes) -> bool:
        return member in self.scores

    def put(self, member: bytes, score: float) -> None:
        """Add a member, or give it another score."""
        old = self.scores.get(member)
        if old == score:
            return
        if old is not None:
            self._take_out((old, member))
        self.scores[member] = score
        pair = (score, member)
        chunks = self._chunks
        # Into the last chunk that begins before it.
        at = max(0, bisect_right(chunks, [pair]) - 1)
        chunk = chunks[at]
        insort(chunk, pair)
        if len(chunk) > _CHUNK:
            half = len(chunk) // 2
            chunks.insert(at + 1, chunk[half:])
            del chunk[half:]

    def remove(self, member: bytes) -> bool:
        """Whether it was there."""
        score = self.scores.pop(member, None)
        if score is None:
            return False
        self._take_out((score, member))
        return True

    def _chunk_of(self, pair: Pair) -> int:
        """Which chunk holds a pair that is there."""
        chunks = self._chunks
        at = max(0, bisect_right(chunks, [pair]) - 1)
        # A chunk that begins with the pair and goes on comes after [pair].
        return at + 1 if at + 1 < len(chunks) and chunks[at + 1][0] == pair else at

    def _take_out(self, pair: Pair) -> None:
        chunks = self._chunks
        at = self._chunk_of(pair)
        chunk = chunks[at]
        del chunk[bisect_left(chunk, pair)]
        if not chunk and len(chunks) > 1:
            del chunks[at]

    def range(self, start: int, count: int) -> list[Pair]:
        """``count`` pairs from rank ``start`` (0: lowest score) on."""
        found: list[Pair] = []
        for chunk in self._chunks:
            if start >= len(chunk):
                start -= len(chunk)
                continue
            found += chunk[start:start + count - len(found)]
            if len(found) >= count:
                break
            start = 0
        return found

    def from_score(self, score: float, exclusive: bool) -> Iterator[Pair]:
        """Pairs from this score on, without it if ``exclusive``."""
        key = (score, b"")
        at = max(0, bisect_left(self._chunks, [key]) - 1)
        for chunk in self._chunks[at:]:
            begin = bisect_left(chunk, key)
            for pair in chunk[begin:] if begin else chunk:
                if not (exclusive and pair[0] == score):
                    yield pair

    def backwards(self, below: float = math.inf) -> Iterator[Pair]:
        """Pairs from the highest score down, from this score on."""
        chunks = self._chunks
        at = bisect_right(chunks, below, key=lambda chunk: chunk[0][0] if chunk else -math.inf)
        for chunk in reversed(chunks[:at]):
            yield from reversed(chunk)

    def rank(self, pair: Pair) -> int:
        """How many come before a pair that is there."""
        chunks = self._chunks
        at = self._chunk_of(pair)
        return sum(map(len, chunks[:at])) + bisect_left(chunks[at], pair)
