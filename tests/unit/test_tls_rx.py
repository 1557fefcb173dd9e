"""TLS receive offload: a packet is passed up decrypted or as it came, and the device gets back into step."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtstack.crypto.stream_gcm import TLS12, TLS13
from smtstack.nic.marks import DECRYPTED, ENCRYPTED, MarkReader, MarkWriter, mark_bytes
from smtstack.nic.rx_resync import RxResync
from smtstack.nic.tls_flow import ASYNC, EVERY, HINT, RX_RESYNCS, SCAN
from smtstack.nic.tls_rx import SEARCHING, START, TRACKING, TlsRxContext
from tests.tls_rig import ALL_KINDS, FLOW, KINDS, Receiver, Stream, make_keys, make_nic, tcp_frame, text


def make_stream(records: int, size: int = 3000, version: int = TLS13, start: int = 2**32 - 9000) -> Stream:
    """Records of ``size`` bytes, all in all."""
    stream = Stream(make_keys(version), start, number=7)
    for n in range(records):
        stream.push(text(size - stream.keys.overhead, n))
    return stream


def context_of(receiver: Receiver) -> TlsRxContext:
    context = receiver.nic._rx.flows[FLOW].context
    assert context is not None
    return context


def expected(stream: Stream) -> list[bytes]:
    ends = [*stream.starts[1:], len(stream.plain)]
    inner = 1 if stream.keys.version == TLS13 else 0
    return [bytes(stream.plain[start + stream.keys.header_len:end - 16 - inner])
            for start, end in zip(stream.starts, ends, strict=True)]


def pieces(stream: Stream, step: int, first: int = 0) -> list[tuple[int, int]]:
    return [(at, min(step, len(stream.plain) - at)) for at in range(first, len(stream.plain), step)]


# -- in order -----------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.sampled_from(ALL_KINDS), st.lists(st.integers(1, 3000), min_size=1, max_size=6),
       st.randoms(use_true_random=False), st.integers(0, 2**32 - 1))
def test_any_cut_of_a_stream_in_order_is_decrypted(kind, sizes, rng, start):
    stream = Stream(make_keys(*kind), start)
    for n, size in enumerate(sizes):
        stream.push(text(size, n))
    receiver = Receiver(stream, SCAN, make_nic(ciphers=(kind[1],)))
    at = 0
    while at < len(stream.plain):
        size = min(rng.choice((1, 3, 16, 500, 1448)), len(stream.plain) - at)
        assert receiver.take(at, size)
        at += size
        if rng.random() < 0.3:
            receiver.read()
    receiver.read()
    assert receiver.how == ["device"] * len(sizes)
    assert receiver.delivered == expected(stream)
    assert receiver.nic.counters.rx_tls_decrypted_bytes == len(stream.plain)
    assert receiver.nic.counters.rx_tls_err == 0


# -- reordered and lost: the two cases of the kernel's document ---------------------------------------------


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_a_segment_without_a_header_is_late(version):
    """Records of 3000 in packets of 1000: 1000 to 2000 comes after 2000 to 3000. In step all the time."""
    stream = make_stream(4, version=version)
    receiver = Receiver(stream, SCAN)
    assert receiver.take(0, 1000)
    assert not receiver.take(2000, 1000)
    assert not receiver.take(1000, 1000)
    for at, size in pieces(stream, 1000, 3000):
        assert receiver.take(at, size)
    receiver.read()
    assert receiver.how == ["mixed", "device", "device", "device"]
    assert receiver.delivered == expected(stream)
    assert receiver.nic.counters.rx_tls_resync_req_pkt == 0


def test_a_gap_up_to_the_middle_of_the_next_record_but_for_its_header():
    """Packets of 700: 700 to 1400 is lost; the packet with the next header is not decrypted, but what follows."""
    stream = make_stream(4, 2000)
    receiver = Receiver(stream, SCAN)
    got = {at: receiver.take(at, size) for at, size in pieces(stream, 700) if at != 700}
    # 1400 to 2100 has the header at 2000: record 1 begins in it, encrypted. Then all is plain again.
    assert [at for at, plain in got.items() if not plain] == [1400]
    receiver.take(700, 700)
    receiver.read()
    assert receiver.how == ["mixed", "mixed", "device", "device"]
    assert receiver.delivered == expected(stream)


def test_a_header_is_late():
    """2100 to 2800 comes late, and has no header but is behind one... then 1400 to 2100, which has, does."""
    stream = make_stream(6, 2000)
    receiver = Receiver(stream, SCAN)
    order = [0, 700, 2100, 1400, 2800, 3500, 4200]
    got = [receiver.take(at, 700) for at in order]
    # The header at 2000 was missing when 2100 came, and is there with 1400. The next, at 4000, is seen in time.
    assert got == [True, True, False, False, False, False, True]
    assert context_of(receiver).tracker == TRACKING
    assert receiver.nic.counters.rx_tls_resync_req_pkt == 0
    for at, size in pieces(stream, 700, 4900):
        assert receiver.take(at, size)
    receiver.read()
    assert receiver.delivered == expected(stream)
    assert receiver.how == ["mixed", "software", "mixed", "device", "device", "device"]


@pytest.mark.parametrize("version", [TLS12, TLS13])
@pytest.mark.parametrize("resync", [SCAN, ASYNC])
def test_a_header_is_lost(version, resync):
    """Out of step: searches, finds two headers, asks, is answered, decrypts again. By hand, packets of 1000."""
    stream = make_stream(30, 3000, version)
    receiver = Receiver(stream, resync)
    context = context_of(receiver)
    counters = receiver.nic.counters
    assert receiver.take(0, 1000)
    # 1000 to 4000 is lost, with the header at 3000. It could only be late until a whole record has gone by.
    for at in range(4000, 19_000, 1000):
        assert not receiver.take(at, 1000)
    assert (context.tracker, context.seq) == (TRACKING, (stream.start + 3000) % 2**32)
    assert not receiver.take(19_000, 1000)
    assert context.tracker == SEARCHING
    # The header at 21,000 is a candidate, that at 24,000 confirms it; the device asks about that.
    for at in range(20_000, 24_000, 1000):
        assert not receiver.take(at, 1000)
    assert (context.tracker, counters.rx_tls_resync_req_pkt) == (SEARCHING, 0)
    assert not receiver.take(24_000, 1000)
    assert (context.tracker, context.authenticates, counters.rx_tls_resync_req_pkt) == (TRACKING, False, 1)
    assert context.base == (stream.start + 24_000) % 2**32
    for at in range(25_000, 30_000, 1000):
        assert not receiver.take(at, 1000)
    # The application had nothing to look at, as TCP waits for what is lost. Now it has.
    receiver.take(1000, 3000)
    receiver.read()
    assert receiver.resync.resyncs == 1
    # The answer is there; the record under way is not decrypted any more (30,000 is a header: it is).
    got = [receiver.take(at, size) for at, size in pieces(stream, 1000, 30_000)]
    assert all(got)
    receiver.read()
    assert receiver.delivered == expected(stream)
    assert receiver.how == ["mixed"] + ["software"] * 9 + ["device"] * 20
    assert (counters.rx_tls_resync_res_ok, counters.rx_tls_resync_res_skip) == (1, 0)
    if resync == ASYNC:
        assert (counters.rx_tls_resync_req_start, counters.rx_tls_resync_req_end,
                counters.rx_tls_resync_req_skip) == (1, 1, 0)
    else:
        assert counters.rx_tls_resync_req_start == 0


def test_an_asynchronous_resync_that_ends_without_a_place():
    """Between the question and its end the device loses the records again."""
    stream = make_stream(40, 3000)
    receiver = Receiver(stream, ASYNC)
    counters = receiver.nic.counters
    receiver.take(0, 1000)
    for at in range(4000, 25_000, 1000):
        receiver.take(at, 1000)
    assert (counters.rx_tls_resync_req_start, counters.rx_tls_resync_req_end) == (1, 0)
    # Garbage where a header belongs, in one packet with much else.
    receiver.take(25_000, 2000)
    assert (counters.rx_tls_resync_req_end, counters.rx_tls_resync_req_skip) == (1, 0)
    context = context_of(receiver)
    context.answer(context.base, 7 + 8)
    assert context.authenticates
    receiver.take(27_000, 3000, bytes(3000))
    assert context.tracker == SEARCHING
    for at in range(30_000, 37_000, 1000):
        receiver.take(at, 1000)
    assert counters.rx_tls_resync_req_start == 2
    receiver.take(37_000, 2000)
    receiver.take(39_000, 3000, bytes(3000))
    assert counters.rx_tls_resync_req_end == 2
    for at in range(42_000, 46_000, 1000):
        receiver.take(at, 1000)
    assert counters.rx_tls_resync_req_start == 3
    receiver.take(46_000, 5000, bytes(5000))
    assert counters.rx_tls_resync_req_skip == 1


def test_a_question_about_a_record_that_has_gone_by():
    """Asynchronous: the application remembers what began in the packet, 13 records at most."""
    buffer = bytearray(mark_bytes(8))
    writer = MarkWriter(buffer)
    resync = RxResync(MarkReader([buffer], 0), ASYNC)
    resync.record(900, 100, 4, ENCRYPTED)
    writer.ask_later(1000, 1000)
    for n in range(20):
        resync.record(1000 + 50 * n, 50, 5 + n, ENCRYPTED)
    assert writer.answer() is None
    writer.ask(1000 + 50 * 12)
    resync.record(2000, 50, 25, ENCRYPTED)
    assert writer.answer() == (1600, 17)
    # What came behind these, or before the packet, is not remembered; what is still to come is answered then.
    for place in (1650, 900):
        writer.ask(place)
        resync.record(2050, 50, 26, ENCRYPTED)
        assert writer.answer() is None
    writer.ask(2150)
    resync.record(2100, 50, 27, ENCRYPTED)
    assert writer.answer() is None
    resync.record(2150, 50, 28, ENCRYPTED)
    assert writer.answer() == (2150, 28)
    assert resync.resyncs == 2
    # A question that comes after 65,535 records finds nothing any more.
    writer.ask_later(5000, 100)
    for n in range(65_536):
        resync.record(5000 + n % 3, 50, n, ENCRYPTED)
    writer.ask(5000)
    resync.record(6000, 50, 9, ENCRYPTED)
    assert writer.answer() is None


def test_hints():
    """The application reads much at once: one hint, about the first place that the device has not passed."""
    stream = make_stream(30, 1000)
    receiver = Receiver(stream, HINT)
    context = context_of(receiver)
    assert receiver.take(0, 500)
    receiver.put(500, bytes(stream.sealed[500:18_000]))
    # Lost for the device: all from 500 to 18,000, which came another way.
    for at, size in ((18_000, 1000), (19_000, 700)):
        assert not receiver.take(at, size)
    assert context.tracker == START
    # Of no use: it has passed that.
    receiver.marks.answer(0, (stream.start + 18_000) % 2**32, 25)
    assert not receiver.take(19_700, 100)
    receiver.read()
    assert receiver.resync.resyncs == 1
    # The header of record 19 was there, so that told of is record 20.
    assert not receiver.take(19_800, 200)
    assert context.in_step
    for at, size in pieces(stream, 1000, 20_000):
        assert receiver.take(at, size)
    receiver.read()
    assert receiver.how == ["mixed"] + ["software"] * 19 + ["device"] * 10
    assert (receiver.nic.counters.rx_tls_resync_res_ok, receiver.nic.counters.rx_tls_resync_res_skip) == (1, 1)


def test_hints_that_are_in_time():
    stream = make_stream(30, 1000)
    receiver = Receiver(stream, HINT)
    got = []
    for n in range(30):
        if n == 2:
            # Not to the device.
            receiver.put(2000, bytes(stream.sealed[2000:3000]))
        else:
            got.append(receiver.take(n * 1000, 1000))
        receiver.read()
    # Records 2, 3 and 4 come encrypted, then there is a hint.
    assert got == [True] * 2 + [False] * 2 + [True] * 25
    assert receiver.how == ["device"] * 2 + ["software"] * 3 + ["device"] * 25
    assert receiver.nic.counters.rx_tls_resync_res_ok == 1
    assert receiver.delivered == expected(stream)


def test_hints_after_every_record():
    """FreeBSD's way: the first that is in time counts, and the first record decrypted after it confirms it."""
    stream = make_stream(30, 1000)
    receiver = Receiver(stream, EVERY)
    for n in range(30):
        if n == 2:
            receiver.put(2000, bytes(stream.sealed[2000:3000]))
        else:
            receiver.take(n * 1000, 1000)
        receiver.read()
    # After record 2 the device does not know yet that it misses something; after record 3 it does.
    assert receiver.how == ["device"] * 2 + ["software"] * 2 + ["device"] * 26
    assert receiver.resync.resyncs == 2
    assert receiver.resync.confirmed == 1
    assert receiver.delivered == expected(stream)


