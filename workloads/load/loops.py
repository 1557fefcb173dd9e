"""Load on a transport: which requests, and when. Closed and open loop over any :class:`Caller`.

Every answer is compared with the request, byte for byte. What an RPC costs in here is the same for every
transport, and part of its round trip only up to the moment the answer is handed over.
"""

from __future__ import annotations

import random
import time
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from smtstack.errors import ConfigError
from workloads.load import distributions
from workloads.results.waits import Waits
from workloads.transports.contract import Call, Caller

#: Noise the payloads are cut from; as many different cuts as the second.
_NOISE_CUTS = 4093
#: RPCs that are not counted by default: the first resolve addresses and exchange cutoffs.
WARM_UP = 20
#: Nothing but failures for this long, in ns: nobody is there, and the rest would only take time.
_HOPELESS_NS = 1_000_000_000
#: RPCs of an open loop that may be under way: beyond, arrivals wait, and their latency grows all the same.
MAX_UNDER_WAY = 10_000
#: Arrivals an open loop makes up for before it looks at answers again.
_BURST = 32
#: An open loop has kept up if the last answer came within this share of the whole time after the last
#: arrival. One that does not falls further behind all the time, by rate / capacity - 1 of it.
_DRAIN_SHARE = 0.05
#: The same in ns for short runs, where one long message takes longer than that share.
_DRAIN_NS = 50_000_000

Clock = Callable[[], int]


@dataclass(frozen=True)
class Load:
    """What to send, and how often. Checked when made; :class:`ConfigError` names the culprit."""

    size: str = "64"
    """Request bytes, or what to draw them from: a workload (``w3``) or a file of sizes."""
    also: str = ""
    """``1000000x200``: so many more requests of that size, spread evenly among the ``count`` others."""
    count: int | None = 1000
    """RPCs; None: as many as begin within ``seconds``."""
    seconds: float | None = None
    concurrency: int = 1
    """RPCs under way in a closed loop."""
    rate: float = 0.0
    """RPC/s of an open loop, at random times; 0: closed loop."""
    timeout: float = 10.0
    """Seconds after which an RPC is given up."""
    warm_up: int = WARM_UP
    """RPCs before the ones that count."""
    canary: str = ""
    """Text the payloads consist of, for leak tests; by default noise."""
    seed: int = 1
    """The seed of sizes, peers and arrivals."""
    response_size: int | None = None
    """Bytes of an answer, if the server was told so."""

    def __post_init__(self) -> None:
        parse_size(self.size)
        if (self.count is None) == (self.seconds is None):
            raise ConfigError("a load has either a count or seconds")
        if self.also:
            parse_also(self.also)
            if self.count is None:
                raise ConfigError("--also needs --count: among how many others?")


def parse_size(text: str) -> int | distributions.Distribution:
    """``64``, ``w3`` or ``sizes.csv``. Raises :class:`ConfigError`."""
    if text.isascii() and text.isdecimal():
        return _checked(int(text))
    return distributions.find(text)


def size_name(text: str) -> int | str:
    """What results say of a size."""
    return int(text) if text.isdecimal() else distributions.name(text)


def parse_also(text: str) -> tuple[int, int]:
    """``1000000x200``: (bytes, how many). Raises :class:`ConfigError`."""
    size, _x, number = text.partition("x")
    if not (size.isdecimal() and number.isdecimal() and int(number)):
        raise ConfigError(f"{text!r}; BYTESxNUMBER, as in 1000000x200")
    return _checked(int(size)), int(number)


def _checked(size: int) -> int:
    if not 0 < size <= distributions.DEFAULT_CAP:
        raise ConfigError(f"a message of {size} bytes; 1 to at most {distributions.DEFAULT_CAP} are possible")
    return size


