"""What the rings of guarded processes counted in a trial (hosting ``ring``), over all hosts.

Endpoints count in their interface's NIC (:mod:`smtstack.nicshare.state`); what is refused of the host there is
refused by who does not trust it, and seen by everybody.
"""

from __future__ import annotations

from collections.abc import Sequence

from smtstack.nicshare.state import NicState
from smtstack.rings import counters as names
from topo.host import SmtHost
from workloads.results.row import RingCounts


class RingCounters:
    """Counters of all hosts' endpoints, from now on."""

    def __init__(self, hosts: Sequence[SmtHost]) -> None:
        self._nics = [NicState.open(host.defaultIntf().name, pid=host.pid) for host in hosts]
        self._before = self._read()

    def _read(self) -> dict[str, int]:
        found = [nic.counters() for nic in self._nics]
        return {name: sum(counters[name] for counters in found) for name in names.NAMES}

    def take(self) -> RingCounts:
        """Since this was asked last, or the beginning, so that nothing between two trials is lost; it may be
        :data:`smtstack.loop.PUBLISH_NS` old. Rings in memory: as many as there are now."""
        now = self._read()
        new = {name: now[name] - self._before[name] for name in now}
        self._before = now
        return {"rejected_indices": names.rejected_indices(new), "invalid_frames": names.invalid_frames(new),
                "sleeps": new[names.SLEEPS], "bells": new[names.BELLS], "in_memory": now[names.IN_MEMORY]}
