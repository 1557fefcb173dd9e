"""Recorded at the NIC of a host while sessions are made and used, then opened with the host's keylog."""

from __future__ import annotations

import shutil
import stat
import sys
from pathlib import Path

import pytest

from smtstack.capture.decode import Decoder
from smtstack.capture.decrypt import Decrypter
from smtstack.capture.files import CaptureFile
from smtstack.capture.reading import load_keylog, read_into
from tests.captures import read_opened, tshark
from tests.net.netns import IFACE, PATIENT, A, B, Net, run
from workloads.commands.pcap_decrypt import write_decrypted

pytestmark = pytest.mark.root

SMTNET = [sys.executable, "-m", "workloads"]


@pytest.fixture(scope="module")
def certs(net: Net) -> Path:
    folder = net.folder / "certs"
    done = run([*SMTNET, "ca", str(folder), "--host", f"a={A}", "--host", f"b={B}"])
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("nic", ["hw", "sw"])
@pytest.mark.parametrize("session", ["mtls", "psk-fs"])
def test_what_a_host_recorded_opens_with_its_keylog(net: Net, certs: Path, tmp_path, monkeypatch, session, nic):
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "tls"))
    wire, log, out = tmp_path / "wire.pcapng", tmp_path / "keylog", tmp_path / "open.pcapng"
    on_a = ["ip", "netns", "exec", net.a, *SMTNET]
    common = ["--iface", IFACE, "--session", session, "--nic", nic, "--json", *PATIENT, "--mtu", "1500"]
    with net.start(net.b, "workloads", "serve", "echo", "--addr", f"{B}:2000", "--certs", str(certs / "b"),
                   *common, ready="serving"):
        assert run([*on_a, "nic", IFACE, "tap", "start", str(wire)]).returncode == 0
        try:
            done = run([*on_a, "call", "echo", "--addr", f"{A}:{net.port()}", "--peer", f"{B}:2000", "--certs",
                        str(certs / "a"), "--keylog", str(log), "--size", "1,5000,40000", "--count", "10",
                        "--warm-up", "0", *common])
        finally:
            stopped = run([*on_a, "nic", IFACE, "tap", "stop"])
        assert done.returncode in {0, 4}, done.stderr
        assert stopped.returncode == 0, stopped.stderr
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert {line.split("_")[0] for line in (tmp_path / "tls").read_text().splitlines()} == {
        "CLIENT", "SERVER", "EXPORTER"}
    keylog = load_keylog(log)
    counts, notes = write_decrypted(Decrypter("smt", keylog, tls_lines=keylog.tls), CaptureFile(wire), out)
    assert notes == []
    assert (counts.records_failed, counts.unknown, counts.bad_packets, counts.acks_unproven) == (0, 0, 0, 0)
    # To resume there must have been a session before.
    handshakes = 2 if session == "psk-fs" else 1
    assert (counts.messages_complete, counts.messages_incomplete, counts.handshakes) == (60, 0, handshakes)
    assert counts.bytes == 2 * 10 * (1 + 5000 + 40_000)
    opened = read_opened(out, counts)
    # What left says who sealed it; who sealed what came, this host cannot know.
    ways = {(twin.said["role"], twin.said["offload"]) for twin in opened.twins()}
    assert ways == {("request", nic), ("response", "unknown")}
    decoder = Decoder("smt", keylog)
    assert read_into(decoder, CaptureFile(wire)) == []
    result = decoder.result()
    assert (result.records_bad, result.nonce_reuse, result.messages_complete) == (0, 0, 60)
    if shutil.which("tshark") is not None:
        kinds = [n for row in tshark(out, "tls.handshake.type", only="tls") for n in row[0].split(",") if n]
        assert {"1", "2", "8", "11", "20"} <= set(kinds)
        assert len(tshark(out, "smt.id", only="smt.plaintext")) == counts.records
