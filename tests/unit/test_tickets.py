"""Tickets: whose they are, until when, and what their bytes may be."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtstack.errors import BadPacket, ConfigError, HandshakeError
from smtstack.session import tickets
from smtstack.session.offer import Offer
from smtstack.session.reader import vector
from smtstack.session.tickets import MAX_LIFE_S, SKEW_S, Ticket, TicketFlags, TicketSchedule, TicketSecret
from tests.certificates import IP_A, IP_B, UTC, A, Authority, B, Leaf, pair
from tests.tickets import CLIENT, PORT_B, SERVER, signed


def issue(**options) -> TicketSecret:
    conditions = {"forward_secret_only": False, "client_auth": True, "utc": UTC} | options
    identity = conditions.pop("identity", SERVER)
    return tickets.issue(identity, IP_B, PORT_B, Offer(), **conditions)


@pytest.mark.parametrize("kind", ["p256", "ed25519"])
def test_a_ticket_is_what_its_server_said(kind: str):
    client, server = pair(kind)
    secret = tickets.issue(server, IP_B, PORT_B, Offer(("AES-256-GCM",), 20, 5000, "buckets:256,1024"),
                           forward_secret_only=True, client_auth=False, utc=UTC, life_s=600)
    ticket = tickets.parse_untrusted(secret.ticket.pack())
    assert ticket == secret.ticket
    assert ticket.verify(client, IP_B, PORT_B, UTC) == ticket.name == "b"
    assert (ticket.forward_secret_only, ticket.wants_client, ticket.not_after) == (True, False, UTC + 600)
    assert secret.key().public_key().public_bytes_raw() == ticket.share
    assert len(ticket.pack()) < 1000


def test_a_host_without_a_name_goes_by_its_address():
    authority = Authority()
    server = authority.identity("b", B, names={})
    ticket = issue(identity=server).ticket
    assert ticket.verify(authority.identity("a", A, names={}), IP_B, PORT_B, UTC) == B


def bad_tickets() -> dict[str, tuple[Ticket, str]]:
    """What is wrong with a ticket, and what its reader says."""
    good = issue()
    strange = Authority(name="x").identity("b", B)
    return {
        "other address": (signed(good, ip=IP_A), r"the ticket is for 10\.0\.0\.1:2000, not for 10\.0\.0\.2:2000"),
        "other port": (signed(good, port=9), r"the ticket is for 10\.0\.0\.2:9, not for"),
        "too long a life": (signed(good, not_after=UTC + 3601), "life of 3601 s is too long: at most 3600 s"),
        "expired": (signed(good, not_before=UTC - 3601, not_after=UTC - 1), "the ticket expired 1 s ago"),
        "not yet valid": (signed(good, not_before=UTC + SKEW_S + 1, not_after=UTC + 90),
                          "not yet valid: it begins in 61 s"),
        "other name": (signed(good, name="c"), "the ticket names host 'c', its certificate 'b'"),
        "certificate of another": (signed(good, chain=CLIENT.chain), r"not for b \(10\.0\.0\.2\), but for"),
        "other authority": (issue(identity=strange).ticket, "local issuer certificate"),
        "signed by another": (signed(good, CLIENT), "signature is not"),
        "changed": (replace(good.ticket, share=bytes(32)), "signature is not"),
        "more allowed": (replace(good.ticket, flags=TicketFlags(0)), "signature is not"),
        "later end": (replace(good.ticket, not_after=UTC + 3599), "signature is not"),
        "other parameters": (replace(good.ticket, offer=Offer(padding="power-of-two")), "signature is not"),
        "no signature": (replace(good.ticket, signature=b""), "signature is not"),
    }


BAD = bad_tickets()


@pytest.mark.parametrize("what", BAD)
def test_a_bad_ticket_is_refused_with_the_reason(what: str):
    ticket, text = BAD[what]
    with pytest.raises(HandshakeError, match=text):
        tickets.parse_untrusted(ticket.pack()).verify(CLIENT, IP_B, PORT_B, UTC)


def test_a_ticket_is_worth_no_more_than_its_certificate():
    authority = Authority()
    reader = authority.identity("a", A)
    late = authority.identity("b", B, Leaf(before=UTC - 10, after=UTC + 10))
    ticket = issue(identity=late).ticket
    assert ticket.verify(reader, IP_B, PORT_B, UTC) == "b"
    with pytest.raises(HandshakeError, match="has expired"):
        ticket.verify(reader, IP_B, PORT_B, UTC + 11)


def test_clocks_may_differ_a_little():
    ticket = signed(issue(), not_before=UTC + SKEW_S, not_after=UTC + 90)
    assert ticket.verify(CLIENT, IP_B, PORT_B, UTC) == "b"
    ticket = signed(issue(), not_after=UTC)
    assert ticket.verify(CLIENT, IP_B, PORT_B, UTC) == "b"


@pytest.mark.parametrize("life", [0, -1, MAX_LIFE_S + 1])
def test_no_server_makes_a_ticket_for_longer_than_an_hour(life: int):
    with pytest.raises(ConfigError, match="life"):
        issue(life_s=life)


def test_every_ticket_has_its_own_key():
    one, two = issue(), issue()
    assert one.ticket.ticket_id != two.ticket.ticket_id
    assert one.private != two.private


def malformed() -> dict[str, bytes]:
    good = issue().ticket
    packed = good.pack()
    name_at = packed.index(b"\x01b", 16)
    offer = good.offer.pack()
    unknown = bytearray(offer)
    unknown[6 + 1] = 0xEE
    return {
        "nothing": b"",
        "version": b"\x01" + packed[1:],
        "flags": packed[:55] + b"\xff" + packed[56:],
        "name": packed[:name_at] + b"\x01\n" + packed[name_at + 2:],
        "no name": packed[:name_at] + b"\x00" + packed[name_at + 2:],
        "more": packed + b"\0",
        "end before beginning": replace(good, not_after=UTC - 1).pack(),
        "unknown cipher": packed.replace(vector(offer), vector(bytes(unknown))),
        "no certificates": replace(good, chain=()).pack(),
        "too many certificates": replace(good, chain=(b"x",) * 6).pack(),
        "too long": replace(good, chain=(bytes(16_384),)).pack(),
    }


MALFORMED = malformed()


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_tickets_are_refused(what: str):
    with pytest.raises(BadPacket):
        tickets.parse_untrusted(MALFORMED[what])


GOOD = issue().ticket.pack()


@given(st.data())
def test_a_changed_ticket_is_refused(data: st.DataObject):
    at = data.draw(st.integers(0, len(GOOD) - 1))
    changed = bytearray(GOOD)
    changed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises((BadPacket, HandshakeError)):
        tickets.parse_untrusted(bytes(changed)).verify(CLIENT, IP_B, PORT_B, UTC)


@given(st.integers(0, len(GOOD) - 1))
def test_a_cut_ticket_is_refused(size: int):
    with pytest.raises(BadPacket):
        tickets.parse_untrusted(GOOD[:size])


@given(st.binary(max_size=600))
def test_any_bytes_are_no_ticket(data: bytes):
    for junk in (data, GOOD[:58] + data):
        with pytest.raises(BadPacket):
            tickets.parse_untrusted(junk)


# -- when the next is made --------------------------------------------------------------------------------------


def test_a_new_ticket_every_half_life():
    schedule = TicketSchedule(100)
    assert schedule.due(UTC)
    assert schedule.next_due == 0
    schedule.published(UTC)
    assert [schedule.due(UTC + s) for s in (0, 49, 50, 500)] == [False, False, True, True]
    assert schedule.next_due == UTC + 50
    # The clock is set back: whatever is out there may not be valid yet.
    assert schedule.due(UTC - 1)


def test_what_failed_is_tried_again_soon():
    schedule = TicketSchedule(3600)
    schedule.failed(UTC)
    assert [schedule.due(UTC + s) for s in (0, 4, 5)] == [False, False, True]
    waits = []
    for _ in range(6):
        schedule.failed(UTC)
        waits.append(schedule.next_due - UTC)
    assert waits == [10, 20, 40, 60, 60, 60]
    schedule.published(UTC)
    schedule.failed(UTC)
    assert schedule.next_due == UTC + 5
    short = TicketSchedule(4)
    short.failed(UTC)
    assert short.next_due == UTC + 2
    short.published(UTC)
    short.revoked()
    assert short.due(UTC)


def test_lives_that_make_no_sense():
    for life in (0, 1, 3601):
        with pytest.raises(ConfigError, match="life"):
            TicketSchedule(life)
