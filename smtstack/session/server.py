"""How an end accepts sessions: TLS handshakes half open, hellos with data behind them, closes.

Every flight may be forged, come twice or come late. A session that exists is replaced only by one that has
authenticated, and a flight that comes again gets the same answer again. What is half open is bounded: the oldest
makes room.
"""

from __future__ import annotations

import hashlib
import hmac

from smtstack.errors import BadPacket, HandshakeError, PeerError, SmtError
from smtstack.session.client import Client
from smtstack.session.established import Established
from smtstack.session.flights import Flight, Kind, Refusal, parse_untrusted, refused
from smtstack.session.hello import EarlyServer, Refused
from smtstack.session.offer import Agreement, Offer, choose
from smtstack.session.refusals import signed
from smtstack.session.registry import Peer, Registry, done_proof
from smtstack.session.tls import TlsServer
from smtstack.session.workers import closed, opened
from smtstack.transport.rpc import Rpc


class _HalfOpen:
    """A TLS handshake that awaits the client's second flight."""

    __slots__ = ("answer", "begun", "choice", "hello", "tls")

    def __init__(self, tls: TlsServer, choice: Agreement, hello: bytes, answer: Flight, begun: int) -> None:
        self.tls = tls
        self.choice = choice
        #: Hash of the client's flight, and our answer to it.
        self.hello = hello
        self.answer = answer
        self.begun = begun


