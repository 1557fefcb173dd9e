"""Two ends that make their sessions by handshakes, in memory and virtual time."""

from __future__ import annotations

from dataclasses import dataclass, field

from smtstack.errors import PeerError
from smtstack.session.config import SessionConfig
from smtstack.session.identity import Identity
from smtstack.session.manager import SessionManager
from smtstack.session.offer import Offer
from smtstack.session.registry import SessionInfo
from smtstack.session.resumption import PskStore
from smtstack.session.state import MemoryState
from smtstack.session.tickets import Ticket, issue
from smtstack.sim.pair import CLIENT_IP, SERVER_IP, SERVER_PORT
from smtstack.transport.endpoint import FIRST_CLIENT_PORT
from smtstack.transport.events import Failed, Reason
from smtstack.transport.params import TransportParams
from smtstack.transport.rpc import Rpc
from tests.certificates import UTC, pair
from tests.rig import Rig, Tamper, answer

#: Made once: keys take time.
CLIENT_ID, SERVER_ID = pair()
#: Modes by what a session begins with; data goes out with the first flight of EARLY ones.
TLS, TICKET, PSK = ("tls", "mtls"), ("ticket", "ticket-fs"), ("psk", "psk-fs")
EARLY = TICKET + PSK
#: Of requests: in one packet, in several records, and more than goes without a grant.
SIZES = (40, 3000, 60_000)
CANARY = b"*canary*"
IMPATIENT = TransportParams(timeout_resends=2)


class Clock:
    """Unix time that only the test moves."""

    def __init__(self) -> None:
        self.utc = UTC

    def __call__(self) -> int:
        return self.utc * 1_000_000_000


class Shelf:
    """A TicketSource without DNS."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self.tickets: dict[tuple[int, int], Ticket] = {}
        self.verifies = True

    def ticket(self, ip: int, port: int, utc: int) -> Ticket:
        found = self.tickets.get((ip, port))
        if found is None:
            raise PeerError("no ticket on the shelf")
        if self.verifies:
            found.verify(self._identity, ip, port, utc)
        return found

    def forget(self, ip: int, port: int) -> None:
        self.tickets.pop((ip, port), None)


@dataclass
class Hosts:
    """What outlives a connection of the two: a client's PSKs and tickets, a server's state."""

    mode: str = "mtls"
    client_id: Identity = CLIENT_ID
    server_id: Identity = SERVER_ID
    clock: Clock = field(default_factory=Clock)
    psks: PskStore = field(default_factory=PskStore)
    state: MemoryState = field(default_factory=MemoryState)
    #: Of settings, other than the mode, for either side.
    client: dict = field(default_factory=dict)
    server: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shelf = Shelf(self.client_id)
        #: For when the two change roles.
        self.client_state = MemoryState()
        self.server_shelf = Shelf(self.server_id)
        if self.mode.startswith("ticket"):
            self.publish()

    def publish(self, **changes) -> None:
        """A fresh ticket of the server, for its state and the client's shelf."""
        offer = self.server.get("offer", Offer())
        secret = issue(self.server_id, SERVER_IP, SERVER_PORT, offer,
                       **{"forward_secret_only": self.mode == "ticket-fs", "client_auth": True,
                          "utc": self.clock.utc} | changes)
        self.state.add_ticket(secret)
        self.shelf.tickets[SERVER_IP, SERVER_PORT] = secret.ticket

    def publish_client(self) -> None:
        """The same the other way round."""
        secret = issue(self.client_id, CLIENT_IP, FIRST_CLIENT_PORT, Offer(), utc=self.clock.utc, client_auth=True,
                       forward_secret_only=self.mode == "ticket-fs")
        self.client_state.add_ticket(secret)
        self.server_shelf.tickets[CLIENT_IP, FIRST_CLIENT_PORT] = secret.ticket

    def managers(self) -> tuple[SessionManager, SessionManager]:
        """The client's and the server's, fresh ones."""
        return self.client_manager(), self.server_manager()

    def client_manager(self) -> SessionManager:
        return SessionManager(SessionConfig(self.client_id, **{"mode": self.mode} | self.client), self.clock,
                              tickets=self.shelf, psks=self.psks, state=self.client_state)

    def server_manager(self, **more) -> SessionManager:
        return SessionManager(SessionConfig(self.server_id, **{"mode": self.mode} | self.server), self.clock,
                              tickets=self.server_shelf, state=self.state, **more)

    def rig(self, **settings) -> SessionRig:
        """The two, connected anew."""
        return SessionRig(self, **settings)

    def resumable(self) -> Hosts:
        """After a first session, where the mode needs one."""
        if self.mode.startswith("psk"):
            rig = self.rig()
            rig.request(b"the first session")
            rig.run()
            assert rig.answered() == 1
            assert len(self.psks) == 1
        return self


