"""Record map and marks: two processes over one buffer, of which neither believes the other."""

from __future__ import annotations

from collections import deque
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtstack.crypto.stream_gcm import frame_record
from smtstack.errors import ConfigError, LocalError
from smtstack.nic.marks import AMBIGUOUS, DECRYPTED, ENCRYPTED, MarkReader, MarkWriter, mark_bytes
from smtstack.nic.record_map import RecordMapReader, RecordMapWriter, map_bytes
from smtstack.nic.tls_flow import DUMP, NEXT_RECORD, TxFlow
from smtstack.wire.tcp import distance
from tests.tls_rig import FLOW, Stream, make_keys, make_nic, tcp_frame, text


def make_map(data: int = 1000, records: int = 8, start: int = 2**32 - 300, number: int = 5):
    buffer = bytearray(map_bytes(data, records))
    return RecordMapWriter(buffer, start, number, records), RecordMapReader(buffer)


# -- record map ---------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(200, 2000))
def test_the_map_is_what_is_under_way(seed, start, records, size):
    """Against a plain list: what is found, what it holds, and what there is room for."""
    rng = Random(seed)
    writer, reader = make_map(size, records, start)
    inside: deque[tuple[int, int, bytes]] = deque()
    seq, created = start, 0
    for _ in range(40):
        if rng.random() < 0.6:
            data = rng.randbytes(rng.randint(1, 150))
            sealed = rng.random() < 0.2
            if sealed:
                done = writer.append_sealed(seq, len(data))
            else:
                view = writer.append(seq, data[:7], memoryview(data)[7:])
                done = view is not None
                if view is not None:
                    assert view == data
            # Fragments at the end of the ring cost at most one record.
            if sum(len(d) for _s, _n, d in inside) + 2 * 150 < size and len(inside) < records:
                assert done
            if done:
                inside.append((seq, 5 + created, b"" if sealed else data))
                created += 1
                seq = (seq + len(data)) % 2**32
        elif inside:
            # Often in the middle of a record: that stays.
            upto = (start + rng.randint(0, (seq - start) % 2**32)) % 2**32
            before = len(inside)
            while inside and distance(inside[1][0] if len(inside) > 1 else seq, upto) >= 0:
                inside.popleft()
            assert writer.release(upto) == before - len(inside)
        assert len(writer) == len(inside) == reader.created - reader.released
        assert reader.sealed == sum(not d for _s, _n, d in inside)
        first = inside[0][0] if inside else seq
        ends = [s for s, _n, _d in list(inside)[1:]] + [seq] * bool(inside)
        for (at, number, data), end in zip(inside, ends, strict=True):
            for place in {at, (at + 3) % 2**32 if distance((at + 3) % 2**32, end) > 0 else at, (end - 1) % 2**32}:
                record = reader.lookup(place)
                assert record is not None
                assert (record.start, record.number, record.sealed) == (at, number, not data)
                assert record.length == (end - at) % 2**32
                if data:
                    assert reader.read(record, len(data)) == data
                else:
                    assert reader.read(record, 1) is None
        assert reader.lookup((first - 1) % 2**32) is None
        assert reader.lookup(seq) is None
    writer.release_all()
    assert writer.created == writer.released == created
    assert len(writer) == reader.sealed == 0


def test_a_partly_acknowledged_record_stays():
    writer, reader = make_map(start=0)
    writer.append(0, b"a" * 100)
    writer.append(100, b"b" * 100)
    assert writer.release(99) == 0
    assert writer.release(150) == 1
    assert reader.lookup(99) is None
    assert reader.lookup(199) is not None
    assert writer.release(200) == 1
    assert writer.created == writer.released == 2


def test_a_full_map_takes_no_more_until_something_is_released():
    writer, _reader = make_map(300, 8, 0)
    for n in range(3):
        assert writer.append(n * 90, bytes(90)) is not None
    # 30 bytes are left at the end, and none at the beginning.
    assert writer.append(270, bytes(90)) is None
    writer.release(90)
    assert writer.append(270, bytes(90)) is not None
    writer.release(360)
    for n in range(8):
        assert writer.append(360 + n, b"x") is not None
    assert writer.append(368, b"x") is None
    assert not writer.append_sealed(368, 1)


def test_a_record_that_goes_while_it_is_read_is_gone():
    writer, reader = make_map(start=0)
    writer.append(0, b"a" * 600)
    record = reader.lookup(10)
    assert record is not None
    writer.release(600)
    # Its room is another's now.
    writer.append(600, b"b" * 600)
    assert reader.read(record, 600) is None
    assert reader.lookup(10) is None


