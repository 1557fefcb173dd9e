"""UDP and SMT by each interface to an untrusted host, and what NIC and host see: each in a sandbox of its own."""

from __future__ import annotations

import json

import pytest

from tests.net.test_ringnic import inside
from tests.net.test_run import smtnet
from workloads.experiments.trust.interfaces import ABOUT, NATIVE

pytestmark = pytest.mark.root


def test_datagrams_are_right_by_every_interface_and_no_ring_makes_a_call(tmp_path):
    result, _errors, code = smtnet(tmp_path, "run", "udp", "--io", ",".join(ABOUT), "--sizes", "16,1460",
                                   "--seconds", "0.05", "--echo", "20", "--trials", "1")
    assert code == (0 if result["fidelity"]["ok"] else 4)
    rows = json.loads((tmp_path / "latest" / "run.json").read_text())["results"]
    assert {row["variant"] for row in rows} == set(ABOUT)
    for row in rows:
        name, counters = row["variant"], row["counters"]
        assert row["content_ok"], name
        assert row["rpcs"] > 0
        # By a filter that kills: it answered, so it made no network system call.
        assert row["guarded"] == (name != NATIVE)
        if name.startswith("ring"):
            # The host calls of a ring's way: none, of either kind, and nothing of the host's was refused.
            assert [key for key in counters if "call" in key] == []
            assert [counters["ring_refused"], counters["ring_host_refused"], counters["udp_bad"]] == [0, 0, 0]
            assert counters["ring_in_memory"] == 0
        elif name.startswith("exit"):
            # The control: each datagram was one, at least.
            assert counters["ocalls"] > row["rpcs"]
            assert counters["ocall_refused"] == 0


@pytest.mark.parametrize("hosting", ["exit", "queue", "ring-unchecked"])
def test_rpcs_are_right_by_what_stands_beside_a_ring(hosting):
    got = inside("beside", hosting)
    assert got["code"] in (0, 4)
    assert got["rpcs"] == 60
    assert got["errors"] == 0
    assert got["content_ok"]
    assert got["refused"] == 0


def test_nobody_sees_what_he_must_not(tmp_path):
    result, errors, code = smtnet(tmp_path, "reproduce", "trust-matrix", "--quick")
    assert code == 0, errors
    assert result["wrong"] == []
    assert "NIC trusted, host not" in (tmp_path / "latest" / "trust-matrix.txt").read_text()
