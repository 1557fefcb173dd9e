"""Capture files: both formats, both byte orders, every link type, and whatever a hostile file may hold."""

from __future__ import annotations

import io
import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtstack.capture import pcapng, pcapng_reader
from smtstack.capture.captured import MAX_PACKET, Captured
from smtstack.capture.links import LINK_ETHERNET, LINK_RAW, LINK_SLL
from smtstack.capture.pcapfile import Reader, Writer
from smtstack.errors import BadPacket
from tests.golden import golden

FRAMES = [bytes(12) + b"\x08\x00" + b"E" + bytes(40), b"\1" * 61, b"\2" * 1514, b"\3"]
#: 1 Jan 2026 and a number that shows which digits survive.
TIME = 1_767_225_600 * 1_000_000_000 + 123_456_789


def read(data: bytes) -> tuple[Reader, list[Captured]]:
    reader = Reader(io.BytesIO(data))
    return reader, list(reader.frames_untrusted())


def classic(order: str, magic: int, frames: list[bytes], fraction: int = 123_456) -> bytes:
    out = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, LINK_ETHERNET)
    for frame in frames:
        out += struct.pack(order + "IIII", TIME // 10**9, fraction, len(frame), len(frame)) + frame
    return out


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    size = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + size + body + size


def section(order: str, *interfaces: bytes) -> bytes:
    head = block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))
    return head + b"".join(block(order, 1, i) for i in interfaces)


def interface(order: str, link: int = LINK_ETHERNET, snap: int = 0, options: bytes = b"") -> bytes:
    return struct.pack(order + "HHI", link, 0, snap) + options


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def enhanced(order: str, number: int, time: int, frame: bytes, original: int | None = None) -> bytes:
    return block(order, 6, struct.pack(order + "IIIII", number, time >> 32, time & 0xFFFFFFFF, len(frame),
                                       len(frame) if original is None else original) + frame)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("magic", "nanoseconds"), [(0xA1B2C3D4, 123_456_000), (0xA1B23C4D, 123_456)])
def test_classic(order, magic, nanoseconds):
    reader, got = read(classic(order, magic, FRAMES))
    when = TIME // 10**9 * 10**9 + nanoseconds
    assert got == [Captured(when, LINK_ETHERNET, f) for f in FRAMES]
    assert (reader.truncated, reader.shortened) == (0, 0)


def test_written_files_read_back():
    stream = io.BytesIO()
    writer = Writer(stream, LINK_RAW)
    for n, frame in enumerate(FRAMES):
        writer.write(TIME + n, frame)
    assert read(stream.getvalue())[1] == [Captured(TIME + n, LINK_RAW, f) for n, f in enumerate(FRAMES)]


def test_link_type_comes_without_the_fcs_bits():
    data = bytearray(classic("<", 0xA1B2C3D4, FRAMES[:1]))
    data[20:24] = (0x10000000 | LINK_SLL).to_bytes(4, "little")
    assert read(bytes(data))[1][0].link_type == LINK_SLL


@pytest.mark.parametrize("cut", [1, 60, 61, 70])
def test_a_cut_off_last_packet_is_counted(cut):
    reader, got = read(classic("<", 0xA1B2C3D4, FRAMES[:2])[:-cut])
    assert [c.frame for c in got] == FRAMES[:1]
    assert reader.truncated == 1


def test_snap_length_is_noticed():
    data = bytearray(classic("<", 0xA1B2C3D4, FRAMES[:1]))
    data[36:40] = (1000).to_bytes(4, "little")
    assert read(bytes(data))[0].shortened == 1


