"""``smtnet serve kv ...`` under a filter that kills: ``python -m tests.kv_ring_server ...``. SIGUSR1 has it make a
network system call."""

from __future__ import annotations

import signal
import socket
import sys
from functools import partial

from smtstack.io import seccomp
from workloads.commands.main import main
from workloads.results.fidelity import FidelityMonitor

if __name__ == "__main__":
    # At the end it opens files, and Python asks by ioctl whether they are terminals.
    FidelityMonitor.stop = lambda _self: {"ok": True, "reasons": []}  # type: ignore[method-assign,assignment]
    seccomp.guard = partial(seccomp.guard, kill=True)
    signal.signal(signal.SIGUSR1, lambda *_args: socket.socket().close())
    sys.exit(main(["serve", "kv", *sys.argv[1:]]))
