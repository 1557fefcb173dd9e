"""The host's half of memory-backed rings: what the kernel does in an AF_XDP socket, where a kernel has none.

Honest: it gives every frame back, and says of each what it did. Nobody has to believe it for that.
"""

from __future__ import annotations

from collections.abc import Mapping

from smtstack.rings.certified import WIDTH, ConsumerRing, ProducerRing
from smtstack.rings.layout import COMPLETION, ENTRY_LEN, FILL, HEADROOM, RINGS, RX, TX, UMEM, RingConfig
from smtstack.rings.memory import SharedMemory


def memory_for(config: RingConfig) -> dict[str, bytearray]:
    """Memory of a socket, all zeros: of each ring, and the frames."""
    return {UMEM: bytearray(config.umem_bytes), **{ring: bytearray(config.ring_bytes(ring)) for ring in RINGS}}


def share(buffers: Mapping[str, bytearray]) -> dict[str, SharedMemory]:
    """One side's access to these. Each side has its own."""
    return {name: SharedMemory(name, buffer) for name, buffer in buffers.items()}


class MemoryHost:
    """Moves packets between a wire and the rings. ``headroom``: bytes left free before what came."""

    def __init__(self, memories: Mapping[str, SharedMemory], config: RingConfig, headroom: int = HEADROOM,
                 width: int = WIDTH, first: int = 0) -> None:
        self.memories = dict(memories)
        self._config = config
        self._headroom = headroom
        entries = {ring: config.ring_entries(ring) for ring in RINGS}
        self._fill = ConsumerRing(memories[FILL], entries[FILL], ENTRY_LEN[FILL], True, width, first)
        self._tx = ConsumerRing(memories[TX], entries[TX], ENTRY_LEN[TX], True, width, first)
        self._rx = ProducerRing(memories[RX], entries[RX], ENTRY_LEN[RX], True, width, first)
        self._done = ProducerRing(memories[COMPLETION], entries[COMPLETION], ENTRY_LEN[COMPLETION], True, width,
                                  first)
        #: Packets that found no frame to be received into, or no place in the ring.
        self.dropped = 0

    def resume(self) -> None:
        """Take over from another process that was the host until it died."""
        for consumer in (self._fill, self._tx):
            consumer.resume()
        for producer in (self._rx, self._done):
            producer.resume()

    def has_work(self) -> bool:
        """Whether packets wait to be sent, and can be."""
        return self._tx.available() > 0 and self._done.room() > 0

    def deliver(self, packets: list[bytes]) -> None:
        """Packets came off the wire."""
        umem, room = self.memories[UMEM], self._rx.room()
        frames = self._fill.available()
        for packet in packets:
            if room <= 0 or frames <= 0 or len(packet) > self._config.frame_size - self._headroom:
                self.dropped += 1
                continue
            address = self.memories[FILL].address(self._fill.next())
            frames -= 1
            if address > umem.length - self._config.frame_size:
                self.dropped += 1
                continue
            umem.write(address + self._headroom, packet)
            self.memories[RX].put_descriptor(self._rx.next(), address + self._headroom, len(packet))
            room -= 1
        self._fill.publish()
        self._rx.publish()

    def keep_frames(self, count: int) -> None:
        """Some that the guest gave to receive into never come back: no honest host does that."""
        for _frame in range(min(self._fill.available(), count)):
            self._fill.next()
        self._fill.publish()

    def collect(self) -> list[bytes]:
        """Packets that go onto the wire; their frames are given back."""
        umem, packets = self.memories[UMEM], []
        for _number in range(min(self._tx.available(), self._done.room())):
            address, length, _options = self.memories[TX].descriptor(self._tx.next())
            if address + length <= umem.length:
                packets.append(umem.copy(address, length))
            self.memories[COMPLETION].put_address(self._done.next(), address)
        self._tx.publish()
        self._done.publish()
        return packets
