"""The parts of an experiment that need no network: who gets what of a load, and which processors."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from topo import running
from workloads import experiments
from workloads.fleet.fleet import share_of, split_cores
from workloads.load.loops import Load, parse_also


@given(st.integers(1, 9), st.integers(1, 1000), st.integers(1, 50), st.integers(0, 30))
def test_shares_add_up_to_the_load(clients, count, concurrency, others):
    many = min(clients, concurrency)
    load = Load("w3", f"500x{others}" if others else "", count, concurrency=concurrency, seed=7)
    shares = [share_of(load, index, many) for index in range(many)]
    assert sum(share["count"] for share in shares) == count
    assert sum(share["concurrency"] for share in shares) == concurrency
    assert sum(parse_also(share["also"])[1] for share in shares if share["also"]) == others
    assert len({share["seed"] for share in shares}) == many, "no two clients draw the same sizes"
    for share in shares:
        assert share["count"] + share["concurrency"] > 0
        assert Load(**share).size == "w3"


def test_an_open_loop_is_shared_by_rate():
    load = Load("64", count=None, seconds=2.0, rate=900.0, concurrency=1)
    shares = [share_of(load, index, 3) for index in range(3)]
    assert [share["rate"] for share in shares] == [300.0] * 3
    assert {share["seconds"] for share in shares} == {2.0}
    assert {share["concurrency"] for share in shares} == {1}


@given(st.integers(1, 9), st.sets(st.integers(0, 63), min_size=1, max_size=16))
def test_processors_are_split_evenly_or_not_at_all(hosts, cores):
    names = [f"h{n}" for n in range(hosts)]
    split = split_cores(names, cores)
    if len(cores) < hosts:
        assert split == {}
        return
    assert list(split) == names
    assert {len(own) for own in split.values()} == {len(cores) // hosts}
    assert len(set().union(*split.values())) == hosts * (len(cores) // hosts), "no processor twice"
    assert set().union(*split.values()) <= cores


def test_a_process_that_does_not_end_is_killed_and_named(monkeypatch, capsys):
    monkeypatch.setattr(running, "PATIENCE_S", 0.2)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as process:
        assert running.finish(process) == ""
    assert process.returncode == -signal.SIGKILL
    assert "was killed" in capsys.readouterr().err


@pytest.mark.parametrize("experiment", [e for e in experiments.load() if e.command in ("run", "reproduce")],
                         ids=lambda experiment: experiment.name)
def test_an_experiment_is_found_by_the_name_of_its_file(experiment):
    assert experiments.asked(experiment.command, experiment.name) == [experiment]


@pytest.mark.parametrize("name", [None, "--help", "nonsense", "fig8", "slowdown", "experiment", "queries"])
def test_where_no_experiment_is_called_so_all_are_found(name):
    assert experiments.asked("run", name) == experiments.load("run")


@pytest.mark.parametrize(("words", "needless"), [
    ("run echo", "workloads.experiments.demo"), ("reproduce fig12", "workloads.experiments.fig8"),
    ("serve echo", "workloads.kv"), ("call echo", "workloads.kv"), ("--version", "smtstack.socket"),
    ("serve echo", "cryptography.x509"), ("run echo", "matplotlib")])
def test_what_a_command_does_not_need_is_not_imported(words, needless):
    program = ("import atexit, sys; atexit.register(lambda: print(sys.argv[-1] in sys.modules, file=sys.stderr)); "
               "from workloads.commands.main import main; main(sys.argv[1:-1])")
    asked = [*words.split(), *["--help"] * (words[0] != "-")]
    done = subprocess.run([sys.executable, "-c", program, *asked, needless], capture_output=True, text=True,
                          check=False, cwd=ROOT)
    assert done.stdout.startswith(("usage: smtnet ", "smtnet "))
    assert done.stderr == "False\n"
