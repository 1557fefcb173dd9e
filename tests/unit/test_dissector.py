"""The Wireshark dissector against our own decoder, by tshark: all packet types, whole, cut and changed ones."""

from __future__ import annotations

import argparse
import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from smtstack.capture import pcapng
from smtstack.capture.decrypt import Decrypter
from smtstack.capture.files import CaptureFile
from smtstack.capture.keylog import Keylog
from smtstack.crypto.keys import demo_keys
from smtstack.errors import BadPacket
from smtstack.session.flights import Flight, Kind, Refusal, refused
from smtstack.session.offer import Agreement, Offer
from smtstack.sim.pair import CLIENT_IP, SERVER_IP
from smtstack.transport.params import TransportParams
from smtstack.wire import homa
from smtstack.wire.ethernet import Ethernet
from smtstack.wire.homa import HANDSHAKE, AckEntry, Data
from smtstack.wire.ipv4 import IPv4, parse_untrusted
from tests.captures import captured, nobody, tshark, tshark_text
from tests.unit.test_decode import MODULE, module_frames, save, talk
from tests.unit.test_decrypt import conversation
from workloads.commands import pcap
from workloads.commands.pcap_decrypt import write_decrypted

pytestmark = pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed (Debian: tshark)")

SPORT, DPORT, ID, EPOCH = 40_000, 2000, (1 << 63) + 42, 200
ENTRIES = tuple(AckEntry(2 * n, 100 + n, 200 + n) for n in range(5))
PROOF = bytes(range(16))
#: One of every type, as profile smt has them.
PACKETS: tuple[homa.Packet, ...] = (
    Data(SPORT, DPORT, ID, 9000, 8000, 1 << 20, 1440, 7, 1, 3, 2880, EPOCH, placed=True, incast=True),
    Data(SPORT, DPORT, ID + 1, 100_000, 100, 4320, 1440, 7, 0, 2, 0, EPOCH),
    homa.Grant(SPORT, DPORT, ID, 123_456, 5, EPOCH), homa.Resend(SPORT, DPORT, ID, 1440, 2880, 3, EPOCH),
    homa.Unknown(SPORT, DPORT, ID, EPOCH), homa.Busy(SPORT, DPORT, ID + 1, EPOCH),
    homa.Freeze(SPORT, DPORT, ID, EPOCH), homa.NeedAck(SPORT, DPORT, ID, EPOCH),
    homa.Cutoffs(SPORT, DPORT, ID, tuple(range(1000, 9000, 1000)), 9, EPOCH),
    homa.Ack(SPORT, DPORT, ID, (), EPOCH, PROOF), homa.Ack(SPORT, DPORT, ID, ENTRIES, EPOCH, PROOF),
)


def frame(transport: bytes, protocol: int = homa.PROTO_HOMA, ip_id: int = 0) -> bytes:
    """In IPv4 and Ethernet."""
    header = IPv4(CLIENT_IP, SERVER_IP, protocol, 20 + len(transport), ip_id)
    return Ethernet(bytes(6), bytes(6)).pack() + header.pack() + transport


def packed(packet: homa.Packet) -> bytes:
    """With a payload, where there must be one."""
    return packet.pack() + (b"payload" if isinstance(packet, Data) else b"")


def flagged(transport: bytes) -> bytes:
    """Of the handshake plane."""
    out = bytearray(transport)
    out[homa.FLAGS_OFFSET] |= HANDSHAKE
    return bytes(out)


COMMON = ("smt.type", "smt.srcport", "smt.dstport", "smt.sender_id", "smt.id", "smt.role", "smt.epoch")
OF_DATA = ("smt.message_length", "smt.incoming", "smt.segment_offset", "smt.segment_size", "smt.cutoff_version",
           "smt.retransmit", "smt.packet_index", "smt.packet_offset", "smt.flags.placed", "smt.flags.incast",
           "smt.flags.handshake", "smt.offset")


