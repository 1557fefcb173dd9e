"""Faults on the way: drop, duplicate, reorder, delay, corrupt; by rate with a seed, or by script."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from smtstack.errors import ConfigError

#: A scripted fault: given the frame and its number (from 0), the frames to deliver instead.
Script = Callable[[bytes, int], "list[bytes]"]


@dataclass(frozen=True, slots=True)
class ImpairmentRates:
    """Probabilities per frame, 0 to 1, and delays in nanoseconds."""

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    """Share of frames held back by ``reorder_ns``."""
    corrupt: float = 0.0
    """Share of frames with one flipped bit."""
    delay_ns: int = 0
    jitter_ns: int = 0
    """Extra delay, uniform from 0; it reorders too."""
    reorder_ns: int = 100_000
    spread_ns: int = 0
    """The delay is up to this longer or shorter, uniform, but never below 0: netem's jitter. It reorders too."""

    def __post_init__(self) -> None:
        for name in ("drop", "duplicate", "reorder", "corrupt"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; a share from 0 to 1, e.g. 0.01 for 1 %")
        if min(self.delay_ns, self.jitter_ns, self.reorder_ns, self.spread_ns) < 0:
            raise ConfigError("delays are nanoseconds from 0")


class Impairments:
    """Sits after a NIC's transmit or before its receive half. Same seed, same faults."""

    def __init__(self, rates: ImpairmentRates | None = None, seed: int = 1, script: Script | None = None) -> None:
        self.rates = rates or ImpairmentRates()
        self._random = Random(seed)
        self._script = script
        self._number = 0
        self.dropped = 0
        self.duplicated = 0
        self.reordered = 0
        self.corrupted = 0

    def apply(self, frame: bytes, now: int) -> list[tuple[int, bytes]]:
        """(when to deliver, frame) for what becomes of one frame."""
        if self._script is not None:
            frames = self._script(frame, self._number)
            self._number += 1
            return [(now + self.rates.delay_ns, f) for f in frames]
        rates = self.rates
        rand = self._random.random
        copies = 1
        if rates.drop and rand() < rates.drop:
            self.dropped += 1
            return []
        if rates.duplicate and rand() < rates.duplicate:
            self.duplicated += 1
            copies = 2
        out = []
        for _copy in range(copies):
            at = now + rates.delay_ns
            data = frame
            if rates.jitter_ns:
                at += self._random.randrange(rates.jitter_ns + 1)
            if rates.spread_ns:
                at += max(-rates.delay_ns, self._random.randint(-rates.spread_ns, rates.spread_ns))
            if rates.reorder and rand() < rates.reorder:
                self.reordered += 1
                at += rates.reorder_ns
            if rates.corrupt and rand() < rates.corrupt:
                self.corrupted += 1
                data = self._flip(frame)
            out.append((at, data))
        return out

    def _flip(self, frame: bytes) -> bytes:
        bit = self._random.randrange(len(frame) * 8)
        changed = bytearray(frame)
        changed[bit >> 3] ^= 1 << (bit & 7)
        return bytes(changed)
