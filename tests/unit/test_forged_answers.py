"""Somebody on the path answers our flights before the server can, with whatever is no proof: it ends nothing.

And the server's own refusals are believed at once, as it signs them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from smtstack.crypto.keys import Endpoints
from smtstack.session import refusals
from smtstack.session.established import MODES
from smtstack.session.flights import ID_LEN, PROOF_LEN, Flight, Kind, Refusal, parse_untrusted, refused
from smtstack.session.offer import Agreement, Offer
from smtstack.session.state import MemoryState
from smtstack.sim.pair import CLIENT_IP, SERVER_IP, SERVER_PORT
from smtstack.wire.frame import DATA_FRAME, IP_OFFSET, PAYLOAD_AT, TRANSPORT_OFFSET, TYPE_AT, is_handshake
from smtstack.wire.homa import DATA, HANDSHAKE
from smtstack.wire.ipv4 import checksum
from tests.certificates import UTC, A, Authority, B
from tests.handshakes import CLIENT_ID, EARLY, SERVER_ID, Hosts, SessionRig, works

#: Nanoseconds: what comes before is no matter of a time that is over.
PROMPT = 100_000_000
NO_PROOF = "this came back, of which nothing proves that the server says so"


def answer_to(frame: bytes, message: bytes, split: int = 0) -> list[bytes]:
    """Frames that claim to answer the request that ``frame`` is of; ``split``: in pieces of this size."""
    (ethertype, vihl, tos, _total, _ip_id, fragment, protocol, src, dst, sport, dport, _offset, _size, epoch,
     flags, _high, _low, sender_id, _length, _incoming, version, *_rest) = DATA_FRAME.unpack_from(frame)
    size = split or len(message)
    made = []
    for index, at in enumerate(range(0, len(message), size)):
        piece = message[at:at + size]
        head = bytearray(DATA_FRAME.pack(
            ethertype, vihl, tos, PAYLOAD_AT - IP_OFFSET + len(piece), index, fragment, protocol, dst, src, dport,
            sport, 0, size, epoch, flags & HANDSHAKE, 0, 0, sender_id ^ 1, len(message), len(message), version, 0,
            0))
        head[TYPE_AT] = DATA
        head[24:26] = checksum(bytes(head[IP_OFFSET:TRANSPORT_OFFSET])).to_bytes(2, "big")
        made.append(bytes(head) + piece)
    return made


def is_request(from_client: bool, frame: bytes) -> bool:
    """A client's flight, or a part of it."""
    return from_client and is_handshake(frame) and frame[TYPE_AT] == DATA


class Forger:
    """Answers so many of a client's flights at once; the server's own answers come after, or never."""

    def __init__(self, hosts: Hosts, forge: Callable[[bytes], list[bytes]], times: int = 1 << 30,
                 silenced: bool = False) -> None:
        self.left = times
        self._forge = forge
        self._silenced = silenced
        self.rig: SessionRig = hosts.rig(tamper=self._tamper)

    def _tamper(self, from_client: bool, frame: bytes) -> list[bytes]:
        if is_request(from_client, frame) and self.left:
            self.left -= 1
            for forged in self._forge(frame):
                self.rig.inject(False, forged)
        return [] if self._silenced and is_handshake(frame) else [frame]


def a_request(rig: SessionRig) -> None:
    rig.request(b"a request")
    rig.run()


@pytest.mark.parametrize("code", [*Refusal, 99])
@pytest.mark.parametrize("mode", MODES)
def test_a_forged_refusal_of_every_flight_ends_nothing(mode, code):
    """It is always there first, and the session is made all the same."""
    said = Flight(Kind.REFUSED, (bytes((code,)), b"go away", b"", b"")).pack()
    forger = Forger(Hosts(mode).resumable(), lambda frame: answer_to(frame, said))
    a_request(forger.rig)
    assert forger.rig.answered() == 1
    client, server = (m.counters() for m in forger.rig.managers)
    assert client["answers_unproven"] > 0
    assert client["handshakes_failed"] == server["handshakes_failed"] == 0
    assert client["sessions"] == server["sessions"] == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_forged_refusal_ends_no_handshake_before_its_time_is_over(mode):
    hosts = Hosts(mode).resumable()
    forger = Forger(hosts, lambda frame: answer_to(frame, refused(Refusal.BUSY, "go away").pack()), silenced=True)
    rpc = forger.rig.request(b"a request")
    limit = forger.rig.managers[0].config.handshake_ns
    while not forger.rig.outcomes[rpc]:
        before = forger.rig.now
        assert forger.rig.step()
    assert before <= limit <= forger.rig.now
    failed = forger.rig.failure(rpc)
    assert failed.detail.endswith(f"{NO_PROOF}: the server refuses (busy): go away")


