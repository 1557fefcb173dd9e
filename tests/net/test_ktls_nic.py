"""Our kernel TLS over the kernel's own TCP, through NICs that own the hosts' interfaces: what arrives is what was
sent, the wire has no plaintext and the bytes of a software encryptor, and peers that are not ours take it.

``SMTNET_KTLS_MB=50``: so many megabytes for the transfer with a hundred switches of modes (default: 10).
``SMTNET_KTLS_CONNECTIONS=10000``: so many that are opened and closed (default: 60).
"""

from __future__ import annotations

import errno
import json
import os
import sys
from typing import Any

import pytest

from tests.net.starting import run
from workloads.experiments import bench_ktls

pytestmark = pytest.mark.root

GCM_1_3, GCM_1_2, CHACHA = 0, 3, 2
CONNECTIONS = int(os.environ.get("SMTNET_KTLS_CONNECTIONS", "60"))
MEGABYTES = int(os.environ.get("SMTNET_KTLS_MB", "10"))


def driver(scenario: str, **asked: Any) -> Any:
    done = run([sys.executable, "-m", "tests.net.ktls_driver", scenario, json.dumps(asked)], timeout=1200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check(result: dict[str, Any], size: int) -> None:
    """It arrived, and nobody on the wire could read it."""
    assert (result["got"]["bytes"], result["got"]["sha256"]) == (size, result["sha256"])
    assert result["canaries"] == 0
    assert result["equal"]


def test_what_a_nic_seals_is_what_software_would_and_the_control_is_seen():
    size = 4_000_000
    results = driver("transfers", runs=[
        {"size": size, "suite": GCM_1_3}, {"size": size, "suite": GCM_1_2}, {"size": size, "suite": CHACHA},
        {"size": size, "plain": True}])
    before: dict[str, int] = {}
    for result, overhead in zip(results[:2], (22, 29), strict=True):
        check(result, size)
        sent, nic = result["sent"], result["nics"]["h1"]
        assert (sent["txtls_mode"], sent["flow"], result["got"]["close_notify"]) == ("nic", "h1-eth0", True)
        # All that was written after the handshake went through the device, in order, and nothing by us.
        wire = size + overhead * sent["records"] + 2
        # A busy machine makes TCP send a little again.
        again = nic["tx_tls_encrypted_bytes"] - before.get("tx_tls_encrypted_bytes", 0) - wire
        assert 0 <= again < size // 20
        assert again or nic.get("tx_tls_ooo", 0) == before.get("tx_tls_ooo", 0)
        assert (nic.get("tx_tls_fallback", 0), nic.get("tx_tls_drop_bypass_req", 0)) == (0, 0)
        assert sent["copies"] == {"map": wire, "send": wire}
        before = nic
    # The device does not have this cipher: software seals from the beginning.
    check(results[2], size)
    assert results[2]["sent"]["txtls_mode"] == "sw"
    # The control: a canary in every 256 bytes, in frames and in the stream.
    assert results[3]["canaries"] > 2 * size // 256 * 0.9
    assert results[3]["got"]["sha256"] == results[3]["sha256"]


def test_a_hundred_switches_of_modes_change_no_byte():
    size = MEGABYTES * 1_000_000
    (result,) = driver("transfers", runs=[{"size": size, "switches": 100}])
    check(result, size)
    counters = result["sent"]["counters"]
    assert counters["stats.switch_to_sw"] == counters["stats.switch_to_ifnet"] == 50
    assert "stats.switch_failed" not in counters
    sealed_by = result["sent"]["copies"]
    assert min(sealed_by["map"], sealed_by["seal"]) > size // 4


def test_both_nics_work_and_frames_are_lost():
    size = 6_000_000
    results = driver("transfers", link={"loss": 1}, runs=[
        {"size": size, "suite": GCM_1_3, "receives": True},
        {"size": size, "suite": GCM_1_2, "receives": True, "rx_resync": "hint", "resync": "next_record"}])
    for result in results:
        check(result, size)
        assert (result["sent"]["txtls_mode"], result["got"]["rxtls_mode"]) == ("nic", "nic")
        assert "TlsDecryptError" not in result["got"]["counters"]
    assert results[0]["nics"]["h1"]["tx_tls_ooo"] > 0
    assert results[1]["nics"]["h2"]["rx_tls_decrypted_bytes"] > size // 4


def test_a_lossy_connection_leaves_the_nic_for_good():
    """At 5 % loss more than 2 % is sent again."""
    size = 6_000_000
    (result,) = driver("transfers", link={"loss": 5}, runs=[{"size": size, "rexmit_pct": 2}])
    check(result, size)
    assert result["sent"]["txtls_mode"] == "sw"
    assert result["sent"]["counters"]["stats.ifnet_disable_ok"] == 1
    assert result["sent"]["copies"]["seal"] > size // 2


def test_what_was_written_before_the_close_arrives_sealed():
    result = driver("closing", size=2_000_000)
    assert result["sent"]["under way"] > 20
    assert (result["got"]["bytes"], result["got"]["sha256"]) == (2_000_000, result["sha256"])
    assert result["got"]["close_notify"]
    assert result["canaries"] == 0


def test_unmodified_peers():
    """Python's ssl as server and client, curl, openssl s_server; our end's NIC seals and opens."""
    result = driver("peers", size=500_000)
    assert result["canaries"] == 0
    said = result["said"]
    assert said.pop("curl") == ["nic", True]
    assert said.pop("openssl s_server") == [["nic", "siht esrever\n"], True]
    assert len(said) == 4
    for who, (ours, theirs) in said.items():
        assert (ours, theirs) == (["nic", "nic", True, 0], True), who


def test_a_file_that_changes_while_it_is_sent_without_copies():
    """The hazard of zero-copy: a record is sent again with other bytes, and does not authenticate."""
    result = driver("hazard", size=2_000_000)
    copies, zerocopy = result["copies"], result["zerocopy"]
    assert (copies["bytes"], copies["errno"], copies["only old"]) == (2_000_000, 0, True)
    assert zerocopy["errno"] == errno.EBADMSG
    assert zerocopy["bytes"] < 2_000_000
    assert copies["copied"]["send"] > 2_000_000 > 100 * zerocopy["copied"]["send"]


def test_connections_leave_nothing_in_us_and_in_the_nic():
    result = driver("churn", count=CONNECTIONS)
    assert result["modes"] == [["nic", "nic"]]
    assert result["sessions"] == 2 * CONNECTIONS
    assert (result["left"], result["server left"], result["descriptors"]) == (0, 0, 0)
    nic = result["nic"]
    assert nic["tx_tls_ctx"] == nic["tx_tls_del"] == nic["rx_tls_ctx"] == nic["rx_tls_del"] == CONNECTIONS


def test_the_bench_has_a_line_for_every_backend(tmp_path):
    words = ["--sizes", "16384", "--workers", "2", "--trials", "1", "--seconds", "0.05", "--json"]
    done = run([sys.executable, "-m", "workloads", "bench", "ktls", *words, "--results", str(tmp_path)],
               timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    measured = {point["system"] for point in result["points"]}
    assert measured | set(result["skipped"]) == set(bench_ktls.SYSTEMS)
    # Only where masking has no effect.
    assert set(result["skipped"]) <= {"openssl-noaesni"}
    for point in result["points"]:
        assert point["gbit_per_s"] > 0
        assert point["helper_s"] == 0 or point["system"] in {"coproc", "openssl-noaesni"}
