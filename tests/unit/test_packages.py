"""The wheel and the source archive: all that belongs in, the same bytes each time; the container file's names."""

from __future__ import annotations

import os
import re
import shlex
import tarfile
import zipfile
from pathlib import Path

import pytest

from smtstack import __version__
from tests import packages
from tests.packages import PACKAGES, ROOT, Packages

EPOCH = 1_700_000_000
CONTAINERFILE = (ROOT / "Containerfile").read_text()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    try:
        packages.files()
    except FileNotFoundError:
        pytest.skip("neither a checkout of git nor an unpacked source archive: nothing says what belongs to it")
    folder = tmp_path_factory.mktemp("dist")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", str(EPOCH))
        return packages.build(folder)


def test_the_archive_is_the_checkout(built: Packages):
    """So that its tests run, and "make" works in it."""
    top = f"smtnet-{__version__}"
    with tarfile.open(built.archive) as archive:
        members = archive.getmembers()
    names = {member.name.removeprefix(f"{top}/") for member in members if member.isfile()}
    own = {name for name in names if name.startswith("smtnet.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert names - own == set(packages.files())
    assert built.archive.name == f"{top}.tar.gz"
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(EPOCH, 0, 0, "", "")}
    assert [m.name for m in members if not m.isdir() and m.mode == 0o755] == [
        f"{top}/{name}" for name in packages.files() if os.access(ROOT / name, os.X_OK)]


def test_the_wheel_has_all_that_is_imported_or_opened(built: Packages):
    """Every file of our packages, whatever it is: code, tables, what is beside the code."""
    with zipfile.ZipFile(built.wheel) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {name for name in packages.files() if name.partition("/")[0] in PACKAGES} | {"smtnet.py"}
    assert {"topo/mn.py", "smtstack/py.typed", "smtstack/capture/smt.lua"} <= expected
    assert names == expected


def test_another_copy_at_another_time_gives_the_same_bytes(built: Packages, tmp_path: Path, monkeypatch):
    copy = tmp_path / "elsewhere"
    packages.copy(copy)
    # Nothing of git there; as an archive has it, this says what belongs in.
    (copy / "smtnet.egg-info").mkdir()
    (copy / "smtnet.egg-info" / "SOURCES.txt").write_text("\n".join(packages.files()))
    for name in packages.files():
        os.utime(copy / name, (EPOCH - 99, EPOCH - 99))
    (copy / "build" / "lib" / "topo").mkdir(parents=True)
    (copy / "build" / "lib" / "topo" / "removed.py").write_text("")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(EPOCH))
    before = os.umask(0o077)
    try:
        again = packages.build(tmp_path / "dist", copy)
    finally:
        os.umask(before)
    assert [path.name for path in again] == [path.name for path in built]
    assert again.archive.read_bytes() == built.archive.read_bytes()
    assert again.wheel.read_bytes() == built.wheel.read_bytes()


def test_times_come_from_what_is_built(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    (tmp_path / "CHANGELOG.md").touch()
    os.utime(tmp_path / "CHANGELOG.md", (EPOCH, EPOCH))
    assert packages.epoch(tmp_path) == EPOCH
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "7")
    assert packages.epoch(tmp_path) == 7


# -- the container file ------------------------------------------------------------------------------------------


def lines(word: str) -> list[str]:
    return [line.removeprefix(f"{word} ") for line in re.sub(r"\\\n\s*", "", CONTAINERFILE).splitlines()
            if line.startswith(f"{word} ")]


def installed(run: str) -> set[str]:
    """By apt-get, in one RUN."""
    found = re.search(r"apt-get install -y --no-install-recommends ([^&]*)", run)
    return set(found[1].split()) if found else set()


def test_the_container_has_what_make_system_installs():
    """Without what compiles, which the stage before has, and without what reads captures for tests."""
    makefile = (ROOT / "Makefile").read_text()
    programs = re.search(r"^PROGRAMS := ((?:.*\\\n)*.*)$", makefile, re.MULTILINE)
    assert programs
    system = {pair.partition(":")[2] for pair in programs[1].replace("\\\n", " ").split()}
    first, last = [found for run in lines("RUN") if (found := installed(run))]
    assert first == {"gcc", "libc6-dev", "make", "python3-dev", "python3-venv"}
    assert last == system - first - {"tshark", "wireshark-common"} | {"python3", "python3-venv"}


def test_the_container_takes_what_is_there():
    assert lines("COPY") == [". .", "--from=build /src/dist/ /src/constraints/build.txt /tmp/dist/"]
    assert (ROOT / "constraints" / "build.txt").is_file()
    assert "make dist COMPILE=yes" in lines("RUN")
    setup = (ROOT / "setup.py").read_text()
    extras = re.search(r"whl\)\[([a-z,]+)\]", CONTAINERFILE)
    assert extras
    declared = set(re.findall(r'^        "(\w+)": \[', setup, re.MULTILINE))
    assert set(extras[1].split(",")) == declared - {"test", "dev"}
    assert {line.partition(" AS ")[0] for line in lines("FROM")} == {"docker.io/library/debian:12-slim"}


def test_an_image_is_not_made_from_what_was_built_outside():
    """A venv of this machine would be taken for one of the image's."""
    assert {".git", ".venv", "results"} <= set(shlex.split((ROOT / ".dockerignore").read_text()))
