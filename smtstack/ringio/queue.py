"""A guarded process' end of one ring: asks for operations, and waits for what they come to.

On its way nothing here makes a network system call, nor a file one: to sleep it waits for a word in memory
(futex); to have the monitor look, where that sleeps, it writes to an eventfd. An exit, for what a ring has not or
does not take, is a ``write`` to a pipe and a ``read`` from another one, with the host's process at their ends. All
are counted.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from smtstack.errors import Unsupported
from smtstack.io.processors import outnumbered
from smtstack.ringio.host import ANSWER
from smtstack.ringnic.bell import GUARDED_SLEEPS, MONITOR_SLEEPS, Bell
from smtstack.rings.steady import SteadyClock
from smtstack.rings.uring import CertifiedUring, Completion
from smtstack.rings.uring_layout import ACCEPT, LOCK, NAMES, OPERATIONS, RECV, SEND
from smtstack.waiting import AS_HOMA, STALL_NS, Waiter, Waiting

#: It sleeps no longer than this at once, to see whether there is a host.
_LONGEST_SLEEP_NS: Final = 100_000_000
_LATER_NS: Final = 1_000_000
#: So often something is tried again that was interrupted, or begins with answers to other questions.
MOST_AGAIN: Final = 100
#: Buffers for what is no connection: who is accepted, files.
_SPARE: Final = 8
#: An operation that should end by itself is given up after so long, in seconds: the host has lost it, or stands.
PATIENCE_S: Final = 60.0
_AGAIN: Final = (errno.EINTR, errno.EAGAIN)
_ONE: Final = (1).to_bytes(8, "little")

Handler = Callable[[Completion], None]


class HostRefused(OSError):
    """The host answered what cannot be: nobody knows what it did. Its ``errno`` is EIO."""


class IoRing:
    """One ring; of one thread at a time. ``ask``, ``answer``: pipes of exits; ``bell``: an eventfd; ``life``: a
    pipe that ends with the host; ``exits``: everything is done by exits, one after the other: what rings are
    compared with; ``exit_ns``: what an exit is said to cost beside, a busy wait: a model."""

    def __init__(self, uring: CertifiedUring, page: Bell, bell: int, ask: int, answer: int, life: int,
                 exits: bool = False, exit_ns: int = 0, waiting: Waiting = AS_HOMA) -> None:
        self.uring = uring
        self.buffer_size = uring.buffer_size
        #: Connections that can be served side by side: each has a buffer to receive into, and finds one to send
        #: from. With more, all buffers might wait for clients who wait for answers.
        self.connections = (uring.owners.count - _SPARE) // 2
        self._page = page
        self._words = page.words
        self._bell = bell
        self._ask = ask
        self._answer = answer
        self._life = life
        self.exits = exits
        self._exit_ns = exit_ns
        self._waiter = Waiter(waiting, outnumbered)
        #: Time, as far as the host is to be believed.
        self._clock = SteadyClock(time.monotonic_ns)
        self._handlers: dict[int, Handler] = {}
        self._unseen = False
        #: Sockets by the host's numbers; and those of which something may be new (:mod:`smtstack.ringio.sockets`).
        self.sockets: dict[int, Any] = {}
        self.changed: set[Any] = set()
        #: What found no place in the ring, and is tried again.
        self.later: list[Callable[[], None]] = []
        #: Writes and sends that are not complete.
        self.going_out = 0
        self._fallbacks = self._sleeps = self._bells = 0

    # -- operations ----------------------------------------------------------------------------------------

    def begin(self, code: int, descriptor: int, handler: Handler, length: int = 0, data: bytes = b"",
              offset: int = 0, flags: int = 0) -> int:
        """Ask for an operation; ``handler`` is told what it came to, by :meth:`turn`. Its tag; 0: the ring is
        full. The host sees it with the next :meth:`flush`."""
        tag = self.uring.submit(code, descriptor, length, data, offset, flags)
        if tag:
            self._handlers[tag] = handler
            self._unseen = True
        return tag

    def give_up(self, tag: int) -> None:
        """Nobody waits for an operation any more."""
        self._handlers.pop(tag, None)
        self.uring.give_up(tag, self._clock())

    def call(self, code: int, descriptor: int, length: int = 0, data: bytes = b"", offset: int = 0,
             flags: int = 0) -> Completion:
        """Do an operation, and wait until it is done: by the ring, or by an exit if that is full or has no such
        one. Raises OSError with what the host says, :class:`HostRefused` if that cannot be,
        :class:`~smtstack.errors.Unsupported` if there is no host any more."""
        for _time in range(MOST_AGAIN):
            done: list[Completion] = []
            if code not in OPERATIONS or self.exits:
                done.append(self._exit(code, descriptor, length, data, offset, flags))
            elif tag := self.begin(code, descriptor, done.append, length, data, offset, flags):
                if not self.until(partial(bool, done), PATIENCE_S):
                    self.give_up(tag)
                    raise HostRefused(errno.EIO, f"{NAMES[code]}: no answer within {PATIENCE_S:.0f} s")
            else:
                self._fallbacks += 1
                done.append(self._exit(code, descriptor, length, data, offset, flags))
            if -done[0].result not in _AGAIN or done[0].refused or _may_say_again(code, flags):
                check(code, done[0])
                return done[0]
        raise HostRefused(errno.EIO, f"{NAMES[code]}: interrupted {MOST_AGAIN} times")

    def _exit(self, code: int, descriptor: int, length: int, data: bytes, offset: int, flags: int) -> Completion:
        entry = self.uring.begin_exit(code, descriptor, length, data, offset, flags)
        if self._exit_ns:
            end = time.perf_counter_ns() + self._exit_ns
            while time.perf_counter_ns() < end:
                pass
        with suppress(BrokenPipeError):
            os.write(self._ask, entry.pack())
        for _time in range(MOST_AGAIN):
            answer = os.read(self._answer, ANSWER.size)
            if not answer:
                raise self._dead()
            if len(answer) == ANSWER.size:
                completion = self.uring.end_exit(*ANSWER.unpack(answer))
                if completion is not None:
                    return completion
        raise HostRefused(errno.EIO, f"{NAMES[code]}: the host answers something else")

    # -- waiting -------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Let the host see what was begun."""
        if not self._unseen:
            return
        self._unseen = False
        self.uring.publish()
        self._page.fence()
        if self._words[MONITOR_SLEEPS]:
            self._bells += 1
            with suppress(BlockingIOError):  # rung often enough
                os.write(self._bell, _ONE)

    def turn(self) -> bool:
        """Tell handlers what is complete, and try again what found no place; whether anything was."""
        completions = self.uring.complete()
        for completion in completions:
            handler = self._handlers.pop(completion.tag, None)
            if handler is not None:
                handler(completion)
        if self.later:
            again, self.later = self.later, []
            for each in again:
                each()
        return bool(completions)

    def until(self, done: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Let the host work until ``done``, or for so long; whether it is. Raises
        :class:`~smtstack.errors.Unsupported` if there is no host any more."""
        end = None if timeout_s is None else self._clock() + int(timeout_s * 1e9)
        while True:
            self.turn()
            if done():
                return True
            self.flush()
            left = _LONGEST_SLEEP_NS if end is None else end - self._clock()
            if left <= 0:
                return False
            # That there is room again for what found none, nobody says.
            self.wait(min(left, _LATER_NS if self.later else _LONGEST_SLEEP_NS))

    def wait(self, timeout_ns: int) -> None:
        """Look, then sleep, until something is complete, or this long."""
        page, uring, waiter = self._page, self.uring, self._waiter
        now = self._clock()
        uring.tend(now)
        until = min(waiter.begin(now), now + timeout_ns)
        while now < until:
            if uring.waiting():
                waiter.end(now, True)
                return
            at = self._clock()
            if at - now > STALL_NS:
                waiter.stalled()
                break
            now = at
        self._words[GUARDED_SLEEPS] = 1
        page.fence()
        if not uring.waiting():
            self._sleeps += 1
            page.sleep(timeout_ns)
        self._words[GUARDED_SLEEPS] = 0
        came = uring.waiting()
        waiter.end(self._clock(), came)
        if not came:
            self._look_alive()

    def _look_alive(self) -> None:
        with suppress(BlockingIOError):
            if not os.read(self._life, 1):
                raise self._dead()

    def _dead(self) -> Unsupported:
        return Unsupported("the host's process behind TCP and files ended")

    def counters(self) -> dict[str, int]:
        """What passed and was refused; how often we slept, rang, and went by an exit for want of room."""
        return {**self.uring.counters(), "ocall_fallbacks": self._fallbacks, "iouring_sleeps": self._sleeps,
                "iouring_bells": self._bells}


def _may_say_again(code: int, flags: int) -> bool:
    """A lock that somebody else has, and a socket that is not to wait and has nothing, say EAGAIN."""
    return code == LOCK or (code in (RECV, SEND, ACCEPT) and flags & socket.MSG_DONTWAIT != 0)


def check(code: int, completion: Completion) -> None:
    """Raises OSError for what did not come off, :class:`HostRefused` for what cannot be believed."""
    if completion.refused:
        raise HostRefused(errno.EIO, f"the host's answer to {NAMES[code]} cannot be")
    if completion.result < 0:
        raise OSError(-completion.result, os.strerror(-completion.result))
