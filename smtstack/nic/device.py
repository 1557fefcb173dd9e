"""The device half: queues of descriptors in, frames out; frames in, receive rings out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from smtstack.errors import ConfigError
from smtstack.nic.context import TlsContext
from smtstack.nic.counters import NicCounters
from smtstack.nic.descriptors import Descriptor, Send
from smtstack.nic.steering import steering_named
from smtstack.wire.ethernet import ETHERTYPE_IPV4
from smtstack.wire.frame import ETHERTYPE_AT, IP_OFFSET, TRANSPORT_OFFSET
from smtstack.wire.homa import DATA_LEN, OVERLAY_HEADER_LENGTH, TCP_HEADER_OFFSET
from smtstack.wire.ipv4 import HEADER_LEN
from smtstack.wire.overlay import MAX_IP, place

#: Which of the non-empty queues (in ascending order) is served next.
Arbiter = Callable[[list[int]], int]

_IPV4: Final = ETHERTYPE_IPV4.to_bytes(2, "big")
_OVERLAY: Final = OVERLAY_HEADER_LENGTH
_TCP_HEADER_AT: Final = TCP_HEADER_OFFSET
#: Bytes of the longest payload that one IP packet takes.
_MAX_PAYLOAD: Final = MAX_IP - HEADER_LEN - DATA_LEN

#: Feature names as ethtool knows them.
FEATURES: Final = ("tso", "tls-hw-tx-offload", "tso-seq", "rx-checksum", "gso")
#: Those of a NIC that owns its interface (hosting tap), and all that there are.
TAP_FEATURES: Final = ("tso", "tls-hw-tx-offload", "rx-checksum", "tls-hw-rx-offload")
ALL_FEATURES: Final = (*FEATURES, "tls-hw-rx-offload")


@dataclass(frozen=True, slots=True)
class NicConfig:
    """What the hardware is like. Features can be switched later, the rest cannot."""

    queues: int = 1
    ring_size: int = 1024
    """Descriptors a TX queue holds."""
    rx_queues: int = 1
    rx_ring_size: int = 4096
    """Frames a receive queue holds for the host to take; what comes when it is full is lost."""
    max_contexts: int = 1024
    """TLS contexts that fit the device's memory."""
    tso: bool = True
    tls_hw_tx_offload: bool = False
    tso_seq: bool = False
    """Add the packet's offset in its segment to bytes 4..7 of the transport header, where TCP has its sequence, as
    hardware does. DATA of our own layouts, whose sequence begins with 0, is flagged for it in byte 11."""
    rx_checksum: bool = True
    gso: bool = True
    """With ``tso`` and where the wire takes them: a segment in the shape of TCP leaves as one frame, for who is
    behind the device to cut. Others are cut here."""
    steering: str = "flow"
    """``flow`` or ``message``."""
    trusted: bool = True
    """False: it is on the far side of a trust boundary. Then nothing in clear is posted to it, and no key,
    whatever is set: it never has TLS offload."""
    tls_hw_rx_offload: bool = False
    """TLS of kernel TCP is decrypted on its way in; only a NIC that owns its interface does that."""


class ContextMemory(Protocol):
    """Memory for TLS contexts that a device shares with others."""

    def claim_context(self, own: int, limit: int) -> bool:
        """Whether there is room for one more than the ``own`` contexts, where ``limit`` may be there."""

    def hold_contexts(self, own: int) -> None:
        """There are so many now."""


class Watcher(Protocol):
    """Is told of everything that passes the device."""

    def done(self, queue: int, descriptor: Descriptor, sequence: int, frames: list[bytes]) -> None:
        """A descriptor was worked off. Its context held record number ``sequence`` before; these frames leave."""

    def arrived(self, frame: bytes) -> None:
        """A frame comes off the wire."""