def test_the_schedule_of_hints():
    """More and more seldom, and anew after a record that came decrypted."""
    buffer = bytearray(mark_bytes(8))
    writer = MarkWriter(buffer)
    resync = RxResync(MarkReader([buffer], 0), HINT)
    told = []
    for number in range(1, 600):
        resync.record(number * 100, 100, number, ENCRYPTED)
        if (answer := writer.answer()) is not None:
            told.append(number)
            assert answer == (number * 100 + 100, number + 1)
    assert told == [3, 5, 9, 17, 33, 65, 129, 257, 385, 513]
    resync.record(0, 100, 600, DECRYPTED)
    for number in (601, 602, 603):
        resync.record(0, 100, number, ENCRYPTED)
    assert writer.answer() == (100, 604)


# -- what is wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_a_bad_tag_is_delivered_as_it_came_and_told_once(version):
    stream = make_stream(8, 2000, version)
    stream.sealed[3999] ^= 1
    receiver = Receiver(stream, SCAN)
    got = {}
    for at, size in pieces(stream, 1000):
        got[at] = receiver.take(at, size)
        receiver.read()
    # The packet with the tag comes as it was. The device is not sure of its count, and asks at the next record.
    assert not got[3000]
    assert receiver.bad == [8]
    assert receiver.nic.counters.rx_tls_err == 1
    assert receiver.delivered == [d for n, d in enumerate(expected(stream)) if n != 1]
    assert receiver.how == ["device", "mixed", "software"] + ["device"] * 5
    assert receiver.nic.counters.rx_tls_resync_res_ok == 1


