"""TLS 1.3 handshakes over memory: secrets, who is believed, flights cut or changed on the way, what is left."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from smtstack.errors import HandshakeError
from smtstack.session import tls
from smtstack.session.keylog import Keylog
from smtstack.session.offer import Agreement, Offer, binding
from smtstack.session.tls import TlsClient, TlsServer
from tests.certificates import HOUR, IP_A, IP_B, UTC, A, Authority, B, Leaf, pair

OFFER = Offer(("AES-256-GCM", "AES-128-GCM"), padding="power-of-two")
CHOICE = Agreement("AES-256-GCM", padding="power-of-two")
ROOT = Authority()
CLIENT, SERVER = ROOT.identity("a", A), ROOT.identity("b", B)
#: Bytes that one packet of the transport carries at an MTU of 1500.
ONE_PACKET = 1440
SIDES = ("server", "client")


class Handshake:
    """A client and a server, and what went between them. Flights may be changed on the way."""

    def __init__(self, client=CLIENT, server=SERVER, mutual=True, offer=OFFER, choice=CHOICE, keylog=None,
                 utc=UTC) -> None:
        self.client = TlsClient(client, offer, IP_B, utc, mutual, keylog)
        self.server = TlsServer(server, IP_A, utc, mutual, keylog)
        self.offer, self.choice = offer, choice
        self.blob = b""

    def run(self, change=lambda number, flight: flight) -> list[bytes]:
        """All four flights, each passed through ``change`` with its number."""
        flights = []

        def carry(flight):
            flights.append(flight)
            return change(len(flights) - 1, flight)

        hello = carry(self.client.hello())
        answer = carry(self.server.answer(hello, self.offer, self.choice))
        finish = carry(self.client.finish(answer, self.choice))
        self.server.finish(finish)
        self.blob = self.client.done(carry(self.server.done(b"a blob")))
        return flights

    def secrets(self):
        return self.client.secret, self.client.resumption

    def check(self) -> None:
        assert self.secrets() == (self.server.secret, self.server.resumption)
        assert len(set(self.secrets())) == 2
        assert {len(s) for s in self.secrets()} == {32}
        assert self.blob == b"a blob"


@pytest.mark.parametrize("kind", ["p256", "ed25519"])
def test_both_sides_get_the_same_secrets_and_names(kind):
    handshake = Handshake(*pair(kind))
    hello, *_others = handshake.run()
    handshake.check()
    assert (handshake.client.peer_name, handshake.server.peer_name) == ("b", "a")
    assert len(hello) < ONE_PACKET // 4
    again = Handshake(*pair(kind))
    again.run()
    assert again.client.secret != handshake.client.secret


def test_kinds_of_keys_may_be_mixed_and_chains_be_longer():
    middle = Authority("ed25519", "middle", ROOT)
    handshake = Handshake(middle.identity("a", A, Leaf(kind="ed25519")), middle.identity("b", B))
    handshake.run()
    handshake.check()


def test_without_mutual_authentication_the_client_stays_unnamed():
    handshake = Handshake(mutual=False)
    handshake.run()
    handshake.check()
    assert (handshake.client.peer_name, handshake.server.peer_name) == ("b", "")
    # It shows no certificate then: none of what it sends is longer than it must be.
    assert len(Handshake(mutual=False).run()[2]) < len(Handshake().run()[2]) - 300


def test_openssl_exports_the_same_without_a_context_as_with_an_empty_one():
    handshake = Handshake()
    handshake.run()
    export = handshake.client._tls.export_keying_material
    assert export(b"EXPERIMENTAL-x", 32) == export(b"EXPERIMENTAL-x", 32, b"")
    assert export(tls.SESSION_LABEL, 32) != handshake.client.secret
    assert export(tls.SESSION_LABEL, 32, binding(OFFER, CHOICE)) == handshake.client.secret


def test_blobs_may_be_empty_or_of_several_records():
    for size in (0, 1, 30_000):
        handshake = Handshake()
        answer = handshake.server.answer(handshake.client.hello(), OFFER, CHOICE)
        handshake.server.finish(handshake.client.finish(answer, CHOICE))
        flight = handshake.server.done(bytes(size))
        assert handshake.client.done(flight) == bytes(size)


# -- who is believed -----------------------------------------------------------------------------------------

CLIENT_ONLY, SERVER_ONLY = (ExtendedKeyUsageOID.CLIENT_AUTH,), (ExtendedKeyUsageOID.SERVER_AUTH,)
BAD = {
    "wrong CA": (lambda name, ip: Authority().identity(name, ip, trust=[ROOT]), "certificate signature failure"),
    "unknown CA": (lambda name, ip: Authority(name="other").identity(name, ip, trust=[ROOT]),
                   "unable to get local issuer certificate"),
    "expired": (lambda name, ip: ROOT.identity(name, ip, Leaf(after=UTC - 1)), "certificate has expired"),
    "not yet valid": (lambda name, ip: ROOT.identity(name, ip, Leaf(before=UTC + 1)),
                      "certificate is not yet valid"),
    "wrong name": (lambda _name, ip: ROOT.identity("c", ip), r"not for [ab] \(10\.0\.0\.[12]\), but for"),
    "P-384": (lambda name, ip: _with_chain_of(ROOT, "p384", name, ip), "neither of P-256 nor Ed25519"),
}


def _with_chain_of(authority, kind, name, ip):
    """An identity as our own software would refuse to load it."""
    odd = Authority(kind)
    identity = authority.identity(name, ip)
    leaf = authority.leaf(name, ip, odd.key)
    object.__setattr__(identity, "chain", (leaf.public_bytes(Encoding.DER),))
    object.__setattr__(identity, "private_key", odd.key)
    return identity


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("what", BAD)
def test_a_bad_certificate_ends_the_handshake_with_the_reason_at_both_sides(side, what):
    make, words = BAD[what]
    good = Handshake()
    good.run()
    good.check()
    if side == "server":
        bad = Handshake(server=make("b", B))
        answer = bad.server.answer(bad.client.hello(), OFFER, CHOICE)
        with pytest.raises(HandshakeError, match=f"the peer's certificate.*{words}") as caught:
            bad.client.finish(answer, CHOICE)
        with pytest.raises(HandshakeError, match="the client refuses the handshake: ") as heard:
            bad.server.finish(caught.value.alert)
    else:
        bad = Handshake(client=make("a", A))
        answer = bad.server.answer(bad.client.hello(), OFFER, CHOICE)
        with pytest.raises(HandshakeError, match=f"the peer's certificate.*{words}") as caught:
            bad.server.finish(bad.client.finish(answer, CHOICE))
        with pytest.raises(HandshakeError, match="the server refuses the handshake: ") as heard:
            bad.client.done(caught.value.alert)
    # As OpenSSL has it where we judge; it is nobody's error.
    assert "internal error" not in str(heard.value)
    assert bad.server.secret == b""


def test_certificates_are_for_the_role_they_are_used_in():
    for client, server in ((SERVER_ONLY, None), (None, CLIENT_ONLY)):
        with pytest.raises(HandshakeError, match=r"the peer's certificate .*(purpose|must not be used)"):
            Handshake(ROOT.identity("a", A, Leaf(uses=client)), ROOT.identity("b", B, Leaf(uses=server))).run()
    Handshake(ROOT.identity("a", A, Leaf(uses=CLIENT_ONLY)), ROOT.identity("b", B, Leaf(uses=SERVER_ONLY))).run()


def test_a_certificate_is_for_the_address_where_there_is_no_name():
    nameless = ROOT.identity("a", A, names={})
    handshake = Handshake(nameless)
    handshake.run()
    assert handshake.client.peer_name == B
    with pytest.raises(HandshakeError, match=r"is not for 10\.0\.0\.2, but for 10\.0\.0\.3, b"):
        Handshake(nameless, ROOT.identity("b", "10.0.0.3")).run()


def test_a_client_without_certificate_is_refused_where_one_is_wanted():
    client = TlsClient(CLIENT, OFFER, IP_B, UTC, mutual=False)
    server = TlsServer(SERVER, IP_A, UTC, mutual=True)
    finish = client.finish(server.answer(client.hello(), OFFER, CHOICE), CHOICE)
    with pytest.raises(HandshakeError, match="peer did not return a certificate") as caught:
        server.finish(finish)
    with pytest.raises(HandshakeError, match="the server refuses the handshake: certificate required"):
        client.done(caught.value.alert)


def test_the_time_is_of_each_handshake():
    early, late = Handshake(utc=UTC - HOUR - 1), Handshake(utc=UTC)
    hellos = [h.client.hello() for h in (early, late)]
    answers = [h.server.answer(hello, OFFER, CHOICE) for h, hello in zip((early, late), hellos, strict=True)]
    with pytest.raises(HandshakeError, match="not yet valid"):
        early.client.finish(answers[0], CHOICE)
    late.server.finish(late.client.finish(answers[1], CHOICE))
    with pytest.raises(HandshakeError, match="expired"):
        Handshake(utc=UTC + HOUR + 1).run()


# -- parameters ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seen", [
    replace(OFFER, ciphers=("AES-128-GCM",)), replace(OFFER, ciphers=OFFER.ciphers[::-1]),
    replace(OFFER, index_bits=17), replace(OFFER, max_message=999), replace(OFFER, padding="none")])
def test_an_offer_changed_on_the_way_is_noticed(seen):
    handshake = Handshake()
    answer = handshake.server.answer(handshake.client.hello(), seen, CHOICE)
    finish = handshake.client.finish(answer, CHOICE)
    with pytest.raises(HandshakeError, match="the session's parameters were changed on the way"):
        handshake.server.finish(finish)
    assert handshake.server.secret == b""


@pytest.mark.parametrize("seen", [
    replace(CHOICE, cipher="AES-128-GCM"), replace(CHOICE, index_bits=20), replace(CHOICE, max_message=10),
    replace(CHOICE, padding="buckets:100")])
def test_a_choice_changed_on_the_way_is_noticed_by_either_side(seen):
    handshake = Handshake()
    answer = handshake.server.answer(handshake.client.hello(), OFFER, CHOICE)
    finish = handshake.client.finish(answer, seen)
    with pytest.raises(HandshakeError, match="the session's parameters were changed on the way"):
        handshake.server.finish(finish)
    # And a server that would let that pass meets a client that does not.
    handshake = Handshake()
    answer = handshake.server.answer(handshake.client.hello(), OFFER, CHOICE)
    finish = handshake.client.finish(answer, seen)
    handshake.server._choice = seen
    handshake.server.finish(finish)
    handshake.server._confirm = binding(OFFER, CHOICE)
    with pytest.raises(HandshakeError, match="the session's parameters were changed on the way"):
        handshake.client.done(handshake.server.done(b""))


def test_a_choice_that_was_not_offered_is_refused():
    offer = replace(OFFER, ciphers=("AES-256-GCM",), index_bits=18, max_message=1000)
    good = Agreement("AES-256-GCM", 18, 1000, "power-of-two")
    for choice, words in ((replace(good, cipher="AES-128-GCM"), "cipher AES-128-GCM"),
                          (replace(good, padding="none"), "no padding"),
                          (replace(good, index_bits=16), "16 index bits"),
                          (replace(good, max_message=1001), "1001 bytes")):
        handshake = Handshake()
        client = TlsClient(CLIENT, offer, IP_B, UTC, mutual=True)
        answer = handshake.server.answer(client.hello(), offer, choice)
        with pytest.raises(HandshakeError, match=f"the server chose .*{words}"):
            client.finish(answer, choice)


# -- other people's TLS --------------------------------------------------------------------------------------

def _foreign_client(*settings):
    context = SSL.Context(SSL.TLS_METHOD)
    for name, value in settings:
        getattr(context, name)(value)
    connection = SSL.Connection(context, None)
    connection.set_connect_state()
    with pytest.raises(SSL.WantReadError):
        connection.do_handshake()
    return connection.bio_read(1 << 16)


@pytest.mark.parametrize(("settings", "words"), [
    ([("set_alpn_protos", [b"h2"])], "does not speak smt/1"),
    ([("set_alpn_protos", [b"smt/1"])], "no key share of group P-256"),
    ([("set_alpn_protos", [b"smt/1"]), ("set_max_proto_version", SSL.TLS1_2_VERSION)], "unsupported protocol")])
def test_clients_that_speak_something_else(settings, words):
    server = TlsServer(SERVER, IP_A, UTC, mutual=True)
    with pytest.raises(HandshakeError, match=words):
        server.answer(_foreign_client(*settings), OFFER, CHOICE)


def test_peers_without_alpn():
    hello = _foreign_client(("set_tmp_ecdh", ec.SECP256R1()))
    with pytest.raises(HandshakeError, match="the client does not speak smt/1"):
        TlsServer(SERVER, IP_A, UTC, mutual=True).answer(hello, OFFER, CHOICE)
    context = SSL.Context(SSL.TLS_METHOD)
    context.use_certificate(SERVER.leaf)
    context.use_privatekey(SERVER.private_key)
    server = SSL.Connection(context, None)
    server.set_accept_state()
    client = TlsClient(CLIENT, OFFER, IP_B, UTC, mutual=True)
    server.bio_write(client.hello())
    with pytest.raises(SSL.WantReadError):
        server.do_handshake()
    with pytest.raises(HandshakeError, match="the server does not speak smt/1"):
        client.finish(server.bio_read(1 << 16), CHOICE)


# -- flights that were cut or changed ------------------------------------------------------------------------

SIZES = [len(f) for f in Handshake().run()]


@pytest.mark.parametrize("number", range(4))
def test_no_truncated_flight_is_accepted(number):
    for length in range(SIZES[number] - 8):
        handshake = Handshake()
        with pytest.raises(HandshakeError, match=r"is cut short|has 0 bytes"):
            handshake.run(lambda n, flight, length=length: flight[:length] if n == number else flight)
        assert (handshake.server.secret == b"") is (number < 3)
    # Signatures differ in length by a few bytes: the end is counted from the end.
    for missing in range(1, 16):
        handshake = Handshake()
        with pytest.raises(HandshakeError, match="is cut short"):
            handshake.run(lambda n, flight, missing=missing: flight[:-missing] if n == number else flight)
    handshake = Handshake()
    handshake.run(lambda n, flight: flight[:] if n == number else flight)
    handshake.check()


@given(st.integers(0, 3), st.integers(0, 2000), st.integers(0, 7))
@settings(max_examples=300)
def test_a_changed_bit_never_goes_unnoticed(number, position, bit):
    spot = []

    def flip(n, flight):
        if n != number:
            return flight
        changed = bytearray(flight)
        changed[position % len(flight)] ^= 1 << bit
        spot.append((flight, position % len(flight)))
        return bytes(changed)

    handshake = Handshake()
    try:
        handshake.run(flip)
    except HandshakeError:
        return
    handshake.check()
    # What nobody looks at: versions in headers of records in clear, and ChangeCipherSpec (RFC 8446 §5, §5.1).
    (flight, at), = spot
    assert _clear_header(flight, at)


def _clear_header(flight, at):
    start = 0
    while start + 5 + int.from_bytes(flight[start + 3:start + 5], "big") <= at:
        start += 5 + int.from_bytes(flight[start + 3:start + 5], "big")
    return flight[start] in (20, 22) and at - start in (1, 2)


@given(st.binary(min_size=1, max_size=2000))
def test_garbage_is_refused(garbage):
    with pytest.raises(HandshakeError):
        TlsServer(SERVER, IP_A, UTC, mutual=True).answer(garbage, OFFER, CHOICE)
    client = TlsClient(CLIENT, OFFER, IP_B, UTC, mutual=True)
    client.hello()
    with pytest.raises(HandshakeError):
        client.finish(garbage, CHOICE)


def test_flights_are_bounded_and_in_order():
    server = TlsServer(SERVER, IP_A, UTC, mutual=True)
    with pytest.raises(HandshakeError, match="has 65537 bytes; 1 to 65536"):
        server.answer(bytes(65_537), OFFER, CHOICE)
    with pytest.raises(HandshakeError, match="did not begin"):
        TlsServer(SERVER, IP_A, UTC, mutual=True).finish(b"x")


def test_what_follows_the_servers_confirmation_is_whole():
    handshake = Handshake()
    answer = handshake.server.answer(handshake.client.hello(), OFFER, CHOICE)
    handshake.server.finish(handshake.client.finish(answer, CHOICE))
    flight = handshake.server.done(bytes(20_000))
    # All of its first record, none of its second.
    with pytest.raises(HandshakeError, match="cut short"):
        handshake.client.done(flight[:-4000])


# -- what is left behind -------------------------------------------------------------------------------------

def test_a_finished_handshake_is_freed_at_once():
    Handshake().run()
    gc.collect()
    gc.disable()
    try:
        handshake = Handshake()
        handshake.run()
        kept = [weakref.ref(o) for o in (handshake.client, handshake.server, handshake.client._tls,
                                         handshake.server._tls)]
        assert all(k() is not None for k in kept)
        del handshake
        assert [k() for k in kept] == [None] * 4
    finally:
        gc.enable()


def test_contexts_are_made_once_and_go_with_their_identity():
    a, b = pair()
    Handshake(a, b).run()
    context = tls._context(a, False, True, False)
    assert tls._context(a, False, True, False) is context
    assert tls._context(a, False, True, True) is not context
    before = len(tls._CONTEXTS)
    del a, b, context
    gc.collect()
    assert len(tls._CONTEXTS) == before - 2


def test_secrets_are_logged_only_when_asked_for():
    lines: list[str] = []
    Handshake().run()
    assert lines == []
    Handshake(keylog=Keylog(lines.append)).run()
    labels = {line.split()[0] for line in lines}
    assert labels == {"CLIENT_HANDSHAKE_TRAFFIC_SECRET", "SERVER_HANDSHAKE_TRAFFIC_SECRET", "EXPORTER_SECRET",
                      "CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0"}
    assert len(lines) == 10
    assert all(line.endswith("\n") and len(line.split()) == 3 for line in lines)
    Handshake().run()
    assert len(lines) == 10
