"""The packet loop over a socket and an endpoint that are not there."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from smtstack import loop
from smtstack.loop import MAX_BACKLOG, RECEIVE_BATCH, PacketLoop
from smtstack.nic.device import NicConfig, SmartNic
from smtstack.transport.counters import Counters
from smtstack.transport.params import TransportParams
from smtstack.transport.segment import Segment
from smtstack.waiting import AS_HOMA, AS_TCP, HYBRID, POLL, Waiter, Waiting
from smtstack.wire.ipv4 import IPv4

pytestmark = pytest.mark.interpreted("socket and endpoint are look-alikes, and compiled code takes none")

#: What the clock moves every time it is read.
STEP_NS = 100_000


class Wire:
    """What PacketSocket looks like to the loop: ``waiting`` frames to receive, ``sent`` ones kept."""

    mac = bytes(6)
    send_drops = 0

    def __init__(self, waiting: int = 0) -> None:
        self.waiting = waiting
        self.sent: list[bytes] = []
        self.waits: list[int] = []

    def receive(self, limit: int) -> list[bytes]:
        taken = min(limit, self.waiting)
        self.waiting -= taken
        return [bytes(12) + b"\x08\0" + IPv4(1, 2, 146, 48).pack() + bytes(28)] * taken

    def send(self, frames: list[bytes]) -> None:
        self.sent += frames

    def clear_error(self) -> None:
        pass

    def wait(self, timeout_ns: int) -> None:
        self.waits.append(timeout_ns)

    def too_long(self) -> tuple[int, int]:
        return 0, 0

    def more_counters(self) -> dict[str, int]:
        return {}

    def statistics(self) -> tuple[int, int]:
        return 0, 0


class Engine:
    """What Endpoint looks like to the loop: counts what it is asked."""

    ip, port, protocol = 1, 2, 146
    params = TransportParams()
    counters = Counters()
    trace = None

    def __init__(self, segments: list[Segment] | None = None) -> None:
        self.segments = segments or []
        self.handled = 0
        self.fired = 0

    def handle_packet(self, _frame: bytes, _now: int) -> None:
        self.handled += 1

    def drain(self, _now: int) -> list[Segment]:
        segments, self.segments = self.segments, []
        return segments

    def next_timeout(self) -> int | None:
        return 1

    def handle_timeout(self, _now: int) -> None:
        self.fired += 1


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Every reading, a tick later than the last."""
    readings = count(STEP_NS, STEP_NS)
    monkeypatch.setattr(loop, "monotonic_ns", lambda: next(readings))
    return readings


def make(engine: Any, wire: Any, nic: NicConfig | None = None) -> PacketLoop:
    return PacketLoop(engine, SmartNic(nic), wire, lambda _ip: bytes(6))


def test_while_frames_keep_coming_timers_are_looked_at_once_a_tick():
    engine, wire = Engine(), Wire()
    packets = make(engine, wire)
    for _turn in range(100):
        wire.waiting = RECEIVE_BATCH - 1
        assert packets.step()
    assert engine.handled == 100 * (RECEIVE_BATCH - 1)
    ticks = 100 * STEP_NS // engine.params.tick_ns
    assert ticks / 2 <= engine.fired <= 2 * ticks
    assert not wire.waits


def test_after_a_stall_what_waits_is_taken_before_timers_judge_silence():
    engine, wire = Engine(), Wire(20 * RECEIVE_BATCH + 1)
    packets = make(engine, wire)
    while engine.handled < 20 * RECEIVE_BATCH + 1:
        assert engine.fired == 0
        assert packets.step()
    assert engine.fired == 1


def test_a_flood_does_not_keep_timers_from_firing():
    engine, wire = Engine(), Wire(3 * MAX_BACKLOG)
    packets = make(engine, wire, NicConfig(rx_ring_size=3 * MAX_BACKLOG))
    while wire.waiting or packets.nic.waiting:
        assert packets.step()
    assert engine.handled == 3 * MAX_BACKLOG
    assert engine.fired >= 2


