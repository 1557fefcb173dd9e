"""Tickets in DNS: servers publish them by signed updates, clients look them up.

The ticket of host ``h2``, port 2000, is the TXT record at ``_2000._smt.h2.smtnet.test``: base64, in strings of up
to 255 characters. DNS is trusted with nothing but being there, as a ticket bears its own signature.

Calls that go to DNS block, for three seconds at most: loops leave them to threads. ``dns_exchange`` is imported
when it is needed: it takes a tenth of a second, and needs dnspython (:class:`Unsupported`).
"""

from __future__ import annotations

import contextlib
import threading
import time

from smtstack.errors import ConfigError, HandshakeError, PeerError, SmtError
from smtstack.session.identity import Identity
from smtstack.session.offer import Offer
from smtstack.session.state import ServerState, StateError
from smtstack.session.tickets import MAX_LIFE_S, Ticket, TicketSchedule, TicketSecret, issue
from smtstack.session_io.tsig_file import ZONE, DnsAddress, TsigKey
from smtstack.wire.ipv4 import format_address

#: With less than this left, in seconds, a client does not use a ticket: the hello has a way to go.
MARGIN_S = 5
_MAX_CACHED = 4096
#: Seconds for which a DNS server that did not answer is not asked again: requests to many hosts must not wait
#: for it one after the other.
_SILENCE_S = 1.0


class DnsTickets:
    """Tickets for a client: looked up, verified, and kept for as long as they may be.

    :meth:`ticket` waits for DNS: it is for who has time beforehand. A loop looks up by
    :class:`~smtstack.session_io.ticket_lookups.TicketLookups`.
    """

    def __init__(self, identity: Identity, server: DnsAddress, *, zone: str = ZONE) -> None:
        from smtstack.session_io import dns_exchange

        self._exchange = dns_exchange
        self._identity = identity
        self._server = server
        self._zone = zone
        #: Verified, with the second until which it may be used.
        self._kept: dict[tuple[int, int], tuple[Ticket, int]] = {}
        #: The server did not answer, and is not asked before this (monotonic).
        self._silent_until = 0.0
        self._silence = ""
        #: Tickets asked of DNS.
        self.lookups = 0

    def ticket(self, ip: int, port: int, utc: int) -> Ticket:
        """A verified ticket of that server; waits for DNS where we have none. Raises :class:`PeerError`."""
        known = self.known(ip, port, utc)
        if known is not None:
            return known
        self.lookups += 1
        return self.keep(ip, port, *self.ask(ip, port), utc)

    def known(self, ip: int, port: int, utc: int) -> Ticket | None:
        """The ticket that we have of that server; None: ask for it. Raises where DNS is not to be asked now."""
        kept = self._kept.get((ip, port))
        if kept is not None and utc < kept[1] and utc >= kept[0].not_before - MARGIN_S:
            return kept[0]
        self._kept.pop((ip, port), None)
        self._check_silence()
        return None

    def _check_silence(self) -> None:
        if time.monotonic() < self._silent_until:
            raise PeerError(self._silence)

    def ask(self, ip: int, port: int) -> tuple[Ticket, int]:
        """What DNS says: not verified, and for how many seconds. Waits; any thread may call it."""
        self._check_silence()
        text = format_address(ip)
        try:
            return self._exchange.lookup(self._identity.names.get(text, text), port, self._server, self._zone)
        except self._exchange.NoDns as e:
            self._silence, self._silent_until = str(e), time.monotonic() + _SILENCE_S
            raise

    def keep(self, ip: int, port: int, ticket: Ticket, ttl: int, utc: int) -> Ticket:
        """Verify and keep what DNS said."""
        ticket.verify(self._identity, ip, port, utc)
        if len(self._kept) >= _MAX_CACHED:
            del self._kept[next(iter(self._kept))]
        self._kept[ip, port] = ticket, min(utc + ttl, ticket.not_after - MARGIN_S)
        return ticket

    def forget(self, ip: int, port: int) -> None:
        """The server did not take the ticket we had: ask again the next time."""
        self._kept.pop((ip, port), None)


