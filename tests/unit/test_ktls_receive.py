"""Kernel TLS, the receiving half: any cut of the stream gives the same records; what is wrong is told by the
errno of FreeBSD or Linux; records of which a NIC opened a part, in whatever forms they came."""

from __future__ import annotations

import errno
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtstack.crypto.stream_gcm import StreamKeys, apply_keystream, seal_record
from smtstack.ktls.backends import InNic, OpenSsl, Registry
from smtstack.ktls.connection import KtlsConnection
from smtstack.ktls.nic_marks import NicMarks
from smtstack.ktls.params import LINUX_CIPHERS, TLS_RX_EXPECT_NO_PAD, TlsParams
from smtstack.ktls.receive import ReceiveMachine
from smtstack.ktls.records import ALERT, DATA, HANDSHAKE
from smtstack.ktls.stats import TlsStats
from smtstack.nic.marks import MarkReader, MarkWriter, mark_bytes
from smtstack.nic.tls_flow import ASYNC, HINT, SCAN
from smtstack.wire.tcp import advance

KINDS = [(version, cipher) for version in (0x0303, 0x0304) for cipher in LINUX_CIPHERS]
RULES = ("freebsd", "linux")


def params(version: int, cipher: str, number: int = 0) -> TlsParams:
    iv_len = 4 if version == 0x0303 and cipher.endswith("gcm") else 12
    return TlsParams(cipher, version, bytes(LINUX_CIPHERS[cipher].key), bytes(iv_len), number)


def keys(of: TlsParams) -> StreamKeys:
    return StreamKeys(of.version, of.cipher, of.key, of.iv)


def machine(of: TlsParams, rules: str = "freebsd", nic: bool = False) -> tuple[KtlsConnection, ReceiveMachine]:
    made = KtlsConnection(Registry([OpenSsl(), InNic()]), TlsStats(), rules, False, nic)
    made.rxtls_enable(of)
    assert made.rx is not None
    return made, made.rx


def take(rx: ReceiveMachine) -> list[Any]:
    """What it says until it has no more: (kind, data), or an errno."""
    out: list[Any] = []
    while True:
        try:
            record = rx.next_record()
        except OSError as e:
            if out and out[-1] == e.errno:
                return out  # it goes on like that
            out.append(e.errno)
            continue
        if record is None:
            return out
        assert (record.version, record.length) == (0x0303, len(record.data))
        out.append((record.kind, record.data))


def stream_of(of: TlsParams, records: list[tuple[int, bytes]], number: int = 0) -> list[bytes]:
    return [seal_record(keys(of), number + n, kind, data, 1000 + n) for n, (kind, data) in enumerate(records)]


records_of_any_type = st.lists(st.tuples(st.sampled_from([DATA, ALERT, HANDSHAKE]), st.binary(max_size=120)),
                               max_size=8)


@given(st.sampled_from(KINDS), st.sampled_from(RULES), records_of_any_type, st.data())
@settings(deadline=None, max_examples=50)
def test_any_cut_of_the_stream_gives_the_same_records(kind, rules, records, data):
    of = params(kind[0], kind[1], 5)
    stream = b"".join(stream_of(of, records, 5))
    made, rx = machine(of, rules)
    got, at = [], 0
    while at < len(stream):
        step = data.draw(st.integers(1, len(stream) - at))
        if data.draw(st.booleans()):
            rx.feed(stream[at:at + step])
        else:
            room = rx.room()
            step = min(step, len(room))
            room[:step] = stream[at:at + step]
            room.release()
            rx.received(step)
        at += step
        if data.draw(st.booleans()):
            got += take(rx)
    rx.received(0)
    got += take(rx)
    assert got == records
    assert rx.ended
    assert (rx.number, rx.position) == (5 + len(records), len(stream))
    made.close()
    assert not any(made.stats.gauges().values())


@given(st.sampled_from(KINDS), st.sampled_from(RULES), st.lists(st.binary(min_size=1, max_size=50), min_size=3,
                                                                max_size=6), st.data())
