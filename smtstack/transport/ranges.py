"""Received ranges of a message: its gaps, and the end of what was seen."""

from __future__ import annotations


class Gaps:
    """Bytes [0, end) have arrived but for ``holes``, sorted disjoint [start, stop) lists."""

    __slots__ = ("end", "holes")

    def __init__(self) -> None:
        self.end = 0
        self.holes: list[list[int]] = []

    def contiguous(self) -> int:
        """Everything below this offset has arrived."""
        return self.holes[0][0] if self.holes else self.end

    def add(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Mark [start, stop); the parts of it that were new."""
        if start >= self.end:
            if start > self.end:
                self.holes.append([self.end, start])
            self.end = stop
            return [(start, stop)]
        new: list[tuple[int, int]] = []
        kept: list[list[int]] = []
        for hole in self.holes:
            a, b = hole
            if stop <= a or b <= start:
                kept.append(hole)
                continue
            new.append((max(a, start), min(b, stop)))
            if a < start:
                kept.append([a, start])
            if stop < b:
                kept.append([stop, b])
        self.holes = kept
        if stop > self.end:
            new.append((self.end, stop))
            self.end = stop
        return new

    def remove(self, start: int, stop: int) -> None:
        """Forget [start, stop): it will have to arrive again."""
        stop = min(stop, self.end)
        if start >= stop:
            return
        merged = [start, stop]
        kept = []
        for hole in self.holes:
            if hole[1] < merged[0] or merged[1] < hole[0]:
                kept.append(hole)
            else:
                merged = [min(merged[0], hole[0]), max(merged[1], hole[1])]
        if merged[1] == self.end:
            self.end = merged[0]
        else:
            kept.append(merged)
        self.holes = sorted(kept)

    def missing(self, limit: int) -> list[tuple[int, int]]:
        """(offset, length) of every hole below ``limit``, the unseen tail included."""
        out = [(a, min(b, limit) - a) for a, b in self.holes if a < limit]
        if self.end < limit:
            out.append((self.end, limit - self.end))
        return out
