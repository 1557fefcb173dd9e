"""Captures of upstream Homa's module, decoded: its counts, its content, its shapes."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from smtstack.capture.decode import Decoder, Message
from smtstack.capture.decrypt import Decrypter
from smtstack.capture.files import CaptureFile
from smtstack.capture.links import LINK_ETHERNET
from smtstack.capture.pcapfile import Reader, Writer
from smtstack.capture.reading import read_into
from smtstack.crypto.keys import demo_keys
from smtstack.errors import BadPacket
from smtstack.transport.params import UPSTREAM
from smtstack.wire import frame as wire_frame
from smtstack.wire import homa, ipv4, upstream
from smtstack.wire.ethernet import Ethernet
from smtstack.wire.ipv4 import IPv4
from tests.captures import tshark
from tests.golden import golden
from tests.pair import Pair, pattern
from workloads.commands import pcap

FILES = ["client-vanished", "control-hijacked", "control-native", "dead-peer-default-timers",
         "hijacked-gso-lossless", "hijacked-loss10.sent", "hijacked-lossless",
         "mixed-hijacked-client-native-server", "native-gso-lossless", "native-loss10.sent", "native-lossless"]


def counts_of(name: str) -> dict[str, Any]:
    entries = json.loads(golden("pcaps", "upstream", "counts.json").read_text())
    (found,) = [e for e in entries if e["file"] == f"{name}.pcap"]
    assert isinstance(found, dict)
    return found


def content(length: int, number: int) -> bytes:
    """Message ``number`` of a run, as the captures' README has it."""
    return bytes((7 * i + i // 251 + number) % 256 for i in range(length))


@pytest.mark.parametrize("name", FILES)
def test_counts_and_content(name: str) -> None:
    expected = counts_of(name)
    said: list[Message] = []
    decoder = Decoder("upstream", demo_keys("upstream"), on_message=said.append)
    assert read_into(decoder, CaptureFile(golden("pcaps", "upstream", f"{name}.pcap"))) == []
    result = decoder.result()
    counts = expected["counts"]
    assert result.packets == {kind: counts[kind] for kind in homa.TYPE_NAMES.values() if counts.get(kind)}
    assert sum(result.packets.values()) == counts["frames"]
    assert result.retransmitted == counts["DATA_retx"]
    assert decoder.tcp_shaped == counts.get("hijacked", 0)
    assert result.ignored == expected["other_frames"]
    assert (result.messages, result.messages_complete) == (expected["messages"], expected["complete"])
    assert result.bad_packets == 0
    assert decoder.hints() == []
    lengths: dict[str, int] = {}
    for message in said:
        if message.data is None:
            continue
        key = f"{'resp' if message.sender_id & 1 else 'req'} {len(message.data)}"
        lengths[key] = lengths.get(key, 0) + 1
        assert message.data == content(len(message.data), message.data[0]), message.flow
    assert lengths == expected["lengths"]
    requests = {m.sender_id: m.data for m in said if not m.sender_id & 1 and m.data is not None}
    assert all(m.data == requests[m.sender_id ^ 1] for m in said if m.sender_id & 1 and m.data is not None)


def test_a_byte_that_is_wrong_would_be_seen() -> None:
    """The control of the content above."""
    assert content(300, 3) != content(300, 4)
    said: list[Message] = []
    decoder = Decoder("upstream", demo_keys("upstream"), on_message=said.append)
    for frame in conversation(0).frames:
        spoilt = frame[:100] + bytes(byte ^ 1 for byte in frame[100:101]) + frame[101:]
        decoder.add(LINK_ETHERNET, spoilt)
    decoder.result()
    assert any(m.data is not None and m.data != pattern(len(m.data)) for m in said)


@pytest.mark.parametrize("name", FILES)
def test_decrypt_writes_each_message_once(name: str) -> None:
    decrypter = Decrypter("upstream", demo_keys("upstream"))
    read_all(decrypter, golden("pcaps", "upstream", f"{name}.pcap"))
    counts = decrypter.finish()
    assert counts.messages_complete == counts_of(name)["complete"]
    assert counts.bad_packets == counts.records_failed == 0


def read_all(decrypter: Decrypter, path: Path) -> None:
    decrypter.begin()
    with CaptureFile(path).open() as stream:
        for captured in Reader(stream).frames_untrusted():
            decrypter.add(captured)


# -- what we send -------------------------------------------------------------------------------------------


def conversation(shape: int, sizes: tuple[int, ...] = (64, 5000, 90_000)) -> Pair:
    pair = Pair("upstream", params=replace(UPSTREAM, hijack_tcp=shape))
    for size in sizes:
        pair.request(pattern(size))
    pair.run()
    return pair


def save(path: Path, frames: list[bytes]) -> Path:
    with path.open("wb") as stream:
        writer = Writer(stream)
        for n, frame in enumerate(frames):
            writer.write(n * 1000, frame)
    return path


def decode(path: Path, *options: str) -> int:
    parser = argparse.ArgumentParser()
    pcap.add_parser(parser.add_subparsers())
    args = parser.parse_args(["pcap", "decode", str(path), *options])
    code: int = args.run(args)
    return code


@pytest.mark.parametrize("shape", [0, 1])
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: int) -> None:
    path = save(tmp_path / "a.pcap", conversation(shape).frames)
    assert decode(path, "--profile", "upstream", "--json", "-v") == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["messages"], result["messages_complete"]) == (6, 6)
    assert result["bytes"] == 2 * 95_064
    assert result["tcp_shaped"] == (sum(result["packets"].values()) if shape else 0)
    lines = err.splitlines()
    assert len(lines) == sum(result["packets"].values())
    assert " DATA rpc 2 client, 0+64 of 64, granted 64, prio 6" in lines[0]
    # The wrong profile is told the right one.
    assert decode(path, "--profile", "smt", "--keys", "demo") == 1
    assert "try --profile upstream" in capsys.readouterr().err


