"""What is behind the front ends: a store that does commands, at once or later. Here: the embedded one."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque

from workloads.kv.aof import Aof
from workloads.kv.arguments import Facts, Session
from workloads.kv.commands import execute
from workloads.kv.databases import Journal
from workloads.kv.resp import Command
from workloads.kv.store import Keyspace
from workloads.kv.waiting import Answer, Done, Waiting

#: Between two looks for keys that are over.
_SWEEP_NS = 100_000_000


class Backend(ABC):
    """Does commands. Of one client it is given some only when those before are answered."""

    def __init__(self) -> None:
        self.facts = Facts()

    @abstractmethod
    def submit(self, session: Session, commands: deque[Command], done: Done, limit: int) -> bytes | None:
        """Take commands off the front, and stop soon after their replies are ``limit`` bytes.

        Their replies, one after the other; None: ``done`` will be called with them.
        """

    @abstractmethod
    def turn(self) -> None:
        """End of a turn of the event loop: what was put off is done now. Raises SmtError when it is over."""

    def forget(self, session: Session) -> None:
        """A client is gone, or a message was answered. What it waits for, it does not any more."""
        self.facts.sessions.pop(session.number, None)

    def next_wake(self) -> int | None:
        """``time.monotonic_ns()`` at which :meth:`turn` has something to do at the latest; None: whenever."""
        return None

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
    """The keyspaces in this process. With an ``aof`` nothing is answered before it is written there."""

    def __init__(self, keys: Keyspace, aof: Aof | None = None) -> None:
        super().__init__()
        self.keys = keys
        self._aof = aof
        self._waiting = Waiting(keys)
        self._swept_at = 0
        #: Replies that leave with the next turn.
        self._answers: list[Answer] = []
        self.facts.blocked = self._waiting.__len__
        if aof is not None:
            keys.databases.journal = Journal()
            keys.databases.persistence = aof

    def submit(self, session: Session, commands: deque[Command], done: Done, limit: int) -> bytes | None:
        keys, now = self.keys, time.time_ns() // 1_000_000
        session.last_ns = time.monotonic_ns()
        replies: list[bytes] = []
        size = 0
        while commands and size < limit and not session.closing:
            args = commands.popleft()
            session.last = args[0]
            reply = execute(keys, args, session, now)
            if keys.databases.ready:
                self._answers += self._waiting.serve()
            if session.waiting is not None:
                if replies:
                    # It has looked and changed nothing: what came before is answered first.
                    session.waiting = None
                    commands.appendleft(args)
                    break
                self.facts.commands += 1
                self._waiting.add(session, done, session.last_ns)
                return None
            replies.append(reply)
            size += len(reply)
        self.facts.commands += len(replies)
        reply = replies[0] if len(replies) == 1 else b"".join(replies)
        if self._aof is None:
            return reply
        self._answers.append((done, reply))
        return None

    def forget(self, session: Session) -> None:
        super().forget(session)
        self._waiting.forget(session)

    def next_wake(self) -> int | None:
        return self._waiting.next_deadline()

    def turn(self) -> None:
        now = time.monotonic_ns()
        if now - self._swept_at >= _SWEEP_NS:
            self._swept_at = now
            self.keys.databases.sweep(time.time_ns() // 1_000_000)
        self._answers += self._waiting.expire(now)
        aof, keys = self._aof, self.keys
        while True:
            if aof is not None:
                assert keys.databases.journal is not None
                aof.write(keys.databases.journal.take(), now)
            answers, self._answers = self._answers, []
            for done, reply in answers:
                done(reply)
            if not self._answers:
                break
        # The contents of the file written anew are what is written down up to now, no more.
        if aof is not None and not keys.databases.journal:
            aof.turn(now)

    def counters(self) -> dict[str, int]:
        databases = self.keys.databases
        return {"commands": self.facts.commands, "keys": sum(map(len, databases.all)),
                "expired_keys": databases.count("expired"), "keyspace_hits": databases.count("hits"),
                "keyspace_misses": databases.count("misses"),
                **(self._aof.counters() if self._aof is not None else {})}

    def close(self) -> None:
        if self._aof is not None:
            self._aof.close()
