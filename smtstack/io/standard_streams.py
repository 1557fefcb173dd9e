"""stdin, stdout and stderr of a program of ours where they are closed, full, or read by nobody any more.

As grep and git do: a result that cannot be written is a failure, whatever else went well, and one line on stderr
says so (exit code 1). A reader that has gone away (``head``, a pager) has all it wanted: the program ends without
a word, with what the shell reports of SIGPIPE (141). Words for people that cannot be written are lost, and nothing
else is: a server goes on without its terminal.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from collections.abc import Callable
from typing import Any, TextIO

from smtstack.exit_codes import EXIT_FAILED, EXIT_READER_GONE


def run_program(work: Callable[[], int]) -> int:
    """``work`` with guarded streams: its exit code, or what became of its result. For the outermost level only."""
    result = _guard()
    code = _code(work)
    with contextlib.suppress(SystemExit):  # what is left is refused: see below
        sys.stdout.flush()
    if result.error is None:
        return code
    if isinstance(result.error, BrokenPipeError):
        return EXIT_READER_GONE
    print(f"smtnet: cannot write to stdout: {result.error.strerror}", file=sys.stderr)
    return EXIT_FAILED


def _code(work: Callable[[], int]) -> int:
    try:
        return work()
    except SystemExit as e:  # argparse ends so
        if isinstance(e.code, str):
            print(e.code, file=sys.stderr)
            return EXIT_FAILED
        return e.code or 0


class _Guarded(io.FileIO):
    """The descriptor of a standard stream, which waits where it would block."""

    def write(self, data: Any, /) -> int:
        while True:
            try:
                written = super().write(data)
            except OSError as e:
                self._failed(e)
                return memoryview(data).nbytes
            if written is not None:
                return written
            # Somebody at the other end has made it non-blocking, for all who share it.
            poller = select.poll()
            poller.register(self.fileno(), select.POLLOUT)
            poller.poll()

    def _failed(self, error: OSError) -> None:
        """What is written is lost: for people, that is all."""


class _Result(_Guarded):
    """Fails once, past everything that would mistake it for a failure of its own; then it takes all."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        return super().write(data) if self.error is None else memoryview(data).nbytes

    def _failed(self, error: OSError) -> None:
        self.error = error
        raise SystemExit(EXIT_FAILED)


def _guard() -> _Result:
    """Put guarded streams in the place of ours. Those that are closed get a descriptor that can do nothing, or the
    next file that is opened would be taken for them, here and in every program that is started."""
    for descriptor, stream, mode in ((0, sys.stdin, os.O_RDONLY), (1, sys.stdout, os.O_RDONLY),
                                     (2, sys.stderr, os.O_WRONLY)):
        if stream is None:
            # Opened the wrong way, stdout fails like a closed one.
            null = os.open(os.devnull, mode)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
            os.set_inheritable(descriptor, True)
    result = _Result(1, "w", closefd=False)
    stdin: TextIO | None = sys.stdin
    if stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the process
    sys.stdout = _text(result, sys.stdout, "strict")
    sys.stderr = _text(_Guarded(2, "w", closefd=False), sys.stderr, "backslashreplace", lines=True)
    return result


def _text(raw: _Guarded, like: TextIO | None, errors: str, lines: bool = False) -> TextIO:
    """``raw`` as text, in the encoding of the stream it replaces."""
    through = bool(getattr(like, "write_through", False))
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=getattr(like, "encoding", None) or "utf-8",
                            errors=getattr(like, "errors", None) or errors,
                            line_buffering=lines or raw.isatty(), write_through=through)
