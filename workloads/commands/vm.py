"""``smtnet vm``: tests and commands in a throw-away guest with a distribution's stock kernel, under QEMU."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import tempfile
import time
from argparse import REMAINDER, ArgumentParser, _SubParsersAction
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from smtstack import quantities
from smtstack.exit_codes import EXIT_FAILED, EXIT_OK
from topo.needs import NEEDS, lacking
from topo.probes import ROOT
from workloads.options.declare import add_command, group, option
from workloads.results.folder import ResultFolder
from workloads.vm import guest, image, selection
from workloads.vm.cache import Cache, default_folder
from workloads.vm.qemu import Machine
from workloads.vm.recipe import DEFAULT, RELEASES

_CODES = """exit code: 0 ok, 1 a test or the guest failed, 2 usage, 3 this machine lacks something, 130 interrupted
"""
_TEST_EXAMPLES = f"""examples:
  smtnet vm test
  smtnet vm test --release debian-13
  smtnet vm test --release debian-13 tests/unit tests/sim -m 'not slow'

Without arguments for pytest, it runs the tests marked by what this machine's kernel lacks, of {', '.join(NEEDS)}
('smtnet doctor' has these names, too); where it lacks nothing, all that are so marked. docs/vm.md.
{_CODES}"""
_RUN_EXAMPLES = f"""examples:
  smtnet vm run smtnet doctor
  smtnet vm run --release debian-13 sh -c '/usr/share/openvswitch/scripts/ovs-ctl start && mn --test pingall'

The command runs as root in a copy of this checkout; what it leaves in results/ comes back with it.
{_CODES}"""
_BUILD_EXAMPLES = """examples:
  smtnet vm build --release debian-13

It takes minutes, root and network, once for each release; then guests need none of these.
exit code: 0 ok, 1 it failed, 2 usage, 3 this machine lacks something, 130 interrupted"""
_CLEAN_EXAMPLES = """examples:
  smtnet vm clean