@pytest.mark.parametrize("rx_queues", [1, 3])
def test_what_comes_while_the_host_is_away_waits_in_the_ring_or_is_lost(rx_queues):
    engine, wire = Engine(), Wire(1000)
    packets = make(engine, wire, NicConfig(rx_ring_size=200, rx_queues=rx_queues))
    assert packets.step()
    # The device had it all; the endpoint has a batch. All are of one flow, so one ring took what there is.
    assert (wire.waiting, engine.handled, packets.nic.waiting) == (0, RECEIVE_BATCH, 200 - RECEIVE_BATCH)
    assert packets.nic.counters.rx_dropped == 800
    while packets.nic.waiting:
        assert packets.next_wake() == 0
        assert packets.step()
    assert engine.handled == 200
    assert not wire.waits
    # What comes in time is not lost.
    for _turn in range(10):
        wire.waiting = 200
        while wire.waiting or packets.nic.waiting:
            packets.step()
    assert (engine.handled, packets.nic.counters.rx_dropped) == (2200, 800)


def test_with_nothing_to_receive_timers_fire_at_once():
    engine = Engine()
    packets = make(engine, Wire())
    for _turn in range(5):
        assert packets.step()
    assert engine.fired == 5


def test_late_is_what_was_due_and_waited_for_us(clock):
    engine = Engine()
    packets = make(engine, Wire())
    engine.next_timeout = lambda: None  # type: ignore[method-assign]
    for _turn in range(100):
        packets.step(0)
    # Data that may go since the link fell idle, long ago: but nobody knew of it at the last look.
    engine.next_timeout = lambda: STEP_NS  # type: ignore[method-assign]
    packets.step(0)
    assert engine.fired
    assert packets.statistics.late_ns <= 2 * STEP_NS
    # A timer that was known, and due 50 clock readings before anybody came back.
    now = next(clock)
    engine.next_timeout = lambda: now + STEP_NS  # type: ignore[method-assign]
    for _reading in range(50):
        next(clock)
    packets.step(0)
    assert 45 * STEP_NS < packets.statistics.late_ns < 55 * STEP_NS


def test_a_sleeper_whom_a_frame_wakes_was_not_late(clock):
    engine, wire = Engine(), Wire()
    packets = make(engine, wire)
    engine.next_timeout = lambda: None  # type: ignore[method-assign]
    packets.step(0)

    def wait(timeout_ns: int) -> None:
        for _reading in range(50):
            next(clock)
        # A grant: what it lets go may go since the link fell idle.
        wire.waiting = 1
        engine.next_timeout = lambda: STEP_NS  # type: ignore[method-assign]

    wire.wait = wait  # type: ignore[method-assign]
    packets.step()
    # The application first.
    assert (engine.handled, engine.fired) == (1, 0)
    packets.step(0)
    assert engine.fired
    assert packets.statistics.late_ns <= 2 * STEP_NS


@pytest.mark.parametrize("ring_size", [1, 2, 3, 1024])
def test_a_full_ring_loses_and_reorders_nothing(ring_size):
    segments = [Segment(2, 0, bytes(28), bytes([number])) for number in range(7)]
    wire = Wire()
    make(Engine(segments), wire, NicConfig(ring_size=ring_size)).flush()
    assert [frame[-1] for frame in wire.sent] == list(range(7))


def test_what_came_of_a_frame_leaves_with_the_next_step():
    """The answer that a frame leads to, if there is one, goes out together with what the protocol has to say."""
    engine, wire = Engine(), Wire(1)
    packets = make(engine, wire)
    engine.segments = []
    assert packets.step()
    engine.segments.append(Segment(2, 0, bytes(28), b"GRANT"))
    assert not wire.sent
    packets.step(0)
    assert [frame[-5:] for frame in wire.sent] == [b"GRANT"]


