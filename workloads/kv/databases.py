"""What the databases of a server have in common, and the journal of all of them.

A client has one of them selected (:attr:`~workloads.kv.arguments.Session.database`), and
:func:`~workloads.kv.commands.execute` does its commands on that one: commands know of one keyspace only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from workloads.kv.resp import Command

if TYPE_CHECKING:
    from workloads.kv.store import Keyspace


class Persistence(Protocol):
    """What keeps the journal."""

    def info(self) -> dict[str, object]:
        """The fields of the databases, as INFO tells them."""

    def settings(self) -> dict[str, object]:
        """The settings of the databases, as CONFIG GET tells them."""

    def ask_rewrite(self) -> bool:
        """Have what is kept written anew, soon; whether that is not being done already."""


class Journal(list[Command]):
    """Changes, in order, as commands that give the same when they are replayed.

    They begin in database 0 and, as :meth:`take` gives them, end there, so that what was written by turns can be
    replayed one after the other, together, or alone.
    """

    __slots__ = ("_database",)

    def __init__(self) -> None:
        super().__init__()
        self._database = 0

    def add(self, database: int, change: Command) -> None:
        """A change within a database."""
        if database != self._database:
            self._select(database)
        self.append(change)

    def take(self) -> list[Command]:
        """All of it, which is not here any more."""
        if self._database:
            self._select(0)
        taken = self[:]
        self.clear()
        return taken

    def _select(self, database: int) -> None:
        self._database = database
        self.append([b"SELECT", b"%d" % database])


class Databases:
    """What they have in common. A keyspace that is made joins :attr:`all`, and its place there is its number."""

    __slots__ = ("all", "journal", "longest", "now", "persistence", "ready")

    def __init__(self) -> None:
        self.all: list[Keyspace] = []
        self.now = 0
        #: Bytes of the longest string that a command may make out of others.
        self.longest = 512 << 20
        self.journal: Journal | None = None
        self.persistence: Persistence | None = None
        #: Keys, with their database, that clients wait for and that have got a value since, in order.
        self.ready: dict[tuple[int, bytes], None] = {}

    def flush(self) -> None:
        """Delete everything."""
        for keys in self.all:
            keys.empty()
        if self.journal is not None:
            self.journal.add(0, [b"FLUSHALL"])

    def sweep(self, now: int) -> None:
        """Look at some of the keys that expire."""
        for keys in self.all:
            if keys.expiring:
                keys.sweep(now)

    def snapshot(self) -> Iterator[tuple[int, Command]]:
        """Commands that make all of them anew, each with its database."""
        for keys in self.all:
            for args in keys.snapshot():
                yield keys.number, args

    def count(self, name: str) -> int:
        """The sum of what each of them counts by this name."""
        return sum([getattr(keys, name) for keys in self.all])
