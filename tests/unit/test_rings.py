"""Certified rings: frames pass, what the host may not say is refused, and the rules of the beginning."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from smtstack.errors import ConfigError
from smtstack.rings.checker import Range, SharedRing, SharedSocket, check_sockets, overlap
from smtstack.rings.frames import FREE, RECEIVING, SENDING, FrameOwners
from smtstack.rings.host import MemoryHost, memory_for, share
from smtstack.rings.layout import (
    COMPLETION,
    CONSUMER_AT,
    ENTRIES_AT,
    FILL,
    FLAGS_AT,
    PRODUCER_AT,
    RINGS,
    RX,
    TX,
    UMEM,
    RingConfig,
)
from smtstack.rings.memory import SharedMemory
from smtstack.rings.xsk import RECLAIM_NS, CertifiedXsk

SMALL = RingConfig(frames=16, frame_size=2048, entries=4)
#: Indices pass their end soon.
NEAR_WRAP = (1 << 32) - 3


class Rig:
    """A certified socket, its honest host, and ``raw``: what a hostile one writes with."""

    def __init__(self, config: RingConfig = SMALL, first: int = 0, certified: bool = True) -> None:
        self.buffers = memory_for(config)
        self.raw = share(self.buffers)
        for ring in RINGS:
            self.raw[ring].store(PRODUCER_AT, first)
            self.raw[ring].store(CONSUMER_AT, first)
        self.host = MemoryHost(share(self.buffers), config, first=first)
        self.xsk = CertifiedXsk(share(self.buffers), config, certified, first=first)

    def check(self) -> None:
        self.xsk.owners.check()


def packets(count: int, salt: int = 0) -> list[bytes]:
    return [bytes([number & 255, salt]) * (20 + 97 * number % 700) for number in range(count)]


@pytest.mark.parametrize("first", [0, NEAR_WRAP])
def test_what_is_sent_and_received_is_the_same_bytes(first: int):
    rig = Rig(first=first)
    sent, arrived = packets(40), packets(40, 1)
    out: list[bytes] = []
    received: list[bytes] = []
    at = 0
    while len(received) < len(arrived) or at < len(sent):
        at += rig.xsk.send(sent, at)
        out += rig.host.collect()
        start = len(received)
        rig.host.deliver(arrived[start:start + 3])
        received += rig.xsk.receive(64)
        rig.check()
    rig.xsk.complete()
    assert hashlib.sha256(b"".join(out)).digest() == hashlib.sha256(b"".join(sent)).digest()
    assert received == arrived
    assert not rig.xsk.refused()
    assert not rig.host.dropped
    assert rig.xsk.owners.held[SENDING] == 0


def test_a_full_ring_takes_no_more_and_goes_on_when_the_host_has_sent():
    rig = Rig()
    assert rig.xsk.send(packets(10)) == SMALL.entries
    assert rig.xsk.unsent() == SMALL.entries
    assert rig.xsk.tx_without_room == 1
    assert rig.host.collect() == packets(10)[:4]
    assert rig.xsk.send(packets(10), 4) == 4


def test_a_packet_longer_than_a_frame_is_skipped_and_counted():
    rig = Rig()
    assert rig.xsk.send([bytes(3000), b"next"]) == 2
    assert rig.host.collect() == [b"next"]
    assert rig.xsk.too_long == 1


@pytest.mark.parametrize("value", [5, 1 << 31, 0xFFFFFFF0])
@pytest.mark.parametrize("ring", RINGS)
def test_an_index_that_cannot_be_is_no_progress(ring: str, value: int):
    rig = Rig()
    at = CONSUMER_AT if ring in (FILL, TX) else PRODUCER_AT
    before = rig.raw[ring].load(at)
    limit = 2 * SMALL.entries if ring == FILL else SMALL.entries
    own = rig.raw[ring].load(PRODUCER_AT if at == CONSUMER_AT else CONSUMER_AT)
    if at == CONSUMER_AT:
        value = own - limit - value
    rig.raw[ring].store(at, value & 0xFFFFFFFF)
    assert rig.xsk.receive(64) == []
    rig.xsk.refill()
    rig.xsk.complete()
    rig.xsk.unsent()
    assert rig.xsk.rejected()[ring] > 0
    rig.check()
    # Honest again, it works again.
    rig.raw[ring].store(at, before)
    rig.host.deliver([b"packet"])
    assert rig.xsk.receive(64) == [b"packet"]


def descriptors() -> dict[str, tuple[int, int, int]]:
    size, end = SMALL.frame_size, SMALL.umem_bytes
    return {"outside": (end, 64, 0), "at the end": (end - 10, 64, 0), "straddling": (size - 10, 64, 0),
            "nothing": (size, 0, 0), "longer than a frame": (0, size + 1, 0), "most bytes": (0, 0xFFFFFFFF, 0),
            "wraps": ((1 << 64) - 8, 64, 0), "of a frame that is free": (12 * size, 64, 0),
            "in several frames": (size, 64, 1)}


@pytest.mark.parametrize("name", descriptors())
def test_a_descriptor_that_may_not_be_is_skipped(name: str):
    rig = Rig()
    address, length, options = descriptors()[name]
    rig.raw[RX]._bytes[ENTRIES_AT:ENTRIES_AT + 16] = b"".join((
        address.to_bytes(8, "little"), length.to_bytes(4, "little"), options.to_bytes(4, "little")))
    rig.raw[RX].store(PRODUCER_AT, 1)
    held = list(rig.xsk.owners.held)
    assert rig.xsk.receive(64) == []
    assert rig.xsk.rx_invalid == 1
    assert rig.xsk.owners.held == held
    rig.check()


def test_a_frame_that_comes_twice_comes_once():
    rig = Rig()
    rig.host.deliver([b"packet"])
    rig.raw[RX].put_descriptor(ENTRIES_AT + 16, *rig.raw[RX].descriptor(ENTRIES_AT)[:2])
    rig.raw[RX].store(PRODUCER_AT, 2)
    assert rig.xsk.receive(1) == [b"packet"]
    # It was taken out of our hands again by the refill: as a frame that has nothing in it yet, so one may come.
    assert len(rig.xsk.receive(64)) + rig.xsk.rx_invalid == 1
    rig.check()


def test_completions_of_what_was_not_sent_free_nothing():
    rig = Rig()
    rig.xsk.send([b"packet"])
    frame = rig.raw[TX].descriptor(ENTRIES_AT)[0]
    for slot, address in enumerate((frame, frame, 0, SMALL.umem_bytes)):
        rig.raw[COMPLETION].put_address(ENTRIES_AT + 8 * slot, address)
    rig.raw[COMPLETION].store(PRODUCER_AT, 4)
    rig.xsk.complete()
    assert rig.xsk.completions_invalid == 3
    assert rig.xsk.owners.held[SENDING] == 0
    rig.check()


def test_packets_are_copied_before_they_are_looked_at():
    rig = Rig()
    rig.host.deliver([b"before"])
    packet, = rig.xsk.receive(64)
    rig.buffers[UMEM][:] = bytes([255]) * len(rig.buffers[UMEM])
    assert packet == b"before"


def test_frames_that_the_host_keeps_are_taken_back():
    rig = Rig(RingConfig(frames=8, frame_size=2048, entries=4))
    assert rig.xsk.owners.held == [0, 8, 0]
    # It takes all of them, and that is that.
    for _frame in range(rig.host._fill.available()):
        rig.host._fill.next()
    rig.host._fill.publish()
    rig.xsk.refill()
    assert rig.xsk.owners.held == [0, 8, 0]
    assert rig.xsk.send([b"x"]) == 0
    rig.xsk.tend(1)
    assert rig.xsk.reclaimed == 0
    rig.xsk.tend(1 + RECLAIM_NS)
    assert rig.xsk.reclaimed == 8
    rig.check()
    rig.host.deliver([b"packet"])
    assert rig.xsk.receive(64) == [b"packet"]


def test_an_idle_honest_host_loses_no_frame():
    rig = Rig(RingConfig(frames=8, frame_size=2048, entries=4))
    rig.host.deliver(packets(3))
    for look in range(10):
        rig.xsk.tend(look * RECLAIM_NS)
    assert rig.xsk.reclaimed == 0
    assert rig.xsk.receive(64) == packets(3)


def test_our_own_index_is_said_again_when_the_host_overwrote_it():
    rig = Rig()
    rig.raw[FILL].store(PRODUCER_AT, 99)
    rig.raw[RX].store(CONSUMER_AT, 99)
    rig.xsk.tend(1)
    assert rig.raw[FILL].load(PRODUCER_AT) == 8
    assert rig.raw[RX].load(CONSUMER_AT) == 0


class Seen:
    def __init__(self) -> None:
        self.accesses: list[tuple[str, bool, int, int]] = []

    def accessed(self, memory: str, write: bool, start: int, end: int) -> None:
        self.accesses.append((memory, write, start, end))


def test_every_access_is_seen_and_a_descriptor_is_read_once():
    rig = Rig()
    seen = Seen()
    for memory in (*rig.xsk._memories.values(), rig.xsk._umem):
        memory.watcher = seen
    rig.host.deliver([b"packet"])
    rig.xsk.receive(64)
    assert seen.accesses[:3] == [
        (RX, False, PRODUCER_AT, PRODUCER_AT + 4), (RX, False, ENTRIES_AT, ENTRIES_AT + 16),
        (UMEM, False, 256, 262)]
    assert [a for a in seen.accesses if a[0] == RX and not a[1]] == seen.accesses[:2]


def test_memory_outside_is_never_touched():
    memory = SharedMemory("m", bytearray(16))
    for use in (lambda: memory.load(16), lambda: memory.copy(10, 7), lambda: memory.write(12, bytes(5)),
                lambda: memory.store(-4, 1), lambda: memory.descriptor(8)):
        with pytest.raises(IndexError):
            use()


def test_without_checks_the_host_is_believed():
    """The control: what the checks are there to stop does happen without them."""
    rig = Rig(certified=False)
    rig.raw[RX].put_descriptor(ENTRIES_AT, SMALL.umem_bytes - 10, 64)
    rig.raw[RX].store(PRODUCER_AT, 1)
    with pytest.raises(IndexError):
        rig.xsk.receive(64)
    other = Rig(certified=False)
    other.raw[RX].put_descriptor(ENTRIES_AT, 2040, 64)
    other.raw[RX].store(PRODUCER_AT, 1)
    assert len(other.xsk.receive(64)[0]) == 64


def test_frame_of_an_address():
    owners = FrameOwners(4, 2048)
    assert [owners.frame_of(*x) for x in ((2047, 1), (2048, 2048), (8191, 1))] == [0, 1, 3]
    wrong = (2047, 2), (0, 0), (-1, 1), (8192, 1), (8191, 2), (0, 1 << 40)
    assert [owners.frame_of(*x) for x in wrong] == [-1] * len(wrong)
    assert owners.take(RECEIVING) == 0
    assert not owners.give_back(0, SENDING)
    assert not owners.give_back(1, FREE)
    assert owners.give_back(0, RECEIVING)
    assert not owners.give_back(0, RECEIVING)
    owners.check()


# -- the initialisation checker ----------------------------------------------------------------------------

CONFIG = RingConfig(frames=64, frame_size=2048, entries=32)


def ring(name: str, base: int) -> SharedRing:
    return SharedRing(name, base, CONFIG.ring_bytes(name), CONFIG.ring_entries(name), base + PRODUCER_AT,
                      base + CONSUMER_AT, base + FLAGS_AT, base + ENTRIES_AT)


def honest(at: int = 0x10_0000, descriptor: int = 5) -> SharedSocket:
    return SharedSocket(descriptor, Range(UMEM, at, CONFIG.umem_bytes), 2048,
                        [ring(name, at + 0x100_0000 * (n + 1)) for n, name in enumerate(RINGS)])


OURS = [Range("our heap", 0x7000_0000, 0x100_0000)]


def changed(name: str, **fields: Any) -> SharedSocket:
    socket = honest()
    return replace(socket, rings=[replace(r, **fields) if r.name == name else r for r in socket.rings])


def moved(name: str, base: int) -> SharedSocket:
    socket = honest()
    return replace(socket, rings=[ring(name, base) if r.name == name else r for r in socket.rings])


def test_what_an_honest_host_shares_is_taken():
    check_sockets([honest(), honest(0x2000_0000)], CONFIG, OURS)


@pytest.mark.parametrize(("socket", "rule"), [
    (honest(descriptor=0), "descriptor is 0"),
    (honest(descriptor=-1), "descriptor is -1"),
    (replace(honest(), umem=Range(UMEM, 0, CONFIG.umem_bytes)), "umem is at address 0"),
    (replace(honest(), umem=Range(UMEM, 0x10_0000, 0)), "umem has no byte"),
    (replace(honest(), umem=Range(UMEM, (1 << 64) - 8, CONFIG.umem_bytes)), "past the end"),
    (replace(honest(), umem=Range(UMEM, 0x10_0000, CONFIG.umem_bytes * 2)), "umem has 262144 bytes"),
    (replace(honest(), umem=Range(UMEM, 0x10_0004, CONFIG.umem_bytes)), "umem is not aligned"),
    (replace(honest(), frame_size=3000), "no power of two"),
    (replace(honest(), frame_size=0), "no power of two"),
    (replace(honest(), frame_size=4096), "is 4096, not 2048"),
    (replace(honest(), rings=honest().rings[:3]), "rings are not"),
    (replace(honest(), rings=[honest().rings[0], *honest().rings[:3]]), "rings are not"),
    (changed(RX, base=0), "rx is at address 0"),
    (changed(RX, length=0), "rx has no byte"),
    (changed(TX, base=(1 << 64) - 8), "past the end"),
    (moved(TX, 0x500_0004), "tx is not aligned"),
    (changed(FILL, entries=48), "no power of two"),
    (changed(FILL, entries=0), "no power of two"),
    (changed(FILL, entries=32), "32 entries, not 64"),
    (changed(RX, length=CONFIG.ring_bytes(RX) + 4096), "bytes, not"),
    (changed(RX, producer=0), "producer at address 0"),
    (changed(RX, consumer=0), "consumer at address 0"),
    (changed(RX, producer=ring(RX, 0x300_0000 + 0x10_0000).producer + 4), "producer 4 bytes"),
    (changed(RX, consumer=0x310_0000 + 64), "consumer 64 bytes"),
    (changed(RX, flags=0x310_0000 + 192), "flags 192 bytes"),
    (changed(RX, descriptors=0x310_0000 + 128), "entries 128 bytes"),
    (moved(RX, 0x7000_1000), "rx overlaps our heap"),
    (moved(RX, 0x10_0000 + 4096), "rx overlaps umem"),
    (moved(RX, 0x10_0000 - 8), "rx overlaps umem"),
    (moved(RX, 0x10_0000 + CONFIG.umem_bytes - 8), "rx overlaps umem"),
    # One that encloses what came before: RAKIS' own test looks at the ends only.
    (replace(honest(), umem=Range(UMEM, 0x6FF0_0000, CONFIG.umem_bytes)), "overlaps a page of ours"),
])
def test_each_rule_of_the_beginning(socket: SharedSocket, rule: str):
    with pytest.raises(ConfigError, match=rule):
        check_sockets([socket], CONFIG, [*OURS, Range("a page of ours", 0x6FF0_8000, 4096)])


def test_every_socket_is_looked_at():
    """RAKIS looks at the first one's regions again for each."""
    second = honest(0x2000_0000)
    with pytest.raises(ConfigError, match="socket 1: rx overlaps our heap"):
        check_sockets([honest(), replace(second, rings=[ring(RX, 0x7000_0000) if r.name == RX else r
                                                        for r in second.rings])], CONFIG, OURS)
    with pytest.raises(ConfigError, match="socket 1: umem overlaps umem"):
        check_sockets([honest(), honest()], CONFIG, OURS)


def test_overlap_by_enumeration():
    for start in range(8):
        for length in range(1, 6):
            for other in range(8):
                for size in range(1, 6):
                    both = set(range(start, start + length)) & set(range(other, other + size))
                    assert overlap(Range("a", start, length), Range("b", other, size)) is bool(both)
