"""YCSB under the loops of loops.py: operations of one or more calls, what became of each kind."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from secrets import token_hex
from typing import TYPE_CHECKING, Any, TypedDict

from smtstack.errors import ConfigError, PeerError
from workloads.kv.client import KvCall, finish, is_error
from workloads.load import kinds, ycsb
from workloads.load.loops import ClosedLoop, Load, Loop, OpenLoop, Source, Tally
from workloads.load.measure import Point, Series, write_values
from workloads.load.ycsb_history import History
from workloads.transports import Settings
from workloads.transports.contract import Call, Caller

if TYPE_CHECKING:
    from typing_extensions import NotRequired  # Python 3.10 has none

#: The two phases of YCSB.
LOAD_PHASE, RUN_PHASE = "load", "run"
#: Beside the file with the round trips: index into KINDS of each.
KINDS_SUFFIX = ".kinds"
#: Beside the records: which load the store holds, and how many processes have asked for a number.
_LOAD_KEY, _WRITER_KEY = b"_smtnet_load", b"_smtnet_writers"
_KIND_INDEX = {kind: index for index, kind in enumerate(ycsb.KINDS)}


@dataclass(frozen=True)
class YcsbLoad(Load):
    """A phase of a workload. ``size`` is what a record holds in bytes, ``concurrency`` are YCSB's threads."""

    size: str = "1024"
    workload: str = "a"
    """A letter of YCSB's, or a name for ``properties``."""
    properties: dict[str, str] | None = None
    """Properties of YCSB's core workload, without those that have a field of their own here."""
    phase: str = RUN_PHASE
    """``load``: empty the store and insert ``records``, whatever the workload."""
    records: int = 1000
    fields: int = ycsb.FIELDS
    distribution: str = ""
    """Other than the workload's own."""
    index: int = 0
    of: int = 1
    """Which of how many processes that share the load this is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = self.kind
        if not self.size.isdecimal() or int(self.size) % self.fields:
            raise ConfigError(f"a value of {self.size} bytes in {self.fields} fields; all are as long, so "
                              f"take a multiple of {self.fields}, or other --fields")
        if self.records <= kind.first or self.phase not in (LOAD_PHASE, RUN_PHASE):
            raise ConfigError(f"{self.records - kind.first} records, phase {self.phase!r}: at least one, "
                              "load or run")
        ycsb.Records(self.fields, int(self.size) // self.fields, kind)
        # That of "latest" takes a while to make, and cannot be wrong where no records are left out.
        if kind.first or (self.distribution or kind.distribution) != "latest":
            ycsb.chooser(kind, self.distribution, ycsb.Keyspace(self.records, first=kind.first), 1, Random(0))

    @property
    def kind(self) -> ycsb.Workload:
        """What operations there are."""
        return ycsb.workload(self.workload, self.properties)


@dataclass(slots=True)
class YcsbTally(Tally):
    """A tally of operations, not of RPCs."""

    kinds: array[int] = field(default_factory=lambda: array("Q"))
    """Index into KINDS, of each round trip."""
    failed: Counter[str] = field(default_factory=Counter)
    """Operations without an answer or with a wrong one, by kind."""


class YcsbCall(KvCall):
    """The commands of one step of an operation."""

    __slots__ = ("kind", "steps")

    def __init__(self, commands: Sequence[ycsb.Command], kind: str, steps: ycsb.Steps) -> None:
        super().__init__(commands)
        self.kind = kind
        self.steps = steps


class YcsbRequests:
    """The first step of each operation."""

    def __init__(self, operations: ycsb.Operations | ycsb.Loading) -> None:
        self._operations = operations

    def make(self) -> Call:
        """The next one."""
        kind, steps = self._operations.next()
        return YcsbCall(next(steps), kind, steps)


class _YcsbLoop(Loop):
    """An operation's time runs from the beginning of its first call to the end of its last one."""

    TALLY = YcsbTally

    def _settle(self, tally: Tally) -> None:
        """Judge all that has finished, and go on with what has further steps."""
        assert isinstance(tally, YcsbTally)
        finished, under_way = self.caller.finished, self._open
        while finished:
            call = finished.popleft()
            assert isinstance(call, YcsbCall)
            del under_way[call]
            wrong = ""
            try:
                if call.error is not None:
                    raise call.error
                replies = call.replies()
                if any(map(is_error, replies)):
                    raise PeerError(f"{call.kind}: the server says: {next(filter(is_error, replies))}")
                commands = call.steps.send(replies)
            except StopIteration as end:
                wrong = end.value
            except PeerError as e:
                tally.errors += 1
                self._fail(tally, call, str(e))
                continue
            else:
                following = YcsbCall(commands, call.kind, call.steps)
                following.started = call.started
                under_way[following] = self._clock()
                self.caller.begin(following)
                continue
            if wrong:
                tally.wrong += 1
                self._fail(tally, call, f"{call.kind}: {wrong}")
                continue
            tally.rtt_ns.append(call.ended - call.started)
            tally.sizes.append(len(call.data))
            tally.ended_ns.append(call.ended)
            tally.kinds.append(_KIND_INDEX[call.kind])
            self._last_good = call.ended

    def _fail(self, tally: YcsbTally, call: YcsbCall, why: str) -> None:
        tally.failed[call.kind] += 1
        tally.first_error = tally.first_error or why
        self._note_failure(call)