def test_tcp_that_is_none_of_homa_is_no_packet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = conversation(1, (64,)).frames
    tcp = [frame[:47] + b"\x10" + frame[48:] for frame in frames]
    path = save(tmp_path / "a.pcap", frames + tcp)
    assert decode(path, "--profile", "upstream", "--json", "-v") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["others"] == {"TCP": len(tcp)}
    assert len(err.splitlines()) == len(frames)


# -- the dissector ------------------------------------------------------------------------------------------

needs_tshark = pytest.mark.skipif(shutil.which("tshark") is None,
                                  reason="tshark is not installed (Debian: tshark)")
FIELDS = ("smt.type", "smt.srcport", "smt.dstport", "smt.sender_id", "smt.id", "smt.role", "smt.tcp_shaped",
          "smt.message_length", "smt.incoming", "smt.sequence", "smt.offset", "smt.retransmit", "smt.ack.id",
          "smt.ack.server_port", "smt.cutoff_version", "smt.grant.offset", "smt.resend.offset",
          "smt.resend.length", "smt.priority", "smt.cutoff", "smt.ack.count")


def told(frame: bytes) -> list[str]:
    """What our own parser says, as tshark prints it."""
    ip, p, _payload = wire_frame.parse_untrusted(frame, homa.UPSTREAM)
    said: dict[str, object] = {
        "type": f"0x{frame[45]:02x}", "srcport": p.sport, "dstport": p.dport, "sender_id": p.sender_id,
        "id": p.sender_id & ~1, "role": "server" if p.sender_id & 1 else "client",
        "tcp_shaped": int(ip.protocol == ipv4.PROTO_TCP)}
    if isinstance(p, homa.Data):
        said |= {"message_length": p.message_length, "incoming": p.incoming, "sequence": p.segment_offset,
                 "offset": p.segment_offset + p.packet_offset, "retransmit": p.retransmit, "ack.id": p.acked_id,
                 "ack.server_port": p.acked_port, "cutoff_version": p.cutoff_version}
    elif isinstance(p, homa.Grant):
        said |= {"grant.offset": p.offset, "priority": p.priority}
    elif isinstance(p, homa.Resend):
        said |= {"resend.offset": p.offset, "resend.length": p.length % (1 << 32), "priority": p.priority}
    elif isinstance(p, homa.Cutoffs):
        said |= {"cutoff": ",".join(map(str, p.cutoffs)), "cutoff_version": p.cutoff_version}
    elif isinstance(p, homa.Ack):
        said |= {"ack.count": len(p.acks), "ack.id": ",".join(str(e.client_id) for e in p.acks),
                 "ack.server_port": ",".join(str(e.server_port) for e in p.acks)}
    return [str(said.get(name.removeprefix("smt."), "")) for name in FIELDS]


