"""Sessions that begin with data: whom a server refuses, when and why; and that it keeps out replays."""

from __future__ import annotations

from dataclasses import replace

import pytest

from smtstack.errors import HandshakeError, PeerError
from smtstack.session import tickets
from smtstack.session.flights import Refusal
from smtstack.session.hello import Refused
from smtstack.session.offer import Agreement, Offer
from smtstack.session.state import MemoryState, StateError
from tests.certificates import IP_A, IP_B, UTC, A, Authority, Leaf
from tests.tickets import (
    AT_A,
    AT_B,
    CLIENT,
    PORT_A,
    PORT_B,
    SERVER,
    CarelessTicket,
    begin,
    make_client,
    make_psk,
    make_server,
    make_ticket,
    refusal,
    signed,
)

MODES = ("ticket", "ticket-fs", "psk", "psk-fs")
#: Offsets in a hello.
FLAGS, RANDOM = 2, 3


# -- replays -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_hello_counts_once(mode: str):
    server, state, client = begin(mode)
    assert refusal(server, client.hello) is None
    error = refusal(server, client.hello)
    assert error is not None
    assert (error.code, error.text) == (Refusal.REPLAYED, "this hello was here before")
    # Another worker, with the same state; and one without it, for which all of this is new.
    other, _state = make_server(mode, state)
    error = refusal(other, client.hello)
    assert error is not None
    assert error.code is Refusal.REPLAYED
    forgetful = MemoryState()
    forgetful.__dict__.update({name: value for name, value in vars(state).items() if name != "_hellos"})
    third, _state = make_server(mode, forgetful)
    assert refusal(third, client.hello) is None


def test_a_hello_that_is_refused_fills_no_memory_and_spoils_nothing():
    server, state, client = begin("ticket")
    assert isinstance(state, MemoryState)
    for at in range(0, len(client.hello), 7):
        changed = bytearray(client.hello)
        changed[at] ^= 1
        assert refusal(server, bytes(changed)) is not None
    assert not state._hellos
    assert refusal(server, client.hello) is None
    assert len(state._hellos) == 1


def test_who_sees_a_random_cannot_use_it_up(monkeypatch: pytest.MonkeyPatch):
    server, state = make_server("ticket", client_auth=False)
    ticket = make_ticket(state, client_auth=False)
    victim = make_client(ticket)
    random = victim.hello[RANDOM:RANDOM + 32]
    with monkeypatch.context() as m:
        m.setattr("smtstack.session.hello.secrets.token_bytes", lambda _size: random)
        thief = make_client(ticket)
    assert thief.hello[RANDOM:RANDOM + 32] == random
    # The thief gets a session of its own. What the server remembers is the hello, and the victim's is another.
    assert refusal(server, thief.hello) is None
    assert refusal(server, victim.hello) is None
    for client in (thief, victim):
        error = refusal(server, client.hello)
        assert error is not None
        assert error.code is Refusal.REPLAYED


def test_full_memory_lets_nobody_in():
    state = MemoryState(max_hellos=1)
    server, _state = make_server("ticket", state)
    ticket = make_ticket(state)
    assert refusal(server, make_client(ticket).hello) is None
    error = refusal(server, make_client(ticket).hello)
    assert error is not None
    assert error.code is Refusal.BUSY
    assert "it is full" in error.text


def test_state_that_cannot_be_read_lets_nobody_in(monkeypatch: pytest.MonkeyPatch):
    server, state, client = begin("ticket")

    def fail(*_args: object) -> bool:
        raise StateError("disk is gone")

    with monkeypatch.context() as m:
        m.setattr(state, "remember", fail)
        error = refusal(server, client.hello)
        assert error is not None
        assert error.code is Refusal.BUSY
    assert refusal(server, client.hello) is None


def test_a_hello_is_for_its_ends_alone():
    server, _state, client = begin("ticket")
    for other in (replace(AT_B, peer_port=PORT_A + 1), replace(AT_B, local_port=PORT_B + 1),
                  replace(AT_B, local_ip=IP_B + 1)):
        error = refusal(server, client.hello, other)
        assert error is not None
        assert "changed on its way" in error.text
    assert refusal(server, client.hello) is None


# -- who and when -----------------------------------------------------------------------------------------------


def test_a_ticket_ends():
    server, state = make_server("ticket")
    ticket = make_ticket(state, life_s=100)
    assert refusal(server, make_client(ticket).hello, utc=UTC + 100) is None
    error = refusal(server, make_client(ticket).hello, utc=UTC + 101)
    assert error is not None
    assert (error.code, error.text) == (Refusal.TICKET_EXPIRED, "the ticket expired 1 s ago")
    error = refusal(server, make_client(ticket).hello, utc=UTC - 61)
    assert error is not None
    assert (error.code, error.text) == (Refusal.TICKET_EXPIRED, "the ticket is not yet valid")


