"""Commands of the block store under the loops of loops.py, every block compared with a model.

A process has a part of the namespace for itself, which it writes before anything is measured, and reads as a whole
after each load.
"""

from __future__ import annotations

import secrets
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from smtstack.errors import ConfigError, PeerError
from workloads.blocks.capsule import BLOCK, MAX_BLOCKS, MAX_DEPTH, Opcode, Status
from workloads.blocks.initiator import BlockCall, BlockError, Initiator
from workloads.blocks.model import Model
from workloads.load import kinds
from workloads.load.loops import ClosedLoop, Load, Loop, OpenLoop, Source, Tally
from workloads.load.measure import Point, Series, write_values
from workloads.transports import Settings
from workloads.transports.contract import Call, Caller

#: Beside the file with the round trips: index into KINDS of each.
KINDS_SUFFIX = ".kinds"
KINDS = ("read", "write", "write zeroes", "compare", "compare failure", "flush", "out of range")
_KIND_INDEX = {kind: index for index, kind in enumerate(KINDS)}
#: Share of each kind, in percent. The names are fio's, but for the last.
PATTERNS: dict[str, dict[str, int]] = {
    "randread": {"read": 100},
    "randwrite": {"write": 100},
    "randrw": {"read": 50, "write": 50},
    "all": {"read": 40, "write": 40, "write zeroes": 5, "compare": 8, "compare failure": 2, "flush": 4,
            "out of range": 1},
}
#: Blocks of a command of pattern ``all``, at most.
_SEVERAL = 4
#: What a kind has to end with, if not with success.
_EXPECTED = {"compare failure": Status.COMPARE_FAILURE, "out of range": Status.LBA_OUT_OF_RANGE}
#: Long commands under way while all blocks are written, or read.
_LONG = 4
#: How often another place is looked for where a write is under way.
_TRIES = 64


