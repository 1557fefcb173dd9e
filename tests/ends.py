"""Two endpoints whose sessions the test makes, without handshakes, and the wire between them."""

from __future__ import annotations

from collections.abc import Callable

from smtstack.crypto.epochs import SessionParams, SmtSession
from smtstack.crypto.keys import Endpoints, KeyStore, TrafficSecrets
from smtstack.stack import Stack
from smtstack.transport.events import Event, Failed, Reason, Request
from smtstack.transport.params import TransportParams
from smtstack.transport.rpc import Rpc
from tests.fake_negotiator import Fake
from tests.pair import CLIENT, CLIENT_PORT, SERVER, SERVER_PORT, make_side

MAX_MESSAGE = 100_000
TICK = TransportParams().tick_ns
FORWARD = Endpoints(CLIENT, CLIENT_PORT, SERVER, SERVER_PORT)
BACK = Endpoints(SERVER, SERVER_PORT, CLIENT, CLIENT_PORT)
SECRET = bytes(range(32))


def session(ends: Endpoints, secret: bytes = SECRET, key_update_records: int = 0) -> SmtSession:
    params = SessionParams(key_update_records=key_update_records)
    return SmtSession(TrafficSecrets(secret, ends, params.cipher).keys, params)


class Ends:
    """Two endpoints whose sessions the test makes, and a wire it controls."""

    def __init__(self, params: TransportParams | None = None,
                 keys: Callable[[], KeyStore] = Fake, profile: str = "smt") -> None:
        self.fakes: list[KeyStore] = [keys(), keys()]
        self.client = make_side(CLIENT, CLIENT_PORT, profile, self.fakes[0], params)
        self.server = make_side(SERVER, SERVER_PORT, profile, self.fakes[1], params)
        self.now = 0
        self.wire: Callable[[bytes], list[bytes]] = lambda frame: [frame]
        #: Frames by who sent them: the client (True) or the server.
        self.frames: dict[bool, list[bytes]] = {True: [], False: []}
        self.asked: dict[Rpc, bytes] = {}
        self.ended: dict[Rpc, list[Event]] = {}
        self.delivered: list[bytes] = []
        self.requests: list[Request] = []
        self.answers = True

    @property
    def fake(self) -> Fake:
        """The client's negotiator."""
        assert isinstance(self.fakes[0], Fake)
        return self.fakes[0]

    def ask(self, data: bytes, from_client: bool = True) -> Rpc:
        side = self.client if from_client else self.server
        peer = (SERVER, SERVER_PORT) if from_client else (CLIENT, CLIENT_PORT)
        rpc = side.endpoint.send_request(*peer, data, self.now, "cookie")
        assert rpc.cookie == "cookie"
        self.asked[rpc] = data
        self.ended[rpc] = []
        return rpc

    def install(self, at_client: bool, made: SmtSession | None = None, early: bool = False,
                max_message: int = MAX_MESSAGE) -> None:
        side, peer, ends = ((self.client, (SERVER, SERVER_PORT), FORWARD) if at_client else
                            (self.server, (CLIENT, CLIENT_PORT), BACK))
        side.endpoint.install(*peer, made or session(ends), self.now, max_message=max_message, early=early)

    def move(self) -> bool:
        """All frames both ways, once."""
        moved = False
        for side, other in ((self.client, self.server), (self.server, self.client)):
            for frame in side.transmit(self.now):
                moved = True
                self.frames[side is self.client].append(frame)
                for arrived in self.wire(frame):
                    other.endpoint.handle_packet(arrived, self.now)
            self.events(side)
            self.events(other)
        return moved

    def events(self, side: Stack) -> None:
        while (event := side.endpoint.next_event()) is not None:
            if not isinstance(event, Request):
                self.ended[event.rpc].append(event)
                continue
            self.delivered.append(event.data)
            self.requests.append(event)
            if self.answers:
                side.endpoint.send_reply(event.rpc, event.data[::-1], self.now)

    def run(self, ticks: int = 0) -> None:
        """Until nothing moves and no timer is left; with ``ticks``: for so long."""
        end = self.now + ticks * TICK
        for _step in range(100_000):
            if self.move():
                continue
            due = [t for s in (self.client, self.server) if (t := s.next_timeout()) is not None]
            if not due or (ticks and min(due) > end):
                self.now = max(self.now, end)
                return
            self.now = max(self.now + 1, min(due))
            for side in (self.client, self.server):
                side.handle_timeout(self.now)
        raise AssertionError("still busy")

    def end_of(self, rpc: Rpc) -> Event:
        event, = self.ended[rpc]
        return event

    def failure(self, rpc: Rpc) -> tuple[Reason, str]:
        event = self.end_of(rpc)
        assert isinstance(event, Failed)
        return event.reason, event.detail

    def empty(self) -> None:
        """Nothing is left at either end."""
        for side in (self.client, self.server):
            state = side.endpoint.snapshot()
            assert not {k: v for k, v in state.items() if v and k != "peers"}, state
