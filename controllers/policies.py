"""``--multipath``: where several ways are equally short, what stays on one of them, and what that means.

A *policy* says what stays on one path; *paths* is how many numbered paths there are. The planner asks
:func:`hashed`; ``topo.network`` sets the NICs of hosts by :func:`nic_paths` (``nic.driver.set_paths``).
"""

from __future__ import annotations

#: By name, what stays on one path. The first is taken where nobody says one.
POLICIES = {
    "flow": "a pair of hosts",
    "message": "a message (of smt, homa, linux)",
    "ecmp": "what Open vSwitch hashes alike",
}
DEFAULT = next(iter(POLICIES))
HELP = "what stays on one path: " + ", ".join(f"{name}: {what}" for name, what in POLICIES.items())


def hashed(policy: str) -> bool:
    """Whether switches choose the way of a frame by a hash; else by the path that its address names, or a rule."""
    return policy == "ecmp"


def nic_paths(policy: str, paths: int) -> int:
    """Over how many of a network's paths a host's NIC is to spread the messages to one peer; 1: it names none."""
    return paths if policy == "message" else 1
