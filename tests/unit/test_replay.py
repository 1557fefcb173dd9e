"""The replay guard against a model: whatever the order, no id twice, and memory stays bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from smtstack.crypto.replay import DEFAULT_WINDOW, ReplayGuard
from smtstack.transport.events import Request
from tests.pair import SERVER, SERVER_PORT, Pair, pattern

ORDERS = st.lists(st.one_of(st.integers(1, 60), st.integers(1, 400), st.integers(1, 1 << 62)).map(lambda n: 2 * n),
                  max_size=200)


@given(ORDERS, st.integers(1, 12))
def test_never_the_same_id_twice(ids, window):
    guard = ReplayGuard(window)
    marked: set[int] = set()
    for message_id in ids:
        before = guard.floor
        replay = guard.is_replay(message_id)
        assert replay >= (message_id in marked)  # seen means refused
        if before <= message_id >> 1 and message_id not in marked:
            assert not replay  # and new above the floor means admitted
        assert guard.mark(message_id) is not replay
        marked.add(message_id)
        assert guard.is_replay(message_id)
        assert guard.floor >= before
        assert len(guard.seen) <= window
    assert all(guard.is_replay(i) for i in marked)


@given(st.permutations(range(1, 40)))
def test_any_order_within_the_window_is_admitted_once(order):
    guard = ReplayGuard(window=64)
    assert all(guard.mark(2 * n) for n in order)
    assert not any(guard.mark(2 * n) for n in order)
    assert (guard.floor, guard.seen) == (40, set())


def test_contiguous_ids_need_no_memory():
    guard = ReplayGuard()
    for n in range(1, 5000):
        assert guard.mark(2 * n)
        assert not guard.seen
    assert guard.floor == 5000


def test_a_full_window_refuses_the_old_and_keeps_the_new():
    guard = ReplayGuard(window=100)
    # Id 2 never comes, so the floor cannot move by itself.
    for n in range(2, 102):
        assert guard.mark(2 * n)
    assert guard.floor == 1
    assert not guard.is_replay(2)
    assert guard.mark(2 * 102)
    assert guard.floor > 1
    assert guard.is_replay(2)
    assert guard.mark(2) is False
    assert not guard.is_replay(2 * 103)
    assert all(guard.is_replay(2 * n) for n in range(1, 103))


def test_a_far_jump_does_not_shut_out_the_near():
    # The kernel's window moves to the highest id it hears of (reference §3.4); ours does not.
    guard = ReplayGuard()
    assert guard.mark(1 << 60)
    assert guard.mark(2)
    assert guard.mark(4)


def requests(pair: Pair) -> list[Request]:
    """What the server is given; it does not answer."""
    out = []
    while (event := pair.server.endpoint.next_event()) is not None:
        assert isinstance(event, Request)
        out.append(event)
    return out


def test_replayed_packets_deliver_nothing_and_forged_ones_block_nothing():
    pair = Pair()
    rpc = pair.client.endpoint.send_request(SERVER, SERVER_PORT, pattern(5000), 0)
    genuine = pair.client.transmit(0)
    for frame in genuine:
        pair.deliver(frame, pair.server)
    (request,) = requests(pair)
    pair.server.endpoint.abort(request.rpc)  # no state of the RPC left: only the guard can tell
    for frame in genuine * 2:
        pair.deliver(frame, pair.server)
    assert requests(pair) == []
    assert pair.server.endpoint.counters.replays == 2 * len(genuine)

    # A forger claims an id far ahead, and the very next id; neither spends them.
    for forged_id in (rpc.id + 2, rpc.id + 4 * DEFAULT_WINDOW):
        for frame in genuine:
            pair.deliver(frame[:54] + forged_id.to_bytes(8, "big") + frame[62:], pair.server)
    assert requests(pair) == []
    assert pair.server.endpoint.counters.records_failed > 0
    pair.client.endpoint.abort(rpc)
    pair.client.endpoint.next_event()
    pair.request(pattern(3000, 1))
    pair.run()
    pair.check()