def test_what_is_before_the_start_marker():
    writer, reader = make_map(start=5)
    assert reader.before_records(2**32 - 10, 15)
    assert not reader.before_records(2**32 - 10, 16)
    assert reader.straddles_start(2**32 - 10, 16) == 15
    assert reader.straddles_start(5, 16) == reader.straddles_start(2**32 - 10, 15) == 0
    writer.append(5, b"abc")
    writer.release(8)
    assert not reader.before_records(2**32 - 10, 15)
    assert reader.straddles_start(2**32 - 10, 16) == 0


def test_the_words_of_a_flow():
    writer, reader = make_map()
    assert (reader.start_seq, reader.first_number) == (2**32 - 300, 5)
    reader.owner = 3
    reader.reset_pending = True
    writer.aborted = True
    reader.count(100, 7)
    reader.count(0, 2**64 - 1)
    assert (writer.owner, writer.reset_pending, reader.aborted) == (3, True, True)
    assert (writer.sent_bytes, writer.retransmitted_bytes) == (100, 6)
    wanted = reader.ask_sync()
    assert reader.sync_answer(wanted) is None
    writer.append(2**32 - 300, b"x" * 10)
    assert reader.sync_answer(wanted) == (2**32 - 300, 5)
    assert not writer.sync_wanted


def test_what_is_no_map():
    for buffer in (bytearray(8), bytearray(5000), bytearray(b"\xff" * 5000)):
        with pytest.raises(ConfigError):
            RecordMapReader(buffer)
    with pytest.raises(ConfigError):
        RecordMapWriter(bytearray(map_bytes(0, 8)), 0, 0, 8)
    writer, _reader = make_map()
    for size in (0, 1 << 16):
        with pytest.raises(LocalError):
            writer.append(0, bytes(size))
        with pytest.raises(LocalError):
            writer.append_sealed(0, size)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from([DUMP, NEXT_RECORD]))
def test_whatever_stands_in_the_buffer_the_driver_goes_on(seed, resync):
    """The application scribbles: the driver raises nothing, and reads nothing outside (canaries stand there)."""
    rng = Random(seed)
    keys = make_keys()
    size = map_bytes(4000, 4)
    memory = bytearray(b"outside!" * 16 + bytes(size) + b"outside!" * 9000)
    buffer = memoryview(memory)[128:128 + size]
    writer = RecordMapWriter(buffer, 0, 0, 4)
    seq = 0
    for n in range(4):
        framed = frame_record(keys, 23, text(700, n))
        writer.append(seq, framed)
        seq += len(framed)
    nic = make_nic(mtu=600)
    nic.add_flow(TxFlow(FLOW, keys, buffer, "linux", resync))
    reader = RecordMapReader(buffer)
    for _ in range(60):
        word = rng.choice((*range(32), *range(32, 44))) * 8
        value = rng.choice((0, 1, 2**64 - 1, 2**32, rng.getrandbits(64), rng.getrandbits(12), 700 << 16))
        buffer[word:word + 8] = value.to_bytes(8, "little")
        at = rng.randrange(3000)
        for frame in nic.transmit(tcp_frame(at, rng.randbytes(rng.randint(1, 1400))), marked=True):
            assert b"outside!" not in frame
        record = reader.lookup(at)
        if record is not None:
            data = reader.read(record, record.length)
            assert data is None or b"outside!" not in data
        reader.before_records(at, 5)
        reader.straddles_start(at, 5)
        reader.count(1, 1)
        reader.sync_answer(reader.ask_sync())
    assert bytes(memory[:128]) == b"outside!" * 16
    assert bytes(memory[128 + size:]) == b"outside!" * 9000


# -- marks --------------------------------------------------------------------------------------------------


def make_marks(entries: int = 16, seq: int = 2**32 - 50):
    buffer = bytearray(mark_bytes(entries))
    return MarkWriter(buffer), MarkReader([buffer], seq)


def forms(reader: MarkReader, seq: int, length: int) -> list[tuple[int, int, int]]:
    return [(r.start, r.end, r.form) for r in reader.forms(seq, length)]


