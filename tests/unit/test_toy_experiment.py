"""An experiment is one file: the toy below is put into the folder of experiments, and everything has it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from workloads import experiments
from workloads.commands import main as cli
from workloads.results import kinds

_TOY = '''
from dataclasses import dataclass, replace
from pathlib import Path

from smtstack import quantities
from smtstack.errors import ConfigError
from tests.rows import row
from workloads.experiments.experiment import Experiment, Outcome
from workloads.options.common import JudgedResults
from workloads.options.declare import group, option
from workloads.results.kinds import Mode, Picture, Section


@dataclass(frozen=True)
class Options:
    count: int = option("--count", type=quantities.POSITIVE, metavar="N", help="trials (default: 2)")
    lost: int = option("--lost", type=quantities.NOT_NEGATIVE, default=0, metavar="N", help="RPCs that fail")
    noisy: bool = option("--noisy", action="store_true", help="on a machine that loses frames")
    end: JudgedResults = group(JudgedResults)


def check(asked):
    if asked.count == 13:
        raise ConfigError("--count 13: an unlucky number")
    return replace(asked, count=asked.count or 2)


def measure(asked, running):
    rows = []
    for trial in range(1, asked.count + 1):
        running.progress.step(f"trial {trial}")
        rows.append(row("tls", None, mode="toy", trial=trial, p50=100.0 * trial, errors=asked.lost,
                        reasons=("9 frames lost",) if asked.noisy else ()))
    return Outcome(rows, {"trials": len(rows)}, "a toy was measured", files={"toy.csv": "trials\\n2\\n"},
                   parameters=asked, failed=f"{asked.lost} RPCs failed" if asked.lost else "")


def draw(rows, path: Path):
    found = [row for row in rows if row["mode"] == "toy"]
    if found:
        path.write_bytes(b"picture of %d" % len(found))
    return bool(found)


EXPERIMENT = Experiment(
    "toy", help="a toy of one file", examples="examples:\\n  smtnet run toy --count 3",
    description="Measures nothing.", options=Options, check=check, measure=measure, sandboxed=False,
    steps=lambda asked: ("toy", asked.count),
    kinds=(Mode("toy", "p99", "tail of a toy in us"), Picture("toy.png", draw, "A toy, drawn"),
           Section("Toy", lambda rows: "words on a toy" if rows[0]["mode"] == "toy" else "")))
'''


@pytest.fixture
def results(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """Where results go; the toy is there."""
    (tmp_path / "toys").mkdir()
    (tmp_path / "toys" / "toy.py").write_text(_TOY)
    monkeypatch.setattr(experiments, "__path__", [*experiments.__path__, str(tmp_path / "toys")])
    monkeypatch.setattr(kinds, "_KNOWN", dict(kinds._KNOWN))
    yield tmp_path / "results"
    sys.modules.pop("workloads.experiments.toy", None)
    vars(experiments).pop("toy", None)


def _run(results: Path, *words: str) -> int:
    return cli.main(["run", "toy", "--results", str(results), *words])


def test_the_command_line_has_it(results, capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    assert "a toy of one file" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["run", "toy", "--help"])
    shown = capsys.readouterr().out
    assert "--count N" in shown
    assert "smtnet run toy --count 3" in shown
    assert shown.index("--count") < shown.index("--lost") < shown.index("--allow-unfaithful")


def test_a_run_leaves_everything(results, capsys):
    assert _run(results, "--json") == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    folder = Path(result["results"])
    assert folder.parent == results
    assert result["trials"] == 2
    assert result["fidelity"]["ok"]
    assert said.err.splitlines() == [f"report: {folder / 'index.html'}"]
    run = json.loads((folder / "run.json").read_text())
    assert run["parameters"] == {"command": "run", "action": "toy", "count": 2, "lost": 0, "noisy": False,
                                 "results": str(results), "allow_unfaithful": False, "json": True}
    assert [row["trial"] for row in run["results"]] == [1, 2]
    assert len((folder / "results.csv").read_text().splitlines()) == 3
    assert (folder / "toy.csv").read_text() == "trials\n2\n"
    assert (folder / "toy.png").read_bytes() == b"picture of 2"
    page = (folder / "index.html").read_text()
    assert all(text in page for text in ("A toy, drawn", "words on a toy", "tail of a toy in us"))


def test_people_get_the_table_and_the_words(results, capsys):
    assert _run(results, "--count", "1") == 0
    shown = capsys.readouterr().out
    assert "tail of a toy in us" in shown
    assert "180" in shown, "the 99th percentile is what the mode is judged by"
    assert shown.splitlines()[-1] == "a toy was measured"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [(["--lost", "3"], 1, "smtnet: 3 RPCs failed"), (["--noisy"], 4, "smtnet: not faithful: 2 of 2 trials"),
     (["--noisy", "--allow-unfaithful"], 0, "smtnet: not faithful: 2 of 2 trials"),
     (["--count", "13"], 2, "smtnet: --count 13: an unlucky number")])
def test_how_it_ends(words, code, says, results, capsys):
    assert _run(results, *words) == code
    assert capsys.readouterr().err.splitlines()[-1].startswith(says)
    assert results.exists() == (code != 2), "what is refused leaves nothing"


def test_a_report_draws_it_again(results, capsys):
    _run(results, "--json")
    folder = Path(json.loads(capsys.readouterr().out)["results"])
    (folder / "toy.png").unlink()
    assert cli.main(["report", str(folder), "--json"]) == 0
    assert str(folder / "toy.png") in json.loads(capsys.readouterr().out)["pictures"]


def test_nothing_in_the_repository_names_it():
    """The control: without the file there is no such command."""
    with pytest.raises(SystemExit) as end:
        cli.main(["run", "toy"])
    assert end.value.code == 2
