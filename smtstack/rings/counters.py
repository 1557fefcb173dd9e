"""What a ring counts that is worth seeing from outside, by the names that a socket's counters have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from smtstack.rings.layout import RINGS

#: Indices of the host that could not be, ring by ring.
INDICES: Final = tuple(f"ring_peer_index_rejected_{ring}" for ring in RINGS)
#: Descriptors that named no frame which the host had.
FRAMES: Final = ("xsk_rx_invalid_frame", "xsk_compl_invalid_frame")
SLEEPS: Final = "ring_sleeps"
BELLS: Final = "ring_bells"
IN_MEMORY: Final = "ring_in_memory"
NAMES: Final = (*INDICES, *FRAMES, SLEEPS, BELLS, IN_MEMORY)


def rejected_indices(counters: Mapping[str, int]) -> int:
    """Indices that were rejected, of all rings together."""
    return sum(counters[name] for name in INDICES)


def invalid_frames(counters: Mapping[str, int]) -> int:
    """Frames that were said to be received, or sent, and cannot be."""
    return sum(counters[name] for name in FRAMES)