@dataclass(frozen=True)
class BlockLoad(Load):
    """Random commands. ``size``: bytes of a block; ``concurrency``: the depth of the queue."""

    size: str = str(BLOCK)
    pattern: str = "randread"
    """One of :data:`PATTERNS`."""
    index: int = 0
    of: int = 1
    """Which of how many processes that share the namespace this is."""
    timeout: float = 30.0
    """Seconds after which a command is given up, with all that was done to send it again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if int(self.size) != BLOCK:
            raise ConfigError(f"blocks of {self.size} bytes; there are only such of {BLOCK}")
        if self.pattern not in PATTERNS:
            raise ConfigError(f"pattern {self.pattern!r}; there are {', '.join(PATTERNS)}")
        if not 0 < self.concurrency <= MAX_DEPTH:
            raise ConfigError(f"a queue of {self.concurrency}; 1 to {MAX_DEPTH}")


@dataclass(slots=True)
class BlockTally(Tally):
    """A tally of commands."""

    kinds: array[int] = field(default_factory=lambda: array("Q"))
    """Index into KINDS, of each round trip."""
    failed: Counter[str] = field(default_factory=Counter)
    """Commands that failed or brought what is wrong, by kind."""


class ModelCall(BlockCall):
    """A command, and what the model has to know of it."""

    __slots__ = ("before", "kind", "model")

    def __init__(self, model: Model, kind: str, opcode: int, slba: int = 0, blocks: int = 1, data: bytes = b"", *,
                 fua: bool = False) -> None:
        super().__init__(opcode, slba, blocks, data, fua=fua)
        self.model = model
        self.kind = kind
        self.before: list[int] = []


class Commands:
    """Random commands on the blocks of a model."""

    def __init__(self, load: BlockLoad, model: Model, sectors: int, max_blocks: int, seed: int) -> None:
        shares = PATTERNS[load.pattern]
        self._kinds = list(shares) if len(shares) == 1 else [
            kind for kind, share in shares.items() for _ in range(share)]
        self._several = min(_SEVERAL, max_blocks, model.count) if load.pattern == "all" else 1
        self._model = model
        self._sectors = sectors
        self._random = Random(seed)

    def make(self) -> Call:
        """The next one. Where no place is left for a write it is a read."""
        draw = self._random
        kind = draw.choice(self._kinds)
        if kind == "read":
            return self._read()
        if kind == "flush":
            return ModelCall(self._model, kind, Opcode.FLUSH)
        if kind == "out of range":
            blocks = draw.randint(1, self._several)
            return ModelCall(self._model, kind, Opcode.READ,
                             self._sectors - blocks + draw.randint(1, 1 << 40), blocks)
        made = self._exclusive(kind)
        return self._read() if made is None else made

    def _place(self) -> tuple[int, int]:
        """(first block, how many)."""
        model, draw = self._model, self._random
        blocks = draw.randint(1, self._several) if self._several > 1 else 1
        return model.first + draw.randrange(model.count - blocks + 1), blocks

    def _read(self) -> ModelCall:
        slba, blocks = self._place()
        call = ModelCall(self._model, "read", Opcode.READ, slba, blocks)
        call.before = self._model.before(slba, blocks)
        return call

    def _exclusive(self, kind: str) -> ModelCall | None:
        """A command on blocks that no write is under way to; None: there is no place."""
        model = self._model
        for _ in range(_TRIES):
            slba, blocks = self._place()
            if not model.busy.isdisjoint(range(slba, slba + blocks)):
                continue
            if kind.startswith("compare"):
                data = model.hold(slba)
                if data is None:
                    continue
                if kind == "compare failure":
                    at = self._random.randrange(BLOCK)
                    data = data[:at] + bytes((data[at] ^ 1,)) + data[at + 1:]
                return ModelCall(model, kind, Opcode.COMPARE, slba, 1, data)
            zeros = kind == "write zeroes"
            fua = self._several > 1 and self._random.random() < 0.1
            return ModelCall(model, kind, Opcode.WRITE_ZEROES if zeros else Opcode.WRITE, slba, blocks,
                             model.begin(slba, blocks, zeros), fua=fua)
        return None


class _BlockLoop(Loop):
    """What is right is for the model to say."""

    TALLY = BlockTally

    def _settle(self, tally: Tally) -> None:
        """Judge all that has finished."""
        assert isinstance(tally, BlockTally)
        finished, under_way = self.caller.finished, self._open
        while finished:
            call = finished.popleft()
            assert isinstance(call, ModelCall)
            del under_way[call]
            try:
                wrong = self._wrong(call)
            except PeerError as e:
                tally.errors += 1
                self._fail(tally, call, str(e))
                continue
            if wrong:
                tally.wrong += 1
                self._fail(tally, call, f"{call.what()}: {wrong}")
                continue
            tally.rtt_ns.append(call.ended - call.started)
            tally.sizes.append(BLOCK * call.blocks if call.data or call.response else 0)
            tally.ended_ns.append(call.ended)
            tally.kinds.append(_KIND_INDEX[call.kind])
            self._last_good = call.ended

    def _wrong(self, call: ModelCall) -> str:
        """What is; "": nothing. Raises PeerError for a command that failed."""
        model, kind = call.model, call.kind
        writes = kind in ("write", "write zeroes")
        done = call.error is None and call.status == _EXPECTED.get(kind, Status.SUCCESS)
        if writes and done:
            model.written(call.slba, call.blocks)
        elif writes or kind.startswith("compare"):
            model.unknown(call.slba, call.blocks)
        if call.error is not None:
            raise call.error
        assert call.status is not None
        if not done:
            if kind in _EXPECTED or call.status == Status.COMPARE_FAILURE:
                return f"{kind}: completed with {Status(call.status).text}"
            raise BlockError(call.what(), call.status)
        if kind == "read":
            return model.judge(call.slba, call.response or b"", call.before)
        return ""

    def _fail(self, tally: BlockTally, call: ModelCall, why: str) -> None:
        tally.failed[call.kind] += 1
        tally.first_error = tally.first_error or why
        self._note_failure(call)


class BlockClosedLoop(_BlockLoop, ClosedLoop):
    """Keeps as many commands under way as the queue is deep."""


class BlockOpenLoop(_BlockLoop, OpenLoop):
    """Commands at random times; those beyond the depth of the queue wait, and their time counts."""


class BlockSeries(Series):
    """Loads on one namespace. What was written in one is known in the next."""

    LOAD = BlockLoad
    CLOSED = BlockClosedLoop
    OPEN = BlockOpenLoop

    def __init__(self, caller: Caller) -> None:
        assert isinstance(caller, Initiator)
        super().__init__(caller)
        self._initiator = caller
        self._model: Model | None = None
        self._seeds = 0
        self._sent_again = 0
        self._connects = 0

    def measure(self, load: Load, barrier: Callable[[], None] | None = None) -> Point:
        """Fill our part of the namespace the first time, then as :meth:`Series.measure`."""
        assert isinstance(load, BlockLoad)
        self._initiator.prepare(load.concurrency)
        if self._model is None:
            self._model = self._fill(load)
        counters = self._initiator.counters()
        self._sent_again, self._connects = counters["blocks_sent_again"], counters["blocks_connects"]
        point = super().measure(load, barrier)
        self._look(self._model, load, point.tally)
        return point

    def _look(self, model: Model, load: BlockLoad, tally: Tally) -> None:
        """Read every block once more, when all is over: what is missing or wrong counts to ``tally``."""
        assert isinstance(tally, BlockTally)
        found = self._all(load, Reading(model, self._most))
        tally.errors += found.errors
        tally.wrong += found.wrong
        tally.failed += found.failed
        tally.first_error = tally.first_error or found.first_error

    @property
    def _most(self) -> int:
        granted = self._initiator.granted
        assert granted is not None
        return granted.max_blocks

    def _all(self, load: BlockLoad, source: Filling | Reading) -> BlockTally:
        """Long commands on all our blocks."""
        loop = BlockClosedLoop(self._initiator, min(_LONG, load.concurrency), load.timeout)
        tally = loop.run(source, source.total)
        assert isinstance(tally, BlockTally)
        return tally

    def _fill(self, load: BlockLoad) -> Model:
        """Write every block. Raises PeerError, ConfigError."""
        sectors = self._initiator.sectors
        first, last = sectors * load.index // load.of, sectors * (load.index + 1) // load.of
        if last - first < MAX_BLOCKS:
            raise ConfigError(f"{sectors} blocks for {load.of} processes; at least {MAX_BLOCKS} each: --blocks")
        model = Model(first, last - first, secrets.randbits(32))
        tally = self._all(load, Filling(model, self._most))
        if tally.errors or tally.wrong:
            raise PeerError(f"writing all blocks: {tally.first_error}")
        return model

    def _requests(self, load: Load, others: bool) -> tuple[Source, int | None]:
        assert isinstance(load, BlockLoad)
        assert self._model is not None
        self._seeds += 1
        return Commands(load, self._model, self._initiator.sectors, self._most,
                        load.seed * 1000 + self._seeds), load.count

    def result(self, settings: Settings, load: Load, point: Point) -> dict[str, Any]:
        """A result as echo's, by kind, and what had to be done again."""
        tally = point.tally
        assert isinstance(tally, BlockTally)
        counters = self._initiator.counters()
        return {**super().result(settings, load, point),
                "ops": kinds.summary(KINDS, tally.rtt_ns, tally.kinds, tally.failed),
                "sent_again": counters["blocks_sent_again"] - self._sent_again,
                "connects": counters["blocks_connects"] - self._connects}

    def write_raw(self, path: Path, load: Load, tally: Tally) -> None:
        """Every command's time, and in a second file its kind."""
        assert isinstance(tally, BlockTally)
        write_values(path, tally.rtt_ns)
        write_values(path.with_name(path.name + KINDS_SUFFIX), tally.kinds)


class _InOrder:
    """Commands on every block of a model, in order, ``most`` blocks each."""

    def __init__(self, model: Model, most: int) -> None:
        self._model = model
        self._next = model.first
        self._most = most
        #: How many commands there are.
        self.total = -(-model.count // most)

    def _place(self) -> tuple[int, int]:
        at = self._next
        blocks = min(self._most, self._model.first + self._model.count - at)
        self._next += blocks
        return at, blocks


class Filling(_InOrder):
    """Writes."""

    def make(self) -> Call:
        """The next one."""
        at, blocks = self._place()
        return ModelCall(self._model, "write", Opcode.WRITE, at, blocks, self._model.begin(at, blocks))


class Reading(_InOrder):
    """Reads."""

    def make(self) -> Call:
        """The next one."""
        at, blocks = self._place()
        call = ModelCall(self._model, "read", Opcode.READ, at, blocks)
        call.before = self._model.before(at, blocks)
        return call
