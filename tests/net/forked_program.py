"""A Python program as a fork of a process that has imported what it imports: :class:`ForkedProgram`.

It runs the same file from its first line, as ``__main__``; only modules need not be read again. For programs that
many tests start, as ``mn``: that is most of what the short ones need of a processor.
"""

from __future__ import annotations

import atexit
import os
import resource
import runpy
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn


class ForkedProgram:
    """``PROGRAM ARGUMENT...``, a Python script: what tests use of a :class:`subprocess.Popen` whose streams are
    pipes for text, stderr with stdout. For a process with one thread."""

    def __init__(self, command: Sequence[str]) -> None:
        self.returncode: int | None = None
        theirs, stdin = os.pipe()
        stdout, output = os.pipe()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # or it would be written twice
        self.pid = os.fork()
        if self.pid == 0:
            _run(command, theirs, output)
        os.close(theirs)
        os.close(output)
        self.stdin = os.fdopen(stdin, "w")
        self.stdout = os.fdopen(stdout)

    def send_signal(self, number: int) -> None:
        """To the process, which was not waited for yet."""
        os.kill(self.pid, number)

    def communicate(self, text: str = "") -> str:
        """What it says to its end, given this on stdin (less than a pipe holds)."""
        with suppress(BrokenPipeError):  # it has ended, and says why
            self.stdin.write(text)
            self.stdin.close()
        with self.stdout:
            said = self.stdout.read()
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return said


def _run(command: Sequence[str], stdin: int, output: int) -> NoReturn:
    """In the child: be the program, to the end of the process."""
    code = 1
    try:
        for number, fd in enumerate((stdin, output, output)):
            os.dup2(fd, number)
        os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]  # noqa: SIM115
        for name, number in (("stdout", 1), ("stderr", 2)):
            stream = open(number, "w", buffering=1, closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        sys.argv = list(command)
        code = _exit_code_of(command[0])
        threading._shutdown()  # type: ignore[attr-defined]  # it waits for threads, as Python's end does
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        for output_stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                output_stream.flush()
        os._exit(code)


def _exit_code_of(path: str) -> int:
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as e:
        if e.code is None or isinstance(e.code, int):
            return e.code or 0
        print(e.code, file=sys.stderr)
        return 1
    return 0
