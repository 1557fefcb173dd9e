"""Targets of :mod:`tests.fuzz` in what makes sessions, and in what reads captures and keylogs of them.

Parsers get anything. What authenticates (hellos, answers, resumptions) gets changed ones, of which it must accept
none: only the unchanged may pass.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smtstack.capture.captured import Captured
from smtstack.capture.decrypt import Decrypter
from smtstack.capture.flows import Flow
from smtstack.capture.handshakes import Handshakes
from smtstack.capture.keylog import Keylog
from smtstack.capture.links import LINK_ETHERNET
from smtstack.capture.long_term import LongTermKeys
from smtstack.crypto.keys import demo_keys
from smtstack.errors import AuthError, BadPacket
from smtstack.session import flights, offer, resumption, tickets
from smtstack.session.flights import Flight, Kind, Refusal
from smtstack.session.hello import EarlyServer, Refused
from smtstack.session.offer import Agreement, Offer
from smtstack.session.state import ServerState
from smtstack.session_io import dns_exchange
from tests.certificates import IP_A, IP_B, UTC
from tests.tickets import AT_B, PORT_A, PORT_B, begin, make_psk, make_server, make_ticket

if TYPE_CHECKING:
    from tests.fuzz import Target

_MODES = ("ticket", "ticket-fs", "psk", "psk-fs")
_FLOW = Flow(IP_A, PORT_A, IP_B, PORT_B)
_OFFERS = [Offer(), Offer(index_bits=20, padding="power-of-two"), Offer(padding="buckets:256,1024")]
_KEYLOG = (b"# a comment\n"
           b"SMT_SECRET 10.0.0.1:40000 10.0.0.2:2000 1800000000000000000 AES-128-GCM,16,none " + b"ab" * 32 + b"\n"
           b"SMT_EARLY_SECRET 10.0.0.1:40000 10.0.0.2:2000 7 CHACHA20-POLY1305,20,buckets:1,2 " + b"01" * 32
           + b"\n"
           b"EXPORTER_SECRET " + b"ef" * 32 + b" " + b"98" * 32 + b"\n")


def _survives(parsed: Callable[[bytes], Offer | Flight | Agreement],
              parse: Callable[[bytes], object]) -> Callable[[bytes], object]:
    """What was accepted means something: packed and parsed again it is the same."""
    def call(buf: bytes) -> None:
        found = parsed(buf)
        assert parse(found.pack()) == found, found

    return call


def _ticket(buf: bytes) -> None:
    assert tickets.parse_untrusted(buf).pack() == buf


@dataclass
class _Dns:
    """A TXT record as dnspython has it."""

    strings: tuple[bytes, ...]


def _record(buf: bytes) -> None:
    dns_exchange._ticket_untrusted(_Dns((buf[:100], buf[100:])))


class _Hello:
    """A server under changed hellos. It accepts none, nor the unchanged one once more."""

    def __init__(self, mode: str) -> None:
        self._server: EarlyServer
        self._server, state, client = begin(mode)
        self.genuine = client.hello
        self._server.hello_untrusted(client.hello, AT_B, UTC)
        self._long_term = LongTermKeys(state)

    def __call__(self, buf: bytes) -> None:
        accepted = self._server.hello_untrusted(buf, AT_B, UTC)
        raise AssertionError(f"accepted: {accepted}")

    def from_capture(self, buf: bytes) -> None:
        """Who reads a capture with the server's keys takes the unchanged hello only."""
        self._long_term._secret_untrusted(_FLOW, buf)
        assert buf == self.genuine


class _Answer:
    """A client that waits, under changed answers."""

    def __init__(self, mode: str) -> None:
        server, _state, self._client = begin(mode)
        self.genuine = server.hello_untrusted(self._client.hello, AT_B, UTC).answer

    def __call__(self, buf: bytes) -> None:
        if buf == self.genuine:
            return
        self._client.answer_untrusted(buf)
        raise AssertionError("accepted")


def _resumption(state: ServerState, genuine: bytes) -> Callable[[bytes], object]:
    def call(buf: bytes) -> None:
        resumption.open_untrusted(state, buf, UTC)
        assert buf == genuine

    return call


