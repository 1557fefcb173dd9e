"""The trusted half of an io_uring, all of it for small sizes: every index and every completion that the host can
write, with indices of 4 bits and 1, 2 and 4 entries. Its two queues are rings as in test_rings_exhaustive.py; here
they lie where io_uring has them, and the ring around them keeps tags, results and buffers."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from itertools import product

import pytest

from smtstack.rings.certified import ConsumerRing, ProducerRing
from smtstack.rings.frames import FREE
from smtstack.rings.host import share
from smtstack.rings.memory import SharedMemory
from smtstack.rings.results import ERRORS, REFUSED, is_believable
from smtstack.rings.uring import RECLAIM_NS, CertifiedUring
from smtstack.rings.uring_host import uring_memory
from smtstack.rings.uring_layout import (
    ACCEPT,
    BUFFERS,
    CLOSE,
    COMPLETION_LEN,
    COMPLETIONS,
    FSYNC,
    QUEUES,
    READ,
    RECV,
    SEND,
    SUBMISSIONS,
    WRITE,
    UringConfig,
)

WIDTH = 4
MASK = (1 << WIDTH) - 1
INDICES = range(1 << WIDTH)
SIZES = (1, 2, 4)
LENGTH = 8
FIRST_TAG = 5


def made(entries: int, certified: bool = True) -> tuple[CertifiedUring, dict[str, SharedMemory]]:
    """A ring whose indices are 0 and whose first tag is 5; and the host's access to its memory."""
    config = UringConfig(entries, 2, LENGTH)
    buffers = uring_memory(config)
    return CertifiedUring(share(buffers), config, 0, certified, width=WIDTH, first_tag=FIRST_TAG), share(buffers)


@pytest.mark.parametrize("size", SIZES)
def test_queues_every_state_and_every_index(size: int):
    memory = SharedMemory("queues", bytearray(COMPLETIONS.entries + COMPLETION_LEN * size))
    for own, peer in product(INDICES, INDICES):
        consumer = ConsumerRing(memory, size, COMPLETION_LEN, True, WIDTH, own, COMPLETIONS)
        memory.store(COMPLETIONS.producer, peer)
        seen = consumer.available()
        assert seen == ((peer - own) & MASK if (peer - own) & MASK <= size else 0)
        assert consumer.rejected == ((peer - own) & MASK > size)
        for number in range(seen):
            assert consumer.next() == COMPLETIONS.entries + COMPLETION_LEN * ((own + number) & MASK & (size - 1))
        consumer.publish()
        assert memory.load(COMPLETIONS.consumer) == (own + seen) & MASK
        producer = ProducerRing(memory, size, 64, True, WIDTH, own, SUBMISSIONS)
        memory.store(SUBMISSIONS.consumer, peer)
        room = producer.room()
        assert room == (size - ((own - peer) & MASK) if (own - peer) & MASK <= size else 0)
        assert [producer.next() for _entry in range(room)] == [64 * ((own + n) & MASK & (size - 1))
                                                              for n in range(room)]
        producer.publish()
        assert memory.load(SUBMISSIONS.producer) == (own + room) & MASK
        # Neither wrote where the host's indices are.
        assert memory.load(SUBMISSIONS.consumer) == memory.load(COMPLETIONS.producer) == peer


#: Tags: never given, over, under way (one that is given up, too), and the next ones; at the ends of 64 bits.
TAGS = (0, 1, FIRST_TAG - 1, FIRST_TAG, FIRST_TAG + 1, FIRST_TAG + 2, FIRST_TAG + 3, FIRST_TAG + 4, 1 << 32,
        (1 << 63) + 5, (1 << 64) - 1)
RESULTS = (*range(-134, LENGTH + 3), -4095, -4096, -(1 << 31), (1 << 31) - 1, 1 << 30, (1 << 30) - 1)
CODES = (READ, WRITE, RECV, SEND, ACCEPT, FSYNC, CLOSE)


def with_three(code: int) -> tuple[CertifiedUring, dict[str, SharedMemory]]:
    """One operation that is over, one that is given up, one under way, of these the last is ``code``: tags 5 to
    7."""
    uring, host = made(4)
    for number in (FSYNC, FSYNC, code):
        assert uring.submit(number, 3, LENGTH, b"w" * LENGTH if number in (WRITE, SEND) else b"")
    host[QUEUES].store(SUBMISSIONS.consumer, 3)
    host[QUEUES].put_completion(COMPLETIONS.entries, FIRST_TAG, 0)
    host[QUEUES].store(COMPLETIONS.producer, 1)
    assert [c.tag for c in uring.complete()] == [FIRST_TAG]
    uring.give_up(FIRST_TAG + 1, 0)
    return uring, host


