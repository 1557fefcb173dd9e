"""How an end begins sessions: one attempt for each peer, until it is answered, refused or takes too long.

An attempt is a TLS handshake (two RPCs of the plane), or a hello that data follows at once (one RPC). Where both
ends begin at once, the lower of the two addresses goes on and the other one's TLS handshake gives way: it is
refused as *crossed* and waits for the peer's. Once requests were sent under a session that crossed they fail with
it: they may arrive yet, so nobody but the application may send them again.

Whoever sees our flights can answer them. So an attempt ends before its time only by what the server has proven to
say (``refusals``), or by what we find in its certificate. All else is remembered as a hint, and we ask again.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass

from smtstack.crypto.epochs import SmtSession
from smtstack.errors import AuthError, BadPacket, HandshakeError, PeerError, SmtError
from smtstack.session.established import Established
from smtstack.session.flights import ID_LEN, Flight, Kind, Refusal, parse_untrusted, refusal_text
from smtstack.session.hello import EarlyClient
from smtstack.session.offer import agreement_untrusted
from smtstack.session.pool import KeyPool
from smtstack.session.refusals import is_proven
from smtstack.session.registry import Peer, Registry, close_proof, done_proof
from smtstack.session.resumption import Psk, PskStore, psk_untrusted
from smtstack.session.tickets import Ticket, TicketSource
from smtstack.session.tls import TlsClient
from smtstack.transport.rpc import Rpc

#: Refusals after which what we had of the server is worth nothing.
_SPENT = (Refusal.TICKET_UNKNOWN, Refusal.TICKET_EXPIRED, Refusal.TICKET_REVOKED)
#: Nanoseconds until we ask again after an answer that proves nothing; twice as many after each, up to the second.
_PAUSE_NS, _MAX_PAUSE_NS = 10_000_000, 640_000_000


@dataclass(slots=True)
class ClientMeans:
    """What sessions begin with, besides certificates."""

    pool: KeyPool
    psks: PskStore
    #: None: modes ``ticket`` and ``ticket-fs`` cannot begin a session.
    tickets: TicketSource | None = None


class _Attempt:
    """One beginning with one peer."""

    __slots__ = ("again_at", "begun", "doubts", "early", "gave_way", "handshake_id", "hint", "made", "peer", "rpc",
                 "said", "session", "spent", "tls")

    def __init__(self, peer: Peer, begun: int) -> None:
        self.peer = peer
        self.begun = begun
        #: The RPC of the plane we wait for; None: for the peer's handshake.
        self.rpc: Rpc | None = None
        self.gave_way = False
        self.handshake_id = b""
        self.tls: TlsClient | None = None
        self.early: EarlyClient | None = None
        #: Once it was installed, to be confirmed.
        self.session: SmtSession | None = None
        self.made: Established | None = None
        #: What was asked last, and when to ask again; None: when it must be made anew.
        self.said: Flight | None = None
        self.again_at = 0
        #: What somebody said who did not prove to be the server, how often, and that our ticket or PSK is to go.
        self.hint = ""
        self.doubts = 0
        self.spent = False


class Client:
    """All attempts of an endpoint."""

    def __init__(self, registry: Registry, means: ClientMeans) -> None:
        self._registry = registry
        self._means = means
        #: By peer, the oldest first.
        self._attempts: dict[Peer, _Attempt] = {}
        #: That failed before anything was sent, and why. Requests learn of it when timers act, not while they are
        #: being made.
        self._unsent: list[tuple[_Attempt, str]] = []
        #: That wait for their ticket, and those that ask again at some time.
        self._looking: dict[Peer, _Attempt] = {}
        self._pausing: dict[Peer, _Attempt] = {}

    def begins(self, peer: Peer) -> bool:
        """Whether a session with ``peer`` is being made by us."""
        return peer in self._attempts

    def has_right_of_way(self, peer: Peer) -> bool:
        """Whether, as ``peer`` begins too, it is ours that goes on."""
        attempt = self._attempts.get(peer)
        own = self._registry.endpoint.ip, self._registry.endpoint.port
        return attempt is not None and not attempt.gave_way and own < peer

    def has_sent(self, peer: Peer) -> bool:
        """Whether requests may have been sent under a session that is being made by us."""
        attempt = self._attempts.get(peer)
        return attempt is not None and attempt.made is not None

    def begin_nothing(self, peer: Peer, text: str, now: int) -> None:
        """Sessions cannot be begun here, and ``text`` says why."""
        attempt = self._attempts[peer] = _Attempt(peer, now)
        self._unsent.append((attempt, text))

    def begin(self, peer: Peer, now: int) -> None:
        """Make a session with ``peer``; the endpoint learns what comes of it."""
        attempt = self._attempts[peer] = _Attempt(peer, now)
        self._registry.failures.pop(peer, None)
        self._start(attempt, now)

    def _start(self, attempt: _Attempt, now: int) -> None:
        try:
            flight = self._first_flight(attempt)
            if flight is None:
                self._looking[attempt.peer] = attempt
                return
            self._ask(attempt, flight, now)
        except SmtError as e:
            self._unsent.append((attempt, str(e)))
            return
        if attempt.early is not None:
            # Data may follow the hello at once: it is the next thing that is sent.
            self._install_early(attempt, attempt.early.established(), now)

    def tickets_came(self, now: int) -> None:
        """What tickets were looked up for may go on."""
        looking, self._looking = self._looking, {}
        for peer, attempt in looking.items():
            if self._attempts.get(peer) is attempt:
                self._start(attempt, now)

    def _ask(self, attempt: _Attempt, flight: Flight, now: int) -> None:
        attempt.said = flight
        attempt.rpc = self._registry.plane.ask(*attempt.peer, flight, attempt, now)

    def _tls_hello(self, attempt: _Attempt) -> Flight:
        config = self._registry.config
        attempt.handshake_id = secrets.token_bytes(ID_LEN)
        attempt.tls = TlsClient(config.identity, config.offer, attempt.peer[0], self._registry.utc, config.mutual,
                                self._registry.keylog)
        return Flight(Kind.CLIENT_HELLO, (attempt.handshake_id, config.offer.pack(), attempt.tls.hello()))

    def _first_flight(self, attempt: _Attempt) -> Flight | None:
        """A hello by ticket or PSK, or of TLS where that is wanted or there is no PSK yet; None: no ticket yet."""
        registry, means = self._registry, self._means
        config = registry.config
        kind, _dash, suffix = config.mode.partition("-")
        credential: Ticket | Psk | None
        if kind == "ticket":
            if means.tickets is None:
                raise PeerError("there is nowhere to get tickets from: name a DNS server")
            credential = means.tickets.ticket(*attempt.peer, registry.utc)
            if credential is None:
                return None
        else:
            credential = means.psks.get(*attempt.peer, registry.utc) if kind == "psk" else None
            if credential is None:
                return self._tls_hello(attempt)
        attempt.early = EarlyClient(config.identity, credential, config.offer, registry.ends(attempt.peer),
                                    forward_secret=suffix == "fs", pool=means.pool)
        return Flight(Kind.EARLY_HELLO, (attempt.early.hello,), attempt.early.agreement.mtu)

    def _install_early(self, attempt: _Attempt, established: Established, now: int) -> None:
        registry = self._registry
        attempt.made = established
        attempt.session = registry.make(established)
        agreed = established.agreement
        registry.endpoint.install(*attempt.peer, attempt.session, now, max_message=agreed.max_message,
                                  mtu=agreed.mtu, overlay=agreed.overlay, early=True)

    # -- answers -----------------------------------------------------------------------------------------

    def answered(self, attempt: object, data: bytes, now: int) -> None:
        """The plane's answer to an attempt of ours."""
        if not isinstance(attempt, _Attempt):
            return
        if self._attempts.get(attempt.peer) is not attempt:
            self._answered_late(attempt, data, now)
            return
        attempt.rpc = None
        try:
            flight = parse_untrusted(data)
            if flight.kind is Kind.REFUSED:
                self._refused(attempt, flight, now)
            elif flight.kind is Kind.SERVER_HELLO and attempt.tls is not None and attempt.made is None:
                self._finish(attempt, attempt.tls, flight, now)
            elif flight.kind is Kind.SERVER_DONE and attempt.tls is not None and attempt.made is not None:
                self._done(attempt, attempt.tls, attempt.made, flight, now)
            elif flight.kind is Kind.EARLY_ANSWER and attempt.early is not None:
                self._early_done(attempt, attempt.early, flight.fields[0], now)
            else:
                self._doubt(attempt, f"the server answers with {flight.kind.name}, out of turn", now)
        except HandshakeError as e:
            self._fail(attempt, str(e), now)
        except (BadPacket, AuthError) as e:
            self._doubt(attempt, str(e), now)
        except SmtError as e:
            self._fail(attempt, str(e), now)

    def refusal(self, attempt: object, data: bytes, now: int) -> None:
        """What may be the plane's answer to an attempt of ours, which waits for another if it is not."""
        if not isinstance(attempt, _Attempt) or self._attempts.get(attempt.peer) is not attempt \
                or attempt.rpc is None:
            return
        try:
            self._refused(attempt, parse_untrusted(data), now)
        except BadPacket as e:
            self._doubt(attempt, str(e), now)

    def _answered_late(self, attempt: _Attempt, data: bytes, now: int) -> None:
        """The peer took our hello after we took one of its own: each has another session, so end both."""
        registry = self._registry
        try:
            flight = parse_untrusted(data)
            if attempt.early is None or flight.kind is not Kind.EARLY_ANSWER:
                return
            attempt.early.answer_untrusted(flight.fields[0])
        except PeerError:
            return
        proof = close_proof(attempt.early.established().secret)
        registry.plane.ask(*attempt.peer, Flight(Kind.CLOSE, (proof,)), None, now)
        registry.end(attempt.peer, "both ends began a session at once", now)

    def unanswered(self, attempt: object, now: int) -> None:
        """The plane gave up."""
        if isinstance(attempt, _Attempt) and self._attempts.get(attempt.peer) is attempt:
            attempt.rpc = None
            self._fail_unanswered(attempt, "no answer to our handshake", now)

    def _fail_unanswered(self, attempt: _Attempt, text: str, now: int) -> None:
        """``text``, and what somebody may have wanted to tell us."""
        if attempt.spent:
            # Another costs little, and a server that lost its keys may have lost its certificate as well.
            self._forget_credential(attempt)
        if attempt.hint:
            text = f"{text}; this came back, of which nothing proves that the server says so: {attempt.hint}"
        self._fail(attempt, text, now)

    def _finish(self, attempt: _Attempt, tls: TlsClient, flight: Flight, now: int) -> None:
        registry = self._registry
        choice = agreement_untrusted(flight.fields[0])
        try:
            finish = tls.finish(flight.fields[1], choice)
        except HandshakeError as e:
            if not tls.judged:
                # Whoever made that flight: OpenSSL will not listen to another.
                attempt.said = None
                self._doubt(attempt, str(e), now)
                return
            if e.alert:
                # The server shall know why; its answer is of no interest.
                said = Flight(Kind.CLIENT_FINISH, (attempt.handshake_id, e.alert))
                registry.plane.ask(*attempt.peer, said, None, now)
            raise
        said = Flight(Kind.CLIENT_FINISH, (attempt.handshake_id, finish), choice.mtu)
        self._ask(attempt, said, now)
        mode = "mtls" if registry.config.mutual else "tls"
        made = Established(*attempt.peer, True, mode, tls.secret, choice, b"", tls.peer_name)
        # Requests go out right behind; what comes back is looked at when the server has confirmed.
        self._install_early(attempt, made, now)

    def _done(self, attempt: _Attempt, tls: TlsClient, made: Established, flight: Flight, now: int) -> None:
        said, proof = flight.fields
        if not hmac.compare_digest(proof, done_proof(made.secret, said)):
            raise AuthError("the end of the handshake is not by the server, or was changed on its way")
        blob = tls.done(said)
        if blob:
            psk = psk_untrusted(blob, tls.resumption, made.peer_name)
            self._means.psks.put(*attempt.peer, psk)
        self._registry.count("handshakes")
        self._ready(attempt, made, now)

    def _early_done(self, attempt: _Attempt, early: EarlyClient, answer: bytes, now: int) -> None:
        early.answer_untrusted(answer)
        if early.psk is not None:
            self._means.psks.put(*attempt.peer, early.psk)
        made = early.established()
        assert attempt.session is not None
        if made.early:
            endpoint = self._registry.endpoint
            attempt.session.complete(made.schedule(endpoint.ip, endpoint.port))
            # What we ask from now on is forward-secret.
            attempt.session.update_keys()
        self._registry.count("early_accepted")
        self._ready(attempt, made, now)

    def _ready(self, attempt: _Attempt, made: Established, now: int) -> None:
        assert attempt.session is not None
        self._forget(attempt)
        self._registry.log(made)
        self._registry.install(made, attempt.session, attempt.begun, now)

    # -- failures ----------------------------------------------------------------------------------------

    def _refused(self, attempt: _Attempt, flight: Flight, now: int) -> None:
        code, _text, alert, _proof = flight.fields
        registry = self._registry
        asked = attempt.said.pack() if attempt.said is not None else b""
        if not is_proven(flight, asked, registry.ends(attempt.peer), registry.config.identity, registry.utc):
            attempt.spent |= code[0] in _SPENT
            self._doubt(attempt, refusal_text(flight), now)
            return
        if attempt.rpc is not None:
            registry.plane.drop(attempt.rpc)
            attempt.rpc = None
        if code[0] == Refusal.CROSSED and attempt.tls is not None and attempt.made is None:
            attempt.gave_way = True
            return
        if code[0] in _SPENT:
            self._forget_credential(attempt)
        text = refusal_text(flight)
        if alert and attempt.tls is not None and attempt.made is not None:
            # In TLS's words.
            try:
                attempt.tls.done(alert)
            except HandshakeError as e:
                text = f"{text} ({e})"
        self._fail(attempt, text, now)

    def _doubt(self, attempt: _Attempt, hint: str, now: int) -> None:
        """Somebody on the path says ``hint``, maybe the server. If that took the place of an answer, ask again."""
        self._registry.count("answers_unproven")
        attempt.hint = hint
        if attempt.rpc is None:
            attempt.again_at = now + min(_PAUSE_NS << min(attempt.doubts, 10), _MAX_PAUSE_NS)
            attempt.doubts += 1
            self._pausing[attempt.peer] = attempt

    def _ask_again(self, attempt: _Attempt, now: int) -> None:
        try:
            self._ask(attempt, attempt.said or self._tls_hello(attempt), now)
        except SmtError as e:
            self._fail(attempt, str(e), now)

    def _forget(self, attempt: _Attempt) -> None:
        for attempts in (self._attempts, self._looking, self._pausing):
            attempts.pop(attempt.peer, None)

    def _forget_credential(self, attempt: _Attempt) -> None:
        if self._registry.config.mode.startswith("psk"):
            self._means.psks.drop(*attempt.peer)
        elif self._means.tickets is not None:
            self._means.tickets.forget(*attempt.peer)

    def _fail(self, attempt: _Attempt, text: str, now: int) -> None:
        self._forget(attempt)
        if attempt.rpc is not None:
            self._registry.plane.drop(attempt.rpc)
        if attempt.early is not None:
            self._registry.count("early_refused")
        self._registry.fail(attempt.peer, text)
        self._registry.endpoint.refuse(*attempt.peer, text, now)

    def theirs_failed(self, peer: Peer, text: str, now: int) -> None:
        """The handshake of ``peer`` failed; if ours gave way to it, so did ours."""
        attempt = self._attempts.get(peer)
        if attempt is not None and attempt.gave_way:
            # Or somebody else's in its name. If it was the peer's, the way is free for ours.
            attempt.gave_way = False
            attempt.said = None
            self._doubt(attempt, text, now)

    def superseded(self, peer: Peer) -> None:
        """A session that ``peer`` began is there."""
        attempt = self._attempts.get(peer)
        if attempt is not None:
            self._forget(attempt)
        # What becomes of a hello we must know: the peer may take it yet.
        if attempt is not None and attempt.rpc is not None and attempt.early is None:
            self._registry.plane.drop(attempt.rpc)

    def next_timeout(self) -> int | None:
        """When the oldest attempt takes too long; 0: at once."""
        if self._unsent:
            return 0
        if not self._attempts:
            return None
        at = next(iter(self._attempts.values())).begun + self._registry.config.handshake_ns
        return min(at, *(a.again_at for a in self._pausing.values())) if self._pausing else at

    def handle_timeout(self, now: int) -> None:
        """Fail what takes too long, or was never sent."""
        unsent, self._unsent = self._unsent, []
        for attempt, text in unsent:
            if self._attempts.get(attempt.peer) is attempt:
                self._fail(attempt, text, now)
        limit = self._registry.config.handshake_ns
        while self._attempts:
            attempt = next(iter(self._attempts.values()))
            if attempt.begun + limit > now:
                break
            whom = "the peer's handshake, which ours gave way to," if attempt.gave_way else "the handshake"
            if attempt.peer in self._looking:
                whom = "looking up the server's ticket"
            self._fail_unanswered(attempt, f"{whom} took longer than {limit / 1e9:g} s", now)

        for peer, attempt in list(self._pausing.items()):
            if attempt.again_at <= now:
                del self._pausing[peer]
                self._ask_again(attempt, now)

    def snapshot(self) -> dict[str, int]:
        """Sizes."""
        return {"attempts": len(self._attempts)}
