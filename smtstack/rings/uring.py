"""The trusted half of an io_uring: operations that an untrusted host does for us, and what is believed of them.

An operation has a tag, a number that never repeats, and its completion is the one with that tag, once. What has
another one is counted and skipped: ``foreign`` if no operation ever had it, ``stale`` if its operation is over.
What a completion says it came to is looked at (:mod:`smtstack.rings.results`); what it brought is copied out of
the buffer then, once, and never more than was asked for. A buffer is the operation's until that is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from smtstack.rings.certified import WIDTH, ConsumerRing, ProducerRing
from smtstack.rings.frames import RECEIVING, SENDING, FrameOwners
from smtstack.rings.memory import SharedMemory
from smtstack.rings.results import NAMING, REFUSED, is_believable
from smtstack.rings.uring_layout import (
    ACCEPT,
    ADDRESS_LEN,
    BUFFERS,
    CLOSE,
    COMPLETION_LEN,
    COMPLETIONS,
    CONNECT,
    ENTRIES,
    NAME,
    POLL,
    QUEUES,
    READ,
    RECV,
    SUBMISSION_LEN,
    SUBMISSIONS,
    Submission,
    UringConfig,
)

#: Indices that cannot be for so long make a ring begin anew; so long after it was given up, an operation's buffer
#: is taken back if there is no other.
RECLAIM_NS: Final = 250_000_000
#: Operations that bring something, and of these such as bring an address.
_BRINGING: Final = frozenset((READ, RECV, ACCEPT, NAME, POLL))
_ADDRESSES: Final = frozenset((ACCEPT, NAME))
_NO_BUFFER: Final = -1


@dataclass(frozen=True, slots=True)
class Completion:
    """What an operation has come to."""

    tag: int
    result: int
    """What the host says, if that can be: bytes moved, a descriptor, 0; or ``-errno``."""
    data: bytes
    """What it brought."""
    refused: bool = False
    """The host's answer could not be, or was lost: nobody knows what it did, and ``result`` is -EIO."""


@dataclass(slots=True)
class _Operation:
    code: int
    length: int
    buffer: int
    #: When it was given up, in ns; -1: it is waited for.
    given_up: int = -1


