"""NICs that own their hosts' interfaces (hosting tap), each network in a sandbox: see tapnic_drivers.py.

``SMTNET_TAP_MB=100`` sends that much where it is 5 MB by default.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from typing import Any

import pytest

from tests.net.netns import run

pytestmark = pytest.mark.root

DRIVERS = [sys.executable, "-m", "tests.net.tapnic_drivers"]
MB = 1 << 20


def inside(*args: str) -> dict[str, Any]:
    """What a program of tapnic_drivers.py prints."""
    done = run([*DRIVERS, *args])
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_ordinary_traffic_goes_through_undisturbed():
    got = inside("basics")
    assert got["ping"]
    assert got["tcp"] == [True, True]
    assert got["openssl"]
    # The port cuts as the kernel would: the same headers, right checksums, nothing missing.
    assert got["whole_headers"] == got["cut_headers"] == []
    # Segments came whole to the NIC, and none did once tso was switched off, while traffic ran.
    assert got["applied"]
    assert got["tcp_without_tso"]
    assert got["tso_packets"][0] > 0 == got["tso_packets"][1]
    settings = got["settings"]
    assert settings["tcp"]
    assert settings["recorded_tcp"]
    assert settings["recorded"]
    assert settings["delay"]
    assert settings["hit"] == {"impaired_dropped": True, "impaired_duplicated": True, "impaired_reordered": True}
    assert got["pids"] == [2, True]
    assert got["left"] == []


def test_marked_payload_leaves_by_no_other_interface():
    got = inside("guard")
    # The detector finds what goes by a plain interface, and by lo, once the guard is gone.
    assert got["plain_open"] > 0
    assert got["lo_open"] > 0
    assert got["plain_guarded"] == got["lo_guarded"] == 0
    assert got["unknown"] == 0
    assert got["unknown_counted"]
    assert got["after_unmarking"]


def test_records_are_encrypted_on_the_way():
    got = inside("offload")
    size = int(os.environ.get("SMTNET_TAP_MB", "5")) * MB
    lossless = got["lossless"]
    assert lossless["ok"], lossless
    # 22 bytes of each record are not its data; the NIC may have been asked for some of them twice.
    assert lossless["tx_tls_encrypted_bytes"] >= size // 16_384 * (16_384 + 22)
    for case in ("lossless", "loss=1%", "loss=5%"):
        assert got[case]["ok"], got[case]
        assert got[case]["leaked"] == 0
        assert got[case]["created"] == got[case]["released"] > 0
    assert got["loss=5%"]["tx_tls_ooo"] > 0 < got["loss=5%"]["tx_tls_dump_bytes"]
    assert got["headers"] == []
    assert got["full"] == errno.ENOSPC
    assert got["off"] == errno.ENXIO
    assert got["as_before"]
    ok, before, after, by_software = got["device_down"]
    assert (ok, before, after, by_software) == (True, "h1-eth0", "", True)
    assert got["exit"]
    assert got["contexts_left"] == 0


def test_records_are_decrypted_on_the_way():
    got = inside("receive")
    clean = got["clean"]
    # All of them, but for packets that TCP sent twice since somebody waited for a processor.
    assert clean["plain"] >= 0.9 * clean["records"]
    assert clean["decrypted"] >= 0.9 * clean["bytes"]
    corrupt = got["rx.corrupt=1%"]
    assert clean["wrong"] == corrupt["wrong"] == 0
    assert 0 < corrupt["decrypted"] < corrupt["bytes"]
    # What has a wrong checksum is no affair of the device's: TCP sends it again.
    assert corrupt["errors"] == 0
    assert got["contexts_left"] == 0


def test_a_nic_that_is_killed_takes_its_interface_along_and_leaks_nothing():
    got = inside("killed")
    assert got["interface"] is False
    assert got["leaked"] == [0, 0]
    # The transfer was under way.
    assert got["ended"]


def test_while_packets_may_be_mirrored_nothing_is_in_clear():
    got = inside("mirrored")
    # The detector finds what the NIC has decrypted on the interface itself.
    assert got["before"]["interface"] > 0
    assert got["before"]["mirror"] == 0
    assert got["mirrored"]
    assert got["after"] == 0
    assert got["aborted"]
    assert got["rx"] == got["tx"] == errno.ENXIO
