"""Guests, without QEMU: what an image is made of, QEMU's command line, what a console says, when to boot again,
which tests run, what came of them, and a cache in which nothing is ever half there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import fields, replace
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from smtstack.errors import ConfigError, SmtError, Unsupported
from topo import needs
from topo.probes import ROOT
from workloads.vm import console, guest, image, selection
from workloads.vm.cache import RECORD, Cache, default_folder
from workloads.vm.qemu import PROGRAM, TCG_BOOTS, Machine, attempts
from workloads.vm.recipe import (
    RELEASES,
    Recipe,
    archives,
    bootstrap,
    customize_hook,
    init_script,
    read_sources,
    setup_hook,
)

RELEASE = RELEASES["debian-12"]
RECIPE = Recipe(RELEASE, ("ryu==4.34", 'tomli>=2; python_version < "3.11"'), "setuptools<68\n")
HOST = """http://one.test/debian/ bookworm main
http://one.test/debian/ bookworm-updates main
http://two.test/security/ bookworm-security main
http://three.test/tools stable main
http://one.test/debian/ bookworm main
http://one.test/debian/ bookworm non-free
a line of no meaning that is longer
"""


# -- what an image is made of ---------------------------------------------------------------------------------

def test_archives_are_those_of_the_hosts_apt():
    host = read_sources(HOST)
    assert len(host) == 5
    assert archives(RELEASES["debian-13"], host, "debian", "bookworm") == [
        "deb http://one.test/debian/ trixie main", "deb http://one.test/debian/ trixie-updates main",
        "deb http://two.test/security/ trixie-security main"]


def test_a_host_that_knows_no_archive_of_the_distribution_is_told_what_to_give():
    for host, distribution in ((read_sources(HOST.replace("bookworm", "noble")), "ubuntu"), ([], "debian")):
        with pytest.raises(Unsupported, match="no archive of debian; name one by --mirror URL"):
            archives(RELEASE, host, distribution, "noble")
    assert archives(RELEASE, [], "ubuntu", "noble", "http://x.test/debian") == [
        "deb http://x.test/debian bookworm main"]
    with pytest.raises(ConfigError, match=r"--mirror x\.test"):
        archives(RELEASE, [], "ubuntu", "noble", "x.test")


@pytest.mark.parametrize("other", [
    replace(RECIPE, release=RELEASES["debian-13"]), replace(RECIPE, requirements=("ryu==4.33",)),
    replace(RECIPE, constraints="")])
def test_another_recipe_is_another_image(other):
    assert other.name != RECIPE.name
    assert replace(RECIPE).name == RECIPE.name


def test_what_python_needs_is_what_setup_says_but_for_what_checks_the_code():
    declared = ["b==1", 'a>=2; python_version < "3.11"', 'c>=3; extra == "test"', 'ruff; extra == "dev"',
                'c>=3; extra == "kv"']
    assert image.requirements(declared) == ('a>=2; python_version < "3.11"', "b==1", "c>=3")


def test_the_bootstrap_names_every_package_and_what_a_shell_reads_is_quoted():
    command = bootstrap(RECIPE, ["deb http://one.test bookworm main"], "/root tree", "/hooks")
    assert f"--include={','.join(RELEASE.packages)}" in command
    assert command[-3:] == ["bookworm", "/root tree", "deb http://one.test bookworm main"]
    hook = customize_hook("/h", "/w", "/c", "http://i.test/?a&b", RECIPE.requirements)
    assert "'tomli>=2; python_version < \"3.11\"'" in hook
    assert "'http://i.test/?a&b'" in hook
    for text in (hook, setup_hook("/h"), init_script()):
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)


# -- QEMU -----------------------------------------------------------------------------------------------------

def test_qemus_command_line(tmp_path):
    command = Machine(Path("/i,j"), 7, tmp_path, 3, 512).command("tcg")
    assert command[command.index("-accel") + 1] == "tcg,thread=multi"
    assert command[command.index("-smp") + 1] == "3"
    assert "file=/proc/self/fd/7,if=none,id=d1,format=raw,readonly=on" in command
    assert "file=/i,,j/root.img,if=none,id=d0,format=raw,snapshot=on,cache=unsafe" in command
    kernel = command[command.index("-append") + 1].split()
    assert "clearcpuid=cx16" in kernel
    assert "clearcpuid=cx16" not in " ".join(Machine(Path("/i"), 7, tmp_path).command("kvm"))
    # Nothing in it reaches a network.
    assert "-nodefaults" in command
    assert not [word for word in command if word.startswith("-net") or "netdev" in word]
    assert Machine(Path("/i"), 7, tmp_path).command("kvm")[4] == "kvm"


def test_kvm_first_where_it_may_work_then_without_some_times():
    assert attempts(False) == ["tcg"] * TCG_BOOTS
    assert attempts(True) == ["kvm", *["tcg"] * TCG_BOOTS]


def test_kvm_that_failed_is_not_tried_again_until_the_host_boots(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_args: True)
    remembered = tmp_path / "no-kvm"
    assert guest.kvm_usable(remembered)
    guest._remember(remembered)
    assert not guest.kvm_usable(remembered)
    remembered.write_text("another boot\n")
    assert guest.kvm_usable(remembered)


# -- the console ----------------------------------------------------------------------------------------------

UP, DONE = "[  1.2] x\r\nSMTNET-VM up 4.75 6.1.0-57-amd64\r\n", "SMTNET-VM done 3 60.10\r\n"


@pytest.mark.parametrize(("text", "up", "code", "trouble"), [
    ("", False, None, ""), ("SeaBIOS\r\n", False, None, ""), (UP, True, None, ""), (UP + DONE, True, 3, ""),
    ("Oops: int3: 0000 [#1]\r\n", False, None, "Oops: int3: 0000 [#1]"),
    (UP + "Kernel panic - not syncing: Fatal\r\n", True, None, "Kernel panic - not syncing: Fatal"),
    (UP + "Oops: 0000\r\n" + DONE, True, 3, ""),  # of a module, and the command ended all the same
    ("SMTNET-VM no-share\r\n" + UP, True, None, "the guest cannot read its share"),
    ("error: failed to set MSR 0x10a to 0x69\r\n", False, None, "error: failed to set MSR 0x10a to 0x69"),
    ("SMTNET-VM up", False, None, ""), ("SMTNET-VM done x", False, None, "")])
def test_what_a_console_says(text, up, code, trouble):
    seen = console.read(text)
    assert (seen.up, seen.code, seen.trouble) == (up, code, trouble)


def test_numbers_of_the_console():
    seen = console.read(UP)
    assert (seen.boot_s, seen.kernel) == (4.75, "6.1.0-57-amd64")


@pytest.mark.parametrize(("text", "ended", "used", "again"), [
    ("", False, 1.0, False), ("", False, 99.0, True), ("", True, 1.0, True), ("Oops: int3\n", True, 1.0, True),
    # Once a command may have begun, it is not begun again.
    (UP, True, 1.0, False), (UP, False, 99.0, False), (UP + DONE, True, 99.0, False)])
def test_boots_again_only_before_the_command(text, ended, used, again):
    assert console.boot_again(console.read(text), ended, used, 60.0) is again


def test_the_tail_has_no_control_characters():
    text = "\x1bc\x1b[?7l\x1b[2J" + "".join(f"line {n}\r\n\r\n" for n in range(40)) + "caf\xe9\x07\n"
    assert console.tail(text, 3) == "line 38\nline 39\ncaf"


# -- which tests ----------------------------------------------------------------------------------------------

def test_tests_for_what_the_host_lacks_or_all_that_are_marked():
    assert selection.wanted({"ktls", "netem"}) == ["netem", "ktls"]
    assert selection.wanted(set()) == list(needs.NEEDS)


def test_every_mark_of_a_need_is_declared_and_used_where_it_is_looked_for():
    declared = (ROOT / "pyproject.toml").read_text()
    for need in needs.NEEDS:
        assert f'"{need}: ' in declared
        assert selection.files_with([need], ROOT), need
    assert "tests/net/test_transports.py" in selection.files_with(["ktls"], ROOT)


def test_the_command_for_pytest():
    marked = selection.pytest_command(["ktls"], ROOT, [], 2)
    assert marked[marked.index("-m", 3) + 1] == "ktls"
    given = selection.pytest_command(["ktls"], ROOT, ["tests/unit", "-k", "a b"], 1)
    assert given[-3:] == ["tests/unit", "-k", "a b"]
    text = selection.script(given, {"A": "x y"})
    assert "export A='x y'\n" in text
    assert "tests/unit -k 'a b'\n" in text
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)


def test_why_a_need_is_not_met_is_said(monkeypatch):
    def refuse() -> None:
        raise OSError(2, "No such file or directory")

    monkeypatch.setitem(needs.NEEDS, "ktls", refuse)
    needs.lacking.cache_clear()
    try:
        assert needs.lacking("ktls") == "No such file or directory"
    finally:
        needs.lacking.cache_clear()


JUNIT = """<?xml version="1.0" encoding="utf-8"?><testsuites>
<testsuite name="pytest" time="12.5">
<testcase classname="tests.net.test_a" name="test_one[ktls]" time="1"/>
<testcase classname="tests.net.test_a" name="test_two" time="1"><failure message="no">why</failure></testcase>
<testcase classname="tests.net.test_a" name="test_three"><skipped message="needs netem">x</skipped></testcase>
</testsuite></testsuites>"""


def test_what_came_of_tests(tmp_path):
    path = tmp_path / "junit.xml"
    path.write_text(JUNIT)
    outcome = selection.read_junit(path)
    assert outcome.passed == ("tests/net/test_a.py::test_one[ktls]",)
    assert outcome.failed == ("tests/net/test_a.py::test_two",)
    assert outcome.skipped == {"tests/net/test_a.py::test_three": "needs netem"}
    assert outcome.tests_s == 12.5
    assert outcome.text().splitlines()[0] == "1 passed, 1 failed, 1 skipped in the guest"


def test_in_vm_json_nothing_of_the_guest_is_overwritten_by_its_tests():
    assert not {f.name for f in fields(guest.Ended)} & {f.name for f in fields(selection.Outcome)}


@pytest.mark.parametrize("text", [
    "", "<a", "<a><testcase/></a>", '<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>',
    '<testsuites><testsuite time="x"/></testsuites>'])
def test_what_is_no_result_of_tests_is_an_error(tmp_path, text):
    (tmp_path / "junit.xml").write_text(text)
    with pytest.raises(SmtError, match=r"junit\.xml"):
        selection.read_junit(tmp_path / "junit.xml")
    with pytest.raises(SmtError, match="left no results"):
        selection.read_junit(tmp_path / "none.xml")


def test_what_of_a_checkout_goes_along(tmp_path):
    for name in (".git/HEAD", ".venv/bin/python", ".github/workflows/ci.yml", ".dockerignore", "results/x",
                 "workloads/results/row.py", "topo/__pycache__/a.pyc", "smtnet.egg-info/PKG-INFO", "Makefile"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    found = {str(path.relative_to(tmp_path)) for path in guest.files(tmp_path) if path.is_file()}
    assert found == {".github/workflows/ci.yml", ".dockerignore", "workloads/results/row.py", "Makefile"}


def test_the_copy_has_the_packages_metadata(tmp_path):
    with (tmp_path / "a.tar").open("wb") as to:
        guest.pack_checkout(to)
    with tarfile.open(tmp_path / "a.tar") as tar:
        tar.extractall(tmp_path / "copy", [m for m in tar if m.name.startswith("smtnet.egg-info/")], filter="data")
    (found,) = metadata.distributions(path=[str(tmp_path / "copy")])
    assert (found.name, found.requires) == ("smtnet", metadata.requires("smtnet"))


# -- the cache ------------------------------------------------------------------------------------------------

def test_an_image_is_there_when_it_is_whole(tmp_path):
    cache = Cache(tmp_path / "vm")
    assert cache.find("a") is None
    with cache.building("a") as place:
        assert cache.images() == []
        (place / "root.img").write_text("x")
        (place / RECORD).write_text("{}")
        assert cache.find("a") is None
    assert cache.find("a") == tmp_path / "vm" / "a"
    assert cache.images() == [tmp_path / "vm" / "a"]
    assert cache.clean() > 0
    assert (cache.find("a"), cache.images()) == (None, [])
    assert cache.clean() == 0


def test_a_build_that_fails_or_is_interrupted_leaves_nothing(tmp_path):
    cache = Cache(tmp_path)

    def build(error: BaseException) -> None:
        with cache.building("a") as place:
            (place / RECORD).write_text("{}")
            raise error

    for error in (SmtError("no"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            build(error)
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_what_a_killed_build_has_left_goes_with_the_next(tmp_path):
    program = ("import sys, time; from pathlib import Path; from workloads.vm.cache import Cache\n"
               "with Cache(Path(sys.argv[1])).building('a') as place:\n"
               "    (place / 'half').write_text(''); print('in', flush=True); time.sleep(600)\n")
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True,
                               cwd=ROOT)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "in\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(tmp_path.glob("building-*"))) == 1
    cache = Cache(tmp_path)
    assert cache.images() == []
    with cache.building("b") as place:
        assert list(tmp_path.glob("building-*")) == [place]


def test_where_images_are(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "smtnet" / "vm"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification says to ignore
    assert default_folder() == Path.home() / ".cache" / "smtnet" / "vm"


# -- a whole run, with a program in QEMU's place --------------------------------------------------------------

@pytest.fixture
def machine(tmp_path, monkeypatch) -> Iterator[Machine]:
    """Its QEMU is a shell script, which dies at the first boot and says what a guest says at the second."""
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / PROGRAM
    fake.write_text("#!/bin/sh\n"
                    f"cd {tmp_path}\n"
                    "checkout=$(echo \"$*\" | sed -n 's|.*file=\\(/proc/self/fd/[0-9]*\\),.*|\\1|p')\n"
                    "cp $checkout share/seen.tar\n"
                    "if [ ! -e died ]; then touch died; echo 'Oops: int3: 0000'; exit 1; fi\n"
                    "echo 'SMTNET-VM up 4.5 6.1'\n"
                    "echo hello >share/output.txt\n"
                    "[ -e hang ] && exec sleep 600\n"
                    "echo 'SMTNET-VM done 5 9.0'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(guest, "find", lambda name: name)
    monkeypatch.setattr(guest, "kvm_usable", lambda _path: False)
    (tmp_path / "share").mkdir()
    with tempfile.TemporaryFile() as checkout:
        checkout.write(b"a tar file")
        checkout.flush()
        yield Machine(tmp_path, checkout.fileno(), tmp_path / "share")


def test_a_guest_that_dies_early_is_booted_again(machine, capfd, tmp_path):
    ended = guest.run(machine, tmp_path / "no-kvm", 60, "vm")
    assert (ended.code, ended.boots, ended.boot_s, ended.kernel) == (5, 2, 4.5, "6.1")
    said = capfd.readouterr().err
    assert "the guest does not come up (tcg: Oops: int3: 0000); again" in said
    assert "hello\n" in said
    assert (tmp_path / "share" / "seen.tar").read_bytes() == b"a tar file"
    assert "int3" in (tmp_path / "share" / "console-1.txt").read_text()


def test_a_command_that_takes_too_long_is_ended_and_the_console_told(machine, tmp_path):
    (tmp_path / "died").touch()
    (tmp_path / "hang").touch()
    with pytest.raises(SmtError, match=r"did not end within 1 s \(--timeout\)(.|\n)*SMTNET-VM up"):
        guest.run(machine, tmp_path / "no-kvm", 1, "vm")
    assert not _running(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_guest_ends_with_who_started_it(machine, tmp_path, number):
    (tmp_path / "died").touch()
    (tmp_path / "hang").touch()
    # A shell's background jobs ignore Ctrl-C.
    program = ("import signal, sys; from pathlib import Path; from workloads.vm import guest\n"
               "from workloads.vm.qemu import Machine\n"
               "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
               "folder = Path(sys.argv[1]); guest.find = lambda name: name\n"
               "guest.kvm_usable = lambda path: False\n"
               "guest.run(Machine(folder, 0, folder / 'share'), folder / 'no-kvm', 600, 'vm')\n")
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.readline() == b"hello\n"
        process.send_signal(number)
        process.wait()
    assert not _running(tmp_path)


def _running(folder: Path) -> list[str]:
    """Processes that are in this folder, after a while."""
    found = [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(folder)]
    return [str(process) for process in psutil.wait_procs(found, timeout=20)[1]]