def echo_reply(request: bytes, size: int | None) -> bytes:
    """What the server answers: the request, or with ``size`` that many bytes of it, repeated as needed."""
    if size is None:
        return request
    return (request * -(-size // len(request)))[:size]


class Requests:
    """The requests of a load, each different from those shortly before and after.

    ``first``: number of the first one. ``others``: also the ones of ``load.also``.
    """

    def __init__(self, load: Load, peers: int = 1, first: int = 0, others: bool = True) -> None:
        self._size = parse_size(load.size)
        self._random = random.Random(load.seed)
        self._peers = peers
        self._number = first
        longest = self._size if isinstance(self._size, int) else self._size.sizes[-1]
        self._also, self._extra = parse_also(load.also) if load.also and others else (0, 0)
        self._made = 0
        #: How many there are; None: no end.
        self.total = None if load.count is None else load.count + self._extra
        length = max(longest, self._also) + _NOISE_CUTS
        if load.canary:
            text = load.canary.encode()
            self._noise = (text * -(-length // len(text)))[:length]
        else:
            self._noise = random.Random(load.seed).randbytes(length)
        #: Bytes of all of them; 0: they differ.
        self._fixed = self._size if isinstance(self._size, int) and not self._extra else 0

    def make(self) -> Call:
        """The next one: its number, as far as there is room, and then noise or canaries."""
        size = self._fixed or self._draw()
        number = self._number
        self._number = number + 1
        cut = number % _NOISE_CUTS
        stamp = number.to_bytes(8, "big")
        data = stamp + self._noise[cut:cut + size - 8] if size >= 8 else stamp[8 - size:]
        return Call(data, self._random.randrange(self._peers) if self._peers > 1 else 0)

    def _draw(self) -> int:
        """The size of the next one, if they differ."""
        if self.total is not None:
            at = self._made * self._extra
            self._made += 1
            if at // self.total != (at + self._extra) // self.total:
                return self._also
        return self._size if isinstance(self._size, int) else self._size.sample(self._random)


@dataclass(slots=True)
class Tally:
    """What came of a series of RPCs."""

    rtt_ns: array[int] = field(default_factory=lambda: array("Q"))
    sizes: array[int] = field(default_factory=lambda: array("Q"))
    """Request bytes of each of these."""
    ended_ns: array[int] = field(default_factory=lambda: array("Q"))
    """When each of these ended, on the clock of the loop: ``time.perf_counter_ns``."""
    began_ns: int = 0
    """When the series began."""
    errors: int = 0
    wrong: int = 0
    first_error: str = ""
    late_ns: array[int] = field(default_factory=lambda: array("Q"))
    """Open loop: how late each RPC was begun."""
    drain_ns: int = 0
    """Open loop: from the last arrival to the last answer."""
    span_ns: int = 0
    """Open loop: from the start to the last arrival."""
    most_under_way: int = 0
    waits: Counter[int] | None = None
    """RPCs by the us that the process waited for a processor meanwhile; None: the kernel does not tell."""

    @property
    def kept_up(self) -> bool:
        """Open loop: the answers came as fast as the requests."""
        return self.drain_ns <= max(_DRAIN_NS, self.span_ns * _DRAIN_SHARE)

    def merge(self, other: Tally) -> None:
        """Add what another process has counted at the same time."""
        self.rtt_ns += other.rtt_ns
        self.sizes += other.sizes
        self.ended_ns += other.ended_ns
        self.late_ns += other.late_ns
        self.errors += other.errors
        self.wrong += other.wrong
        self.first_error = self.first_error or other.first_error
        self.drain_ns = max(self.drain_ns, other.drain_ns)
        self.span_ns = max(self.span_ns, other.span_ns)
        self.most_under_way += other.most_under_way
        self.waits = None if self.waits is None or other.waits is None else self.waits + other.waits


class Source(Protocol):
    """Where the requests of a loop come from."""

    def make(self) -> Call:
        """The next one."""


class Loop:
    """What both loops do: RPCs under way, in order of age, and what becomes of them."""

    #: What a series is counted in.
    TALLY = Tally

    def __init__(self, caller: Caller, timeout_s: float, response_size: int | None = None,
                 clock: Clock = time.perf_counter_ns) -> None:
        self.caller = caller
        self._timeout_ns = int(timeout_s * 1e9)
        self._response_size = response_size
        self._clock = clock
        #: Under way, the oldest first, and when each was begun.
        self._open: dict[Call, int] = {}
        self._last_good = 0
        self._hopeless = False
        self._waits: Waits | None = None

    def _begin_series(self) -> int:
        self._hopeless = False
        self._waits = Waits()
        self._last_good = now = self._clock()
        return now

    def _end_series(self, tally: Tally) -> Tally:
        if self._waits is not None:
            tally.waits = self._waits.counts if self._waits.known else None
            self._waits.close()
            self._waits = None
        return tally

    def _wait(self, at_most_ns: int | None = None) -> None:
        """Until an RPC ends or that time has passed; the oldest is given up when its own has."""
        left = at_most_ns
        if self._open:
            oldest, begun = next(iter(self._open.items()))
            age_left = begun + self._timeout_ns - self._clock()
            if age_left <= 0 and not oldest.ended:  # it may have failed while another was begun
                self.caller.abort(oldest)
                return
            left = age_left if left is None else min(left, age_left)
        self.caller.drive(max(left or 0, 0) / 1e9)
        if self._waits is not None:
            self._waits.note(len(self._open))

    def _settle(self, tally: Tally) -> None:
        """Judge all that has finished."""
        finished, under_way, size = self.caller.finished, self._open, self._response_size
        while finished:
            call = finished.popleft()
            del under_way[call]
            if call.error is not None:
                tally.errors += 1
                tally.first_error = tally.first_error or str(call.error)
            elif call.response != (call.data if size is None else echo_reply(call.data, size)):
                tally.wrong += 1
                ip, port = self.caller.peers[call.peer]
                tally.first_error = tally.first_error or f"RPC to {ip}:{port}: the answer's bytes are wrong"
            else:
                tally.rtt_ns.append(call.ended - call.started)
                tally.sizes.append(len(call.data))
                tally.ended_ns.append(call.ended)
                self._last_good = call.ended
                continue
            self._note_failure(call)

    def _note_failure(self, call: Call) -> None:
        if call.ended - self._last_good > _HOPELESS_NS:
            self._hopeless = True


class ClosedLoop(Loop):
    """Keeps ``concurrency`` RPCs under way: the next begins when one ends."""

    def __init__(self, caller: Caller, concurrency: int, timeout_s: float, response_size: int | None = None,
                 clock: Clock = time.perf_counter_ns) -> None:
        super().__init__(caller, timeout_s, response_size, clock)
        self._concurrency = concurrency

    def run(self, requests: Source, count: int | None, seconds: float | None = None) -> Tally:
        """``count`` RPCs, or as many as begin within ``seconds``. Stops early when all have failed for a while."""
        tally = self.TALLY()
        clock, make, begin, under_way = self._clock, requests.make, self.caller.begin, self._open
        start = tally.began_ns = self._begin_series()
        end = None if seconds is None else start + int(seconds * 1e9)
        left = -1 if count is None else count
        while True:
            while (left and len(under_way) < self._concurrency and not self._hopeless
                   and (end is None or clock() < end)):
                call = make()
                call.started = under_way[call] = clock()
                begin(call)
                left -= 1
            if not under_way:
                return self._end_series(tally)
            tally.most_under_way = max(tally.most_under_way, len(under_way))
            self._wait()
            self._settle(tally)


class OpenLoop(Loop):
    """Begins RPCs at random times, ``rate`` in a second on average, whatever became of those before.

    Arrivals are Poisson's. An RPC's time counts from when it was due, also if it could not begin then: a
    server that stands still is seen by all who would have come meanwhile, not just by one.
    """

    def __init__(self, caller: Caller, rate: float, timeout_s: float, response_size: int | None = None,
                 seed: int = 1, clock: Clock = time.perf_counter_ns) -> None:
        super().__init__(caller, timeout_s, response_size, clock)
        self._per_ns = rate / 1e9
        # Not the numbers that the sizes are drawn with: long messages would come after long gaps.
        self._random = random.Random(f"arrivals {seed}")

    def run(self, requests: Source, count: int | None, seconds: float | None = None) -> Tally:
        """``count`` RPCs, or those due within ``seconds``. Stops early when all have failed for a while."""
        tally = self.TALLY()
        clock, under_way, interval = self._clock, self._open, self._random.expovariate
        start = tally.began_ns = self._begin_series()
        end = None if seconds is None else start + int(seconds * 1e9)
        last = start
        due = start + int(interval(self._per_ns))
        left = -1 if count is None else count
        while True:
            burst = _BURST
            if self._hopeless or (end is not None and due >= end):
                left = 0
            while left and burst and len(under_way) < MAX_UNDER_WAY and (now := clock()) >= due:
                call = requests.make()
                under_way[call] = now
                call.started = last = due
                tally.late_ns.append(now - due)
                self.caller.begin(call)
                due += int(interval(self._per_ns))
                burst -= 1
                left = left - 1 if end is None or due < end else 0
            if not left and not under_way:
                break
            tally.most_under_way = max(tally.most_under_way, len(under_way))
            if not left or len(under_way) >= MAX_UNDER_WAY:
                self._wait()
            else:
                self._wait(due - clock())
            self._settle(tally)
        tally.span_ns = last - start
        tally.drain_ns = max(0, clock() - last)
        return self._end_series(tally)
