"""The ring core, all of it: every state and every word that the peer can write, for indices of 4 bits and rings of
1, 2 and 4 entries. What KLEE shows of RAKIS' code by symbols, enumeration shows of ours.

A ring by itself is looked at in every state (own index, what is left of the last look) with every index of the
peer's. It comes out that only differences of indices matter. So a whole socket is looked at with its own indices
at 0: every map of owners, every index of the peer's, every descriptor that there can be in a small memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtstack.rings.certified import ConsumerRing, ProducerRing, entries_between
from smtstack.rings.frames import FREE, RECEIVING, SENDING, FrameOwners
from smtstack.rings.host import memory_for, share
from smtstack.rings.layout import (
    COMPLETION,
    CONSUMER_AT,
    ENTRIES_AT,
    FILL,
    PRODUCER_AT,
    RINGS,
    RX,
    TX,
    UMEM,
    RingConfig,
)
from smtstack.rings.memory import SharedMemory
from smtstack.rings.xsk import RECLAIM_NS, CertifiedXsk

WIDTH = 4
INDICES = range(1 << WIDTH)
MASK = (1 << WIDTH) - 1
SIZES = (1, 2, 4)


def test_the_validity_formula_is_right_for_all_indices_of_8_bits():
    """A pair of indices is possible if some number of entries, from none to all, lies between them; by counting up
    one by one, as the peers do, and nothing else. 256 x 256 pairs for each of 8 sizes."""
    for size in (1 << bits for bits in range(8)):
        possible = set()
        for consumer in range(256):
            producer = consumer
            for waiting in range(size + 1):
                possible.add((producer, consumer, waiting))
                producer = 0 if producer == 255 else producer + 1
        found = {(p, c, n) for p in range(256) for c in range(256)
                 if (n := entries_between(p, c, size, 255)) >= 0}
        assert found == possible


def consumer_states(size: int, certified: bool = True) -> Iterator[tuple[ConsumerRing, SharedMemory, int, int]]:
    memory = SharedMemory("ring", bytearray(ENTRIES_AT + 8 * size))
    for own in INDICES:
        for left in range(size + 1):
            for peer in INDICES:
                ring = ConsumerRing(memory, size, 8, certified, WIDTH, own)
                ring._left = left
                memory.store(PRODUCER_AT, peer)
                memory.store(CONSUMER_AT, own)
                yield ring, memory, own, peer


@pytest.mark.parametrize("size", SIZES)
def test_consumer_every_state_and_every_index(size: int):
    relative: dict[tuple[int, int], tuple[object, ...]] = {}
    for ring, memory, own, peer in consumer_states(size):
        left = ring._left
        seen = ring.available()
        # Within the ring, and the true difference if that can be.
        assert 0 <= seen <= size
        assert seen == ((peer - own) & MASK if (peer - own) & MASK <= size else 0)
        assert ring.rejected == ((peer - own) & MASK > size)
        places = [ring.next() for _entry in range(seen)]
        assert places == [ENTRIES_AT + 8 * ((own + n) & MASK & (size - 1)) for n in range(seen)]
        assert all(ENTRIES_AT <= at <= memory.length - 8 for at in places)
        with pytest.raises(IndexError):
            ring.next()
        ring.publish()
        # Our own index went forward by what was taken, no more and no less.
        assert memory.load(CONSUMER_AT) == (own + seen) & MASK
        assert memory.load(PRODUCER_AT) == peer
        outcome = (seen, ring.rejected)
        assert relative.setdefault(((peer - own) & MASK, left), outcome) == outcome


@pytest.mark.parametrize("size", SIZES)
def test_producer_every_state_and_every_index(size: int):
    memory = SharedMemory("ring", bytearray(ENTRIES_AT + 8 * size))
    relative: dict[tuple[int, int], tuple[object, ...]] = {}
    for own, before, peer in product(INDICES, range(size + 1), INDICES):
        ring = ProducerRing(memory, size, 8, True, WIDTH, own)
        ring._room = before
        memory.store(CONSUMER_AT, peer)
        memory.store(PRODUCER_AT, own)
        waiting = (own - peer) & MASK
        room = ring.room()
        assert room == (size - waiting if waiting <= size else before)
        assert 0 <= room <= size
        assert ring.rejected == (waiting > size)
        places = [ring.next() for _entry in range(room)]
        assert places == [ENTRIES_AT + 8 * ((own + n) & MASK & (size - 1)) for n in range(room)]
        with pytest.raises(IndexError):
            ring.next()
        ring.publish()
        assert memory.load(PRODUCER_AT) == (own + room) & MASK
        assert memory.load(CONSUMER_AT) == peer
        # Never more entries in the ring than it has, by any index that was believed.
        assert ring.waiting() <= size
        outcome = (room, ring.rejected)
        assert relative.setdefault(((own - peer) & MASK, before), outcome) == outcome


@pytest.mark.parametrize("size", SIZES)
def test_a_ring_begins_anew_wherever_the_peer_is(size: int):
    """Empty, with all its room, in every state and for every index."""
    memory = SharedMemory("ring", bytearray(ENTRIES_AT + 8 * size))
    for own, peer in product(INDICES, INDICES):
        memory.store(PRODUCER_AT, peer)
        consumer = ConsumerRing(memory, size, 8, True, WIDTH, own)
        consumer.restart()
        assert consumer.available() == 0
        assert memory.load(CONSUMER_AT) == peer
        memory.store(CONSUMER_AT, peer)
        producer = ProducerRing(memory, size, 8, True, WIDTH, own)
        producer.restart()
        assert producer.room() == size
        assert memory.load(PRODUCER_AT) == peer
        assert consumer.possible
        assert producer.possible


def test_without_checks_states_are_found_that_must_not_be():
    wrong = sum(not 0 <= ring.available() <= ring.size for ring, *_rest in consumer_states(4, certified=False))
    assert wrong > 0


#: Bytes of a frame, and bytes that a packet has: so small that all descriptors can be tried.
FRAME = 4
FRAMES = 3


class Accesses:
    """Every access to frames must be in one frame, which is its owner's."""

    def __init__(self, xsk: CertifiedXsk) -> None:
        self.xsk = xsk

    def accessed(self, memory: str, write: bool, start: int, end: int) -> None:
        if memory == UMEM:
            assert 0 <= start < end <= FRAMES * FRAME
            assert start // FRAME == (end - 1) // FRAME
            assert self.xsk.owners.owner(start // FRAME) == (SENDING if write else RECEIVING)


def socket(entries: int, owners: tuple[int, ...]) -> tuple[CertifiedXsk, dict[str, SharedMemory]]:
    """A socket with this map of owners, its indices at 0; and the host's access to its memory."""
    config = RingConfig(FRAMES, FRAME, entries)
    buffers = memory_for(config)
    ours, theirs = share(buffers), share(buffers)
    xsk = CertifiedXsk(ours, config, headroom=0, width=WIDTH)
    xsk.owners = FrameOwners(FRAMES, FRAME)
    for frame, owner in enumerate(owners):
        assert xsk.owners.take(owner or RECEIVING) == frame
    for frame, owner in enumerate(owners):
        if owner == FREE:
            xsk.owners.give_back(frame, RECEIVING)
    for ring in (xsk._fill, xsk._tx):
        ring._own, ring._room = 0, ring.size
    theirs[FILL].store(PRODUCER_AT, 0)
    watcher = Accesses(xsk)
    for memory in ours.values():
        memory.watcher = watcher
    return xsk, theirs


OWNERS = list(product((FREE, RECEIVING, SENDING), repeat=FRAMES))
#: Addresses in every frame, at its edges, behind the last, and such as would wrap; lengths alike.
ADDRESSES = (*range(FRAMES * FRAME + 2), 1 << 32, (1 << 64) - 1, (1 << 64) - FRAME)
LENGTHS = (*range(FRAME + 2), 1 << 31, (1 << 32) - 1)


def test_every_descriptor_for_every_map_of_owners():
    valid = refused = 0
    for owners in OWNERS:
        xsk, host = socket(1, owners)
        for address, length in product(ADDRESSES, LENGTHS):
            frame = address // FRAME
            inside = length > 0 and address + length <= FRAMES * FRAME and (address + length - 1) // FRAME == frame
            good = inside and owners[frame] == RECEIVING
            xsk, host = socket(1, owners) if good else (xsk, host)
            host[RX].put_descriptor(ENTRIES_AT, address, length)
            host[RX].store(PRODUCER_AT, (xsk._rx._own + 1) & MASK)
            # The fill ring is full: a frame that comes stays ours, so that one can see it.
            host[FILL].store(CONSUMER_AT, -2 & MASK)
            before = xsk.rx_invalid
            packets = xsk.receive(8)
            assert [len(packet) for packet in packets] == [length] * good
            assert xsk.rx_invalid - before == (not good)
            xsk.owners.check()
            valid, refused = valid + good, refused + (not good)
            if good:
                xsk, host = socket(1, owners)
    assert valid
    assert refused


def test_every_completion_for_every_map_of_owners():
    for owners, address in product(OWNERS, ADDRESSES):
        xsk, host = socket(1, owners)
        host[COMPLETION].put_address(ENTRIES_AT, address)
        host[COMPLETION].store(PRODUCER_AT, 1)
        xsk.complete()
        good = address < FRAMES * FRAME and owners[address // FRAME] == SENDING
        assert xsk.completions_invalid == (not good)
        assert xsk.owners.held[SENDING] == owners.count(SENDING) - good
        xsk.owners.check()


@pytest.mark.parametrize("entries", SIZES)
def test_every_operation_for_every_index_of_every_ring(entries: int):
    """Whatever the host says of its four indices, one at a time and two at a time: nothing escapes, every frame is
    in one place, and no index of ours goes back or further than its ring."""
    operations = {"receive": lambda xsk: xsk.receive(8), "send": lambda xsk: xsk.send([b"1", b"22"]),
                  "refill": CertifiedXsk.refill, "complete": CertifiedXsk.complete,
                  "tend": lambda xsk: (xsk.tend(1), xsk.tend(1 + RECLAIM_NS))}
    theirs = {ring: CONSUMER_AT if ring in (FILL, TX) else PRODUCER_AT for ring in RINGS}
    own = {ring: PRODUCER_AT if ring in (FILL, TX) else CONSUMER_AT for ring in RINGS}
    for owners in ((FREE, FREE, FREE), (FREE, RECEIVING, SENDING), (RECEIVING, SENDING, SENDING)):
        for (name, operation), (one, other) in product(operations.items(), ((FILL, RX), (COMPLETION, TX))):
            for value, second in product(INDICES, INDICES):
                xsk, host = socket(entries, owners)
                host[one].store(theirs[one], value)
                host[other].store(theirs[other], second)
                operation(xsk)
                xsk.owners.check()
                for ring in RINGS:
                    size = entries * (2 if ring == FILL else 1)
                    ours, peer = host[ring].load(own[ring]), host[ring].load(theirs[ring])
                    ahead = (ours - peer if ring in (FILL, TX) else peer - ours) & MASK
                    # Ours began at 0, and a look lets it go on by a ring at most; in tend there are two looks, and
                    # the ring may have begun anew where the peer says, where it is possible again.
                    assert ours <= size * (2 if name == "tend" else 1) or (xsk.restarts and ahead <= size)


@given(st.data())
def test_any_sequence_with_any_host(data: st.DataObject):
    """With indices of Linux' width, near their end, and a host that writes anything between any two operations."""
    config = RingConfig(8, 64, data.draw(st.sampled_from((1, 2, 4))))
    buffers = memory_for(config)
    ours, host = share(buffers), share(buffers)
    first = (1 << 32) - data.draw(st.integers(0, 9))
    xsk = CertifiedXsk(ours, config, headroom=8, first=first & 0xFFFFFFFF)
    now = 0
    for _step in range(data.draw(st.integers(1, 30))):
        match data.draw(st.sampled_from(("index", "entry", "receive", "send", "complete", "tend"))):
            case "index":
                ring = data.draw(st.sampled_from(RINGS))
                at = data.draw(st.sampled_from((PRODUCER_AT, CONSUMER_AT)))
                near = host[ring].load(PRODUCER_AT) + data.draw(st.integers(-9, 9))
                host[ring].store(at, data.draw(st.sampled_from((near, 0, (1 << 32) - 1))) & 0xFFFFFFFF)
            case "entry":
                ring = data.draw(st.sampled_from(RINGS))
                size = host[ring].length - ENTRIES_AT
                host[ring].write(ENTRIES_AT, data.draw(st.binary(min_size=size, max_size=size)))
                where, length = data.draw(st.integers(0, 8 * 64)), data.draw(st.integers(0, 70))
                host[RX].put_descriptor(ENTRIES_AT, where, length)
            case "receive":
                assert all(0 < len(packet) <= 64 for packet in xsk.receive(data.draw(st.integers(0, 9))))
            case "send":
                xsk.send([b"packet"] * data.draw(st.integers(0, 9)))
            case "complete":
                xsk.complete()
            case "tend":
                now += RECLAIM_NS
                xsk.tend(now)
        xsk.owners.check()