class TicketPublisher:
    """Makes a server's tickets and publishes each for half its life; its key is kept to the end of it.

    :meth:`publish` waits for DNS, as a server may that starts. From then on whoever runs the server calls
    :meth:`tend` now and then, which never waits.
    """

    def __init__(self, identity: Identity, state: ServerState, ip: int, port: int, offer: Offer, *,
                 forward_secret_only: bool, client_auth: bool, server: DnsAddress, key: TsigKey, zone: str = ZONE,
                 life_s: int = MAX_LIFE_S) -> None:
        from smtstack.session_io import dns_exchange

        self._exchange = dns_exchange
        self._identity = identity
        self._state = state
        self._ip = ip
        self._port = port
        self._offer = offer
        self._forward_secret_only = forward_secret_only
        self._client_auth = client_auth
        self._server = server
        self._key = key
        self._zone = zone
        self._schedule = TicketSchedule(life_s)
        self._looked = 0
        #: Made, and not in DNS yet.
        self._pending: TicketSecret | None = None
        #: The one clients get now.
        self.current: Ticket | None = None
        #: Why the last one could not be published; "": it was.
        self.failure = ""
        #: Publishes; its error, if any, is in ``_errors`` when it is over.
        self._thread: threading.Thread | None = None
        self._errors: list[SmtError] = []

    @property
    def next_due(self) -> int:
        """Unix seconds of the next :meth:`publish`; 0: now. A ticket that is revoked makes it now."""
        return self._schedule.next_due

    def due(self, utc: int) -> bool:
        """Whether to publish. Looks once a second whether somebody revoked the ticket."""
        if utc != self._looked and self.current is not None:
            self._looked = utc
            # State that cannot be read now will say so at the next hello.
            with contextlib.suppress(StateError):
                known = self._state.ticket(self.current.ticket_id)
                if known is None or known.revoked:
                    self.current = None
                    self._schedule.revoked()
        return self._schedule.due(utc)

    def publish(self, utc: int) -> Ticket:
        """A new ticket, in our state and then in DNS.

        Raises :class:`PeerError` where DNS does not take it, and it is due again soon; :class:`ConfigError` where
        our certificate makes a ticket that clients refuse; and :class:`StateError`.
        """
        ticket = self._prepare(utc)
        try:
            self._send(ticket)
        except PeerError as e:
            self._failed(str(e), utc)
            raise
        self._published(ticket, utc)
        return ticket

    def tend(self, utc: int) -> None:
        """Begin to publish what is due, or see what came of it: :attr:`failure`. Raises nothing."""
        thread = self._thread
        if thread is not None:
            if thread.is_alive():
                return
            self._thread = None
            assert self._pending is not None
            if self._errors:
                self._failed(str(self._errors[0]), utc)
            else:
                self._published(self._pending.ticket, utc)
        elif self.due(utc):
            try:
                ticket = self._prepare(utc)
            except (StateError, ConfigError) as e:
                self._failed(str(e), utc)
                return
            # Until it says otherwise: what ends without a word has published nothing.
            self._errors = [PeerError("the update broke off")]
            # DNS alone is left to the thread; the state is for one thread.
            self._thread = threading.Thread(target=self._try_to_send, args=(ticket,), daemon=True,
                                            name="smtnet ticket publisher")
            self._thread.start()

    def _prepare(self, utc: int) -> Ticket:
        secret = self._pending
        if secret is None or utc >= secret.ticket.not_before + self._schedule.life_s // 4:
            secret = issue(self._identity, self._ip, self._port, self._offer,
                           forward_secret_only=self._forward_secret_only, client_auth=self._client_auth, utc=utc,
                           life_s=self._schedule.life_s)
            try:
                secret.ticket.verify(self._identity, self._ip, self._port, utc)
            except HandshakeError as e:
                # Its clients would see it, and the server hear of none of them.
                why = str(e).replace("the peer's certificate", "our certificate")
                raise ConfigError(f"no client would take our ticket: {why}") from None
            # The state first: a client may come as soon as DNS has the ticket.
            self._state.purge(utc)
            self._state.add_ticket(secret)
            self._pending = secret
        return secret.ticket

    def _send(self, ticket: Ticket) -> None:
        self._exchange.publish(ticket, self._server, self._key, self._zone)

    def _try_to_send(self, ticket: Ticket) -> None:
        try:
            self._send(ticket)
            self._errors.clear()
        except SmtError as e:
            self._errors[:] = [e]

    def _published(self, ticket: Ticket, utc: int) -> None:
        self._schedule.published(utc)
        self._pending = None
        self.current = ticket
        self.failure = ""

    def _failed(self, why: str, utc: int) -> None:
        self._schedule.failed(utc)
        self.failure = f"the ticket could not be published: {why}"

    def withdraw(self) -> None:
        """No new client is to come. Raises :class:`PeerError`."""
        text = format_address(self._ip)
        self._exchange.withdraw(self._identity.names.get(text, text), self._port, self._server, self._key,
                                self._zone)
