"""What reproduce trust, run udp and trust-matrix make of their rows."""

from __future__ import annotations

from typing import Any

import pytest

from smtstack.errors import ConfigError
from tests.rows import row
from workloads.batch.steps import steps
from workloads.experiments import trust_matrix, udp
from workloads.experiments.trust import interfaces, price, report
from workloads.experiments.trust.ends import BLAST, CALL, ECHO
from workloads.experiments.trust.measures import FILE, KV_SMT, WORKERS
from workloads.experiments.trust.run import EXPERIMENT, Options, check


def trial(mode: str, variant: str, rate: float, **more: Any) -> Any:
    more.setdefault("cpu", {"client_s": 1.1 if variant == "ring" else 1.0, "server_s": 0.0})
    return row("udp", None, mode=mode, variant=variant, rpc_per_s=rate, sent=10, lost=1, **more)


ROWS = [
    *(trial(BLAST, name, rate * (1 + number / 10), size=1460, trial=number)
      for name, rate in (("native", 100.0), ("exit", 20.0), ("ring", 80.0), ("ring-unchecked", 88.0))
      for number in (1, 2, 3)),
    trial(FILE, "native", 10.0, size=4096), trial(FILE, "exit", 2.0, size=4096),
    trial(FILE, "ring", 5.0, size=4096),
    trial(KV_SMT, "native", 10.0), trial(KV_SMT, "exit", 5.0), trial(KV_SMT, "ring", 7.5),
    trial(CALL, "exit", 1.0, p50=90.0), trial(CALL, "ring", 1.0, p50=10.0),
    trial(WORKERS, "ring x1", 10.0), trial(WORKERS, "ring x2", 15.0),
    trial(ECHO, "ring", 1.0, poll="event")]


def test_all_is_normalised_to_native_of_the_same_trial_and_checks_have_a_price():
    blast, file, kv = report.lines(ROWS)
    assert blast.what == "UDP 1460 B"
    assert {name: round(ratio, 3) for name, ratio in blast.ratios.items()} == {
        "native": 1.0, "exit": 0.2, "ring": 0.8, "ring-unchecked": 0.88}
    assert blast.checks == pytest.approx(0.1)
    assert file.ratios["ring"] == 0.5
    assert file.checks is None
    assert kv.what == "KV over SMT"


def test_what_was_claimed_stands_beside_what_came_out():
    udp_, programs, call, files = report.beside(ROWS)
    assert (round(udp_.here or 0, 3), udp_.published) == (4.0, 4.6)
    # Mean of KV over SMT (1.5) and files (2.5); KV over TCP was not measured.
    assert (programs.here, programs.published) == (2.0, 2.8)
    assert (call.here, files.here) == (9.0, 2.5)
    text = report.text(ROWS, 11.0)
    assert "+10%" in text
    assert "not how many times" in text
    assert "ring x2" in text
    assert report.beside([])[0].here is None


def test_what_checks_cost_alone_is_measured_in_turns():
    found = price.measure(rounds=3)
    assert found.checked > 0 < found.unchecked
    assert price.Price(3.0, 2.0).share == 0.5
    assert "3.00 us of processor a packet with checks, 2.00 us without: +50%" in report.text(
        ROWS, 11.0, price.Price(3.0, 2.0))


def test_pictures_are_drawn_and_none_of_nothing(tmp_path):
    for draw in (report.picture, report.calls_picture):
        assert not draw([], tmp_path / "none.png")
        assert draw(ROWS, tmp_path / "some.png")


def test_it_is_a_step_of_reproduce_all_and_says_what_is_a_model():
    by_name = {step.name: step for step in steps(quick=True)}
    assert {"trust", "trust-matrix"} <= by_name.keys()
    assert "3.4 us" in by_name["trust"].published.modelled
    assert by_name["trust"].words[-1] == "--quick"
    assert check(Options(quick=True)).trials == 1
    assert EXPERIMENT.published is not None


@pytest.mark.parametrize(("words", "match"), [
    ({"io": "native,carrier-pigeon"}, "carrier-pigeon: there is no such"), ({"sizes": "7"}, "--sizes 7"),
    ({"sizes": "16,1473"}, "--sizes 16,1473"), ({"sizes": "w3"}, "--sizes w3")])
def test_what_cannot_be_is_refused_beforehand(words, match):
    with pytest.raises(ConfigError, match=match):
        udp.check(udp.Options(**words))


def test_interfaces_have_words_for_smt_and_the_model_says_its_cost():
    assert interfaces.smt_words("exit-modelled", 5.0) == ("--nic-hosting", "exit", "--exit-us", "5")
    assert interfaces.smt_words("ring", 5.0) == ("--nic-hosting", "ring")
    assert set(interfaces.SETTINGS) <= interfaces.HOSTINGS.keys() <= interfaces.ABOUT.keys()


CELL = {"wire_plaintext": 0, "wire_keys": 0, "wire_sizes": 2, "nic_frames": 40, "nic_plaintext": 0, "nic_keys": 0,
        "nic_asked": True, "nic_asked_in_vain": 1, "host_shared_plaintext": None, "host_shared_keys": None,
        "host_shared_control": None, "host_memory_plaintext": 9, "host_memory_keys": 2}
CELLS: dict[str, dict[str, Any]] = {
    "nic+ host+": {**CELL, "nic_plaintext": 7, "nic_keys": 1, "nic_asked": False}, "nic- host+": CELL,
    "nic+ host-": {"refused": "hosting=ring has no TLS offload"},
    "nic- host-": {**CELL, "host_shared_plaintext": 0, "host_shared_keys": 0, "host_shared_control": 1},
    "control": {**CELL, "wire_plaintext": 5}}


def test_the_matrix_judges_every_cell_and_every_control():
    assert trust_matrix.judge(CELLS) == []
    for cell, name, value in (
            ("nic- host-", "host_shared_plaintext", 1), ("nic- host-", "host_shared_keys", 1),
            ("nic- host-", "wire_plaintext", 1), ("nic- host+", "nic_plaintext", 1), ("nic- host+", "nic_keys", 1),
            ("nic- host+", "nic_asked_in_vain", 0), ("nic+ host+", "wire_keys", 1), ("nic+ host-", "refused", ""),
            ("nic+ host+", "nic_plaintext", 0), ("control", "wire_plaintext", 0), ("nic- host-", "wire_sizes", 0),
            ("nic- host-", "host_shared_control", 0), ("nic- host+", "nic_frames", 0),
            ("nic+ host+", "host_memory_keys", 0)):
        assert len(trust_matrix.judge({**CELLS, cell: {**CELLS[cell], name: value}})) == 1, (cell, name)
    text = trust_matrix.as_text(CELLS)
    assert "refused" in text
    assert "no SGX" in text
