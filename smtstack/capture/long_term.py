"""What a server's long-term keys open in a capture: first flights of 0-RTT sessions, and what stays under them.

For who holds a server's state (tickets' private halves, the key of its resumption blobs) and a recording. A
session that moved to a forward-secret key shows no more than what the client sent before the answer; that is what
forward secrecy means, and the tests show it with this. Handshakes of TLS 1.3 open to no key that is kept at all.
"""

from __future__ import annotations

import hmac

from smtstack.capture.flows import Flow
from smtstack.capture.keylog import LoggedSecret, SeenKeys
from smtstack.crypto.epochs import SessionParams
from smtstack.crypto.keys import Endpoints
from smtstack.crypto.padding import padding_named
from smtstack.errors import AuthError, BadPacket
from smtstack.session import resumption
from smtstack.session.early_keys import MAC_LEN, EarlySecret, Kind, Transcript
from smtstack.session.flights import Flight
from smtstack.session.flights import Kind as FlightKind
from smtstack.session.offer import agreement_untrusted, cipher_of
from smtstack.session.pool import agree
from smtstack.session.reader import Reader, vector
from smtstack.session.state import MemoryState, SealingKey, ServerState

#: Version, kind, flags and the client's random, before the fields of a hello (``session/hello.py``).
_HEAD_LEN = 35
_FORWARD_SECRET = 1
#: Here it does not matter that a key opens no longer.
_ANY_TIME = 0


class KeptState(MemoryState):
    """A server's state as it was kept: no key is too old to look with."""

    def __init__(self) -> None:
        super().__init__()
        #: By number.
        self.keys: dict[int, SealingKey] = {}

    def opening_key(self, number: int, utc: int) -> SealingKey | None:
        """The key of that number, however old."""
        return self.keys.get(number)


class LongTermKeys:
    """Collects what the hellos of a capture lead to; give :meth:`flight` to a ``Decrypter``."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        #: The secrets found.
        self.found = SeenKeys()
        #: 0-RTT hellos, and how many of them the keys opened.
        self.hellos = 0
        self.opened = 0

    def flight(self, flow: Flow, flight: Flight) -> None:
        """A flight that ``flow``'s sender sent."""
        if flight.kind is not FlightKind.EARLY_HELLO:
            return
        self.hellos += 1
        try:
            self.found.add(self._secret_untrusted(flow, flight.fields[0]))
        except (BadPacket, AuthError):
            return
        self.opened += 1

    def _secret_untrusted(self, flow: Flow, hello: bytes) -> LoggedSecret:
        """Raises :class:`BadPacket`, and :class:`AuthError` for a hello that was not for this server's keys."""
        reader = Reader(hello, "a hello")
        head = reader.take(_HEAD_LEN)
        share, credential, _digest, _offer, choice = (reader.vector(2) for _ in range(5))
        head_len = reader.at
        sealed = reader.vector(2)
        binder = reader.take(MAC_LEN)
        reader.end()
        if head[1] == Kind.TICKET:
            ticket = self._state.ticket(credential)
            if ticket is None:
                raise AuthError("a ticket of another server")
            early = EarlySecret(Kind.TICKET, agree(ticket.key(), share))
        else:
            early = EarlySecret(Kind.PSK, resumption.open_untrusted(self._state, credential, _ANY_TIME).secret)
        transcript = Transcript(Endpoints(flow.src, flow.sport, flow.dst, flow.dport), is_client=True)
        transcript.add(hello[:head_len])
        if not hmac.compare_digest(early.binder(transcript.add(vector(sealed))), binder):
            raise AuthError("the hello was not made with what it names")
        agreed = agreement_untrusted(choice)
        params = SessionParams(cipher=cipher_of(agreed), index_bits=agreed.index_bits,
                               padding=padding_named(agreed.padding))
        return LoggedSecret((flow.src, flow.sport), (flow.dst, flow.dport), 0, params,
                            early.traffic(transcript.add(binder)), early=bool(head[2] & _FORWARD_SECRET))