def expected(transport: bytes, fmt: homa.WireFormat, ip_id: int) -> list[str]:
    """What our own decoder says, as tshark prints it."""
    packet = homa.parse_untrusted(transport, fmt)
    common = [f"0x{transport[homa.TYPE_OFFSET]:02x}", str(packet.sport), str(packet.dport), str(packet.sender_id),
              str(packet.sender_id & ~1), "server" if packet.sender_id & 1 else "client",
              str(packet.epoch) if fmt.extended else ""]
    if not isinstance(packet, Data):
        return common
    data = [packet.message_length, packet.incoming, packet.segment_offset, packet.segment_size,
            packet.cutoff_version, packet.retransmit, packet.packet_index, packet.packet_offset, packet.placed,
            packet.incast, transport[homa.FLAGS_OFFSET] & HANDSHAKE != 0,
            packet.segment_offset + packet.offset_in_segment(ip_id)]
    extended = (3, 7, 8, 9, 10, 11)
    return common + [str(int(v)) if fmt.extended or n not in extended else "" for n, v in enumerate(data)]


def compare(path: Path, frames: list[bytes], fmt: homa.WireFormat) -> None:
    """Every field of every packet."""
    rows = tshark(save(path, frames), *COMMON, *OF_DATA)
    assert len(rows) == len(frames)
    for row, whole in zip(rows, frames, strict=True):
        ip = parse_untrusted(whole[14:])
        want = expected(whole[34:14 + ip.total_length], fmt, ip.identification)
        if len(want) == len(COMMON):
            # Flags stand in every packet; CUTOFFS have a version, too.
            assert row[:len(COMMON)] == want
        else:
            assert row == want


# -- fields ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("fmt", "handshake"), [(homa.SMT, False), (homa.HOMA, True), (homa.LINUX, False)])
def test_every_packet_type(tmp_path, fmt, handshake):
    frames = []
    for n, packet in enumerate(PACKETS):
        transport = flagged(packed(packet)) if handshake else packed(packet)
        frames.append(frame(transport, fmt.protocol, n))
    compare(tmp_path / "a.pcap", frames, fmt)


def test_fields_of_control_packets(tmp_path):
    path = save(tmp_path / "a.pcap", [frame(packed(p)) for p in PACKETS])
    assert tshark(path, "smt.grant.offset", "smt.priority", only="smt.type == 0x11") == [["123456", "5"]]
    assert tshark(path, "smt.resend.offset", "smt.resend.length", "smt.priority", only="smt.type == 0x12") == [
        ["1440", "2880", "3"]]
    assert tshark(path, "smt.cutoff", "smt.cutoff_version", only="smt.type == 0x15") == [
        [",".join(str(n) for n in range(1000, 9000, 1000)), "9"]]
    proof = PROOF.hex()
    fields = ("count", "id", "client_port", "server_port", "proof")
    assert tshark(path, *(f"smt.ack.{f}" for f in fields), only="smt.type == 0x18") == [
        ["0", "", "", "", proof],
        ["5", *(",".join(str(e[n]) for e in ENTRIES) for n in range(3)), proof]]


def test_the_info_column_and_filters(tmp_path):
    said = talk("smt", (5000,))
    path = save(tmp_path / "a.pcap", said.sent)
    rows = tshark(path, "_ws.col.Protocol", "_ws.col.Info", only="smt.id == 2 && smt.type == 0x10 && "
                                                                 "smt.role == \"client\" && smt.epoch == 0")
    assert rows[0] == ["SMT", "DATA 2 [0..1440) of 5022 epoch 0"]
    assert rows[-1] == ["SMT", "DATA 2 [4320..5022) of 5022 epoch 0"]
    assert len(rows) == 4
    answers = tshark(path, "_ws.col.Info", only="smt.role == \"server\" && smt.type == 0x10")
    assert answers[0] == ["DATA 2 response [0..1440) of 5023 epoch 0"]
    assert tshark(path, "frame.number", only=f"smt.port == {SPORT}") == []
    ports = tshark(path, "frame.number", only="smt.port == 2000")
    assert len(ports) == len(said.sent)


@pytest.mark.parametrize("profile", ["smt", "homa", "linux"])
def test_what_our_engine_sends(tmp_path, profile):
    params = TransportParams(max_gso_size=40_000) if profile != "linux" else None
    said = talk(profile, (1, 1404, 5000, 70_000), seed=2, loss=0.1, params=params)
    compare(tmp_path / "a.pcap", said.sent, homa.FORMATS[profile])
    sealed = tshark(tmp_path / "a.pcap", "smt.sealed", only="smt.type == 0x10")
    assert {row[0] for row in sealed} == {"0" if profile == "homa" else "1"}