def test_a_deadline_ends_the_wait():
    engine, wire = Engine(), Wire()
    packets = make(engine, wire)
    engine.next_timeout = lambda: None  # type: ignore[method-assign]
    assert not packets.step(10 * STEP_NS)
    assert wire.waits == [9 * STEP_NS]


# -- looking and sleeping ------------------------------------------------------------------------------------

class Race:
    """A clock and a socket in one: the ``at``-th time that either is asked for anything, a frame arrives.

    ``wait`` returns at once where frames wait, as of a socket that is readable as long as they do; else it sleeps,
    until the frame or the time comes.
    """

    mac = bytes(6)
    send_drops = 0
    TICK = 1000

    def __init__(self, at: int) -> None:
        self.at = at
        self.now = 1_000_000_000
        self.asked = 0
        self.waiting = 0
        #: When the frame came, and was taken.
        self.came = self.taken = 0
        self.slept: list[int] = []

    def tick(self) -> int:
        self.asked += 1
        self.now += self.TICK
        if self.asked == self.at:
            self._arrive()
        return self.now

    def _arrive(self) -> None:
        self.waiting += 1
        self.came = self.now

    def receive(self, limit: int) -> list[bytes]:
        self.tick()
        taken, self.waiting = min(self.waiting, limit), max(0, self.waiting - limit)
        self.taken = self.taken or (self.now if taken else 0)
        return [bytes(12) + b"\x08\0" + IPv4(1, 2, 146, 48).pack() + bytes(28)] * taken

    def wait(self, timeout_ns: int) -> None:
        self.tick()
        if self.waiting:
            return
        self.slept.append(timeout_ns)
        if self.asked < self.at:
            # It comes while we sleep, but not as long as the clock says.
            self.at = 0
            self.now += min(timeout_ns, 10_000_000)
            self._arrive()
        else:
            self.now += timeout_ns

    def send(self, frames: list[bytes]) -> None:
        self.tick()

    def clear_error(self) -> None:
        self.tick()

    def too_long(self) -> tuple[int, int]:
        return 0, 0

    def more_counters(self) -> dict[str, int]:
        return {}

    def statistics(self) -> tuple[int, int]:
        return 0, 0


WAYS = {"hybrid": Waiting(HYBRID, 20_000), "interrupt": AS_TCP, "poll": Waiting(POLL, 20_000)}


@pytest.mark.parametrize("how", WAYS)
def test_no_wake_up_is_lost_whenever_a_frame_comes(monkeypatch, how):
    """At each moment of a step in turn: between any two looks, and between the last one and the sleep."""
    moments = 0
    for at in range(1, 200):
        race = Race(at)
        monkeypatch.setattr(loop, "monotonic_ns", race.tick)
        engine = Engine()
        engine.next_timeout = lambda: None  # type: ignore[method-assign]
        packets = PacketLoop(engine, SmartNic(), race, lambda _ip: bytes(6),  # type: ignore[arg-type]
                             Waiter(WAYS[how]))
        end = race.now + 1_000_000_000
        while not engine.handled and race.now < end:
            packets.step(end)
        assert engine.handled == 1, at
        # Nobody slept on a frame that was there: it was taken a few readings of the clock after it came.
        assert race.taken - race.came <= 6 * race.TICK, at
        assert len(race.slept) <= 1
        moments += not race.slept
    # The moments there are before it sleeps; in all others it came meanwhile.
    assert moments >= (3 if how == "interrupt" else 20)


