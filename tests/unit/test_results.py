"""Result folders, what is quoted of several trials, and the table of it."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import stat
import sys
import time
from array import array
from pathlib import Path
from typing import Any

import pytest

from smtstack.errors import ConfigError, SmtError
from tests.rows import comparison, row
from topo.interpreter import ROOT
from workloads.results import table
from workloads.results.environment import environment, git_state
from workloads.results.fidelity import doubted, ring_doubts
from workloads.results.folder import ResultFolder
from workloads.results.points import label, metric, middle, overall, points, ratio, ring_lines, size_text

NOBODY = 65534


@pytest.fixture(autouse=True)
def _no_sudo(monkeypatch):
    monkeypatch.delenv("SUDO_UID", raising=False)
    monkeypatch.delenv("SUDO_GID", raising=False)


# -- the folder ------------------------------------------------------------------------------------------------

def test_two_runs_of_one_second_get_two_folders(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(time, "gmtime", lambda: time.struct_time((2026, 11, 20, 12, 15, 30, 4, 324, 0)))
    first, second = (ResultFolder.create("demo", tmp_path) for _ in range(2))
    assert first.path.name == "20261120T121530Z-demo"
    assert second.path.name == "20261120T121530Z-demo-2"
    assert second.path.is_dir()


def test_latest_is_a_relative_link_to_the_newest(tmp_path: Path):
    for name in ("one", "two"):
        folder = ResultFolder.create(name, tmp_path / "results")
        link = tmp_path / "results" / "latest"
        assert os.readlink(link) == folder.path.name
        assert link.resolve() == folder.path.resolve()
    # Nothing of the making of the link is left.
    assert sorted(p.name[-4:] for p in (tmp_path / "results").iterdir()) == ["-one", "-two", "test"]


def test_a_folder_in_the_place_of_latest_is_left_alone(tmp_path: Path):
    (tmp_path / "latest").mkdir()
    with pytest.raises(ConfigError, match="latest"):
        ResultFolder.create("demo", tmp_path)
    assert (tmp_path / "latest").is_dir()
    assert not [p for p in tmp_path.iterdir() if p.is_symlink()]


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "-x", "ä"])
def test_names_that_are_no_folder(tmp_path: Path, name):
    with pytest.raises(ConfigError, match="result name"):
        ResultFolder.create(name, tmp_path)


def test_no_place_for_results(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file"):
        ResultFolder.create("demo", tmp_path / "file" / "results")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_everything_belongs_to_the_user_of_sudo(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SUDO_UID", str(NOBODY))
    monkeypatch.setenv("SUDO_GID", str(NOBODY))
    base = tmp_path / "results"
    folder = ResultFolder.create("demo", base)
    folder.write_run({}, {}, 1, {"ok": True}, [row()])
    folder.write_csv([row()])
    folder.save_raw("x", array("Q", [1]))
    found = [base, *base.rglob("*")]
    assert len(found) == 7
    assert {(p.lstat().st_uid, p.lstat().st_gid) for p in found} == {(NOBODY, NOBODY)}
    log = folder.path / "raw" / "host.log"
    log.touch()
    assert log.stat().st_uid == 0
    folder.hand_over()
    assert log.stat().st_uid == NOBODY


def test_a_run_comes_back_as_it_was_written(tmp_path: Path):
    folder = ResultFolder.create("demo", tmp_path)
    rows = comparison()
    folder.write_run({"trials": 3}, {"cores": 2}, 7, {"ok": True, "reasons": []}, rows, "smtnet demo --seed 7")
    run = ResultFolder.open(tmp_path / "latest").read_run()
    assert (run.name, run.seed, run.command) == (folder.path.name, 7, "smtnet demo --seed 7")
    assert (run.parameters, run.environment, run.fidelity["ok"]) == ({"trials": 3}, {"cores": 2}, True)
    assert run.results == rows
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", run.created)


@pytest.mark.parametrize(("content", "words"), [
    ("{", "not a run"), ("[]", "not a run"), ("{}", "not a run"),
    ('{"schema": 99}', "newer smtnet"), ('{"schema": 1, "colour": 3}', "not a run"),
    (json.dumps({"schema": 1, "name": "x", "parameters": {}, "environment": {}, "seed": 1, "fidelity": {},
                 "results": [{"transport": "smt"}]}), "not a run"),
])
def test_a_run_that_is_none(tmp_path: Path, content, words):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ConfigError, match=words):
        ResultFolder.open(tmp_path).read_run()


def test_no_run_there(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no run\.json"):
        ResultFolder.open(tmp_path)


def test_csv_has_a_line_for_every_trial(tmp_path: Path):
    rows = [row(), row("tls", None, trial=2, reasons=("steal", "drops"), first_error='said "no", twice')]
    path = ResultFolder.create("demo", tmp_path).write_csv(rows)
    with path.open(newline="") as f:
        first, second = csv.DictReader(f)
    assert (first["transport"], first["rtt_us.p50"], first["first_error"]) == ("smt", "90.0", "")
    assert (second["fidelity.ok"], second["fidelity.reasons"]) == ("False", "steal; drops")
    assert second["first_error"] == 'said "no", twice'


@pytest.mark.parametrize("order", ["little", "big"])
def test_raw_samples_are_little_endian(tmp_path: Path, monkeypatch, order):
    samples = array("Q", [1, 2**40])
    written = samples[:]
    if order != sys.byteorder:
        # As they lie in the memory of such a machine.
        written.byteswap()
    monkeypatch.setattr(sys, "byteorder", order)
    path = ResultFolder.create("demo", tmp_path).save_raw("smt-64", written)
    assert path.name == "smt-64.u64"
    assert path.read_bytes() == (1).to_bytes(8, "little") + (2**40).to_bytes(8, "little")


@pytest.mark.parametrize(("name", "samples"), [("../x", array("Q")), ("x", array("d"))])
def test_raw_samples_that_are_none(tmp_path: Path, name, samples):
    with pytest.raises(SmtError, match="raw samples"):
        ResultFolder.create("demo", tmp_path).save_raw(name, samples)


# -- trials ----------------------------------------------------------------------------------------------------

def test_the_middle_trial_is_quoted_whole():
    rows = [row(p50=p50, trial=n, rpcs=n) for n, p50 in enumerate((30.0, 10.0, 20.0), 1)]
    point = middle(rows)
    assert (point.value, point.low, point.high, point.trials) == (20.0, 10.0, 30.0, 3)
    assert point.quoted is rows[2]


def test_loaded_trials_are_judged_by_their_rate():
    rows = [row(mode="loaded", rpc_per_s=rate, p50=1 / rate) for rate in (300.0, 100.0, 200.0)]
    assert (middle(rows).value, middle(rows).low, middle(rows).high) == (200.0, 100.0, 300.0)


@pytest.mark.parametrize("mode", ["unloaded", "loaded"])
def test_of_two_the_worse_is_quoted(mode):
    rows = [row(mode=mode, p50=10.0, rpc_per_s=10.0), row(mode=mode, p50=20.0, rpc_per_s=20.0)]
    assert middle(rows).value == (20.0 if mode == "unloaded" else 10.0)


@pytest.mark.parametrize("mode", ["unloaded", "loaded"])
def test_a_trial_without_answers_is_the_worst(mode):
    dead = row(mode=mode, p50=None, rpc_per_s=0.0, errors=5)
    fine = [row(mode=mode, p50=10.0 + n, rpc_per_s=10.0 + n) for n in (0, 1)]
    point = middle([dead, *fine])
    assert point.value == (11.0 if mode == "unloaded" else 10.0)
    assert (point.errors, point.failed) == (5, True)
    assert middle([dead, dead, fine[0]]).value is None
    assert metric(dead) is None


def test_one_bad_trial_spoils_the_point():
    assert not middle([row(), row(content_ok=False), row()]).content_ok
    assert middle([row(), row(content_ok=False), row()]).failed
    disturbed = middle([row(), row(reasons=("waited 25% of the time",)), row(reasons=("waited 40% of the time",))])
    assert not disturbed.faithful
    assert disturbed.reasons == ("waited 40% of the time",)
    assert middle([row(), row()]).faithful


def test_points_are_told_apart_by_everything_but_the_trial():
    rows = [row(), row(trial=2), row(size=128), row(poll="polling"), row(topo="star,4"), row(nic="hw"),
            row(variant="tso off"), row("homa"), row(mode="loaded"), row(concurrency=2)]
    assert [point.trials for point in points(rows)] == [2, 1, 1, 1, 1, 1, 1, 1, 1]


def test_ratio_is_to_tls_at_the_same_load():
    rows = [row(p50=60.0), row("tls", None, p50=120.0), row("tls", None, p50=400.0, topo="star,4"),
            row("tls", None, p50=300.0, size=8192), row(size=1, p50=5.0)]
    found = points(rows)
    assert ratio(found[0], found) == 0.5
    assert ratio(found[1], found) == 1.0
    assert ratio(found[-1], found) is None


def test_a_run_of_many_trials_has_few_reasons():
    rows = [row(trial=n, reasons=(f"waited {20 + n}% (at most 20%)", "3 drops")) for n in range(1, 50)] + [row()]
    verdict = overall(rows)
    assert (verdict["ok"], verdict["trials"], verdict["unfaithful"]) == (False, 50, 49)
    assert verdict["reasons"] == [
        "49 of 50 trials, worst smt-sw back2back unloaded 64 B trial 49: waited 69% (at most 20%)",
        "49 of 50 trials, worst smt-sw back2back unloaded 64 B trial 1: 3 drops"]
    assert overall([row()]) == {"ok": True, "reasons": [], "trials": 1, "unfaithful": 0}


@pytest.mark.parametrize(("transport", "nic", "name"), [
    ("smt", "sw", "smt-sw"), ("smt", "hw", "smt-hw"), ("homa", "sw", "homa"), ("homa", "hw", "homa-hw"),
    ("tls", None, "tls"), ("linux", "sw", "linux-sw")])
def test_labels(transport, nic, name):
    assert label(row(transport, nic)) == name


@pytest.mark.parametrize(("size", "words"), [
    (64, "64 B"), (1000, "1000 B"), (1024, "1 KB"), (65536, "64 KB"), (1 << 20, "1 MB"), (1_000_000, "1 MB"),
    (1500, "1500 B"), ("w3", "W3")])
def test_sizes(size, words):
    assert size_text(size) == words


# -- the table -------------------------------------------------------------------------------------------------

def test_table_has_medians_ratios_and_spread():
    text = table.text(comparison())
    assert "back2back, unloaded, interrupt: median round trip in us" in text
    assert "star,4, loaded, interrupt: RPC/s" in text
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("smt-sw"))
    # 90 us, and two, four, six percent more, and a third of a microsecond for 64 bytes; tls has 120.
    assert lines[at].split()[:3] == ["smt-sw", "93.9", "(0.75)"]
    assert lines[at + 1].split()[0] == "92.1-95.7"
    assert "middle of 3 trials" in lines[-1]


def test_table_marks_what_must_not_be_quoted_alone():
    rows = [row(reasons=("3 frames lost",)), row("homa", errors=2), row("tls", None)]
    text = table.text(rows)
    smt, homa, tls = (next(line for line in text.splitlines() if line.startswith(name))
                      for name in ("smt-sw", "homa", "tls"))
    assert "~" in smt
    assert "!" in homa
    assert "~" not in tls
    assert "!" not in tls
    assert "~ not faithful: 1 of 3 trials" in text
    assert "3 frames lost" in text
    assert "! failed: 2 RPCs without an answer" in text


def test_table_without_an_answer():
    assert "none!" in table.text([row(p50=None, rpcs=0, errors=3)])


@pytest.mark.parametrize("width", [60, 80, 110, 200])
def test_table_keeps_to_the_width(width):
    text = table.text(comparison(), width)
    figures = text[:text.index("middle of")]
    assert max(map(len, figures.splitlines())) <= width
    # Nothing is lost by breaking: five systems, two topologies, seven loads, each once with a ratio.
    assert figures.count("(") == 5 * 2 * 7


def test_table_of_other_sizes():
    text = table.text([row(size="w3", mode="loaded"), row(size=64, mode="loaded")])
    assert re.search(r"64 B x50 +W3 x50", text)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_table_on_a_terminal_says_the_same(monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.setenv("TERM", "xterm")
    screen, plain = _Terminal(), io.StringIO()
    rows = [*comparison(), row("[bold]x", None, mode="loaded")]
    table.print_table(rows, screen)
    table.print_table(rows, plain)
    text = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    assert text != screen.getvalue()
    assert text.split() == plain.getvalue().split()


# -- the machine -----------------------------------------------------------------------------------------------

def test_environment_is_json_and_names_the_machine():
    found = environment()
    assert (found["commit"] is not None) == (ROOT / ".git").exists(), "of this checkout"
    assert json.loads(json.dumps(found)) == found
    assert found["kernel"] == os.uname().release
    assert found["cores"] >= found["cores_usable"] >= 1
    assert found["cryptography"]
    assert "net.core.rmem_max" in found["sysctl"]


def test_no_checkout_no_commit(tmp_path: Path):
    assert git_state(tmp_path) == {"commit": None, "changed": None}


def test_nothing_of_ours_is_for_others_to_write(tmp_path: Path):
    path = ResultFolder.create("demo", tmp_path).write("summary.txt", "x")
    assert not path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def test_a_run_whose_honest_host_was_refused_something_is_not_faithful():
    counts: Any = {"rejected_indices": 0, "invalid_frames": 0, "sleeps": 7, "bells": 5, "in_memory": 1}
    assert ring_doubts(counts) == []
    bad = row(ring={**counts, "rejected_indices": 3})
    bad["fidelity"] = doubted(bad["fidelity"], *ring_doubts(bad["ring"]))
    assert not overall([bad])["ok"]
    assert "3 indices of an honest host were rejected" in overall([bad])["reasons"][0]
    more: Any = {**counts, "invalid_frames": 2}
    assert ring_doubts(more) == ["2 frames of an honest host were invalid"]
    assert ring_lines([row()]) == []
    assert ring_lines([row(ring=counts), bad]) == [
        "rings: 3 indices rejected, 0 frames invalid, 14 sleeps, 10 bells, 1 in memory"]
    assert ring_lines([bad])[0] in table.notes([bad])