@pytest.mark.parametrize("order", "<>")
def test_pcapng(order):
    fine = interface(order, options=option(order, 2, b"eth0") + option(order, 9, b"\x09") + option(order, 0, b""))
    coarse = interface(order, LINK_SLL)
    later = option(order, 14, struct.pack(order + "q", 3))
    binary = interface(order, LINK_RAW, 20, option(order, 9, b"\x8a") + later)
    data = (section(order, fine, coarse, binary) + enhanced(order, 0, TIME, FRAMES[0])
            + block(order, 5, b"interface statistics") + enhanced(order, 1, TIME // 1000, FRAMES[1])
            + enhanced(order, 2, 5 << 10, FRAMES[2][:20], len(FRAMES[2])) + block(order, 0xBAD, bytes(7)))
    reader, got = read(data)
    assert got == [Captured(TIME, LINK_ETHERNET, FRAMES[0], "eth0"),
                   Captured(TIME // 1000 * 1000, LINK_SLL, FRAMES[1]),
                   Captured(8 * 10**9, LINK_RAW, FRAMES[2][:20], missing=len(FRAMES[2]) - 20)]
    assert (reader.truncated, reader.shortened) == (0, 1)


def test_pcapng_simple_packets_obey_the_snap_length():
    data = section("<", interface("<", snap=32)) + block("<", 3, struct.pack("<I", 61) + FRAMES[1][:32])
    reader, got = read(data)
    assert got == [Captured(0, LINK_ETHERNET, FRAMES[1][:32], missing=29)]
    assert reader.shortened == 1


@pytest.mark.parametrize("order", "<>")
def test_the_packet_block_of_old(order):
    kinds = interface(order, LINK_ETHERNET), interface(order, LINK_RAW, options=option(order, 9, b"\x09"))
    frame = FRAMES[1][:21]
    body = struct.pack(order + "HHIIII", 1, 0xFFFF, TIME >> 32, TIME & 0xFFFFFFFF, len(frame), 61) + frame
    body += bytes(-len(body) % 4) + option(order, 2, struct.pack(order + "I", 2))
    reader, got = read(section(order, *kinds) + block(order, 2, body))
    assert got == [Captured(TIME, LINK_RAW, frame, outwards=True, missing=40)]
    assert reader.shortened == 1


@pytest.mark.parametrize("order", "<>")
def test_modified_pcap(order):
    out = struct.pack(order + "IHHiIII", 0xA1B2CD34, 2, 4, 0, 0, 65535, LINK_ETHERNET)
    for frame in FRAMES:
        head = TIME // 10**9, 123_456, len(frame), len(frame)
        out += struct.pack(order + "IIIIIHBB", *head, 3, 0x800, 0, 0) + frame
    reader, got = read(out)
    assert got == [Captured(TIME // 10**9 * 10**9 + 123_456_000, LINK_ETHERNET, f) for f in FRAMES]
    assert reader.truncated == 0
    assert read(out[:-4])[0].truncated == 1


@pytest.mark.parametrize(("minor", "swapped"), [(0, True), (2, True), (3, True), (3, False), (4, False)])
def test_lengths_changed_places_in_version_2_3(minor, swapped):
    out = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, minor, 0, 0, 40, LINK_ETHERNET)
    lengths = (60, 40) if swapped else (40, 60)
    reader, got = read(out + struct.pack("<IIII", 1, 0, *lengths) + FRAMES[2][:40])
    assert got == [Captured(10**9, LINK_ETHERNET, FRAMES[2][:40], missing=20)]
    assert reader.truncated == 0


#: Time of a packet with 1000 units, by resolution: decimal, and binary by the upper bit.
RESOLUTIONS = {0: 1000 * 10**9, 3: 10**9, 6: 10**6, 9: 1000, 12: 1, 0x8A: 1000 * 10**9 // 1024, 0x80: 1000 * 10**9,
               0x7F: 0, 0xFF: 0}


@pytest.mark.parametrize("order", "<>")
def test_every_resolution_of_time(order):
    for value, nanoseconds in RESOLUTIONS.items():
        with_it = interface(order, options=option(order, 9, bytes([value])))
        captured, = read(section(order, with_it) + enhanced(order, 0, 1000, FRAMES[0]))[1]
        assert captured.timestamp_ns == nanoseconds


@pytest.mark.parametrize("time", [0, (1 << 64) - 1])
@pytest.mark.parametrize("offset", [-(1 << 63), (1 << 63) - 1])
def test_times_stay_within_what_can_be_written(time, offset):
    odd = interface("<", options=option("<", 9, b"\0") + option("<", 14, struct.pack("<q", offset)))
    captured, = read(section("<", odd) + enhanced("<", 0, time, FRAMES[0]))[1]
    pcapng.packet(0, captured.timestamp_ns, captured.frame, None)


def secrets(order: str, text: bytes, kind: int = 0x544C534B, size: int | None = None) -> bytes:
    return block(order, 10, struct.pack(order + "II", kind, len(text) if size is None else size) + text)


@pytest.mark.parametrize("order", "<>")
def test_secrets_are_read_wherever_and_however_long(order):
    long = b"SMT_SECRET " * 200_000
    packet = enhanced(order, 0, 7, FRAMES[0])
    reader, got = read(section(order, interface(order)) + secrets(order, b"first") + packet + secrets(order, long)
                       + secrets(order, b"not of TLS", kind=0x57474B4C) + packet + secrets(order, b""))
    assert len(got) == 2
    assert reader.tls_secrets == [b"first", long, b""]
    assert reader.passed_over == {"pcapng blocks of secrets of kind 0x57474b4c": 1}
    with pytest.raises(BadPacket, match=r"damaged.*6 bytes of secrets"):
        read(section(order) + secrets(order, b"abcd", size=6))


@pytest.mark.parametrize("kind", sorted(pcapng_reader.BOUNDS))
def test_each_type_of_block_has_its_bound(kind):
    """Beyond it a block is too large, or (of packets) left out and counted; it is never damaged, nor kept."""
    name, bound = pcapng_reader.BOUNDS[kind]

    def with_block(size: int) -> bytes:
        head = struct.pack("<II", kind, size)
        if kind == pcapng_reader.MAGIC:
            return head + struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + bytes(size - 28) + head[4:]
        start = section("<", interface("<"))
        # No packets in it, and no secrets: as much as there has to be.
        body = struct.pack("<IIIII", 0, 0, 0, 0, 0) if kind in (2, 6) else bytes(20)
        return start + head + body + bytes(size - 32) + head[4:] + enhanced("<", 0, 7, FRAMES[0])

    assert read(with_block(4096))[0].oversized == 0
    if kind in (2, 3, 6):
        reader, got = read(with_block(bound + 4))
        assert (reader.oversized, got) == (1, [Captured(7000, LINK_ETHERNET, FRAMES[0])])
    else:
        tracemalloc.start()
        with pytest.raises(BadPacket, match=f"too large: a pcapng {name} of {bound + 4} bytes; at most {bound}"):
            # Told by the length alone.
            read(with_block(4096).replace(struct.pack("<II", kind, 4096), struct.pack("<II", kind, bound + 4), 1))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


def test_blocks_that_nobody_knows_are_passed_over_however_long_and_named():
    big = block("<", 0x80000001, bytes(5 << 20))
    silent = b"".join(block("<", kind, bytes(8)) for kind in (4, 5, 0xBAD, 0x40000BAD))
    reader, got = read(section("<", interface("<")) + big + silent + block("<", 7, b"")
                       + block("<", 9, b"abcd") + enhanced("<", 0, 7, FRAMES[0]))
    assert [c.frame for c in got] == FRAMES[:1]
    assert reader.passed_over == {"Darwin's process information": 1, "pcapng blocks of type 0x00000007": 1,
                                  "journal entries of systemd": 1}
    with pytest.raises(BadPacket, match=r"damaged.*the file ends before"):
        read(section("<") + big[:1 << 20])


def test_packets_of_no_network_are_counted_and_left_out():
    huge = struct.pack("<IIII", 1, 0, MAX_PACKET + 1, MAX_PACKET + 1) + bytes(MAX_PACKET + 1)
    for snap_length in (0, 1 << 28):
        head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, snap_length, LINK_ETHERNET)
        reader, got = read(head + huge + classic("<", 0xA1B2C3D4, FRAMES)[24:])
        assert [c.frame for c in got] == FRAMES
        assert reader.oversized == 1


def test_pcapng_sections_may_differ_in_byte_order():
    data = b"".join(section(order, interface(order, link)) + enhanced(order, 0, 7, FRAMES[0])
                    for order, link in (("<", LINK_ETHERNET), (">", LINK_SLL)))
    assert [c.link_type for c in read(data)[1]] == [LINK_ETHERNET, LINK_SLL]


@pytest.mark.parametrize("cut", [1, 30, 61, 88])
def test_pcapng_cut_off(cut):
    data = section("<", interface("<")) + enhanced("<", 0, 7, FRAMES[0]) + enhanced("<", 0, 8, FRAMES[1])
    reader, got = read(data[:-cut])
    assert [c.frame for c in got] == FRAMES[:1]
    assert reader.truncated == 1


def corrupt(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value):]


NG = section("<", interface("<")) + enhanced("<", 0, 7, FRAMES[0])
CLASSIC = classic("<", 0xA1B2C3D4, FRAMES)
NG_PACKET = len(section("<", interface("<")))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a capture"),
        (b"\xd4\xc3", "not a capture"),
        (b"PK\x03\x04" + bytes(100), "zip file.*504b0304"),
        (b"snoop\0\0\0" + bytes(100), "snoop capture"),
        (b"RTSS" + bytes(100), "Network Monitor"),
        (struct.pack("<I", 0x1C0001AC) + bytes(100), "Ixia"),
        (struct.pack("<IHHiIII", 0xA1B2C3D4, 3, 1, 0, 0, 0, 1), "version 3.1"),
        (CLASSIC[:20], "cut short"),
        (corrupt(CLASSIC, 32, struct.pack("<I", MAX_PACKET + 1)), "1048577 bytes"),
        (corrupt(NG, 8, bytes(4)), "byte-order"),
        (corrupt(NG, 4, struct.pack("<I", 1 << 31)), "2147483648 bytes"),
        (corrupt(NG, NG_PACKET + 4, struct.pack("<I", 8)), "block of 8 bytes"),
        (corrupt(NG, NG_PACKET + 4, struct.pack("<I", 33)), "block of 33 bytes"),
        (corrupt(NG, len(NG) - 4, bytes(4)), "two lengths"),
        (corrupt(NG, NG_PACKET + 8, b"\1"), "interface 1"),
        (corrupt(NG, NG_PACKET + 20, struct.pack("<I", 57)), "packet of 57 bytes"),
        (section("<") + block("<", 1, bytes(4)), "too short"),
        (section("<") + block("<", 3, bytes(8)), "without an interface"),
        (section("<") + block("<", 6, bytes(16)), "too short"),
        (section("<", interface("<", options=struct.pack("<HH", 2, 99))), "option"),
    ],
)
def test_damage_is_a_bad_packet(data, says):
    with pytest.raises(BadPacket, match=says):
        read(data)


@given(st.sampled_from([CLASSIC, NG, classic(">", 0xA1B23C4D, FRAMES)]), st.data())
def test_no_file_can_do_more(data, choose):
    damaged = bytearray(data)
    for _ in range(choose.draw(st.integers(1, 6))):
        damaged[choose.draw(st.integers(0, len(damaged) - 1))] = choose.draw(st.integers(0, 255))
    try:
        for captured in read(bytes(damaged[:choose.draw(st.integers(0, len(damaged)))]))[1]:
            assert captured.timestamp_ns < 1 << 64
    except BadPacket:
        pass


def test_a_real_capture():
    reader, got = read(golden("pcaps", "main-smt-gso10000-lossless.server.pcap").read_bytes())
    assert len(got) == 100
    assert {c.link_type for c in got} == {LINK_ETHERNET}
    assert max(len(c.frame) for c in got) == 1514
    assert [c.timestamp_ns for c in got] == sorted(c.timestamp_ns for c in got)
    assert (reader.truncated, reader.shortened) == (0, 0)
