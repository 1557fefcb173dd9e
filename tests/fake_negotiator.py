"""A negotiator without a handshake: the test makes the sessions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from smtstack.transport.negotiation import Negotiator, SessionUser
from smtstack.transport.segment import Segment


class Fake(Negotiator):
    """Does what the test says, and notes what it was asked."""

    def __init__(self) -> None:
        self.endpoint: SessionUser | None = None
        self.wanted: list[tuple[int, int]] = []
        self.lost_peers: list[tuple[int, int]] = []
        #: Frames of the handshake plane; the last of them.
        self.heard: deque[bytes] = deque(maxlen=100)
        self.outgoing: deque[Segment] = deque()
        self.wake: int | None = None
        self.fired: list[int] = []
        self.on_want: Callable[[], None] = lambda: None

    def attach(self, endpoint: SessionUser) -> None:
        self.endpoint = endpoint

    def want(self, ip: int, port: int, now: int) -> None:
        self.wanted.append((ip, port))
        self.on_want()

    def lost(self, ip: int, port: int, now: int) -> None:
        self.lost_peers.append((ip, port))

    def handle_packet(self, frame: bytes, now: int) -> None:
        self.heard.append(frame)

    def poll_transmit(self, now: int) -> Segment | None:
        return self.outgoing.popleft() if self.outgoing else None

    def next_timeout(self) -> int | None:
        return self.wake

    def handle_timeout(self, now: int) -> None:
        self.fired.append(now)
