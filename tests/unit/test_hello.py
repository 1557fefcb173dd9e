"""Sessions that begin with data: what both ends derive, and what any other bytes lead to."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtstack.crypto.keys import Endpoints
from smtstack.errors import AuthError, BadPacket
from smtstack.session import tickets
from smtstack.session.established import Established
from smtstack.session.flights import Refusal
from smtstack.session.hello import Accepted, EarlyClient
from smtstack.session.offer import Offer
from smtstack.session.pool import KeyPool, agree
from smtstack.session.state import MemoryState
from tests.certificates import IP_A, IP_B, UTC
from tests.tickets import (
    AT_B,
    PORT_A,
    PORT_B,
    SERVER,
    begin,
    make_client,
    make_psk,
    make_server,
    make_ticket,
    refusal,
)

MODES = ("ticket", "ticket-fs", "psk", "psk-fs")
#: Offset of the share in a hello.
SHARE = 3 + 32 + 2


def meet(mode: str, *, client_auth: bool = True) -> tuple[Established, Established, EarlyClient, Accepted]:
    """A session from both sides."""
    server, _state, client = begin(mode, client_auth=client_auth)
    accepted = server.hello_untrusted(client.hello, AT_B, UTC)
    client.answer_untrusted(accepted.answer)
    return client.established(), accepted.session, client, accepted


@pytest.mark.parametrize("client_auth", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_both_ends_have_the_same_session(mode: str, client_auth: bool):
    ours, theirs, client, accepted = meet(mode, client_auth=client_auth)
    assert (ours.mode, theirs.mode) == (mode, mode)
    assert (ours.secret, ours.early, ours.agreement) == (theirs.secret, theirs.early, theirs.agreement)
    assert len(ours.secret) == 32
    assert len(ours.early) == (32 if mode.endswith("-fs") else 0)
    assert ours.secret != ours.early
    assert client.resumption == accepted.resumption
    assert client.resumption not in (b"", ours.secret, ours.early)
    assert (ours.peer_name, theirs.peer_name) == ("b", "a" if client_auth else "")
    assert (ours.ip, ours.port, ours.is_client) == (IP_B, PORT_B, True)
    assert (theirs.ip, theirs.port, theirs.is_client) == (IP_A, PORT_A, False)


@pytest.mark.parametrize("mode", MODES)
def test_data_can_be_sealed_before_the_answer(mode: str):
    server, _state, client = begin(mode)
    before = client.established()
    accepted = server.hello_untrusted(client.hello, AT_B, UTC)
    if mode.endswith("-fs"):
        assert (before.secret, before.early) == (b"", accepted.session.early)
    else:
        assert (before.secret, before.early) == (accepted.session.secret, b"")
    assert client.resumption == b""


@pytest.mark.parametrize("mode", MODES)
def test_sessions_with_one_credential_share_nothing(mode: str):
    server, state = make_server(mode)
    credential = make_ticket(state) if mode.startswith("ticket") else make_psk(server)
    secrets = set()
    for _ in range(3):
        client = make_client(credential, mode)
        session = server.hello_untrusted(client.hello, AT_B, UTC).session
        secrets |= {session.secret, session.early}
    assert len(secrets - {b""}) == 3 * (2 if mode.endswith("-fs") else 1)


# -- the key schedule, once more from its description (early_keys.py) ------------------------------------------


def expand(secret: bytes, label: str, context: bytes, length: int = 32) -> bytes:
    """HKDF-Expand-Label for up to 32 bytes: a single block of RFC 5869 §2.3."""
    name = b"tls13 " + label.encode()
    info = length.to_bytes(2, "big") + bytes((len(name),)) + name + bytes((len(context),)) + context
    return hmac.digest(secret, info + b"\x01", "sha256")[:length]


def transcript(*said: bytes) -> bytes:
    client = bytes((10, 0, 0, 1)) + (40_000).to_bytes(2, "big")
    server = bytes((10, 0, 0, 2)) + (2000).to_bytes(2, "big")
    return hashlib.sha256(b"smtnet early 1" + client + server + b"".join(said)).digest()


@pytest.mark.parametrize("mode", MODES)
def test_key_schedule_is_the_described_one(mode: str):
    server, state = make_server(mode)
    credential = make_ticket(state) if mode.startswith("ticket") else make_psk(server, secret=b"p" * 32)
    client = make_client(credential, mode)
    key = client._key
    accepted = server.hello_untrusted(client.hello, AT_B, UTC)
    client.answer_untrusted(accepted.answer)
    hello, answer = client.hello, accepted.answer
    if mode.startswith("ticket"):
        label = "smt ticket binder"
        assert isinstance(credential, tickets.Ticket)
        assert key is not None
        shared = agree(key, credential.share)
    else:
        label, shared = "smt psk binder", b"p" * 32
    early = hmac.digest(bytes(32), shared, "sha256")
    assert hello[-32:] == hmac.digest(expand(early, label, b""), transcript(hello[:-32]), "sha256")
    zero_rtt = expand(early, "smt early traffic", transcript(hello))
    share_len = int.from_bytes(answer[34:36], "big")
    head = answer[:36 + share_len]
    master = early
    if mode.endswith("-fs"):
        assert key is not None
        derived = expand(early, "derived", hashlib.sha256(b"").digest())
        master = hmac.digest(derived, agree(key, head[36:]), "sha256")
    mac_key = expand(master, "smt answer", b"")
    assert answer[-32:] == hmac.digest(mac_key, transcript(hello, answer[:-32]), "sha256")
    assert client.resumption == expand(master, "smt resumption", transcript(hello, head))
    if mode.endswith("-fs"):
        assert client.established().early == zero_rtt
        assert client.established().secret == expand(master, "smt traffic", transcript(hello, answer))
    else:
        assert share_len == 0
        assert client.established().secret == zero_rtt


def test_forward_secrecy():
    """With the ticket's private half and all that was sent, a noFS session's secret is found, an FS one's not."""
    for mode, found in (("ticket", True), ("ticket-fs", False)):
        server, state = make_server(mode)
        ticket = make_ticket(state)
        client = make_client(ticket, mode)
        accepted = server.hello_untrusted(client.hello, AT_B, UTC)
        hello, answer = client.hello, accepted.answer
        long_term = state.ticket(ticket.ticket_id)
        assert long_term is not None
        # What the thief has: the server's key, the hello, the answer.
        client_share = hello[SHARE:SHARE + 32]
        early = hmac.digest(bytes(32), agree(long_term.key(), client_share), "sha256")
        zero_rtt = expand(early, "smt early traffic", transcript(hello))
        session = accepted.session
        # 0-RTT data is never forward-secret.
        assert zero_rtt == (session.secret if found else session.early)
        if found:
            continue
        server_share = answer[36:36 + 32]
        known = [early, zero_rtt, b"", bytes(32), agree(long_term.key(), server_share)]
        derived = expand(early, "derived", hashlib.sha256(b"").digest())
        tried = {expand(master, "smt traffic", transcript(hello, answer))
                 for shared in known for master in (shared, hmac.digest(derived, shared, "sha256"))}
        assert session.secret not in tried
        # The same way with the one thing the thief lacks.
        assert client._key is not None
        missing = hmac.digest(derived, agree(client._key, server_share), "sha256")
        assert session.secret == expand(missing, "smt traffic", transcript(hello, answer))