def test_records_of_a_segment_that_holds_several(tmp_path):
    said = talk("smt", (60_000,), params=TransportParams(max_gso_size=40_000))
    path = save(tmp_path / "a.pcap", said.sent)
    rows = tshark(path, "smt.record.length", "smt.message_length", only='smt.type == 0x10 && smt.role == "client"')
    lengths = [int(n) for row in rows for n in row[0].split(",") if n]
    total = int(rows[0][1])
    # Every header is seen but those that two packets share.
    assert len(lengths) > 3
    assert sum(5 + n for n in lengths) <= total
    assert len(set(lengths[:-1])) == 1


@pytest.mark.parametrize("name", MODULE)
def test_captures_of_the_kernel_module(tmp_path, name):
    frames = module_frames(name)
    compare(tmp_path / "a.pcap", frames, homa.LINUX)
    records = [row for row in tshark(tmp_path / "a.pcap", "smt.record.nonce", "smt.retransmit") if row[0]]
    if "homa" in name:
        offsets = tshark(tmp_path / "a.pcap", "smt.segment_header.offset", only="smt.type == 0x10")
        assert not records
        assert all(row[0] for row in offsets)
    else:
        assert len({row[0] for row in records}) <= MODULE[name][3]
        assert len(records) >= MODULE[name][3]


# -- what is no packet -----------------------------------------------------------------------------------

