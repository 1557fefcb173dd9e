"""The interpreter of a pytest-xdist worker that runs as root: a sandbox of its own, and in it Python with our arguments.

So names of namespaces, interfaces and switches, what is in /run, and processes are the worker's own: workers do
not meet, a worker that dies takes along what it made, and so does the end of the whole run.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from topo import sandbox  # noqa: E402


def main() -> int:
    # A shell's background jobs ignore it, and so would all that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The environment is the one we were given: for smtnet, what a test starts is in no sandbox, and makes one.
    environment = ["env", "-u", sandbox.VARIABLE]
    for name in ("PYTHONPATH", "PYTHONSAFEPATH"):
        environment += [f"{name}={os.environ[name]}"] if name in os.environ else ["-u", name]
    return sandbox.run_command([*environment, sys.executable, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
