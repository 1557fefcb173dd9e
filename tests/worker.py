"""A pytest-xdist worker of root's: a sandbox of its own, and in it Python with the arguments given.

So names of namespaces, interfaces and switches, what is in /run, and processes are the worker's own: workers do
not meet, a worker that dies takes along what it made, and so does the end of the whole run.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from topo import sandbox


def main() -> int:
    # A shell's background jobs ignore it, and so would all that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The environment is the one we were given: for smtnet, what a test starts is in no sandbox, and makes one.
    names = ("PYTHONPATH", "PYTHONSAFEPATH")
    environment = ["-u", sandbox.VARIABLE]
    environment += [word for name in names if name not in os.environ for word in ("-u", name)]
    environment += [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    return sandbox.run_command(["env", *environment, sys.executable, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