def test_a_forged_packet_is_never_plaintext():
    """In the place of a genuine one, with the right checksum: the tag is wrong, and it is the kernel's copy."""
    stream = make_stream(4, 2000)
    receiver = Receiver(stream, SCAN)
    receiver.take(0, 1000)
    receiver.take(1000, 500, b"forged" * 90 + b"......"[:500])
    receiver.take(1500, 500)
    receiver.read()
    assert receiver.bad == [7]
    assert receiver.delivered == []


def test_a_duplicate_of_what_was_decrypted_is_ambiguous():
    """A spurious retransmission: it passes as it came, the kernel keeps the first; the tag says which it was."""
    stream = make_stream(3, 3000)
    receiver = Receiver(stream, SCAN)
    for at, size in pieces(stream, 1000):
        assert receiver.take(at, size)
        if at == 4000:
            assert not receiver.take(3000, 1000)
    receiver.read()
    assert receiver.how == ["device", "mixed", "device"]
    assert receiver.delivered == expected(stream)
    # The other way round: the kernel had no room for the first.
    receiver = Receiver(stream, SCAN)
    for at, size in pieces(stream, 1000):
        receiver.take(at, size)
        if at == 4000:
            receiver.lose(4000, 1000)
            receiver.take(4000, 1000)
    receiver.read()
    assert receiver.delivered == expected(stream)


