"""How the hosts' smart NICs are, for comparisons on networks that have no options else."""

from __future__ import annotations

from dataclasses import dataclass

from workloads.options.declare import option
from workloads.transports.table import INLINE


@dataclass(frozen=True)
class Hosting:
    """``--nic-hosting``."""

    hosting: str = option(
        "--nic-hosting", choices=(INLINE, "tap"), default=INLINE,
        help="the hosts' smart NICs: inline, in each program of ours; tap: a process owns the interface, all that "
             "the hosts' kernels send goes through it, and ktls-nic is compared, too (default: %(default)s)")
