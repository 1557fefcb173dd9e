"""Queries: one RPC to each of many leaves at the same moment, over when all answers are there.

What a web page, a search or a striped file asks of its servers (partition-aggregate), and, over and over, incast.
To the loops of loops.py a query is a call; :class:`Scatter` makes RPCs of it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smtstack.errors import ConfigError
from workloads.load.loops import Load, Tally, echo_reply
from workloads.load.measure import Point, Series, rtt_summary, write_values
from workloads.transports import Settings
from workloads.transports.contract import Call, Caller

#: Beside the file with the queries' times: of each of them those of its leaves.
LEAVES_SUFFIX = ".leaves"
#: Queries of an open loop that have connections of their own; more share them.
_CONNECTIONS = 8


@dataclass(frozen=True)
class QueryLoad(Load):
    """Queries. ``size`` is what each leaf is sent in bytes, ``response_size`` what it answers; ``count``,
    ``concurrency`` and ``rate`` are of queries. With ``concurrency`` 1 all begin in step: rounds of incast."""

    leaves: int = 1
    """How many of the caller's peers, from the first one on."""
    in_turn: bool = False
    """A query asks only one leaf, the next one another: the same work, not in step."""
    warm_up: int = 2
    """Queries before those that count."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.size.isdecimal() or self.also or self.response_size is None:
            raise ConfigError("a query has a size in bytes, and so have its answers")
        if self.leaves < 1:
            raise ConfigError(f"a query of {self.leaves} leaves; at least one")


class _Leaf(Call):
    """The RPC of a query to one leaf."""

    __slots__ = ("query",)

    def __init__(self, query: Call, peer: int) -> None:
        # Leaves answer with what they are sent: no two of a query may get the same.
        super().__init__(query.data[:-1] + bytes([peer & 0xFF]), peer, query.started)
        self.query = query


@dataclass(slots=True, eq=False)
class _Asked:
    """What became of a query so far."""

    waiting: set[Call]
    times: list[int] = field(default_factory=list)
    """Nanoseconds from when the query was due to each answer."""
    wrong: bool = False


class Scatter(Caller):
    """A caller whose calls are queries of several peers of another, or (``in_turn``) of one of them each.

    A query fails with the error of the first leaf that failed, and has no response if an answer was wrong; then
    its ``peer`` is who gave it.
    """

    def __init__(self, caller: Caller) -> None:
        super().__init__(caller.peers)
        self._caller = caller
        self.ask(1)
        #: Of every query that succeeded, in the order of their ends: its leaves' times in ns.
        self.leaf_ns = array("Q")

    def ask(self, leaves: int, in_turn: bool = False, response_size: int | None = None) -> None:
        """Queries from now on are of so many leaves, each of which answers so many bytes."""
        self._leaves = leaves
        self._in_turn = in_turn
        self._response_size = response_size
        self._turn = 0

    def prepare(self, concurrency: int) -> None:
        self._caller.prepare(min(concurrency, _CONNECTIONS))

    def begin(self, call: Call) -> None:
        if self._in_turn:
            peers = range(self._turn, self._turn + 1)
            self._turn = (self._turn + 1) % self._leaves
        else:
            peers = range(self._leaves)
        leaves = [_Leaf(call, peer) for peer in peers]
        call.handle = _Asked(set(leaves))
        for leaf in leaves:
            self._caller.begin(leaf)

    def abort(self, call: Call) -> None:
        self._gather()
        asked = call.handle
        assert isinstance(asked, _Asked)
        for leaf in list(asked.waiting):
            self._caller.abort(leaf)
        self._gather()

    def drive(self, timeout_s: float) -> None:
        if not self.finished:
            self._caller.drive(timeout_s)
            self._gather()

    def poll(self) -> None:
        self._caller.poll()
        self._gather()

    def _gather(self) -> None:
        finished = self._caller.finished
        while finished:
            leaf = finished.popleft()
            assert isinstance(leaf, _Leaf)
            query = leaf.query
            asked = query.handle
            assert isinstance(asked, _Asked)
            asked.waiting.discard(leaf)
            if leaf.error is not None:
                query.error = query.error or leaf.error
            elif leaf.response != echo_reply(leaf.data, self._response_size):
                asked.wrong = True
                query.peer = leaf.peer
            else:
                asked.times.append(leaf.ended - query.started)
            if not asked.waiting:
                self._finish(query, asked, leaf.ended)

    def _finish(self, query: Call, asked: _Asked, now: int) -> None:
        query.ended = now
        if query.error is None and not asked.wrong:
            query.response = echo_reply(query.data, self._response_size)
            self.leaf_ns.extend(asked.times)
        self.finished.append(query)

    # -- as the other does ---------------------------------------------------------------------------------

    def fileno(self) -> int:
        return self._caller.fileno()

    def next_wake(self) -> int | None:
        return self._caller.next_wake()

    def linger(self, timeout_s: float) -> None:
        self._caller.linger(timeout_s)

    def counters(self) -> dict[str, int]:
        return self._caller.counters()

    def drops(self) -> tuple[int, int]:
        return self._caller.drops()

    def take_late_ns(self) -> int:
        return self._caller.take_late_ns()

    def close(self) -> None:
        self._caller.close()


class QuerySeries(Series):
    """Loads of queries on one caller."""

    LOAD = QueryLoad

    def __init__(self, caller: Caller) -> None:
        self._scatter = Scatter(caller)
        super().__init__(self._scatter)
        # All are asked by each query.
        self._peers = 1

    def measure(self, load: Load, barrier: Callable[[], None] | None = None) -> Point:
        """Measure, as :meth:`Series.measure`; a query is one in the tally."""
        assert isinstance(load, QueryLoad)
        scatter = self._scatter
        if load.leaves > len(scatter.peers):
            raise ConfigError(f"a query of {load.leaves} leaves; there are {len(scatter.peers)}")
        scatter.ask(load.leaves, load.in_turn, load.response_size)
        scatter.leaf_ns = array("Q")
        return super().measure(load, barrier)

    def result(self, settings: Settings, load: Load, point: Point) -> dict[str, Any]:
        """A result as echo's; ``rpcs`` and ``rtt_us`` are of queries, ``leaf_us`` of their RPCs."""
        return {**super().result(settings, load, point), "leaf_us": rtt_summary(self._leaf_ns(load, point.tally))}

    def write_raw(self, path: Path, load: Load, tally: Tally) -> None:
        """Every query's time, and in a second file those of its leaves."""
        write_values(path, tally.rtt_ns)
        write_values(path.with_name(path.name + LEAVES_SUFFIX), self._leaf_ns(load, tally))

    def _leaf_ns(self, load: Load, tally: Tally) -> array[int]:
        """Without those of the warm-up."""
        assert isinstance(load, QueryLoad)
        each = 1 if load.in_turn else load.leaves
        return self._scatter.leaf_ns[len(self._scatter.leaf_ns) - each * len(tally.rtt_ns):]
