"""Packets as lines: golden lines of every type and of the kernel module's; whatever the bytes, there is a line."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtstack.capture.captured import Captured
from smtstack.capture.lines import Lines
from smtstack.capture.pcapfile import Reader
from smtstack.errors import BadPacket
from smtstack.wire import ethernet, homa, ipv4, show
from tests import fuzz
from tests.golden import golden
from tests.pair import Pair, pattern, story
from tests.unit.test_decode import command, save, talk

A, B = ipv4.address("10.0.0.1"), ipv4.address("10.0.0.2")
ENTRY = homa.AckEntry(8, 40000, 2000)
RECORD = b"\x17\x03\x03\x05\x8b" + bytes(1435)


def framed(packet: homa.Packet, payload: bytes = b"", *, protocol: int = 146, ip_id: int = 0, tos: int = 7 << 5,
           flags: int = 0) -> bytes:
    transport = packet.pack() + payload
    if flags:
        transport = transport[:11] + bytes((transport[11] | flags,)) + transport[12:]
    ip = ipv4.IPv4(A, B, protocol, 20 + len(transport), ip_id, tos)
    return ethernet.Ethernet(bytes(6), bytes(6)).pack() + ip.pack() + transport


ENDS = "10.0.0.1:40000 > 10.0.0.2:2000 "


@pytest.mark.parametrize(("profile", "frame", "line"), [
    ("smt", framed(homa.Data(40000, 2000, 6, 5000, 4000, segment_size=1440), RECORD),
     "DATA rpc 6 client, 0+1440 of 5000, granted 4000, segments of 1440, record of 1419 B, prio 7"),
    ("smt", framed(homa.Data(40000, 2000, 7, 9000, 9000, 8640, 1440, 3, 1, 2, 0, 5), bytes(100), tos=3 << 5),
     "DATA rpc 6 server, 11520+100 of 9000, granted 9000, segments of 1440, again, cutoffs 3, epoch 5, prio 3"),
    ("smt", framed(homa.Data(40000, 2000, 6, 9000, 9000, 8640, 1440), bytes(100), ip_id=1),
     "DATA rpc 6 client, 10080+100 of 9000, granted 9000, segments of 1440, prio 7"),
    ("smt", framed(homa.Data(40000, 2000, 6, 9000, 9000, 0, 1440, packet_offset=2880, placed=True, incast=True),
                   bytes(9)),
     "DATA rpc 6 client, 2880+9 of 9000, granted 9000, segments of 1440, placed by NIC, incast, prio 7"),
    ("smt", framed(homa.Data(40000, 2000, 6, 9, 9), b"hello you", flags=homa.HANDSHAKE),
     "DATA handshake rpc 6 client, 0+9 of 9, granted 9, prio 7"),
    ("smt", framed(homa.Ack(40000, 2000, 6), flags=homa.HANDSHAKE), "ACK handshake rpc 6 client, prio 7"),
    ("linux", framed(homa.Data(40000, 2000, 6, 9000, 9000, 8500),
                     b"\x17\x03\x03\x01\x00" + (5).to_bytes(8, "big") + bytes(50), protocol=253),
     "DATA rpc 6 client, 8500[0]+63 of 9000, granted 9000, record of 256 B number 0x5, prio 7"),
    ("linux", framed(homa.Data(40000, 2000, 6, 9000, 9000, 8500, packet_index=2), bytes(50), protocol=253,
                     ip_id=1),
     "DATA rpc 6 client, 8500[3]+50 of 9000, granted 9000, prio 7"),
    ("homa", framed(homa.Grant(40000, 2000, 7, 20_000, 3)), "GRANT rpc 6 server, to 20000, wants prio 3, prio 7"),
    ("homa", framed(homa.Resend(40000, 2000, 7, 1440, 2880, 6, 255)),
     "RESEND rpc 6 server, 1440+2880, wants prio 6, epoch 255, prio 7"),
    ("homa", framed(homa.Unknown(40000, 2000, 6)), "UNKNOWN rpc 6 client, prio 7"),
    ("homa", framed(homa.Busy(40000, 2000, 6)), "BUSY rpc 6 client, prio 7"),
    ("homa", framed(homa.Freeze(40000, 2000, 6)), "FREEZE rpc 6 client, prio 7"),
    ("homa", framed(homa.NeedAck(40000, 2000, 7)), "NEED_ACK rpc 6 server, prio 7"),
    ("homa", framed(homa.Cutoffs(40000, 2000, 7, (8, 7, 6, 5, 4, 3, 2, 1), 9)),
     "CUTOFFS rpc 6 server, up to 8 7 6 5 4 3 2 1 B, version 9, prio 7"),
    ("homa", framed(homa.Ack(40000, 2000, 6, (ENTRY, ENTRY._replace(client_id=10)))),
     "ACK rpc 6 client, and 8(40000>2000) 10(40000>2000), prio 7"),
    ("smt", framed(homa.Ack(40000, 2000, 6, (), 1, bytes(16))), "ACK rpc 6 client, proof, epoch 1, prio 7"),
])
def test_every_type(profile, frame, line):
    assert show.frame_untrusted(frame, homa.FORMATS[profile]) == ENDS + line
    # What is not said is seen, but for smt and homa where nothing tells one from the other.
    assert show.frame_untrusted(frame) == ENDS + line


def test_no_type_and_no_field_is_left_out():
    """A field that a packet has and nobody shows would be a line that says less than it could."""
    assert {cls.__name__.upper() for cls in show.FIELDS} == {n.replace("_", "") for n in homa.TYPE_NAMES.values()}
    for cls, fields in show.FIELDS.items():
        empty: dict[str, Any] = {"cutoffs": (0,) * 8, "acks": (), "proof": b"", "placed": False, "incast": False,
                                 "overlay": False}
        names = {f.name: empty.get(f.name, 0) for f in dataclasses.fields(cls)}
        changed = {"acks": (ENTRY,), "proof": bytes(16), "cutoffs": (1,) * 8, "placed": True, "incast": True,
                                   "overlay": True}

        def shown(values: dict[str, Any], cls: type = cls) -> str:
            seen = show.Seen(cls(**values), 10, b"", homa.SMT, 1, 0)
            return show.parsed(seen)

        for name in names.keys() - {"sport", "dport"}:
            # Where a packet lies is told in one way or the other.
            basis = {**names, "placed": name == "packet_offset", "segment_size": 5 * (name == "packet_index"),
                     "acked_id": int(name == "acked_port")}
            basis = {key: value for key, value in basis.items() if key in names}
            assert shown(basis) != shown({**basis, name: changed.get(name, 77)}), (cls, name)
        assert len(fields) > 0


@pytest.mark.parametrize(("frame", "line"), [
    (b"", "malformed: frame of 0 bytes is shorter than an Ethernet header"),
    (bytes(12) + b"\x08\x06" + bytes(28), "00:00:00:00:00:00 > 00:00:00:00:00:00 EtherType 0x0806, 42 B"),
    (framed(homa.Busy(1, 2, 3))[:40], "malformed: IP total length 48 in a buffer of 26"),
    (framed(homa.Busy(1, 2, 3), protocol=6), "10.0.0.1 > 10.0.0.2 IP protocol 6, 48 B"),
    (framed(homa.Data(40000, 2000, 6, 9, 9)), ENDS + "malformed: DATA of 40 bytes carries no payload"),
    (framed(homa.Data(40000, 2000, 6, 0, 9), b"x"), ENDS + "malformed: DATA of a message of length 0"),
])
def test_what_is_wrong_is_said(frame, line):
    assert show.frame_untrusted(frame) == line


def test_unknown_types_and_short_ones():
    unknown = framed(homa.Busy(40000, 2000, 6))
    unknown = unknown[:47] + b"\x42" + unknown[48:]
    assert show.frame_untrusted(unknown) == ENDS + "malformed: unknown packet type 0x42"
    grant = homa.Grant(40000, 2000, 6, 1, 2).pack()[:-2]
    assert show.transport_untrusted(grant, homa.SMT) == "malformed: GRANT of 31 bytes, expected 33"
    ack = homa.Ack(40000, 2000, 6).pack()
    assert show.transport_untrusted(ack, homa.SMT) == "malformed: ACK of 90 bytes, expected 106"
    assert show.transport_untrusted(ack) == "ACK rpc 6 client, prio 0"


def test_a_header_without_its_payload():
    header = homa.Data(1, 2, 4, 20_000, 10_000, 8640, 1440).pack()
    assert (show.transport_untrusted(header, homa.SMT, size=8640, tos=5 << 5)
            == "DATA rpc 4 client, 8640+8640 of 20000, granted 10000, segments of 1440, prio 5")


#: Genuine frames with something put in somewhere.
_ALMOST = st.builds(lambda frame, at, extra: frame[:at] + extra + frame[at:],
                    st.sampled_from([f for name in homa.FORMATS for f in fuzz.genuine_frames(name)]),
                    st.integers(0, 120), st.binary(max_size=8))


@given(st.one_of(st.binary(max_size=200), _ALMOST), st.sampled_from([None, *homa.FORMATS.values()]))
def test_there_is_always_one_line(buf: bytes, fmt: homa.WireFormat | None) -> None:
    for call in (show.frame_untrusted, show.packet_untrusted, show.transport_untrusted):
        line = call(buf, fmt)
        assert line
        assert line.isprintable()


@pytest.mark.parametrize("profile", homa.FORMATS)
def test_no_payload_is_ever_shown(profile):
    secret = b"a secret that nobody must see"
    pair = Pair(profile)
    pair.request(secret * 100)
    pair.run()
    for frame in pair.frames:
        line = show.frame_untrusted(frame, homa.FORMATS[profile])
        assert "secret" not in line
        assert secret.hex()[:8] not in line


def test_assertions_tell_what_was_on_the_wire():
    pair = Pair(wire=lambda _frame: [])
    pair.request(pattern(3000))
    pair.run(30_000_000)
    with pytest.raises(AssertionError, match=r"DATA rpc 2 client, 0\+1440 of 3022") as failure:
        pair.check()
    assert "RESEND rpc 2 client, 0+100" in str(failure.value)
    assert story(pair.frames * 100).count("\n") == 61


# -- captures ------------------------------------------------------------------------------------------------

#: A capture of the kernel module: number of a packet and its line.
MODULE = {
    1: "192.168.12.2:32839 > 192.168.12.1:2000 DATA rpc 212 client, 0[0]+113 of 64, granted 64, record of 108 B "
       "number 0x6a0000, cutoffs 1, prio 7",
    7: "192.168.12.1:2000 > 192.168.12.2:32841 NEED_ACK rpc 218 server, prio 7",
    8: "192.168.12.2:32841 > 192.168.12.1:2000 ACK rpc 218 client, prio 7",
    9: "192.168.12.2:32841 > 192.168.12.1:2000 RESEND rpc 220 client, 0+100, wants prio 7, prio 7",
    10: "192.168.12.1:2000 > 192.168.12.2:32841 UNKNOWN rpc 220 server, prio 7",
    11: "192.168.12.2:32841 > 192.168.12.1:2000 DATA rpc 220 client, 0[0]+1049 of 1000, granted 1000, record of "
        "1044 B number 0x6e0000, again, cutoffs 1, prio 6",
}


def test_packets_of_the_module():
    with golden("pcaps", "main-smt-gso10000-loss10.server.pcap").open("rb") as stream:
        frames = [captured.frame for captured in Reader(stream).frames_untrusted()]
    for number, line in MODULE.items():
        assert show.frame_untrusted(frames[number - 1], homa.LINUX) == line
    assert not any(show.MALFORMED in show.frame_untrusted(frame) for frame in frames)


def test_packets_of_the_vectors():
    """All packets of the module's vectors are shown, with what the parser finds in them."""
    found = []
    for text in _hex_of(json.loads(golden("vectors", "smt-vectors.json").read_text())):
        packet = bytes.fromhex(text)
        try:
            end = ipv4.parse_untrusted(packet).total_length
            parsed = homa.parse_untrusted(packet[ipv4.HEADER_LEN:end], homa.LINUX)
        except BadPacket:
            continue
        found.append(show.packet_untrusted(packet, homa.LINUX))
        assert f":{parsed.sport} > " in found[-1]
        assert f" {show.rpc_name(parsed.sender_id)}, " in found[-1]
    assert len(found) > 20


