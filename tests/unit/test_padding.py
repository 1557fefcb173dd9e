"""Length concealment: every scheme, and that nothing but the bucket shows on the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtstack.crypto import padding
from smtstack.crypto.epochs import SessionParams
from smtstack.crypto.keys import demo_keys
from smtstack.errors import ConfigError, LocalError
from smtstack.wire import homa
from tests.pair import Pair, pattern

LENGTHS = st.integers(1, 2_000_000)


@given(LENGTHS)
def test_none_is_the_identity(length):
    assert padding.padding_named("none")(length) == length


@given(LENGTHS)
def test_power_of_two(length):
    padded = padding.padding_named("power-of-two")(length)
    assert padded >= max(16, length)
    assert padded & (padded - 1) == 0
    assert padded == 16 or padded < 2 * length


@pytest.mark.parametrize(("length", "padded"), [(1, 16), (16, 16), (17, 32), (32, 32), (33, 64), (65537, 131072)])
def test_power_of_two_at_its_edges(length, padded):
    assert padding.power_of_two(length) == padded


@given(LENGTHS, st.lists(st.integers(1, 100_000), min_size=1, max_size=5))
def test_buckets_take_the_smallest_that_holds(length, sizes):
    padded = padding.buckets(tuple(sizes))(length)
    fitting = [s for s in sizes if s >= length]
    if fitting:
        assert padded == min(fitting)
    else:
        assert padded % max(sizes) == 0
        assert length <= padded < length + max(sizes)


def test_named_buckets_come_in_any_order():
    pad = padding.padding_named("buckets:1024,256")
    assert [pad(n) for n in (1, 256, 257, 1024, 1025, 2049)] == [256, 256, 1024, 1024, 2048, 3072]


@pytest.mark.parametrize("text", ["", "nothing", "buckets", "buckets:", "buckets:a", "buckets:0", "buckets:-1,5",
                                  "buckets:1,,2", "power_of_two", "None"])
def test_what_is_no_padding(text):
    with pytest.raises(ConfigError, match="buckets"):
        padding.padding_named(text)


def test_no_buckets_at_all():
    with pytest.raises(ConfigError):
        padding.buckets(())


def lengths_on_the_wire(pad: str, sizes: range) -> set[tuple[int, int]]:
    """(frame size, message_length) of every request's packet."""
    params = SessionParams(padding=padding.padding_named(pad))
    pair = Pair(keys=lambda: demo_keys("smt", params))
    for size in sizes:
        pair.request(pattern(size, size))
    pair.run()
    pair.check()
    return {(len(f), int.from_bytes(f[62:66], "big")) for f in pair.frames
            if f[47] == homa.DATA and f[36:38] == b"\x07\xd0"}


def test_padding_hides_lengths_and_no_padding_does_not():
    sizes = range(65, 129, 3)
    assert len(lengths_on_the_wire("power-of-two", sizes)) == 1
    assert len(lengths_on_the_wire("buckets:100,200", sizes)) == 2
    assert len(lengths_on_the_wire("none", sizes)) == len(sizes)  # the detector sees lengths


@pytest.mark.parametrize("size", [1, 16, 17, 1418, 1419, 1420, 8500, 9000, 20_000, 70_000])
def test_padded_messages_arrive_as_they_were(size):
    params = SessionParams(padding=padding.power_of_two)
    pair = Pair(keys=lambda: demo_keys("smt", params))
    # A message that ends in zeros: padding is stripped, data is not.
    data = pattern(size)[:-1] + b"\0"
    pair.request(data)
    pair.run()
    pair.check()
    assert pair.delivered == [data]


def test_padding_beyond_what_a_peer_takes_is_refused():
    params = SessionParams(padding=padding.buckets((10_000_000,)))
    pair = Pair(keys=lambda: demo_keys("smt", params))
    with pytest.raises(LocalError, match="by padding"):
        pair.request(b"x")
    assert pair.client.endpoint.snapshot()["rpcs"] == 0
