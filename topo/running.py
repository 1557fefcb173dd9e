"""A program on a host, from its start to its end: waited for until it serves, told and asked, ended, and how it
failed in one line."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from smtstack.errors import ConfigError, PeerError, SmtError, Unsupported
from smtstack.exit_codes import EXIT_ENVIRONMENT, EXIT_USAGE
from topo.commands import die_with_parent
from topo.forked import Forked, fork_server
from topo.host import SmtHost
from topo.interpreter import host_environment, host_python

#: Seconds a program gets to start, or to end when told, on a loaded machine.
PATIENCE_S = 60.0
_LOOK_S = 0.005
#: What the exit codes of our programs say.
_KINDS: dict[int, type[SmtError]] = {EXIT_USAGE: ConfigError, EXIT_ENVIRONMENT: Unsupported}


def python_program(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module of this project on a host."""
    return [host_python(), "-m", module, *arguments]


class Program:
    """A program that runs on ``host`` (of Mininet), and ends with this process at the latest.

    ``what``: as people call it. ``log``: the file that takes its stderr, and with ``answers`` False its stdout,
    too. ``environment``: variables beyond those every program of ours has. ``cores``: the only processors it runs
    on; None or empty: any. ``imports``: modules it shares with all programs that name the same ones, so that it
    starts at once and needs little memory; for what :func:`python_program` made. Empty: starts by itself.
    """

    def __init__(self, host: Any, what: str, argv: list[str], log: Path, *, answers: bool = True,
                 environment: Mapping[str, str] | None = None, cores: Collection[int] | None = None,
                 imports: Sequence[str] = ()) -> None:
        self.host = host
        self.what = what
        self.log = log
        self.process: subprocess.Popen[str] | Forked
        whole = {**host_environment(), **(environment or {})}
        with log.open("w") as said:
            if imports:
                _python, _m, module, *arguments = argv
                self.process = fork_server(whole, imports).start(host.pid, module, arguments, whole, said,
                                                                 answers=answers, cores=cores or ())
            else:
                self.process = host.popen(
                    argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE if answers else said, stderr=said,
                    text=True, env=whole, preexec_fn=die_with_parent)
                if cores:
                    # Long before it has imported anything, let alone forked.
                    os.sched_setaffinity(self.process.pid, cores)
        if isinstance(host, SmtHost):
            host.keep(self.process)

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self.process.pid

    def wait_for(self, text: str) -> None:
        """Until its log has ``text``. Raises SmtError if it ends before, or needs more than :data:`PATIENCE_S`."""
        end = time.monotonic() + PATIENCE_S
        while text not in self.log.read_text():
            self.check()
            if time.monotonic() > end:
                raise PeerError(f"{self.host.name}: {self.what} did not say {text!r} within {PATIENCE_S:.0f} s; "
                                f"see {self.log}")
            time.sleep(_LOOK_S)

    def check(self) -> None:
        """Raises what it ended with, if it has ended."""
        if self.process.poll() is not None:
            raise self.failure()

    def tell(self, message: dict[str, Any]) -> None:
        """Give it an order, as a line of JSON. Raises what it ended with, if it has ended."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self.failure() from None

    def answer(self, patience_s: float | None = None) -> dict[str, Any]:
        """The next line of JSON that it prints. Raises what it ended with, if it has ended; PeerError if it says
        nothing for ``patience_s``, where that is given and each order has one answer."""
        assert self.process.stdout is not None
        if patience_s is not None and not select.select([self.process.stdout], [], [], patience_s)[0]:
            raise PeerError(f"{self.host.name}: {self.what} said nothing within {patience_s:.0f} s; "
                            f"see {self.log}")
        line = self.process.stdout.readline()
        if not line:
            raise self.failure()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def failure(self) -> SmtError:
        """The error it left, which has ended or is about to: one of ours, with the host's name."""
        code = self.process.wait(PATIENCE_S)
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("smtnet: ")]
        why = lines[-1].removeprefix("smtnet: ") if lines else f"exit code {code}; see {self.log}"
        return _KINDS.get(code, PeerError)(f"{self.host.name}: {self.what} ended: {why}")

    def last_line(self) -> str:
        """What it said last to people."""
        return last_line(self.log.read_text())

    def stop(self) -> str:
        """End it by SIGTERM, and wait for its end; what it still prints."""
        self.process.terminate()
        return finish(self.process)


def finish(process: subprocess.Popen[str] | Forked) -> str:
    """Close a program's stdin, and wait for its end; what it still prints. One that does not end is killed, and
    named on stderr."""
    try:
        said, _errors = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _errors = process.communicate()
        print(f"smtnet: a process did not end within {PATIENCE_S:.0f} s and was killed: {process.args!r}",
              file=sys.stderr)
    return said or ""


def last_line(text: str) -> str:
    """What a program said last, of all that it said to people."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("smtnet: ") if lines else "it said nothing"
