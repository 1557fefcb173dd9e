"""Sessions that begin with data: one hello, sealed data right behind it, one answer (paper §4.5).

The client has a ticket of the server, or a PSK of an earlier session. Hello and answer, all numbers big-endian,
``<>`` a field with two bytes of length before it::

    hello   version(1) kind(1) flags(1) random(32) <share> <ticket id | PSK blob> <ticket digest> <offer> <choice>
            <sealed certificates and signature> binder(32)
    answer  version(1) flags(1) random(32) <share> <resumption> MAC(32)

Flag 1: forward-secret. The client's share is there with a ticket, and with a PSK if forward-secret; the
server's if forward-secret. The client shows its certificates where the ticket wants them, sealed under a key only
the server has; its signature is over the hash of all that comes before, and the certificates. With a PSK it is
who it was. Keys: ``early_keys.py``.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from smtstack.crypto.keys import Endpoints
from smtstack.errors import AuthError, BadPacket, HandshakeError, PeerError
from smtstack.session import resumption
from smtstack.session.config import SessionConfig
from smtstack.session.early_keys import MAC_LEN, EarlySecret, Kind, Transcript
from smtstack.session.established import Established
from smtstack.session.flights import Refusal
from smtstack.session.identity import Identity, verify_signature
from smtstack.session.offer import Agreement, Offer, agreement_untrusted, choose
from smtstack.session.pool import SHARE_LEN, KeyPool, agree
from smtstack.session.reader import Reader, pack_chain, vector
from smtstack.session.resumption import Psk
from smtstack.session.state import ServerState, StateError
from smtstack.session.tickets import SKEW_S, Ticket

VERSION = 2
RANDOM_LEN = 32
#: Longest hello or answer in bytes.
MAX_HELLO = 16_384
_FS = 1
_HEAD = struct.Struct(f"!BBB{RANDOM_LEN}s")
_ANSWER = struct.Struct(f"!BB{RANDOM_LEN}s")
_SIGNING = b"smtnet hello 1, client"
#: Each key seals one thing.
_NONCE = bytes(12)


class Refused(PeerError):
    """A server's no: why, in a number and in words for the client."""

    def __init__(self, code: Refusal, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@dataclass(frozen=True, slots=True)
class Accepted:
    """A session that a hello began, at the server."""

    session: Established
    #: To be sent.
    answer: bytes
    #: What both ends can resume from.
    resumption: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Hello:
    """A hello in parts, none of them judged."""

    kind: Kind
    forward_secret: bool
    share: bytes
    credential: bytes
    digest: bytes
    offer: bytes
    choice: bytes
    sealed: bytes
    binder: bytes
    #: How much comes before ``sealed``.
    head_len: int


class EarlyClient:
    """One session from the client's side. Make it, send ``hello``, then data under ``established()``.

    Raises :class:`HandshakeError` where the server's conditions do not fit ours.
    """

    def __init__(self, identity: Identity, credential: Ticket | Psk, offer: Offer, ends: Endpoints, *,
                 forward_secret: bool, pool: KeyPool) -> None:
        if credential.forward_secret_only and not forward_secret:
            raise HandshakeError("the server demands forward-secret sessions; use --session ticket-fs or psk-fs")
        self._ends = ends
        self._forward_secret = forward_secret
        #: What both ends will do; the server cannot but agree, or refuse.
        self.agreement: Agreement = choose(offer, credential.offer)
        self._key: X25519PrivateKey | None = None
        share = b""
        if isinstance(credential, Ticket):
            self._key, share = pool.take()
            self.peer_name = credential.name
            self._kind, name, digest = Kind.TICKET, credential.ticket_id, credential.digest()
            self._early = EarlySecret(Kind.TICKET, agree(self._key, credential.share))
        else:
            if forward_secret:
                self._key, share = pool.take()
            self.peer_name = credential.peer_name
            self._kind, name, digest = Kind.PSK, credential.blob, b""
            self._early = EarlySecret(Kind.PSK, credential.secret)
        head = (_HEAD.pack(VERSION, self._kind, _FS if forward_secret else 0, secrets.token_bytes(RANDOM_LEN))
                + vector(share) + vector(name) + vector(digest) + vector(offer.pack())
                + vector(self.agreement.pack()))
        self._transcript = Transcript(ends, is_client=True)
        hashed = self._transcript.add(head)
        sealed = b""
        if isinstance(credential, Ticket) and credential.wants_client:
            sealed = self._credentials(identity, hashed)
        binder = self._early.binder(self._transcript.add(vector(sealed)))
        self._traffic = self._early.traffic(self._transcript.add(binder))
        self._session = b"" if forward_secret else self._traffic
        #: To be sent.
        self.hello = head + vector(sealed) + binder
        #: What to resume from, once the answer came; b"" before.
        self.resumption = b""
        #: For the next session, if the server gave one with its answer.
        self.psk: Psk | None = None

    def _credentials(self, identity: Identity, head: bytes) -> bytes:
        chain = pack_chain(identity.chain)
        plain = chain + vector(identity.sign(_SIGNING, head + chain))
        return AESGCM(self._early.sealing(head)).encrypt(_NONCE, plain, None)

    @property
    def mode(self) -> str:
        """How the session begins: what becomes ``Established.mode``."""
        return _mode(self._kind, self._forward_secret)

    def established(self) -> Established:
        """The session. Forward-secret and not answered yet, it can only seal our first flight."""
        early = self._traffic if self._forward_secret else b""
        return Established(self._ends.peer_ip, self._ends.peer_port, True, self.mode, self._session,
                           self.agreement, early, self.peer_name)

    def answer_untrusted(self, data: bytes) -> None:
        """The server's answer; :meth:`established` is complete then.

        Raises :class:`BadPacket`, or :class:`AuthError` where it is not the server's answer to our hello.
        """
        if len(data) > MAX_HELLO:
            raise BadPacket("an answer to a hello is too long")
        reader = Reader(data, "an answer to a hello")
        version, flags, _random = _ANSWER.unpack(reader.take(_ANSWER.size))
        share = reader.vector(2)
        head_len = reader.at
        given = reader.vector(2)
        mac = reader.take(MAC_LEN)
        reader.end()
        if version != VERSION or flags != (_FS if self._forward_secret else 0):
            raise BadPacket("an answer that does not fit our hello")
        if self._forward_secret:
            if self._key is None:
                raise BadPacket("a second answer to our hello")
            master = self._early.master(agree(self._key, share))
        else:
            master = self._early.master()
        # A forged answer must not spoil the hash: the true one may follow.
        transcript = self._transcript.copy()
        resume = master.resumption(transcript.add(data[:head_len]))
        if not hmac.compare_digest(mac, master.mac(transcript.add(vector(given)))):
            raise AuthError("the answer to our hello is not by its server, or was changed on its way")
        psk = resumption.psk_untrusted(given, resume, self.peer_name) if given else None
        whole = transcript.add(mac)
        if self._forward_secret:
            self._session = master.traffic(whole)
        self.resumption, self.psk = resume, psk
        self._key = None


class EarlyServer:
    """Judges hellos. ``config.mode`` says what is accepted: tickets, PSKs, or (``tls``, ``mtls``) neither."""

    def __init__(self, config: SessionConfig, state: ServerState, pool: KeyPool) -> None:
        self._config = config
        self._state = state
        self._pool = pool
        kind, _dash, suffix = config.mode.partition("-")
        self._kind = {"ticket": Kind.TICKET, "psk": Kind.PSK}.get(kind)
        self._forward_secret_only = suffix == "fs"

    def hello_untrusted(self, data: bytes, ends: Endpoints, utc: int) -> Accepted:
        """A session by this hello; ``ends`` from our side. Raises :class:`Refused` and nothing else."""
        try:
            return self._judge(data, ends, utc)
        except BadPacket as e:
            raise Refused(Refusal.BAD_FLIGHT, str(e)) from None
        except StateError as e:
            raise Refused(Refusal.BUSY, f"the server's memory of tickets and hellos: {e}") from None

    def _judge(self, data: bytes, ends: Endpoints, utc: int) -> Accepted:
        # The cheap checks come first, and what writes comes last: a hello is remembered when nothing else is
        # wrong with it, and before anything is derived that a session could use.
        hello = _parse_untrusted(data)
        if hello.kind is not self._kind:
            raise Refused(Refusal.NOT_ACCEPTED, f"this server (--session {self._config.mode}) takes no sessions "
                                                f"that begin with a {hello.kind.name.lower()}")
        if self._forward_secret_only and not hello.forward_secret:
            raise _downgraded()
        terms = self._ticket_terms(hello, utc) if hello.kind is Kind.TICKET else self._psk_terms(hello, ends, utc)
        if terms.forward_secret_only and not hello.forward_secret:
            raise _downgraded()
        agreement = _checked_agreement(hello, terms.offer)
        if agreement.mtu > self._config.offer.mtu:
            # What was offered then holds no longer: who begins anew finds out what does.
            raise Refused(Refusal.TICKET_EXPIRED, f"packets of {agreement.mtu} bytes were offered, and the MTU is "
                                                  f"{self._config.offer.mtu} by now")
        if agreement.overlay and not self._config.offer.overlay:
            raise Refused(Refusal.TICKET_EXPIRED, "the overlay was offered, and is not taken by now")
        transcript = Transcript(ends, is_client=False)
        head = transcript.add(data[:hello.head_len])
        binder = terms.early.binder(transcript.add(vector(hello.sealed)))
        if not hmac.compare_digest(binder, hello.binder):
            raise Refused(Refusal.BAD_FLIGHT,
                          "the hello was not made with what it names, or was changed on its way")
        whole = transcript.add(hello.binder)
        peer_name = terms.client_name
        if terms.wants_client:
            peer_name = self._client(terms.early, head, hello.sealed, ends, utc)
        # The whole hello, and not its random alone: else who sees a random could use it up first.
        if not self._state.remember(whole, terms.not_after, utc):
            raise Refused(Refusal.REPLAYED, "this hello was here before")
        return self._answer(hello, terms, transcript, whole, agreement, peer_name, ends, utc)

    def _ticket_terms(self, hello: _Hello, utc: int) -> _Terms:
        secret = self._state.ticket(hello.credential)
        if secret is None:
            raise Refused(Refusal.TICKET_UNKNOWN, "the ticket is not one of this server's, or long expired")
        ticket = secret.ticket
        if secret.revoked:
            raise Refused(Refusal.TICKET_REVOKED, "the ticket was revoked")
        if not ticket.not_before - SKEW_S <= utc <= ticket.not_after:
            raise Refused(Refusal.TICKET_EXPIRED, f"the ticket expired {utc - ticket.not_after} s ago"
                          if utc > ticket.not_after else "the ticket is not yet valid")
        if not hmac.compare_digest(ticket.digest(), hello.digest):
            raise Refused(Refusal.PARAMETERS, "the client has the ticket with other contents than ours")
        try:
            shared = agree(secret.key(), hello.share)
        except AuthError as e:
            raise Refused(Refusal.BAD_FLIGHT, str(e)) from None
        return _Terms(EarlySecret(Kind.TICKET, shared), ticket.offer, ticket.forward_secret_only,
                      ticket.wants_client or self._config.mutual, "", ticket.not_after)

    def _psk_terms(self, hello: _Hello, ends: Endpoints, utc: int) -> _Terms:
        try:
            known = resumption.open_untrusted(self._state, hello.credential, utc)
        except AuthError as e:
            raise Refused(Refusal.TICKET_UNKNOWN, str(e)) from None
        if utc > known.not_after:
            raise Refused(Refusal.TICKET_EXPIRED, f"the resumption expired {utc - known.not_after} s ago")
        if known.client_ip != ends.peer_ip:
            raise Refused(Refusal.NOT_ACCEPTED, "the resumption was given to a client at another address")
        if self._config.mutual and not known.client_name:
            raise Refused(Refusal.CERTIFICATE, "the client of the first session showed no certificate")
        return _Terms(EarlySecret(Kind.PSK, known.secret), known.offer, known.forward_secret_only, False,
                      known.client_name, known.not_after, known.since)

    def _client(self, early: EarlySecret, head: bytes, sealed: bytes, ends: Endpoints, utc: int) -> str:
        if not sealed:
            raise Refused(Refusal.CERTIFICATE, "the client shows no certificate, and this server wants one")
        try:
            plain = AESGCM(early.sealing(head)).decrypt(_NONCE, sealed, None)
        except (InvalidTag, ValueError):
            raise Refused(Refusal.BAD_FLIGHT, "the client's certificates do not authenticate") from None
        reader = Reader(plain, "a client's certificates")
        chain = reader.chain()
        end = reader.at
        signature = reader.vector(2)
        reader.end()
        try:
            name = self._config.identity.verify(chain, ends.peer_ip, utc, server=False)
            verify_signature(chain[0], _SIGNING, head + plain[:end], signature)
        except AuthError as e:
            raise Refused(Refusal.CERTIFICATE, str(e)) from None
        return name

    def _answer(self, hello: _Hello, terms: _Terms, transcript: Transcript, whole: bytes, agreement: Agreement,
                peer_name: str, ends: Endpoints, utc: int) -> Accepted:
        early = terms.early.traffic(whole)
        share = b""
        if hello.forward_secret:
            key, share = self._pool.take()
            try:
                master = terms.early.master(agree(key, hello.share))
            except AuthError as e:
                raise Refused(Refusal.BAD_FLIGHT, str(e)) from None
        else:
            master = terms.early.master()
        flags = _FS if hello.forward_secret else 0
        head = _ANSWER.pack(VERSION, flags, secrets.token_bytes(RANDOM_LEN)) + vector(share)
        resume = master.resumption(transcript.add(head))
        given = b""
        if hello.kind is Kind.PSK:
            given = self.grant(resume, ends.peer_ip, peer_name, utc, terms.since)
        mac = master.mac(transcript.add(vector(given)))
        secret = master.traffic(transcript.add(mac)) if hello.forward_secret else early
        session = Established(ends.peer_ip, ends.peer_port, False, _mode(hello.kind, hello.forward_secret), secret,
                              agreement, early if hello.forward_secret else b"", peer_name)
        return Accepted(session, head + vector(given) + mac, resume)

    def grant(self, resume: bytes, client_ip: int, client_name: str, utc: int, since: int | None = None) -> bytes:
        """What the client can resume with, after a session with secret ``resume``; b"": nothing.

        ``since``: when it showed its certificate; None: now. Raises :class:`StateError`.
        """
        if self._kind is not Kind.PSK:
            return b""
        return resumption.grant(self._state, resume, client_ip, client_name, self._config.offer,
                                forward_secret_only=self._forward_secret_only, utc=utc, since=since)


@dataclass(frozen=True, slots=True)
class _Terms:
    """Under what a hello's ticket or PSK lets a client in."""

    early: EarlySecret
    offer: Offer
    forward_secret_only: bool
    #: A certificate is wanted in this hello.
    wants_client: bool
    #: Who the client is, if that is known without.
    client_name: str
    not_after: int
    #: When the client showed its certificate; None: it does now.
    since: int | None = None


def _mode(kind: Kind, forward_secret: bool) -> str:
    return kind.name.lower() + ("-fs" if forward_secret else "")


def _downgraded() -> Refused:
    return Refused(Refusal.PARAMETERS, "this server takes forward-secret sessions only")


def _checked_agreement(hello: _Hello, ours: Offer) -> Agreement:
    offer = Offer.parse_untrusted(hello.offer)
    agreement_untrusted(hello.choice)
    try:
        agreement = choose(offer, ours)
    except PeerError as e:
        raise Refused(Refusal.PARAMETERS, str(e)) from None
    if agreement.pack() != hello.choice:
        raise Refused(Refusal.PARAMETERS, "the parameters in the hello do not follow from both sides' offers")
    return agreement


def _parse_untrusted(data: bytes) -> _Hello:
    if len(data) > MAX_HELLO:
        raise BadPacket("a hello is too long")
    reader = Reader(data, "a hello")
    version, number, flags, _random = _HEAD.unpack(reader.take(_HEAD.size))
    if version != VERSION:
        raise BadPacket(f"a hello of version {version}; this is version {VERSION}")
    try:
        kind = Kind(number)
    except ValueError:
        raise BadPacket(f"unknown kind of hello {number}") from None
    if flags & ~_FS:
        raise BadPacket(f"a hello with unknown flags {flags:#x}")
    share, credential, digest, offer, choice = (reader.vector(2) for _ in range(5))
    head_len = reader.at
    sealed = reader.vector(2)
    binder = reader.take(MAC_LEN)
    reader.end()
    if len(share) != (SHARE_LEN if kind is Kind.TICKET or flags & _FS else 0):
        raise BadPacket(f"a hello with a key share of {len(share)} bytes")
    return _Hello(kind, bool(flags & _FS), share, credential, digest, offer, choice, sealed, binder, head_len)