def test_malformed_packets_are_told_and_no_error_of_the_script(tmp_path):
    """Whole, cut off anywhere, with bytes changed: the same packets are malformed to both decoders."""
    rng = random.Random(7)
    transports = [flagged(packed(p)) if n % 2 else packed(p) for n in range(2) for p in PACKETS]
    frames, odd = [], []
    for transport in transports:
        frames += [transport[:size] for size in range(len(transport) + 1)]
        for _n in range(40):
            changed = bytearray(transport)
            for _change in range(rng.randrange(1, 4)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            frames.append(bytes(changed))
    for n, transport in enumerate(frames):
        try:
            homa.parse_untrusted(transport, homa.HOMA)
        except BadPacket:
            odd.append(n)
    path = save(tmp_path / "a.pcap", [frame(t) for t in frames])
    told = {int(row[0]) - 1 for row in tshark(path, "frame.number", only="smt.malformed || !smt")}
    assert set(odd) <= told
    # The dissector also names data beyond its message's end, and flights that are none.
    also = [frames[n] for n in told - set(odd)]
    assert all(t[homa.TYPE_OFFSET] == homa.DATA for t in also)
    assert len(odd) > 300
    assert len(told) < len(frames)


def test_noise_in_sessions(tmp_path):
    """Conversations with handshakes, in which packets are changed, cut, doubled and out of order."""
    _hosts, rig = conversation("mtls")
    rng = random.Random(3)
    frames = []
    for _copy in range(8):
        for _from_client, whole in rig.sent_frames:
            body = bytearray(whole[34:])
            if rng.random() < 0.5:
                body[rng.randrange(len(body))] = rng.randrange(256)
            if rng.random() < 0.3:
                del body[rng.randrange(len(body)):]
            frames.append(frame(bytes(body), ip_id=rng.choice((0, 0, 1, 65_535))))
    rng.shuffle(frames)
    assert len(tshark(save(tmp_path / "a.pcap", frames), "smt.type")) == len(frames)
    # Packets seen twice, as in Wireshark.
    assert len(tshark(tmp_path / "a.pcap", "smt.type", options=("-2",))) == len(frames)


# -- the handshake plane ---------------------------------------------------------------------------------

def flight_frames(flight: Flight, rpc_id: int = 42, mtu: int = 1440) -> list[bytes]:
    """As RPC messages of the plane."""
    data = flight.pack()
    return [frame(flagged(Data(SPORT, DPORT, rpc_id, len(data), len(data), segment_size=mtu).pack()
                          + data[at:at + mtu]), ip_id=at // mtu) for at in range(0, len(data), mtu)]


def test_flights(tmp_path):
    offer = Offer(("AES-256-GCM", "CHACHA20-POLY1305"), 20, 70_000, "buckets:64,128", 1400)
    name = bytes(range(16))
    flights = [Flight(Kind.CLIENT_HELLO, (name, offer.pack(), b"tls!" * 1000)),
               Flight(Kind.SERVER_HELLO, (Agreement("AES-256-GCM").pack(), b"more")),
               Flight(Kind.CLIENT_FINISH, (name, b"finish")), Flight(Kind.SERVER_DONE, (b"done", bytes(32))),
               Flight(Kind.EARLY_HELLO, (b"hello",)), Flight(Kind.EARLY_ANSWER, (b"answer",)),
               Flight(Kind.CLOSE, (bytes(32),)), Flight(Kind.CLOSED), refused(Refusal.REPLAYED, "seen before")]
    frames = [f for n, flight in enumerate(flights) for f in flight_frames(flight, 100 + n)]
    path = save(tmp_path / "a.pcap", frames)
    rows = tshark(path, "smt.flight.kind", "smt.flight.handshake", "_ws.col.Info", only="smt.flight.kind")
    assert [int(row[0]) for row in rows] == [int(f.kind) for f in flights]
    assert [row[1] for row in rows if row[1]] == [name.hex()] * 2
    assert rows[0][2].endswith("client hello " + name.hex()[:16])
    assert rows[-1][2].endswith("refused (replayed)")
    # The first is of three packets; only the last of them shows it.
    assert [r[0] for r in tshark(path, "_ws.col.Info", only="smt.id == 100")][:2] == [
        f"HANDSHAKE DATA 100 [{at}..{at + 1440}) of {len(flights[0].pack())} part of a flight" for at in (0, 1440)]
    (parameters, _choice) = tshark(path, "smt.offer.index_bits", "smt.offer.max_message", "smt.offer.mtu",
                                   "smt.offer.cipher", "smt.offer.padding", "smt.flight.tls",
                                   only="smt.offer.index_bits")
    assert parameters == ["20", "70000", "1400", "1,2", "buckets:64,128", (b"tls!" * 1000).hex()]
    assert tshark(path, "smt.flight.text", only="smt.refused") == [["seen before"]]
    refusals = [f for code in Refusal for f in flight_frames(refused(code, "because"), 2 * code)]
    every = save(tmp_path / "c.pcap", refusals)
    reasons = [row[0].split("(")[1].lower() for row in tshark(every, "_ws.col.Info")]
    assert reasons == [code.name.lower().replace("_", " ") + ")" for code in Refusal]
    assert tshark(path, "frame.number", only="smt.malformed") == []
    bad = [f for n, data in enumerate((b"", b"\1", b"\1\1\0\5ab", b"\1\x63", b"\1\1\0\0", b"\1\2\0\0\0\1"))
           for f in flight_frames_of(data, 300 + 2 * n)]
    path = save(tmp_path / "b.pcap", bad)
    assert len(tshark(path, "smt.id", only="smt.malformed")) == len(bad) == 5


def flight_frames_of(data: bytes, rpc_id: int) -> list[bytes]:
    """Any bytes as a message of the plane."""
    return [frame(flagged(Data(SPORT, DPORT, rpc_id, len(data), len(data)).pack() + data))] if data else []


# -- decrypted captures ----------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> tuple[Path, Path, str]:
    """A session by TLS decrypted, the same without secrets, and its keylog."""
    hosts, rig = conversation("mtls")
    folder = tmp_path_factory.mktemp("opened")
    source = save(folder / "in.pcap", [f for _c, f in rig.sent_frames])
    keylog = hosts.keylog()
    write_decrypted(Decrypter("smt", keylog, tls_lines=keylog.tls), CaptureFile(source), folder / "open.pcapng")
    write_decrypted(Decrypter("smt", keylog), CaptureFile(source), folder / "shut.pcapng")
    return folder / "open.pcapng", folder / "shut.pcapng", "".join(hosts.lines)


def test_twins_have_fields(opened):
    path, _shut, _lines = opened
    rows = tshark(path, "smt.id", "smt.role", "smt.epoch", "smt.plaintext.record", "smt.plaintext.records",
                  "smt.plaintext.number", "smt.plaintext.offload", "smt.plaintext.data", "ip.src",
                  only="smt.plaintext && smt.id == 2")
    data = bytes([10]) * 10
    assert rows[0] == ["2", "client", "0", "1", "1", "0x20000", "unknown", data.hex(), "10.0.0.1"]
    assert len(rows) == 2
    assert rows[1][1] == "server"
    (source, port), = {tuple(r) for r in tshark(path, "_ws.col.Source", "_ws.col.Info", only="smt.plaintext && "
                                                "smt.plaintext.number == \"0x20000\"")}
    assert source == "10.0.0.1"
    assert port == "message 2 request record 1 of 1, epoch 0, number 0x20000, 10 bytes, offload: unknown"


def test_wireshark_decrypts_the_handshake(opened):
    path, shut, _lines = opened
    kinds = [n for row in tshark(path, "tls.handshake.type") for n in row[0].split(",") if n]
    # ClientHello 1, ServerHello 2, EncryptedExtensions 8, Certificate 11, CertificateRequest 13, CertificateVerify
    # 15, Finished 20, of both sides where both have one (RFC 8446 §4).
    assert [kinds.count(k) for k in ("1", "2", "8", "11", "13", "15", "20")] == [1, 1, 1, 2, 1, 2, 2]
    assert "smt/1" in tshark_text(path, "-V", "-Y", "tls.handshake.type == 8")
    assert tshark(path, "frame.number",
                  only="tcp.checksum.status == 0 || ip.checksum.status == 0 || tcp.analysis.flags",
                  options=("-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE")) == []
    names = tshark(path, "x509ce.dNSName", only="tls.handshake.type == 11")
    assert {n for row in names for n in row} == {"a", "b"}
    # Without secrets the hellos are all that is seen.
    kinds = [n for row in tshark(shut, "tls.handshake.type") for n in row[0].split(",") if n]
    assert kinds == ["1", "2"]
    # Comments name the handshake.
    texts = {row[0] for row in tshark(path, "frame.comment", only="tls")}
    assert len({t[:26] for t in texts}) == 1
    assert all(t.startswith("handshake ") for t in texts)


def test_a_reader_without_the_script_still_shows_what_is_what(opened):
    path, _shut, _lines = opened
    done = subprocess.run(["tshark", "-r", str(path), "-Y", "exported_pdu", "-T", "fields", "-e", "_ws.col.Source",
                           "-e", "frame.comment"], capture_output=True, text=True, timeout=120, check=True)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(rows) == 18
    assert rows[0] == ["10.0.0.1",
                       "message 2 request record 1 of 1, epoch 0, number 0x20000, 10 bytes, offload: unknown"]


def test_secrets_are_written_as_editcap_writes_them(tmp_path, opened):
    if shutil.which("editcap") is None:
        pytest.skip("editcap is not installed (Debian: wireshark-common)")
    lines = [line for line in opened[2].splitlines() if not line.startswith("SMT")]
    (tmp_path / "log").write_text("".join(f"{line}\n" for line in lines))
    (tmp_path / "in.pcapng").write_bytes(pcapng.section("x") + pcapng.interface("e0"))
    subprocess.run(["editcap", "--inject-secrets", f"tls,{tmp_path / 'log'}", str(tmp_path / "in.pcapng"),
                    str(tmp_path / "out.pcapng")], check=True, timeout=60)
    theirs = (tmp_path / "out.pcapng").read_bytes()
    ours = pcapng.tls_secrets((tmp_path / "log").read_text())
    assert struct.unpack_from("<I", ours) == (10,)
    assert theirs.count(ours) == 1
    keylog = Keylog()
    keylog.add_untrusted((tmp_path / "log").read_text())
    assert keylog.tls_lines == len(lines)


# -- the command -----------------------------------------------------------------------------------------

def command(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    pcap.add_parser(parser.add_subparsers())
    args = parser.parse_args(["pcap", "dissector", *argv])
    code: int = args.run(args)
    return code


def test_the_script_is_found_and_installed(tmp_path, monkeypatch, capsys):
    assert command() == 0
    script = Path(capsys.readouterr().out.strip())
    assert script.read_text().startswith("-- Wireshark dissector")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command("--install") == 0
    installed = Path(capsys.readouterr().out.strip())
    assert installed.is_relative_to(tmp_path)
    assert installed.read_bytes() == script.read_bytes()
    # tshark finds it there by itself.
    said = talk("smt", (64,))
    decrypter = Decrypter("smt", demo_keys("smt"))
    path = tmp_path / "a.pcapng"
    path.write_bytes(decrypter.begin() + b"".join(decrypter.add(c) for c in captured(said.sent)))
    done = subprocess.run([*nobody(), "tshark", "-r", str(path), "-T", "fields", "-e", "smt.id"],
                          capture_output=True, text=True, timeout=60, check=True)
    assert set(done.stdout.split()) == {"2"}
