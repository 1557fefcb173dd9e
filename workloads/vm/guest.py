"""Boots a guest, has it run one command on a copy of the checkout, and brings back what came of it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO

import psutil

from smtstack.errors import SmtError, Unsupported
from topo.probes import ROOT, find
from workloads.results.progress import Progress
from workloads.vm import console
from workloads.vm.image import DIES_WITH_US
from workloads.vm.qemu import BOOT_S, PROGRAM, Accelerator, Machine, attempts

#: In the folder that the guest writes to.
COMMAND, OUTPUT, CODE, CONSOLE = "command.sh", "output.txt", "code", "console.txt"
#: At the top of a checkout, and no part of it: what is made of it, or left by it. Nor is what begins with a dot,
#: as .git and .venv, but for what tests read.
_NOT_COPIED, _COPIED = {"results", "build", "dist"}, {".github", ".dockerignore"}
#: Bytes: a checkout is 20 MB, and somebody's disk images are not to be copied.
_MOST_OCTETS = 1 << 30
_LOOK_S = 0.25
#: Seconds for a guest to switch itself off.
_OFF_S = 15.0


@dataclass(frozen=True, slots=True)
class Ended:
    """What came of a command in a guest."""

    code: int
    """The command's exit code."""
    accelerator: Accelerator
    kernel: str
    boots: int
    """How many it took."""
    boot_s: float
    """Seconds of the last boot, by the guest's clock."""
    seconds: float
    """All together, by ours."""


def run(machine: Machine, kvm: Path, timeout_s: float, title: str) -> Ended:
    """Boot, run ``command.sh`` of the share, and power off. What it prints goes to stderr as it comes.

    ``kvm`` is a file in which a failure of KVM is remembered until the host boots anew. Raises :class:`SmtError`
    if the guest does not come up, or needs longer than ``timeout_s``; :class:`Unsupported` without QEMU."""
    if find(PROGRAM) is None:
        raise Unsupported(f"{PROGRAM} is not installed: "
                          "sudo apt-get install --no-install-recommends qemu-system-x86")
    begun = time.monotonic()
    tried: list[str] = []
    with Progress(title) as progress:
        for number, accelerator in enumerate(attempts(kvm_usable(kvm)), 1):
            one = _Boot(machine, accelerator, timeout_s, progress)
            seen = one.watch()
            if seen.up:
                if seen.code is None:
                    why = seen.trouble or "no word why"
                    raise SmtError(f"the guest stopped before its command ended ({why}); "
                                   f"{machine.share / CONSOLE} ends with:\n{one.tail()}")
                return Ended(seen.code, accelerator, seen.kernel, number, seen.boot_s, time.monotonic() - begun)
            tried.append(f"{accelerator}: {seen.trouble or one.why}")
            (machine.share / CONSOLE).rename(machine.share / f"console-{number}.txt")
            if accelerator == "kvm":
                _remember(kvm)
            print(f"{title}: the guest does not come up ({tried[-1]}); again", file=sys.stderr)
    last = machine.share / f"console-{len(tried)}.txt"
    raise SmtError(f"the guest does not come up ({'; '.join(tried)}); {last} ends with:\n"
                   f"{console.tail(last.read_text(errors='replace'))}")


