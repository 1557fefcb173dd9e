"""Clients that wait for a key to have a value, as by BLPOP: who is served first, and when it is over."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from workloads.kv.arguments import Session, Wait
from workloads.kv.resp import error
from workloads.kv.store import CommandError, Keyspace

Done = Callable[[bytes], object]
#: What is to be said to whom.
Answer = tuple[Done, bytes]

#: Deadlines of clients that were served since, which are kept before all are looked through.
_STALE = 64


@dataclass(slots=True, eq=False)
class _Waiter:
    """A client and its command."""

    session: Session
    what: Wait
    done: Done
    by_key: dict[bytes, dict[_Waiter, None]]
    """All that wait in its database."""


class Waiting:
    """All that wait, in the order in which they came. Time is an argument, a ``time.monotonic_ns()``."""

    def __init__(self, keys: Keyspace) -> None:
        self._databases = keys.databases
        self._waiters: dict[Session, _Waiter] = {}
        #: By database.
        self._by_key: list[dict[bytes, dict[_Waiter, None]]] = [{} for _ in keys.databases.all]
        self._deadlines: list[tuple[int, int, _Waiter]] = []
        self._order = count()
        for one, by_key in zip(keys.databases.all, self._by_key, strict=True):
            one.awaited = by_key

    def __len__(self) -> int:
        return len(self._waiters)

    def add(self, session: Session, done: Done, now_ns: int) -> None:
        """A client has :attr:`~Session.waiting` set: ``done`` gets its reply."""
        what = session.waiting
        assert what is not None
        by_key = self._by_key[session.database]
        waiter = self._waiters[session] = _Waiter(session, what, done, by_key)
        for key in what.keys:
            by_key.setdefault(key, {})[waiter] = None
        if what.timeout_ms:
            heapq.heappush(self._deadlines, (now_ns + what.timeout_ms * 1_000_000, next(self._order), waiter))
        if len(self._deadlines) > 2 * len(self._waiters) + _STALE:
            self._deadlines = [d for d in self._deadlines if d[2].session.waiting is d[2].what]
            heapq.heapify(self._deadlines)

    def serve(self) -> list[Answer]:
        """After a command, or a transaction: who has waited longest for a key that has a value now gets it."""
        answers: list[Answer] = []
        ready = self._databases.ready
        while ready:
            # A client that moves an element to another key makes that one ready.
            number, key = where = next(iter(ready))
            del ready[where]
            keys = self._databases.all[number]
            for waiter in list(self._by_key[number].get(key, ())):
                if type(keys.get(key)) is not waiter.what.kind:
                    continue
                try:
                    reply = waiter.what.serve(keys, key)
                except CommandError as e:
                    # Where it was to be moved to.
                    reply = error(str(e))
                assert reply is not None
                self.forget(waiter.session)
                answers.append((waiter.done, reply))
        return answers

    def expire(self, now_ns: int) -> list[Answer]:
        """The clients whose time to wait is over."""
        answers: list[Answer] = []
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            waiter = heapq.heappop(self._deadlines)[2]
            if waiter.session.waiting is waiter.what:
                self.forget(waiter.session)
                answers.append((waiter.done, waiter.what.nothing))
        return answers

    def next_deadline(self) -> int | None:
        """When to call :meth:`expire`, at the latest."""
        while self._deadlines and self._deadlines[0][2].session.waiting is not self._deadlines[0][2].what:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def forget(self, session: Session) -> None:
        """A client does not wait any more."""
        waiter = self._waiters.pop(session, None)
        if waiter is None:
            return
        session.waiting = None
        for key in waiter.what.keys:
            others = waiter.by_key.get(key)
            if others is not None:
                others.pop(waiter, None)
                if not others:
                    del waiter.by_key[key]
