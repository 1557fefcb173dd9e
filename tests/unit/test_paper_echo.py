"""Figures 6, 7, 10, 11 of the SMT paper: which system stands for which line, and what stands beside what."""

from __future__ import annotations

import pytest

from smtstack.errors import Unsupported
from tests.rows import row
from workloads import transports
from workloads.experiments.paper_echo import figure as paper_echo
from workloads.experiments.paper_echo.figure import Options, beside, check
from workloads.experiments.paper_echo.figures import FIG6, FIG7, FIG10, FIG11
from workloads.results import published

ALL = (FIG6, FIG7, FIG10, FIG11)


@pytest.mark.parametrize("figure", ALL, ids=lambda figure: figure.name)
def test_every_line_has_a_value_for_every_point(figure):
    for line in figure.lines:
        assert set(line.values) == set(figure.under_way)
        assert all(len(values) == len(figure.sizes) for values in line.values.values())
    assert set(figure.quick_sizes) <= set(figure.sizes)
    papers = {line.paper for line in figure.lines}
    assert {name for pair in figure.ratios for name in pair} <= papers


def lacking(*names: str):
    """A machine without these transports."""
    def require(name: str) -> None:
        if name in names:
            raise Unsupported(f"this kernel has no {name}")
    return require


def test_the_first_that_this_machine_has_stands_for_a_line(monkeypatch):
    monkeypatch.setattr(paper_echo, "_require", lacking())
    assert "ktls" in [one.transport for one in check(FIG6, Options()).chosen]
    monkeypatch.setattr(paper_echo, "_require", lacking("ktls", "ktls-nic"))
    plan = check(FIG6, Options())
    found = {one.line.paper: one for one in plan.chosen}
    assert found["kTLS-sw"].transport == "ktls-sw"
    assert found["kTLS-sw"].stands_in
    assert not found["TCP"].stands_in
    assert plan.missing == ["kTLS-hw is left out (ktls-nic: this kernel has no ktls-nic)"]


def test_quic_and_tls_stand_in_for_tcpls(monkeypatch):
    monkeypatch.setattr(paper_echo, "_require", lacking())
    plan = check(FIG10, Options(quick=True))
    standing = [one.transport for one in plan.chosen if one.line.paper == "TCPLS"]
    assert standing == ["quic", "tls"]
    assert all(one.stands_in for one in plan.chosen if one.line.paper == "TCPLS")
    assert [int(load.size) for load in plan.loads] == [64, 1024, 16_384]
    monkeypatch.undo()
    with pytest.raises(Unsupported, match="there is no transport tcpls"):
        paper_echo._require("tcpls")
    assert "tcpls" not in transports.NAMES


def test_the_middle_trial_beside_the_papers_value_and_their_ratios(monkeypatch):
    monkeypatch.setattr(paper_echo, "_require", lacking())
    plan = check(FIG11, Options())
    rows = [row("smt", "hw", size=8192, trial=trial, p50=times * trial, topo="back2back") | {
        "variant": f"nic tso {tso}"} for tso, times in (("on", 100.0), ("off", 150.0)) for trial in (1, 2, 3)]
    values = beside(FIG11, plan.chosen, rows)
    assert [(value.series, value.at, value.here, value.published) for value in values] == [
        ("smt-hw, nic tso on", "8 KB", 200.0, 55.5), ("smt-hw, nic tso off", "8 KB", 300.0, 62.6),
        ("smt-hw, nic tso off / smt-hw, nic tso on", "8 KB", 1.5, round(62.6 / 55.5, 4))]


def test_there_and_back(tmp_path):
    values = [published.Beside("ratio", "a / b", "64 B", 1.0, low=0.5, high=0.7, note="for c"),
              published.Beside("time", "a", "64 B", None, 3.0)]
    assert published.read(tmp_path) == []
    (tmp_path / published.FILE).write_text(published.as_json(values))
    assert published.read(tmp_path) == values
    shown = published.text(values)
    assert "0.50 to 0.70" in shown
    assert "none" in shown
    pytest.importorskip("matplotlib")
    assert published.picture(values, tmp_path / "x.png")
    assert not published.picture([published.Beside("time", "a", "64 B", 1.0)], tmp_path / "y.png")
    assert [(tmp_path / name).exists() for name in ("x.png", "y.png")] == [True, False]
