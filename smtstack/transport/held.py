"""Frames that came before their session: kept for a bounded time, in bounded memory.

A 0-RTT client sends sealed data in the same breath as its hello; the network may bring them in any order, and the
hello takes time to judge. What nobody makes a session for was noise, or is sent again.
"""

from __future__ import annotations

from typing import Final

from smtstack.transport.counters import Counters
from smtstack.transport.params import TransportParams

#: What a frame costs beside its bytes.
_OVERHEAD: Final = 256


class HeldFrames:
    """Frames by peer, oldest first; the oldest of all make room for new ones."""

    __slots__ = ("_by_peer", "_bytes", "_counters", "_max_bytes", "_numbers", "_ticks", "frames")

    def __init__(self, params: TransportParams, counters: Counters) -> None:
        self._max_bytes = params.max_held_bytes
        self._ticks = params.held_ticks
        self._counters = counters
        self._bytes = 0
        self._numbers = 0
        #: (tick to forget it, peer, frame) by number: in order of both.
        self.frames: dict[int, tuple[int, int, bytes]] = {}
        #: Numbers of a peer's frames.
        self._by_peer: dict[int, dict[int, None]] = {}

    def add(self, peer: int, frame: bytes, tick: int) -> None:
        """Keep a frame of ``peer`` (its ``Peer.key``)."""
        self._numbers += 1
        self.frames[self._numbers] = (tick + self._ticks, peer, frame)
        self._by_peer.setdefault(peer, {})[self._numbers] = None
        self._bytes += len(frame) + _OVERHEAD
        self._counters.frames_held += 1
        while self._bytes > self._max_bytes:
            self._drop()

    def _drop(self) -> None:
        number = next(iter(self.frames))
        _tick, peer, frame = self.frames.pop(number)
        self._bytes -= len(frame) + _OVERHEAD
        numbers = self._by_peer[peer]
        del numbers[number]
        if not numbers:
            del self._by_peer[peer]
        self._counters.frames_held_dropped += 1

    def take(self, peer: int) -> list[bytes]:
        """The frames of ``peer``, oldest first; they are not held any longer."""
        out = [self.frames.pop(number)[2] for number in self._by_peer.pop(peer, ())]
        self._bytes -= sum(map(len, out)) + _OVERHEAD * len(out)
        return out

    def next_tick(self) -> int | None:
        """When the oldest frame is to be forgotten."""
        return next(iter(self.frames.values()))[0] if self.frames else None

    def expire(self, tick: int) -> None:
        """Forget what is due at ``tick``."""
        while self.frames and next(iter(self.frames.values()))[0] <= tick:
            self._drop()