def test_ranges_and_their_forms():
    writer, reader = make_marks(seq=0)
    assert forms(reader, 0, 10) == [(0, 10, ENCRYPTED)]
    for seq in (0, 100, 200):
        assert writer.log(seq, 100, True)
    assert forms(reader, 0, 300) == [(0, 300, DECRYPTED)]
    writer.log(300, 100, False)
    # The newest may grow after it was read.
    assert forms(reader, 250, 200) == [(0, 50, DECRYPTED), (50, 200, ENCRYPTED)]
    writer.log(400, 100, True)
    writer.log(500, 50, True)
    assert forms(reader, 250, 300) == [(0, 50, DECRYPTED), (50, 150, ENCRYPTED), (150, 300, DECRYPTED)]
    writer.log(80, 40, False)
    assert forms(reader, 0, 200) == [(0, 80, DECRYPTED), (80, 120, AMBIGUOUS), (120, 200, DECRYPTED)]
    reader.release(100)
    assert forms(reader, 100, 100) == [(0, 20, AMBIGUOUS), (20, 100, DECRYPTED)]


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(0, 2**32 - 1), st.sampled_from([2, 3, 5, 40]))
def test_marks_say_what_was_passed_up(seed, start, entries):
    """Against a list of all bytes. With no room nothing is passed decrypted, and what matters is not forgotten."""
    rng = Random(seed)
    writer, reader = make_marks(entries, start)
    size = 400
    passed = [0] * size
    done = 0
    for _ in range(120):
        at = rng.randrange(size)
        length = rng.randint(1, size - at)
        decrypted = rng.random() < 0.5
        if writer.log((start + at) % 2**32, length, decrypted) or not decrypted:
            for n in range(at, at + length):
                passed[n] |= DECRYPTED if decrypted else ENCRYPTED
        if rng.random() < 0.4:
            at = done + rng.randrange(size - done)
            length = rng.randint(1, size - at)
            told = [0] * length
            ranges = reader.forms((start + at) % 2**32, length)
            for r in ranges:
                told[r.start:r.end] = [r.form] * (r.end - r.start)
            for n, form in enumerate(told):
                really = passed[at + n] or ENCRYPTED
                # What was noted while there was no room may be more than was passed: never "decrypted" too much.
                assert form == really or (form == really | ENCRYPTED and entries < 40), n
        if rng.random() < 0.1 and done < size - 50:
            done += rng.randint(0, 40)
            reader.release((start + done) % 2**32)


def test_several_nics_are_one():
    buffers = [bytearray(mark_bytes(8)) for _ in range(2)]
    one, two = map(MarkWriter, buffers)
    reader = MarkReader(buffers, 0)
    one.log(0, 100, True)
    two.log(100, 100, True)
    two.log(50, 10, False)
    assert forms(reader, 0, 200) == [(0, 50, DECRYPTED), (50, 60, AMBIGUOUS), (60, 200, DECRYPTED)]
    two.ask(7)
    one.ask_later(9, 100)
    assert reader.questions() == [(1, 7)]
    assert reader.questions() == []
    assert reader.announced() == [(0, 9, 100)]
    reader.answer(1, 7, 2**64 - 1)
    assert two.answer() == (7, 2**64 - 1)
    assert one.answer() is None
    assert two.answer() is None
    for end in (one, two, reader):
        end.close()
    for buffer in buffers:
        buffer.append(0)


def test_what_are_no_marks():
    with pytest.raises(ConfigError):
        MarkWriter(bytearray(100))
    with pytest.raises(ConfigError):
        MarkReader([bytearray(500)], 0)


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_whatever_stands_among_the_marks_neither_end_raises(seed):
    rng = Random(seed)
    memory = bytearray(mark_bytes(6))
    writer = MarkWriter(memory)
    reader = MarkReader([memory], 0)
    for _ in range(60):
        word = rng.randrange(len(memory) // 8) * 8
        value = rng.choice((0, 1, 2**64 - 1, rng.getrandbits(64), rng.getrandbits(8)))
        memory[word:word + 8] = value.to_bytes(8, "little")
        writer.log(rng.getrandbits(32), rng.randint(1, 70_000), rng.random() < 0.5)
        writer.ask(rng.getrandbits(32))
        writer.ask_later(rng.getrandbits(32), 100)
        writer.answer()
        ranges = reader.forms(rng.getrandbits(32), 1000)
        assert sum(r.end - r.start for r in ranges) == 1000
        reader.questions()
        reader.announced()
        reader.answer(0, rng.getrandbits(33), rng.getrandbits(65))


def test_ten_thousand_connections_leave_nothing():
    """Opened, used, closed: maps are empty, and no NIC holds on to a buffer."""
    nic = make_nic()
    for n in range(10_000):
        buffer = bytearray(map_bytes(200, 2))
        writer = RecordMapWriter(buffer, n, 0, 2)
        writer.append(n, b"x" * 100)
        flow = TxFlow(n.to_bytes(12, "big"), make_keys(), buffer)
        nic.add_flow(flow)
        nic.remove_flow(flow)
        assert writer.release(n + 100) == 1
        assert writer.created == writer.released
        writer.close()
        # Fails while anybody has a view of it.
        buffer.append(0)
    assert nic.flows() == nic.contexts() == 0


def test_a_view_that_is_left_is_noticed():
    """The control of the test above."""
    stream = Stream(room=1000, records=2)
    nic = make_nic()
    nic.add_flow(stream.flow())
    stream.map.close()
    with pytest.raises(BufferError):
        stream.buffer.append(0)