exit code: 0 ok, 2 the folder cannot be written"""


@dataclass(frozen=True)
class Build:
    """Which image, and where from."""

    release: str = option("--release", choices=tuple(RELEASES), default=DEFAULT,
                          help="the guest's distribution (default: %(default)s)")
    mirror: str | None = option("--mirror", metavar="URL",
                                help="the archive of an image that is not there yet (default: those that apt of "
                                     "this machine is configured with)")


@dataclass(frozen=True)
class Guest:
    """What a guest is like."""

    build: Build = group(Build)
    timeout: int = option("--timeout", type=quantities.POSITIVE, default=3600, metavar="S",
                          help="seconds for all that the guest does (default: %(default)s)")
    cpus: int = option("--cpus", type=quantities.POSITIVE, default=2, metavar="N",
                       help="processors of the guest (default: %(default)s)")
    memory: int = option("--memory", type=quantities.POSITIVE, default=2048, metavar="MB",
                         help="memory of the guest, in MB (default: %(default)s)")
    results: Path = option("--results", type=Path, default=Path("results"), metavar="DIR",
                           help="where the result folder is made (default: %(default)s)")
    json: bool = option("--json", action="store_true", help="one JSON object on stdout")


@dataclass(frozen=True)
class Test:
    """What ``smtnet vm test`` takes on its command line."""

    guest: Guest = group(Guest)
    workers: int = option("--workers", type=quantities.POSITIVE, default=2, metavar="N",
                          help="test workers in the guest (default: %(default)s)")
    pytest: list[str] = option(nargs=REMAINDER, metavar="ARG", help="for pytest, instead of the marks")


@dataclass(frozen=True)
class Run:
    """What ``smtnet vm run`` takes on its command line."""

    guest: Guest = group(Guest)
    command: list[str] = option(nargs=REMAINDER, metavar="COMMAND", help="a command with its arguments")


@dataclass(frozen=True)
class Nothing:
    """What ``smtnet vm clean`` takes on its command line."""


def add_parser(commands: _SubParsersAction[ArgumentParser]) -> None:
    """Add ``vm``."""
    parser = commands.add_parser(
        "vm", help="tests in a guest with a stock kernel, under QEMU",
        description="Tests and commands in a throw-away guest with the stock kernel of a distribution, under "
                    "QEMU: Open vSwitch's datapath, netem and TLS in the kernel are there. Nothing in it can "
                    "reach a network, and nothing stays, but results.")
    below = parser.add_subparsers(dest="vm_command", required=True, metavar="WHAT")
    add_command(below, "test", Test, run_tests, help="run tests, by default those that this kernel cannot",
                description="Run tests in a guest.", epilog=_TEST_EXAMPLES)
    add_command(below, "run", Run, run_command, help="run a command",
                description="Run a command in a guest.", epilog=_RUN_EXAMPLES)
    add_command(below, "build", Build, run_build, help="make the image that guests start from",
                description="Make the image of a release, if it is not there.", epilog=_BUILD_EXAMPLES)
    add_command(below, "clean", Nothing, run_clean, help="remove all images",
                description="Remove all images.", epilog=_CLEAN_EXAMPLES)


def run_build(asked: Build) -> int:
    """``smtnet vm build``."""
    _interruptible()
    made = _image(asked)
    print(made.folder)
    return EXIT_OK


def run_clean(_asked: Nothing) -> int:
    """``smtnet vm clean``."""
    print(f"{default_folder()}: {Cache(default_folder()).clean() >> 20} MB freed")
    return EXIT_OK


def run_tests(asked: Test) -> int:
    """``smtnet vm test``."""
    _interruptible()
    reasons = {need: why for need in NEEDS if (why := lacking(need))}
    needs = selection.wanted(reasons)
    given = _words(asked.pytest)
    if not given:
        for need, why in reasons.items():
            print(f"vm test: {need}: not here ({why})", file=sys.stderr)
        print(f"vm test: tests marked {', '.join(needs)}", file=sys.stderr)
    command = selection.pytest_command(needs, ROOT, given, asked.workers)
    folder, report, ended = _in_guest(asked.guest, "vm-test", command)
    junit = folder.path / "junit.xml"
    if ended.code and not junit.exists():
        return _told(asked.guest, folder, report, f"pytest ended with {ended.code}, and left no results")
    outcome = selection.read_junit(junit)
    if not asked.guest.json:
        print(outcome.text(), flush=True)
    return _told(asked.guest, folder, {**report, **asdict(outcome)},
                 f"pytest ended with {ended.code}" if ended.code else "")


def run_command(asked: Run) -> int:
    """``smtnet vm run``."""
    _interruptible()
    command = _words(asked.command) or ["smtnet", "doctor"]
    folder, report, ended = _in_guest(asked.guest, "vm-run", command)
    wrong = f"{shlex.join(command)}: ended with {ended.code}" if ended.code else ""
    return _told(asked.guest, folder, report, wrong)


def _image(asked: Build) -> image.Image:
    made = image.get(RELEASES[asked.release], Cache(default_folder()), asked.mirror)
    if made.built_s:
        print(f"image of {asked.release}: made in {made.built_s:.0f} s, {made.octets >> 20} MB: {made.folder}",
              file=sys.stderr)
    return made


def _in_guest(asked: Guest, name: str, command: Sequence[str]) -> tuple[ResultFolder, dict[str, Any], guest.Ended]:
    """Run it; (where its results are, what is said of it, how it ended)."""
    begun = time.monotonic()
    made = _image(asked.build)
    folder = ResultFolder.create(f"{name}-{asked.build.release}", asked.results)
    print(f"vm: results: {folder.path}", file=sys.stderr)
    share = folder.path.resolve()
    # In the guest's copy nothing is compiled; a C compiler there would need longer than the tests. And without KVM
    # all takes long, so tests wait longer before they give up.
    environment = {"SMTNET_COMPILED": "no", "SMTNET_PATIENCE": "20", "PYTHONUNBUFFERED": "1"}
    folder.write(guest.COMMAND, selection.script(command, environment))
    try:
        with tempfile.TemporaryFile(prefix="smtnet-vm-") as tar:
            guest.pack_checkout(tar)
            machine = Machine(made.folder, tar.fileno(), share, asked.cpus, asked.memory)
            ended = guest.run(machine, default_folder() / "no-kvm", asked.timeout, name.replace("-", " "))
    finally:
        folder.hand_over()
    report = {"release": asked.build.release, "image": str(made.folder), "image_mb": made.octets >> 20,
              "built_s": round(made.built_s, 1), **asdict(ended),
              "all_s": round(time.monotonic() - begun, 1), "folder": str(folder.path)}
    return folder, report, ended


def _told(asked: Guest, folder: ResultFolder, report: dict[str, Any], wrong: str) -> int:
    """The end of a command: its report, on stdout and in the folder; the exit code."""
    folder.write("vm.json", json.dumps(report, indent=1) + "\n")
    if asked.json:
        print(json.dumps(report))
    print(f"vm: {report['release']}, kernel {report['kernel']}, {report['accelerator']}, "
          f"boot {report['boot_s']:.1f} s, the {report['boots']}. try, all {report['all_s']:.0f} s",
          file=sys.stderr)
    if wrong:
        print(f"smtnet: {wrong}; {folder.path / guest.OUTPUT} has what it said", file=sys.stderr)
    return EXIT_FAILED if wrong else EXIT_OK


def _words(rest: Sequence[str]) -> list[str]:
    """What is after the options, with or without ``--`` between them."""
    return list(rest[1:] if rest[:1] == ["--"] else rest)


def _interruptible() -> None:
    """A polite kill takes the guest or the build down in order, as Ctrl-C does."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    os.environ.setdefault("LC_ALL", "C.UTF-8")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
