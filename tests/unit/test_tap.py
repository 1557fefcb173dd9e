"""Recordings at the NIC: what is in them, whether foreign readers agree, and what happens when they fail."""

from __future__ import annotations

import io
import re
import resource
import shutil
import subprocess
from pathlib import Path

import pytest

from smtstack.capture import pcapng
from smtstack.capture.decode import Decoder
from smtstack.capture.files import CaptureFile
from smtstack.capture.pcapfile import Captured, Reader
from smtstack.capture.reading import read_into
from smtstack.crypto.composite import CompositeNumber
from smtstack.crypto.keys import demo_keys
from smtstack.errors import ConfigError
from smtstack.nic.device import NicConfig
from smtstack.nicshare import file as nic_file
from smtstack.nicshare.state import NicState
from smtstack.socket import SmtContext, SmtSocket
from tests.cable import exchange, joined
from tests.captures import decrypt

IFACE = "lo"
CANARY = b"plaintext canary"
DATA = CANARY * 1000
HARDWARE = SmtContext(IFACE, "linux", "demo", nic=NicConfig(tls_hw_tx_offload=True))
TIME = 1_700_000_000_123_456_789


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nic_file, "FOLDER", tmp_path / "run")


def packets(path: Path) -> list[Captured]:
    with path.open("rb") as f:
        reader = Reader(f)
        got = list(reader.frames_untrusted())
    assert (reader.truncated, reader.shortened) == (0, 0)
    return got


def settle(ends: tuple[SmtSocket, SmtSocket]) -> None:
    for end in ends:
        end.poll()


def record(monkeypatch: pytest.MonkeyPatch, path: Path, host_side: bool) -> list[Captured]:
    """Two exchanges, the second of which is recorded."""
    state = NicState.open(IFACE)
    with joined(monkeypatch, HARDWARE) as ends:
        exchange(ends, b"before" * 1000)
        state.start_tap(path, host_side)
        exchange(ends, DATA)
        with pytest.raises(ConfigError, match="recorded already"):
            state.start_tap(path.with_name("other"))
        with state._changing() as file:  # what stop_tap does, in a process that moves the endpoints as well
            file.write_settings(type(file.read_settings())())
        settle(ends)
        assert state.wait_applied(0)
        size = path.stat().st_size
        exchange(ends, b"after" * 1000)
    assert path.stat().st_size == size
    return packets(path)


# -- the format ------------------------------------------------------------------------------------------

def test_blocks_are_read_as_they_were_written():
    frames = [bytes(60 + n) for n in range(5)] + [bytes(range(256)) * 255]
    data = pcapng.section("test") + pcapng.interface("e0") + pcapng.interface("e0" + pcapng.HOST_SIDE)
    for n, frame in enumerate(frames):
        data += pcapng.packet(n % 2, TIME + n, frame, outwards=n < 2, comment="x" * n)
    reader = Reader(io.BytesIO(data))
    assert list(reader.frames_untrusted()) == [
        Captured(TIME + n, 1, frame, ("e0", "e0 host")[n % 2], "x" * n, n < 2) for n, frame in enumerate(frames)]
    assert (reader.truncated, reader.shortened) == (0, 0)


def test_scapy_reads_the_same(monkeypatch, tmp_path):
    scapy = pytest.importorskip("scapy.utils")
    path = tmp_path / "x.pcapng"
    got = record(monkeypatch, path, True)
    with scapy.RawPcapNgReader(str(path)) as reader:
        theirs = list(reader)
    assert [data for data, _meta in theirs] == [c.frame for c in got]
    assert [(m.tshigh << 32 | m.tslow, m.tsresol) for _data, m in theirs] == [(c.timestamp_ns, 10**9) for c in got]


def test_tshark_reads_the_same(monkeypatch, tmp_path):
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    path = tmp_path / "x.pcapng"
    got = record(monkeypatch, path, True)
    fields = ("frame.interface_name", "frame.len", "frame.packet_flags_direction", "ip.checksum.status",
              "frame.comment")
    done = subprocess.run(["tshark", "-r", str(path), "-o", "ip.check_checksum:TRUE", "-T", "fields",
                           *(a for f in fields for a in ("-e", f))],
                          capture_output=True, text=True, timeout=120, check=True)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [(row[0], int(row[1])) for row in rows] == [(c.interface, len(c.frame)) for c in got]
    assert {row[3] for row in rows} == {"1"}  # every IP checksum is good
    assert {int(row[2], 0) for row in rows} == {1, 2}  # in and out
    assert {row[4].split(",")[0] for row in rows if row[0].endswith(" host")} <= {"queue 0"}
    # What leaves says who sealed it; of what enters nobody here knows.
    assert any(row[4].startswith("offload: hw") for row in rows)
    assert all(row[4] == "" for row in rows if row[2] == "0x00000001" and not row[0].endswith(" host"))


# -- what is recorded ------------------------------------------------------------------------------------

def test_the_wire_side_is_sealed_and_whole(monkeypatch, tmp_path):
    path = tmp_path / "x.pcapng"
    got = record(monkeypatch, path, False)
    assert path.stat().st_mode & 0o777 == 0o600
    assert {c.interface for c in got} == {IFACE}
    assert not any(CANARY in c.frame for c in got)
    decoder = Decoder("linux", demo_keys("linux"))
    assert read_into(decoder, CaptureFile(path)) == []
    result = decoder.result()
    assert (result.records_bad, result.bad_packets, result.ignored, result.nonce_reuse) == (0, 0, 0, 0)
    # Both ends are on one interface, so everything is there twice, out and in: each counts once.
    assert (result.messages, result.messages_complete, result.bytes) == (2, 2, 2 * len(DATA))
    assert sum(result.packets.values()) == len(got)


