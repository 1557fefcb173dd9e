"""Two endpoints behind two devices in one process, joined by nothing: frames go from one NIC to the other."""

from __future__ import annotations

from collections.abc import Callable

from smtstack.crypto.keys import KeyStore, demo_keys
from smtstack.errors import LocalError
from smtstack.nic.device import NicConfig
from smtstack.stack import Stack, make_stack
from smtstack.transport.endpoint import FIRST_CLIENT_PORT
from smtstack.transport.events import Event
from smtstack.transport.params import TransportParams

CLIENT_IP, SERVER_IP = 0x0A000001, 0x0A000002
SERVER_PORT = 2000
_MACS = {CLIENT_IP: b"\x02\x00\x0a\x00\x00\x01", SERVER_IP: b"\x02\x00\x0a\x00\x00\x02"}


def make_side(ip: int, port: int, profile: str, keys: KeyStore, params: TransportParams | None,
              nic: NicConfig | None, overlay: bool = False) -> Stack:
    """One end; ``ip`` is CLIENT_IP or SERVER_IP."""
    return make_stack(ip, port, profile, keys, params, nic, _MACS[ip], _MACS.get, overlay)


class MemoryPair:
    """A client and a server under demo keys, with a clock that only :meth:`step` moves."""

    def __init__(self, profile: str = "smt", params: TransportParams | None = None,
                 nic: NicConfig | None = None, keys: Callable[[], KeyStore] | None = None,
                 overlay: bool = False) -> None:
        def make() -> KeyStore:
            return keys() if keys else demo_keys(profile)

        self.client = make_side(CLIENT_IP, FIRST_CLIENT_PORT, profile, make(), params, nic, overlay)
        self.server = make_side(SERVER_IP, SERVER_PORT, profile, make(), params, nic, overlay)
        self.now = 0

    def request(self, data: bytes) -> None:
        """Begin an RPC from the client to the server."""
        self.client.endpoint.send_request(SERVER_IP, SERVER_PORT, data, self.now)

    def step(self, serve: Callable[[Event], None]) -> list[Event]:
        """Move all frames both ways once; ``serve`` gets the server's events, the client's are returned.

        When no frame moves, time goes on to the next deadline.
        """
        moved = False
        for sender, receiver in ((self.client, self.server), (self.server, self.client)):
            frames = sender.transmit(self.now)
            if frames:
                moved = True
                receiver.receive(frames, self.now)
            if receiver is self.server:
                while (event := self.server.endpoint.next_event()) is not None:
                    serve(event)
        events: list[Event] = []
        while (event := self.client.endpoint.next_event()) is not None:
            events.append(event)
        if not moved and not events:
            self._advance()
        return events

    def elapse(self, ns: int) -> None:
        """Let this much time pass, and timers act that fall due."""
        self.now += ns
        for end in (self.client, self.server):
            deadline = end.next_timeout()
            if deadline is not None and deadline <= self.now:
                end.handle_timeout(self.now)

    def _advance(self) -> None:
        ends = (self.client, self.server)
        deadlines = [t for e in ends if (t := e.next_timeout()) is not None]
        if not deadlines:
            raise LocalError("nothing moves and no timer runs")
        self.now = max(self.now + 1, min(deadlines))
        for end in ends:
            end.handle_timeout(self.now)
