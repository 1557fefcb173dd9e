"""One end as one object: nothing is lost in full rings, order holds, deadlines are sound; nobody else pumps."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtstack.crypto.keys import demo_keys
from smtstack.nic.device import NicConfig
from smtstack.stack import Stack
from smtstack.transport.events import Request, Response
from smtstack.transport.params import TransportParams
from smtstack.transport.rpc import Rpc
from smtstack.transport.segment import Segment
from tests.command_lines import ROOT
from tests.pair import CLIENT, CLIENT_PORT, SERVER, SERVER_PORT, make_side, pattern

PROFILES = pytest.mark.parametrize("profile", ["smt", "homa", "linux"])
#: No pacing: every segment wants into the ring at once.
ALL_AT_ONCE = TransportParams(max_nic_queue_ns=10**12)
SIZES = st.lists(st.one_of(st.integers(1, 2000), st.integers(1, 15_000)), min_size=1, max_size=4)


def ends(profile: str, config: NicConfig | None = None,
         params: TransportParams | None = ALL_AT_ONCE) -> tuple[Stack, Stack]:
    """A client with this NIC, and a server with another."""
    return (make_side(CLIENT, CLIENT_PORT, profile, demo_keys(profile), params, config),
            make_side(SERVER, SERVER_PORT, profile, demo_keys(profile), params))


def ask(stack: Stack, sizes: list[int]) -> dict[Rpc, bytes]:
    """A request of each size."""
    return {stack.endpoint.send_request(SERVER, SERVER_PORT, data, 0): data
            for data in (pattern(size, number) for number, size in enumerate(sizes))}


def requests(stack: Stack) -> list[bytes]:
    """What was delivered to the server's application."""
    found = []
    while (event := stack.endpoint.next_event()) is not None:
        assert isinstance(event, Request)
        found.append(event.data)
    return found


# -- out -----------------------------------------------------------------------------------------------------


@PROFILES
@given(sizes=SIZES, ring=st.integers(1, 5), tso=st.booleans(), tls=st.booleans())
def test_the_frames_are_those_of_an_endless_ring(profile, sizes, ring, tso, tls):
    small, _server = ends(profile, NicConfig(ring_size=ring, tso=tso, tls_hw_tx_offload=tls))
    endless, server = ends(profile, NicConfig(ring_size=100_000, tso=tso, tls_hw_tx_offload=tls))
    ask(small, sizes)
    sent = ask(endless, sizes)
    frames = small.transmit(0)
    assert frames == endless.transmit(0)
    assert small.transmit(0) == []
    # Requests of one packet are delivered by that; of others the first bytes are there.
    server.receive(frames, 0)
    assert set(requests(server)) <= set(sent.values())
    assert server.endpoint.counters.data_received > 0
    assert server.endpoint.counters.data_redundant == 0


@PROFILES
@given(sizes=SIZES, ring=st.integers(1, 4), queues=st.integers(1, 3), tls=st.booleans(), data=st.data())
def test_what_does_not_fit_is_kept_however_little_the_device_does(profile, sizes, ring, queues, tls, data):
    config = NicConfig(queues=queues, ring_size=ring, tls_hw_tx_offload=tls)
    client, _server = ends(profile, config)
    endless, _server = ends(profile, NicConfig(queues=queues, ring_size=100_000, tls_hw_tx_offload=tls))
    ask(client, sizes)
    ask(endless, sizes)
    frames: list[bytes] = []
    for _turn in range(10_000):
        went = client.post(0)
        if not went and not client.nic.posted:
            break
        # While something is kept there is work to do, and it is to be done now.
        if client.nic.counters.tx_queue_stopped and client.next_timeout() == 0:
            assert client.nic.posted
        frames += client.nic.process(data.draw(st.integers(1, 4)))
    wanted = endless.transmit(0)
    assert sorted(frames) == sorted(wanted)
    if queues == 1:
        assert frames == wanted
    # Nothing is left, and nobody need come back for it.
    assert client.next_timeout() != 0
    assert client.transmit(0) == []


def test_what_is_kept_goes_before_what_is_new():
    client, _server = ends("homa", NicConfig(ring_size=1))
    ask(client, [100, 101])
    assert client.post(0)
    assert client.next_timeout() == 0
    assert not client.post(0)
    ask(client, [102])
    lengths = [len(frame) for frame in client.transmit(0)]
    assert lengths == sorted(lengths)
    assert len(lengths) == 3
    assert client.next_timeout() != 0


def test_a_segment_of_others_goes_first_and_once():
    client, _server = ends("homa")
    ask(client, [100])
    client.add(Segment(SERVER, 0, bytes(28), b"mine"))
    first, second = client.transmit(0)
    assert first.endswith(b"mine")
    assert second.endswith(pattern(100))
    assert client.transmit(0) == []


@pytest.mark.parametrize("ring", [1, 1024])
def test_an_unknown_neighbour_costs_the_segment_and_stops_nothing(ring):
    client, _server = ends("homa", NicConfig(ring_size=ring))
    client.endpoint.send_request(SERVER + 1, SERVER_PORT, b"nobody", 0)
    ask(client, [100, 101])
    assert len(client.transmit(0)) == 2
    assert client.driver.unresolved == 1


# -- in ------------------------------------------------------------------------------------------------------


