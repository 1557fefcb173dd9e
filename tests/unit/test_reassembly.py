"""Reassembly: any packets in any order give the message, and no packet costs more than its own bytes."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from smtstack.crypto.epochs import SmtSession
from smtstack.crypto.keys import Endpoints, demo_keys
from smtstack.transport import stream_message
from smtstack.transport.params import TransportParams
from smtstack.transport.stream_message import Geometry, SealedIn, SealedOut, StreamIn

LENGTH = 2_000_000


@given(st.data())
def test_any_cut_any_order(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 400))
    message = bytes(n & 0xFF for n in range(size))
    inm = StreamIn(size)
    for _ in range(data.draw(st.integers(0, 30))):
        start = data.draw(st.integers(0, size - 1))
        stop = data.draw(st.integers(start + 1, size))
        inm.add(0, 0, start, message[start:stop])
    for start, length in inm.missing() or []:
        inm.add(0, 0, start, message[start:start + length])
    inm.granted = size
    for start, length in inm.missing():
        inm.add(0, 0, start, message[start:start + length])
    assert inm.finish() == message
    assert inm.received == size
    assert inm.buffered() == size


@given(st.lists(st.tuples(st.integers(0, 39), st.booleans()), max_size=120), st.integers(0, 3))
def test_forged_packets_between_sealed_ones(packets: list[tuple[int, bool]], doubts: int) -> None:
    """Whatever of it is forged, at whatever place, the genuine packets give the message in the end."""
    params = TransportParams(mtu=296, max_gso_size=900)
    a, b = (demo_keys("smt").session(ends) for ends in (Endpoints(1, 1, 2, 2), Endpoints(2, 2, 1, 1)))
    assert isinstance(a, SmtSession)
    assert isinstance(b, SmtSession)
    plain = bytes(n * 7 & 0xFF for n in range(7000))
    out = SealedOut(a, a.current, 2, plain, len(plain), Geometry(params, sealed=True))
    pieces = [(out.start(index), number, out.payload(index)[cut:cut + out.mss])
              for index in range(out.count)
              for number, cut in enumerate(range(0, len(out.payload(index)), out.mss))]
    inm = SealedIn(b, b.current, 2, out.length)
    done = None
    forged = [(place, is_forged) for place, is_forged in packets if place < len(pieces)]
    for count, (place, is_forged) in enumerate(forged):
        offset, number, payload = pieces[place]
        inm.add(offset, number, number * out.mss, bytes(len(payload)) if is_forged else payload)
        done = done or inm.finish()
        if doubts and count % 40 == 39:
            inm.doubt()
    for _round in range(60):
        if done is not None:
            break
        inm.doubt()
        inm.extend(out.length)
        for offset, number, payload in pieces:
            inm.add(offset, number, number * out.mss, payload)
            done = done or inm.finish()
    assert done == plain


def test_a_packet_far_away_costs_its_own_bytes() -> None:
    inm = StreamIn(LENGTH)
    payload = b"x" * 1400
    tracemalloc.start()
    try:
        inm.add(0, 0, LENGTH - 1400, payload)
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()
    assert 1400 <= inm.buffered() < 2000


def test_many_tiny_packets_are_bounded() -> None:
    inm = StreamIn(LENGTH)
    taken = sum(inm.add(0, 0, LENGTH - 1 - 2 * n, b"x") for n in range(3 * stream_message.MAX_PIECES))
    assert taken == stream_message.MAX_PIECES
    # They are accounted for at what they cost, and hinder no message that arrives in order.
    assert inm.buffered() >= taken * 100
    message = b"m" * LENGTH
    for start in range(0, LENGTH, 1000):
        inm.add(0, 0, start, message[start:start + 1000])
    done = inm.finish()
    assert done is not None
    assert len(done) == LENGTH
