"""The handshake plane: RPCs in clear that carry flights, beside the sealed ones of the same port.

An endpoint of its own, of profile ``homa``, all of whose packets have flag HANDSHAKE. Nothing on it is
authenticated: what a flight is worth is for TLS, a ticket or a proof to say. So the plane remembers nobody for
long, ids of requests not at all, and has room for new ones always: a flood displaces what is oldest. That a
flight may come twice is made harmless one level up.
"""

from __future__ import annotations

import secrets
from collections import deque
from dataclasses import replace

from smtstack.crypto.epochs import Session
from smtstack.crypto.keys import Endpoints, KeyStore
from smtstack.crypto.replay import ReplayGuard
from smtstack.session.flights import MAX_FLIGHT, VERSION, Flight, Kind
from smtstack.transport.endpoint import Endpoint
from smtstack.transport.events import Event, Request
from smtstack.transport.params import TransportParams
from smtstack.transport.rpc import Rpc
from smtstack.transport.segment import Segment
from smtstack.transport.states import DEAD
from smtstack.wire.frame import DATA_FRAME, FLAGS_AT, IP_OFFSET, PAYLOAD_AT, TYPE_AT
from smtstack.wire.homa import DATA, FLAGS_OFFSET, HANDSHAKE

#: Peers whose plane is remembered; more push out the one heard of least lately.
MAX_PEERS = 4096
#: Answers kept until their clients acknowledge them; more push out the oldest.
MAX_ANSWERS = 2048
#: Bounds of unfinished requests: RPCs and bytes of one host, and of all.
_MAX_RPCS_PER_HOST = 4096
_MAX_RPCS = 8192
_MAX_BYTES_PER_HOST = 4 << 20
_MAX_BYTES = 32 << 20
#: A flight of this size needs no grant: most certificate chains.
_UNSCHED_BYTES = 20_000
#: Ticks between RESENDs: the other side may be busy with other people's handshakes.
_RESEND_INTERVAL = 25
#: What is sent in vain to who may not even have asked. A client that lives asks again by itself, and gets the same
#: answer.
_RESENDS_SERVED = 3
#: How a refusal begins.
_REFUSED = bytes((VERSION, Kind.REFUSED))
#: Bits of a first id: nobody who does not see our packets guesses what an answer must name.
_ID_BITS = 61


class _OpenGuard(ReplayGuard):
    """Remembers nothing: a host that starts over takes any ids, and a forger must not use them up for it."""

    __slots__ = ()

    def is_replay(self, message_id: int) -> bool:
        return False

    def mark(self, message_id: int) -> bool:
        return True


class _PlaneKeys(KeyStore):
    """Sessions without protection, whose ids start anywhere."""

    def session(self, ends: Endpoints) -> Session | None:
        session = Session(first_id=2 + 2 * secrets.randbits(_ID_BITS))
        session.current.guard = _OpenGuard()
        return session