class SmartNic:
    """One NIC. Order holds within a TX queue, never between queues."""

    def __init__(self, config: NicConfig | None = None, arbiter: Arbiter | None = None) -> None:
        self.config = config or NicConfig()
        if self.config.queues < 1 or self.config.rx_queues < 1:
            raise ConfigError("a NIC has at least one queue in each direction")
        if self.config.ring_size < 1 or self.config.rx_ring_size < 1:
            raise ConfigError("a ring has room for at least one descriptor or frame")
        self.counters = NicCounters()
        self.tso = self.config.tso
        if self.config.tls_hw_tx_offload and not self.config.trusted:
            raise ConfigError("a NIC that is not trusted gets no plaintext and no key: TLS offload is refused; "
                              "take --nic sw")
        self.tls_hw_tx_offload = self.config.tls_hw_tx_offload
        self.tso_seq = self.config.tso_seq
        self.rx_checksum = self.config.rx_checksum
        self.gso = self.config.gso
        #: The wire takes super-frames: who connects the device says so.
        self.super_frames = False
        #: Contexts that may be there at once; a setting can lower it below the hardware's ``max_contexts``.
        self.context_limit = self.config.max_contexts
        #: Shared with other devices; None: it is this one's alone.
        self.memory: ContextMemory | None = None
        #: Sees all that passes; None: nobody.
        self.watcher: Watcher | None = None
        self._tx: list[deque[Descriptor]] = [deque() for _ in range(self.config.queues)]
        self._ring_size = self.config.ring_size
        #: Descriptors that wait to be worked off.
        self.posted = 0
        self._next = 0
        self._arbiter = arbiter
        self._rx_queues = self.config.rx_queues
        self._rx_ring_size = self.config.rx_ring_size
        self._rx: list[deque[bytes]] = [deque() for _ in range(self.config.rx_queues)]
        #: Frames that wait in the receive rings.
        self.waiting = 0
        self._next_rx = 0
        self._steer = steering_named(self.config.steering)
        self._contexts: dict[int, TlsContext] = {}
        self._context_ids = 0

    # -- control path ------------------------------------------------------------------------------------

    def set_feature(self, name: str, on: bool) -> None:
        """Switch a feature by its ethtool name; raises :class:`ConfigError` for others."""
        if name not in FEATURES:
            raise ConfigError(f"unknown NIC feature {name!r}; there are {', '.join(FEATURES)}")
        if on and name == "tls-hw-tx-offload" and not self.config.trusted:
            self.counters.tx_tls_refused += 1
            return
        setattr(self, name.replace("-", "_"), on)

    def features(self) -> dict[str, bool]:
        """Every feature and whether it is on."""
        return {name: bool(getattr(self, name.replace("-", "_"))) for name in FEATURES}

    def watch(self, watcher: Watcher | None) -> None:
        """Tell it of all that passes; None: nobody."""
        self.watcher = watcher

    def create_context(self, version: int, key: bytes, iv: bytes, sequence: int) -> int:
        """Number of a fresh TLS context (never 0), or 0 when the device's memory is full."""
        if not self.config.trusted:
            return 0
        held = len(self._contexts)
        if held >= self.context_limit or (self.memory is not None
                                          and not self.memory.claim_context(held, self.context_limit)):
            return 0
        self._context_ids += 1
        self._contexts[self._context_ids] = TlsContext(version, key, iv, sequence)
        self.counters.tx_tls_ctx += 1
        return self._context_ids

    def destroy_context(self, context: int) -> None:
        """Forget a context. Segments still posted for it are dropped, not sent in clear."""
        if self._contexts.pop(context, None) is not None:
            self.counters.tx_tls_del += 1
            if self.memory is not None:
                self.memory.hold_contexts(len(self._contexts))

    def contexts(self) -> int:
        """How many TLS contexts there are."""
        return len(self._contexts)

    # -- transmit ----------------------------------------------------------------------------------------

    def space(self, queue: int) -> int:
        """Descriptors that still fit the ring of ``queue``."""
        return self.config.ring_size - len(self._tx[queue])

    def idle(self, count: int) -> bool:
        """Whether ``count`` descriptors would leave as they are posted, with nothing before or between them.

        Not where packets get their place in the segment written: that is :meth:`process`'s.
        """
        return (not self.posted and count <= self._ring_size and len(self._tx) == 1 and self.watcher is None
                and not self.tso_seq)

    def post(self, queue: int, descriptor: Descriptor) -> bool:
        """Queue a descriptor; False when the ring is full."""
        ring = self._tx[queue]
        if len(ring) >= self._ring_size:
            self.counters.tx_queue_stopped += 1
            return False
        ring.append(descriptor)
        self.posted += 1
        return True

    def process(self, budget: int = 0) -> list[bytes]:
        """Work off posted descriptors, at most ``budget`` of them (0: all); the frames that leave."""
        out: list[bytes] = []
        rings = self._tx
        todo = min(budget, self.posted) if budget else self.posted
        self.posted -= todo
        queue = 0
        ring = rings[0]
        several = len(rings) > 1
        watcher = self.watcher
        before = sequence = 0
        for _descriptor in range(todo):
            if several:
                ready = [i for i, r in enumerate(rings) if r]
                queue = self._arbiter(ready) if self._arbiter else self._round_robin(ready)
                ring = rings[queue]
            d = ring.popleft()
            if watcher is not None:
                before, sequence = len(out), self._sequence(d)
            if isinstance(d, Send):
                payload = self.seal(d.context, d.payload) if d.context else d.payload
                mss = d.mss
                if payload is None:
                    pass
                elif mss and len(payload) > mss:
                    self._cut(d, payload, out)
                else:
                    header = place(d.header, 0) if mss and self.tso_seq else d.header
                    out.append(d.route.frame(d.tos, d.ip_id, header, payload))
            else:
                self.resync(d.context, d.sequence)
            if watcher is not None:
                watcher.done(queue, d, sequence, out[before:])
        self.counters.tx_packets += len(out)
        self.counters.tx_bytes += sum(map(len, out))
        return out

    def _round_robin(self, ready: list[int]) -> int:
        for queue in ready:
            if queue >= self._next:
                break
        else:
            queue = ready[0]
        self._next = queue + 1
        return queue

    def _sequence(self, descriptor: Descriptor) -> int:
        """Record number that the descriptor's context holds; 0: it has none."""
        context = self._contexts.get(descriptor.context)
        return 0 if context is None else context.sequence

    def resync(self, number: int, sequence: int) -> None:
        """Set the record number that a context holds: what a RESYNC descriptor does."""
        context = self._contexts.get(number)
        if context is not None:
            context.sequence = sequence
            self.counters.tx_tls_ooo += 1

    def seal(self, number: int, payload: bytes) -> bytes | None:
        """The payload sealed with the record number that the context holds; None: dropped, never sent in clear."""
        counters = self.counters
        context = self._contexts.get(number)
        sealed = context.encrypt(payload) if context is not None else None
        if sealed is None:
            counters.tx_tls_drop_bypass_req += 1
            counters.tx_dropped += 1
            return None
        counters.tx_tls_encrypted_packets += 1
        counters.tx_tls_encrypted_bytes += len(sealed)
        return sealed

    def _cut(self, d: Send, payload: bytes, out: list[bytes]) -> None:
        # TSO for any IP protocol: the header is copied, the IP ID counts (paper §4.3).
        counters = self.counters
        counters.tx_tso_packets += 1
        counters.tx_tso_bytes += len(payload)
        header = d.header
        make = d.route.frame
        mss = d.mss
        ip_id = d.ip_id
        overlay = header[_TCP_HEADER_AT] == _OVERLAY
        if overlay and self.super_frames and self.gso and len(payload) <= _MAX_PAYLOAD:
            counters.tx_gso_packets += 1
            out.append(make(d.tos, ip_id, header, payload))
            return
        placed = overlay or self.tso_seq
        for cut in range(0, len(payload), mss):
            if placed:
                header = place(d.header, cut)
            out.append(make(d.tos, ip_id & 0xFFFF, header, payload[cut:cut + mss]))
            ip_id += 1

    # -- receive -----------------------------------------------------------------------------------------

    def receive(self, frame: bytes) -> None:
        """Take a frame from the wire into a receive ring, or drop and count it."""
        self.arrive([frame])

    def arrive(self, frames: list[bytes]) -> None:
        """Take frames from the wire into the receive rings, in their order; drop and count what does not fit."""
        if self.watcher is not None:
            for frame in frames:
                self.watcher.arrived(frame)
        counters = self.counters
        counters.rx_packets += len(frames)
        checksum = self.rx_checksum
        room = self._rx_ring_size
        ring = self._rx[0]
        several = self._rx_queues > 1
        for frame in frames:
            size = len(frame)
            counters.rx_bytes += size
            if size < TRANSPORT_OFFSET or frame[ETHERTYPE_AT:IP_OFFSET] != _IPV4:
                counters.rx_errors += 1
            elif checksum and int.from_bytes(frame[IP_OFFSET:TRANSPORT_OFFSET], "big") % 0xFFFF:
                counters.rx_csum_bad += 1
            else:
                if several:
                    ring = self._rx[self._steer(frame, self._rx_queues)]
                if len(ring) < room:
                    ring.append(frame)
                    self.waiting += 1
                else:
                    counters.rx_dropped += 1

    def take_in(self, frames: list[bytes], limit: int = 0) -> list[bytes]:
        """:meth:`arrive`, then :meth:`collect`, of who looks after every burst: by no ring where all fits one."""
        count = len(frames)
        if (self.waiting or self._rx_queues > 1 or count > self._rx_ring_size or (limit and count > limit)
                or self.watcher is not None):
            self.arrive(frames)
            return self.collect(limit)
        counters = self.counters
        counters.rx_packets += count
        checksum = self.rx_checksum
        size = 0
        out: list[bytes] = []
        for frame in frames:
            length = len(frame)
            size += length
            if length < TRANSPORT_OFFSET or frame[ETHERTYPE_AT:IP_OFFSET] != _IPV4:
                counters.rx_errors += 1
            elif checksum and int.from_bytes(frame[IP_OFFSET:TRANSPORT_OFFSET], "big") % 0xFFFF:
                counters.rx_csum_bad += 1
            else:
                out.append(frame)
        counters.rx_bytes += size
        return out

    def take(self, queue: int = 0) -> bytes | None:
        """The next received frame of a queue."""
        ring = self._rx[queue]
        if not ring:
            return None
        self.waiting -= 1
        return ring.popleft()

    def collect(self, limit: int = 0) -> list[bytes]:
        """Received frames, at most ``limit`` of them (0: all), queue by queue.

        The next call begins with the queue after the last one, so that none waits for ever.
        """
        if self._rx_queues == 1 and (not limit or self.waiting <= limit):
            ring = self._rx[0]
            out = [*ring]
            ring.clear()
            self.waiting = 0
            return out
        todo = min(limit, self.waiting) if limit else self.waiting
        self.waiting -= todo
        out = []
        while len(out) < todo:
            ring = self._rx[self._next_rx]
            while ring and len(out) < todo:
                out.append(ring.popleft())
            self._next_rx = (self._next_rx + 1) % self._rx_queues
        return out
