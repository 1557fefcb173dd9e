"""Whether there are processors to spare."""

from __future__ import annotations

import os
from pathlib import Path

LOADAVG = Path("/proc/loadavg")


def outnumbered(path: Path = LOADAVG, processors: int | None = None) -> bool:
    """Whether more tasks of the whole machine run, or could, than it has ``processors`` (None: as many as are
    online). False where the kernel does not tell. Takes about 20 us."""
    try:
        running = int(path.read_text().split()[3].partition("/")[0])
    except (OSError, IndexError, ValueError):
        return False
    return running > (processors or os.cpu_count() or 1)
