"""A host that does to its guest whatever the memory of their AF_XDP socket lets it do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from smtstack.rings.adversary import Adversary
from smtstack.rings.host import MemoryHost
from smtstack.rings.layout import (
    COMPLETION,
    CONSUMER_AT,
    ENTRIES_AT,
    ENTRY_LEN,
    FILL,
    HEADROOM,
    PRODUCER_AT,
    RINGS,
    RX,
    TX,
    UMEM,
    RingConfig,
)
from smtstack.rings.memory import SharedMemory

_MASK: Final = 0xFFFFFFFF
_MASK64: Final = (1 << 64) - 1
#: Kinds of mutations; each has a method of its name.
KINDS: Final = ("index_random", "index_backwards", "index_beyond", "index_near_wrap", "index_forward",
                "guests_index", "descriptor_outside", "descriptor_straddling", "descriptor_empty",
                "descriptor_too_long",
                "descriptor_of_another", "descriptor_twice", "descriptor_options", "descriptor_bytes",
                "completion_never_sent", "completion_twice", "completion_outside", "bytes_of_a_frame",
                "bytes_of_the_next", "packet_again", "packet_forged", "frames_kept", "tx_changed", "clock_back",
                "clock_forward")
#: Those that leave rings and frames so that what is sent goes on: what hurts is packets.
SOFT: Final = ("descriptor_twice", "completion_twice", "bytes_of_a_frame", "bytes_of_the_next", "packet_again",
               "packet_forged", "tx_changed")
_KEPT_PACKETS: Final = 64
#: A clock is set back or forward by so much at most: an hour.
_LARGEST_SKEW_NS: Final = 3600 * 10**9


class HostileHost(Adversary):
    """Behind an AF_XDP socket."""

    def __init__(self, memories: Mapping[str, SharedMemory], config: RingConfig, seed: int, chance: float = 0.0,
                 headroom: int = HEADROOM) -> None:
        super().__init__(KINDS, seed, chance)
        self.memories = dict(memories)
        self._honest = MemoryHost(memories, config, headroom)
        self._config = config
        self._packets: list[bytes] = []
        #: By how much what it says of the time is wrong, in nanoseconds.
        self.skew_ns = 0

    def deliver(self, packets: list[bytes]) -> None:
        """Packets came off the wire; some are kept, to come again."""
        if self.chance:
            self._packets = [packet for packet in (*self._packets, *packets) if packet][-_KEPT_PACKETS:]
        self._honest.deliver(packets)

    def collect(self) -> list[bytes]:
        """What an honest host does."""
        return self._honest.collect()

    def change(self, kind: str) -> None:
        getattr(self, f"_{kind}")()

    # -- indices -------------------------------------------------------------------------------------------

    def _any_ring(self) -> str:
        return self._random.choice(RINGS)

    def _peer_at(self, ring: str) -> int:
        """Where the index of a ring is that the guest believes."""
        return CONSUMER_AT if ring in (FILL, TX) else PRODUCER_AT

    def _set(self, ring: str, value: int) -> None:
        self.memories[ring].store(self._peer_at(ring), value & _MASK)

    def _index_random(self) -> None:
        self._set(self._any_ring(), self._random.getrandbits(32))

    def _index_backwards(self) -> None:
        ring = self._any_ring()
        self._set(ring, self.memories[ring].load(self._peer_at(ring)) - self._random.randint(1, 64))

    def _index_beyond(self) -> None:
        ring = self._any_ring()
        own = self.memories[ring].load(CONSUMER_AT + PRODUCER_AT - self._peer_at(ring))
        self._set(ring, own + self._config.ring_entries(ring) + self._random.randint(0, 3))

    def _index_near_wrap(self) -> None:
        self._set(self._any_ring(), -self._random.randint(1, 16))

    def _index_forward(self) -> None:
        ring = self._any_ring()
        self._set(ring, self.memories[ring].load(self._peer_at(ring)) + self._random.randint(1, 8))

    def _guests_index(self) -> None:
        ring = self._any_ring()
        self.memories[ring].store(CONSUMER_AT + PRODUCER_AT - self._peer_at(ring), self._random.getrandbits(32))

    # -- entries -------------------------------------------------------------------------------------------

    def _slot(self, ring: str, index: int) -> int:
        return ENTRIES_AT + (index & (self._config.ring_entries(ring) - 1)) * ENTRY_LEN[ring]

    def _receive(self, address: int, length: int, options: int = 0) -> None:
        """Have the guest see a descriptor: in the place of the next that it looks at, and there is one more."""
        memory = self.memories[RX]
        at = self._slot(RX, memory.load(CONSUMER_AT))
        memory.put_descriptor(at, address & _MASK64, length & _MASK)
        if options:
            memory.store(at + 12, options)
        memory.store(PRODUCER_AT, (memory.load(CONSUMER_AT) + self._random.randint(1, 3)) & _MASK)

    def _descriptor_outside(self) -> None:
        end = self._config.umem_bytes
        self._receive(self._random.choice((end, end - 10, end + self._random.getrandbits(40), -8, 1 << 63)), 64)

    def _descriptor_straddling(self) -> None:
        frame = self._random.randrange(self._config.frames)
        self._receive((frame + 1) * self._config.frame_size - self._random.randint(1, 63), 64)

    def _descriptor_empty(self) -> None:
        self._receive(self._frame(), 0)

    def _descriptor_too_long(self) -> None:
        self._receive(self._frame(), self._random.choice((self._config.frame_size + 1, _MASK, 1 << 31)))

    def _descriptor_of_another(self) -> None:
        self._receive(self._frame() + HEADROOM, 128)

    def _descriptor_twice(self) -> None:
        memory = self.memories[RX]
        address, length, _options = memory.descriptor(self._slot(RX, memory.load(CONSUMER_AT) - 1))
        self._receive(address, length)

    def _descriptor_options(self) -> None:
        self._receive(self._frame() + HEADROOM, 64, self._random.randint(1, 255))

    def _descriptor_bytes(self) -> None:
        self._receive(self._random.getrandbits(64), self._random.getrandbits(32))

    def _frame(self) -> int:
        return self._random.randrange(self._config.frames) * self._config.frame_size

    def _complete(self, address: int) -> None:
        memory = self.memories[COMPLETION]
        memory.put_address(self._slot(COMPLETION, memory.load(CONSUMER_AT)), address & _MASK64)
        memory.store(PRODUCER_AT, (memory.load(CONSUMER_AT) + self._random.randint(1, 2)) & _MASK)

    def _completion_never_sent(self) -> None:
        self._complete(self._frame())

    def _completion_twice(self) -> None:
        memory = self.memories[COMPLETION]
        self._complete(memory.address(self._slot(COMPLETION, memory.load(CONSUMER_AT) - 1)))

    def _completion_outside(self) -> None:
        self._complete(self._config.umem_bytes + self._random.getrandbits(60))

    # -- bytes ---------------------------------------------------------------------------------------------

    def _change(self, at: int) -> None:
        self.memories[UMEM].write(at, self._random.randbytes(self._random.randint(1, 8)))

    def _bytes_of_a_frame(self) -> None:
        self._change(self._frame() + HEADROOM + self._random.randint(0, 1400))

    def _bytes_of_the_next(self) -> None:
        """Where the guest looks next, or has looked at the descriptor of."""
        memory = self.memories[RX]
        address, length, _options = memory.descriptor(
            self._slot(RX, memory.load(CONSUMER_AT) + self._random.randint(0, 2)))
        if 0 < length <= self._config.frame_size <= self._config.umem_bytes - address - length:
            self._change(address + self._random.randrange(length))

    def _tx_changed(self) -> None:
        memory = self.memories[TX]
        at = self._slot(TX, memory.load(CONSUMER_AT))
        memory.put_descriptor(at, self._frame() + HEADROOM, self._random.randint(0, 1600))

    def _packet_again(self) -> None:
        if self._packets:
            self._honest.deliver([self._random.choice(self._packets)])

    def _packet_forged(self) -> None:
        if self._packets:
            packet = bytearray(self._random.choice(self._packets))
            packet[self._random.randrange(len(packet))] ^= 1 << self._random.randrange(8)
            self._honest.deliver([bytes(packet[:self._random.choice((len(packet), self._random.randint(0, 60)))])])

    def _frames_kept(self) -> None:
        """Some that the guest gave to receive into never come back."""
        self._honest.keep_frames(self._random.randint(1, 8))

    # -- time ----------------------------------------------------------------------------------------------

    def _clock_back(self) -> None:
        self.skew_ns -= self._random.randint(1, _LARGEST_SKEW_NS)

    def _clock_forward(self) -> None:
        self.skew_ns += self._random.randint(1, _LARGEST_SKEW_NS)