def test_a_revoked_ticket_lets_nobody_in():
    server, state = make_server("ticket")
    ticket = make_ticket(state)
    assert refusal(server, make_client(ticket).hello) is None
    assert state.revoke(ticket.ticket_id)
    error = refusal(server, make_client(ticket).hello)
    assert error is not None
    assert (error.code, error.text) == (Refusal.TICKET_REVOKED, "the ticket was revoked")


def test_a_ticket_of_another_server_is_unknown():
    server, _state = make_server("ticket")
    error = refusal(server, make_client(make_ticket(MemoryState())).hello)
    assert error is not None
    assert error.code is Refusal.TICKET_UNKNOWN


def test_a_ticket_changed_before_the_client_saw_it_is_refused():
    """DNS cannot change one, its signature says; a server would notice even so."""
    server, state = make_server("ticket")
    secret = tickets.issue(SERVER, IP_B, PORT_B, Offer(), forward_secret_only=False, client_auth=True, utc=UTC)
    state.add_ticket(secret)
    changed = signed(secret, not_after=UTC + 3000)
    changed.verify(CLIENT, IP_B, PORT_B, UTC)
    error = refusal(server, make_client(changed).hello)
    assert error is not None
    assert error.code is Refusal.PARAMETERS
    assert refusal(server, make_client(secret.ticket).hello) is None


STRANGERS = {
    "another authority": (Authority(name="another"), Leaf(), "unable to get local issuer certificate"),
    "expired": (None, Leaf(after=UTC - 1), "certificate has expired"),
    "another's name": (None, Leaf(dns=["c"], ips=["10.0.0.3"]), r"not for a \(10\.0\.0\.1\)"),
}


@pytest.mark.parametrize("who", STRANGERS)
def test_a_server_that_wants_to_know_its_clients_refuses_strangers(who: str):
    authority, leaf, text = STRANGERS[who]
    ours = Authority()
    server_identity = ours.identity("b", "10.0.0.2")
    server, state = make_server("ticket", identity=server_identity)
    ticket = make_ticket(state, server_identity)
    good = ours.identity("a", A)
    assert refusal(server, make_client(ticket, identity=good).hello) is None
    bad = (authority or ours).identity("a", A, leaf)
    error = refusal(server, make_client(ticket, identity=bad).hello)
    assert error is not None
    assert error.code is Refusal.CERTIFICATE
    with pytest.raises(Refused, match=text):
        raise error


def test_a_client_must_show_a_certificate_where_the_server_wants_one():
    # The server changed its mind after the ticket was made.
    server, state = make_server("ticket", client_auth=True)
    error = refusal(server, make_client(make_ticket(state, client_auth=False)).hello)
    assert error is not None
    assert (error.code, error.text) == (Refusal.CERTIFICATE,
                                        "the client shows no certificate, and this server wants one")


def test_another_clients_certificate_and_signature_do_not_help():
    """A client that may come cannot lend its name: the signature is over the hello it was made for."""
    ours = Authority()
    b, a = ours.identity("b", "10.0.0.2"), ours.identity("a", A)
    server, state = make_server("ticket", identity=b)
    ticket = make_ticket(state, b)
    thief = Authority(name="another").identity("a", A)

    class Parrot(type(thief)):  # type: ignore[misc]
        """Shows a's certificate; signs as well as it can."""

        def sign(self, context: bytes, data: bytes) -> bytes:
            return thief.sign(context, data)

    parrot = object.__new__(Parrot)
    parrot.__dict__.update(vars(a))
    error = refusal(server, make_client(ticket, identity=parrot).hello)
    assert error is not None
    assert error.code is Refusal.CERTIFICATE
    assert "signature" in error.text
    assert refusal(server, make_client(ticket, identity=a).hello) is None


def test_a_certificate_is_not_seen_on_the_wire():
    server, state = make_server("ticket")
    ticket = make_ticket(state)
    client = make_client(ticket)
    assert CLIENT.chain[0][100:140] not in client.hello
    # It is there, for the server; and a ticket, which is public, shows its own.
    accepted = server.hello_untrusted(client.hello, AT_B, UTC)
    assert accepted.session.peer_name == "a"
    assert SERVER.chain[0][100:140] in ticket.pack()


# -- what is accepted -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["tls", "mtls", "psk", "psk-fs"])
def test_a_server_without_tickets_takes_none(mode: str):
    server, state = make_server(mode)
    error = refusal(server, make_client(make_ticket(state)).hello)
    assert error is not None
    assert error.code is Refusal.NOT_ACCEPTED
    assert f"--session {mode}" in error.text


@pytest.mark.parametrize("mode", ["tls", "mtls", "ticket", "ticket-fs"])
def test_a_server_without_resumption_takes_none(mode: str):
    giver, state = make_server("psk")
    server, _state = make_server(mode, state)
    assert server.grant(b"r" * 32, IP_A, "a", UTC) == b""
    error = refusal(server, make_client(make_psk(giver), "psk").hello)
    assert error is not None
    assert error.code is Refusal.NOT_ACCEPTED