# -- bytes from anywhere ----------------------------------------------------------------------------------------

SERVERS = {mode: begin(mode) for mode in MODES}


@given(st.sampled_from(MODES), st.data())
def test_a_changed_hello_is_refused(mode: str, data: st.DataObject):
    server, state, client = SERVERS[mode]
    at = data.draw(st.integers(0, len(client.hello) - 1))
    changed = bytearray(client.hello)
    changed[at] ^= data.draw(st.integers(1, 255))
    assert refusal(server, bytes(changed)) is not None
    assert isinstance(state, MemoryState)
    assert not state._hellos


@given(st.sampled_from(MODES), st.data())
def test_a_cut_hello_is_refused(mode: str, data: st.DataObject):
    server, _state, client = SERVERS[mode]
    hello = client.hello
    cut = data.draw(st.integers(0, len(hello) - 1))
    for wrong in (hello[:cut], hello + data.draw(st.binary(min_size=1, max_size=40))):
        error = refusal(server, wrong)
        assert error is not None
        assert error.code is Refusal.BAD_FLIGHT


@given(st.sampled_from(MODES), st.binary(max_size=400))
def test_any_bytes_are_refused(mode: str, data: bytes):
    assert refusal(SERVERS[mode][0], data) is not None


def _answered(mode: str) -> tuple[EarlyClient, bytes]:
    server, _state, client = begin(mode)
    return client, server.hello_untrusted(client.hello, AT_B, UTC).answer