JUNK: dict[str, bytes] = {
    "nothing known": b"junk", "an old version": bytes((1, Kind.REFUSED)) + bytes(9),
    "another kind": Flight(Kind.CLOSED).pack(),
    "a server's hello": Flight(Kind.SERVER_HELLO, (Agreement(mtu=1500).pack(), b"\x16\x03\x03junk")).pack(),
    "a choice that was not offered": Flight(Kind.SERVER_HELLO, (Agreement(mtu=9000).pack(), b"junk")).pack(),
    "a choice that is none": Flight(Kind.SERVER_HELLO, (b"junk", b"junk")).pack(),
    "a fatal alert": Flight(Kind.SERVER_HELLO, (Agreement(mtu=1500).pack(), b"\x15\3\3\0\2\2\x28")).pack(),
    "the end of TLS": Flight(Kind.SERVER_DONE, (b"\x17\3\3junk", bytes(PROOF_LEN))).pack(),
    "an answer to a hello": Flight(Kind.EARLY_ANSWER, (b"junk",)).pack(),
    "a refusal cut short": refused(Refusal.BUSY, "go away").pack()[:-1],
    "a long refusal": refused(Refusal.TICKET_UNKNOWN, "go away " * 30).pack(),
}


@pytest.mark.parametrize("split", [0, 100])
@pytest.mark.parametrize("which", range(2))
@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("mode", MODES)
def test_junk_in_place_of_an_answer_is_asked_for_again(mode, junk, which, split):
    """Once, to the first flight or to the second."""
    seen = 0

    def forge(frame: bytes) -> list[bytes]:
        nonlocal seen
        seen += 1
        return answer_to(frame, JUNK[junk], split) if seen == which + 1 else []

    forger = Forger(Hosts(mode).resumable(), forge)
    a_request(forger.rig)
    assert forger.rig.answered() == 1
    assert forger.rig.managers[0].counters()["sessions"] == 1


def test_three_forged_answers_to_each_flight():
    """What is asked again after a pause may be forged again; the pauses grow, and there is time for many."""
    forger = Forger(Hosts("mtls"), lambda frame: answer_to(frame, JUNK["a server's hello"]), times=3)
    a_request(forger.rig)
    assert forger.rig.answered() == 1
    assert forger.left == 0


# -- the server's own --------------------------------------------------------------------------------------


def lost(hosts: Hosts) -> None:
    hosts.state = MemoryState()


def revoked(hosts: Hosts) -> None:
    for secret in hosts.state.tickets():
        hosts.state.revoke(secret.ticket.ticket_id)


def full(hosts: Hosts) -> None:
    hosts.server["max_sessions"] = 0


def other_mode(hosts: Hosts) -> None:
    hosts.server["mode"] = "mtls"


HONEST = [*(("busy", mode, full) for mode in MODES), *(("ticket unknown", mode, lost) for mode in EARLY),
          *(("not accepted", mode, other_mode) for mode in EARLY), ("ticket revoked", "ticket", revoked)]


@pytest.mark.parametrize(("why", "mode", "change"), HONEST)
def test_the_servers_own_refusal_is_believed_at_once(why, mode, change):
    hosts = Hosts(mode).resumable()
    works(hosts)
    change(hosts)
    rig = hosts.rig()
    rpc = rig.request(b"a request")
    while not rig.outcomes[rpc]:
        assert rig.step()
    assert rig.now < PROMPT
    assert rig.failure(rpc).detail.startswith(f"the server refuses ({why}): ")
    assert rig.managers[0].counters()["answers_unproven"] == 0


