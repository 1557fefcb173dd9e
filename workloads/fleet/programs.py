"""Programs that run on hosts: how one of ours begins and ends, and what is found out about them from outside."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

import psutil

from smtstack.errors import SmtError
from smtstack.exit_codes import exit_code
from smtstack.io.standard_streams import run_program

T = TypeVar("T")

#: What servers and clients of a fleet import sooner or later: they share it (topo/forked.py).
IMPORTS = ("workloads.commands.main", "workloads.commands.serve", "workloads.commands.serve_kv",
           "workloads.fleet.agent", "workloads.kv.client", "workloads.kv.server", "workloads.transports.messages",
           "workloads.transports.tls", "smtstack.session_io.host", "smtstack.session_io.ticket_dns",
           "workloads.load.ycsb_load", "workloads.load.queries",
           "workloads.load.mix", "workloads.load.timed", "workloads.load.blocks",
           "workloads.commands.serve_blocks")


def run_on_host(read: Callable[[], T], work: Callable[[T], None]) -> NoReturn:
    """A whole program: ``work`` with what ``read`` made of the command line. Errors are one line on stderr, exit
    codes those of ``smtnet``."""
    def main() -> int:
        options = read()
        try:
            work(options)
        except (SmtError, OSError) as e:
            print(f"smtnet: {e}", file=sys.stderr)
            return exit_code(e)
        except KeyboardInterrupt:
            return 1
        return 0

    sys.exit(run_program(main))


def cpu_s(process: psutil.Process) -> float:
    """Processor time it has taken, in seconds; 0.0 if it has ended."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def take_raw(paths: Sequence[Path]) -> array[int]:
    """What client processes wrote, which is removed."""
    values = array("Q")
    for path in paths:
        if path.exists():
            values.frombytes(path.read_bytes())
            path.unlink()
    if sys.byteorder == "big":
        values.byteswap()
    return values
