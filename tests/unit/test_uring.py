"""The trusted half of an io_uring with its honest host; what a host says of it at the beginning."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any

import pytest

from smtstack.errors import ConfigError
from smtstack.rings.checker import Range
from smtstack.rings.frames import FREE
from smtstack.rings.host import share
from smtstack.rings.results import REFUSED
from smtstack.rings.uring import RECLAIM_NS, CertifiedUring, Descriptors
from smtstack.rings.uring_checker import POINTERS, SharedUring, check_urings
from smtstack.rings.uring_host import MemoryUring, uring_memory
from smtstack.rings.uring_layout import (
    ACCEPT,
    ADDRESS_LEN,
    BUFFERS,
    CLOSE,
    COMPLETIONS,
    CONNECT,
    ENTRIES,
    FSYNC,
    MEMORIES,
    QUEUES,
    READ,
    RECV,
    SUBMISSIONS,
    WRITE,
    Submission,
    UringConfig,
)

CONFIG = UringConfig(4, 3, 64)
BASE = 1 << 40
NEAR_WRAP = (1 << 32) - 3


class Rig:
    """A ring, its honest host, and ``raw``: what a hostile one writes with."""

    def __init__(self, first: int = 0, certified: bool = True, descriptors: Descriptors | None = None) -> None:
        buffers = uring_memory(CONFIG)
        self.raw = share(buffers)
        for at in (SUBMISSIONS.producer, SUBMISSIONS.consumer, COMPLETIONS.producer, COMPLETIONS.consumer):
            self.raw[QUEUES].store(at, first)
        self.uring = CertifiedUring(share(buffers), CONFIG, BASE, certified, descriptors, first=first)
        self.host = MemoryUring(share(buffers), CONFIG, BASE, first=first)

    def seen(self) -> list[Submission]:
        self.uring.publish()
        return self.host.take()


@pytest.mark.parametrize("first", [0, NEAR_WRAP])
def test_what_is_written_and_read_is_the_same_bytes(first: int):
    rig = Rig(first)
    for number in range(20):
        data = bytes([number]) * 64
        written = rig.uring.submit(WRITE, 3, data=data, offset=number)
        read = rig.uring.submit(READ, 4, 50, offset=7)
        one, other = rig.seen()
        assert (one.code, one.descriptor, one.offset, one.length, one.tag) == (WRITE, 3, number, 64, written)
        assert rig.host.read(one.address, one.length) == data
        assert (other.code, other.length, other.tag) == (READ, 50, read)
        rig.host.write(other.address, b"answer")
        # In any order.
        rig.host.complete(read, 6)
        rig.host.complete(written, 64)
        done = [(c.tag, c.result, c.data) for c in rig.uring.complete()]
        assert done == [(read, 6, b"answer"), (written, 64, b"")]
        rig.uring.owners.check()
        assert rig.uring.owners.held[FREE] == CONFIG.buffers
    assert rig.uring.refused() == 0
    assert (rig.uring.bytes_out, rig.uring.bytes_in) == (20 * 64, 20 * 6)


def test_a_full_ring_says_so_and_goes_on():
    rig = Rig()
    assert [bool(rig.uring.submit(RECV, n, 9)) for n in range(4)] == [True, True, True, False]  # no buffer
    assert rig.uring.submit(FSYNC, 3)
    assert not rig.uring.submit(FSYNC, 3)  # no place
    taken = rig.seen()
    assert len(taken) == 4
    for _number in range(4):
        assert rig.uring.submit(FSYNC, 3)
    taken += rig.seen()
    # So many are under way as there are places for completions; what the host has taken counts.
    assert rig.uring.under_way() == CONFIG.completions
    assert not rig.uring.submit(FSYNC, 3)
    assert rig.uring.full == 3
    for entry in taken:
        rig.host.complete(entry.tag, 0)
    assert len(rig.uring.complete()) == CONFIG.completions
    assert rig.uring.submit(RECV, 3, 9)


def test_addresses_of_accept_and_connect():
    rig = Rig()
    accepted = rig.uring.submit(ACCEPT, 3)
    rig.uring.submit(CONNECT, 5, data=b"a" * ADDRESS_LEN)
    accept, connect = rig.seen()
    # As the kernel has them: where the length of the address is, and how long it is.
    assert (accept.offset, accept.length) == (accept.address + ADDRESS_LEN, 0)
    assert rig.host.read(accept.offset, 4) == ADDRESS_LEN.to_bytes(4, "little")
    assert (connect.offset, connect.length) == (ADDRESS_LEN, 0)
    # What the host says of the length is nothing to us.
    rig.host.write(accept.offset, (1 << 31).to_bytes(4, "little"))
    rig.host.complete(accepted, 9)
    assert len(rig.uring.complete()[0].data) == ADDRESS_LEN


def test_a_descriptor_has_one_meaning_in_all_rings_until_it_is_closed():
    shared = Descriptors()
    one, other = Rig(descriptors=shared), Rig(descriptors=shared)

    def accept(rig: Rig, number: int) -> int:
        tag = rig.uring.submit(ACCEPT, 3)
        rig.seen()
        rig.host.complete(tag, number)
        return rig.uring.complete()[0].result

    assert accept(one, 9) == 9
    assert accept(other, 9) == accept(one, 9) == REFUSED
    other.uring.submit(CLOSE, 9)
    assert accept(one, 9) == 9


def test_what_is_given_up_keeps_its_buffer_until_the_host_is_done():
    rig = Rig()
    tags = [rig.uring.submit(RECV, 3, 9) for _number in range(3)]
    rig.seen()
    rig.uring.give_up(tags[0], 0)
    rig.uring.give_up(tags[0], 5)
    assert rig.uring.given_up == 1
    assert not rig.uring.submit(RECV, 3, 9)
    rig.host.complete(tags[0], 9)
    assert rig.uring.complete() == []
    assert (rig.uring.late, rig.uring.stale) == (1, 0)
    assert rig.uring.submit(RECV, 3, 9)
    # Or until it has had it for long enough, and there is no other.
    rig.uring.give_up(tags[1], 10)
    rig.uring.tend(11)
    assert rig.uring.owners.held[FREE] == 0
    rig.uring.tend(11 + RECLAIM_NS)
    assert (rig.uring.owners.held[FREE], rig.uring.reclaimed) == (1, 1)
    rig.host.complete(tags[1], 9)
    assert rig.uring.complete() == []
    assert rig.uring.stale == 1
    rig.uring.owners.check()


@pytest.mark.parametrize("at", [SUBMISSIONS.consumer, COMPLETIONS.producer])
def test_where_indices_cannot_be_the_queues_begin_anew_and_nobody_waits_for_ever(at: int):
    rig = Rig()
    tag = rig.uring.submit(READ, 3, 9)
    rig.seen()
    rig.raw[QUEUES].store(at, 1 << 20)
    rig.uring.tend(1)
    assert rig.uring.complete() == []
    rig.uring.tend(1 + RECLAIM_NS)
    assert rig.uring.restarts == 1
    assert rig.uring.waiting()
    assert [(c.tag, c.result, c.refused) for c in rig.uring.complete()] == [(tag, -errno.EIO, True)]
    assert rig.uring.complete() == []


def test_a_clock_that_goes_back_or_stands_makes_us_wait_and_no_more():
    """What the host says of the time decides when something is given up or begun anew, and nothing else."""
    rig = Rig()
    tags = [rig.uring.submit(RECV, 3, 9) for _number in range(3)]
    rig.seen()
    rig.uring.give_up(tags[0], 1 << 60)
    for now in (1 << 60, 0, -5, 1, RECLAIM_NS, 0):
        rig.uring.tend(now)
        rig.uring.owners.check()
    assert (rig.uring.reclaimed, rig.uring.restarts) == (0, 0)
    for tag in tags:
        rig.host.complete(tag, 9)
    assert [c.tag for c in rig.uring.complete()] == tags[1:]
    assert rig.uring.refused() == 0
    # Tags are counted, not drawn: with the same randomness each time, they are others each time.
    assert rig.uring.submit(FSYNC, 3) > max(tags)


def test_our_indices_are_said_again():
    rig = Rig()
    rig.uring.submit(FSYNC, 3)
    rig.uring.publish()
    rig.raw[QUEUES].store(SUBMISSIONS.producer, 77)
    rig.raw[QUEUES].store(COMPLETIONS.consumer, 77)
    rig.uring.tend(1)
    assert rig.raw[QUEUES].load(SUBMISSIONS.producer) == 1
    assert rig.raw[QUEUES].load(COMPLETIONS.consumer) == 0


def test_bytes_are_copied_once_the_length_was_looked_at():
    rig = Rig()
    tag = rig.uring.submit(READ, 3, 9)
    entry = rig.seen()[0]
    rig.host.write(entry.address, b"before...behind")
    rig.host.complete(tag, 9)
    data = rig.uring.complete()[0].data
    rig.raw[BUFFERS].write(0, b"changed after")
    assert data == b"before..."


def test_names_of_counters_have_what_is_counted():
    counters = Rig().uring.counters()
    assert {"iouring_cqe_foreign", "iouring_cqe_stale", "iouring_res_rejected", "ring_peer_index_rejected_sq",
            "ring_peer_index_rejected_cq"} <= set(counters)
    assert set(counters.values()) == {0}


# -- at the beginning --------------------------------------------------------------------------------------


def honest(at: int = 0x10_0000, **changes: Any) -> SharedUring:
    starts = {name: at + number * 0x10_0000 for number, name in enumerate(MEMORIES)}
    memories = [Range(name, starts[name], CONFIG.bytes_of(name)) for name in MEMORIES]
    pointers = [starts[memory] + offset for memory, offset in POINTERS.values()]
    return replace(SharedUring(3, memories, CONFIG.entries, CONFIG.completions, CONFIG.buffer_size, pointers),
                   **changes)


def with_memory(name: str, start: int | None = None, length: int | None = None) -> SharedUring:
    """That memory elsewhere, or of another length."""
    uring = honest()
    return replace(uring, memories=[
        Range(m.name, m.start if start is None else start, m.length if length is None else length)
        if m.name == name else m for m in uring.memories])


def with_pointer(name: str, value: int) -> SharedUring:
    pointers = list(honest().pointers)
    number = list(POINTERS).index(name)
    pointers[number] = value if value == 0 else pointers[number] + value
    return honest(pointers=pointers)


OURS = [Range("our heap", 0x7000_0000, 0x1000)]


def test_what_an_honest_host_shares_is_taken():
    check_urings([honest(), honest(0x2000_0000)], CONFIG, OURS)


@pytest.mark.parametrize(("uring", "rule"), [
    (honest(descriptor=0), "descriptor is 0"),
    (honest(descriptor=-1), "descriptor is -1"),
    (honest(memories=honest().memories[:2]), "memories are not"),
    (honest(memories=honest().memories[::-1]), "memories are not"),
    (honest(entries=3), "entries are 3, no power of two"),
    (honest(entries=0), "entries are 0, no power of two"),
    (honest(entries=8), "entries are 8, not 4"),
    (honest(completions=12), "completions are 12, no power"),
    (honest(completions=4), "completions are 4, not 8"),
    (honest(buffer_size=100), "bytes of a buffer are 100, no power"),
    (honest(buffer_size=128), "bytes of a buffer are 128, not 64"),
    (honest(buffer_size=-64), "no power of two"),
    *((with_memory(name, start=0), f"{name} is at address 0") for name in MEMORIES),
    *((with_memory(name, length=0), f"{name} has no byte") for name in MEMORIES),
    *((with_memory(name, start=(1 << 64) - 8), f"{name} goes past the end") for name in MEMORIES),
    *((with_memory(name, start=0x900_0004), f"{name} is not aligned") for name in MEMORIES),
    *((with_memory(name, length=CONFIG.bytes_of(name) + 64), f"{name} has .* bytes, not") for name in MEMORIES),
    *((with_memory(name, length=CONFIG.bytes_of(name) - 8), f"{name} has .* bytes, not") for name in MEMORIES),
    (honest(pointers=honest().pointers[:-1]), "pointers are 5, not 6"),
    *((with_pointer(name, 0), f"{name} is at address 0") for name in POINTERS),
    *((with_pointer(name, 4), f"{name} is .* behind the beginning") for name in POINTERS)])
def test_each_rule_of_the_beginning(uring: SharedUring, rule: str):
    with pytest.raises(ConfigError, match=rule):
        check_urings([uring], CONFIG, OURS)


@pytest.mark.parametrize(("trusted", "rule"), [
    # Its end is in ours, its beginning is, it lies within, it has all of ours within it.
    (Range("ours", 0x10_0000 + 8, 0x1000), "queues overlaps ours"),
    (Range("ours", 0x10_0000 - 0x1000, 0x1008), "queues overlaps ours"),
    (Range("ours", 0xF_0000, 0x8_0000), "queues overlaps ours"),
    (Range("ours", 0x30_0000 + 64, 8), "buffers overlaps ours"),
    (Range("ours", 0x20_0000 + 8, 8), "entries overlaps ours")])
def test_no_memory_of_ours_is_in_theirs(trusted: Range, rule: str):
    with pytest.raises(ConfigError, match=rule):
        check_urings([honest()], CONFIG, [trusted])


def test_every_ring_is_looked_at():
    with pytest.raises(ConfigError, match="socket 1: queues overlaps queues"):
        check_urings([honest(), honest()], CONFIG, OURS)
    with pytest.raises(ConfigError, match="socket 1: entries are 8"):
        check_urings([honest(), honest(0x2000_0000, entries=8)], CONFIG, OURS)
    memories = [honest().memories[0], Range(ENTRIES, 0x10_0040, CONFIG.bytes_of(ENTRIES)), honest().memories[2]]
    pointers = [*honest().pointers[:-1], 0x10_0040]
    with pytest.raises(ConfigError, match="socket 0: entries overlaps queues"):
        check_urings([honest(memories=memories, pointers=pointers)], CONFIG, OURS)
