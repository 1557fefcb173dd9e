"""What is behind the front ends: a store that does commands, at once or later. Here: the embedded one."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

from workloads.kv.aof import Aof
from workloads.kv.arguments import Session
from workloads.kv.commands import execute
from workloads.kv.resp import Command
from workloads.kv.store import Keyspace

Done = Callable[[bytes], object]

#: Between two looks for keys that are over.
_SWEEP_NS = 100_000_000


class Backend(ABC):
    """Does commands. Of one client it is given some only when those before are answered."""

    @abstractmethod
    def submit(self, session: Session, commands: deque[Command], done: Done, limit: int) -> bytes | None:
        """Take commands off the front, and stop soon after their replies are ``limit`` bytes.

        Their replies, one after the other; None: ``done`` will be called with them.
        """

    @abstractmethod
    def turn(self) -> None:
        """End of a turn of the event loop: what was put off is done now. Raises SmtError when it is over."""

    def fileno(self) -> int | None:
        """Readable when :meth:`turn` has something to do; None: never by itself."""
        return None

    @abstractmethod
    def counters(self) -> dict[str, int]:
        """What it counts."""

    @abstractmethod
    def close(self) -> None:
        """Nothing is submitted after this."""


class EmbeddedStore(Backend):
    """The keyspace in this process. With an ``aof`` nothing is answered before it is written there."""

    def __init__(self, keys: Keyspace, aof: Aof | None = None) -> None:
        self.keys = keys
        self._aof = aof
        self._commands = 0
        self._swept_at = 0
        self._waiting: list[tuple[Done, bytes]] = []
        if aof is not None:
            keys.journal = []
            keys.persistence = aof

    def submit(self, session: Session, commands: deque[Command], done: Done, limit: int) -> bytes | None:
        keys, now = self.keys, time.time_ns() // 1_000_000
        reply = execute(keys, commands.popleft(), session, now)
        self._commands += 1
        if commands and not session.closing:
            replies = [reply]
            size = len(reply)
            while commands and size < limit and not session.closing:
                reply = execute(keys, commands.popleft(), session, now)
                self._commands += 1
                replies.append(reply)
                size += len(reply)
            reply = b"".join(replies)
        if self._aof is None:
            return reply
        self._waiting.append((done, reply))
        return None

    def turn(self) -> None:
        now = time.monotonic_ns()
        if now - self._swept_at >= _SWEEP_NS:
            self._swept_at = now
            self.keys.sweep(time.time_ns() // 1_000_000)
        aof = self._aof
        if aof is None:
            return
        while True:
            journal, waiting = self.keys.journal, self._waiting
            assert journal is not None
            self.keys.journal, self._waiting = [], []
            aof.write(journal, now)
            for done, reply in waiting:
                done(reply)
            if not self._waiting:
                break
        aof.turn(now)

    def counters(self) -> dict[str, int]:
        keys = self.keys
        return {"commands": self._commands, "keys": len(keys), "expired_keys": keys.expired,
                "keyspace_hits": keys.hits, "keyspace_misses": keys.misses,
                **(self._aof.counters() if self._aof is not None else {})}

    def close(self) -> None:
        if self._aof is not None:
            self._aof.close()