def test_the_host_side_is_plaintext_with_record_numbers(monkeypatch, tmp_path):
    path = tmp_path / "x.pcapng"
    got = record(monkeypatch, path, True)
    host = [c for c in got if c.interface == IFACE + " host"]
    assert any(CANARY in c.frame for c in host)
    assert not any(CANARY in c.frame for c in got if c not in host)
    assert max(len(c.frame) for c in host) > 1514 >= max(len(c.frame) for c in got if c not in host)
    decoder = Decoder("linux", demo_keys("linux"))
    note, = read_into(decoder, CaptureFile(path))
    assert note == f"{len(host)} segments of the host side, before the NIC, are left out"
    result = decoder.result()
    assert (result.records_bad, result.messages_complete, result.bytes) == (0, 2, 2 * len(DATA))
    comments = re.findall(rb"queue 0, context [12], first record (\d+)(, RESYNC before)?", path.read_bytes())
    # A record's number is its message's id and its index. Each segment continues where the last one ended,
    # so one RESYNC, at a message's first, is enough.
    numbers = [CompositeNumber().split(int(number)) for number, _resync in comments]
    assert [bool(resync) for _number, resync in comments] == [index == 0 for _message, index in numbers]
    # Request and response have one id, and keys of their own.
    assert len({message for message, _index in numbers}) == 1
    indices = [index for _message, index in numbers]
    half = len(indices) // 2
    assert indices[:half] == indices[half:] == sorted(set(indices))
    assert half > 1


@pytest.mark.parametrize(("hardware", "way"), [(True, "hw"), (False, "sw")])
def test_a_decrypted_recording_tells_who_sealed(monkeypatch, tmp_path, hardware, way):
    path = tmp_path / "x.pcapng"
    monkeypatch.setattr(f"{__name__}.HARDWARE",
                        SmtContext(IFACE, "linux", "demo", nic=NicConfig(tls_hw_tx_offload=hardware)))
    # Both ends write to one file, each when it likes; a NIC of one end has what leaves with who sealed it.
    left = [p for p in record(monkeypatch, path, False) if p.outwards]
    opened = decrypt(left, "linux", demo_keys("linux"))
    assert {twin.said["offload"] for twin in opened.twins()} == {way}
    assert opened.counts.messages_complete == 2
    assert opened.counts.bytes == 2 * len(DATA)


def test_impairments_sit_beyond_the_tap(monkeypatch, tmp_path):
    path = tmp_path / "x.pcapng"
    state = NicState.open(IFACE)
    with joined(monkeypatch, SmtContext(IFACE, "linux", "demo")) as ends:
        state.start_tap(path)
        state.assign("loss=100%")
        ends[0].send_request(("10.0.0.2", 2000), DATA)
        settle(ends)
    assert state.counters()["impaired_dropped"] == len(packets(path)) > 1
    assert state.counters()["rx_packets"] == 0


# -- when it cannot be -----------------------------------------------------------------------------------

def test_a_file_that_exists_is_left_alone(tmp_path):
    path = tmp_path / "x.pcapng"
    path.write_text("precious")
    state = NicState.open(IFACE)
    for name, complaint in ((path, "not overwritten"), (tmp_path / "none" / "x", "No such file")):
        with pytest.raises(ConfigError, match=complaint):
            state.start_tap(name)
        assert state.settings().tap is None
    assert path.read_text() == "precious"
    with pytest.raises(ConfigError, match="not being recorded"):
        state.stop_tap()


def test_stop_says_where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = NicState.open(IFACE)
    state.start_tap("x.pcapng")
    assert state.stop_tap() == str(tmp_path / "x.pcapng")
    assert packets(tmp_path / "x.pcapng") == []


@pytest.mark.parametrize("obstacle", ["gone", "a link", "a device"])
def test_a_file_that_vanished_is_counted_and_traffic_goes_on(monkeypatch, tmp_path, obstacle):
    path = tmp_path / "x.pcapng"
    state = NicState.open(IFACE)
    with joined(monkeypatch, HARDWARE) as ends:
        state.start_tap(path)
        path.unlink()
        if obstacle == "a link":
            path.symlink_to(tmp_path / "elsewhere")
            (tmp_path / "elsewhere").touch()
        elif obstacle == "a device":
            path.mkdir()
        exchange(ends, DATA)
        settle(ends)
    assert state.counters()["tap_errors"] == 2
    assert obstacle != "a link" or not (tmp_path / "elsewhere").read_bytes()


def test_a_full_disk_is_counted_and_traffic_goes_on(monkeypatch, tmp_path):
    path = tmp_path / "x.pcapng"
    state = NicState.open(IFACE)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with joined(monkeypatch, HARDWARE) as ends:
        state.start_tap(path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, before[1]))
        try:
            for _turn in range(5):
                exchange(ends, DATA)
            for end in ends:
                end.loop._sync_nic()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert state.counters()["tap_errors"] == 2
    assert packets(path) == []
