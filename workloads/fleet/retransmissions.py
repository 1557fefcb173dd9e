"""What hosts had to send again, and how often a timer had to say so: read before and after a measurement.

Our transports count in their interface's NIC (:mod:`smtstack.nicshare.state`), the kernel's TCP for each network
namespace, so both ends of every connection are in it. Programs need not be asked, and need not run any more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from smtstack.loop import PUBLISH_NS
from smtstack.nicshare.state import NicState
from topo.host import SmtHost

#: Fields of a row, and our endpoints' counters they add up: packets sent again, RESENDs that asked for them.
_OURS = {"resent_packets": "packets_resent", "resends": "resends_sent"}
#: Fields of a row, and where the kernel has them: Documentation/networking/snmp_counter.rst.
_KERNELS = {"retransmits": ("snmp", "Tcp", "RetransSegs"), "timeouts": ("netstat", "TcpExt", "TCPTimeouts")}


class Retransmissions:
    """The hosts' counters; ``ours``: of our transports, else of the kernel's TCP."""

    def __init__(self, hosts: Sequence[SmtHost], ours: bool) -> None:
        self._pids = [host.pid for host in hosts]
        self._nics = [NicState.open(host.defaultIntf().name, pid=host.pid) for host in hosts] if ours else []

    def read(self) -> dict[str, int]:
        """Sums over all hosts: ``resent_packets`` and ``resends``, or ``retransmits`` (segments) and ``timeouts``
        (of the retransmission timer)."""
        if self._nics:
            # An endpoint publishes what it has counted so long after it counted it.
            time.sleep(2 * PUBLISH_NS / 1e9)
        return self.known()

    def known(self) -> dict[str, int]:
        """What is known without waiting: of our transports it may be :data:`PUBLISH_NS` old."""
        if not self._nics:
            return {name: sum(kernel_counter(pid, *where) for pid in self._pids)
                    for name, where in _KERNELS.items()}
        counters = [nic.counters() for nic in self._nics]
        return {name: sum(found[counter] for found in counters) for name, counter in _OURS.items()}


def kernel_counter(pid: int, file: str, protocol: str, name: str) -> int:
    """A counter of the network namespace that process ``pid`` is in; 0 where the kernel does not have it."""
    lines = [line.split() for line in Path(f"/proc/{pid}/net/{file}").read_text().splitlines()]
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        if names[0] == f"{protocol}:" and name in names:
            return int(values[names.index(name)])
    return 0