@pytest.mark.parametrize("code", CODES)
def test_every_completion(code: int):
    """Each tag with each result, for each operation; and twice."""
    for tag, result in product(TAGS, RESULTS):
        if tag != FIRST_TAG + 2 and result not in (0, 1, LENGTH + 1, -1, -errno.EIO):
            continue
        uring, host = with_three(code)
        host[BUFFERS].write(0, b"01234567" * 2)
        for slot in (1, 2):
            host[QUEUES].put_completion(COMPLETIONS.entries + COMPLETION_LEN * slot, tag, result)
        host[QUEUES].store(COMPLETIONS.producer, 3)
        completions = uring.complete()
        if tag == FIRST_TAG + 2:
            good = is_believable(code, LENGTH, result)
            assert [(c.tag, c.result, c.refused) for c in completions] == [(tag, result if good else REFUSED,
                                                                            not good)]
            data = completions[0].data
            assert len(data) == (result if good and code in (READ, RECV) and result > 0 else
                                 16 if good and code == ACCEPT and result >= 0 else 0)
            assert (uring.results_refused, uring.stale, uring.foreign) == (not good, 1, 0)
        else:
            assert completions == []
            given = FIRST_TAG <= tag < FIRST_TAG + 3
            late = tag == FIRST_TAG + 1
            assert (uring.late, uring.stale, uring.foreign) == (late, 2 * given - late, 2 * (not given))
        uring.owners.check()
        # Its buffer is the operation's, until that is over.
        assert uring.owners.held[FREE] == (2 if tag == FIRST_TAG + 2 or code in (FSYNC, CLOSE) else 1)


@pytest.mark.parametrize("entries", SIZES)
def test_every_operation_for_every_index_of_both_queues(entries: int):
    """Whatever the host says of its two indices: nothing escapes, every buffer is in one place, and indices of
    ours go on by a queue at most."""
    operations = {
        "submit": lambda uring: [uring.submit(READ, 3, LENGTH) for _number in range(5)],
        "complete": CertifiedUring.complete,
        "tend": lambda uring: (uring.tend(1), uring.tend(1 + RECLAIM_NS), uring.complete())}
    for (name, operation), head, tail, under_way in product(operations.items(), INDICES, INDICES, (0, 1)):
        uring, host = made(entries)
        for _number in range(under_way):
            uring.submit(WRITE, 3, data=b"w")
        host[QUEUES].store(SUBMISSIONS.consumer, head)
        host[QUEUES].store(COMPLETIONS.producer, tail)
        before = uring.submitted
        operation(uring)
        uring.publish()
        uring.owners.check()
        own = host[QUEUES].load(SUBMISSIONS.producer)
        if uring.restarts:
            # Where it is possible again, and all that was under way has come to an end.
            assert own == head or (own - head) & MASK <= entries
            assert uring.under_way() == 0
        else:
            assert own == uring.submitted <= before + entries
            assert host[QUEUES].load(COMPLETIONS.consumer) in (0, tail)
        if name == "submit":
            assert uring.submitted - before <= min(entries, 2)


def states() -> Iterator[tuple[int, int]]:
    yield from product((READ, WRITE, RECV, SEND, ACCEPT, FSYNC, CLOSE), (-1, 1 << 20, LENGTH + 1))


def test_without_checks_states_are_found_that_must_not_be():
    wrong = 0
    for code, result in states():
        uring, host = made(4, certified=False)
        uring.submit(code, 3, LENGTH, b"w" if code in (WRITE, SEND) else b"")
        host[QUEUES].put_completion(COMPLETIONS.entries, FIRST_TAG, result)
        host[QUEUES].store(COMPLETIONS.producer, 1)
        try:
            wrong += sum(not is_believable(code, LENGTH, c.result) for c in uring.complete())
        except IndexError:
            wrong += 1
    assert wrong > 10


def test_a_tag_never_comes_again():
    """Not after restarts, nor by exits, nor where operations come to nothing."""
    uring, host = made(4)
    tags = []
    for number in range(300):
        tag = uring.submit(FSYNC, 3)
        tags += [tag] if tag else []
        tags.append(uring.begin_exit(FSYNC, 3).tag)
        host[QUEUES].store(SUBMISSIONS.consumer, number * 7 & MASK)
        host[QUEUES].store(COMPLETIONS.producer, number * 5 & MASK)
        uring.complete()
        uring.tend(number * RECLAIM_NS)
    assert uring.restarts > 0
    assert len(set(tags)) == len(tags) > 300
    assert tags == sorted(tags)


def test_exits_are_answered_once_and_by_their_tag():
    uring, _host = made(4)
    entry = uring.begin_exit(READ, 3, LENGTH)
    assert uring.end_exit(entry.tag + 1, 0) is None
    assert uring.end_exit(entry.tag - 1, 0) is None
    assert uring.end_exit(entry.tag, LENGTH + 1) is not None
    assert (uring.foreign, uring.stale, uring.results_refused) == (2, 0, 1)
    assert uring.end_exit(entry.tag, 0) is None
    assert uring.stale == 1
    with pytest.raises(ValueError, match="a buffer has 8"):
        uring.begin_exit(WRITE, 3, data=b"x" * 9)
    with pytest.raises(ValueError, match="a buffer has 8"):
        uring.submit(WRITE, 3, data=b"x" * 9)


def test_every_error_is_of_a_list_that_somebody_looked_at():
    assert all(0 < number < 134 for errors in ERRORS.values() for number in errors)
