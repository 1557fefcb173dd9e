"""The negotiator of an endpoint of profile ``smt``: makes its sessions by handshakes, as client and as server.

Sans-IO. What an end needs to know of the world is given: Unix time by a clock, tickets by a source, a server's
memory by its state. Workers that share a port: one of them shakes hands for all and tells the others (``share``);
the others take what it tells (:meth:`SessionManager.deliver`).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from smtstack.session import workers
from smtstack.session.client import Client, ClientMeans
from smtstack.session.config import SessionConfig
from smtstack.session.established import Established
from smtstack.session.flights import Flight, Kind
from smtstack.session.hello import EarlyServer
from smtstack.session.keylog import Keylog
from smtstack.session.plane import Plane
from smtstack.session.pool import KeyPool
from smtstack.session.registry import Peer, Registry, SessionInfo, Share
from smtstack.session.resumption import PskStore
from smtstack.session.server import Server
from smtstack.session.state import MemoryState, ServerState
from smtstack.session.tickets import TicketSource
from smtstack.transport.events import Request, Response
from smtstack.transport.negotiation import Negotiator, SessionUser
from smtstack.transport.segment import Segment

#: Cookie of a CLOSE.
_CLOSING = object()
_SHARED = "workers that share a port only answer: they cannot begin a session"


class Role(Enum):
    """What a process is among those that share a port."""

    ALONE = "alone"
    LEADER = "leader"
    """Shakes hands for all."""
    FOLLOWER = "follower"
    """Takes sessions from the leader."""


class SessionManager(Negotiator):
    """Give it to an :class:`~smtstack.transport.endpoint.Endpoint` as its keys."""

    def __init__(self, config: SessionConfig, clock: Callable[[], int], *, tickets: TicketSource | None = None,
                 psks: PskStore | None = None, state: ServerState | None = None, pool: KeyPool | None = None,
                 keylog: Keylog | None = None, role: Role = Role.ALONE, share: Share | None = None) -> None:
        """``clock``: Unix time in nanoseconds. ``share``: how a leader tells its followers; False: not taken."""
        self.config = config
        #: Keys made in advance: refill it when there is time.
        self.pool = pool or KeyPool()
        self._role = role
        self._registry = Registry(config, clock, keylog, share, role is Role.ALONE)
        means = ClientMeans(self.pool, psks if psks is not None else PskStore(), tickets)
        self._client = Client(self._registry, means)
        self._state = state if state is not None else MemoryState()
        self._server: Server
        self._plane: Plane
        self._closing = 0
        #: When sessions are looked at next for one that is idle.
        self._idle_at: int | None = None
        #: There is nothing to send, and ``_due`` still holds: an endpoint asks for both with every packet.
        self._quiet = False
        self._settled = False
        self._due: int | None = None

    # -- for applications --------------------------------------------------------------------------------

    @property
    def last_failure(self) -> str:
        """Why a session was not made the last time, and with whom; "": never."""
        return self._registry.last_failure

    def failure(self, ip: int, port: int) -> str:
        """Why there was no session with a peer, the last time; "": it is not known, or there was one."""
        return self._registry.failures.get((ip, port), "")

    def info(self, ip: int, port: int) -> SessionInfo | None:
        """The session with a peer; None: there is none that is ready."""
        record = self._registry.sessions.get((ip, port))
        return None if record is None else record.info()

    def peer_name(self, ip: int, port: int) -> str:
        """Whom the certificate of a peer with a session names; "": it showed none."""
        record = self._registry.sessions.get((ip, port))
        return "" if record is None else record.peer_name

    def begin(self, ip: int, port: int, now: int) -> None:
        """Make a session with a peer, unless there is one or it is being made."""
        if not self._registry.known((ip, port)):
            self.want(ip, port, now)

    def begins(self, ip: int, port: int) -> bool:
        """Whether a session with a peer is being made."""
        return self._client.begins((ip, port))

    def close(self, ip: int, port: int, now: int) -> bool:
        """End the session with a peer and tell it so; False: there is none. RPCs under way fail."""
        return self._close((ip, port), "we closed the session", now)

    def close_all(self, now: int) -> None:
        """End all sessions, as this end goes. Other workers of the port see to themselves."""
        self._registry.share = None
        for peer in list(self._registry.sessions):
            self._close(peer, "we closed the session", now)

    def closing(self) -> int:
        """Peers that have not yet confirmed that their session is over."""
        return self._closing

    def _close(self, peer: Peer, text: str, now: int) -> bool:
        record = self._registry.end(peer, text, now)
        if record is None:
            return False
        self._stir()
        self._registry.count("sessions_closed")
        if self._role is not Role.FOLLOWER:
            self._server.ended(peer)
            self._closing += 1
            self._plane.ask(*peer, Flight(Kind.CLOSE, (record.proof,)), _CLOSING, now)
        return True

    def tickets_came(self, now: int) -> None:
        """The ticket source has tickets, or errors, that it had not when it was asked."""
        self._stir()
        self._client.tickets_came(now)

    def counters(self) -> dict[str, int]:
        """Handshakes and sessions since the start, and how many there are now."""
        return {**self._registry.counters, "sessions": len(self._registry.sessions)}

    def snapshot(self) -> dict[str, int]:
        """Sizes of all state but the sessions; all zero (but ``plane_peers``) when nothing is going on."""
        plane = {f"plane_{name}": size for name, size in self._plane.snapshot().items()}
        return {**self._client.snapshot(), **self._server.snapshot(), **plane}

    # -- the endpoint's side -----------------------------------------------------------------------------

    def attach(self, endpoint: SessionUser) -> None:
        self._registry.endpoint = endpoint
        self.config = self._registry.config = self.config.within(endpoint.params.mtu)
        early = EarlyServer(self.config, self._state, self.pool)
        self._server = Server(self._registry, self._client, early)
        self._plane = self._registry.plane = Plane(endpoint.ip, endpoint.port, endpoint.params,
                                                   self.config.handshake_ns)

    def _stir(self) -> None:
        """Something happens: there may be segments and deadlines."""
        self._quiet = self._settled = False

    def want(self, ip: int, port: int, now: int) -> None:
        self._stir()
        if self._client.begins((ip, port)):
            return
        if self._role is not Role.ALONE:
            self._client.begin_nothing((ip, port), _SHARED, now)
        else:
            self._client.begin((ip, port), now)

    def lost(self, ip: int, port: int, now: int) -> None:
        if self._registry.end((ip, port), "the peer stopped answering", now) is not None:
            self._registry.count("sessions_lost")

    def handle_packet(self, frame: bytes, now: int) -> None:
        if self._role is Role.FOLLOWER:
            return
        self._stir()
        self._plane.handle_packet(frame, now)
        self._dispatch(now)

    def poll_transmit(self, now: int) -> Segment | None:
        if self._quiet:
            return None
        segment = self._plane.poll_transmit(now)
        self._settled = False
        self._quiet = segment is None and not self._plane.unsent()
        return segment

    def next_timeout(self) -> int | None:
        if not self._settled:
            times = [t for t in (self._plane.next_timeout(), self._client.next_timeout(),
                                 self._server.next_timeout(), self._idle_due()) if t is not None]
            self._due = min(times) if times else None
            self._settled = True
        return self._due

    def handle_timeout(self, now: int) -> None:
        due = self.next_timeout()
        if due is None or now < due:
            return
        self._stir()
        self._plane.handle_timeout(now)
        self._dispatch(now)
        self._client.handle_timeout(now)
        self._server.handle_timeout(now)
        self._end_idle(now)

    def _dispatch(self, now: int) -> None:
        """Act on what the plane brought."""
        while (refusal := self._plane.next_refusal()) is not None:
            rpc, data = refusal
            self._client.refusal(rpc.cookie, data, now)
        while (event := self._plane.next_event(now)) is not None:
            cookie = event.rpc.cookie
            if isinstance(event, Request):
                self._server.request(event.rpc, event.data, now)
            elif cookie is _CLOSING:
                self._closing -= 1
            elif isinstance(event, Response):
                self._client.answered(cookie, event.data, now)
            else:
                self._client.unanswered(cookie, now)

    # -- idle sessions -----------------------------------------------------------------------------------

    def _idle_due(self) -> int | None:
        if not self.config.idle_ns or not self._registry.sessions or self._role is Role.FOLLOWER:
            return None
        return self._idle_at or 0

    def _end_idle(self, now: int) -> None:
        """Close sessions that carried nothing since they were looked at last."""
        due = self._idle_due()
        if due is None or now < due:
            return
        self._idle_at = now + self.config.idle_ns
        for peer, record in list(self._registry.sessions.items()):
            moved = record.traffic()
            if record.moved == moved and not record.is_client and not self._registry.endpoint.has_rpcs(*peer):
                self._registry.count("sessions_idle")
                self._close(peer, f"nothing was carried for {self.config.idle_ns / 1e9:g} s", now)
            record.moved = moved

    # -- workers -----------------------------------------------------------------------------------------

    def deliver(self, message: bytes, now: int) -> None:
        """What the leader told us, its followers."""
        self._stir()
        told = workers.unpack(message)
        if isinstance(told, Established):
            self._registry.install(told, self._registry.make(told), now, now)
        else:
            self._registry.end(told, "the session was closed", now)
