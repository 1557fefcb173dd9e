"""``smtnet sweep``: what a file says, seeds, and every point once, by Dask; with a toy experiment.

SMTNET_POINTS=24 makes the sweeps that are interrupted as long as that of docs/sweep.md; by default they are short.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from smtstack.errors import ConfigError
from smtstack.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_UNFAITHFUL, EXIT_USAGE
from tests import batch_toy
from workloads.batch import grid, job
from workloads.batch.sweeping import cluster, flat
from workloads.commands import main as cli

POINTS = int(os.environ.get("SMTNET_POINTS", "4"))
FILE = """
name = "toys"
command = "reproduce toy"
seed = 5

[fixed]
wait = 0.1

[grid]
colour = ["red", "blue"]
size = [1, 2, 3]
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """Where all is; the toy is there."""
    batch_toy.put(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield tmp_path
    for number, handler in before.items():
        signal.signal(number, handler)
    batch_toy.forget()


def sweep(text: str, place: Path) -> grid.Sweep:
    (place / "sweep.toml").write_text(text)
    return grid.read(place / "sweep.toml")


# -- the file ------------------------------------------------------------------------------------------------


def test_every_combination_with_a_seed_of_its_own(place):
    found = sweep(FILE.replace("seed = 5", "seed = 5\nrepeats = 2"), place)
    assert len(found.points) == 12
    assert len({point.seed for point in found.points}) == 12
    assert len({point.key for point in found.points}) == 12
    first = found.points[0]
    assert first.words == ("reproduce", "toy", "--wait=0.1", "--colour=red", "--size=1", "--seed", str(first.seed))
    assert first.values == {"colour": "red", "size": 1}


def test_a_seed_is_the_same_whatever_else_there_is(place):
    before = {json.dumps(point.values): point.seed for point in sweep(FILE, place).points}
    more = sweep(FILE.replace("[1, 2, 3]", "[9, 3, 2, 1]"), place).points
    assert {place: seed for place, seed in ((json.dumps(point.values), point.seed) for point in more)
            if place in before} == before
    assert {point.seed for point in sweep(FILE.replace("seed = 5", "seed = 6"), place).points}.isdisjoint(
        before.values())


def test_along_an_axis_the_seed_may_stay(place):
    found = sweep(FILE.replace("seed = 5", "seed = 5\nsame-seed = ['colour']"), place)
    by_size: dict[int, set] = {}
    for point in found.points:
        by_size.setdefault(point.values["size"], set()).add(point.seed)
    assert [len(seeds) for seeds in by_size.values()] == [1, 1, 1]


@pytest.mark.parametrize(("before", "after", "says"), [
    ("size = [1, 2, 3]", "sise = [1]", "no key 'sise'; did you mean size?"),
    ("size = [1, 2, 3]", "size = 1", "is no list of values"),
    ("size = [1, 2, 3]", "size = []", "is no list of values"),
    ("size = [1, 2, 3]", "size = [1, 1]", "a value is there twice"),
    ("size = [1, 2, 3]", "size = [1, 13]", "colour red, size 13: --size 13: an unlucky number"),
    ("size = [1, 2, 3]", "size = [1, 'x']", "colour red, size x: argument --size"),
    ('"blue"', '"green"', "colour green, size 1: argument --colour"),
    ("size = [1, 2, 3]", "seed = [1]", "the sweep says that to every point"),
    ("size = [1, 2, 3]", "wait = [1]", "it is fixed"),
    ("reproduce toy", "reproduce tool", "'reproduce tool' is no experiment; there are"),
    ('command = "reproduce toy"', "", "command is missing"),
    ('name = "toys"', 'name = "a/b"', "'a/b' is none"),
    ("seed = 5", "seed = 5\nsame-seed = ['wait']", "'wait' is no axis"),
    ("seed = 5", "colour = 1", "no key 'colour'"),
    ("seed = 5", "repeats = 100_000", "points are more than")])
def test_a_wrong_file(before, after, says, place):
    assert before in FILE
    with pytest.raises(ConfigError) as error:
        sweep(FILE.replace(before, after), place)
    assert says in str(error.value)


def test_our_examples_are_right():
    for file in Path(grid.__file__).parents[2].joinpath("examples/sweeps").glob("*.toml"):
        assert len(grid.read(file).points) == 24


def test_numbers_by_their_paths():
    assert flat({"a": 1, "b": {"c": 2.5, "d": {"e": "x"}}, "f": [1], "g": None}) == {
        "a": 1, "b.c": 2.5, "b.d.e": "x", "g": None}


# -- running -------------------------------------------------------------------------------------------------


def run(place: Path, capsys, *words: str, text: str = FILE, code: int = 0) -> dict:
    (place / "sweep.toml").write_text(text)
    found = cli.main(["sweep", "sweep.toml", "--workers", "2", *words, "--json"])
    said = capsys.readouterr()
    assert found == code, said.err
    return {**json.loads(said.out), "said": said.err}


def table_of(result: dict) -> list[dict]:
    with Path(result["folder"], "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def test_one_table_and_what_is_finished_stays(place, capsys, monkeypatch):
    pytest.importorskip("distributed")
    started: list[tuple[str, ...]] = []

    def counted(words, *rest, **named):
        started.append(tuple(words))
        return batch_toy.run_in_this_process(words, *rest, **named)

    monkeypatch.setattr(job, "run", counted)
    # One worker: the toy of this process prints by this process's stdout.
    first = run(place, capsys, "--workers", "1")
    assert (first["points"], first["finished"]) == (6, 6)
    assert len(started) == 6
    table = table_of(first)
    names = ("colour", "size", "sum", "inner.double", "status")
    assert [tuple(line[name] for name in names) for line in table] == [
        (colour, str(size), str(size + 1), str(2 * size), "done")
        for colour in ("red", "blue") for size in (1, 2, 3)]
    assert {line["seed"] for line in table} == {str(point.seed) for point in sweep(FILE, place).points}
    folder = Path(first["folder"])
    assert (folder / table[0]["folder"] / "published.json").exists(), "the files of a point come back"
    assert json.loads((folder / "sweep.json").read_text())["table"][3]["colour"] == "blue"
    assert "inner.double" in (folder / "index.html").read_text()
    # Nothing is left to do; then two more points are.
    assert run(place, capsys)["folder"] == first["folder"]
    assert len(started) == 6
    more = run(place, capsys, "--workers", "1", text=FILE.replace("[1, 2, 3]", "[1, 2, 3, 4]"))
    assert (more["folder"], more["finished"], len(started)) == (first["folder"], 8, 8)


def test_points_that_fail_are_tried_once_more(place, capsys, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(job, "run", batch_toy.run_in_this_process)
    text = FILE.replace('["red", "blue"]', '["red"]').replace("[1, 2, 3]", "[1, 2]").replace(
        "wait = 0.1", f"fate = '{place}/fate'")
    (place / "fate").write_text("fails fine noisy")
    result = run(place, capsys, "--workers", "1", text=text, code=EXIT_UNFAITHFUL)
    assert sorted(line["status"] for line in table_of(result)) == ["done", "not faithful"]
    assert "1 points failed; once more" in result["said"]
    (place / "fate").write_text("fails fails fails")
    result = run(place, capsys, "--workers", "1", "--new", text=text, code=EXIT_FAILED)
    assert [line["status"] for line in table_of(result)] == ["failed", "failed"]
    assert "colour red, size 2: failed: toys failed" in result["said"]


def test_check_runs_nothing_and_a_cluster_that_is_none_is_named(place, capsys, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("workloads.batch.sweeping._CONNECT_S", 0.3)
    (place / "sweep.toml").write_text(FILE)
    assert cli.main(["sweep", "sweep.toml", "--check"]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 6
    assert said.out.startswith("smtnet reproduce toy --wait=0.1 --colour=red --size=1 --seed ")
    assert not (place / "results").exists()
    assert cli.main(["sweep", "sweep.toml", "--scheduler", "tcp://127.0.0.1:9"]) == EXIT_USAGE
    assert "no scheduler of Dask answers" in capsys.readouterr().err


def test_local_workers_listen_to_nobody_elsewhere():
    """Who reaches a scheduler may run what he likes as its user."""
    pytest.importorskip("distributed")
    before = listening()
    with cluster(1, None) as client:
        assert client.submit(os.getpid).result(timeout=30) == os.getpid()
        assert client.scheduler.address.startswith("inproc://")
        assert {ip for ip, _port in listening() - before} <= {"127.0.0.1"}


def listening() -> set[tuple[str, int]]:
    return {(each.laddr.ip, each.laddr.port) for each in psutil.Process().net_connections()
            if each.status == psutil.CONN_LISTEN}


# -- interrupted, and gone on with ---------------------------------------------------------------------------

#: A file of so many points, which take a moment each.
LONG = FILE.replace("[1, 2, 3]", str(list(range(1, POINTS // 2 + 1)))).replace("wait = 0.1", "wait = 0.2")


def finished(place: Path) -> dict[str, dict]:
    """Points that are, by their keys."""
    for path in (place / "results").glob("*Z-sweep-toys/state.json"):
        members = json.loads(path.read_text())["members"]
        return {name: member for name, member in members.items() if member["status"] == "done"}
    return {}


#: Python drops an interrupt that comes while an object is being deleted; it says so.
_DROPPED = "Exception ignored in"


def interrupted_and_resumed(place: Path, *words: str) -> None:
    (place / "sweep.toml").write_text(LONG)
    command = [sys.executable, "-m", "workloads", "sweep", "sweep.toml", *words, "--json"]
    while (said := interrupted(place, command)).startswith(_DROPPED):
        for results in place.glob("results*"):
            shutil.rmtree(results)
    before = finished(place)
    assert POINTS // 3 <= len(before) < POINTS, "it was in the middle"
    assert f"interrupted after {len(before)} of {POINTS} points" in said
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["points"], result["finished"]) == (POINTS, POINTS)
    after = finished(place)
    assert {name: after[name] for name in before} == before, "what was finished was not done again"
    table = table_of({"folder": place / result["folder"]})
    assert [(line["size"], line["sum"], line["status"]) for line in table] == [
        (str(size), str(size + 1), "done") for _colour in range(2) for size in range(1, POINTS // 2 + 1)]
    assert {line["seed"] for line in table} == {str(point.seed) for point in sweep(LONG, place).points}


def interrupted(place: Path, command: list[str]) -> str:
    """What a sweep says that is interrupted in the middle; ``_DROPPED`` if Python dropped that."""
    running = subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    give_up = time.monotonic() + 120
    while len(finished(place)) < POINTS // 3:
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < give_up
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=60)[1]
    if running.returncode == 0 and _DROPPED in said and "KeyboardInterrupt" in said:
        return _DROPPED
    assert running.returncode == EXIT_INTERRUPTED, said
    return said


def test_on_two_local_workers(place):
    pytest.importorskip("distributed")
    interrupted_and_resumed(place, "--workers", "2")


@contextmanager
def dask(place: Path, *words: str) -> Iterator[subprocess.Popen]:
    """A process of Dask's, gone afterwards."""
    with (place / f"{'-'.join(words[:1])}-{time.monotonic_ns()}.log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "dask", *words], cwd=place, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def test_on_a_cluster_by_its_address(place):
    pytest.importorskip("distributed")
    with ExitStack() as stack:
        where = place / "scheduler.json"
        stack.enter_context(dask(place, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
                                 "--scheduler-file", str(where)))
        give_up = time.monotonic() + 60
        address = ""
        while not address:
            assert time.monotonic() < give_up
            time.sleep(0.02)
            if where.exists() and (text := where.read_text()).endswith("}"):
                address = json.loads(text)["address"]
        for _number in range(2):
            stack.enter_context(dask(place, "worker", address, "--nthreads", "1", "--no-dashboard", "--no-nanny",
                                     "--memory-limit", "0"))
        from distributed import Client

        with Client(address) as client:
            client.wait_for_workers(2, timeout=60)
        interrupted_and_resumed(place, "--scheduler", address)