class _Decrypt:
    """Feeds a decrypter, a new one from time to time."""

    def __init__(self) -> None:
        self._fed = 0
        self._decrypter = Decrypter("smt", demo_keys("smt"))

    def __call__(self, frame: bytes) -> None:
        self._decrypter.add(Captured(LINK_ETHERNET, self._fed, frame))
        self._fed += 1
        if self._fed % 250 == 0:
            self._decrypter.finish()
            self._decrypter = Decrypter("smt", demo_keys("smt"))


class _Flights:
    """Flights of both directions to what joins them."""

    def __init__(self) -> None:
        self._handshakes = Handshakes()

    def __call__(self, buf: bytes) -> None:
        self._handshakes.flight_untrusted(_FLOW, len(buf) & 3, buf)


def _keylog(buf: bytes) -> None:
    Keylog().add_untrusted(buf.decode("latin-1"))


def targets(frames: list[bytes]) -> list[Target]:
    """All of them; ``frames`` are genuine, of profile smt under demo keys."""
    from tests.fuzz import Target, _fix_frame

    session, capture = "smtstack.session", "smtstack.capture"
    name = bytes(range(flights.ID_LEN))
    spoken = [Flight(Kind.CLIENT_HELLO, (name, Offer().pack(), bytes(200))),
              Flight(Kind.SERVER_HELLO, (Agreement().pack(), bytes(100))),
              Flight(Kind.CLIENT_FINISH, (name, b"tls")), Flight(Kind.SERVER_DONE, (b"tls", bytes(32))),
              Flight(Kind.EARLY_HELLO, (bytes(300),)), Flight(Kind.EARLY_ANSWER, (bytes(70),)),
              Flight(Kind.CLOSE, (bytes(flights.PROOF_LEN),)), Flight(Kind.CLOSED),
              flights.refused(Refusal.TLS, "no: \xe9", b"alert")]
    packed = [f.pack() for f in spoken]
    state = make_server()[1]
    ticket = make_ticket(state).pack()
    server, psk_state = make_server("psk")
    psk = make_psk(server)
    given = server.grant(b"r" * 32, IP_A, "a", UTC)
    hellos, answers = [_Hello(m) for m in _MODES], [_Answer(m) for m in _MODES]
    refused, forged = (Refused,), (BadPacket, AuthError)
    return [
        Target(f"{session}.flights.parse_untrusted", _survives(flights.parse_untrusted, flights.parse_untrusted),
               packed),
        Target(f"{session}.offer.Offer.parse_untrusted", _survives(Offer.parse_untrusted, Offer.parse_untrusted),
               [o.pack() for o in _OFFERS]),
        Target(f"{session}.offer.agreement_untrusted",
               _survives(offer.agreement_untrusted, offer.agreement_untrusted), [Agreement().pack()]),
        Target(f"{session}.tickets.parse_untrusted", _ticket, [ticket]),
        Target("smtstack.session_io.dns_exchange._ticket_untrusted", _record, [base64.b64encode(ticket)]),
        Target(f"{session}.resumption.psk_untrusted", lambda b: resumption.psk_untrusted(b, bytes(32), "b"),
               [given]),
        Target(f"{session}.resumption.open_untrusted", _resumption(psk_state, psk.blob), [psk.blob], (AuthError,)),
        *(Target(f"{session}.hello.EarlyServer.hello_untrusted", h, [h.genuine], refused, share=0.2)
          for h in hellos),
        *(Target(f"{session}.hello.EarlyClient.answer_untrusted", a, [a.genuine], forged, share=0.5)
          for a in answers),
        *(Target(f"{capture}.long_term.LongTermKeys._secret_untrusted", h.from_capture, [h.genuine], forged,
                 share=0.2) for h in hellos),
        Target(f"{capture}.handshakes.Handshakes.flight_untrusted", _Flights(), packed),
        Target(f"{capture}.keylog.Keylog.add_untrusted", _keylog, [_KEYLOG]),
        Target(f"{capture}.decrypt.Decrypter._packet_untrusted", _Decrypt(), frames, (), _fix_frame, share=0.1),
    ]