class _Boot:
    """One start of QEMU, which does not outlive us."""

    def __init__(self, machine: Machine, accelerator: Accelerator, timeout_s: float, progress: Progress) -> None:
        self.why = ""
        self._machine = machine
        self._limit_s = BOOT_S[accelerator]
        self._timeout_s = timeout_s
        self._progress = progress
        self._accelerator = accelerator
        self._console = machine.share / CONSOLE
        for name in (OUTPUT, CODE):
            with suppress(FileNotFoundError):
                (machine.share / name).unlink()

    def tail(self) -> str:
        """The console's last lines."""
        return console.tail(self._text())

    def _text(self) -> str:
        return self._console.read_text(errors="replace")

    def watch(self) -> console.Seen:
        """Start it, and look at its console until it has ended or is given up."""
        with self._console.open("wb") as out:
            process = subprocess.Popen([*DIES_WITH_US, *self._machine.command(self._accelerator)],
                                       stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                       pass_fds=[self._machine.checkout])
        try:
            return self._watch(process)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    def _watch(self, process: subprocess.Popen[bytes]) -> console.Seen:
        begun, shown, done_at = time.monotonic(), 0, 0.0
        while True:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_S)
            ended, waited = process.poll() is not None, time.monotonic() - begun
            used = 0.0 if ended else _processor_seconds(process.pid)
            seen = console.read(self._text())
            shown = self._show(shown)
            if console.boot_again(seen, ended, used, self._limit_s):
                self.why = (f"QEMU ended with {process.returncode}" if ended else
                            f"not up after {used:.0f} s of processors")
                return seen
            if ended:
                return seen
            if seen.code is not None:
                done_at = done_at or waited
                if waited - done_at > _OFF_S:
                    return seen  # it has done its work, and does not switch itself off
            elif waited > self._timeout_s:
                raise SmtError(f"the guest's command did not end within {self._timeout_s:.0f} s (--timeout); "
                               f"{self._machine.share / OUTPUT} has what it said, {self._console} ends with:\n"
                               f"{self.tail()}")
            self._progress.say("runs" if seen.up else f"boots ({self._accelerator})")

    def _show(self, shown: int) -> int:
        """Print what the command has said since; how much of it was printed by now."""
        try:
            with (self._machine.share / OUTPUT).open("rb") as output:
                output.seek(shown)
                new = output.read()
        except FileNotFoundError:
            return shown
        whole = new[:new.rfind(b"\n") + 1]
        if whole:
            sys.stderr.write(whole.decode(errors="replace"))
            sys.stderr.flush()
        return shown + len(whole)


def _processor_seconds(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def kvm_usable(remembered: Path) -> bool:
    """Whether it is worth trying: /dev/kvm can be opened, and did not fail since the host has booted."""
    with suppress(OSError):
        if remembered.read_text() == _boot_id():
            return False
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


def _remember(kvm: Path) -> None:
    with suppress(OSError):  # a cache of somebody else: tried again next time
        kvm.write_text(_boot_id())


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()


def pack_checkout(to: IO[bytes]) -> None:
    """The checkout as a tar file, as it is now, without what is made of it, but with the package's metadata."""
    total = 0
    with tarfile.open(fileobj=to, mode="w") as file:
        for path in files(ROOT):
            total += path.lstat().st_size
            if total > _MOST_OCTETS:
                raise SmtError(f"{ROOT}: more than {_MOST_OCTETS >> 20} MB to copy into the guest, with {path}: "
                               "move what is no part of smtnet elsewhere")
            file.add(path, str(path.relative_to(ROOT)), recursive=False)
        # As what is installed has it: extras and versions are looked up in there.
        own = metadata.distribution("smtnet")
        # Of an old setuptools, what is required is in a file of its own.
        told = {"PKG-INFO": own.read_text("METADATA") or own.read_text("PKG-INFO"),
                "requires.txt": own.read_text("requires.txt")}
        for name, text in told.items():
            if text:
                said = text.encode()
                entry = tarfile.TarInfo(f"smtnet.egg-info/{name}")
                entry.size = len(said)
                file.addfile(entry, io.BytesIO(said))
    to.flush()


def files(root: Path) -> Iterator[Path]:
    """What of a checkout goes along, folders before what is in them."""
    for path in sorted(root.iterdir()):
        if path.name in _COPIED or not (path.name.startswith(".") or path.name in _NOT_COPIED):
            yield from _below(path)


def _below(path: Path) -> Iterator[Path]:
    if path.name == "__pycache__" or path.name.endswith(".egg-info"):
        return
    yield path
    if path.is_dir() and not path.is_symlink():
        for inner in sorted(path.iterdir()):
            yield from _below(inner)
