"""The device model, at the level of descriptors and frames: the paper's Fig. 2, TSO, rings, steering, faults."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtstack.crypto import tls12, tls13
from smtstack.crypto.aead import AES_128_GCM, DirectionKeys
from smtstack.errors import AuthError, ConfigError, LocalError
from smtstack.nic import steering
from smtstack.nic.context import TLS12, TLS13
from smtstack.nic.descriptors import Resync, Route, Send
from smtstack.nic.device import FEATURES, NicConfig, SmartNic
from smtstack.nic.impairments import ImpairmentRates, Impairments
from smtstack.wire import frame as wire_frame
from smtstack.wire import homa
from smtstack.wire.ethernet import Ethernet
from tests.pair import CLIENT, MACS, SERVER, Pair, pattern

KEYS = DirectionKeys(AES_128_GCM, bytes(range(16)), bytes(range(50, 62)))
ROUTE = Route(Ethernet(MACS[SERVER], MACS[CLIENT]), CLIENT, SERVER, homa.PROTO_HOMA)
VERSIONS = pytest.mark.parametrize("version", [TLS13, TLS12], ids=["tls13", "tls12"])


def header(sender_id: int = 4) -> bytes:
    return homa.Data(1, 2, sender_id, 100, 100, segment_size=1440).pack()


# -- Fig. 2: who numbers the records -----------------------------------------------------------------------


def segment(version: int, number: int, context: int) -> Send:
    """What a driver posts for record ``number``: framed, in clear."""
    plain = b"contents of record %d" % number
    framed = tls13.frame(plain, True) if version == TLS13 else tls12.frame(number, plain)
    return Send(ROUTE, 0, header(number), framed, 1440, context)


def opened(version: int, frames: list[bytes]) -> dict[int, int | None]:
    """By record, as posted: the number of 0 to 99 under which a receiver can open what left the device."""
    out: dict[int, int | None] = {}
    for frame in frames:
        meant, record = int.from_bytes(frame[54:62], "big"), frame[wire_frame.PAYLOAD_AT:]
        out[meant] = None
        for number in range(100):
            try:
                data = (tls13.open_untrusted(KEYS, number, record)[1] if version == TLS13
                        else tls12.open_untrusted(KEYS, number, record))
            except AuthError:
                continue
            assert data == b"contents of record %d" % meant
            out[meant] = number
    return out


def one_queue(version: int, *posts: int | str) -> dict[int, int | None]:
    """Post records (numbers) and resyncs ("=number") to one queue, for a context that stands at 4."""
    nic = SmartNic()
    context = nic.create_context(version, KEYS.key, KEYS.iv, 4)
    for post in posts:
        assert nic.post(0, segment(version, post, context) if isinstance(post, int)
                        else Resync(context, int(post[1:])))
    return opened(version, nic.process())


@VERSIONS
def test_fig2_in_sequence(version):
    assert one_queue(version, 4, 5, 6) == {4: 4, 5: 5, 6: 6}


@VERSIONS
def test_fig2_out_of_sequence_without_resync_is_corrupt(version):
    # The device seals 7 as 5. In TLS 1.2 the explicit nonce on the wire says 7, to no avail.
    assert one_queue(version, 4, 7) == {4: 4, 7: 5}


@VERSIONS
def test_fig2_out_of_sequence_with_resync(version):
    assert one_queue(version, 4, "=7", 7, 8, "=5", 5) == {4: 4, 7: 7, 8: 8, 5: 5}


def two_queues(version: int, order: list[int], shared: bool) -> dict[int, int | None]:
    """Record 10 goes to queue 0, record 50 to queue 1, each after its resync; served in ``order``."""
    script = iter(order)
    nic = SmartNic(NicConfig(queues=2), lambda _ready: next(script))
    first = nic.create_context(version, KEYS.key, KEYS.iv, 0)
    second = first if shared else nic.create_context(version, KEYS.key, KEYS.iv, 0)
    for queue, context, number in ((0, first, 10), (1, second, 50)):
        nic.post(queue, Resync(context, number))
        nic.post(queue, segment(version, number, context))
    frames = nic.process()
    assert (nic.counters.tx_tls_ooo, nic.counters.tx_tls_encrypted_packets) == (2, 2)
    return opened(version, frames)


@VERSIONS
def test_fig2_a_context_shared_by_two_queues(version):
    assert two_queues(version, [0, 1, 0, 1], shared=True) == {10: 50, 50: 51}  # both corrupt
    assert two_queues(version, [0, 1, 1, 0], shared=True) == {50: 50, 10: 51}  # one
    assert two_queues(version, [0, 0, 1, 1], shared=True) == {10: 10, 50: 50}  # luck


@VERSIONS
@given(order=st.permutations([0, 0, 1, 1]))
def test_fig2_a_context_per_queue(version, order):
    assert two_queues(version, order, shared=False) == {10: 10, 50: 50}


def test_contexts_live_in_bounded_memory():
    nic = SmartNic(NicConfig(max_contexts=2))
    one, two, three = (nic.create_context(TLS13, KEYS.key, KEYS.iv, 0) for _ in range(3))
    assert 0 not in (one, two)
    assert one != two
    assert three == 0
    nic.destroy_context(one)
    nic.destroy_context(one)
    assert nic.create_context(TLS13, KEYS.key, KEYS.iv, 0) not in (0, one, two)
    assert (nic.counters.tx_tls_ctx, nic.counters.tx_tls_del) == (3, 1)
    nic.destroy_context(two)
    with pytest.raises(LocalError, match="0x0302"):
        nic.create_context(0x0302, KEYS.key, KEYS.iv, 0)


@VERSIONS
def test_what_is_not_whole_records_is_dropped_not_sent_in_clear(version):
    nic = SmartNic()
    context = nic.create_context(version, KEYS.key, KEYS.iv, 4)
    whole = segment(version, 4, context).payload
    broken = [whole[:-1], whole + b"x", whole + whole[:3], b"plain text", whole[:1], b"\x16" + whole[1:],
              whole[:3] + b"\0\1" + whole[5:], whole + whole[:20]]
    for payload in broken:
        nic.post(0, Send(ROUTE, 0, header(), payload, 1440, context))
    assert nic.process() == []
    assert (nic.counters.tx_tls_drop_bypass_req, nic.counters.tx_dropped) == (len(broken), len(broken))
    nic.post(0, Resync(context, 4))
    nic.post(0, segment(version, 4, context))
    assert opened(version, nic.process()) == {4: 4}


@VERSIONS
def test_a_segment_whose_context_is_gone_is_dropped(version):
    nic = SmartNic()
    context = nic.create_context(version, KEYS.key, KEYS.iv, 4)
    nic.post(0, segment(version, 4, context))
    nic.post(0, Resync(context, 5))
    nic.destroy_context(context)
    assert nic.process() == []
    assert (nic.counters.tx_tls_drop_bypass_req, nic.counters.tx_packets, nic.counters.tx_tls_ooo) == (1, 0, 0)


# -- queues ------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(0, 2**32), st.integers(0, 7))
def test_order_holds_within_a_queue_whoever_arbitrates(queues, seed, budget):
    rng = Random(seed)
    nic = SmartNic(NicConfig(queues=4), rng.choice if seed else None)
    for number, queue in enumerate(queues):
        assert nic.post(queue, Send(ROUTE, 0, header(), b"%d:%d" % (queue, number), 0))
    out: list[bytes] = []
    while frames := nic.process(budget):
        assert not budget or len(frames) <= budget
        out += frames
    got = [tuple(map(int, f[wire_frame.PAYLOAD_AT:].split(b":"))) for f in out]
    assert sorted(n for _q, n in got) == list(range(len(queues)))
    for queue in range(4):
        numbers = [n for q, n in got if q == queue]
        assert numbers == sorted(numbers)


def test_round_robin_is_fair():
    nic = SmartNic(NicConfig(queues=3))
    for queue in (0, 0, 0, 2, 2, 1):
        nic.post(queue, Send(ROUTE, 0, header(), b"%d" % queue, 0))
    assert b"".join(f[wire_frame.PAYLOAD_AT:] for f in nic.process()) == b"012020"


def test_a_full_ring_refuses():
    nic = SmartNic(NicConfig(queues=2, ring_size=3))
    assert [nic.post(0, Resync(1, 1)) for _ in range(4)] == [True, True, True, False]
    assert (nic.space(0), nic.space(1), nic.counters.tx_queue_stopped) == (0, 3, 1)
    nic.process(1)
    assert nic.post(0, Resync(1, 1))


@pytest.mark.parametrize("config", [NicConfig(queues=0), NicConfig(rx_queues=0), NicConfig(ring_size=0),
                                    NicConfig(rx_ring_size=0), NicConfig(steering="luck")])
def test_absurd_devices(config):
    with pytest.raises(ConfigError):
        SmartNic(config)


def test_features_by_their_ethtool_names():
    nic = SmartNic()
    assert set(nic.features()) == {"tso", "tls-hw-tx-offload", "tso-seq", "rx-checksum",
                                   "gso"} == set(FEATURES)
    for name in FEATURES:
        for on in (True, False, True):
            nic.set_feature(name, on)
            assert nic.features()[name] is on
    for wrong in ("tls_hw_tx_offload", "queues", "", "config"):
        with pytest.raises(ConfigError, match="tls-hw-tx-offload"):
            nic.set_feature(wrong, True)


# -- TSO ---------------------------------------------------------------------------------------------------


def cut(size: int, mss: int, ip_id: int = 0, tso_seq: bool = False) -> list[bytes]:
    nic = SmartNic(NicConfig(tso_seq=tso_seq))
    nic.post(0, Send(ROUTE, 0xA0, header(), pattern(size), mss, 0, ip_id))
    frames = nic.process()
    assert nic.counters.tx_packets == len(frames)
    assert nic.counters.tx_bytes == sum(map(len, frames))
    assert nic.counters.tx_tso_packets == (len(frames) > 1)
    return frames


@given(st.integers(1, 9000), st.integers(1, 1500), st.integers(0, 0xFFFF), st.booleans())
def test_tso_copies_the_header_and_counts(size, mss, ip_id, tso_seq):
    frames = cut(size, mss, ip_id, tso_seq)
    payloads = []
    for number, frame in enumerate(frames):
        ip, packet, payload = wire_frame.parse_untrusted(frame, homa.SMT)  # checks lengths and IP checksum
        assert ip.identification == (ip_id + number) & 0xFFFF
        assert (ip.tos, ip.total_length) == (0xA0, len(frame) - 14)
        assert isinstance(packet, homa.Data)
        offset = number * mss if tso_seq else 0
        # Whether a segment of one packet is marked is the device's business: its offset is 0 anyway.
        placed = packet.placed if len(frames) == 1 else tso_seq
        assert packet == homa.Data(1, 2, 4, 100, 100, segment_size=1440, packet_offset=offset, placed=placed)
        payloads.append(payload)
    assert b"".join(payloads) == pattern(size)
    assert all(len(p) == mss for p in payloads[:-1])
    assert 1 <= len(payloads[-1]) <= mss


def test_tso_seq_keeps_the_drivers_flags():
    nic = SmartNic(NicConfig(tso_seq=True))
    nic.post(0, Send(ROUTE, 0, homa.Data(1, 2, 4, 100, 100, incast=True).pack(), pattern(3000), 1440))
    flags = [(p.placed, p.incast) for f in nic.process()
             if isinstance(p := wire_frame.parse_untrusted(f, homa.SMT)[1], homa.Data)]
    assert flags == [(True, True)] * 3


@pytest.mark.parametrize(("size", "mss", "count"), [(1440, 1440, 1), (1441, 1440, 2), (2880, 1440, 2),
                                                   (9000, 0, 1)])
def test_tso_at_its_edges(size, mss, count):
    assert len(cut(size, mss)) == count


# -- receive -----------------------------------------------------------------------------------------------


def frames_of_messages(count: int) -> list[bytes]:
    """The packets of ``count`` requests of three packets each."""
    pair = Pair()
    for number in range(count):
        pair.request(pattern(4000, number))
    pair.run()
    pair.check()
    return [f for f in pair.frames if f[47] == homa.DATA and f[30:34] == SERVER.to_bytes(4, "big")]


def shares_of(frames: list[bytes], steer: steering.Steering, queues: int) -> list[float]:
    """What each queue gets, against an even share."""
    count = Counter(steer(f, queues) for f in frames)
    return [count[q] * queues / len(frames) for q in range(queues)]


def test_steering_by_flow_keeps_a_flow_together():
    assert len({steering.by_flow(f, 8) for f in frames_of_messages(10)}) == 1


@pytest.mark.parametrize("queues", [2, 3, 4, 8])
def test_steering_by_flow_spreads_flows(queues):
    frame = frames_of_messages(1)[0]
    ports = [frame[:34] + (0x8000 + n).to_bytes(2, "big") + frame[36:] for n in range(4000)]
    assert all(0.8 < share < 1.2 for share in shares_of(ports, steering.by_flow, queues))


@pytest.mark.parametrize("queues", [2, 3, 4, 8])
@pytest.mark.parametrize("role", [0, 1])
def test_steering_by_message_spreads_messages(queues, role):
    frame = frames_of_messages(1)[0]
    frames = [frame[:54] + (2 * n + role).to_bytes(8, "big") + frame[62:] for n in range(1, 4000)]
    assert all(0.8 < share < 1.2 for share in shares_of(frames, steering.by_message, queues))


def test_packets_of_a_message_go_to_one_queue():
    nic = SmartNic(NicConfig(rx_queues=4, steering="message"))
    frames = frames_of_messages(40)
    for frame in frames:
        nic.receive(frame)
    where: dict[bytes, set[int]] = {}
    for queue in range(4):
        while (got := nic.take(queue)) is not None:
            where.setdefault(got[54:62], set()).add(queue)
    assert len(where) == 40
    assert len(frames) == 120
    assert all(len(queues) == 1 for queues in where.values())
    assert len(set.union(*where.values())) == 4
    nic.receive(frames[0][:50])  # too short to have an id, no reason to fall over


def test_frames_nobody_should_see():
    nic = SmartNic(NicConfig(rx_ring_size=2))
    good = frames_of_messages(1)[0]
    for bit in range(14 * 8, 34 * 8):
        wrong = bytearray(good)
        wrong[bit >> 3] ^= 1 << (bit & 7)
        nic.receive(bytes(wrong))
    assert (nic.counters.rx_csum_bad, nic.take()) == (160, None)
    for wrong_type in (good[:12] + b"\x86\xdd" + good[14:], good[:33], b""):
        nic.receive(wrong_type)
    assert (nic.counters.rx_errors, nic.take()) == (3, None)
    for _ in range(5):
        nic.receive(good)
    assert [nic.take(), nic.take(), nic.take()] == [good, good, None]
    assert (nic.counters.rx_dropped, nic.counters.rx_packets) == (3, 168)
    nic.set_feature("rx-checksum", False)
    nic.receive(good[:24] + b"??" + good[26:])
    assert nic.take() is not None


# -- faults ------------------------------------------------------------------------------------------------

FRAMES = [bytes([n & 0xFF, n >> 8]) * 30 for n in range(8000)]


def suffer(rates: ImpairmentRates, seed: int = 1) -> tuple[Impairments, list[list[tuple[int, bytes]]]]:
    faults = Impairments(rates, seed)
    return faults, [faults.apply(f, 1000) for f in FRAMES]


def test_rates_are_what_was_asked_for():
    rates = ImpairmentRates(drop=0.1, duplicate=0.05, reorder=0.2, corrupt=0.02, delay_ns=500, reorder_ns=77)
    faults, out = suffer(rates)
    n = len(FRAMES)
    assert faults.dropped == sum(not o for o in out)
    assert faults.duplicated == sum(len(o) == 2 for o in out)
    arrived = [(at, f, sent) for o, sent in zip(out, FRAMES, strict=True) for at, f in o]
    assert {at for at, _f, _s in arrived} == {1500, 1577}
    assert faults.reordered == sum(at == 1577 for at, _f, _s in arrived)
    assert faults.corrupted == sum(f != s for _at, f, s in arrived)
    for frame, sent in ((f, s) for _at, f, s in arrived if f != s):
        changed = int.from_bytes(frame, "big") ^ int.from_bytes(sent, "big")
        assert changed.bit_count() == 1
        assert len(frame) == len(sent)
    for count, share, of in ((faults.dropped, 0.1, n), (faults.duplicated, 0.05, 0.9 * n),
                             (faults.reordered, 0.2, len(arrived)), (faults.corrupted, 0.02, len(arrived))):
        assert abs(count - share * of) < 5 * (of * share * (1 - share)) ** 0.5


def test_same_seed_same_faults():
    rates = ImpairmentRates(drop=0.3, duplicate=0.3, reorder=0.3, corrupt=0.3, jitter_ns=1000)
    assert suffer(rates, 5)[1] == suffer(rates, 5)[1] != suffer(rates, 6)[1]
    delays = {at for o in suffer(ImpairmentRates(delay_ns=10, jitter_ns=9))[1] for at, _f in o}
    assert delays == set(range(1010, 1020))


def test_no_faults_by_default_and_all_by_choice():
    assert suffer(ImpairmentRates())[1] == [[(1000, f)] for f in FRAMES]
    assert suffer(ImpairmentRates(drop=1))[1] == [[]] * len(FRAMES)
    assert all(len(o) == 2 for o in suffer(ImpairmentRates(duplicate=1))[1])


def test_a_script_decides_alone():
    faults = Impairments(ImpairmentRates(drop=1, delay_ns=5),
                         script=lambda f, n: {0: [f], 1: [], 2: [f, b"more"]}[n])
    assert [faults.apply(f, 10) for f in (b"a", b"b", b"c")] == [[(15, b"a")], [], [(15, b"c"), (15, b"more")]]


@pytest.mark.parametrize("wrong", [{"drop": -0.1}, {"duplicate": 1.1}, {"reorder": float("nan")}, {"corrupt": 100},
                                   {"delay_ns": -1}, {"jitter_ns": -1}, {"reorder_ns": -5}])
def test_absurd_rates(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong)) if "ns" not in next(iter(wrong)) else "nanoseconds"):
        ImpairmentRates(**wrong)
