"""Runs smtnet command lines with standard streams that are closed, full or read by nobody: JSON on stdin, and out.

Each in a fork that ends as a program does, its streams made again as an interpreter makes them: so a hundred
command lines take seconds. ``run_each`` is for tests.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
#: Ways that a stream may be.
GOOD, CLOSED, FULL, GONE = "good", "closed", "full", "gone"


class Ended(NamedTuple):
    """What came of one command line."""

    code: int
    out: str
    err: str


def run_each(orders: list[tuple[list[str], str, str]], folder: Path) -> list[Ended]:
    """(arguments, how stdout is, how stderr is) each; relative files are in ``folder``."""
    done = subprocess.run([sys.executable, "-m", "tests.streams_driver", str(folder)], input=json.dumps(orders),
                          capture_output=True, text=True, check=True, cwd=ROOT, timeout=600)
    return [Ended(*each) for each in json.loads(done.stdout)]


def _stream(kind: str, descriptor: int, path: Path) -> Any:
    """Make ``descriptor`` such a stream; what the interpreter would have for it."""
    if kind == CLOSED:
        os.close(descriptor)
        return None
    if kind == GONE:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, descriptor)
        os.close(writer)
    else:
        target = os.open("/dev/full" if kind == FULL else path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(target, descriptor)
        os.close(target)
    return open(descriptor, "w", encoding="utf-8", closefd=False)


def main(folder: Path) -> None:
    """All of them; in each fork it ends by that fork's SystemExit, up to the interpreter's own end."""
    from workloads.commands import main as cli

    # What the forks would import and build, each by itself.
    parsers = {only: cli.build_parser(only) for only in (None, *cli.COMMANDS)}
    cli.build_parser = lambda only=None, what=None: parsers.get(only, parsers[None])
    gc.freeze()
    orders = json.load(sys.stdin)
    os.chdir(folder)
    ended = []
    paths = folder / "stdout", folder / "stderr"
    for arguments, out, err in orders:
        for path in paths:
            path.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            sys.stdout, sys.stderr = _stream(out, 1, paths[0]), _stream(err, 2, paths[1])
            sys.argv = ["smtnet", *arguments]
            sys.exit(cli.main())
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        ended.append((code, *(path.read_text() if path.exists() else "" for path in paths)))
    json.dump(ended, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
