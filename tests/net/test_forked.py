"""Programs forked from one process for all hosts are as those that start by themselves: see fork_drivers.py."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import psutil
import pytest

from tests.net.netns import PATIENCE, run
from tests.net.starting import ROOT

pytestmark = pytest.mark.root

DRIVERS = [sys.executable, "-c", "import sys; from topo import sandbox; sys.exit(sandbox.run_command("
           "[sys.executable, '-m', 'tests.net.fork_drivers', *sys.argv[1:]]))"]


@pytest.fixture(scope="module")
def found():
    done = run([*DRIVERS, "start"])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_forked_program_finds_all_as_one_that_starts_by_itself(found):
    forked, plain = found["forked"], found["plain"]
    assert forked["environment"]["FORK_TEST"] == "yes"
    assert forked["environment"]["OF_THE_RUN"] == "later"
    assert forked["leads"]
    assert forked["cores"] == [0]
    assert forked["descriptors"] == [0, 1, 2]
    assert forked["main"] == "__main__"
    assert "tests.net.fork_drivers" in forked["cmdline"]
    # mnexec leaves what it entered by open.
    for name in forked.keys() - {"random", "descriptors"}:
        assert forked[name] == plain[name], name


def test_it_is_on_its_host_alone(found):
    one, two = (found[name]["spaces"] for name in ("forked", "other"))
    assert one["net"] != two["net"]
    assert one["mnt"] != two["mnt"]
    # Of different processes of one server.
    assert len(set(found["pids"])) == 3
    assert found["pids"][2] == found["server"]


def test_what_is_random_differs_between_hosts(found):
    assert len({found[name]["random"] for name in ("forked", "other", "plain")}) == 3


def test_the_server_holds_no_secret_of_a_program(found):
    assert found["secret"] == {"program": True, "server": False}


def test_the_server_has_nothing_of_mininet_and_pictures(found):
    assert found["server_modules"] == []


def test_programs_end_as_if_started_by_themselves(found):
    forked, plain = found["ends"]["True"], found["ends"]["False"]
    assert [end[0] for end in forked] == [0, 3, 1, 1, 0, -signal.SIGTERM, -signal.SIGKILL]
    assert forked == plain
    assert forked[1][1] == "said at the end\n"
    assert forked[1][3].startswith("Unsupported h1: test ended")
    assert forked[2][2] == "words"


def test_programs_end_with_the_server_and_there_is_another_one(found):
    assert found["orphan"] == -signal.SIGKILL
    assert found["gone"]
    assert found["again"]
    assert found["alive_after_close"] == 0


def test_programs_end_with_the_run():
    held = subprocess.Popen([*DRIVERS, "hold"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                            text=True)
    try:
        assert held.stdout is not None
        assert held.stdout.readline() == "up\n"
        below = psutil.Process(held.pid).children(recursive=True)
        (driver,) = (p for p in below if p.cmdline()[-2:] == ["tests.net.fork_drivers", "hold"]
                     and "-c" not in p.cmdline() and "topo.sandbox" not in p.cmdline())
        family = driver.children(recursive=True)
        assert any("program" in p.cmdline() for p in family)
        assert any("topo.fork_server" in p.cmdline() for p in family)
        driver.send_signal(signal.SIGKILL)
        _gone, alive = psutil.wait_procs(family, PATIENCE)
        assert not alive
    finally:
        held.kill()
        held.communicate()


def test_in_a_chroot_it_stays_there():
    done = run([*DRIVERS, "chrooted"])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["folder"] == "/mnt/here"