class Descriptors:
    """The host's numbers for what we have open: each has one of its own. For all rings of a process."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held: set[int] = set()


class CertifiedUring:
    """A ring over ``memories`` (:data:`~smtstack.rings.uring_layout.MEMORIES`), whose sizes are what ``config``
    says. ``base``: where the host says that the buffers are in its own memory; it is for the host only.
    ``certified=False`` believes the host in everything: a control, and the price of the checks."""

    def __init__(self, memories: Mapping[str, SharedMemory], config: UringConfig, base: int = 0,
                 certified: bool = True, descriptors: Descriptors | None = None, width: int = WIDTH,
                 first: int = 0, first_tag: int = 1) -> None:
        self._queues, self._entries, self._buffers = (memories[name] for name in (QUEUES, ENTRIES, BUFFERS))
        self._config = config
        self._base = base
        self._certified = certified
        self.buffer_size = self._size = config.buffer_size
        self._most = config.completions
        self._submissions = ProducerRing(self._queues, config.entries, SUBMISSION_LEN, certified, width, first,
                                         SUBMISSIONS)
        self._completions = ConsumerRing(self._queues, config.completions, COMPLETION_LEN, certified, width, first,
                                         COMPLETIONS)
        self.owners = FrameOwners(config.buffers, config.buffer_size)
        self._descriptors = descriptors or Descriptors()
        self._under_way: dict[int, _Operation] = {}
        #: Tags of operations that were lost with their completions, for the next :meth:`complete`.
        self._lost: list[int] = []
        self._first_tag = self._next_tag = first_tag
        self._exit: _Operation | None = None
        self._exit_tag = 0
        self._tend_at = 0
        self._stuck = (False, False)
        self.submitted = self.completed = self.exits = 0
        self.foreign = self.stale = self.results_refused = 0
        self.full = self.given_up = self.late = self.restarts = self.reclaimed = 0
        #: Bytes that crossed the boundary, either way.
        self.bytes_out = self.bytes_in = 0

    # -- asking --------------------------------------------------------------------------------------------

    def submit(self, code: int, descriptor: int, length: int = 0, data: bytes = b"", offset: int = 0,
               flags: int = 0) -> int:
        """Ask for an operation: write or send ``data``, or read at most ``length`` bytes; the host sees it with
        the next :meth:`publish`. Its tag; 0: the ring is full, or has no buffer for it.

        Raises ValueError for more bytes than a buffer has.
        """
        length = len(data) or length
        if length > self._size:
            raise ValueError(f"{length} bytes; a buffer has {self._size}")
        ring = self._submissions
        if len(self._under_way) >= self._most or ring.room() <= 0:
            self.full += 1
            return 0
        buffer = _NO_BUFFER
        if data or code in _BRINGING:
            buffer = self.owners.take(SENDING if data else RECEIVING)
            if buffer < 0:
                self.full += 1
                return 0
        operation = _Operation(code, length, buffer)
        entry = self._prepared(operation, descriptor, data, offset, flags)
        self._entries.write(ring.next(), entry.pack())
        self._under_way[entry.tag] = operation
        self.submitted += 1
        return entry.tag

    def begin_exit(self, code: int, descriptor: int, length: int = 0, data: bytes = b"", offset: int = 0,
                   flags: int = 0) -> Submission:
        """What to ask the host for by an exit, in the buffer that exits have; one at a time. Arguments and errors
        are those of :meth:`submit`."""
        length = len(data) or length
        if length > self._size:
            raise ValueError(f"{length} bytes; a buffer has {self._size}")
        self._exit = _Operation(code, length, self._config.buffers)
        entry = self._prepared(self._exit, descriptor, data, offset, flags)
        self._exit_tag = entry.tag
        self.exits += 1
        return entry

    def end_exit(self, tag: int, result: int) -> Completion | None:
        """The host answered an exit; None: not the one that is under way."""
        operation = self._exit
        if operation is None or tag != self._exit_tag:
            self._count_wrong(tag)
            return None
        self._exit = None
        return self._judged(tag, operation, result)

    def _prepared(self, operation: _Operation, descriptor: int, data: bytes, offset: int,
                  flags: int) -> Submission:
        """A submission with a new tag, and what it needs in its buffer."""
        code, length, buffer = operation.code, operation.length, operation.buffer
        tag = self._next_tag
        self._next_tag += 1
        if code == CLOSE:
            # The host may give the number again as soon as it knows.
            self._descriptors.held.discard(descriptor)
        address = 0
        if buffer >= 0:
            at = buffer * self._size
            address = self._base + at
            if code == ACCEPT:
                # Where the host puts the peer's address, and how long that may be.
                self._buffers.write(at, bytes(ADDRESS_LEN) + ADDRESS_LEN.to_bytes(4, "little"))
                offset, length = address + ADDRESS_LEN, 0
            elif data:
                self._buffers.write(at, data)
                self.bytes_out += len(data)
                if code == CONNECT:
                    offset, length = len(data), 0
        return Submission(code, descriptor, offset, address, length, flags, tag)

    def publish(self) -> None:
        """Let the host see what was submitted."""
        self._submissions.publish()

    # -- being answered ------------------------------------------------------------------------------------

    def waiting(self) -> bool:
        """Whether the host says that something is complete."""
        return bool(self._lost) or self._completions.available() > 0

    def complete(self) -> list[Completion]:
        """What is complete, each operation once; at most a ring's worth of completions is looked at."""
        completions = [Completion(tag, REFUSED, b"", True) for tag in self._lost]
        self._lost.clear()
        ring = self._completions
        count = min(ring.available(), ring.size)
        for _number in range(count):
            tag, result = self._queues.completion(ring.next())
            operation = self._under_way.pop(tag, None) if self._certified else self._under_way.pop(tag)
            if operation is None:
                self._count_wrong(tag)
                continue
            if operation.given_up >= 0:
                self.late += 1
            else:
                completions.append(self._judged(tag, operation, result))
            self._give_back(operation)
        if count:
            ring.publish()
        self.completed += len(completions)
        return completions

    def _count_wrong(self, tag: int) -> None:
        if self._first_tag <= tag < self._next_tag:
            self.stale += 1
        else:
            self.foreign += 1

    def _judged(self, tag: int, operation: _Operation, result: int) -> Completion:
        """What is believed of an answer, and a copy of what it brought."""
        code, held = operation.code, self._descriptors.held
        if self._certified and (not is_believable(code, operation.length, result)
                                or (code in NAMING and result in held)):
            self.results_refused += 1
            return Completion(tag, REFUSED, b"", True)
        data = b""
        if result >= 0:
            if code in NAMING:
                held.add(result)
            if code in _BRINGING:
                size = ADDRESS_LEN if code in _ADDRESSES else result
                if size:
                    data = self._buffers.copy(operation.buffer * self._size, size)
                    self.bytes_in += size
        return Completion(tag, result, data)

    def _give_back(self, operation: _Operation) -> None:
        if operation.buffer >= 0:
            self.owners.give_back(operation.buffer, self.owners.owner(operation.buffer))

    # -- what the host owes us -----------------------------------------------------------------------------

    def give_up(self, tag: int, now: int) -> None:
        """Wait no longer for an operation. Its buffer stays the host's until that says that it is over."""
        operation = self._under_way.get(tag)
        if operation is not None and operation.given_up < 0:
            operation.given_up = now
            self.given_up += 1

    def under_way(self) -> int:
        """Operations that are neither complete nor given up."""
        return sum(operation.given_up < 0 for operation in self._under_way.values())

    def tend(self, now: int) -> None:
        """Now and then, also when nothing comes: say our indices again, begin queues anew whose indices cannot be,
        and take back what was given up long ago if nothing else is left. ``now`` in nanoseconds.

        Where completions may have been lost, all operations under way come to -EIO: whoever waits is not to wait
        for ever.
        """
        if now < self._tend_at:
            return
        self._tend_at = now + RECLAIM_NS
        self._submissions.publish()
        self._completions.publish()
        self._submissions.room()
        self._completions.available()
        stuck = (not self._submissions.possible, not self._completions.possible)
        again = (stuck[0] and self._stuck[0], stuck[1] and self._stuck[1])
        self._stuck = stuck
        if again[0]:
            self._submissions.restart()
        if again[1]:
            self._completions.restart()
        if any(again):
            self.restarts += sum(again)
            for tag, operation in self._under_way.items():
                if operation.given_up < 0:
                    operation.given_up = now
                    self._lost.append(tag)
        if len(self._under_way) >= self._most or not self.owners.held[0]:
            for tag in [tag for tag, operation in self._under_way.items()
                        if 0 <= operation.given_up <= now - RECLAIM_NS]:
                self._give_back(self._under_way.pop(tag))
                self.reclaimed += 1

    def counters(self) -> dict[str, int]:
        """What passed, and what was refused; names are RAKIS' where it has them."""
        return {"iouring_submitted": self.submitted, "iouring_completed": self.completed,
                "iouring_exits": self.exits,
                "iouring_cqe_foreign": self.foreign, "iouring_cqe_stale": self.stale,
                "iouring_res_rejected": self.results_refused, "iouring_full": self.full,
                "iouring_given_up": self.given_up, "iouring_late": self.late, "iouring_restarts": self.restarts,
                "iouring_reclaimed": self.reclaimed, "iouring_bytes_out": self.bytes_out,
                "iouring_bytes_in": self.bytes_in,
                "ring_peer_index_rejected_sq": self._submissions.rejected,
                "ring_peer_index_rejected_cq": self._completions.rejected}

    def refused(self) -> int:
        """What was not believed; 0 with an honest host."""
        return (self.foreign + self.stale + self.results_refused + self._submissions.rejected
                + self._completions.rejected)
