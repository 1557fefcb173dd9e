"""RPCs with a module's echo server, over a matrix of sizes, shapes, losses and numbers under way."""

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
#: The shapes of a profile's packets, and the parameter that says so.
SHAPES: dict[str, dict[str, dict[str, int]]] = {
    "upstream": {"native": {"hijack_tcp": 0}, "tcp": {"hijack_tcp": 1}}, "linux": {"records": {}}}


@dataclass(frozen=True, slots=True)
class Cell:
    """What is tried."""

    shape: str
    loss: float
    """Share of frames lost, each way, at our NIC."""
    under_way: int
    size: int
    """Bytes of a request, and of its answer."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it. Counts of RPCs."""

    cell: Cell
    answered: int = 0
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


def cells(profile: str, losses: Sequence[float], under_way: Sequence[int], sizes: Sequence[int]) -> list[Cell]:
    """The matrix, row by row."""
    return [Cell(*place) for place in product(SHAPES[profile], losses, under_way, sizes)]


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
    if not cell.loss:
        return made
    rates = ImpairmentRates(drop=cell.loss)
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
