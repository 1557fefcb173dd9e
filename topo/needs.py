"""What only some kernels have, by the names under which ``smtnet doctor`` reports it and tests ask for it.

A test says ``@pytest.mark.ktls``, and is skipped where the kernel has none; ``smtnet vm test`` runs it in a guest.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from functools import cache

from topo.probes import find, has_module, try_ktls

#: Linux <bits/socket.h>; Python has no name for it.
_AF_XDP = 44
_PATIENCE_S = 20.0


def _try_netem() -> None:
    if find("unshare") is None or find("tc") is None:
        raise OSError("unshare or tc is not installed")
    qdisc = ("qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms")
    done = subprocess.run(["unshare", "--net", str(find("tc")), *qdisc], capture_output=True, text=True,
                          check=False, timeout=_PATIENCE_S)
    if done.returncode:
        raise OSError(" ".join(done.stderr.split()))


def _try_kernel_ovs() -> None:
    if not has_module("openvswitch"):
        raise OSError("the kernel has no module openvswitch")
    if find("ovs-vswitchd") is None:
        raise OSError("Open vSwitch is not installed")


def _try_af_xdp() -> None:
    socket.socket(_AF_XDP, socket.SOCK_RAW, 0).close()


#: Names, in the order of ``smtnet doctor``.
NEEDS: dict[str, Callable[[], None]] = {
    "kernel_ovs": _try_kernel_ovs, "netem": _try_netem, "af_xdp": _try_af_xdp, "ktls": try_ktls}


@cache
def lacking(need: str) -> str:
    """Why this machine has not what :data:`NEEDS` calls so; empty: it has. Tried once."""
    try:
        NEEDS[need]()
    except (OSError, subprocess.TimeoutExpired) as e:
        return getattr(e, "strerror", None) or str(e)
    return ""