@settings(deadline=None)
def test_a_bad_tag_is_told_and_dropped_or_stays(kind, rules, payloads, data):
    """FreeBSD: EBADMSG once, and what follows is delivered. Linux: what was before, then EBADMSG for ever."""
    of = params(*kind)
    sealed = stream_of(of, [(DATA, payload) for payload in payloads])
    bad = data.draw(st.integers(0, len(sealed) - 1))
    record = bytearray(sealed[bad])
    record[data.draw(st.integers(5, len(record) - 1))] ^= data.draw(st.integers(1, 255))
    sealed[bad] = bytes(record)
    made, rx = machine(of, rules)
    rx.feed(b"".join(sealed))
    expected: list[Any] = [(DATA, payload) for payload in payloads]
    expected[bad] = errno.EBADMSG
    assert take(rx) == (expected if rules == "freebsd" else expected[:bad + 1])
    counters = made.stats.counters
    assert (counters["TlsDecryptError"], counters["stats.corrupted_records"]) == (1, 1)


def header_cases():
    """(what, header, FreeBSD's errno, Linux's) for keys of TLS 1.3 and of 1.2 with GCM."""
    for version, least, most in ((0x0304, 22, 16_384 + 22), (0x0303, 29, 16_384 + 29)):
        yield "version", version, b"\x17\x03\x01" + (100).to_bytes(2, "big"), errno.EINVAL, errno.EINVAL
        yield "major", version, b"\x17\x02\x03" + (100).to_bytes(2, "big"), errno.EINVAL, errno.EINVAL
        yield "long", version, b"\x17\x03\x03" + (most - 4).to_bytes(2, "big"), errno.EMSGSIZE, errno.EMSGSIZE
        yield "longest", version, b"\x17\x03\x03" + (most - 5).to_bytes(2, "big"), 0, 0
        # Linux asks for the length first.
        yield "both", version, b"\x17\x03\x01" + (most - 4).to_bytes(2, "big"), errno.EINVAL, errno.EMSGSIZE
        short = least - 6 - (1 if version == 0x0304 else 0)
        yield "short", version, b"\x17\x03\x03" + short.to_bytes(2, "big"), errno.EMSGSIZE, errno.EBADMSG


@pytest.mark.parametrize(("what", "version", "header", "freebsd", "linux"), list(header_cases()))
def test_headers_that_cannot_be(what, version, header, freebsd, linux):
    for rules, error in (("freebsd", freebsd), ("linux", linux)):
        made, rx = machine(params(version, "aes-128-gcm"), rules)
        rx.feed(header)
        if not error:
            assert take(rx) == []
            continue
        for _again in range(2):
            with pytest.raises(OSError) as refused:
                rx.next_record()
            assert refused.value.errno == error, (what, rules)
        assert made.stats.counters["stats.corrupted_records"] == 1


@pytest.mark.parametrize("rules", RULES)
def test_an_end_inside_a_record_is_told(rules):
    record = stream_of(params(0x0304, "aes-128-gcm"), [(DATA, b"whole")])[0]
    for cut in range(len(record)):
        _made, rx = machine(params(0x0304, "aes-128-gcm"), rules)
        rx.feed(record + record[:0])
        assert take(rx) == [(DATA, b"whole")]
        rx.feed(record[:cut])
        rx.received(0)
        assert rx.ended is (cut == 0)
        assert take(rx) == ([errno.EMSGSIZE] if cut else [])


def test_padding_is_taken_off_and_a_record_of_padding_is_refused():
    of = params(0x0304, "aes-128-gcm")
    made, rx = machine(of, "linux")
    rx.expect_no_pad = True
    aead = OpenSsl().makers[of.cipher](of.key)
    for number, inner in enumerate((b"x\x17", b"x\x16", b"padded\x17" + bytes(7), bytes(9))):
        header = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
        nonce = (int.from_bytes(of.iv, "big") ^ number).to_bytes(12, "big")
        rx.feed(header + aead.encrypt(nonce, inner, header))
    assert take(rx) == [(DATA, b"x"), (HANDSHAKE, b"x"), (DATA, b"padded"), errno.EBADMSG]
    assert made.stats.counters["TlsRxNoPadViolation"] == 1
    assert made.stats.counters["TlsDecryptRetry"] == 2
    assert TLS_RX_EXPECT_NO_PAD == 4


