"""Whether there are processors to spare."""

from __future__ import annotations

import os
from pathlib import Path

LOADAVG = Path("/proc/loadavg")


def outnumbered(path: Path = LOADAVG, processors: int | None = None) -> bool:
    """Whether more tasks of the whole machine run, or could, than it has ``processors`` (None: as many as are
    online). False where the kernel does not tell. Takes about 20 us."""
    try:
        # Not by open(): it asks by ioctl whether this is a terminal, which a guarded process may not.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(descriptor, 256)
        finally:
            os.close(descriptor)
        running = int(text.split()[3].partition(b"/")[0])
    except (OSError, IndexError, ValueError):
        return False
    return running > (processors or os.cpu_count() or 1)
