"""The sessions an end has, and what becomes of them: installed, closed, lost, gone idle."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass

from smtstack.crypto.epochs import SmtSession
from smtstack.crypto.keys import Endpoints, expand_label
from smtstack.session.config import SessionConfig
from smtstack.session.established import Established
from smtstack.session.flights import PROOF_LEN
from smtstack.session.keylog import Keylog
from smtstack.session.offer import Agreement
from smtstack.session.plane import Plane
from smtstack.transport.negotiation import SessionUser
from smtstack.wire.ipv4 import format_address

#: Passes a message on to the other workers of the port; False: one of them does not take it.
Share = Callable[[bytes], bool]
Peer = tuple[int, int]
#: Peers of whose failures is remembered why.
MAX_FAILURES = 1024

#: What a session's beginning and end count, at either side.
COUNTERS = ("handshakes", "handshakes_failed", "handshakes_displaced", "answers_unproven", "early_accepted",
            "early_refused", "sessions_begun", "sessions_closed", "sessions_lost", "sessions_idle", "flights_bad",
            "closes_forged")


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session, for people: no secrets."""

    mode: str
    is_client: bool
    agreement: Agreement
    #: Whom the peer's certificate names; "": it showed none.
    peer_name: str
    #: Of the keys of our own requests.
    epoch: int


class Record:
    """One session that is ready. Of its secret only what proves a CLOSE is kept here."""

    __slots__ = ("agreement", "begun", "is_client", "mode", "moved", "peer_name", "proof", "session")

    def __init__(self, established: Established, session: SmtSession, begun: int) -> None:
        self.mode = established.mode
        self.is_client = established.is_client
        self.agreement = established.agreement
        self.peer_name = established.peer_name
        self.proof = close_proof(established.secret)
        self.session = session
        #: When its handshake began, and what had been carried when it was last looked at.
        self.begun = begun
        self.moved = -1

    def info(self) -> SessionInfo:
        """The public part."""
        return SessionInfo(self.mode, self.is_client, self.agreement, self.peer_name, self.session.current.epoch)

    def traffic(self) -> int:
        """A number that differs after anything was carried."""
        newest = self.session.current
        return newest.epoch << 64 | newest.sealed + newest.opened


def done_proof(secret: bytes, flight: bytes) -> bytes:
    """What only the server of a session can say, once: that this is its last TLS flight."""
    return hmac.digest(expand_label(secret, "smt done", b"", PROOF_LEN), flight, "sha256")


def close_proof(secret: bytes) -> bytes:
    """What only the two ends of a session can say, once: that it is over."""
    return expand_label(secret, "smt close", b"", PROOF_LEN)


class Registry:
    """All sessions of an endpoint, and the way to it."""

    def __init__(self, config: SessionConfig, clock: Callable[[], int], keylog: Keylog | None, share: Share | None,
                 may_ask: bool) -> None:
        """``clock``: Unix nanoseconds. ``share``: to other workers. ``may_ask``: we may begin sessions."""
        self.config = config
        self.clock = clock
        self.keylog = keylog
        self.share = share
        self.may_ask = may_ask
        self.endpoint: SessionUser
        self.plane: Plane
        self.counters: dict[str, int] = dict.fromkeys(COUNTERS, 0)
        #: Why the last session was not made, or ended before its time, and with whom; "": all is well.
        self.last_failure = ""
        #: The same by peer, of the latest.
        self.failures: dict[Peer, str] = {}
        self.sessions: dict[Peer, Record] = {}
        #: How many of them others began.
        self.accepted = 0

    @property
    def utc(self) -> int:
        """Unix seconds, for certificates."""
        return self.clock() // 1_000_000_000

    def ends(self, peer: Peer) -> Endpoints:
        """The ends of a session with ``peer``, from our side."""
        return Endpoints(self.endpoint.ip, self.endpoint.port, *peer)

    def make(self, established: Established) -> SmtSession:
        """The session for our endpoint."""
        endpoint = self.endpoint
        session = established.session(endpoint.ip, endpoint.port, self.config.key_update_records, self.may_ask)
        session.anonymous = not established.peer_name
        return session

    def log(self, established: Established) -> None:
        """Tell its secrets, if somebody asked for them."""
        if self.keylog is not None:
            self.keylog.session(established, self.endpoint.ip, self.endpoint.port, self.clock())

    def known(self, peer: Peer) -> bool:
        """Whether there is a session with ``peer`` whose other end showed who it is."""
        record = self.sessions.get(peer)
        return record is not None and record.peer_name != ""

    def install(self, established: Established, session: SmtSession, begun: int, now: int) -> None:
        """The session is ready: it replaces an older one of the same peer. ``begun``: when its handshake began."""
        peer = established.ip, established.port
        self._drop(peer)
        self.sessions[peer] = Record(established, session, begun)
        self.accepted += not established.is_client
        self.counters["sessions_begun"] += 1
        agreed = established.agreement
        self.endpoint.install(*peer, session, now, max_message=agreed.max_message, mtu=agreed.mtu,
                              overlay=agreed.overlay)

    def end(self, peer: Peer, text: str, now: int) -> Record | None:
        """The session is over; None: there is none."""
        record = self._drop(peer)
        if record is not None:
            self.endpoint.end_session(*peer, text, now)
        return record

    def _drop(self, peer: Peer) -> Record | None:
        record = self.sessions.pop(peer, None)
        if record is not None:
            self.accepted -= not record.is_client
        return record

    def count(self, name: str) -> None:
        """One more."""
        self.counters[name] += 1

    def fail(self, peer: Peer, text: str) -> None:
        """A session with ``peer`` was not made: counted, and kept for people."""
        self.counters["handshakes_failed"] += 1
        self.last_failure = f"{describe(peer)}: {text}"
        self.failures.pop(peer, None)
        self.failures[peer] = text
        if len(self.failures) > MAX_FAILURES:
            del self.failures[next(iter(self.failures))]


def describe(peer: Peer) -> str:
    """The address as people write it."""
    return f"{format_address(peer[0])}:{peer[1]}"
