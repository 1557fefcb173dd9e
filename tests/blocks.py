"""A block store in memory: an initiator, a target that can be killed, and between them a net that loses, repeats
and delays whole capsules as it likes; all in virtual time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from typing import Any

from smtstack.socket import RpcTimeout
from smtstack.storage.device import SECTOR, MemoryDevice
from workloads.blocks.capsule import Command, Completion, completion_untrusted
from workloads.blocks.initiator import Initiator
from workloads.blocks.model import Model
from workloads.blocks.target import Target
from workloads.load.blocks import BlockClosedLoop, BlockLoad, BlockTally, Commands, Filling, Reading
from workloads.transports.contract import Call, Caller, Incoming

HOST = b"an initiator 016"
#: Of the answers that a client of these tests takes.
LONGEST = 1_000_000
_MS = 1_000_000


@dataclass
class Request:
    """A capsule for the target, and what it answered."""

    data: bytes
    answers: Callable[[bytes], object]
    longest: int = LONGEST

    def reply(self, data: bytes) -> bool:
        self.answers(data)
        return True


def ask(target: Target, command: Command, settle: bool = True, longest: int = LONGEST) -> Completion | None:
    """What a target answers to one command; None: nothing yet."""
    answers: list[bytes] = []
    target.handle(Request(command.pack(), answers.append, longest))
    if settle:
        target.settle()
    return completion_untrusted(answers[0]) if answers else None


class CacheDevice(MemoryDevice):
    """A device with a volatile cache: :meth:`cut` loses any part of what was not flushed. It counts what is
    written: how often each content came to each sector."""

    def __init__(self, sectors: int, rng: Random) -> None:
        super().__init__(sectors)
        self._rng = rng
        self._durable = bytes(self.data)
        self._dirty: dict[int, list[bytes]] = {}
        self.written: Counter[tuple[int, bytes]] = Counter()

    def write(self, sector: int, data: bytes) -> None:
        super().write(sector, data)
        for number in range(len(data) // SECTOR):
            part = data[number * SECTOR:(number + 1) * SECTOR]
            self._dirty.setdefault(sector + number, []).append(part)
            if any(part):
                self.written[sector + number, part] += 1

    def flush(self) -> None:
        self._durable = bytes(self.data)
        self._dirty.clear()

    def cut(self) -> None:
        """The power goes: of each sector any content since the last flush stays."""
        self.data[:] = self._durable
        for sector, contents in self._dirty.items():
            kept = self._rng.choice([None, *contents])
            if kept is not None:
                self.data[sector * SECTOR:(sector + 1) * SECTOR] = kept
        self.flush()


@dataclass(frozen=True)
class Rates:
    """How the net treats each message, either way."""

    lose: float = 0.0
    repeat: float = 0.0
    late: float = 0.0
    """Kept for up to a second, longer than any RPC is waited for."""


class Net(Caller):
    """A transport as bad as can be: an RPC that has no answer for 50 ms fails, its request may come all the same,
    at any time. ``kill`` replaces the target, in the middle of everything."""

    TIMEOUT_NS = 50 * _MS

    def __init__(self, target: Callable[[], Target], rates: Rates, rng: Random) -> None:
        super().__init__([("10.0.0.2", 2000)])
        self._make = target
        self.target = target()
        self._rates = rates
        self._rng = rng
        self.now = 0
        self._count = 0
        self._heap: list[tuple[int, int, Callable[[], object]]] = []
        #: When the target is not there.
        self._down_until = 0
        self.kills = 0

    def clock(self) -> int:
        return self.now

    def at(self, when: int, action: Callable[[], object]) -> None:
        """Do something in virtual time."""
        self._count += 1
        heappush(self._heap, (when, self._count, action))

    def kill(self, before: Callable[[], object] = lambda: None) -> None:
        """End the target: what it has in its memory is lost, and for a while nobody is there. ``before`` the next
        one begins something may be done."""
        self.kills += 1
        before()
        self.target = self._make()
        self._down_until = self.now + 20 * _MS

    def _copies(self) -> list[int]:
        """After how long each copy of a message comes."""
        draw, rates = self._rng, self._rates
        many = (0 if draw.random() < rates.lose else 1) + (draw.random() < rates.repeat)
        return [draw.randrange(1000 * _MS) if draw.random() < rates.late else draw.randrange(_MS // 10, 2 * _MS)
                for _ in range(many)]

    def begin(self, call: Call) -> None:
        for after in self._copies():
            self.at(self.now + after, lambda: self._arrive(call))
        self.at(self.now + self.TIMEOUT_NS, lambda: self._give_up(call))

    def _give_up(self, call: Call) -> None:
        if not call.ended:
            self.abort(call)

    def _arrive(self, call: Call) -> None:
        if self.now < self._down_until:
            return
        request: Incoming = Request(call.data, lambda data: self._answer(call, data))
        self.target.handle(request)
        if self._rng.random() < 0.7:  # else together with what comes next
            self.target.settle()
        target = self.target
        self.at(self.now + _MS, lambda: self._settle(target))

    def _settle(self, target: Target) -> None:
        if target is self.target:  # else it is dead
            target.settle()

    def _answer(self, call: Call, data: bytes) -> None:
        for after in self._copies():
            self.at(self.now + after, lambda: self._finish(call, data))

    def _finish(self, call: Call, data: bytes) -> None:
        if not call.ended:
            call.response, call.ended = data, self.now + 1
            self.finished.append(call)

    def abort(self, call: Call) -> None:
        call.error, call.ended = RpcTimeout("no answer"), self.now + 1
        self.finished.append(call)

    def drive(self, timeout_s: float) -> None:
        until = self.now + int(timeout_s * 1e9)
        while not self.finished and self._heap and self._heap[0][0] <= until:
            self.now, _count, action = heappop(self._heap)
            action()
        if not self.finished:
            self.now = max(self.now, until)

    def poll(self) -> None:
        pass

    def fileno(self) -> int:
        raise NotImplementedError

    def next_wake(self) -> int | None:
        return None

    def linger(self, timeout_s: float) -> None:
        self.drive(timeout_s)

    def counters(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        pass


def run_load(net: Any, clock: Callable[[], int], count: int, depth: int, pattern: str = "all", seed: int = 1,
             timeout: float = 60.0) -> tuple[BlockTally, Initiator, Model]:
    """Fill the namespace, put random commands on it, and read all of it at the end."""
    initiator = Initiator(net, HOST, depth, clock)
    initiator.prepare(depth)
    model = Model(0, initiator.sectors, seed)
    assert initiator.granted is not None
    most = initiator.granted.max_blocks

    def loop() -> BlockClosedLoop:
        return BlockClosedLoop(initiator, depth, timeout, clock=clock)

    filling, reading = Filling(model, most), Reading(model, 8)
    filled = loop().run(filling, filling.total)
    assert (filled.errors, filled.wrong) == (0, 0), filled.first_error
    load = BlockLoad(pattern=pattern, count=count, concurrency=depth)
    tally = loop().run(Commands(load, model, initiator.sectors, most, seed), count)
    after = loop().run(reading, reading.total)
    assert isinstance(tally, BlockTally)
    tally.merge(after)
    return tally, initiator, model
