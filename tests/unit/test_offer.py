"""What two ends agree on: any two offers, whatever is on the wire, and choices no honest server makes."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtstack.crypto.aead import CIPHERS
from smtstack.errors import BadPacket, ConfigError, PeerError
from smtstack.session import flights
from smtstack.session.flights import Flight, Kind, Refusal
from smtstack.session.offer import Agreement, Offer, agreement_untrusted, binding, check_choice, choose

PADDINGS = ("none", "power-of-two", "buckets:256,1024")
offers = st.builds(Offer, st.permutations(list(CIPHERS)).flatmap(
    lambda names: st.integers(1, len(names)).map(lambda n: tuple(names[:n]))),
    st.integers(4, 48), st.integers(1, 1 << 30), st.sampled_from(PADDINGS), st.integers(296, 65_535),
    st.booleans())


@given(offers, offers)
def test_choice_is_within_both_offers(offer: Offer, own: Offer):
    if not set(offer.ciphers) & set(own.ciphers):
        with pytest.raises(PeerError, match="no common cipher"):
            choose(offer, own)
        return
    choice = choose(offer, own)
    check_choice(offer, choice)
    assert choice.cipher == next(c for c in offer.ciphers if c in own.ciphers)
    assert choice.index_bits >= own.index_bits
    assert choice.max_message <= own.max_message
    assert choice.mtu == min(offer.mtu, own.mtu)
    assert choice.overlay == (offer.overlay and own.overlay)
    assert (choice.padding == "none") == (offer.padding == own.padding == "none")
    assert agreement_untrusted(choice.pack()) == choice


@given(offers)
def test_offer_survives_the_wire(offer: Offer):
    assert Offer.parse_untrusted(offer.pack()) == offer


@given(offers)
def test_who_does_not_know_the_overlay_passes_over_it(offer: Offer):
    """Its number stands where unknown ciphers may, and without it the bytes are as before there was an overlay."""
    plain, shaped = (replace(offer, overlay=on).pack() for on in (False, True))
    count = plain[7]
    assert shaped == plain[:7] + bytes((count + 1,)) + plain[8:9 + count] + b"\x80" + plain[9 + count:]
    other = shaped.replace(b"\x80" + plain[9 + count:], b"\x81" + plain[9 + count:])
    assert Offer.parse_untrusted(other) == replace(offer, overlay=False)


@given(st.binary(max_size=80) | offers.map(Offer.pack).flatmap(
    lambda b: st.tuples(st.integers(0, len(b) - 1), st.integers(0, 255)).map(
        lambda t: b[:t[0]] + bytes([t[1]]) + b[t[0] + 1:])))
def test_foreign_bytes_raise_bad_packet_only(data: bytes):
    for parse in (Offer.parse_untrusted, agreement_untrusted, flights.parse_untrusted):
        with contextlib.suppress(BadPacket):
            parse(data)


@pytest.mark.parametrize("change", [
    {"cipher": "CHACHA20-POLY1305"}, {"index_bits": 15}, {"max_message": 5001}, {"padding": "none"},
    {"mtu": 1501}, {"overlay": True}])
def test_a_choice_outside_the_offer_is_refused(change):
    offer = Offer(("AES-128-GCM", "AES-256-GCM"), 16, 5000, "power-of-two", 1500)
    good = choose(offer, Offer())
    check_choice(offer, good)
    with pytest.raises(PeerError, match="the server chose"):
        check_choice(offer, replace(good, **change))


@given(offers, offers, offers)
def test_binding_tells_every_pair_from_every_other(one: Offer, two: Offer, own: Offer):
    own = replace(own, ciphers=tuple(CIPHERS))
    choice = choose(one, own)
    assert (binding(one, choice) == binding(two, choice)) == (one == two)
    assert binding(one, choice) != binding(one, replace(choice, max_message=choice.max_message ^ 1 or 3))


@pytest.mark.parametrize("bad", [
    {"ciphers": ()}, {"ciphers": ("ROT13",)}, {"index_bits": 3}, {"max_message": 0}, {"max_message": 1 << 31},
    {"mtu": 295}, {"mtu": 65_536},
    {"padding": "lots"}, {"padding": "buckets:" + ",".join(["1000"] * 50)}])
def test_offers_that_make_no_session(bad):
    with pytest.raises(ConfigError):
        Offer(**bad)


def test_a_cipher_of_tomorrow_is_passed_over():
    packed = bytearray(Offer().pack())
    packed[-1 - len("none") - len(CIPHERS) + 1] = 200  # the first cipher's number
    assert Offer.parse_untrusted(bytes(packed)).ciphers == tuple(CIPHERS)[1:]
    assert Agreement().pack() != bytes(packed)


@given(st.sampled_from(Kind), st.lists(st.binary(max_size=300), max_size=4))
def test_flights_survive_the_wire_or_are_refused(kind: Kind, fields: list[bytes]):
    flight = Flight(kind, tuple(fields))
    wanted = flights._FIELDS[kind]
    fits = len(fields) == wanted and (
        kind not in (Kind.CLIENT_HELLO, Kind.CLIENT_FINISH) or len(fields[0]) == flights.ID_LEN) and (
        kind is not Kind.REFUSED or len(fields[0]) == 1) and (
        kind is not Kind.SERVER_DONE or len(fields[1]) == flights.PROOF_LEN)
    if fits:
        assert flights.parse_untrusted(flight.pack()) == flight
    else:
        with pytest.raises(BadPacket):
            flights.parse_untrusted(flight.pack())


def test_every_cut_flight_is_refused():
    packed = Flight(Kind.SERVER_HELLO, (b"choice", b"flight")).pack()
    for stop in range(len(packed)):
        with pytest.raises(BadPacket):
            flights.parse_untrusted(packed[:stop])


def test_a_refusal_is_printable_whoever_wrote_it():
    said = flights.refusal_text(flights.refused(Refusal.TICKET_EXPIRED, "too old\x1b[31m"))
    assert said == "the server refuses (ticket expired): too old?[31m"
    assert "code 99" in flights.refusal_text(Flight(Kind.REFUSED, (b"\x63", b"\xff\xfe", b"", b"")))
