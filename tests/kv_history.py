"""Clients that do YCSB A, and the history of every field they wrote and read: is it linearizable?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import hiredis

from workloads.load.linearizable import NEVER, Operation, violation
from workloads.load.ycsb import WORKLOADS, Command, Keyspace, Operations, Records, Steps
from workloads.load.ycsb_history import History

RECORDS, FIELDS, LENGTH = 12, 2, 60
RESTART_NS = 1_000_000


class Histories:
    """Of all fields of all records. Times are of one clock, whatever happens to servers and clients."""

    def __init__(self, seed: int) -> None:
        self.records = Records(FIELDS, LENGTH)
        self.operations = Operations(WORKLOADS["a"], "", self.records, Keyspace(RECORDS), History(1, FIELDS), seed,
                                     None)
        self.fields: dict[tuple[bytes, int], list[Operation]] = defaultdict(list)
        #: What YCSB itself finds wrong.
        self.wrong: list[str] = []
        self.acknowledged = self.unanswered = self.read = 0

    def load(self) -> list[Command]:
        """Commands that make all records."""
        return [command for number in range(RECORDS)
                for command in self.records.insert(self.records.key(number), 0)]

    def next(self, now: int) -> Asked:
        """One more operation begins."""
        _kind, steps = self.operations.next()
        return Asked(self, steps, now)

    def violations(self) -> list[str]:
        """What is wrong with them, a line for a field."""
        found = list(self.wrong)
        for (key, field), history in self.fields.items():
            why = violation(history)
            if why:
                found.append(f"{key.decode()} field{field}: {why}")
        return found


class Asked:
    """An operation under way: one command."""

    def __init__(self, histories: Histories, steps: Steps, now: int) -> None:
        self._histories = histories
        self._steps = steps
        self._begin = now
        self.commands: Sequence[Command] = next(steps)
        (self._command,) = self.commands

    def answer(self, reply: Any, now: int) -> None:
        """Its reply, parsed."""
        here, name, key = self._histories, self._command[0], self._command[1]
        if name == b"HMSET":
            self._written(now)
            here.acknowledged += 1
        else:
            seen: dict[int, int] = {}
            here.records.judge(key, reply, None, seen)
            for field, version in seen.items():
                here.fields[key, field].append(Operation(False, version, self._begin, now))
            here.read += 1
        try:
            self._steps.send([reply])
        except StopIteration as stop:
            if stop.value:
                here.wrong.append(stop.value)

    def lost(self) -> None:
        """There is no reply, and will be none."""
        if self._command[0] == b"HMSET":
            self._written(NEVER)
            self._histories.unanswered += 1
        self._steps.close()

    def _written(self, end: int) -> None:
        key, name, value = self._command[1:]
        field, version = int(name.removeprefix(b"field")), int.from_bytes(value[:5], "big")
        self._histories.fields[key, field].append(Operation(True, version, self._begin, end))


def parsed(data: bytes) -> Any:
    """The one reply in a response."""
    reader = hiredis.Reader()
    reader.feed(data)
    return reader.gets()
