"""A speed test of SQLite, after the parts of its own (test/speedtest1.c) that a file matters for.

Rows are numbers and their names in words, so that equal work is done whatever is below. Each part is a list of
statements that end on the disk: by one transaction, or by many.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, Protocol

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Connection(Protocol):
    """What apsw's and sqlite3's connections have in common. Transactions are begun by statements only."""

    def execute(self, statement: str, values: Any = ..., /) -> Any:
        """Do a statement."""


def words(number: int) -> str:
    """A number as text: ``two seven``."""
    return " ".join(_WORDS[int(digit)] for digit in str(number))


def parts(connection: Connection, size: int, seed: int = 1) -> Iterator[tuple[str, int, Callable[[], object]]]:
    """(name, statements, the part), in the order in which they must be done. ``size``: rows of a table."""
    random = Random(seed)
    execute = connection.execute
    single = max(10, size // 50)

    def in_one(statement: str, values: list[tuple[Any, ...]]) -> None:
        execute("begin")
        for row in values:
            execute(statement, row)
        execute("commit")

    def in_many(statement: str, values: list[tuple[Any, ...]]) -> None:
        for row in values:
            execute(statement, row).fetchall()

    def row(number: int) -> tuple[Any, ...]:
        value = random.randrange(1_000_000)
        return number, value, words(value)

    execute("create table t1(a integer primary key, b integer, c text)")
    execute("create table t2(a integer primary key, b integer, c text)")
    execute("create index t2b on t2(b)")
    insert = "insert into {} values(?, ?, ?)"
    many = [row(i) for i in range(size)]
    few = [row(size + i) for i in range(single)]
    yield "inserts, each a transaction", single, lambda: in_many(insert.format("t1"), few)
    yield "inserts, one transaction", size, lambda: in_one(insert.format("t1"), many)
    yield "inserts with an index", size, lambda: in_one(insert.format("t2"), many)
    spans = [(x, x + 10_000) for x in (random.randrange(990_000) for _ in range(size // 20))]
    yield "selects by an index", len(spans), lambda: in_many(
        "select count(*), avg(b), sum(length(c)) from t2 where b between ? and ?", spans)
    yield "selects without one", 10, lambda: in_many("select count(*) from t1 where c like ?",
                                                     [(f"%{words(n)}%",) for n in range(10)])
    changes = [(random.randrange(1_000_000), random.randrange(size)) for _ in range(size)]
    yield "updates, one transaction", size, lambda: in_one("update t2 set b = ? where a = ?", changes)
    yield "updates, each a transaction", single, lambda: in_many("update t2 set b = ? where a = ?",
                                                                   changes[:single])
    yield "deletes, each a transaction", single, lambda: in_many(
        "delete from t1 where a = ?", [(number,) for number in range(single)])
    yield "create an index", 1, lambda: execute("create index t1c on t1(c)")
    yield "vacuum", 1, lambda: execute("vacuum")


def run(connection: Connection, size: int) -> dict[str, float]:
    """Seconds that each part took."""
    found = {}
    for name, _count, part in parts(connection, size):
        start = time.perf_counter()
        part()
        found[name] = time.perf_counter() - start
    return found