def rows_match(path: Path, frames: list[bytes]) -> None:
    rows = tshark(path, *FIELDS)
    assert len(rows) == len(frames)
    for row, frame in zip(rows, frames, strict=True):
        assert row == told(frame)


@needs_tshark
def test_the_dissector_on_every_frame_of_the_module(tmp_path: Path) -> None:
    entries = json.loads(golden("vectors", "upstream-frames.json").read_text())["vectors"].values()
    frames = [bytes.fromhex(e["frame"]) for e in entries if e["fields"]["v"] == 4]
    rows_match(save(tmp_path / "a.pcap", frames), frames)


@needs_tshark
@pytest.mark.parametrize("shape", [0, 1])
def test_the_dissector_on_ours(tmp_path: Path, shape: int) -> None:
    frames = conversation(shape).frames
    path = save(tmp_path / "a.pcap", frames)
    rows_match(path, frames)
    assert tshark(path, "frame.number", only="smt.malformed || tcp") == []
    names = tshark(path, "_ws.col.Protocol", "_ws.col.Info", only="smt.id == 4 && smt.type == 0x10")
    assert names[0] == ["Homa", "DATA 4 [0..1424) of 5000"]


@needs_tshark
def test_the_dissector_leaves_tcp_alone(tmp_path: Path) -> None:
    frames = conversation(1, (64,)).frames
    tcp = [frame[:47] + b"\x10" + frame[48:] for frame in frames]
    path = save(tmp_path / "a.pcap", frames + tcp)
    assert len(tshark(path, "tcp.port", only="tcp")) == len(tcp)
    assert len(tshark(path, "smt.id", only="smt")) == len(frames)


@needs_tshark
def test_the_dissector_on_what_is_none(tmp_path: Path) -> None:
    """Cut anywhere, and with bytes changed: what our parser refuses is malformed to it, too, or not Homa."""
    rng = Random(5)
    entries = json.loads(golden("vectors", "upstream-frames.json").read_text())["vectors"].values()
    whole = [bytes.fromhex(e["frame"])[34:34 + e["fields"]["tlen"]] for e in entries if e["fields"]["v"] == 4]
    transports = [t[:size] for t in whole[::4] for size in range(0, min(len(t), 100), 3)]
    for t in whole * 8:
        changed = bytearray(t)
        for _change in range(rng.randrange(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        transports.append(bytes(changed))
    refused = []
    for n, transport in enumerate(transports):
        try:
            upstream.parse_untrusted(transport)
        except BadPacket:
            refused.append(n)
    frames = [Ethernet(bytes(6), bytes(6)).pack() + IPv4(1, 2, 146, 20 + len(t)).pack() + t for t in transports]
    path = save(tmp_path / "a.pcap", frames)
    odd = {int(row[0]) - 1 for row in tshark(path, "frame.number", only="smt.malformed || !smt.upstream")}
    assert set(refused) <= odd
    assert len(refused) > 100
