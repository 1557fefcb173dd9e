"""``smtnet reproduce all``: steps are found, done once, tried again, gone on with; with a toy step."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from smtstack.exit_codes import EXIT_ENVIRONMENT, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_UNFAITHFUL, EXIT_USAGE
from tests import batch_toy
from workloads.batch import host_file, job, state, steps
from workloads.batch.state import Member, State, Status, exit_code
from workloads.commands import main as cli

DOCS = Path(__file__).resolve().parents[2] / "docs" / "reproduce.md"
ALL = ("reproduce", "all", "--quick", "--only", "toy")


@pytest.fixture
def place(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """Where all is; the toy is there."""
    pytest.importorskip("matplotlib")
    batch_toy.put(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "run", batch_toy.run_in_this_process)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield tmp_path
    for number, handler in before.items():
        signal.signal(number, handler)
    batch_toy.forget()


@pytest.fixture
def everything(place: Path, capsys) -> Callable[..., dict]:
    """:func:`reproduce`, here."""
    return partial(reproduce, place, capsys)


def reproduce(place: Path, capsys, *words: str, fate: str = "", code: int = 0) -> dict:
    """``reproduce all`` with a file of this machine that says how the toy goes; its JSON."""
    hosts = place / "hosts"
    hosts.mkdir(exist_ok=True)
    (hosts / f"{os.uname().nodename}.toml").write_text(
        f"[options]\ntoy = ['--fate={place}/fate']\n[environment]\nTOYS = 'many'\n" if fate else "timeout = 60\n")
    (place / "fate").write_text(fate or "fine")
    found = cli.main([*ALL, *words, "--json"])
    said = capsys.readouterr()
    assert found == code, said.err
    return {**json.loads(said.out), "said": said.err}


def toy_of(result: dict) -> dict:
    return next(step for step in result["steps"] if step["name"] == "toy")


def test_a_step_is_found_by_itself_and_so_is_every_figure(place):
    known = {step.name: step for step in steps.steps(quick=True)}
    assert known["toy"].words == ("reproduce", "toy", "--quick")
    told = set(re.findall(r"`([a-z0-9-]+)`", "".join(
        line.split("|")[1] for line in DOCS.read_text().splitlines() if line.startswith("| `"))))
    assert told == set(known) - {"toy"}, "docs/reproduce.md has another table of steps"
    assert all("--quick" in step.words for step in known.values())
    assert all("--quick" not in step.words for step in steps.steps(quick=False))
    assert [step.name for step in steps.chosen(list(known.values()), ["toy", "fig6"])] == ["toy", "fig6"]


def test_done_once_then_skipped_then_again_on_one_page(place, everything):
    first = everything()
    assert (toy_of(first)["status"], toy_of(first)["tries"]) == ("done", 1)
    assert "smtnet reproduce toy --quick --results" in first["said"]
    assert "kernel: " in first["said"]
    folder = place / first["folder"]
    page = (folder / "index.html").read_text()
    assert all(text in page for text in ("The Toy Paper, Fig. 0", "Emulated", "Not comparable", "2.50"))
    assert page.count("data:image/png") == 1, "published beside here"
    assert "waiting" in page, "of the steps that were not asked for"
    assert (folder / toy_of(first)["folder"] / "published.json").exists()
    # Finished: the same command does nothing, a new word of its command line or --again does.
    assert toy_of(everything())["folder"] == toy_of(first)["folder"]
    again = everything("--again", "toy")
    assert again["folder"] == first["folder"]
    assert toy_of(again)["folder"] != toy_of(first)["folder"]
    other = everything(fate="noisy", code=EXIT_UNFAITHFUL)
    assert (toy_of(other)["status"], toy_of(other)["reasons"]) == ("not faithful", ["9 frames lost"])
    assert (place / other["folder"] / f"{os.uname().nodename}.toml").exists()
    assert everything("--new")["folder"] != first["folder"]


def test_a_step_that_fails_is_tried_once_more(everything):
    result = everything(fate="fails fine")
    assert (toy_of(result)["status"], toy_of(result)["tries"]) == ("done", 2)
    assert "toy failed; once more" in result["said"]
    result = everything("--new", fate="fails fails fine", code=EXIT_FAILED)
    assert (toy_of(result)["status"], toy_of(result)["reasons"]) == ("failed", ["toys failed"])
    # The same command tries what failed, and what this machine lacked.
    result = everything(fate="lacks", code=EXIT_ENVIRONMENT)
    assert (toy_of(result)["status"], toy_of(result)["tries"]) == ("lacks something", 1)
    assert toy_of(everything(fate="fine"))["status"] == "done"


def test_ctrl_c_and_the_same_command_goes_on(place, everything):
    (place / "hosts").mkdir()
    (place / "hosts" / f"{os.uname().nodename}.toml").write_text("[options]\ntoy = ['--wait=60']\n")
    running = subprocess.Popen([sys.executable, "-m", "workloads", *ALL], cwd=place, stderr=subprocess.PIPE,
                               text=True)
    assert running.stderr is not None
    for line in running.stderr:
        if "smtnet reproduce toy" in line:
            break
    (base,) = (place / "results").glob("*Z-reproduce-quick/steps/toy")
    give_up = time.monotonic() + 60
    while not list(base.glob("*-toy")):
        assert time.monotonic() < give_up
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=60)[1]
    assert running.returncode == EXIT_INTERRUPTED, said
    assert "goes on with toy" in said
    saved = json.loads((base.parent.parent / "state.json").read_text())["members"]["toy"]
    assert (saved["status"], saved["tries"]) == ("interrupted", 1)
    result = everything()
    assert place / result["folder"] == base.parent.parent
    assert toy_of(result)["status"] == "done"


def test_what_is_listed_and_what_is_wrong(place, capsys, monkeypatch):
    assert cli.main(["reproduce", "all", "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["folder"] is None
    assert listed["steps"][0] == {
        "name": "toy", "title": "a toy of a figure", "published": "The Toy Paper, Fig. 0",
        "command": "smtnet reproduce toy", "needs_root": False, "status": "waiting"}
    assert cli.main([*ALL, "--only", "tol"]) == EXIT_USAGE
    assert "no step 'tol'; did you mean toy?" in capsys.readouterr().err
    assert not (place / "results").exists()


@pytest.mark.parametrize(("text", "says"), [
    ("skip = ['tpy']", "no key 'tpy'; did you mean toy?"), ("colour = 1", "no key 'colour'"),
    ("options = 3", "options is a table"), ("[options]\ntoy = 'x'", "is no list of texts"),
    ("timeout = -1", "timeout")])
def test_a_wrong_file_of_a_machine(text, says, tmp_path):
    (tmp_path / "m.toml").write_text(text)
    with pytest.raises(Exception, match=says.replace("?", "\\?")):
        host_file.read(tmp_path, ["toy"], "m")


def test_what_a_machine_skips_is_left_out(place, capsys):
    (place / "hosts").mkdir()
    (place / "hosts" / f"{os.uname().nodename}.toml").write_text("skip = ['toy']\n")
    assert cli.main([*ALL, "--json"]) == 0
    assert toy_of(json.loads(capsys.readouterr().out))["status"] == "waiting"


# -- the state -----------------------------------------------------------------------------------------------


def test_two_at_once_are_refused(tmp_path):
    with State.open(tmp_path, "reproduce", {"quick": True}) as first:
        first.save()
        with pytest.raises(Exception, match="somebody is at work on it"):
            State.open(tmp_path, "reproduce", {"quick": True})
        with State.open(tmp_path, "reproduce", {"quick": False}) as other:
            assert other.folder.path != first.folder.path
    with State.open(tmp_path, "reproduce", {"quick": True}) as again:
        assert again.folder.path == first.folder.path


def test_what_was_running_when_all_died_is_done_again(tmp_path):
    with State.open(tmp_path, "x", {}) as first:
        first.members["a"] = Member(Status.RUNNING, ["a"], tries=1)
        first.members["b"] = Member(Status.UNFAITHFUL, ["b"])
        first.save()
    found = state.read(first.folder.path).members
    assert [found[name].is_finished([name], {}) for name in "ab"] == [False, True]
    assert not found["b"].is_finished(["b", "--more"], {})
    assert not found["b"].is_finished(["b"], {"X": "1"})


def test_a_state_that_is_none(tmp_path):
    (tmp_path / state.FILE).write_text('{"schema": 99}')
    with pytest.raises(Exception, match="newer smtnet"):
        state.read(tmp_path)
    (tmp_path / state.FILE).write_text('{"schema": 1, "members": {"a": {"status": "odd"}}}')
    with pytest.raises(Exception, match="no state of a batch"):
        state.read(tmp_path)


def test_exit_codes():
    members = [Member(status) for status in Status]
    codes = []
    for status in (Status.FAILED, Status.LACKING, Status.UNFAITHFUL, None):
        codes.append(exit_code(members))
        members = [member for member in members if member.status is not status]
    assert codes == [1, 3, 4, 0]