@pytest.mark.parametrize("kind", ["ticket", "psk"])
def test_forward_secrecy_cannot_be_left_out(kind: str):
    """Neither by a client nor by somebody between, where server, ticket or PSK demand it."""
    strict, state = make_server(f"{kind}-fs")
    lax, _state = make_server(kind, state)
    strict_credential = make_ticket(state, fs_only=True) if kind == "ticket" else make_psk(strict)
    lax_credential = make_ticket(state) if kind == "ticket" else make_psk(lax)
    with pytest.raises(HandshakeError, match="forward-secret"):
        make_client(strict_credential, kind)
    # A client that does not care what its ticket says.
    careless = (CarelessTicket.of(strict_credential) if isinstance(strict_credential, tickets.Ticket)
                else replace(strict_credential, forward_secret_only=False))
    for server, credential in ((strict, lax_credential), (lax, careless), (strict, careless)):
        error = refusal(server, make_client(credential, kind).hello)
        assert error is not None
        assert (error.code, error.text) == (Refusal.PARAMETERS, "this server takes forward-secret sessions only")
    # Somebody between clears the flag.
    hello = bytearray(make_client(lax_credential, f"{kind}-fs").hello)
    hello[FLAGS] = 0
    assert refusal(lax, bytes(hello)) is not None
    for server in (strict, lax):
        assert refusal(server, make_client(lax_credential, f"{kind}-fs").hello) is None


def test_parameters_are_agreed_on():
    server, state = make_server("ticket")
    ticket = make_ticket(state, offer=Offer(("AES-256-GCM", "AES-128-GCM"), 20, 50_000, "power-of-two"))
    client = make_client(ticket, offer=Offer(("CHACHA20-POLY1305", "AES-128-GCM"), 16, 90_000))
    accepted = server.hello_untrusted(client.hello, AT_B, UTC)
    client.answer_untrusted(accepted.answer)
    agreed = client.established().agreement
    assert agreed == accepted.session.agreement
    assert (agreed.cipher, agreed.index_bits, agreed.max_message, agreed.padding) == (
        "AES-128-GCM", 20, 50_000, "power-of-two")


def test_parameters_that_do_not_follow_are_refused(monkeypatch: pytest.MonkeyPatch):
    server, state = make_server("ticket")
    ticket = make_ticket(state, offer=Offer(padding="power-of-two"))
    with monkeypatch.context() as m:
        # A client that makes up its own mind.
        m.setattr("smtstack.session.hello.choose", lambda _offer, _own: Agreement(padding="none"))
        client = make_client(ticket)
    error = refusal(server, client.hello)
    assert error is not None
    assert error.code is Refusal.PARAMETERS
    assert refusal(server, make_client(ticket).hello) is None
    with pytest.raises(PeerError, match="no common cipher"):
        make_client(make_ticket(state, offer=Offer(("AES-256-GCM",))), offer=Offer(("AES-128-GCM",)))


# -- resumption -------------------------------------------------------------------------------------------------


def test_a_psk_leads_to_the_next():
    server, _state = make_server("psk-fs")
    psk = make_psk(server)
    secrets = set()
    for _ in range(3):
        client = make_client(psk, "psk-fs")
        accepted = server.hello_untrusted(client.hello, AT_B, UTC)
        client.answer_untrusted(accepted.answer)
        assert accepted.session.peer_name == "a"
        assert client.psk is not None
        assert client.psk.secret == client.resumption
        assert client.psk.peer_name == "b"
        psk = client.psk
        secrets.add(psk.secret)
    assert len(secrets) == 3


def test_a_psk_is_for_its_client_and_its_time():
    server, state = make_server("psk")
    psk = make_psk(server)
    moved = make_client(psk, "psk", ends=replace(AT_A, local_ip=IP_A + 5))
    error = refusal(server, moved.hello, replace(AT_B, peer_ip=IP_A + 5))
    assert error is not None
    assert (error.code, error.text) == (Refusal.NOT_ACCEPTED,
                                        "the resumption was given to a client at another address")
    error = refusal(server, make_client(psk, "psk").hello, utc=UTC + 3601)
    assert error is not None
    assert (error.code, error.text) == (Refusal.TICKET_EXPIRED, "the resumption expired 1 s ago")
    assert refusal(server, make_client(psk, "psk").hello, utc=UTC + 3600) is None
    # Its client was nobody, and now names are wanted.
    nobody = make_psk(server, client_name="")
    error = refusal(server, make_client(nobody, "psk").hello)
    assert error is not None
    assert error.code is Refusal.CERTIFICATE
    open_server, _state = make_server("psk", state, client_auth=False)
    assert refusal(open_server, make_client(nobody, "psk").hello) is None


def test_who_has_the_blob_but_not_the_key_cannot_resume():
    server, _state = make_server("psk")
    psk = make_psk(server)
    error = refusal(server, make_client(replace(psk, secret=b"x" * 32), "psk").hello)
    assert error is not None
    assert "was not made with what it names" in error.text
    assert refusal(server, make_client(psk, "psk").hello) is None