@given(st.sampled_from(KINDS), st.sampled_from(RULES), st.binary(max_size=400), st.integers(1, 60))
def test_hostile_bytes_give_an_errno_and_take_bounded_memory(kind, rules, stream, step):
    _made, rx = machine(params(*kind), rules)
    for at in range(0, len(stream), step):
        rx.feed(stream[at:at + step])
        for said in take(rx):
            assert said in {errno.EINVAL, errno.EMSGSIZE, errno.EBADMSG}
    assert len(rx._buffer) <= 1 << 15


def test_long_records_in_the_smallest_buffer():
    of = params(0x0303, "aes-128-gcm")
    records = [(DATA, bytes([n]) * 16_384) for n in range(40)]
    _made, rx = machine(of)
    got = []
    stream = b"".join(stream_of(of, records))
    for at in range(0, len(stream), 9000):
        rx.feed(stream[at:at + 9000])
        got += take(rx)
    assert got == records
    assert len(rx._buffer) <= 1 << 16
    # Nobody takes records out for a long time: all are kept.
    _made, rx = machine(of)
    rx.feed(stream)
    assert take(rx) == records


# -- beside a NIC --------------------------------------------------------------------------------------------

class Nic:
    """What a NIC has done to a stream that begins at ``seq``."""

    def __init__(self, of: TlsParams, seq: int, resync: str = SCAN, rules: str = "freebsd") -> None:
        self.buffer = bytearray(mark_bytes())
        self.writer = MarkWriter(self.buffer)
        self.connection, self.rx = machine(of, rules, nic=True)
        assert self.connection.rxtls_mode == "nic"
        self.reader = MarkReader([self.buffer], seq)
        self.rx.marks = NicMarks(self.reader, seq, resync, self.connection.stats)
        self.of = of
        self.seq = seq

    def open_range(self, record: bytearray, number: int, start: int, low: int, high: int) -> None:
        """Decrypt these bytes of a record that begins at ``start`` in the stream, and mark them."""
        header_len = keys(self.of).header_len
        first, last = max(low, header_len), min(high, len(record) - 16)
        if first < last:
            record[first:last] = apply_keystream(keys(self.of), number, bytes(record[:header_len]),
                                                 first - header_len, bytes(record[first:last]))
        self.writer.log(advance(self.seq, start + low), high - low, True)


@given(st.sampled_from(KINDS), st.lists(st.binary(min_size=1, max_size=90), min_size=1, max_size=4),
       st.integers(0, 2**32 - 1), st.data())
@settings(deadline=None, max_examples=60)
def test_whatever_part_a_nic_opened_the_record_is_the_same(kind, payloads, seq, data):
    """Any ranges opened, and some passed up in both forms. Where neighbours of these came in different ones,
    which no mark tells, a record may be refused; what is delivered was sent."""
    of = params(*kind)
    nic = Nic(of, seq)
    stream, start = b"", 0
    expected: list[Any] = []
    doubtful = set()
    for number, sealed in enumerate(stream_of(of, [(DATA, payload) for payload in payloads])):
        record = bytearray(sealed)
        cuts = sorted({0, len(record), *data.draw(st.lists(st.integers(1, len(record) - 1), max_size=3))})
        before = ""
        for low, high in pairwise(cuts):
            form = data.draw(st.sampled_from(["opened", "sealed", "told", "both, opened", "both, sealed"]))
            if form in {"opened", "both, opened"}:
                nic.open_range(record, number, start, low, high)
            if form == "both, sealed":
                nic.writer.log(advance(seq, start + low), high - low, True)
            if form in {"told", "both, opened", "both, sealed"}:
                nic.writer.log(advance(seq, start + low), high - low, False)
            if {before, form} == {"both, opened", "both, sealed"}:
                doubtful.add(number)
            before = form
        stream += record
        start += len(record)
        expected.append((DATA, payloads[number]))
    for at in range(0, len(stream), 50):
        nic.rx.feed(stream[at:at + 50])
    for number, said in enumerate(expected):
        try:
            got = nic.rx.next_record()
        except OSError:
            # EBADMSG: the machine goes on with the next record.
            assert number in doubtful
        else:
            assert got == (said[0], 0x0303, len(said[1]), said[1])