def test_a_bad_checksum_is_not_looked_at():
    stream = make_stream(2, 2000)
    receiver = Receiver(stream, SCAN)
    good = tcp_frame(stream.start, bytes(stream.sealed[:1000]))
    bad = good[:-1] + bytes((good[-1] ^ 1,))
    assert receiver.nic.receive(bad) == bad
    assert context_of(receiver).seq == stream.start
    assert receiver.take(0, 1000)


def test_a_checksum_that_is_not_there_any_more():
    """Packets that the port has put together: it says that their checksums were right, and nobody needs one."""
    stream = make_stream(3, 2000)
    receiver = Receiver(stream, SCAN)
    frame = bytearray(tcp_frame(stream.start, bytes(stream.sealed[:6000])))
    frame[50:52] = b"\x12\x34"
    assert receiver.nic.receive(bytes(frame)) == frame
    up = receiver.nic.receive(bytes(frame), needs_csum=True)
    assert up == bytes(frame[:54]) + receiver.as_opened
    assert receiver.nic.counters.rx_tls_decrypted_bytes == 6000


@pytest.mark.parametrize("kind", KINDS)
def test_false_headers(kind):
    """Planted where a device searches: one alone is not believed, two are asked about, and nobody says yes."""
    stream = Stream(make_keys(*kind), 5000)
    for n in range(30):
        stream.push(text(2000, n))
    receiver = Receiver(stream, SCAN)
    context = context_of(receiver)
    receiver.take(0, 500)
    at = 3000
    while context.tracker != SEARCHING:
        receiver.take(at, 500)
        at += 500
    fake = b"\x17\x03\x03\x00\xc8"
    alone = bytearray(bytes(stream.sealed[at:at + 500]))
    alone[100:105] = fake
    receiver.take(at, 500, bytes(alone))
    assert context.tracker == SEARCHING
    pair = bytearray(bytes(stream.sealed[at + 500:at + 1000]))
    pair[100:105] = pair[305:310] = fake
    receiver.take(at + 500, 500, bytes(pair))
    assert context.tracker == TRACKING
    assert not context.authenticates
    asked = (stream.start + at + 500 + 305) % 2**32
    assert receiver.marks.questions() == [(0, asked)]
    # Where the next should be there is none: it searches on, and finds the real ones.
    for at_, size in pieces(stream, 500, at + 1000):
        receiver.take(at_, size)
    assert context.tracker == TRACKING
    (_which, place), = receiver.marks.questions()
    assert (place - stream.start) % 2**32 in stream.starts
    assert receiver.nic.counters.rx_tls_decrypted_packets == 1


