"""Deadlines: who is woken when, and that nobody is woken for nothing."""

from __future__ import annotations

import pytest

from smtstack.crypto.aead import NoKeys
from smtstack.crypto.epochs import EpochKeys, Session
from smtstack.sim.pair import SERVER_IP, SERVER_PORT, MemoryPair
from smtstack.transport.events import Request, Response
from smtstack.transport.params import SOFTWARE, TransportParams
from smtstack.transport.rpc import Host, Peer, Rpc
from smtstack.transport.timers import TimerTable


def armed(table: TimerTable, *ticks: int) -> list[Rpc]:
    """One RPC for each tick."""
    nothing = EpochKeys(0, NoKeys(), NoKeys(), 64)
    peer = Peer(Host(1), 2000, 40_000, Session(), 1000)
    rpcs = []
    for number, tick in enumerate(ticks):
        rpc = Rpc(peer, number, number, nothing, True, number, 0)
        table.arm(rpc, tick)
        rpcs.append(rpc)
    return rpcs


def test_the_next_tick_is_that_of_somebody_still_armed():
    table = TimerTable()
    a, b, c, d = armed(table, 5, 5, 5, 9)
    assert table.next_tick() == 5
    c.armed_tick = -1
    table.arm(a, 7)
    assert table.next_tick() == 5
    assert table.due(6) == [b]
    assert table.next_tick() == 7
    a.armed_tick = -1
    assert table.next_tick() == 9
    assert table.due(9) == [d]
    assert table.next_tick() is None


def test_due_keeps_the_order_of_arming_whoever_let_go():
    table = TimerTable()
    rpcs = armed(table, 3, 2, 3, 3, 2, 3)
    rpcs[5].armed_tick = -1
    assert table.next_tick() == 2
    rpcs[1].armed_tick = rpcs[4].armed_tick = -1
    assert table.next_tick() == 3
    assert table.due(3) == [rpcs[0], rpcs[2], rpcs[3]]


def exchange(pair: MemoryPair, data: bytes) -> None:
    """One RPC, without letting time pass."""
    client, server = pair.client.endpoint, pair.server.endpoint
    client.send_request(SERVER_IP, SERVER_PORT, data, pair.now)
    for _turn in range(1000):
        pair.server.receive(pair.client.transmit(pair.now), pair.now)
        while isinstance(event := server.next_event(), Request):
            server.send_reply(event.rpc, event.data, pair.now)
        pair.client.receive(pair.server.transmit(pair.now), pair.now)
        if isinstance(client.next_event(), Response):
            return
    raise AssertionError("no response")


@pytest.mark.parametrize("size", [64, 5000])
def test_a_finished_rpc_wakes_its_client_no_more(size):
    """Its server waits for the acknowledgement, which comes with that of five more."""
    # A link so fast that the pacer never waits: no time passes here.
    pair = MemoryPair(params=TransportParams(link_mbps=1_000_000_000))
    for _rpc in range(5):
        exchange(pair, bytes(size))
        pair.client.transmit(pair.now)
        assert pair.client.endpoint.next_timeout() is None
        assert pair.server.endpoint.next_timeout() is not None
    exchange(pair, bytes(size))
    pair.server.receive(pair.client.transmit(pair.now), pair.now)
    pair.server.transmit(pair.now)
    assert pair.server.endpoint.next_timeout() is None


def test_a_grant_that_is_due_is_a_reason_to_poll():
    pair = MemoryPair(params=SOFTWARE)
    pair.request(bytes(500_000))
    server = pair.server.endpoint
    frames = pair.client.transmit(pair.now)
    assert not server.grants_due()
    pair.server.receive(frames, pair.now)
    assert server.grants_due()
    assert server.next_timeout() == 0
    assert pair.server.transmit(pair.now)
    assert not server.grants_due()
    assert server.next_timeout() != 0
