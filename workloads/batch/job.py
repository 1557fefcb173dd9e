"""One command of smtnet as a process of its own: started, watched, and ended if its starter is."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from smtstack.exit_codes import EXIT_FAILED
from topo.commands import die_with_parent

#: Seconds between two looks at a process.
TICK_S = 0.5
#: Seconds that it may take to end in order.
_GRACE_S = 20.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    """The exit code; 128 + n: signal n ended it."""
    seconds: float
    timed_out: bool = False


def run(words: Sequence[str], out: Path, log: Path, timeout_s: float, environment: Mapping[str, str] | None = None,
        look: Callable[[], None] = lambda: None) -> Ended:
    """``smtnet`` with these words: stdout goes to the file ``out``, stderr to ``log``. ``look`` is called twice a
    second; what it raises, as what a signal raises here, ends the command first and is then passed on."""
    began = time.monotonic()
    with out.open("wb") as stdout, log.open("wb") as stderr:
        # A session of its own: a terminal's Ctrl-C comes to us, and we end it once.
        process = subprocess.Popen(
            [sys.executable, "-m", "workloads", *words], stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
            env={**os.environ, **(environment or {})}, start_new_session=True,
            preexec_fn=die_with_parent)  # noqa: PLW1509 - one system call, which needs no lock of any thread
    timed_out = False
    try:
        while not _ended(process):
            look()
            if time.monotonic() - began > timeout_s:
                timed_out = True
                break
    finally:
        _end(process)
    code = process.returncode
    if timed_out:
        code = code or EXIT_FAILED
    return Ended(code if code >= 0 else 128 - code, time.monotonic() - began, timed_out)


def _ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has, after at most a tick."""
    if process.poll() is None:
        descriptor = os.pidfd_open(process.pid)
        try:
            select.select([descriptor], [], [], TICK_S)
        finally:
            os.close(descriptor)
    return process.poll() is not None


def _end(process: subprocess.Popen[bytes]) -> None:
    """In order if it can, and at once if somebody is in a hurry (a second Ctrl-C)."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_GRACE_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Tail:
    """What a growing file has got since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = 0

    def lines(self) -> list[str]:
        """Whole lines."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._seen)
            data = file.read()
        whole, newline, _rest = data.rpartition(b"\n")
        self._seen += len(whole) + len(newline)
        return whole.decode(errors="replace").splitlines() if newline else []


def reason(log: Path) -> str:
    """The last line that a command of ours said of why it failed; empty: it said none."""
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    told = [line.removeprefix("smtnet: ") for line in lines if line.startswith("smtnet: ")]
    return (told or lines or [""])[-1]
