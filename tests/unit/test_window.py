"""Decoding within a bound of memory: what is forgotten must not be missed."""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections.abc import Iterator

import pytest

from smtstack.capture import window
from smtstack.capture.decode import Decoder
from smtstack.capture.links import LINK_RAW
from smtstack.capture.nonces import MAX_VALUES, NonceLedger, Pairs
from smtstack.crypto import tls12
from smtstack.crypto.keys import demo_keys, linux_keys
from smtstack.transport.linux_message import SEGMENT_HEADER
from smtstack.wire import homa
from smtstack.wire.ipv4 import IPv4
from tests.unit.test_decode import PROFILES, Collector, decode, is_data, talk

KEYS = linux_keys(bytes(16), bytes(4))


def traffic(count: int) -> Iterator[bytes]:
    """As many requests, from ports that come again."""
    client = linux_keys(bytes.fromhex("8dd230a77a05eb71159129bcbcf64230"), bytes.fromhex("87c635c8"))
    for number in range(1, count + 1):
        data = number.to_bytes(8, "big") * 12
        record = tls12.seal(client, tls12.first_sequence(2 * number),
                            SEGMENT_HEADER.pack(0, len(data), 0, 0, 0) + data)
        body = homa.Data(0x8000 + number % 500, 2000, 2 * number, len(data), len(data)).pack() + record
        yield IPv4(1, 2, homa.PROTO_LINUX, 20 + len(body)).pack() + body


def feed(count: int) -> tuple[int, Decoder]:
    """Bytes in use after a capture of so many messages, and the decoder."""
    decoder = Decoder("linux", demo_keys("linux"))
    for packet in traffic(count):
        decoder.add(LINK_RAW, packet)
    # What earlier tests left in circles may go in one half of a comparison, and not in the other.
    gc.collect()
    return tracemalloc.get_traced_memory()[0], decoder


def test_memory_grows_by_traces_only(monkeypatch):
    monkeypatch.setattr(window, "MAX_KEPT", 1 << 20)
    tracemalloc.start()
    try:
        feed(500)
        few, first = feed(1500)
        assert first.result().messages_complete == 1500
        del first
        many, second = feed(5500)
        assert second.result().messages_complete == second.result().records_ok == 5500
    finally:
        tracemalloc.stop()
    # A record and a message: twice 16 bytes in tables that are three eighths to three quarters full.
    assert (many - few) / 4000 < 2 * 16 / 0.375 + 16


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("seed", range(3))
def test_a_small_window_finds_what_a_large_one_does(monkeypatch, profile, seed):
    said = talk(profile, (1, 64, 1404, 5000, 20_000) * 3, seed=seed, loss=0.1, twice=0.1, late=0.1)
    # Everything again, much later: repetitions of messages that are forgotten.
    frames = [*said.arrived, *said.arrived]
    full = decode(profile, frames).result()
    monkeypatch.setattr(window, "MAX_KEPT", 200_000)
    decoder = decode(profile, frames)
    assert decoder._window._kept <= 200_000
    assert len(decoder._window._traces) > 10
    assert decoder.result() == full


def test_a_nonce_used_again_is_noticed_however_late(monkeypatch):
    monkeypatch.setattr(window, "MAX_KEPT", 100_000)
    first, again = (talk("smt", (64, 5000, 9000), seed=n).sent for n in (1, 2))
    between = talk("smt", (64,) * 200, seed=3, port=40_000).sent
    counts = []
    for frames in ([*first, *again], [*first, *between, *again]):
        decoder = decode("smt", frames)
        counts.append(decoder.result().nonce_reuse)
    assert counts[0] == counts[1] > 0
    # And the same bytes are no second use.
    assert decode("smt", [*first, *between, *first]).result().nonce_reuse == 0


def test_a_record_changed_late_is_bad(monkeypatch):
    monkeypatch.setattr(window, "MAX_KEPT", 100_000)
    said = talk("smt", (64,), seed=1).sent
    between = talk("smt", (64,) * 200, seed=3, port=40_000).sent
    frame = next(f for f in said if is_data(f))
    changed = frame[:-1] + bytes([frame[-1] ^ 1])
    result = decode("smt", [*said, *between, changed]).result()
    assert (result.records_bad, result.messages, result.messages_complete) == (1, 402, 402)


def test_what_is_kept_is_bounded_whatever_comes(monkeypatch):
    monkeypatch.setattr(window, "MAX_KEPT", 50_000)
    rng = random.Random(1)
    decoder = Collector("linux", demo_keys("linux"))
    for _n in range(800):
        # Messages that never end, of any length they like to claim.
        header = homa.Data(rng.randrange(1 << 16), 2000, rng.randrange(1 << 64), rng.randrange(1, 1 << 32), 100,
                           rng.randrange(1 << 32))
        body = header.pack() + rng.randbytes(rng.randrange(1, 1400))
        decoder.add(LINK_RAW, IPv4(1, 2, homa.PROTO_LINUX, 20 + len(body)).pack() + body)
        assert decoder._window._kept <= 50_000
    assert decoder.result().messages == 800


def test_the_table_of_pairs_is_a_multimap():
    rng = random.Random(5)
    pairs, known = Pairs(), dict[int, list[int]]()
    for _n in range(8000):
        # Few names, and some that share shard and slot.
        name, value = rng.choice((rng.randrange(1 << 64), 64 * rng.randrange(40))), rng.randrange(1 << 64)
        pairs.add(name, value)
        known.setdefault(name or 1, []).append(value)
    assert len(pairs) == 8000
    for name, values in known.items():
        assert sorted(pairs.values(name)) == sorted(values)
    assert pairs.values(12_345_678_901) == []


def test_a_nonce_used_without_end_costs_no_more():
    ledger = NonceLedger()
    for n in range(1000):
        assert ledger.observe(KEYS, 5, b"", n.to_bytes(4, "big")) == (n == 0)
    assert ledger.reuse == 999
    assert len(ledger._seen) == MAX_VALUES