class Server:
    """Takes the requests of the plane."""

    def __init__(self, registry: Registry, client: Client, early: EarlyServer) -> None:
        self._registry = registry
        self._client = client
        self._early = early
        #: By peer and handshake id, the oldest first.
        self._half: dict[tuple[Peer, bytes], _HalfOpen] = {}
        #: The flight that made a peer's session (its hash), our answer, and when; the oldest first.
        self._recent: dict[Peer, tuple[bytes, Flight, int]] = {}

    def request(self, rpc: Rpc, data: bytes, now: int) -> None:
        """Answer a flight."""
        peer = rpc.peer.host.ip, rpc.peer.port
        try:
            answer = self._answer(peer, data, now)
        except Refused as e:
            answer = self._refuse(peer, refused(e.code, e.text), e.text, now)
        except BadPacket as e:
            self._registry.count("flights_bad")
            answer = self._refuse(peer, refused(Refusal.BAD_FLIGHT, str(e)), str(e), now)
        except HandshakeError as e:
            answer = self._refuse(peer, refused(Refusal.TLS, str(e), e.alert), str(e), now)
        except SmtError as e:
            answer = self._refuse(peer, refused(Refusal.BUSY, str(e)), str(e), now)
        if answer.kind is Kind.REFUSED:
            answer = signed(answer, data, self._registry.ends(peer), self._registry.config.identity)
        self._registry.plane.answer(rpc, answer, now)

    def _refuse(self, peer: Peer, answer: Flight, text: str, now: int) -> Flight:
        self._registry.fail(peer, text)
        self._client.theirs_failed(peer, text, now)
        return answer

    def _answer(self, peer: Peer, data: bytes, now: int) -> Flight:
        flight = parse_untrusted(data)
        digest = hashlib.sha256(data).digest()
        if flight.kind is not Kind.CLOSE and self._client.has_right_of_way(peer) \
                and (flight.kind is not Kind.CLIENT_FINISH or self._client.has_sent(peer)):
            return refused(Refusal.CROSSED, "both ends began a session at once, and this one goes on with its own")
        if flight.kind is Kind.CLIENT_HELLO:
            return self._hello(peer, flight, digest, now)
        if flight.kind is Kind.CLIENT_FINISH:
            return self._finish(peer, flight, digest, now)
        if flight.kind is Kind.EARLY_HELLO:
            return self._early_hello(peer, flight, digest, now)
        if flight.kind is Kind.CLOSE:
            return self._close(peer, flight.fields[0], now)
        raise BadPacket(f"{flight.kind.name} is no request")

    # -- TLS ---------------------------------------------------------------------------------------------

    def _hello(self, peer: Peer, flight: Flight, digest: bytes, now: int) -> Flight:
        registry = self._registry
        config = registry.config
        handshake_id, packed, tls_flight = flight.fields
        known = self._half.get((peer, handshake_id))
        if known is not None and known.hello == digest:
            return known.answer
        self._check_room(peer)
        if not config.mutual:
            self._check_anonymous(peer)
        offer = Offer.parse_untrusted(packed)
        try:
            choice = choose(offer, config.offer)
        except PeerError as e:
            raise Refused(Refusal.PARAMETERS, str(e)) from None
        tls = TlsServer(config.identity, peer[0], registry.utc, config.mutual, registry.keylog)
        answer = Flight(Kind.SERVER_HELLO, (choice.pack(), tls.answer(tls_flight, offer, choice)), choice.mtu)
        self._half.pop((peer, handshake_id), None)
        self._half[peer, handshake_id] = _HalfOpen(tls, choice, digest, answer, now)
        if len(self._half) > config.max_handshakes:
            del self._half[next(iter(self._half))]
            registry.count("handshakes_displaced")
        return answer

    def _check_room(self, peer: Peer) -> None:
        """Check that a session with ``peer`` may begin now; raises :class:`Refused`."""
        registry = self._registry
        if peer not in registry.sessions and registry.accepted >= registry.config.max_sessions:
            raise Refused(Refusal.BUSY, f"there are {registry.accepted} sessions already, as many as are allowed")

    def _check_anonymous(self, peer: Peer) -> None:
        """Check that nobody takes the place of one who shows a certificate; raises :class:`Refused`."""
        if self._registry.known(peer) or self._client.begins(peer):
            # Else who is on the path would get, without any certificate, what is for the one whom we verified.
            raise Refused(Refusal.CERTIFICATE, "this end has, or begins, a session in which the other shows its "
                                               "certificate: use --session mtls where both ends ask")

    def _finish(self, peer: Peer, flight: Flight, digest: bytes, now: int) -> Flight:
        registry = self._registry
        handshake_id, tls_flight = flight.fields
        half = self._half.pop((peer, handshake_id), None)
        if half is None:
            return self._again(peer, digest) or self._not_begun(peer, now)
        half.tls.finish(tls_flight)
        record = registry.sessions.get(peer)
        if record is not None and record.begun > half.begun:
            raise Refused(Refusal.NO_HANDSHAKE, "a handshake that began later is complete")
        tls = half.tls
        made = Established(*peer, False, "mtls" if tls.peer_name else "tls", tls.secret, half.choice, b"",
                           tls.peer_name)
        blob = self._early.grant(tls.resumption, peer[0], tls.peer_name, registry.utc)
        said = tls.done(blob)
        answer = Flight(Kind.SERVER_DONE, (said, done_proof(tls.secret, said)), half.choice.mtu)
        self._open(made, digest, answer, half.begun, now)
        registry.count("handshakes")
        return answer

    def _not_begun(self, peer: Peer, now: int) -> Flight:
        text = "there is no such handshake under way: it took too long, or others displaced it"
        return self._refuse(peer, refused(Refusal.NO_HANDSHAKE, text), text, now)

    # -- 0-RTT -------------------------------------------------------------------------------------------

    def _early_hello(self, peer: Peer, flight: Flight, digest: bytes, now: int) -> Flight:
        again = self._again(peer, digest)
        if again is not None:
            return again
        registry = self._registry
        try:
            self._check_room(peer)
            accepted = self._early.hello_untrusted(flight.fields[0], registry.ends(peer), registry.utc)
            answer = Flight(Kind.EARLY_ANSWER, (accepted.answer,), accepted.session.agreement.mtu)
            self._open(accepted.session, digest, answer, now, now)
        except Refused:
            registry.count("early_refused")
            raise
        registry.count("early_accepted")
        return answer

    # -- both --------------------------------------------------------------------------------------------

    def _again(self, peer: Peer, digest: bytes) -> Flight | None:
        """The answer to a flight that made the session there is: it comes again if our answer was lost."""
        recent = self._recent.get(peer)
        if recent is None or recent[0] != digest or peer not in self._registry.sessions:
            return None
        return recent[1]

    def _open(self, made: Established, digest: bytes, answer: Flight, begun: int, now: int) -> None:
        """The session is there. Other workers hear of it before the client can."""
        registry = self._registry
        peer = made.ip, made.port
        if not made.peer_name:
            self._check_anonymous(peer)
        if registry.share is not None and not registry.share(opened(made)):
            # Those that did take it must not serve what is refused here.
            self.ended(peer)
            registry.end(peer, "a worker of this server does not keep up", now)
            raise Refused(Refusal.BUSY, "a worker of this server does not keep up")
        self._client.superseded(peer)
        registry.log(made)
        registry.install(made, registry.make(made), begun, now)
        self._recent.pop(peer, None)
        self._recent[peer] = digest, answer, now
        if len(self._recent) > registry.config.max_handshakes:
            del self._recent[next(iter(self._recent))]

    def _close(self, peer: Peer, proof: bytes, now: int) -> Flight:
        registry = self._registry
        record = registry.sessions.get(peer)
        if record is not None:
            if hmac.compare_digest(record.proof, proof):
                registry.count("sessions_closed")
                self.ended(peer)
                registry.end(peer, "the peer closed the session", now)
            else:
                registry.count("closes_forged")
        # The same to everybody: who has no proof learns nothing.
        return Flight(Kind.CLOSED)

    def ended(self, peer: Peer) -> None:
        """A session is over: forget what is left of it here and at other workers."""
        self._recent.pop(peer, None)
        if self._registry.share is not None:
            self._registry.share(closed(peer))

    # -- time --------------------------------------------------------------------------------------------

    def next_timeout(self) -> int | None:
        """When something is to be forgotten."""
        firsts = [next(iter(self._half.values())).begun] if self._half else []
        if self._recent:
            firsts.append(next(iter(self._recent.values()))[2])
        return min(firsts) + self._registry.config.handshake_ns if firsts else None

    def handle_timeout(self, now: int) -> None:
        """Forget what is too old."""
        before = now - self._registry.config.handshake_ns
        while self._half:
            (peer, _id), half = next(iter(self._half.items()))
            if half.begun > before:
                break
            del self._half[next(iter(self._half))]
            self._registry.fail(peer, "the client did not finish its handshake")
        while self._recent:
            peer, (_digest, _answer, when) = next(iter(self._recent.items()))
            if when > before:
                break
            del self._recent[peer]

    def snapshot(self) -> dict[str, int]:
        """Sizes."""
        return {"half_open": len(self._half), "recent": len(self._recent)}

