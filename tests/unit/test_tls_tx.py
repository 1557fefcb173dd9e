"""TLS transmit offload: whatever TCP does, what leaves is what software would seal. With counters, by hand."""

from __future__ import annotations

import dataclasses
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtstack.crypto.stream_gcm import CHACHA20_POLY1305, TLS12, TLS13, open_record_untrusted
from smtstack.errors import ConfigError
from smtstack.nic import tls_fallback
from smtstack.nic.record_map import RecordMapReader
from smtstack.nic.tls_flow import DUMP, FREEBSD, LINUX, NEXT_RECORD, NO_POLICY
from smtstack.wire import tcp
from tests.tls_rig import (
    ALL_KINDS,
    FLOW,
    KINDS,
    Stream,
    Tcp,
    Wire,
    make_keys,
    make_nic,
    offloaded,
    send_all,
    tcp_frame,
    text,
)

SIZES = st.lists(st.integers(0, 3000), min_size=1, max_size=6)


# -- in sequence --------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.sampled_from(ALL_KINDS), SIZES, st.randoms(use_true_random=False), st.integers(0, 2**32 - 1),
       st.integers(0, 2**40))
def test_any_segmentation_gives_the_one_shot_stream(kind, sizes, rng, start, number):
    stream = Stream(make_keys(*kind), start, number)
    for at, size in enumerate(sizes):
        stream.push(text(max(size, kind[0] == TLS13), at))
    nic, wire = offloaded(stream, ciphers=(kind[1],))
    at = 0
    while at < len(stream.plain):
        size = min(rng.choice((1, 2, 5, 13, 16, 100, 1448, 5000)), len(stream.plain) - at)
        gso = rng.choice((0, 1, 7, 536)) if size < 2000 else 1448
        frame = stream.packet(at, size)
        wire.take(nic.transmit(frame, gso, True, 34, 16, marked=True))
        at += size
    assert wire.received() == stream.sealed
    assert not wire.wrong
    counters = nic.counters
    assert counters.tx_tls_ooo == counters.tx_tls_dump_packets == counters.tx_tls_fallback == 0
    assert counters.tx_tls_encrypted_bytes == len(stream.plain)
    assert counters.tx_tls_encrypted_packets == len(wire.packets) == counters.tx_packets


def test_a_super_frame_is_encrypted_and_cut():
    stream = Stream()
    for n in range(3):
        stream.push(text(16384, n))
    nic, wire = offloaded(stream)
    wire.take(nic.transmit(stream.packet(0, 40_000, tcp.PSH | tcp.ACK), 1448, True, 34, 16, marked=True))
    assert wire.received() == stream.sealed[:40_000]
    assert [len(payload) for _at, payload in wire.packets] == [1448] * 27 + [40_000 - 27 * 1448]
    assert nic.counters.tx_tls_encrypted_packets == 28
    assert nic.counters.tx_tso_packets == 1