def test_a_message_of_another_worker_ends_a_look_before_the_frames_behind_it(monkeypatch):
    """It may be about the session that they belong to."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    said: list[str] = []

    class Keys:
        inbox: socket.socket | None = ours

        def deliver(self, message: bytes, _now: int) -> None:
            said.append(message.decode())

        def idle(self) -> None:
            # The last moment before the wait.
            theirs.send(b"session")
            wire.waiting = 1

        def counters(self) -> dict[str, int]:
            return {}

    with ours, theirs:
        engine, wire = Engine(), Wire()
        wire.watch = lambda _other: None  # type: ignore[attr-defined]
        engine.next_timeout = lambda: None  # type: ignore[method-assign]
        engine.handle_packet = lambda _frame, _now: said.append("frame")  # type: ignore[method-assign]
        packets = PacketLoop(engine, SmartNic(), wire, lambda _ip: bytes(6),  # type: ignore[arg-type]
                             Waiter(AS_HOMA), key_host=Keys())
        assert packets.step()
        assert said == ["session", "frame"]


@pytest.mark.parametrize("how", WAYS)
def test_timers_fire_while_it_looks_and_deadlines_hold(monkeypatch, how):
    race = Race(-1)
    monkeypatch.setattr(loop, "monotonic_ns", race.tick)
    engine = Engine()
    packets = PacketLoop(engine, SmartNic(), race, lambda _ip: bytes(6),  # type: ignore[arg-type]
                         Waiter(WAYS[how]))
    period = 5_000
    fired: list[int] = []

    due = race.now + period

    def fire(_now: int) -> None:
        nonlocal due
        fired.append(_now - due)
        due = _now + period

    engine.next_timeout = lambda: due  # type: ignore[method-assign]
    engine.handle_timeout = fire  # type: ignore[method-assign]
    for _turn in range(100):
        assert packets.step()
    assert len(fired) == 100
    assert max(fired) <= 6 * race.TICK
    engine.next_timeout = lambda: None  # type: ignore[method-assign]
    for wait in (0, 3_000, 15_000, 400_000):
        began = race.now
        assert not packets.step(began + wait)
        assert race.now - began <= wait + 12 * race.TICK


def test_a_flood_beside_a_hybrid_end_starves_neither_timers_nor_what_is_to_be_sent():
    """Rubbish in every look: the end never sleeps, still sends, and fires behind a backlog at the latest."""
    engine, wire = Engine(), Wire()
    packets = PacketLoop(engine, SmartNic(), wire, lambda _ip: bytes(6),  # type: ignore[arg-type]
                         Waiter(AS_HOMA))
    for turn in range(300):
        wire.waiting = 10 * RECEIVE_BATCH
        engine.segments = [Segment(2, 0, bytes(28), turn.to_bytes(2, "big"))]
        assert packets.step()
        assert int.from_bytes(wire.sent[-1][-2:], "big") == turn
    assert not wire.waits
    assert engine.fired >= engine.handled // MAX_BACKLOG > 1


def test_behind_a_wake_up_comes_the_answer_and_then_all_else(clock):
    """Counters, timers and routes are looked at when it was sent; settings before only if there are new ones."""
    engine, wire = Engine(), Wire()
    packets = make(engine, wire)
    seen: list[str] = []
    engine.next_timeout = lambda: None  # type: ignore[method-assign]
    packets.step(0)
    for name in ("next_timeout", "handle_timeout", "handle_packet"):
        monitored(engine, name, seen)
    monitored(packets, "_sync_nic", seen)
    monitored(packets.driver, "forget_routes", seen)

    def wait(timeout_ns: int) -> None:
        seen.clear()
        wire.waiting = 1
        # Time for everything there is.
        for _reading in range(1_000_000):
            next(clock)

    wire.wait = wait  # type: ignore[method-assign]
    assert packets.step()
    assert seen == ["handle_packet"]
    engine.segments = [Segment(2, 0, bytes(28), b"answer")]
    packets.flush()
    assert wire.sent[-1].endswith(b"answer")
    assert seen == ["handle_packet"]
    packets._generation = memoryview(bytes(7) + b"\1").cast("Q")
    packets.step(0)
    assert {"_sync_nic", "forget_routes", "next_timeout"} <= set(seen)
    del seen[:]
    packets._generation = memoryview(bytes(7) + b"\2").cast("Q")
    assert packets.step()
    assert seen[0] == "_sync_nic"


def monitored(thing: Any, name: str, seen: list[str]) -> None:
    real = getattr(thing, name)

    def call(*args: Any) -> Any:
        seen.append(name)
        return real(*args)

    setattr(thing, name, call)
