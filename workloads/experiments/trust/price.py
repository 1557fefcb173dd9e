"""What a ring's checks cost by themselves: packets in and out of rings in memory, with checks and without, taking
turns in one process. Of whole programs they are less than what a busy machine adds."""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

from smtstack.rings.host import MemoryHost, memory_for, share
from smtstack.rings.layout import RingConfig
from smtstack.rings.xsk import CertifiedXsk

_CONFIG = RingConfig(frames=512, entries=128)
_BATCH = 32


class Price(NamedTuple):
    """Processor time of the guarded side for a packet that comes and is sent back, in us: medians."""

    checked: float
    unchecked: float

    @property
    def share(self) -> float:
        """What checking adds."""
        return self.checked / self.unchecked - 1


def measure(rounds: int = 100, size: int = 1000) -> Price:
    """So many rounds of each, one after the other."""
    rings = {}
    for certified in (True, False):
        buffers = memory_for(_CONFIG)
        rings[certified] = CertifiedXsk(share(buffers), _CONFIG, certified), MemoryHost(share(buffers), _CONFIG)
    packets = [bytes(size)] * _BATCH
    took: dict[bool, list[float]] = {True: [], False: []}
    for number in range(rounds):
        # Now the one first, now the other: what is behind finds the caches warm.
        for certified in (True, False) if number % 2 else (False, True):
            xsk, host = rings[certified]
            spent = 0
            for _batch in range(10):
                host.deliver(packets)
                before = time.process_time_ns()
                xsk.send(xsk.receive(_BATCH))
                spent += time.process_time_ns() - before
                assert len(host.collect()) == _BATCH
            took[certified].append(spent / (10 * _BATCH * 1000))
    return Price(statistics.median(took[True]), statistics.median(took[False]))
