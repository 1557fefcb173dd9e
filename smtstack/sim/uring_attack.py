"""A guest that reads, writes, sends, receives and accepts by a certified io_uring in memory, while its host
attacks it; one process, virtual time. What comes of it: :func:`attack_uring`.

The host has a file, and connections that send back what they are sent. Of what comes from it the guest believes
nothing that cannot be; what can be and is wrong all the same, it would have to find by records or protected
storage, which are not part of this.
"""

from __future__ import annotations

import errno
import random
from collections import deque
from typing import Final

from smtstack.rings.audit import UringAudit
from smtstack.rings.host import share
from smtstack.rings.hostile_uring import KINDS, SOFT, HostileUring
from smtstack.rings.results import is_believable
from smtstack.rings.uring import RECLAIM_NS, CertifiedUring, Completion
from smtstack.rings.uring_host import uring_memory
from smtstack.rings.uring_layout import (
    ACCEPT,
    ADDRESS_LEN,
    CLOSE,
    FSYNC,
    READ,
    RECV,
    SEND,
    SHUTDOWN,
    WRITE,
    Submission,
    UringConfig,
)
from smtstack.sim.outcome import MEASURED, Outcome

#: Small, so that rings are full and buffers short now and then.
CONFIG: Final = UringConfig(entries=8, buffers=6, buffer_size=256)
STEP_NS: Final = 1_000_000
#: An operation that has taken so long is given up; within so long after an attack there is full service again.
PATIENCE_NS: Final = 2 * RECLAIM_NS
RECOVERY_NS: Final = 8 * RECLAIM_NS
#: As of :data:`smtstack.sim.ring_pair.PHASES`: kinds, how likely, for how many looks at the ring.
PHASES: Final = ((KINDS, 0.5, 600), (SOFT, 0.2, 300), (KINDS, 0.1, 300), (SOFT, 0.02, 200))
_UNDER_WAY: Final = 12
_FILE_BYTES: Final = 4096
_FILE: Final = 3
_FIRST_CONNECTION: Final = 10
_CONNECTIONS: Final = 8
_LISTENER: Final = 4


class World:
    """What an honest host does: all there is behind its system calls."""

    def __init__(self, host: HostileUring) -> None:
        self._host = host
        self._file = bytearray(_FILE_BYTES)
        self._streams: dict[int, bytearray] = {}
        #: What waits for bytes.
        self._receiving: deque[Submission] = deque()

    def work(self) -> None:
        """Do what is asked for."""
        for entry in self._host.take():
            result = self._done(entry)
            if result is None:
                self._receiving.append(entry)
            else:
                self._host.complete(entry.tag, result)
        for _number in range(len(self._receiving)):
            entry = self._receiving.popleft()
            result = self._done(entry)
            if result is None:
                self._receiving.append(entry)
            else:
                self._host.complete(entry.tag, result)

    def _done(self, entry: Submission) -> int | None:
        """What it comes to; None: not yet."""
        try:
            return self._do(entry)
        except IndexError:
            # A buffer that is none: the submission was changed.
            return -errno.EINVAL

    def _do(self, entry: Submission) -> int | None:
        host, code, stream = self._host.honest, entry.code, self._streams.get(entry.descriptor)
        length = min(entry.length, CONFIG.buffer_size)
        if code == READ and entry.descriptor == _FILE:
            data = bytes(self._file[entry.offset:entry.offset + length])
        elif code == RECV and stream is not None:
            if not stream:
                return None
            data = bytes(stream[:length])
            del stream[:length]
        elif code == WRITE and entry.descriptor == _FILE and entry.offset <= _FILE_BYTES - length:
            self._file[entry.offset:entry.offset + length] = host.read(entry.address, length)
            return length
        elif code == SEND and stream is not None:
            stream += host.read(entry.address, length)
            return length
        elif code == ACCEPT and entry.descriptor == _LISTENER:
            number = next(n for n in range(_FIRST_CONNECTION, 1 << 20) if n not in self._streams)
            self._streams[number] = bytearray()
            host.write(entry.address, bytes(ADDRESS_LEN))
            return number
        elif code == CLOSE and stream is not None:
            del self._streams[entry.descriptor]
            return 0
        elif code in (FSYNC, SHUTDOWN):
            return 0
        else:
            return -errno.EBADF
        if data:
            host.write(entry.address, data)
        return len(data)