@pytest.mark.parametrize(("version", "cipher"), KINDS)
def test_what_a_nic_opened_whole_needs_no_software(version, cipher, monkeypatch):
    of = params(version, cipher)
    nic = Nic(of, 7)
    record = bytearray(stream_of(of, [(ALERT, b"\1\0")])[0])
    nic.open_range(record, 0, 0, 0, len(record))
    monkeypatch.setattr(InNic, "open_untrusted", lambda *_args: pytest.fail("software opened it"))
    nic.rx.feed(record)
    assert take(nic.rx) == [(ALERT, b"\1\0")]


def test_a_record_of_mixed_forms_with_a_wrong_tag_is_refused():
    """A NIC opened a part: no byte of it is delivered."""
    of = params(0x0304, "aes-128-gcm")
    for low, high in ((0, 20), (10, 40), (30, 77)):
        nic = Nic(of, 0)
        record = bytearray(stream_of(of, [(DATA, bytes(55))])[0])
        record[-1] ^= 1
        nic.open_range(record, 0, 0, low, min(high, len(record) - 1))
        nic.rx.feed(record)
        assert take(nic.rx) == [errno.EBADMSG]


def ask(nic: Nic, at: int) -> None:
    nic.writer.ask(advance(nic.seq, at))


def test_a_nic_that_asks_is_told_the_number_of_the_record():
    of = params(0x0304, "aes-128-gcm", 9)
    nic = Nic(of, 2**32 - 60)
    records = stream_of(of, [(DATA, bytes(30))] * 6, 9)
    size = len(records[0])
    nic.rx.feed(records[0])
    ask(nic, 3 * size)
    assert take(nic.rx) == [(DATA, bytes(30))]
    assert nic.writer.answer() is None
    nic.rx.feed(b"".join(records[1:]))
    take(nic.rx)
    assert nic.writer.answer() == (advance(nic.seq, 3 * size), 12)
    assert nic.connection.stats.counters["TlsRxDeviceResync"] == 1


def test_a_question_where_no_record_begins_is_never_answered():
    of = params(0x0304, "aes-128-gcm")
    nic = Nic(of, 5)
    records = stream_of(of, [(DATA, bytes(30))] * 6)
    ask(nic, len(records[0]) + 1)
    nic.rx.feed(b"".join(records))
    take(nic.rx)
    assert nic.writer.answer() is None
    assert nic.connection.stats.counters["TlsRxDeviceResync"] == 0


def test_a_question_about_the_past_is_answered_from_memory():
    of = params(0x0304, "aes-128-gcm")
    nic = Nic(of, 0, ASYNC)
    records = stream_of(of, [(DATA, bytes(30))] * 8)
    size = len(records[0])
    nic.writer.ask_later(size, 4 * size)
    nic.rx.feed(b"".join(records[:5]))
    take(nic.rx)
    ask(nic, 2 * size)
    assert nic.writer.answer() is None
    nic.rx.feed(records[5])
    take(nic.rx)
    assert nic.writer.answer() == (2 * size, 2)
    # The control: without the announcement it has forgotten.
    other = Nic(of, 0, ASYNC)
    other.rx.feed(b"".join(records[:5]))
    take(other.rx)
    ask(other, 2 * size)
    other.rx.feed(records[5])
    take(other.rx)
    assert other.writer.answer() is None


def test_a_hint_says_where_the_next_record_begins():
    of = params(0x0304, "aes-128-gcm", 100)
    nic = Nic(of, 1000, HINT)
    records = stream_of(of, [(DATA, bytes(30))] * 3, 100)
    nic.rx.feed(b"".join(records))
    take(nic.rx)
    assert nic.writer.answer() == (1000 + 3 * len(records[0]), 103)
