"""The handshake plane in a capture: what each flight is, and the TLS inside as a TCP twin."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from smtstack.capture.flows import Flow
from smtstack.capture.twins import TcpTwin, TwinFrame
from smtstack.errors import BadPacket
from smtstack.session import flights
from smtstack.session.early_keys import Kind as EarlyKind
from smtstack.session.flights import Flight, Kind
from smtstack.session.offer import Offer, agreement_untrusted

#: Handshakes remembered; more push out the oldest, whose later flights are no longer joined to it.
MAX_HANDSHAKES = 4096
#: Where a ClientHello in one TLS record has its random (RFC 8446 §4.1.2, §5.1).
_RANDOM_AT, _RANDOM_LEN = 11, 32

_NAMES = {Kind.CLIENT_HELLO: "client hello", Kind.SERVER_HELLO: "server hello",
          Kind.CLIENT_FINISH: "client finish",
          Kind.SERVER_DONE: "server done", Kind.EARLY_HELLO: "0-RTT hello", Kind.EARLY_ANSWER: "0-RTT answer",
          Kind.CLOSE: "close", Kind.CLOSED: "closed", Kind.REFUSED: "refused"}


#: A 0-RTT hello begins with version, kind and flags (``session/hello.py``).
_EARLY_FIXED = 3
_EARLY_KINDS: dict[int, str] = {EarlyKind.TICKET: "a ticket", EarlyKind.PSK: "a PSK"}


class FlightSeen(NamedTuple):
    """What a flight says, and its packets of a TCP twin."""

    flight: Flight
    comment: str
    frames: tuple[TwinFrame, ...] = ()
    #: Of a TLS ClientHello: names the lines of a keylog about it.
    client_random: bytes = b""


class Handshakes:
    """Joins flights to handshakes."""

    def __init__(self) -> None:
        #: By handshake id and the client's flow.
        self._twins: OrderedDict[tuple[bytes, Flow], TcpTwin] = OrderedDict()
        #: Handshake id by the client's flow and the (even) id of the RPC that carried the request.
        self._requests: OrderedDict[tuple[Flow, int], bytes] = OrderedDict()
        #: Handshakes and 0-RTT hellos seen to begin.
        self.begun = 0

    def flight_untrusted(self, flow: Flow, sender_id: int, data: bytes) -> FlightSeen:
        """A message of the plane, whole; raises :class:`BadPacket`."""
        flight = flights.parse_untrusted(data)
        from_client = not sender_id & 1
        client = flow if from_client else Flow(flow.dst, flow.dport, flow.src, flow.sport)
        request = client, sender_id & ~1
        fields = flight.fields
        if flight.kind in (Kind.CLIENT_HELLO, Kind.CLIENT_FINISH):
            name = fields[0]
            self._remember(request, name)
        else:
            name = self._requests.get(request, b"")
        self.begun += flight.kind in (Kind.CLIENT_HELLO, Kind.EARLY_HELLO)
        comment = f"handshake {name.hex()[:16]}: " if name else "handshake: "
        comment += _NAMES[flight.kind] + _details(flight)
        tls = fields[_TLS[flight.kind]] if flight.kind in _TLS else b""
        frames: list[TwinFrame] = []
        if tls and name:
            twin = self._twins.setdefault((name, client), TcpTwin(client))
            if len(self._twins) > MAX_HANDSHAKES:
                self._twins.popitem(last=False)
            frames = twin.send(from_client, tls, comment)
        random = tls[_RANDOM_AT:_RANDOM_AT + _RANDOM_LEN] if flight.kind is Kind.CLIENT_HELLO else b""
        return FlightSeen(flight, comment, tuple(frames), random)

    def _remember(self, request: tuple[Flow, int], name: bytes) -> None:
        self._requests[request] = name
        if len(self._requests) > 2 * MAX_HANDSHAKES:
            self._requests.popitem(last=False)


#: Which field of a flight is TLS's.
_TLS = {Kind.CLIENT_HELLO: 2, Kind.SERVER_HELLO: 1, Kind.CLIENT_FINISH: 1, Kind.SERVER_DONE: 0, Kind.REFUSED: 2}


def _details(flight: Flight) -> str:
    """The rest of the comment, where there is more to say."""
    fields = flight.fields
    try:
        if flight.kind is Kind.CLIENT_HELLO:
            offer = Offer.parse_untrusted(fields[1])
            return (f", offers {' or '.join(offer.ciphers)}, {offer.index_bits} index bits, messages of "
                    f"{offer.max_message} bytes, padding {offer.padding}, MTU {offer.mtu}")
        if flight.kind is Kind.SERVER_HELLO:
            choice = agreement_untrusted(fields[0])
            return (f", chooses {choice.cipher}, {choice.index_bits} index bits, messages of "
                    f"{choice.max_message} bytes, padding {choice.padding}, MTU {choice.mtu}")
    except BadPacket as e:
        return f", malformed: {e}"
    if flight.kind is Kind.REFUSED:
        return f": {flights.refusal_text(flight)}"
    if flight.kind is Kind.EARLY_HELLO and len(fields[0]) >= _EARLY_FIXED:
        with_what = _EARLY_KINDS.get(fields[0][1], "something unknown")
        return f" with {with_what}{', forward-secret' if fields[0][2] & 1 else ''}, {len(fields[0])} bytes"
    return ""
