"""The trusted half of an AF_XDP socket: frames in and out of memory that an untrusted host shares.

What is sent is copied into a frame of ours that only then is the host's; what comes is copied out of the host's
frame before anybody looks at it, and the frame is ours again. A descriptor is copied once, and then checked: it
must lie in one frame, and that frame must be with the host for this purpose. What does not is counted and skipped;
whose the frame is does not change then. :meth:`CertifiedXsk.tend` finds frames that the host does not give back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from smtstack.rings.certified import WIDTH, ConsumerRing, ProducerRing
from smtstack.rings.frames import FREE, RECEIVING, SENDING, FrameOwners
from smtstack.rings.layout import COMPLETION, ENTRY_LEN, FILL, HEADROOM, RINGS, RX, TX, UMEM, RingConfig
from smtstack.rings.memory import SharedMemory

T = TypeVar("T")
#: A frame that the host has had for this long for nothing is taken back, and a ring begins anew whose indices
#: cannot be for so long. After an attack there is service again in at most four times that: rings, then frames,
#: each noticed at one look and mended at the next.
RECLAIM_NS: Final = 250_000_000


class CertifiedXsk:
    """Frames over the four rings of ``memories`` (:data:`~smtstack.rings.layout.RINGS`, and ``umem``), whose sizes
    are what ``config`` says. ``certified=False`` believes the host in everything: a control, and the price of the
    checks. ``headroom``: bytes left free before what is sent."""

    def __init__(self, memories: Mapping[str, SharedMemory], config: RingConfig, certified: bool = True,
                 headroom: int = HEADROOM, width: int = WIDTH, first: int = 0) -> None:
        self._umem = memories[UMEM]
        self._memories = {name: memories[name] for name in RINGS}
        self.owners = FrameOwners(config.frames, config.frame_size)
        self._frame_size = config.frame_size
        self._size_bits = config.frame_size.bit_length() - 1
        self._headroom = headroom
        self._certified = certified
        entries = {ring: config.ring_entries(ring) for ring in RINGS}
        self._fill = ProducerRing(memories[FILL], entries[FILL], ENTRY_LEN[FILL], certified, width, first)
        self._tx = ProducerRing(memories[TX], entries[TX], ENTRY_LEN[TX], certified, width, first)
        self._rx = ConsumerRing(memories[RX], entries[RX], ENTRY_LEN[RX], certified, width, first)
        self._done = ConsumerRing(memories[COMPLETION], entries[COMPLETION], ENTRY_LEN[COMPLETION], certified,
                                  width, first)
        #: What we wrote into each slot of the rings that we fill: frames.
        self._offered = [-1] * entries[FILL]
        self._posted = [-1] * entries[TX]
        #: Frames that were missing when :meth:`tend` looked last, and when it looks again.
        self._missing: set[tuple[int, int]] = set()
        self._tend_at = 0
        self.received = self.sent = 0
        self.rx_invalid = self.completions_invalid = 0
        self.fill_without_frame = self.tx_without_frame = self.tx_without_room = 0
        self.too_long = 0
        self.reclaimed = 0
        #: Whether each ring could not be when :meth:`tend` looked last.
        self._stuck = [False] * len(RINGS)
        self.restarts = 0
        self.refill()

    # -- receiving -----------------------------------------------------------------------------------------

    def waiting(self) -> bool:
        """Whether the host says that something came."""
        return self._rx.available() > 0

    def receive(self, limit: int) -> list[bytes]:
        """Copies of the packets that came, oldest first; at most ``limit`` descriptors are looked at."""
        return self.receive_by(limit, self._umem.copy)

    def receive_in_place(self, limit: int, use: Callable[[memoryview], T]) -> list[T]:
        """What ``use`` makes of each packet where it lies, instead of a copy of it; the frame is ours again
        afterwards. The region is checked as ever, what is in it may change while it is looked at."""
        umem = self._umem

        def look(start: int, length: int) -> T:
            with umem.view(start, length) as packet:
                return use(packet)

        return self.receive_by(limit, look)

    def receive_by(self, limit: int, take: Callable[[int, int], T]) -> list[T]:
        """What ``take`` makes of (start, bytes) of each packet."""
        count = min(self._rx.available(), limit)
        if count <= 0:
            return []
        packets = []
        ring, memory, owners = self._rx, self._memories[RX], self.owners
        for _number in range(count):
            address, length, options = memory.descriptor(ring.next())
            if self._certified:
                frame = owners.frame_of(address, length)
                # Options: a packet in several frames, which nobody asked for.
                if frame < 0 or options or owners.owner(frame) != RECEIVING:
                    self.rx_invalid += 1
                    continue
            packets.append(take(address, length))
            owners.give_back(address >> self._size_bits, RECEIVING)
        ring.publish()
        self.received += len(packets)
        self.refill()
        return packets

    def refill(self) -> None:
        """Give the host free frames to receive into, as many as the fill ring takes."""
        ring, memory = self._fill, self._memories[FILL]
        room = ring.room()
        if room <= 0:
            return
        placed = 0
        while placed < room:
            frame = self.owners.take(RECEIVING)
            if frame < 0:
                self.fill_without_frame += not placed
                break
            self._offered[ring.slot()] = frame
            memory.put_address(ring.next(), frame << self._size_bits)
            placed += 1
        if placed:
            ring.publish()

    # -- sending -------------------------------------------------------------------------------------------

    def send(self, packets: list[bytes], start: int = 0) -> int:
        """Put packets from number ``start`` on into the transmit ring; how many went. Fewer than there are: the
        host has not sent what it has."""
        self.complete()
        ring, memory, umem = self._tx, self._memories[TX], self._umem
        room = ring.room()
        most = self._frame_size - self._headroom
        number = start
        for number in range(start, len(packets)):
            packet = packets[number]
            if len(packet) > most:
                self.too_long += 1
                continue
            if room <= 0:
                self.tx_without_room += 1
                break
            frame = self.owners.take(SENDING)
            if frame < 0:
                self.tx_without_frame += 1
                break
            address = (frame << self._size_bits) + self._headroom
            umem.write(address, packet)
            self._posted[ring.slot()] = frame
            memory.put_descriptor(ring.next(), address, len(packet))
            room -= 1
            self.sent += 1
        else:
            number = len(packets)
        ring.publish()
        return number - start

    def complete(self) -> None:
        """Take back frames that the host says it has sent."""
        ring, memory, owners = self._done, self._memories[COMPLETION], self.owners
        count = min(ring.available(), ring.size)
        if count <= 0:
            return
        for _number in range(count):
            address = memory.address(ring.next())
            frame = owners.frame_of(address, 1)
            if not owners.give_back(frame, SENDING):
                self.completions_invalid += 1
        ring.publish()

    def unsent(self) -> int:
        """Packets in the transmit ring that the host has not taken, by one look."""
        self._tx.room()
        return self._tx.waiting()

    # -- what the host owes us -----------------------------------------------------------------------------

    def tend(self, now: int) -> None:
        """Now and then, also when nothing comes: say our indices again, begin rings anew that cannot be, and where
        no frame is left, take back those that the host has had out of its rings for :data:`RECLAIM_NS`. ``now`` in
        nanoseconds.

        A host that is honest again may still write into such a frame, or send from it: that changes a packet, and
        whoever opens it finds out.
        """
        if now < self._tend_at:
            return
        self._tend_at = now + RECLAIM_NS
        for ring in (self._fill, self._tx):
            ring.publish()
        for consumer in (self._rx, self._done):
            consumer.publish()
        self._restart_stuck()
        self.complete()
        missing: set[tuple[int, int]] = set()
        if not self.owners.held[FREE]:
            if not self._rx.available():
                missing |= self._lost(self._fill, self._offered, RECEIVING)
            missing |= self._lost(self._tx, self._posted, SENDING)
            for frame, _serial in missing & self._missing:
                self.owners.give_back(frame, self.owners.owner(frame))
                self.reclaimed += 1
        self._missing = missing
        self.refill()

    def _restart_stuck(self) -> None:
        self._fill.room()
        self._tx.room()
        self._rx.available()
        self._done.available()
        stuck = [not self._fill.possible, not self._done.possible, not self._rx.possible, not self._tx.possible]
        again = [now and before for now, before in zip(stuck, self._stuck, strict=True)]
        self._stuck = stuck
        fill, done, rx, tx = again
        if fill:
            self._fill.restart()
        if done:
            self._done.restart()
        if rx:
            self._rx.restart()
        if tx:
            self._tx.restart()
        self.restarts += sum(again)

    def _lost(self, given: ProducerRing, slots: list[int], owner: int) -> set[tuple[int, int]]:
        """Frames of ``owner`` that do not wait in the ring by which it got them, with which giving that was."""
        given.room()
        # A host that is believed may say that billions wait.
        waiting = min(given.waiting(), given.size)
        waits = {slots[given.slot(back)] for back in range(1, waiting + 1)}
        return {(frame, self.owners.serial(frame)) for frame in self.owners.owned_by(owner) if frame not in waits}

    def rejected(self) -> dict[str, int]:
        """How often the host's index of each ring could not be."""
        return {FILL: self._fill.rejected, COMPLETION: self._done.rejected, RX: self._rx.rejected,
                TX: self._tx.rejected}

    def counters(self) -> dict[str, int]:
        """What passed, and what was refused; names are RAKIS' where it has them."""
        return {"xsk_rx_recv_frame": self.received, "xsk_rx_invalid_frame": self.rx_invalid,
                "xsk_tx_sent_frame": self.sent, "xsk_tx_too_long": self.too_long,
                "xsk_tx_full_ring": self.tx_without_room, "xsk_tx_empty_alloc": self.tx_without_frame,
                "xsk_compl_invalid_frame": self.completions_invalid,
                "xsk_fill_empty_alloc": self.fill_without_frame, "xsk_reclaimed_frame": self.reclaimed,
                "xsk_ring_restarts": self.restarts,
                "xsk_free_frames": self.owners.held[FREE],
                **{f"ring_peer_index_rejected_{ring}": count for ring, count in self.rejected().items()}}

    def refused(self) -> int:
        """Entries and indices that were not believed; 0 with an honest host."""
        return self.rx_invalid + self.completions_invalid + sum(self.rejected().values())
