"""RPCs with a module, as its client or echo server, over a matrix of sizes, shapes, faults, numbers under way."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import median
from typing import Any

from smtstack.nic.impairments import ImpairmentRates, Impairments
from smtstack.socket import Address, RpcError, RpcFuture, SmtContext, SmtSocket
from smtstack.transport.params import TransportParams

#: Seconds after which an RPC is given up here, whatever the transport thinks of it.
PATIENCE_S = 20.0
#: The shapes of a profile's packets, and the parameter that says so: with linux, segments of several packets or of
#: one, which are as many records.
SHAPES: dict[str, dict[str, dict[str, int]]] = {
    "upstream": {"native": {"hijack_tcp": 0}, "tcp": {"hijack_tcp": 1}},
    "linux": {"segments": {"max_gso_size": 10_000}, "packets": {"max_gso_size": 0}}}
#: The sizes of a whole matrix, in bytes: around what packets, records and unscheduled bytes end at.
WHOLE_SIZES = {
    "upstream": (1, 64, 1000, 1423, 1424, 1425, 2848, 2849, 5000, 10_000, 20_000, 39_999, 40_000, 40_001, 65_536,
                 100_000, 500_000),
    "linux": (1, 64, 1000, 1391, 1392, 1400, 1407, 1408, 1420, 1421, 4000, 8491, 8492, 16_385, 20_000, 100_000,
              500_000)}
#: Frames out of order come so much later.
LATE_NS = 4_000_000
#: Seconds between looks whether a server's time is over.
_LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Cell:
    """What is tried."""

    shape: str
    loss: float
    """Share of frames lost, each way, at our NIC."""
    reorder: float
    """Share of frames that come :data:`LATE_NS` later, each way."""
    under_way: int
    """RPCs at a time; of a server, which does not know: 0."""
    size: int
    """Bytes of a request, and of its answer."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it. Counts of RPCs."""

    cell: Cell
    answered: int = 0
    """By the server with us as its client; or by us."""
    failed: int = 0
    wrong: int = 0
    """Answered with other bytes."""
    median_us: float | None = None
    """From request to answer; None: none was answered."""
    packets_resent: int = 0
    resends: int = 0
    """RESENDs that we sent."""
    error: str = ""
    """Why the first of those failed; empty: none did."""

    @property
    def good(self) -> bool:
        """Everything was answered, with the right bytes."""
        return not self.failed and not self.wrong


def faults(losses: Sequence[float], reorders: Sequence[float]) -> list[tuple[float, float]]:
    """Columns of the matrix: (share lost, share late), one of them 0."""
    return list(dict.fromkeys([*((loss, 0.0) for loss in losses), *((0.0, share) for share in reorders)]))


def cells(profile: str, columns: Sequence[tuple[float, float]], under_way: Sequence[int],
          sizes: Sequence[int]) -> list[Cell]:
    """The matrix, row by row."""
    return [Cell(shape, *column, number, size)
            for shape, column, number, size in product(SHAPES[profile], columns, under_way, sizes)]


def content(size: int, number: int) -> bytes:
    """Bytes of request ``number`` that tell where they belong."""
    return bytes((7 * i + i // 251 + number) % 256 for i in range(size))


def measure(wanted: Sequence[Cell], count: int, context: SmtContext, local: Address, peer: Address,
            seed: int = 1) -> Iterator[Outcome]:
    """Try one cell after the other, each with ``count`` RPCs. Raises as :class:`~smtstack.socket.SmtSocket`."""
    params = context.params
    assert params is not None
    for number, cell in enumerate(wanted):
        yield _try(cell, count, _context(context, params, cell, seed + 2 * number), local, peer)


def _context(context: SmtContext, params: TransportParams, cell: Cell, seed: int) -> SmtContext:
    shape: dict[str, Any] = {**SHAPES[context.profile][cell.shape]}
    made = replace(context, params=replace(params, **shape))
    if not cell.loss and not cell.reorder:
        return made
    rates = ImpairmentRates(drop=cell.loss, reorder=cell.reorder, reorder_ns=LATE_NS)
    return replace(made, tx_impairments=Impairments(rates, seed), rx_impairments=Impairments(rates, seed + 1))


def _try(cell: Cell, count: int, context: SmtContext, local: Address, peer: Address) -> Outcome:
    messages = [content(cell.size, n) for n in range(min(count, 256))]
    with SmtSocket(local, context) as socket:
        run = _Run(socket.drive)
        for n in range(count):
            if len(run.waiting) >= cell.under_way:
                run.take()
            message = messages[n % len(messages)]
            run.waiting.append((socket.send_request(peer, message), message, time.perf_counter()))
        while run.waiting:
            run.take()
        counters = socket.counters()
    return Outcome(cell, run.answered, run.failed, run.wrong, median(run.times) if run.times else None,
                   counters["packets_resent"], counters["resends_sent"], run.error)


def serve(profile: str, columns: Sequence[tuple[float, float]], seconds: float, count: int | None,
          context: SmtContext, local: Address, begin: Callable[[Cell], None], seed: int = 1) -> Iterator[Outcome]:
    """Answer so long, or ``count`` RPCs, in each shape and with each fault, what was asked by the same bytes.

    An outcome a size. ``begin`` is told of each shape and fault, once it can be asked.
    """
    params = context.params
    assert params is not None
    for number, cell in enumerate(cells(profile, columns, (0,), (0,))):
        with SmtSocket(local, _context(context, params, cell, seed + 2 * number)) as socket:
            begin(cell)
            answered: dict[int, int] = {}
            end = time.monotonic() + seconds
            while time.monotonic() < end and (count is None or sum(answered.values()) < count):
                request = socket.receive(_LOOK_S)
                if request is not None and request.reply(request.data):
                    answered[len(request.data)] = answered.get(len(request.data), 0) + 1
            socket.linger()
        for size in sorted(answered):
            yield Outcome(replace(cell, size=size), answered[size])


class _Run:
    """RPCs of one cell."""

    def __init__(self, drive: Callable[[Callable[[], bool], float | None], None]) -> None:
        self._drive = drive
        self.waiting: deque[tuple[RpcFuture, bytes, float]] = deque()
        self.answered = self.failed = self.wrong = 0
        self.times: list[float] = []
        self.error = ""

    def take(self) -> None:
        """Wait for any of them, and judge it."""
        waiting = self.waiting
        self._drive(lambda: any(future.done() for future, _message, _begun in waiting), PATIENCE_S)
        index = next((n for n, (future, _message, _begun) in enumerate(waiting) if future.done()), 0)
        future, message, begun = waiting[index]
        del waiting[index]
        try:
            # Not done: it took too long, and is aborted.
            data = future.result(0)
        except RpcError as e:
            self.failed += 1
            self.error = self.error or str(e)
            return
        self.times.append((time.perf_counter() - begun) * 1e6)
        self.answered += 1
        self.wrong += data != message