def test_a_context_that_comes_later_has_to_find_records():
    stream = make_stream(12, 2000)
    receiver = Receiver(stream, SCAN, context=False)
    for at in range(0, 6000, 1000):
        assert not receiver.take(at, 1000)
        receiver.read()
    assert receiver.nic.contexts() == 0
    assert receiver.nic.add_flow(receiver.flow)
    for at, size in pieces(stream, 1000, 6000):
        receiver.take(at, size)
        receiver.read()
    assert receiver.delivered == expected(stream)
    assert receiver.how[-4:] == ["device"] * 4
    receiver.nic.reset()
    assert (receiver.nic.counters.rx_tls_ctx, receiver.nic.counters.rx_tls_del) == (1, 1)
    assert receiver.nic.flows() == 1
    receiver.nic.remove_flow(receiver.flow)
    assert receiver.nic.flows() == 0


def test_answers_that_come_too_late_are_skipped():
    stream = make_stream(10, 2000)
    receiver = Receiver(stream, SCAN)
    stream.sealed[1999] ^= 1
    receiver.take(0, 2000)
    receiver.take(2000, 1000)
    context = context_of(receiver)
    assert not context.authenticates
    receiver.marks.answer(0, 1, 77)
    receiver.take(3000, 1000)
    assert receiver.nic.counters.rx_tls_resync_res_skip == 1
    assert not context.authenticates