def test_a_client_that_believes_another_authority_is_told_in_the_end():
    """It cannot tell whose word it is; the hint is what helps."""
    hosts = Hosts("mtls", client_id=Authority(name="another").identity("a", A),
                  client={"offer": Offer(("CHACHA20-POLY1305",))}, server={"offer": Offer(("AES-256-GCM",))})
    rig = hosts.rig()
    rpc = rig.request(b"a request")
    rig.run()
    assert f"{NO_PROOF}: the server refuses (parameters): no common cipher" in rig.failure(rpc).detail


ASKED = Flight(Kind.CLIENT_HELLO, (bytes(ID_LEN), Offer().pack(), bytes(300))).pack()
AT_SERVER = Endpoints(SERVER_IP, SERVER_PORT, CLIENT_IP, 40_000)
AT_CLIENT = Endpoints(CLIENT_IP, 40_000, SERVER_IP, SERVER_PORT)
NO = refusals.signed(refused(Refusal.BUSY, "full", b"alert"), ASKED, AT_SERVER, SERVER_ID)


def proven(flight: Flight = NO, asked: bytes = ASKED, ends: Endpoints = AT_CLIENT, utc: int = UTC) -> bool:
    return refusals.is_proven(flight, asked, ends, CLIENT_ID, utc)


def by(identity, at: Endpoints = AT_SERVER, asked: bytes = ASKED) -> Flight:
    return refusals.signed(refused(Refusal.BUSY, "full", b"alert"), asked, at, identity)


def test_a_signed_refusal_is_the_servers():
    assert proven()
    assert proven(parse_untrusted(NO.pack()))


OTHERS: dict[str, Callable[[], bool]] = {
    "of another flight": lambda: proven(asked=ASKED[:-1] + b"\1"),
    "to another client": lambda: proven(ends=Endpoints(CLIENT_IP + 8, 40_000, SERVER_IP, SERVER_PORT)),
    "to another port": lambda: proven(ends=Endpoints(CLIENT_IP, 40_001, SERVER_IP, SERVER_PORT)),
    "of another port": lambda: proven(ends=Endpoints(CLIENT_IP, 40_000, SERVER_IP, 2001)),
    "another code": lambda: proven(Flight(Kind.REFUSED, (b"\x01", *NO.fields[1:]))),
    "another text": lambda: proven(Flight(Kind.REFUSED, (NO.fields[0], b"fool", *NO.fields[2:]))),
    "bytes moved between fields": lambda: proven(Flight(Kind.REFUSED, (NO.fields[0], b"fulla", b"lert",
                                                                       NO.fields[3]))),
    "unsigned": lambda: proven(refused(Refusal.BUSY, "full")),
    "cut": lambda: proven(Flight(Kind.REFUSED, (*NO.fields[:3], NO.fields[3][:-1]))),
    "longer": lambda: proven(Flight(Kind.REFUSED, (*NO.fields[:3], NO.fields[3] + b"\0"))),
    "by the client itself": lambda: proven(by(CLIENT_ID)),
    "by another authority": lambda: proven(by(Authority(name="another").identity("b", B))),
    "long after": lambda: proven(utc=UTC + 10 * 365 * 86_400),
}


@pytest.mark.parametrize("what", OTHERS)
def test_any_other_is_not(what):
    assert not OTHERS[what]()


@pytest.mark.parametrize("asked", [
    b"", b"junk", Flight(Kind.CLOSE, (bytes(32),)).pack(), Flight(Kind.CLOSED).pack(),
    Flight(Kind.CLIENT_FINISH, (bytes(ID_LEN), b"")).pack(), Flight(Kind.EARLY_HELLO, (b"",)).pack()])
def test_nothing_that_is_short_or_begins_nothing_gets_a_signature(asked):
    """Whoever gives a false address makes us send hardly more there than he sent."""
    assert by(SERVER_ID, asked=asked).fields[-1] == b""
