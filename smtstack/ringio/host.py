"""The host's process behind the proxies of a guarded process::

    python -m smtstack.ringio.host DESCRIPTOR

It makes rings when it is asked by DESCRIPTOR, and is their monitor: makes the system calls which the guarded
process may not. A ring is the kernel's io_uring, or, where there is none or it is not wanted, in memory, and
operations are done by system calls (:mod:`smtstack.ringio.calls`). Exits, operations that a ring does not have or
take, come by a pipe each. It ends when nobody holds the other end of DESCRIPTOR any more. Nothing secret is in it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from smtstack.errors import ConfigError, SmtError, Unsupported
from smtstack.io.memory import address_of, sealed_memory
from smtstack.io.processors import outnumbered
from smtstack.io.uring import Uring
from smtstack.ringio.calls import Calls
from smtstack.ringnic import messages
from smtstack.ringnic.bell import GUARDED_SLEEPS, MONITOR_SLEEPS, SIZE, Bell
from smtstack.rings.memory import SharedMemory
from smtstack.rings.uring_checker import POINTERS
from smtstack.rings.uring_host import MemoryUring
from smtstack.rings.uring_layout import (
    COMPLETIONS,
    MEMORIES,
    QUEUES,
    SUBMISSION_LEN,
    SUBMISSIONS,
    UringConfig,
    submission,
)
from smtstack.waiting import AS_HOMA, STALL_NS, Waiter

#: What it is called in ps.
NAME: Final = "uring-monitor"
#: Descriptors that come with each ring, in this order: memories, the page and the eventfd to wake by, and pipes:
#: to ask for an exit, for its answer, and one that ends when this process does.
DESCRIPTORS: Final = (*MEMORIES, "page", "bell", "ask", "answer", "life")
#: Who is asked for more rings than this is not asked by us.
MOST_RINGS: Final = 16
#: An exit's answer: its tag, and what it came to.
ANSWER: Final = struct.Struct("=Qq")
_SET_NAME: Final = 15
#: It sleeps no longer than this, in seconds; and where the kernel took nothing just now.
_LONGEST_S: Final = 1.0
_AGAIN_S: Final = 0.001
_NOW_AND_THEN: Final = (errno.EAGAIN, errno.EBUSY, errno.EINTR)
_MASK: Final = 0xFFFFFFFF


class HostRing:
    """One ring, and what serves it. Raises :class:`Unsupported` where it is to be the kernel's and cannot."""

    def __init__(self, config: UringConfig, backing: str, calls: Calls, bell: int) -> None:
        made = {name: sealed_memory(f"smtnet-{name}", config.bytes_of(name)) for name in MEMORIES}
        mappings = {name: mapping for name, (_descriptor, mapping) in made.items()}
        page, page_memory = sealed_memory("smtnet-page", SIZE)
        self.page = Bell(page_memory)
        self._words = memoryview(mappings[QUEUES])[:64].cast("I")
        self.kernel: Uring | None = None
        if backing != messages.MEMORY:
            try:
                self.kernel = Uring(mappings[QUEUES], mappings["entries"], config)
            except Unsupported:
                if backing:
                    raise
        self.ask, theirs_ask = os.pipe2(os.O_CLOEXEC)
        theirs_answer, self.answer = os.pipe2(os.O_CLOEXEC)
        life, self._alive = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        #: What is only for the guarded process, once it has it; memory stays while it is mapped.
        self.given = [*(descriptor for descriptor, _mapping in made.values()), page, theirs_ask, theirs_answer,
                      life]
        self.descriptors = [*self.given[:-3], bell, *self.given[-3:]]
        base = address_of(mappings["buffers"])
        shared = {name: SharedMemory(name, mapping) for name, mapping in mappings.items()}
        self.memory = MemoryUring(shared, config, base)
        self._calls = calls
        self.said = {
            "backing": messages.KERNEL if self.kernel is not None else messages.MEMORY, "base": base,
            "entries": config.entries, "completions": config.completions, "buffer_size": config.buffer_size,
            "pointers": [offset for _memory, offset in POINTERS.values()]}

    def serve(self) -> bool:
        """Have done what is submitted, and wake who waits for what is complete; whether some could not be begun
        now."""
        stuck = False
        if self.kernel is None:
            for entry in self.memory.take():
                self._calls.begin(self.memory, entry, partial(self.memory.complete, entry.tag))
        else:
            while not stuck and (count := self._submitted()):
                try:
                    stuck = not self.kernel.enter(count)
                except OSError as e:
                    if e.errno not in _NOW_AND_THEN:
                        raise
                    stuck = True
        self.wake()
        return stuck

    def wake(self) -> None:
        """Wake the guarded process if it sleeps and something is complete."""
        words = self._words
        if (self.page.words[GUARDED_SLEEPS]
                and words[COMPLETIONS.producer >> 2] != words[COMPLETIONS.consumer >> 2]):
            self.page.wake()

    def pending(self) -> bool:
        """Whether there is something to serve."""
        return self._submitted() > 0 if self.kernel is not None else self.memory.has_work()

    def _submitted(self) -> int:
        """How much is; nothing, where that cannot be: somebody has overwritten an index. The kernel goes by a copy
        of its own, and would take what was submitted once again and again, some billion times."""
        words = self._words
        count = (words[SUBMISSIONS.producer >> 2] - words[SUBMISSIONS.consumer >> 2]) & _MASK
        return count if count <= self.memory.config.entries else 0

    def exit(self) -> bool:
        """An exit is asked for; False: nobody will ask any more."""
        asked = os.read(self.ask, SUBMISSION_LEN)
        if len(asked) < SUBMISSION_LEN:
            return False
        entry = submission(asked)
        self._calls.begin(self.memory, entry, partial(self._answer, entry.tag))
        return True

    def _answer(self, tag: int, result: int) -> None:
        with suppress(BrokenPipeError):
            os.write(self.answer, ANSWER.pack(tag, result))