@pytest.mark.parametrize("by", ["device", "software"])
def test_headers_are_those_of_a_nic_without_offload(by):
    """All but TCP's checksum, which covers what is encrypted."""
    stream = Stream()
    for n in range(3):
        stream.push(text(16384, n))
    nic = make_nic()
    assert nic.add_flow(stream.flow(), context=by == "device") == (by == "device")
    plain = make_nic(2)
    for at, size, flags in ((0, 40_000, tcp.PSH | tcp.ACK), (40_000, 700, tcp.ACK), (30_000, 5000, tcp.ACK)):
        frame = stream.packet(at, size, flags)
        sealed = nic.transmit(frame, 1448, True, 34, 16, marked=True)
        clear = plain.transmit(frame, 1448, True, 34, 16, marked=False)
        assert len(sealed) == len(clear) == -(-size // 1448)
        for one, other in zip(sealed, clear, strict=True):
            packet = tcp.parse_untrusted(one)
            assert tcp.checksum_ok(one, packet)
            assert len(one) == len(other)
            at_sum = packet.tcp_at + 16
            assert one[:at_sum] + one[at_sum + 2:packet.payload_at] == (
                other[:at_sum] + other[at_sum + 2:packet.payload_at])
            assert one[packet.payload_at:] != other[packet.payload_at:]


def test_a_port_that_cuts_gets_super_frames_whole():
    """What the port makes of them is what the device would have sent, and so are the counters."""
    streams = [Stream(), Stream()]
    for stream in streams:
        for n in range(3):
            stream.push(text(9000, n), ready=n == 1)
    (one, wire), (other, behind) = map(offloaded, streams)
    other.tx.whole = True
    # All ways: by the device, as it is, by software, after a resync, before the start marker.
    for at, size in ((0, 5000), (5000, 9000), (9022, 9000), (14_000, 13_000), (3000, 800), (100, 2000)):
        frame = streams[0].packet(at, size, tcp.PSH | tcp.ACK)
        wire.take(one.transmit(frame, 1448, True, 34, 16, marked=True))
        (whole,) = other.transmit(frame, 1448, True, 34, 16, marked=True)
        packet = tcp.parse_untrusted(whole)
        behind.take(tcp.cut(whole, packet, whole[packet.payload_at:packet.end], 1448))
    assert wire.packets == behind.packets
    assert not wire.wrong
    assert one.counters.snapshot() == other.counters.snapshot()
    assert one.counters.tx_tls_fallback > 1
    assert one.counters.tx_tls_ooo > 1


def test_a_super_frame_that_software_seals_leaves_sealed_as_a_whole():
    """The port behind the device cuts it: no byte of the kernel's frame may be in what it gets."""
    stream = Stream()
    for n in range(3):
        stream.push(text(16384, n))
    nic = make_nic()
    assert not nic.add_flow(stream.flow(), context=False)
    nic.tx.whole = True
    frame = stream.packet(100, 40_000)
    out = nic.transmit(frame, 1448, True, 34, 16, marked=True)
    packet = tcp.parse_untrusted(out[0])
    assert out[0][packet.payload_at:packet.end] == stream.sealed[100:40_100]
    assert nic.counters.tx_tls_fallback == 1


# -- out of sequence, counters by hand ----------------------------------------------------------------------

#: A record in 12 packets of 1000 bytes, and how much of it is data.
TWELVE = 12_000
DATA = {TLS12: TWELVE - 29, TLS13: TWELVE - 22}


@pytest.mark.parametrize("version", [TLS12, TLS13])
@pytest.mark.parametrize("lost", range(12))
def test_each_packet_of_a_record_is_lost_once(version, lost):
    stream = Stream(make_keys(version))
    for n in range(3):
        assert stream.push(text(DATA[version], n)) == TWELVE
    nic, wire = offloaded(stream, mtu=1500)
    send_all(stream, nic, wire, 1000)
    at = TWELVE + 1000 * lost
    wire.take(nic.transmit(stream.packet(at, 1000), marked=True))
    counters = nic.counters
    # One resync, and all of the record before the packet, in pieces of the MTU.
    assert counters.tx_tls_ooo == 1
    assert counters.tx_tls_dump_bytes == counters.tx_tls_resync_bytes == 1000 * lost
    assert counters.tx_tls_dump_packets == -(-1000 * lost // 1500)
    # The next in the order of the stream goes on from there, whatever was sent meanwhile.
    if lost < 11:
        wire.take(nic.transmit(stream.packet(at + 1000, 1000), marked=True))
        assert counters.tx_tls_ooo == 1
    # New data: the device stood at the retransmission, so once more, from the beginning of a record.
    stream.push(text(50, 9))
    wire.take(nic.transmit(stream.packet(3 * TWELVE, 50), marked=True))
    assert counters.tx_tls_ooo == 2
    assert counters.tx_tls_dump_bytes == 1000 * lost
    assert not wire.wrong
    assert wire.canaries == 0
    assert wire.received() == stream.sealed[:3 * TWELVE + 50]


def test_the_packet_of_two_records_is_lost_and_its_retransmission_too():
    stream = Stream()
    for n in range(3):
        stream.push(text(2478, n))  # 2500 bytes each
    nic, wire = offloaded(stream, mtu=1000)
    send_all(stream, nic, wire, 1000)
    for attempt in (1, 2):
        # 2000 to 3000: 2000 bytes of the first record before it, in two pieces, each time.
        wire.take(nic.transmit(stream.packet(2000, 1000), marked=True))
        assert nic.counters.tx_tls_ooo == attempt
        assert nic.counters.tx_tls_dump_bytes == 2000 * attempt
        assert nic.counters.tx_tls_dump_packets == 2 * attempt
    # The record the second time has the number it had: its keys and number are not sent again.
    assert not wire.wrong
    assert wire.packets[-1] == wire.packets[-2] == (2000, bytes(stream.sealed[2000:3000]))


def oracle(stream: Stream, log: list[tuple[int, int]]) -> tuple[int, int]:
    """(resyncs, bytes before the packets) of what TCP sent: reckoned apart from the driver."""
    expected = ooo = dumped = 0
    for at, size in log:
        if at != expected:
            ooo += 1
            dumped += at - stream.record_start(at)
        expected = at + size
    return ooo, dumped


def one_run(lose, version=TLS13, mss=1000, resync=DUMP, start=2**32 - 20_000, records=5):
    stream = Stream(make_keys(version), start)
    for n in range(records):
        stream.push(text(DATA[version], n))
    nic, _wire = offloaded(stream, resync=resync)
    connection = Tcp(stream, nic, lose, mss)
    connection.run()
    assert connection.wire.received() == stream.sealed
    assert not connection.wire.wrong
    assert connection.wire.canaries == 0
    assert stream.map.created == stream.map.released == records
    assert len(stream.map) == 0
    return nic.counters, stream, connection


def test_tail_loss():
    """The last packet is lost; a timeout sends it again: the 11,000 bytes before it are dumped once."""
    counters, _stream, connection = one_run(lambda at, attempt: at == 59_000 and not attempt)
    assert connection.timeouts == 1
    assert (counters.tx_tls_ooo, counters.tx_tls_dump_bytes) == (1, 11_000)


def test_sack_holes():
    """Packets 4 and 7 of the first record are lost. The window is 20, so 20 to 23 follow when 0 to 3 are
    acknowledged: then 4 is sent again, then 7, then 24. Dumped: 4000, 7000, 0."""
    counters, stream, connection = one_run(lambda at, attempt: at in (4000, 7000) and not attempt)
    assert connection.timeouts == 0
    again = [at for n, (at, _size) in enumerate(connection.log) if at in [a for a, _s in connection.log[:n]]]
    assert again == [4000, 7000]
    ooo, dumped = oracle(stream, connection.log)
    assert dumped == 4000 + 7000
    assert (counters.tx_tls_ooo, counters.tx_tls_dump_bytes) == (ooo, dumped)
    assert ooo == 3


def test_a_retransmission_is_lost_again():
    counters, stream, connection = one_run(lambda at, attempt: at == 15_000 and attempt < 3)
    assert connection.timeouts == 2
    assert [at for at, _size in connection.log].count(15_000) == 4
    # Three times the 3000 bytes of the second record before it. Then new data: the window of 20 ended at 35,000,
    # 11,000 bytes into the third.
    assert counters.tx_tls_dump_bytes == 9000 + 11_000
    assert counters.tx_tls_ooo == oracle(stream, connection.log)[0] == 4


@pytest.mark.parametrize("version", [TLS12, TLS13])
@pytest.mark.parametrize("resync", [DUMP, NEXT_RECORD])
@pytest.mark.parametrize("seed", range(6))
def test_random_loss_across_the_end_of_the_sequence_numbers(version, resync, seed):
    rng = Random(seed)
    counters, stream, connection = one_run(lambda at, attempt: rng.random() < 0.1, version, 700, resync)
    if resync == DUMP:
        assert (counters.tx_tls_ooo, counters.tx_tls_dump_bytes) == oracle(stream, connection.log)
        assert counters.tx_tls_fallback == 0
    else:
        assert counters.tx_tls_dump_packets == 0
        assert counters.tx_tls_fallback > 0
    assert counters.tx_tls_no_fallback == counters.tx_tls_drop_no_sync_data == 0


def test_the_mtu_changes():
    """Retransmitted in other cuts, and dumped in other pieces."""
    stream = Stream()
    stream.push(text(DATA[TLS13]))
    nic, wire = offloaded(stream, mtu=1500)
    send_all(stream, nic, wire, 1460)
    nic.set_mtu(600)
    for at in range(2920, 5840, 560):
        wire.take(nic.transmit(stream.packet(at, 560), marked=True))
    assert nic.counters.tx_tls_ooo == 1
    assert nic.counters.tx_tls_dump_bytes == 2920
    assert nic.counters.tx_tls_dump_packets == 5
    assert not wire.wrong
    assert wire.received() == stream.sealed


@settings(max_examples=50)
@given(st.sampled_from(KINDS), SIZES, st.randoms(use_true_random=False), st.integers(0, 2**32 - 1),
       st.sampled_from([DUMP, NEXT_RECORD]))
def test_any_order_of_any_cuts(kind, sizes, rng, start, resync):
    """Retransmissions of all kinds, collapsed or split, in any order."""
    stream = Stream(make_keys(*kind), start)
    for n, size in enumerate(sizes):
        stream.push(text(size + 1, n), ready=rng.random() < 0.2)
    nic, wire = offloaded(stream, resync=resync)
    for _ in range(20):
        at = rng.randrange(len(stream.plain))
        wire.take(nic.transmit(stream.packet(at, min(rng.randint(1, 3000), len(stream.plain) - at)), marked=True))
    assert len(wire.packets) == 20
    assert not wire.wrong


# -- next-record sync ---------------------------------------------------------------------------------------


def test_next_record_sync():
    stream = Stream()
    for n in range(3):
        stream.push(text(978, n))
    nic, wire = offloaded(stream, resync=NEXT_RECORD)
    counters = nic.counters
    wire.take(nic.transmit(stream.packet(0, 1000), marked=True))
    # A retransmission is behind: software, and the device stays where it is.
    wire.take(nic.transmit(stream.packet(500, 200), marked=True))
    assert (counters.tx_tls_fallback, counters.tx_tls_ooo) == (1, 0)
    wire.take(nic.transmit(stream.packet(1000, 500), marked=True))
    assert counters.tx_tls_encrypted_bytes == 1500
    # 1500 to 1600 never came: ahead. From now on software, until the next record is written.
    assert not stream.map.sync_wanted
    wire.take(nic.transmit(stream.packet(1600, 400), marked=True))
    assert (counters.tx_tls_fallback, counters.tx_tls_ooo) == (2, 1)
    assert stream.map.sync_wanted
    wire.take(nic.transmit(stream.packet(2000, 1000), marked=True))
    assert counters.tx_tls_fallback == 3
    stream.push(text(978, 4))
    assert not stream.map.sync_wanted
    wire.take(nic.transmit(stream.packet(1500, 100), marked=True))
    assert counters.tx_tls_fallback == 4
    wire.take(nic.transmit(stream.packet(3000, 1000), marked=True))
    assert (counters.tx_tls_fallback, counters.tx_tls_encrypted_bytes, counters.tx_tls_ooo) == (4, 2500, 1)
    assert wire.received() == stream.sealed
    assert not wire.wrong
    # What is acknowledged cannot be sealed any longer.
    stream.map.release(stream.start + 1000)
    wire.take(nic.transmit(stream.packet(0, 100), marked=True))
    assert counters.tx_tls_no_fallback == counters.tx_dropped == 1
    assert len(wire.packets) == 7


def test_a_context_that_comes_when_gigabytes_are_through():
    """The start marker is so far behind that it seems ahead: the driver asks, rather than compare."""
    stream = Stream(start=7, room=1 << 16)
    nic = make_nic()
    flow = stream.flow(resync=NEXT_RECORD)
    assert not nic.add_flow(flow, context=False)
    for hop in range(3):
        stream.start = 7 + hop * 0x38000000
        for part in (stream.plain, stream.sealed):
            part.clear()
        stream.number += len(stream.starts)
        stream.starts.clear()
        stream.push(text(100, hop))
        stream.map.release(stream.start + len(stream.plain))
    wire = Wire(stream)
    nic.add_flow(flow)
    at = len(stream.plain)
    for n in range(3):
        size = stream.push(text(100, n))
        wire.take(nic.transmit(stream.packet(at, size), marked=True))
        at += size
    assert nic.counters.tx_tls_fallback == nic.counters.tx_tls_ooo == 1
    assert nic.counters.tx_tls_encrypted_packets == 2
    assert not wire.wrong


def test_a_content_type_of_ones_own():
    """TLS 1.2 shows it in the header; nobody but a searching device cares."""
    stream = Stream(make_keys(TLS12))
    stream.push(text(100), kind=99)
    nic, wire = offloaded(stream)
    wire.take(nic.transmit(stream.packet(0, 50), marked=True))
    nic.reset()
    wire.take(nic.transmit(stream.packet(50, len(stream.plain) - 50), marked=True))
    assert wire.received() == stream.sealed
    assert open_record_untrusted(stream.keys, 0, wire.received()) == (99, text(100))


# -- software in place of the device ------------------------------------------------------------------------


@given(st.sampled_from(ALL_KINDS), SIZES, st.randoms(use_true_random=False), st.integers(0, 2**32 - 1))
def test_software_gives_any_slice_of_the_one_shot_stream(kind, sizes, rng, start):
    stream = Stream(make_keys(*kind), start, number=3)
    for n, size in enumerate(sizes):
        stream.push(text(max(size, kind[0] == TLS13), n), ready=rng.random() < 0.1)
    records = RecordMapReader(stream.buffer)
    whole = len(stream.plain)
    for _ in range(12):
        at = rng.randrange(whole)
        end = min(at + rng.choice((1, 5, 15, 16, 17, 100, 1448, 9999)), whole)
        sealed = tls_fallback.seal(records, stream.keys, (start + at) % 2**32, bytes(stream.plain[at:end]))
        assert sealed == bytes(stream.sealed[at:end])


def test_software_and_what_lies_around_the_records():
    stream = Stream(start=1000)
    stream.push(text(300))
    stream.push(text(300))
    first = stream.starts[1]
    records = RecordMapReader(stream.buffer)

    def seal(at: int, payload: bytes) -> bytes | bytearray | None:
        return tls_fallback.seal(records, stream.keys, 1000 + at, payload)

    # Before the start marker: as it is, and what follows is sealed.
    assert seal(-5, b"hello" + bytes(stream.plain[:50])) == b"hello" + stream.sealed[:50]
    # Beyond the last record there is nothing to say what the bytes are.
    assert seal(len(stream.plain) - 5, bytes(10)) is None
    # A packet of a record that is acknowledged and of one that is not: TCP will send the rest.
    stream.map.release(1000 + first)
    assert seal(first - 10, bytes(stream.plain[first - 10:first + 10])) is None
    assert seal(first, bytes(stream.plain[first:])) == stream.sealed[first:]


# -- the start marker, what is acknowledged -----------------------------------------------------------------


def test_what_comes_before_the_records():
    stream = Stream(start=5)
    stream.push(text(500))
    nic, wire = offloaded(stream)
    before = tcp_frame(5 - 10, b"handshake!")
    assert nic.transmit(before, marked=True) == [before]
    assert nic.counters.tx_tls_skip_no_sync_data == 1
    # A packet of both: the first part as it is, the second sealed.
    wire.take(nic.transmit(tcp_frame(5 - 3, b"ke!" + bytes(stream.plain[:100])), marked=True))
    assert wire.packets == [(-3, b"ke!" + stream.sealed[:100])]
    assert nic.counters.tx_tls_fallback == 1
    # Once a record is acknowledged there is no "before": 2 GB later these numbers are new data again.
    stream.map.release(5 + len(stream.plain))
    assert nic.transmit(before, marked=True) == []
    assert nic.counters.tx_tls_drop_no_sync_data == 1


def test_numbers_from_before_the_start_two_gigabytes_later_are_no_plaintext():
    """After 2^31 bytes a sequence number seems to be before the marker again: nothing may pass for that."""
    stream = Stream(start=0, room=1 << 16)
    nic, wire = offloaded(stream)
    for hop in range(5):
        stream.start = hop * 0x38000000
        stream.plain.clear()
        stream.sealed.clear()
        stream.number += len(stream.starts)
        stream.starts.clear()
        stream.push(text(100, hop))
        stream.map.release(stream.start - 1 & 0xFFFFFFFF if hop else 0)
        wire.take(nic.transmit(stream.packet(0, len(stream.plain)), marked=True))
        stream.map.release(stream.start + len(stream.plain))
    assert wire.canaries == 0
    assert not wire.wrong
    assert len(wire.packets) == 5
    assert nic.counters.tx_tls_skip_no_sync_data == 0


def test_an_optimistic_acknowledgement():
    """The peer acknowledges what still waits in the ring: the descriptor has its own bytes."""
    stream = Stream()
    stream.push(text(3000))
    nic, wire = offloaded(stream)
    packet = tcp.parse_untrusted(frame := stream.packet(0, 1000))
    assert nic._driver.transmit(0, frame, packet, 0, marked=True)
    assert nic.tx.space(0) < 1024
    stream.map.release(stream.start + 2**30)
    assert len(stream.map) == 0
    # Others take the room.
    view = stream.map.append(stream.start + len(stream.plain), bytes(3000))
    assert view is not None
    wire.take(nic.tx.process(0))
    assert wire.packets == [(0, bytes(stream.sealed[:1000]))]
    # Sent again there is nothing to do it with.
    assert nic.transmit(stream.packet(0, 1000), marked=True) == []
    assert nic.counters.tx_tls_drop_no_sync_data == nic.counters.tx_dropped == 1


# -- who has the context ------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [LINUX, FREEBSD, NO_POLICY])
def test_the_route_leads_to_a_nic_without_the_context(policy):
    stream = Stream()
    for n in range(4):
        stream.push(text(2000, n))
    nic, wire = offloaded(stream, policy)
    other = make_nic(2)
    flow = stream.flow(policy)
    assert not other.add_flow(flow, context=False)
    reader = RecordMapReader(stream.buffer)
    assert reader.owner == 1
    wire.take(nic.transmit(stream.packet(0, 1000), marked=True))
    wire.take(other.transmit(stream.packet(1000, 1000), marked=True))
    counters = other.counters
    if policy == NO_POLICY:
        # The control: the detector fires.
        assert wire.canaries > 40
        assert wire.wrong == [1000]
        return
    assert wire.canaries == 0
    assert not wire.wrong
    if policy == LINUX:
        assert wire.received() == stream.sealed[:2000]
        assert counters.tx_tls_fallback == 1
        return
    assert len(wire.packets) == 1
    assert counters.tx_tls_drop_bypass_req == 1
    assert reader.reset_pending
    # The task: the old context goes, then there is a new one; meanwhile both drop.
    assert not nic.add_flow(flow, context=False)
    assert reader.owner == 0
    assert nic.transmit(stream.packet(1000, 1000), marked=True) == []
    assert other.add_flow(flow)
    reader.reset_pending = False
    assert reader.owner == 2
    send_all(stream, other, wire, 1000, 1000)
    assert wire.received() == stream.sealed
    assert not wire.wrong
    assert not reader.reset_pending


@pytest.mark.parametrize("policy", [LINUX, FREEBSD])
def test_a_context_that_is_no_longer_the_flows_is_not_used(policy):
    """Another NIC took the flow: the word in the map counts, even for a packet in sequence."""
    stream = Stream()
    stream.push(text(2000))
    nic, wire = offloaded(stream, policy)
    wire.take(nic.transmit(stream.packet(0, 500), marked=True))
    stream.map.owner = 2
    wire.take(nic.transmit(stream.packet(500, 500), marked=True))
    assert nic.contexts() == 1
    assert nic.counters.tx_tls_encrypted_packets == 1
    assert nic.counters.tx_tls_fallback == (policy == LINUX)
    assert stream.map.reset_pending == (policy == FREEBSD)
    # It comes back: the device stands where it stood, and is told where to go on.
    stream.map.owner = 1
    send_all(stream, nic, wire, 500, 500 if policy == FREEBSD else 1000)
    assert wire.received() == stream.sealed
    assert nic.counters.tx_tls_ooo == (policy == LINUX)


def test_the_device_goes_down():
    stream = Stream()
    stream.push(text(4000))
    nic, wire = offloaded(stream)
    wire.take(nic.transmit(stream.packet(0, 1000), marked=True))
    nic.reset()
    assert nic.contexts() == 0
    send_all(stream, nic, wire, 1000, 1000)
    assert wire.received() == stream.sealed
    assert nic.counters.tx_tls_fallback == 4
    assert nic.counters.tx_tls_del == 1


def test_a_connection_that_is_to_end_sends_nothing_more():
    stream = Stream()
    stream.push(text(1000))
    nic, wire = offloaded(stream)
    wire.take(nic.transmit(stream.packet(0, 500), marked=True))
    stream.map.aborted = True
    assert nic.transmit(stream.packet(500, 500), marked=True) == []
    reset = tcp_frame(stream.start, b"", tcp.RST)
    assert nic.transmit(reset, marked=True) == [reset]


def test_packets_of_no_flow():
    stream = Stream()
    stream.push(text(500))
    nic = make_nic()
    assert nic.transmit(stream.packet(0, 500), marked=True) == []
    assert nic.counters.tx_tls_drop_bypass_req == 1
    # The control: without the mark it passes as it is.
    assert nic.transmit(stream.packet(0, 500)) == [stream.packet(0, 500)]
    # A flow that is known is sealed, marked or not.
    nic.add_flow(stream.flow())
    wire = Wire(stream)
    wire.take(nic.transmit(stream.packet(0, 500)))
    assert wire.received() == stream.sealed[:500]
    nic.remove_flow(stream.flow())
    assert nic.flows() == nic.contexts() == 0
    assert nic.transmit(stream.packet(0, 500), marked=True) == []


def test_contexts_are_limited():
    """The third flow has none: ENOSPC is counted once, and software gives the same bytes."""
    nic = make_nic(max_contexts=3)
    nic.contexts_elsewhere = 1
    for n in range(3):
        stream = Stream(make_keys(salt=n))
        stream.push(text(1000, n))
        flow = dataclasses.replace(stream.flow(), flow=FLOW[:-1] + bytes((n,)))
        assert nic.add_flow(flow) == (n < 2)
        wire = Wire(stream)
        for at in (0, 500):
            wire.take(nic.transmit(tcp_frame(stream.start + at, bytes(stream.plain[at:at + 500]), flow=flow.flow),
                                   marked=True))
        assert wire.received() == stream.sealed[:1000]
    counters = nic.counters
    assert (counters.tx_tls_ctx, counters.tx_tls_no_ctx, counters.tx_tls_fallback) == (2, 1, 2)
    assert counters.tx_tls_pool_alloc == 16


def test_a_cipher_that_the_device_does_not_have_and_a_feature_that_is_off():
    stream = Stream(make_keys(TLS12, CHACHA20_POLY1305))
    stream.push(text(1000))
    nic = make_nic()
    assert not nic.add_flow(stream.flow())
    wire = Wire(stream)
    send_all(stream, nic, wire, 300)
    assert wire.received() == stream.sealed
    assert nic.counters.tx_tls_no_ctx == 0
    gcm = Stream()
    assert nic.add_flow(gcm.flow())
    nic.set_feature("tls-hw-tx-offload", False)
    # Who has a context keeps it.
    assert nic.contexts() == 1
    assert not nic.add_flow(dataclasses.replace(Stream().flow(), flow=bytes(12)))
    with pytest.raises(ConfigError, match="tls-hw-rx-offload"):
        nic.set_feature("tso", True)


def test_modes_change_while_data_flows():
    """Records that software sealed pass as they are, whichever side of them is offloaded; bytes never change."""
    stream = Stream()
    for n in range(12):
        stream.push(text(700, n), ready=n % 3 == 1)
    nic, wire = offloaded(stream)
    send_all(stream, nic, wire, 500)
    assert wire.received() == stream.sealed
    # A packet of both kinds is the fall-back's: TCP has no part in where modes change.
    assert nic.counters.tx_tls_fallback > 0
    # Once they are acknowledged the fast path is back.
    stream.map.release(stream.start + stream.starts[11])
    before = nic.counters.tx_tls_encrypted_packets
    wire.take(nic.transmit(stream.packet(stream.starts[11], 722), marked=True))
    assert nic.counters.tx_tls_encrypted_packets == before + 1
    assert not wire.wrong


def test_bytes_sent_and_sent_again():
    stream = Stream(start=2**32 - 700)
    stream.push(text(3000))
    nic, _wire = offloaded(stream)
    for at, size in ((0, 1000), (1000, 1000), (500, 1000), (1500, 1000), (0, 100)):
        nic.transmit(stream.packet(at, size), marked=True)
    assert stream.map.sent_bytes == 2500
    assert stream.map.retransmitted_bytes == 1000 + 500 + 100