class SessionRig(Rig):
    """A :class:`Rig` whose ends shake hands."""

    def __init__(self, hosts: Hosts, **settings) -> None:
        self.managers = hosts.managers()
        self.hosts = hosts
        super().__init__(keys=iter(self.managers).__next__, **settings)

    def failure(self, rpc: Rpc) -> Failed:
        """What ended a request that failed."""
        event, = self.outcomes[rpc]
        assert isinstance(event, Failed)
        return event

    def failures(self) -> list[Failed]:
        """Of all requests that failed."""
        return [e for events in self.outcomes.values() for e in events if isinstance(e, Failed)]

    def details(self) -> set[str]:
        """Why requests failed."""
        return {e.detail for e in self.failures()}


def to_server() -> tuple[int, int]:
    """The server's place, for those who ask a manager about it."""
    return SERVER_IP, SERVER_PORT


def known(info: SessionInfo | None) -> SessionInfo:
    """A session that must be there."""
    assert info is not None
    return info


def to_client(rig: Rig) -> tuple[int, int]:
    """The client's."""
    return CLIENT_IP, rig.client.endpoint.port


def ask(rig: Rig) -> None:
    """Requests full of canaries, and so are the answers: any 16 bytes have a whole one in them."""
    for size in SIZES:
        rig.request(b"%d " % size + CANARY * (size // len(CANARY)))


def in_clear(rig: Rig) -> int:
    """Frames, of either side and of any kind, in which an application's words can be read."""
    said = CANARY, answer(CANARY)[:len(CANARY)]
    return sum(any(words in frame for words in said) for _from_client, frame in rig.sent_frames)


def fails(hosts: Hosts, at_client: str, at_server: str, tamper: Tamper | None = None) -> SessionRig:
    """No session. ``at_server`` "": the client begins nothing, so not even one packet goes to the server."""
    rig = hosts.rig(params=IMPATIENT, tamper=tamper)
    ask(rig)
    rig.run()
    client, server = rig.managers
    for rpc in rig.asked:
        failed = rig.failure(rpc)
        assert failed.reason is Reason.NO_SESSION
        assert at_client in failed.detail
    assert client.last_failure.startswith("10.0.0.2:2000: ")
    assert at_client in client.last_failure
    assert client.counters()["handshakes_failed"] == 1
    if at_server:
        assert server.last_failure.startswith("10.0.0.1:32768: ")
        assert at_server in server.last_failure, server.last_failure
        assert server.counters()["handshakes_failed"] >= 1
    else:
        assert rig.sent_frames == []
    assert rig.delivered == []
    assert rig.server.endpoint.counters.requests_delivered == 0
    assert client.counters()["sessions"] == server.counters()["sessions"] == 0
    assert in_clear(rig) == 0
    rig.assert_empty()
    return rig


def works(hosts: Hosts) -> SessionRig:
    """The control of :func:`fails`: the same requests arrive, are answered, and leave sealed."""
    rig = hosts.rig(params=IMPATIENT)
    ask(rig)
    rig.run()
    assert rig.answered() == len(SIZES)
    assert len(rig.delivered) == len(SIZES)
    assert in_clear(rig) == 0
    assert [m.last_failure for m in rig.managers] == ["", ""]
    return rig
