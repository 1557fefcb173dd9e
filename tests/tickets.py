"""A client and a server that know each other, for tests of sessions that begin with data. No network."""

from __future__ import annotations

from dataclasses import fields, replace

from smtstack.crypto.keys import Endpoints
from smtstack.session import resumption, tickets
from smtstack.session.config import SessionConfig
from smtstack.session.hello import Accepted, EarlyClient, EarlyServer, Refused
from smtstack.session.identity import Identity
from smtstack.session.offer import Offer
from smtstack.session.pool import KeyPool
from smtstack.session.resumption import Psk
from smtstack.session.state import MemoryState, ServerState
from smtstack.session.tickets import Ticket, TicketSecret
from tests.certificates import IP_A, IP_B, UTC, pair

PORT_A, PORT_B = 40_000, 2000
#: The session's ends, from client a's side and from server b's.
AT_A = Endpoints(IP_A, PORT_A, IP_B, PORT_B)
AT_B = Endpoints(IP_B, PORT_B, IP_A, PORT_A)
CLIENT, SERVER = pair()


def make_server(mode: str = "ticket", state: ServerState | None = None, *, identity: Identity = SERVER,
                client_auth: bool = True, offer: Offer | None = None) -> tuple[EarlyServer, ServerState]:
    """A server that accepts sessions of this mode, and its state."""
    state = state if state is not None else MemoryState()
    config = SessionConfig(identity, mode, offer or Offer(), client_auth)
    return EarlyServer(config, state, KeyPool()), state


def make_ticket(state: ServerState, identity: Identity = SERVER, *, fs_only: bool = False,
                client_auth: bool = True, offer: Offer | None = None, life_s: int = 3600) -> Ticket:
    """A ticket that the server accepts."""
    secret = tickets.issue(identity, IP_B, PORT_B, offer or Offer(), forward_secret_only=fs_only,
                           client_auth=client_auth, utc=UTC, life_s=life_s)
    state.add_ticket(secret)
    return secret.ticket


class CarelessTicket(Ticket):
    """A ticket in the hands of a client that does not look at its flags."""

    @property
    def forward_secret_only(self) -> bool:
        """Never mind."""
        return False

    @classmethod
    def of(cls, ticket: Ticket) -> CarelessTicket:
        """The same ticket."""
        return cls(*(getattr(ticket, f.name) for f in fields(Ticket)))


def signed(secret: TicketSecret, identity: Identity = SERVER, **changes: object) -> Ticket:
    """The ticket with other contents, under a signature that fits."""
    ticket = replace(secret.ticket, **changes, signature=b"")  # type: ignore[arg-type]
    return replace(ticket, signature=identity.sign(b"smtnet ticket 1", ticket.signed_part()))


def make_client(credential: Ticket | Psk, mode: str = "ticket", *, identity: Identity = CLIENT,
                offer: Offer | None = None, ends: Endpoints = AT_A) -> EarlyClient:
    """A client about to begin a session of this mode."""
    return EarlyClient(identity, credential, offer or Offer(), ends, forward_secret=mode.endswith("-fs"),
                       pool=KeyPool())


def make_psk(server: EarlyServer, *, client_name: str = "a", utc: int = UTC, secret: bytes = b"r" * 32) -> Psk:
    """What a client got with an earlier session."""
    return resumption.psk_untrusted(server.grant(secret, IP_A, client_name, utc), secret, "b")


def begin(mode: str, *, client_auth: bool = True, state: ServerState | None = None
          ) -> tuple[EarlyServer, ServerState, EarlyClient]:
    """A server, its state, and a client that holds what this mode needs."""
    server, state = make_server(mode, state, client_auth=client_auth)
    if mode.startswith("ticket"):
        return server, state, make_client(make_ticket(state, client_auth=client_auth), mode)
    return server, state, make_client(make_psk(server, client_name="a" if client_auth else ""), mode)


def refusal(server: EarlyServer, hello: bytes, ends: Endpoints = AT_B, utc: int = UTC) -> Refused | None:
    """Why the server refuses; None: it accepts."""
    try:
        accepted = server.hello_untrusted(hello, ends, utc)
    except Refused as e:
        return e
    assert isinstance(accepted, Accepted)
    return None