class UringGuest:
    """Guest and host. ``certified=False``: the guest believes the host."""

    def __init__(self, seed: int, certified: bool = True) -> None:
        self.now = 0
        self._random = random.Random(seed)
        buffers = uring_memory(CONFIG)
        ours = share(buffers)
        self.uring = CertifiedUring(ours, CONFIG, certified=certified)
        self.host = HostileUring(share(buffers), CONFIG, seed)
        self.host.outcome = self._state
        self.audit = UringAudit(self.uring, ours, CONFIG, self.host)
        self._world = World(self.host)
        #: By tag: operation, bytes asked for, when.
        self._asked: dict[int, tuple[int, int, int]] = {}
        self._connections: list[int] = []
        self.outcome = Outcome()

    def _state(self) -> tuple[int, ...]:
        uring = self.uring
        counted = (uring.foreign, uring.stale, uring.results_refused, uring.late, uring.restarts, uring.reclaimed,
                   uring.full, uring.given_up, uring.refused())
        return (*(n.bit_length() for n in counted), *(n > 0 for n in uring.owners.held))

    # -- the guest -----------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Ask for anything."""
        chosen = self._random.choice((READ, WRITE, FSYNC, ACCEPT, RECV, SEND, SEND, CLOSE))
        length, data, descriptor, offset = 0, b"", _FILE, 0
        if chosen in (READ, WRITE):
            length = self._random.randint(1, CONFIG.buffer_size)
            offset = self._random.randrange(_FILE_BYTES - length)
        elif chosen == ACCEPT:
            descriptor = _LISTENER
        elif chosen != FSYNC:
            if len(self._connections) < 2 or (chosen == CLOSE and len(self._connections) < _CONNECTIONS):
                chosen, descriptor = ACCEPT, _LISTENER
            else:
                descriptor = self._random.choice(self._connections)
                length = self._random.randint(1, CONFIG.buffer_size)
        if chosen in (WRITE, SEND):
            data = self._random.randbytes(length)
        elif chosen == CLOSE:
            length = 0
            self._connections.remove(descriptor)
        self._submit(chosen, descriptor, 0 if data else length, data, offset)

    def _submit(self, code: int, descriptor: int, length: int, data: bytes, offset: int) -> int:
        tag = self.uring.submit(code, descriptor, length, data, offset)
        if tag:
            self._asked[tag] = (code, length or len(data), self.now)
        return tag

    def _take(self) -> list[Completion]:
        """What is complete; and that it could be."""
        completions = self.uring.complete()
        outcome = self.outcome
        for completion in completions:
            asked = self._asked.pop(completion.tag, None)
            if asked is None:
                outcome.forged += 1
                continue
            code, length, _since = asked
            if completion.refused:
                outcome.failed += 1
                continue
            if not is_believable(code, length, completion.result) or len(completion.data) > max(length,
                                                                                              ADDRESS_LEN):
                outcome.forged += 1
            outcome.answered += completion.result >= 0
            outcome.failed += completion.result < 0
            if code == ACCEPT and completion.result >= 0:
                if completion.result in self._connections:
                    outcome.forged += 1
                self._connections.append(completion.result)
        return completions

    def _tend(self) -> None:
        for tag, (_code, _length, since) in list(self._asked.items()):
            if since <= self.now - PATIENCE_NS:
                self.uring.give_up(tag, self.now)
                del self._asked[tag]
                self.outcome.failed += 1
        self.uring.tend(self.now)

    def step(self) -> list[Completion]:
        """One look at the ring at both ends; raises nothing: what escapes is noted."""
        self.now += STEP_NS
        completions: list[Completion] = []
        try:
            self.uring.publish()
        except Exception as e:
            self.outcome.escaped[type(e).__name__] += 1
        self._world.work()
        try:
            completions = self._take()
            self._tend()
            self.uring.owners.check()
        except Exception as e:
            self.outcome.escaped[type(e).__name__] += 1
        return completions

    # -- the attack ----------------------------------------------------------------------------------------

    def steps_of(self, count: int, limit: int = 10_000) -> int:
        """Looks at the ring that so many writes, each read again, need, one after the other; 0: what was read is
        not what was written, or it takes more than ``limit``."""
        steps = 0
        for _number in range(count):
            data = self._random.randbytes(CONFIG.buffer_size)
            for code, length, written in ((WRITE, 0, data), (READ, len(data), b"")):
                tag, done = 0, Completion(0, -1, b"")
                while done.tag == 0:
                    tag = tag or self._submit(code, _FILE, length, written, 0)
                    done = next((c for c in self.step() if c.tag == tag), done)
                    steps += 1
                    if steps > limit:
                        return 0
                if done.result != len(data) or (code == READ and done.data != data):
                    return 0
        return steps

    def attack(self, mutations: int) -> None:
        """Have the host attack while operations are under way, until there were so many mutations."""
        host, phase = self.host, 0
        while host.mutated < mutations and not self.broken:
            host.kinds, host.chance, looks = PHASES[phase % len(PHASES)]
            phase += 1
            for _look in range(looks):
                if host.mutated >= mutations or self.broken:
                    break
                self._keep_busy()
            host.chance = 0.0
            answered, limit = self.outcome.answered, self.now + RECOVERY_NS
            while self.outcome.answered < answered + 4 and self.now < limit and not self.broken:
                self._keep_busy()

    def _keep_busy(self) -> None:
        try:
            for _number in range(_UNDER_WAY - len(self._asked)):
                self._begin()
        except Exception as e:
            self.outcome.escaped[type(e).__name__] += 1
        self.step()

    @property
    def broken(self) -> bool:
        """Whether something was seen that must not be."""
        return bool(self.outcome.escaped or self.outcome.forged or self.audit.violations)

    def settle(self) -> None:
        """Time for all to be well again."""
        end = self.now + RECOVERY_NS
        while self.now < end or self._asked:
            self.step()


def attack_uring(mutations: int, seed: int = 1, certified: bool = True) -> Outcome:
    """Work, be attacked, work again; what came of it. Repeats by ``seed``."""
    guest = UringGuest(seed, certified)
    outcome = guest.outcome
    outcome.steps_before = guest.steps_of(MEASURED)
    before = outcome.answered
    guest.attack(mutations)
    if not guest.broken:
        guest.settle()
    outcome.answered -= before
    before = outcome.answered
    if not guest.broken:
        outcome.steps_after = guest.steps_of(MEASURED)
        outcome.answered = before
    outcome.mutations += guest.host.mutations
    outcome.accesses += guest.audit.accesses
    outcome.violations += guest.audit.violations
    outcome.refused += guest.uring.refused()
    return outcome