class Host:
    """All rings of a guarded process, in one loop. ``starter``: its socket."""

    def __init__(self, starter: socket.socket) -> None:
        self._starter = starter
        self._epoll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._rings: list[HostRing] = []
        self._calls: Calls | None = None
        self._waiter = Waiter(AS_HOMA, outnumbered)
        self._readers: dict[int, Callable[[], bool]] = {}
        self._epoll.register(starter, select.EPOLLIN)
        self._epoll.register(self._bell, select.EPOLLIN)

    def make(self, asked: dict[str, Any]) -> None:
        """Make the rings that are asked for, and hand them out. Raises :class:`SmtError`."""
        try:
            config = UringConfig(*(int(asked[name]) for name in ("entries", "buffers", "buffer_size")))
            count, backing = int(asked["rings"]), str(asked["backing"])
            allowed = [Path(str(path)) for path in asked["allow"]]
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ConfigError("no rings are asked for") from None
        if not 0 < count <= MOST_RINGS:
            raise ConfigError(f"{count} rings; at most {MOST_RINGS}")
        self._calls = Calls(self._epoll, allowed)
        try:
            for _number in range(count):
                ring = HostRing(config, backing, self._calls, self._bell)
                socket.send_fds(self._starter, [json.dumps(ring.said).encode()], ring.descriptors)
                for descriptor in ring.given:
                    os.close(descriptor)
                self._rings.append(ring)
                self._readers[ring.ask] = ring.exit
                self._epoll.register(ring.ask, select.EPOLLIN)
                if ring.kernel is not None:
                    # By edges: what is complete once wakes nobody again.
                    self._epoll.register(ring.kernel.fileno(), select.EPOLLIN | select.EPOLLET)
        except (OSError, OverflowError) as e:
            raise Unsupported(f"rings: {e}") from None

    def run(self) -> None:
        """Until whoever asked is gone."""
        rings = self._rings
        while True:
            stuck = sum(ring.serve() for ring in rings) > 0
            if not stuck and self._look():
                continue
            for ring in rings:
                ring.page.words[MONITOR_SLEEPS] = 1
            rings[0].page.fence()
            if not stuck and any(ring.pending() for ring in rings):
                timeout_s = 0.0
            else:
                timeout_s = _AGAIN_S if stuck else _LONGEST_S
            for ring in rings:
                # It looked before it slept: what became complete after our look is seen now, or it sleeps.
                ring.wake()
            events = self._epoll.poll(timeout_s)
            self._waiter.end(time.monotonic_ns(), bool(events))
            for ring in rings:
                ring.page.words[MONITOR_SLEEPS] = 0
            if not all(self._hear(descriptor, mask) for descriptor, mask in events):
                return

    def _look(self) -> bool:
        """Look, where that pays, whether something is submitted."""
        waiter, rings = self._waiter, self._rings
        now = time.monotonic_ns()
        until = waiter.begin(now)
        while now < until:
            if any(ring.pending() for ring in rings):
                waiter.end(now, True)
                return True
            # What the kernel completes meanwhile, somebody may sleep for.
            for ring in rings:
                ring.wake()
            at = time.monotonic_ns()
            if at - now > STALL_NS:
                waiter.stalled()
                break
            now = at
        return False

    def _hear(self, descriptor: int, mask: int) -> bool:
        """False: it is over."""
        if descriptor == self._bell:
            with suppress(BlockingIOError):
                os.read(self._bell, 8)
        elif descriptor == self._starter.fileno():
            return False
        elif descriptor in self._readers:
            return self._readers[descriptor]()
        elif self._calls is not None:
            # A ring's own is of no interest to it: something is complete, and we are awake.
            self._calls.ready(descriptor, mask)
        return True


def main(descriptor: int) -> None:
    """Serve until the other end of ``descriptor`` is closed."""
    ctypes.CDLL(None).prctl(_SET_NAME, NAME.encode(), 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as starter:
        asked = starter.recv(messages.LONGEST)
        if not asked:
            return
        host = Host(starter)
        try:
            host.make(messages.read_untrusted(asked))
        except SmtError as e:
            starter.send(messages.refusal(e))
            return
        host.run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
