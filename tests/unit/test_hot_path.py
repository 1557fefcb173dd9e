"""The path that most packets take: what it costs in calls and objects, and that it is only a short cut."""

from __future__ import annotations

import gc
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtstack.crypto.keys import demo_keys
from smtstack.nic.descriptors import Descriptor
from smtstack.nic.device import NicConfig, SmartNic
from smtstack.sim.pair import MemoryPair
from smtstack.stack import Stack
from smtstack.transport.events import Event, Request, Response
from smtstack.transport.params import TransportParams
from tests.pair import CLIENT, CLIENT_PORT, SERVER, SERVER_PORT, make_side, pattern

#: No pacing: all goes at once.
ALL_AT_ONCE = TransportParams(max_nic_queue_ns=10**12)
#: Profile, the device seals; Python calls of one RPC of 64 bytes through both ends and both devices, and how many
#: of them make an object. Less is better: lower these when there is less.
COSTS = [("smt", False, 74, 8), ("smt", True, 90, 8), ("homa", False, 68, 8)]


class Silent:
    """Watches a device and says nothing: all must pass its rings."""

    def done(self, queue: int, descriptor: Descriptor, sequence: int, frames: list[bytes]) -> None:
        """Nothing."""

    def arrived(self, frame: bytes) -> None:
        """Nothing."""


# -- what it costs --------------------------------------------------------------------------------------------


class Echo:
    """A pair with one RPC under way at a time."""

    def __init__(self, profile: str, offload: bool) -> None:
        self.pair = MemoryPair(profile, None, NicConfig(tls_hw_tx_offload=offload))
        self.data = pattern(64)

    def _serve(self, event: Event) -> None:
        assert isinstance(event, Request)
        self.pair.server.endpoint.send_reply(event.rpc, event.data, self.pair.now)

    def one(self) -> None:
        """There and back."""
        pair = self.pair
        pair.request(self.data)
        events: list[Event] = []
        while not events:
            events = pair.step(self._serve)
        (event,) = events
        assert isinstance(event, Response)
        assert event.data == self.data


@pytest.mark.interpreted("compiled functions are no calls to a profiler")
@pytest.mark.parametrize(("profile", "offload", "calls", "objects"), COSTS)
def test_calls_and_objects_of_one_rpc(profile, offload, calls, objects):
    echo = Echo(profile, offload)
    for _ in range(20):
        echo.one()
    seen: list[Counter[str]] = []

    def profiler(frame: object, what: str, _arg: object) -> None:
        code = frame.f_code  # type: ignore[attr-defined]
        # Not the comprehensions, which newer Pythons do not call.
        if what == "call" and "/smtstack/" in code.co_filename and not code.co_name.startswith("<"):
            seen[-1][code.co_qualname if sys.version_info >= (3, 11) else code.co_name] += 1

    for _ in range(12):
        seen.append(Counter())
        sys.setprofile(profiler)
        try:
            echo.one()
        finally:
            sys.setprofile(None)
    # The median: every sixth RPC brings an ACK for the others.
    counts = sorted(seen, key=lambda c: c.total())[5]
    listing = "\n".join(f"{n} {name}" for name, n in counts.most_common())
    assert sum(counts.values()) <= calls, listing
    assert sum(n for name, n in counts.items() if name.endswith("__init__")) <= objects, listing


@pytest.mark.parametrize("offload", [False, True])
def test_nothing_stays_of_an_rpc(offload):
    echo = Echo("smt", offload)

    def several(count: int) -> int:
        for _ in range(count):
            # Timers let go of an RPC when their tick comes.
            echo.pair.elapse(20_000_000)
            echo.one()
        gc.collect()
        return sys.getallocatedblocks()

    before = several(300)
    # An object an RPC would be hundreds.
    assert several(600) - before < 100


# -- a short cut, not another way -----------------------------------------------------------------------------


def ends(profile: str, config: NicConfig) -> tuple[Stack, Stack]:
    """A client and a server whose devices are alike."""
    return (make_side(CLIENT, CLIENT_PORT, profile, demo_keys(profile), ALL_AT_ONCE, config),
            make_side(SERVER, SERVER_PORT, profile, demo_keys(profile), ALL_AT_ONCE, config))


def talk(pair: tuple[Stack, Stack], sizes: list[int]) -> tuple[list[list[bytes]], list[dict[str, int]]]:
    """Frames of some turns in which the client asks, the server echoes; counters of the devices."""
    client, server = pair
    for number, size in enumerate(sizes):
        client.endpoint.send_request(SERVER, SERVER_PORT, pattern(size, number), 0)
    turns: list[list[bytes]] = []
    for _ in range(6):
        for near, far in ((client, server), (server, client)):
            turns.append(near.transmit(0))
            far.receive(turns[-1], 0)
            while (event := far.endpoint.next_event()) is not None:
                if isinstance(event, Request):
                    far.endpoint.send_reply(event.rpc, event.data, 0)
    return turns, [end.nic.counters.snapshot() for end in pair]


@pytest.mark.parametrize("profile", ["smt", "homa", "linux"])
@given(sizes=st.lists(st.one_of(st.integers(1, 2000), st.integers(1, 15_000)), min_size=1, max_size=6),
       tso=st.booleans(), tls=st.booleans(), places=st.booleans(), contexts=st.integers(0, 2))
def test_the_same_frames_and_counters_as_by_the_rings(profile, sizes, tso, tls, places, contexts):
    config = NicConfig(tso=tso, tls_hw_tx_offload=tls, tso_seq=places and profile != "linux",
                       max_contexts=contexts)
    straight, ringed = ends(profile, config), ends(profile, config)
    for end in ringed:
        end.nic.watcher = Silent()
    assert talk(straight, sizes) == talk(ringed, sizes)


@given(frames=st.lists(st.integers(0, 3), max_size=12), room=st.integers(1, 12), limit=st.integers(0, 12),
       waiting=st.integers(0, 2), checksum=st.booleans(), queues=st.integers(1, 2))
def test_what_comes_in_is_taken_as_by_the_ring(frames, room, limit, waiting, checksum, queues):
    client, _server = ends("smt", NicConfig())
    client.endpoint.send_request(SERVER, SERVER_PORT, b"x", 0)
    (good,) = client.transmit(0)
    kinds = [good, good[:20], good[:24] + b"\xff" + good[25:], b"\0" * 60]
    config = NicConfig(rx_ring_size=room, rx_queues=queues, rx_checksum=checksum)
    one, other = SmartNic(config), SmartNic(config)
    for nic in (one, other):
        nic.arrive([good] * waiting)
    came = [kinds[k] for k in frames]
    for _ in range(3):
        taken = one.take_in(came, limit)
        other.arrive(came)
        assert taken == other.collect(limit)
        assert one.waiting == other.waiting
    assert one.counters.snapshot() == other.counters.snapshot()


def test_a_ring_too_small_for_all_is_found_full_as_often():
    found = []
    for watched in (False, True):
        client, _server = ends("smt", NicConfig(ring_size=3))
        if watched:
            client.nic.watcher = Silent()
        for number in range(10):
            client.endpoint.send_request(SERVER, SERVER_PORT, pattern(64, number), 0)
        found.append((client.transmit(0), client.nic.counters.snapshot()))
    assert found[0] == found[1]
    assert found[0][1]["tx_queue_stopped"] == 3
