"""``smtnet run --again``: with the toy experiment, there and back."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

import pytest

from smtstack.errors import ConfigError
from tests.unit.test_toy_experiment import results  # noqa: F401 - a fixture
from workloads.commands import again
from workloads.commands import main as cli
from workloads.results.folder import ResultFolder


def smtnet(monkeypatch, *words: str) -> int:
    """As if typed: also for who asks for the command line of this process."""
    monkeypatch.setattr(sys, "argv", ["smtnet", *words])
    return cli.main(list(words))


@pytest.fixture
def first(results, monkeypatch, capsys) -> Path:  # noqa: F811
    """The folder of a run, typed where results/ is."""
    monkeypatch.chdir(results.parent)
    assert smtnet(monkeypatch, "run", "toy", "--count", "3", "--json") == 0
    return Path(json.loads(capsys.readouterr().out)["results"]).absolute()


def run_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_there_and_back(first, monkeypatch, capsys):
    assert smtnet(monkeypatch, "run", "--again", "results/latest") == 0
    said = capsys.readouterr()
    second = Path(json.loads(said.out)["results"]).absolute()
    assert second != first
    assert second.parent == first.parent
    before, now = run_of(first), run_of(second)
    assert now["command"] == before["command"] == "smtnet run toy --count 3 --json"
    assert now["parameters"].pop("repeats") == str(first)
    assert now["parameters"] == before["parameters"]
    assert len(now["results"]) == 3
    assert said.err.splitlines()[0] == "smtnet: smtnet run toy --count 3 --json", "nothing differs here"
    assert sys.argv == ["smtnet", "run", "--again", "results/latest"], "as it was"
    assert "SMTNET_REPEATS" not in os.environ
    # What was repeated can be repeated.
    assert smtnet(monkeypatch, "run", "--again", str(second)) == 0
    assert run_of(Path(json.loads(capsys.readouterr().out)["results"]))["parameters"]["repeats"] == str(second)


def test_what_is_typed_now_wins(first, monkeypatch, capsys):
    assert smtnet(monkeypatch, "run", "--again", str(first), "--count", "1", "--results", "other") == 0
    second = Path(json.loads(capsys.readouterr().out)["results"])
    assert second.parent == Path("other")
    assert len(run_of(second)["results"]) == 1
    assert run_of(second)["command"] == "smtnet run toy --count 3 --json --count 1 --results other"


def test_paths_mean_what_they_meant(first, monkeypatch, capsys, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert smtnet(monkeypatch, "run", "--again", str(first)) == 0
    said = capsys.readouterr()
    assert f"smtnet: in {tmp_path}, where it was run" in said.err.splitlines()
    assert not list(elsewhere.iterdir())
    assert Path.cwd() == elsewhere
    assert (tmp_path / "results" / "latest").resolve() != first
    # What is typed now is from here.
    assert smtnet(monkeypatch, "run", "--again", str(first), "--results=mine") == 0
    assert json.loads((elsewhere / "mine/latest/run.json").read_text())["parameters"]["repeats"] == str(first)


def test_words_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sizes.csv").write_text("64\n")
    words = ["--size", "sizes.csv", "--size=sizes.csv", "--results", "new", "--results=new", "--count", "3"]
    assert [again.from_here(word, before) for before, word in zip(["", *words], words, strict=False)] == [
        "--size", f"{tmp_path}/sizes.csv", f"--size={tmp_path}/sizes.csv", "--results", f"{tmp_path}/new",
        f"--results={tmp_path}/new", "--count", "3"]


def test_a_folder_that_is_gone(first, monkeypatch, capsys):
    change(first, environment={**run_of(first)["environment"], "directory": "/no/such/folder"})
    assert smtnet(monkeypatch, "run", "--again", str(first)) == 0
    assert capsys.readouterr().err.startswith("smtnet: /no/such/folder, where it was run, is not here: its paths "
                                              "are taken from ")


def test_what_differs_is_said(first, monkeypatch, capsys):
    known = run_of(first)["environment"]
    change(first, environment={**known, "kernel": "1.2.3", "load_1min": 99.0,
                               "sysctl": {**known["sysctl"], "net.ipv4.tcp_rmem": "1 2 3"}})
    assert smtnet(monkeypatch, "run", "--again", str(first)) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "differs" in line]
    assert lines == [f"smtnet: differs from then: kernel is {known['kernel']}, was 1.2.3"]


def change(folder: Path, **fields) -> None:
    (folder / "run.json").write_text(json.dumps({**run_of(folder), **fields}))


@pytest.mark.parametrize(("fields", "says"), [
    ({"schema": 99}, "written by a newer smtnet (schema 99"),
    ({"command": ""}, "has no command that can be run again"),
    ({"command": "smtnet doctor"}, "has no command that can be run again"),
    ({"command": "rm -r x"}, "has no command that can be run again"),
    ({"command": "smtnet run toy 'x"}, "has no command that can be run again"),
    ({"command": "smtnet run toy --colour red"}, "is no longer understood: smtnet: unrecognized arguments"),
    ({"command": "smtnet run game"}, "is no longer understood: smtnet run: argument WHAT: invalid choice: 'game'"),
    ({"command": "smtnet run toy --help"}, "is no longer understood: it only shows something"),
])
def test_what_cannot_be_repeated(fields, says, first, monkeypatch, capsys):
    change(first, **fields)
    before = list(first.parent.iterdir())
    assert smtnet(monkeypatch, "run", "--again", str(first)) == 2
    assert says in capsys.readouterr().err
    assert list(first.parent.iterdir()) == before


def test_no_result_folder(tmp_path, monkeypatch, capsys):
    assert smtnet(monkeypatch, "run", "--again", str(tmp_path)) == 2
    assert "no result folder (no run.json in it)" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "says"), [
    (["run", "--again"], "smtnet run: argument --again: expected the folder of a run"),
    (["run"], "smtnet run: the following arguments are required: WHAT")])
def test_what_is_missing(words, says, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        smtnet(monkeypatch, *words)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(says)


def test_a_wrong_option_of_now_is_the_users(first, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        smtnet(monkeypatch, "run", "--again", str(first), "--colour", "red")
    assert end.value.code == 2
    assert "unrecognized arguments: --colour red" in capsys.readouterr().err


def test_help_names_it(capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    shown = capsys.readouterr().out
    assert "--again" in shown
    assert "smtnet run --again results/latest --trials 5" in shown


def test_a_command_is_read_as_a_shell_would(first):
    folder = ResultFolder(first)
    assert again.typed_words(folder, shlex.join(["smtnet", "run", "toy", "--results", "a b"]), cli.parse) == [
        "run", "toy", "--results", "a b"]
    with pytest.raises(ConfigError):
        again.typed_words(folder, "smtnet", cli.parse)
