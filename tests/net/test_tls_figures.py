"""``smtnet run files`` and ``reproduce tls-route`` as a user has them: small, on NICs that are processes."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from tests.net import starting
from workloads.experiments import files, tls_route

pytestmark = pytest.mark.root

#: Seconds for a whole run on a loaded machine.
PATIENCE = 240


def smtnet(folder: Path, *args: str):
    """(its JSON, its folder)."""
    pytest.importorskip("matplotlib")
    done = starting.run([sys.executable, "-m", "workloads", *args, "--quick", "--results", str(folder), "--json"],
                        timeout=PATIENCE)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    return result, Path(result["results"])


def test_files_by_every_path_and_one_that_changes(tmp_path):
    result, folder = smtnet(tmp_path, "run", "files", "--zerocopy", "ro", "--size", "2MB")
    copies = {line["system"]: line["copies_per_byte"] for line in result["points"]}
    assert list(copies) == [*files.PATHS, files.ZEROCOPY]
    assert copies["plain"] == {"read": 0.0, "seal": 0.0, "map": 0.0, "send": 0.0}
    assert copies["read"] == copies["sendfile-sw"] == {"read": 1.0, "seal": 1.0, "map": 0.0, "send": 1.001}
    assert copies["sendfile-nic"] == {"read": 1.0, "seal": 0.0, "map": 1.001, "send": 1.001}
    assert copies[files.ZEROCOPY]["send"] < 0.01, "TCP has the file's own pages"
    for line in result["points"]:
        assert line["host_ns_per_byte"] > 0
        assert line["device_ns_per_byte"] > 0, "all of it went through the NIC"
    copied, by_reference = result["hazard"]
    assert (copied["error"], copied["new"], copied["mixed"]) == ("", 0, 0)
    assert by_reference["error"] == "EBADMSG"
    assert copied["first_ok"]
    assert by_reference["first_ok"]
    with (folder / "files.csv").open() as f:
        assert len(list(csv.DictReader(f))) == 5
    rows = json.loads((folder / "run.json").read_text())["results"]
    (sealed,) = (row["counters"] for row in rows if row["transport"] == "sendfile-nic")
    assert sealed["tx_tls_encrypted_bytes"] >= 2_000_000
    assert sealed["tx_tls_fallback"] == 0
    assert (folder / "files.png").exists()


def test_the_route_changes_under_both_policies(tmp_path):
    result, folder = smtnet(tmp_path, "reproduce", "tls-route")
    lines = {line["system"]: line for line in result["points"]}
    assert list(lines) == list(tls_route.SYSTEMS)
    linux, freebsd = lines["ktls-nic, linux"], lines["ktls-nic, freebsd"]
    assert linux["software"] > 0
    assert (linux["dropped"], linux["retagged"]) == (0, 0)
    assert freebsd["dropped"] > 0
    assert freebsd["retagged"] >= 1
    assert (folder / "tls-route.png").exists()