class Plane:
    """Sends flights, as requests and answers, to any address."""

    def __init__(self, ip: int, port: int, params: TransportParams, patience_ns: int) -> None:
        """``patience_ns``: how long a silent peer is asked again, and half of how long it is remembered."""
        resends = 1 + patience_ns // (_RESEND_INTERVAL * params.tick_ns)
        unsched = max(params.unsched_bytes, _UNSCHED_BYTES)
        own = replace(params, max_message_length=MAX_FLIGHT, unsched_bytes=unsched,
                      resend_interval=_RESEND_INTERVAL, timeout_resends=resends,
                      # A server forgets its answer soon, unless it is asked for steadily.
                      resend_doublings=0,
                      timeout_resends_served=_RESENDS_SERVED,
                      incast_threshold=0, max_rpcs_per_host=_MAX_RPCS_PER_HOST, max_server_rpcs=_MAX_RPCS,
                      max_rx_bytes_per_host=_MAX_BYTES_PER_HOST, max_rx_bytes=_MAX_BYTES)
        self._endpoint = Endpoint(ip, port, "homa", _PlaneKeys(), own)
        self._forget_ns = 2 * patience_ns
        #: When a flight of the peer was last heard or sent, by (ip, port); the longest silent first.
        self._heard: dict[tuple[int, int], int] = {}
        #: Requests of ours under way, by peer.
        self._asked: dict[tuple[int, int], int] = {}
        #: The same by (ip, port, id), but for those that nobody waits for.
        self._waiting: dict[tuple[int, int, int], Rpc] = {}
        self._refusals: deque[tuple[Rpc, bytes]] = deque()
        self._answered: deque[Rpc] = deque()

    # -- flights -----------------------------------------------------------------------------------------

    def ask(self, ip: int, port: int, flight: Flight, cookie: object, now: int) -> Rpc:
        """Send a flight that has an answer; a Response or Failed event brings ``cookie`` back.

        Raises :class:`LocalError` for one longer than ``MAX_FLIGHT``.
        """
        self._endpoint.limit_mtu(ip, port, flight.mtu)
        rpc = self._endpoint.send_request(ip, port, flight.pack(), now, cookie)
        self._asked[ip, port] = self._asked.get((ip, port), 0) + 1
        self._waiting[ip, port, rpc.id] = rpc
        self._touch((ip, port), now)
        return rpc

    def answer(self, rpc: Rpc, flight: Flight, now: int) -> None:
        """Answer a Request event. Raises :class:`LocalError` for a flight longer than ``MAX_FLIGHT``."""
        rpc.peer.mtu = min(flight.mtu, self._endpoint.params.mtu)
        self._endpoint.send_reply(rpc, flight.pack(), now)
        self._answered.append(rpc)
        self._forget_answers()

    def _forget_answers(self) -> None:
        answered = self._answered
        while answered and (answered[0].state is DEAD or len(answered) > MAX_ANSWERS):
            self._endpoint.abort(answered.popleft())

    def drop(self, rpc: Rpc) -> None:
        """Give up a request of ours; its Failed event has no cookie."""
        rpc.cookie = None
        self._endpoint.abort(rpc)

    def next_refusal(self) -> tuple[Rpc, bytes] | None:
        """A refusal in one packet that claims to answer a request of ours, which goes on all the same.

        Anybody who sees a request can send one, and may well be faster than who is asked: :meth:`drop` the request
        if it is genuine.
        """
        return self._refusals.popleft() if self._refusals else None

    def next_event(self, now: int) -> Event | None:
        """What came of it all."""
        event = self._endpoint.next_event()
        if event is None:
            return None
        peer = event.rpc.peer.host.ip, event.rpc.peer.port
        if not isinstance(event, Request):
            left = self._asked.pop(peer, 1) - 1
            if left:
                self._asked[peer] = left
            self._waiting.pop((*peer, event.rpc.id), None)
        self._touch(peer, now)
        return event

    def _touch(self, peer: tuple[int, int], now: int) -> None:
        heard = self._heard
        heard.pop(peer, None)
        heard[peer] = now
        if len(heard) > MAX_PEERS:
            # Not one that we are asking: who makes up peers must not end our handshakes.
            oldest = next((p for p in heard if p not in self._asked), None)
            if oldest is not None:
                self._forget(oldest, now)

    def _forget(self, peer: tuple[int, int], now: int) -> None:
        del self._heard[peer]
        self._endpoint.end_session(*peer, "", now)

    # -- the network's side ------------------------------------------------------------------------------

    def handle_packet(self, frame: bytes, now: int) -> None:
        """A frame with flag HANDSHAKE."""
        if self._is_refusal(frame):
            return
        # To its own endpoint it is one of profile homa like any other.
        self._endpoint.handle_packet(_with_byte(frame, FLAGS_AT, frame[FLAGS_AT] & ~HANDSHAKE), now)

    def _is_refusal(self, frame: bytes) -> bool:
        """Whether it was one for :meth:`next_refusal`."""
        if not self._waiting or len(frame) < PAYLOAD_AT + len(_REFUSED) or frame[TYPE_AT] != DATA \
                or not frame.startswith(_REFUSED, PAYLOAD_AT):
            return False
        (_ethertype, _vihl, _tos, total, _ip_id, _fragment, _protocol, src, _dst, sport, _dport, _offset, _size,
         _epoch, _flags, _high, _low, sender_id, length, *_rest) = DATA_FRAME.unpack_from(frame)
        rpc = self._waiting.get((src, sport, sender_id ^ 1))
        payload = frame[PAYLOAD_AT:IP_OFFSET + total]
        if rpc is None or rpc.state is DEAD or len(payload) != length:
            return False
        if len(self._refusals) < MAX_PEERS:
            self._refusals.append((rpc, payload))
        return True

    def poll_transmit(self, now: int) -> Segment | None:
        """The next segment, or None."""
        segment = self._endpoint.poll_transmit(now)
        if segment is not None:
            segment.header = _with_byte(segment.header, FLAGS_OFFSET, segment.header[FLAGS_OFFSET] | HANDSHAKE)
        return segment

    def unsent(self) -> bool:
        """Whether something waits for its turn."""
        return self._endpoint.snapshot()["unsent"] != 0

    def next_timeout(self) -> int | None:
        """When to call :meth:`handle_timeout` at the latest."""
        at = self._endpoint.next_timeout()
        if self._heard:
            forget = next(iter(self._heard.values())) + self._forget_ns
            at = forget if at is None else min(at, forget)
        return at

    def handle_timeout(self, now: int) -> None:
        """Ask again for what is missing, forget who was silent for long."""
        self._endpoint.handle_timeout(now)
        self._forget_answers()
        before = now - self._forget_ns
        while self._heard:
            peer, heard = next(iter(self._heard.items()))
            if heard > before:
                return
            self._forget(peer, now)

    def snapshot(self) -> dict[str, int]:
        """Sizes of its state."""
        return self._endpoint.snapshot()


def _with_byte(data: bytes, at: int, value: int) -> bytes:
    return b"".join((data[:at], bytes((value,)), data[at + 1:]))