ANSWERED = {mode: _answered(mode) for mode in MODES}


@given(st.sampled_from(MODES), st.data())
def test_a_changed_answer_is_refused_and_the_true_one_still_counts(mode: str, data: st.DataObject):
    client, answer = ANSWERED[mode]
    before = client.established()
    at = data.draw(st.integers(0, len(answer) - 1))
    changed = bytearray(answer)
    changed[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(answer) - 1))
    for wrong in (bytes(changed), answer[:cut], data.draw(st.binary(max_size=200))):
        with pytest.raises((BadPacket, AuthError)):
            client.answer_untrusted(wrong)
    assert client.established() == before
    assert client.resumption == b""


@pytest.mark.parametrize("mode", MODES)
def test_the_true_answer_counts_after_forged_ones(mode: str):
    server, _state, client = begin(mode)
    accepted = server.hello_untrusted(client.hello, AT_B, UTC)
    for at in range(len(accepted.answer)):
        changed = bytearray(accepted.answer)
        changed[at] ^= 0x80
        with pytest.raises((BadPacket, AuthError)):
            client.answer_untrusted(bytes(changed))
    client.answer_untrusted(accepted.answer)
    assert client.established().secret == accepted.session.secret


@pytest.mark.parametrize("share", [bytes(32), b"\x01" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"])
def test_shares_that_make_no_secret_are_refused(share: bytes):
    """Points of low order: zero, one, and -1 mod p (RFC 7748 §6.1)."""
    server, _state, client = begin("ticket-fs")
    hello = client.hello[:SHARE] + share + client.hello[SHARE + 32:]
    error = refusal(server, hello)
    assert error is not None
    assert error.text == "a key share of low order: it makes no secret"
    accepted = server.hello_untrusted(client.hello, AT_B, UTC)
    with pytest.raises(AuthError, match="low order"):
        client.answer_untrusted(accepted.answer[:36] + share + accepted.answer[68:])


def test_the_answer_of_another_session_is_refused():
    server, state = make_server("ticket")
    ticket = make_ticket(state)
    one, two = make_client(ticket), make_client(ticket)
    server.hello_untrusted(one.hello, AT_B, UTC)
    answer = server.hello_untrusted(two.hello, AT_B, UTC).answer
    with pytest.raises(AuthError, match="not by its server"):
        one.answer_untrusted(answer)
    two.answer_untrusted(answer)


def test_keys_are_in_no_repr():
    server, state = make_server("psk-fs")
    psk = make_psk(server, secret=b"Q" * 32)
    client = make_client(psk, "psk-fs")
    accepted = server.hello_untrusted(client.hello, AT_B, UTC)
    secret = tickets.issue(SERVER, IP_B, PORT_B, Offer(), forward_secret_only=False, client_auth=True, utc=UTC)
    for thing in (psk, client, server, state, secret, state.sealing_key(UTC), KeyPool()):
        assert repr(b"Q" * 32)[2:-1] not in repr(thing)
        assert repr(secret.private)[2:-1] not in repr(thing)
    for kept in (accepted.resumption, accepted.session.secret, accepted.session.early):
        assert repr(kept)[2:-1] not in repr(accepted)


def test_key_pool():
    pool = KeyPool(3)
    _key, share = pool.take()
    assert (pool.made_now, pool.made_ahead) == (1, 0)
    assert [pool.refill(2), pool.refill(2), pool.refill(2)] == [2, 1, 0]
    shares = {share, *(pool.take()[1] for _ in range(4))}
    assert len(shares) == 5
    assert (pool.made_now, pool.made_ahead, len(pool)) == (2, 3, 0)


def test_ends_are_part_of_the_secret():
    server, _state = make_server("psk")
    psk = make_psk(server)
    one = server.hello_untrusted(make_client(psk, "psk").hello, AT_B, UTC).session
    ends = Endpoints(IP_A, PORT_A + 1, IP_B, PORT_B)
    hello = make_client(psk, "psk", ends=ends).hello
    other = server.hello_untrusted(hello, replace(AT_B, peer_port=PORT_A + 1), UTC)
    assert one.secret != other.session.secret