class YcsbClosedLoop(_YcsbLoop, ClosedLoop):
    """A closed loop with as many operations under way as there are threads."""


class YcsbOpenLoop(_YcsbLoop, OpenLoop):
    """Operations at random times (YCSB's target rate)."""


class YcsbSeries(Series):
    """Phases on one caller; what was inserted is remembered from one to the next."""

    LOAD = YcsbLoad
    CLOSED = YcsbClosedLoop
    OPEN = YcsbOpenLoop

    def __init__(self, caller: Caller) -> None:
        super().__init__(caller)
        self._space = 0, 0, 1, 0
        self._keys = ycsb.Keyspace(*self._space)
        self._history = History(1, 1)
        #: Which load the store holds, and how many fields its records have: the history is of these.
        self._loaded: tuple[Any, int] = None, 0
        self._seeds = 0

    def measure(self, load: Load, barrier: Callable[[], None] | None = None) -> Point:
        """Measure, as :meth:`Series.measure`. Before the load phase the store is emptied, by the first process;
        before others every process asks the store for a number that no other has."""
        assert isinstance(load, YcsbLoad)
        space = load.records, load.index, load.of, load.kind.first
        if load.phase == LOAD_PHASE:
            if load.index == 0:
                self._ask(load, [(b"FLUSHALL",), (b"SET", _LOAD_KEY, token_hex(8).encode())])
        else:
            token, writer = self._ask(load, [(b"GET", _LOAD_KEY), (b"INCR", _WRITER_KEY)])
            if self._loaded != (token, load.fields):
                self._loaded = token, load.fields
                self._history = History(writer, load.fields)
        if load.phase == LOAD_PHASE or self._space != space:
            self._keys, self._space = ycsb.Keyspace(*space), space
        return super().measure(load, barrier)

    def _ask(self, load: YcsbLoad, commands: list[ycsb.Command]) -> list[Any]:
        """What the store answers; raises :class:`PeerError`."""
        self._caller.prepare(1)
        call = KvCall(commands)
        finish(self._caller, call, load.timeout)
        replies = call.replies()
        for command, reply in zip(commands, replies, strict=True):
            if is_error(reply):
                raise PeerError(f"{command[0].decode()}: {reply}")
        return replies

    def _requests(self, load: Load, others: bool) -> tuple[Source, int | None]:
        assert isinstance(load, YcsbLoad)
        kind = load.kind
        records = ycsb.Records(load.fields, int(load.size) // load.fields, kind)
        if load.phase == LOAD_PHASE:
            loading = ycsb.Loading(records, load.records, load.index, load.of, kind.first)
            return YcsbRequests(loading), loading.total
        self._seeds += 1
        operations = ycsb.Operations(kind, load.distribution, records, self._keys, self._history,
                                     load.seed * 1000 + self._seeds, load.count)
        return YcsbRequests(operations), load.count

    def result(self, settings: Settings, load: Load, point: Point) -> dict[str, Any]:
        """A result as echo's, and what tables by kind and ``counts`` need."""
        assert isinstance(load, YcsbLoad)
        tally = point.tally
        assert isinstance(tally, YcsbTally)
        return {**super().result(settings, load, point), **described(load),
                "ops": kinds.summary(ycsb.KINDS, tally.rtt_ns, tally.kinds, tally.failed)}

    def write_raw(self, path: Path, load: Load, tally: Tally) -> None:
        """Every operation's time, and in a second file its kind."""
        assert isinstance(tally, YcsbTally)
        write_values(path, tally.rtt_ns)
        write_values(path.with_name(path.name + KINDS_SUFFIX), tally.kinds)


class Described(TypedDict):
    """What a row says of its load of YCSB."""

    workload: str
    """Letter, or file; ``load``: the load phase."""
    value_bytes: int
    """Bytes of a record's fields together."""
    records: int
    fields: int
    """Fields of a record."""
    distribution: str
    """How often each record is asked for, by name."""
    properties: NotRequired[Mapping[str, str]]
    """Properties of the workload, if it is not one of the letters as they are."""


def described(load: YcsbLoad) -> Described:
    """What a row says of ``load``."""
    found: Described = {
        "workload": load.workload if load.phase == RUN_PHASE else LOAD_PHASE, "value_bytes": int(load.size),
        "records": load.records, "fields": load.fields,
        "distribution": load.distribution or load.kind.distribution}
    if load.properties is not None:
        found["properties"] = load.properties
    return found
