"""The driver half: host software between the transport and the device.

Chooses a queue and a path for every message, keeps TLS contexts and their expected record numbers, and
falls back to software sealing, never to plaintext, whenever the device cannot do a segment.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final

from smtstack.crypto.aead import DirectionKeys
from smtstack.errors import ConfigError
from smtstack.nic.descriptors import Resync, Route, Send, TcpRoute
from smtstack.nic.device import SmartNic
from smtstack.transport.message import OutMessage
from smtstack.transport.segment import AS_TCP, Segment
from smtstack.wire.ethernet import MAX_PATHS, Ethernet, path_mac
from smtstack.wire.homa import OVERLAY_HEADER_LENGTH, TCP_HEADER_OFFSET
from smtstack.wire.ipv4 import PROTO_TCP
from smtstack.wire.overlay import place

#: MAC of the next hop towards an IPv4 address, or None while unknown.
Neighbours = Callable[[int], "bytes | None"]
#: Ciphers the device encrypts.
OFFLOAD_CIPHERS: Final = ("AES-128-GCM", "AES-256-GCM")
_OVERLAY: Final = OVERLAY_HEADER_LENGTH
_TCP_HEADER_AT: Final = TCP_HEADER_OFFSET
#: In the key of a route, above path and destination: its packets have the shape of TCP.
_OVERLAY_KEY: Final = 1 << 48


class ContextPolicy(Enum):
    """Who shares a TLS context."""

    PER_QUEUE = "per-queue"
    """One a session and queue: descriptors of one queue are serial, so resync and segment stay together."""
    SHARED = "shared"
    """One a session for all queues: two queues' resyncs and segments interleave and records are encrypted
    with wrong numbers (paper §3.2). Here to show that."""


class _Context:
    """What the driver remembers of a context: where the device's counter should stand."""

    __slots__ = ("expected", "number")

    def __init__(self, number: int, expected: int) -> None:
        self.number = number
        self.expected = expected