def test_frames_of_upstream_homa():
    """Native or in the shape of TCP, they are known by their looks; IPv6 is not read."""
    for name, entry in json.loads(golden("vectors", "upstream-frames.json").read_text())["vectors"].items():
        line = show.frame_untrusted(bytes.fromhex(entry["frame"]))
        assert line == show.frame_untrusted(bytes.fromhex(entry["frame"]), homa.UPSTREAM)
        assert re.search(f" {entry['fields']['type']} rpc " if "ipv4" in name else "EtherType 0x86dd", line), line


def _hex_of(node: Any) -> list[str]:
    if isinstance(node, dict):
        return [text for value in node.values() for text in _hex_of(value)]
    if isinstance(node, list):
        return [text for value in node for text in _hex_of(value)]
    hexadecimal = isinstance(node, str) and len(node) % 2 == 0 and not set(node) - set("0123456789abcdef")
    return [node] if hexadecimal else []


def test_decode_says_what_there_is(tmp_path, capsys):
    frames = talk("homa", (3000,)).sent
    file = save(tmp_path / "a.pcap", frames)
    assert command(file, "--profile", "homa") == 0
    summary = capsys.readouterr().out
    assert command(file, "--profile", "homa", "-v") == 0
    said = capsys.readouterr().out
    assert said.endswith(summary)
    lines = said.removesuffix(summary).splitlines()
    assert len(lines) == len(frames)
    for number, (line, frame) in enumerate(zip(lines, frames, strict=True), 1):
        words = line.split(maxsplit=2)
        assert int(words[0]) == number
        assert float(words[1]) >= 0
        assert words[2] == show.frame_untrusted(frame, homa.HOMA)


def test_with_json_lines_go_to_stderr(tmp_path, capsys):
    file = save(tmp_path / "a.pcap", talk("homa", (30,)).sent)
    assert command(file, "--profile", "homa", "--json", "--verbose") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["messages"] == 2
    assert "DATA rpc 2 client, 0+30 of 30" in said.err


def test_lines_of_cut_packets_and_of_others():
    lines = Lines("homa")
    frame = framed(homa.Data(40000, 2000, 6, 1440, 1440), RECORD)
    assert lines.line_untrusted(Captured(5_000_000_000, 1, bytes(60))) == ""
    assert lines.line_untrusted(Captured(5_000_001_000, 1, frame, "e0 host")) == ""
    line = lines.line_untrusted(Captured(4_999_999_999, 1, frame[:80], missing=len(frame) - 80))
    assert line.split(maxsplit=2) == [
        "3", "-0.000000001",
        ENDS + "DATA rpc 6 client, 0+1440 of 1440, granted 1440, record of 1419 B, prio 7 [1434 B not captured]"]