@given(count=st.integers(0, 60), ring=st.integers(1, 20), limit=st.integers(0, 7), batch=st.integers(1, 25))
def test_what_comes_is_handled_in_order_or_dropped_and_counted(count, ring, limit, batch):
    """One queue: what fits the ring when it comes is handled, in the order in which it came."""
    client, _server = ends("homa")
    server = make_side(SERVER, SERVER_PORT, "homa", demo_keys("homa"), None, NicConfig(rx_ring_size=ring))
    ask(client, [10 + n for n in range(count)])
    frames = client.transmit(0)
    assert len(frames) == count
    model: list[bytes] = []
    fitted: list[bytes] = []
    handled = 0
    for at in range(0, count, batch):
        for frame in frames[at:at + batch]:
            if len(model) < ring:
                model.append(frame)
                fitted.append(frame)
        took = server.receive(frames[at:at + batch], 0, limit)
        assert took == (min(limit, len(model)) if limit else len(model))
        del model[:took]
        handled += took
        assert server.nic.waiting == len(model)
    handled += server.receive([], 0)
    assert server.nic.waiting == 0
    assert server.nic.counters.rx_dropped == count - handled
    assert requests(server) == [frame[-(len(frame) - 74):] for frame in fitted]


@given(queues=st.integers(1, 4), limit=st.integers(1, 9), count=st.integers(1, 80),
       steering=st.sampled_from(["flow", "message"]))
def test_no_receive_queue_waits_for_ever(queues, limit, count, steering):
    """While one batch after the other comes, each frame is handled after a bounded number of turns."""
    client, _server = ends("homa")
    config = NicConfig(rx_queues=queues, steering=steering)
    server = make_side(SERVER, SERVER_PORT, "homa", demo_keys("homa"), None, config)
    ask(client, [10] * count)
    frames = client.transmit(0)
    total = server.receive(frames, 0, limit)
    for _turn in range(-(-count // limit)):
        assert server.nic.waiting == count - total
        total += server.receive([], 0, limit)
    assert total == count
    assert sorted(requests(server)) == sorted(pattern(10, n) for n in range(count))


# -- time ----------------------------------------------------------------------------------------------------


@PROFILES
@given(sizes=SIZES, ring=st.integers(1, 3), mbps=st.sampled_from([100, 1000, 25_000]))
def test_nothing_happens_before_next_timeout_and_all_of_it_by_looking_only_then(profile, sizes, ring, mbps):
    params = TransportParams(link_mbps=mbps)
    client, server = ends(profile, NicConfig(ring_size=ring), params)
    sent = ask(client, sizes)
    now, answered = 0, 0
    for _turn in range(5000):
        moved = False
        for one, other in ((client, server), (server, client)):
            frames = one.transmit(now)
            moved |= bool(frames)
            other.receive(frames, now)
        while (event := server.endpoint.next_event()) is not None:
            assert isinstance(event, Request)
            server.endpoint.send_reply(event.rpc, event.data[::-1], now)
            moved = True
        while (event := client.endpoint.next_event()) is not None:
            assert isinstance(event, Response)
            assert event.data == sent[event.rpc][::-1]
            answered += 1
        if moved:
            continue
        due = [t for s in (client, server) if (t := s.next_timeout()) is not None]
        if not due:
            break
        assert min(due) > now, "nothing moves, and yet somebody is to look now"
        if min(due) - 1 > now:
            now = min(due) - 1
            assert client.transmit(now) == server.transmit(now) == []
        now = min(due)
        for stack in (client, server):
            stack.handle_timeout(now)
    assert answered == len(sizes)


# -- who else ------------------------------------------------------------------------------------------------

#: What the pump calls: the name, on what (by the end of the text before the dot), and who else may: the pieces
#: themselves, and who hands on the planes of others.
CALLS = [("poll_transmit", "", {"smtstack/transport/endpoint.py", "smtstack/session/manager.py",
                                "smtstack/session/plane.py"}),
         ("drain", "endpoint", set()),
         # TLS offload for TCP has a driver of its own.
         ("transmit", "driver", {"smtstack/nic/tls_device.py"}),
         ("process", "nic", set()),
         ("arrive", "nic", set()),
         # One NIC under many endpoints: a frame is for one of them.
         ("collect", "nic", {"smtstack/sim/host.py"}),
         ("take_in", "nic", set()), ("straight", "driver", set()),
         ("take", "nic", set())]
_NAMES = {name for name, _ending, _others in CALLS}
PUMP = "smtstack/stack.py"


def pumps(source: str, path: str) -> Iterator[str]:
    """Where a source names what only the pump calls, called or not: a bound method is a call to come."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute) or node.attr not in _NAMES or path == PUMP:
            continue
        owner = ast.unparse(node.value)
        # "NicDriver(nic, ...).transmit": the object has no name.
        kind = owner.partition("(")[0].lower()
        for name, ending, others in CALLS:
            if node.attr == name and kind.endswith(ending) and path not in others:
                yield f"{path}:{node.lineno}: {owner}.{name}"


def test_nobody_else_pumps():
    paths = [p for package in ("smtstack", "workloads", "topo", "controllers")
             for p in sorted((ROOT / package).rglob("*.py"))]
    assert len(paths) > 200
    found = [line for p in paths for line in pumps(p.read_text(encoding="utf-8"), str(p.relative_to(ROOT)))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("source", [
    "while (s := self.endpoint.poll_transmit(now)) is not None: pass", "poll = endpoint.poll_transmit",
    "self.nic.process()", "run = nic.process", "for s in endpoint.drain(0): pass",
    "self._driver.transmit(segment)", "driver.transmit(s)", "NicDriver(nic, mac, ip, 146, n).transmit(s)",
    "nic.arrive([frame])"])
def test_the_search_finds_a_pump(source):
    assert len(list(pumps(source, "workloads/new.py"))) == 1


def test_the_search_knows_only_what_is_there():
    """An exception for something that is gone would hide the next pump."""
    for name, _ending, others in CALLS:
        for path in others:
            assert f".{name}(" in (ROOT / path).read_text(encoding="utf-8"), (name, path)
    assert list(pumps((ROOT / PUMP).read_text(encoding="utf-8"), "smtstack/elsewhere.py"))
