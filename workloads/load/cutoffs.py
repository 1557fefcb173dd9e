"""Which priority a message of which length starts at: Homa's split of the levels by traffic.

HomaModule's ``util/homa_prio.cc`` measures the traffic and does this for the kernel; here the size
distribution is known. It is the SIGCOMM'18 rule: as large a part of the levels for unscheduled bytes as
they have in the traffic, and as many unscheduled bytes in one of these levels as in another.
"""

from __future__ import annotations

from dataclasses import dataclass

from smtstack.errors import ConfigError
from smtstack.transport.params import INT_MAX
from smtstack.wire.homa import NUM_PRIORITIES
from workloads.load.distributions import Distribution

#: With this share of unscheduled bytes, no level is kept for scheduled ones.
_ALL_UNSCHEDULED = 0.99


@dataclass(frozen=True, slots=True)
class Cutoffs:
    """How ``num_priorities`` levels are used."""

    lengths: tuple[int, ...]
    """Longest message of each unscheduled level in bytes, highest level first; the last is :data:`INT_MAX`."""
    table: tuple[int, ...]
    """The cutoffs as ``TransportParams.unsched_cutoffs`` has them: index = priority."""
    max_sched_prio: int
    """Highest priority for scheduled packets."""


def unsched_cutoffs(distribution: Distribution, unsched_bytes: int,
                    num_priorities: int = NUM_PRIORITIES) -> Cutoffs:
    """The split for messages of ``distribution``, of each of which ``unsched_bytes`` go without a grant."""
    if not 1 <= num_priorities <= NUM_PRIORITIES:
        raise ConfigError(f"num_priorities is {num_priorities}; 1 to {NUM_PRIORITIES}")
    blind = [(size, min(size, unsched_bytes) * share) for size, share in distribution.items()]
    total = sum(part for _size, part in blind)
    share = total / distribution.mean()
    levels = max(1, round(num_priorities * share))
    if share < _ALL_UNSCHEDULED:
        levels = max(1, min(levels, num_priorities - 1))
    lengths: list[int] = []
    running = 0.0
    for size, part in blind:
        if len(lengths) == levels - 1:
            break
        running += part
        if running > total / levels:
            # From zero, as homa_prio does: what a level has too much, the last one lacks.
            running = 0.0
            lengths.append(size)
    lengths.append(INT_MAX)
    table = [0] * NUM_PRIORITIES
    for level, length in enumerate(lengths):
        table[num_priorities - 1 - level] = length
    table[0] = INT_MAX
    return Cutoffs(tuple(lengths), tuple(table), max(0, num_priorities - len(lengths) - 1))