class NicDriver:
    """Posts the transport's segments to a :class:`SmartNic`."""

    def __init__(self, nic: SmartNic, mac: bytes, ip: int, protocol: int, neighbours: Neighbours,
                 policy: ContextPolicy = ContextPolicy.PER_QUEUE) -> None:
        self.nic = nic
        self._mac = mac
        self._ip = ip
        self._protocol = protocol
        self._neighbours = neighbours
        self._policy = policy
        self._queues = nic.config.queues
        self._paths = 1
        #: There is something to choose for a message: a queue, a path.
        self._spreads = self._queues > 1
        #: By destination and its shape (``AS_TCP``, ``_OVERLAY_KEY``); with several paths path << 32 is added.
        self._routes: dict[int, Route] = {}
        #: Insertion order is order of use: the first is the one to evict.
        self._contexts: dict[tuple[DirectionKeys, int], _Context] = {}
        #: Segments dropped because the next hop has no MAC address.
        self.unresolved = 0

    def forget_routes(self) -> None:
        """Neighbours may have moved: look them up again. Called every few seconds, it forgets old keys, too."""
        self._routes.clear()
        self._drop_retired()

    def set_paths(self, paths: int) -> None:
        """Spread messages over so many paths: consecutive ones of a peer take one after the other.

        All packets of a message go to the same destination MAC, one for each path
        (:func:`~smtstack.wire.ethernet.path_mac`), which switches must know; with 1 path to the plain one. A
        message under way when this changes may go on over another path. Raises :class:`ConfigError`.
        """
        if not 1 <= paths <= MAX_PATHS:
            raise ConfigError(f"paths is {paths}; 1 to {MAX_PATHS}")
        if paths != self._paths:
            self._paths = paths
            self._spreads = self._queues > 1 or paths > 1
            self.forget_routes()

    def trim_contexts(self) -> None:
        """After the device's limit was lowered: destroy contexts until they fit, the longest unused first."""
        while self.nic.contexts() > self.nic.context_limit and self._evict(self.nic):
            pass

    def transmit(self, segment: Segment) -> bool:
        """Post a segment; False when its ring is full: try again with the same segment before any other."""
        key = segment.dst
        queue = 0
        if self._spreads:
            # Ids of one side's messages step by 2.
            number = segment.flow >> 1
            queue = number % self._queues
            key |= number % self._paths << 32
        if segment.header[_TCP_HEADER_AT] == _OVERLAY:
            key |= _OVERLAY_KEY
        route = self._routes.get(key) or self._resolve(key)
        if route is None:
            self.unresolved += 1
            return True
        nic = self.nic
        message = segment.message
        if message is None or segment.payload is not None:
            assert segment.payload is not None
            return nic.post(queue, Send(route, segment.tos, segment.header, segment.payload, 0))
        if nic.tls_hw_tx_offload and message.version:
            posted = self._offload(nic, route, queue, segment, message)
            if posted is not None:
                return posted
            nic.counters.tx_tls_fallback += 1
        payload = message.payload(segment.index)
        if nic.tso or len(payload) <= segment.mss:
            return nic.post(queue, Send(route, segment.tos, segment.header, payload, segment.mss))
        return self._cut(nic, route, queue, segment, payload)

    def straight(self, segments: list[Segment], out: list[bytes]) -> int:
        """Append the frames of what is one packet; how many of the first segments that was.

        What :meth:`transmit` and the device make of these, without a descriptor in between: where the only ring is
        empty and has room for all, and nobody watches it, nothing else could happen to them.
        """
        nic = self.nic
        offload = nic.tls_hw_tx_offload
        count = len(segments)
        # With a RESYNC before each.
        if self._spreads or not nic.idle(count + count if offload else count):
            return 0
        routes = self._routes
        before = len(out)
        taken = 0
        size = 0
        for segment in segments:
            if segment.header[_TCP_HEADER_AT] == _OVERLAY:
                # Of a longer message, or a packet of one that is sent again.
                break
            route = routes.get(segment.dst) or self._resolve(segment.dst)
            if route is None:
                self.unresolved += 1
                taken += 1
                continue
            payload = segment.payload
            if payload is None:
                message = segment.message
                assert message is not None
                mss = segment.mss
                if message.count > 1 or message.length > mss:
                    break
                if offload and message.version:
                    payload = self._sealed_by_device(nic, message, mss)
                    if payload is None:
                        break
                    if not payload:
                        taken += 1
                        continue
                else:
                    payload = message.payload(0)
                    if len(payload) > mss:
                        break
            taken += 1
            frame = route.frame(segment.tos, 0, segment.header, payload)
            size += len(frame)
            out.append(frame)
        counters = nic.counters
        counters.tx_packets += len(out) - before
        counters.tx_bytes += size
        return taken

    def _sealed_by_device(self, nic: SmartNic, message: OutMessage, mss: int) -> bytes | None:
        """The only packet of a message as the device seals it; empty: it dropped that, None: not here."""
        keys = message.keys()
        if keys is None or keys.retired or keys.cipher.name not in OFFLOAD_CIPHERS:
            return None
        plain = message.framed(0)
        if len(plain) > mss:
            return None
        first = message.first_sequence(0)
        context = self._context(nic, keys, 0, message.version, first)
        if context is None:
            return None
        if context.expected != first:
            nic.resync(context.number, first)
        context.expected = first + message.records(0)
        return nic.seal(context.number, plain) or b""

    def _resolve(self, key: int) -> Route | None:
        ip = key & 0xFFFFFFFF
        mac = self._neighbours(ip)
        if mac is None:
            return None
        if self._paths > 1:
            mac = path_mac(mac, key >> 32 & MAX_PATHS)
        ethernet = Ethernet(mac, self._mac)
        if key & AS_TCP:
            self._routes[key] = TcpRoute(ethernet, self._ip, ip)
        else:
            protocol = PROTO_TCP if key & _OVERLAY_KEY else self._protocol
            self._routes[key] = Route(ethernet, self._ip, ip, protocol)
        return self._routes[key]

    @staticmethod
    def _cut(nic: SmartNic, route: Route, queue: int, segment: Segment, payload: bytes) -> bool:
        """Segmentation in software, for a device without TSO: the same frames."""
        mss = segment.mss
        header = segment.header
        overlay = header[_TCP_HEADER_AT] == _OVERLAY
        for at in range(segment.posted, len(payload), mss):
            piece = payload[at:at + mss]
            if overlay:
                header = place(segment.header, at)
            if not nic.post(queue, Send(route, segment.tos, header, piece, 0, 0, at // mss)):
                segment.posted = at
                return False
        return True

    def _offload(self, nic: SmartNic, route: Route, queue: int, segment: Segment,
                 message: OutMessage) -> bool | None:
        """Have the device seal this segment; False if the ring is full, None if the device cannot."""
        keys = message.keys()
        if keys is None or keys.retired or keys.cipher.name not in OFFLOAD_CIPHERS:
            return None
        index = segment.index
        payload = message.framed(index)
        if len(payload) > segment.mss and not nic.tso:
            # A record over several descriptors would need a device that keeps half-done records.
            return None
        first = message.first_sequence(index)
        context = self._context(nic, keys, queue, message.version, first)
        if context is None:
            nic.counters.tx_tls_no_ctx += 1
            return None
        if context.expected != first:
            if not nic.post(queue, Resync(context.number, first)):
                return False
            context.expected = first
        if not nic.post(queue, Send(route, segment.tos, segment.header, payload, segment.mss, context.number)):
            return False
        context.expected = first + message.records(index)
        return True

    def _context(self, nic: SmartNic, keys: DirectionKeys, queue: int, version: int,
                 sequence: int) -> _Context | None:
        key = (keys, queue if self._policy is ContextPolicy.PER_QUEUE else -1)
        context = self._contexts.pop(key, None)
        if context is None:
            self._drop_retired()
            number = nic.create_context(version, keys.key, keys.iv, sequence)
            if not number and self._evict(nic):
                number = nic.create_context(version, keys.key, keys.iv, sequence)
            if not number:
                return None
            context = _Context(number, sequence)
        self._contexts[key] = context
        return context

    def _evict(self, nic: SmartNic) -> bool:
        """Destroy the least recently used context whose queues are empty: nothing posted may need it."""
        for key, context in self._contexts.items():
            if self._unused(nic, key[1]):
                nic.destroy_context(context.number)
                del self._contexts[key]
                return True
        return False

    def _drop_retired(self) -> None:
        """Destroy contexts of ended sessions and epochs: the device must not know their keys for ever."""
        nic = self.nic
        for key in [k for k in self._contexts if k[0].retired and self._unused(nic, k[1])]:
            nic.destroy_context(self._contexts.pop(key).number)

    def _unused(self, nic: SmartNic, queue: int) -> bool:
        """Whether nothing is posted on a queue; -1: on any."""
        rings = range(self._queues) if queue < 0 else (queue,)
        return all(nic.space(q) == nic.config.ring_size for q in rings)
