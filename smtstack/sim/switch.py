"""A store-and-forward switch: destination MAC -> port, from a table that is filled before the run."""

from __future__ import annotations

from smtstack.sim.link import EgressPort

_MAC_LEN = 6


class Switch:
    """Forwards frames; the queues, and what they drop, are in its ports.

    ``strict_priority`` decides whether its ports serve eight strict priorities or one queue.
    ``forwarding_ns`` is the time from a frame's last bit in to its place in the egress queue.
    """

    def __init__(self, name: str, forwarding_ns: int, strict_priority: bool) -> None:
        self.name = name
        self.forwarding_ns = forwarding_ns
        self.strict_priority = strict_priority
        #: By the name of the device at the other end.
        self.ports: dict[str, EgressPort] = {}
        #: By destination MAC.
        self.table: dict[bytes, EgressPort] = {}
        #: Frames dropped because the table lacks their destination (a corrupted one, usually).
        self.unknown = 0

    def receive(self, frame: bytes) -> None:
        """A frame came in."""
        port = self.table.get(frame[:_MAC_LEN])
        if port is None:
            self.unknown += 1
        else:
            port.send(frame)
