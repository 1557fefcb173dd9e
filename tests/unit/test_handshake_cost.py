"""Where a handshake's time goes: the operations do what they are called, and the tables add up."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from smtstack.errors import SmtError
from workloads.experiments.table2 import flows as handshake_flows
from workloads.experiments.table2 import run as handshake_cost
from workloads.experiments.table2 import steps as handshake_steps
from workloads.results.folder import csv_text


def test_the_key_schedule_is_that_of_rfc_8448():
    # RFC 8448 §3: the shared secret, and the hash of both hellos.
    shared = bytes.fromhex("8bd4054fb55b9d63fdfbacf9f04b9f0d35e6d63f537563efd46272900f89492d")
    transcript = bytes.fromhex("860c06edc07858ee8e78f0e7428c58edd6b43f2ca3e6e95f02ed063cf0e1cad8")
    found = handshake_steps.secrets_of(shared, transcript)
    # The server's handshake traffic key and IV.
    assert bytes.fromhex("3fce516009c21727d0f2e4e86ee403bc") in found
    assert bytes.fromhex("5d313eb2671276ee13000b30") in found


def test_finished_is_that_of_rfc_8448():
    server = bytes.fromhex("b67b7d690cc16c4e75e54213cb2d37b4e9c912bcded9105d42befd59d391ad38")
    transcript = bytes.fromhex("edb7725fa7a3473b031ec8ef65a2485493900138a2b91291407d7951a06110ed")
    assert handshake_steps.finished(server, transcript) == bytes.fromhex(
        "9b9b141d906337fbd2cbdce71df4deda4ab42c309572cb7fffee5454b78f0718")


def test_every_operation_is_measured_and_every_side_has_its_own():
    steps = handshake_steps.steps()
    times = handshake_steps.measure(steps, 2)
    assert [len(times[step.name]) for step in steps] == [2] * len(steps)
    table = handshake_cost.step_table(steps, times)
    names = {entry["step"] for entry in table}
    for side, parts in handshake_cost.TLS_STEPS.items():
        assert set(parts) <= names
        paper = [entry[f"paper_{side}_us"] for entry in table if entry["step"] in parts]
        assert None not in paper
        # The paper's totals, its ServerHello apart.
        assert sum(paper) == {"server": 578, "client": 921}[side]


def test_whole_handshakes():
    flows = [*handshake_flows.flows(), handshake_flows.ticket_check()]
    names = [flow.name for flow in flows]
    assert names[:2] == ["tls, ECDSA P-256", "mtls, ECDSA P-256"]
    assert "ticket-fs, keys made ahead" in names
    times = handshake_flows.measure(flows, 2)
    assert all(len(found) == 2 and min(client for client, _server, _cpu in found) > 0 for found in times.values())
    table = handshake_cost.flow_table(times)
    assert [entry["handshake"] for entry in table] == names
    assert len(list(csv.DictReader(io.StringIO(csv_text(table))))) == len(flows)


def test_different_secrets_are_noticed(monkeypatch):
    made = iter((b"a", b"b"))
    monkeypatch.setattr("workloads.experiments.table2.flows.TlsClient.secret",
                        property(lambda _self: next(made), lambda *_given: None), raising=False)
    with pytest.raises(SmtError, match="different secrets"):
        handshake_flows.flows()[0].shake(handshake_flows.Stopwatch())


def test_shares_add_up(tmp_path: Path):
    steps = [{"step": name, "median_us": 10.0, "paper_server_us": 20.0, "paper_client_us": 30.0}
             for name in {name for parts in handshake_cost.TLS_STEPS.values() for name in parts}]
    flows = [{"handshake": "tls, ECDSA P-256", "server_us": 100.0, "client_us": 120.0}]
    found = handshake_cost.break_down(steps, flows)
    for side, total in (("server", 100.0), ("client", 120.0)):
        assert sum(part["us"] for part in found[side]) == pytest.approx(total)
        assert sum(part["share"] for part in found[side]) == pytest.approx(1, abs=0.01)
        assert sum(part["paper_share"] for part in found[side]) == pytest.approx(1, abs=0.01)
    assert found["server"][-1] == {"step": "messages (ServerHello), library, Python", "us": 40.0, "paper_us": 75,
                                   "share": 0.4, "paper_share": pytest.approx(75 / 195, abs=0.001)}
    pytest.importorskip("matplotlib")
    handshake_cost.picture(found, tmp_path / "table2.png")
    assert (tmp_path / "table2.png").read_bytes()[:4] == b"\x89PNG"


def test_quartiles():
    assert handshake_steps.quartiles([5.0]) == (5.0, 5.0, 5.0)
    assert handshake_steps.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)
