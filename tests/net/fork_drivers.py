"""What test_forked.py does in a sandbox, ``python -m tests.net.fork_drivers start``, and the program that is
started on hosts: ``tests.net.fork_drivers program``. JSON on stdout."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from smtstack.errors import SmtError
from topo.forked import fork_server
from topo.host import SmtHost
from topo.interpreter import host_environment
from topo.network import open_network
from topo.running import PATIENCE_S, Program, finish, python_program
from workloads.fleet.programs import IMPORTS

_MODULE = "tests.net.fork_drivers"
#: No file or module of ours has these bytes in one piece.
_SECRET = "-".join(["the", "key", "of", "nobody", "71"])
_OF_A_STREAM = ("encoding", "errors", "line_buffering", "write_through", "newlines", "name", "mode")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD, signal.SIGUSR1)


def state() -> dict[str, Any]:
    """All of a process that another one could have changed, or should not share."""
    return {
        "spaces": {kind: os.stat(f"/proc/self/ns/{kind}").st_ino for kind in ("net", "mnt", "pid")},
        "leads": os.getsid(0) == os.getpgrp() == os.getpid(),
        "folder": os.getcwd(), "argv": sys.argv, "cmdline": psutil.Process().cmdline(),
        "environment": {name: value for name, value in os.environ.items() if name != "_"},
        "signals": [str(signal.getsignal(number)).split(" at ")[0] for number in _SIGNALS],
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "cores": sorted(os.sched_getaffinity(0)),
        # The listing is one itself.
        "descriptors": sorted(int(n) for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")),
        "streams": [[getattr(stream, name) for name in _OF_A_STREAM]
                    for stream in (sys.stdin, sys.stdout, sys.stderr)],
        "path": sys.path, "main": __name__, "threads": len(os.listdir("/proc/self/task")),
    }


def program(folder: str) -> int:
    """Answers with its state, then does as it is told."""
    kept = bytearray()
    print("ready", file=sys.stderr)
    for line in sys.stdin:
        order = json.loads(line)
        if "exit" in order:
            print("said at the end")  # in a buffer
            sys.exit(order["exit"])
        if "raise" in order:
            raise ValueError(order["raise"])
        if "secret" in order:
            kept += Path(folder, "secret").read_bytes()
        print(json.dumps(state() | {"random": random.random(), "kept": len(kept)}), flush=True)
    return 0


def start() -> None:
    """The same program on two hosts: forked, and by itself; what they say of themselves, and how they end."""
    folder = Path(tempfile.mkdtemp())
    (folder / "secret").write_text(_SECRET)
    environment = {"FORK_TEST": "yes"}
    found: dict[str, Any] = {}
    with open_network("star,2") as net:
        def run(host: SmtHost, forks: bool) -> Program:
            started = Program(host, "test", python_program(_MODULE, "program", str(folder)),
                              folder / f"{host.name}-{len(list(folder.iterdir()))}.log", environment=environment,
                              cores={0}, imports=IMPORTS if forks else ())
            started.wait_for("ready")
            return started

        def ask(one: Program, **order: Any) -> dict[str, Any]:
            one.tell(order)
            return one.answer()

        one, two = net.hosts
        os.environ["OF_THE_RUN"] = "later"
        forked, other, plain = run(one, True), run(two, True), run(one, False)
        found["forked"], found["other"], found["plain"] = ask(forked), ask(other), ask(plain)
        found["pids"] = [forked.pid, other.pid, psutil.Process(forked.pid).ppid()]
        whole = {**host_environment(), **environment}
        server = fork_server(whole, IMPORTS)
        found["server"] = server.process.pid
        ask(forked, secret=True)
        found["secret"] = {"program": holds(forked.pid), "server": holds(server.process.pid)}
        found["server_modules"] = maps(server.process.pid)
        ends = {}
        for forks in (True, False):
            ends[str(forks)] = [end(run(one, forks), order) for order in (
                {"exit": 0}, {"exit": 3}, {"exit": "words"}, {"raise": "what"}, None, signal.SIGTERM,
                signal.SIGKILL)]
        found["ends"] = ends
        finish(other.process)
        finish(plain.process)
        # And with the server goes what it forked.
        child = psutil.Process(forked.pid)
        server.process.kill()
        found["orphan"] = forked.process.wait(PATIENCE_S)
        psutil.wait_procs([child], PATIENCE_S)
        found["gone"] = not child.is_running()
        again = run(two, True)
        found["again"] = fork_server(whole, IMPORTS).process.pid != server.process.pid
        finish(again.process)
        found["alive_after_close"] = again.process.poll()
    print(json.dumps(found))


def hold() -> None:
    """A forked program, until this process is ended."""
    folder = Path(tempfile.mkdtemp())
    with open_network("star,2") as net:
        Program(net.hosts[0], "test", python_program(_MODULE, "program", str(folder)), folder / "log",
                imports=IMPORTS).wait_for("ready")
        print("up", flush=True)
        time.sleep(600)


def chrooted() -> None:
    """A network in a chroot, as in a container that is one: a forked program sees the files that are there."""
    place = tempfile.mkdtemp()
    for mount in (["--rbind", "/", place], ["-t", "tmpfs", "none", f"{place}/mnt"]):
        subprocess.run(["mount", *mount], check=True)
    Path(place, "mnt", "here").mkdir()
    os.chroot(place)
    os.chdir("/mnt/here")
    with open_network("back2back") as net:
        started = Program(net.hosts[0], "test", python_program(_MODULE, "program", "/mnt/here"),
                          Path("/mnt/here/log"), imports=IMPORTS)
        started.wait_for("ready")
        started.tell({})
        print(json.dumps(started.answer()))


def end(started: Program, order: Any) -> list[Any]:
    """How it ended: exit code, what it printed still, its last line, and the error made of it."""
    if isinstance(order, int):
        started.process.send_signal(order)
    elif order is not None:
        started.tell(order)
    said = finish(started.process)
    try:
        started.check()
        why = ""
    except SmtError as e:
        why = f"{type(e).__name__} {e}".split("; see")[0]
    return [started.process.returncode, said, started.last_line(), why]


def maps(pid: int) -> list[str]:
    """Which of what it must not have is in a process's memory."""
    return [name for name in ("matplotlib", "numpy", "mininet") if holds(pid, f"site-packages/{name}/__init__.py")]


def holds(pid: int, text: str = _SECRET) -> bool:
    """Whether a process has these bytes anywhere in memory that it can write."""
    with open(f"/proc/{pid}/maps") as listing, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in listing:
            where, rights = line.split()[:2]
            if rights.startswith("rw"):
                begin, stop = (int(word, 16) for word in where.split("-"))
                memory.seek(begin)
                try:
                    if text.encode() in memory.read(stop - begin):
                        return True
                except OSError:
                    continue
    return False


PROGRAMS: dict[str, Callable[..., int | None]] = {p.__name__: p for p in (program, start, hold, chrooted)}

if __name__ == "__main__":
    sys.exit(PROGRAMS[sys.argv[1]](*sys.argv[2:]))