def test_no_room_for_marks_is_no_plaintext():
    """The application does not read: when the log is full, packets come as they are, whatever could be done."""
    stream = make_stream(30, 1000)
    receiver = Receiver(stream, SCAN, entries=4)
    got = []
    for n in range(30):
        got.append(receiver.take(n * 1000, 1000))
        # Something again that was seen before, so that ranges do not merge.
        receiver.take(0, 10)
    assert got[0]
    assert not any(got[5:])
    receiver.read()
    assert receiver.delivered == expected(stream)


# -- whatever happens ---------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.sampled_from(KINDS), st.integers(0, 2**32), st.sampled_from(RX_RESYNCS), st.integers(0, 2**32 - 1))
def test_whatever_the_network_does_the_data_is_right(kind, seed, resync, start):
    """Loss, duplicates, reordering, other cuts on retransmission, a slow application, tiny and long records."""
    rng = Random(seed)
    stream = Stream(make_keys(*kind), start)
    for n in range(rng.randint(3, 25)):
        stream.push(text(rng.choice((1, 40, 700, 3000, 9000)), n))
    receiver = Receiver(stream, resync, entries=rng.choice((4, 64)))
    whole = len(stream.plain)
    rate = rng.choice((0, 0.02, 0.2))
    queue: list[tuple[int, int, int]] = []
    at, clock = 0, 0
    step = rng.choice((100, 536, 1448))
    while at < whole:
        size = min(step, whole - at)
        late = rng.randint(1, 40) if rng.random() < rate else 0
        if rng.random() >= rate:
            queue.append((clock + late, at, size))
        if rng.random() < rate:
            queue.append((clock + rng.randint(1, 60), at, size))
        at += size
        clock += 1
    for _clock, at, size in sorted(queue):
        receiver.take(at, size)
        if rng.random() < 0.5:
            receiver.read()
    # What is missing TCP sends again, in other cuts.
    while receiver.at < whole:
        receiver.read()
        first = receiver.have.find(0, receiver.at)
        if first < 0:
            break
        receiver.take(first, min(rng.randint(1, 2000), whole - first))
    receiver.read()
    assert receiver.delivered == expected(stream)
    assert not receiver.bad
    assert receiver.nic.counters.rx_tls_err == 0
    if not rate and receiver.nic.counters.rx_tls_decrypted_packets:
        assert set(receiver.how) == {"device"}


@settings(max_examples=60)
@given(st.sampled_from(KINDS), st.lists(st.tuples(st.integers(-3000, 3000), st.binary(min_size=1, max_size=200)),
                                        max_size=30),
       st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)), max_size=3),
       st.sampled_from(RX_RESYNCS))
def test_whatever_the_bytes_are_nothing_is_raised(kind, packets, answers, resync):
    keys = make_keys(*kind)
    header = b"\x17\x03\x03\x00\x20"
    context = TlsRxContext(keys, 5, 0, resync in (SCAN, ASYNC))
    seq = 5
    for n, (jump, data) in enumerate(packets):
        seq = (seq + (jump if n % 3 == 0 else 0)) % 2**32
        payload = data if n % 2 else header + data[:32] + header * 3
        out = context.receive_untrusted(seq, payload)
        assert out is None or len(out) == len(payload)
        seq = (seq + len(payload)) % 2**32
        for place, number in answers:
            context.answer(context.base if place % 2 else place, number)


def test_a_super_frame_full_of_false_records():
    """Chains of headers that break off: work in proportion to the bytes, and no recursion."""
    keys = make_keys(TLS13)
    context = TlsRxContext(keys, 0, 0, True)
    link = b"\x17\x03\x03\x00\x11" + bytes(17)
    payload = (link * 3 + b"\x17\x03\x03" + bytes(7)) * 800
    assert context.receive_untrusted(0, payload) is None
    assert context.receive_untrusted(len(payload), payload) is None
