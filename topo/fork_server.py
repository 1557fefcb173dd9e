"""A process that has imported what programs of hosts need, and becomes such a program by each fork:
``python -m topo.fork_server FD MODULE...``; :mod:`topo.forked` starts it and is at the other end of socket FD.

An order has the program's stdin, stdout and stderr with it. The server answers with the child's number, and says
how each child ended. It has one thread, reads no file but modules, and holds nothing of any program but numbers;
it ends with that socket, and its children end with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import json
import mmap
import os
import runpy
import select
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Any

from topo.commands import die_with_parent

#: Bytes of the longest order; the kernel takes none that is longer.
LONGEST = 1 << 20
# Linux <linux/prctl.h>: struct prctl_mm_map, which needs no right of root's.
_PR_SET_MM, _MAP = 35, 14
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Order:
    """A program to become."""

    pid: int
    """A process of the host: of its network and mount namespaces."""
    module: str
    arguments: list[str]
    folder: str
    """Where it runs."""
    environment: dict[str, str | None]
    """What differs from the server's; None: is not there."""
    cores: list[int] = field(default_factory=list)
    """The only processors it runs on; empty: any."""

    def encode(self) -> bytes:
        """For the socket."""
        return json.dumps(asdict(self)).encode()


def _serve(control: socket.socket) -> tuple[Order, list[int]]:
    """Fork for every order. Returns in the children alone, each with its own."""
    running: dict[int, int] = {}
    # Unlike epoll, it has no descriptor that a child would have to close.
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        for fd, _events in poll.poll():
            if fd in running:
                pid = running.pop(fd)
                poll.unregister(fd)
                os.close(fd)
                # Its number is free after the second of these, so nobody is told too late that it is.
                status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
                assert status is not None
                code = status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
                control.send(json.dumps({"ended": pid, "code": code}).encode())
                os.waitpid(pid, 0)
                continue
            message, streams, _flags, _address = socket.recv_fds(control, LONGEST, 3)
            if not message:
                control.close()
                sys.exit(0)
            pid = os.fork()
            if pid == 0:
                return Order(**json.loads(message)), streams
            for stream in streams:
                os.close(stream)
            handle = os.pidfd_open(pid)
            running[handle] = pid
            poll.register(handle, select.POLLIN)
            control.send(json.dumps({"started": pid}).encode())


def _become(order: Order, streams: Sequence[int], server: int) -> None:
    """What ``mnexec -da PID``, exec and Python's own start would have made of this process."""
    die_with_parent()
    if os.getppid() != server:
        sys.exit(1)
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(int(name))
    # Into the one it is in already nobody need go, and only root may.
    spaces = [os.open(f"/proc/{order.pid}/ns/{kind}", os.O_RDONLY) for kind in ("net", "mnt")
              if not os.path.samefile(f"/proc/{order.pid}/ns/{kind}", f"/proc/self/ns/{kind}")]
    root = os.open(f"/proc/{order.pid}/root", os.O_PATH)
    for space in spaces:
        if _libc.setns(space, 0):
            raise OSError(ctypes.get_errno(), f"the namespaces of process {order.pid}")
        os.close(space)
    if spaces:
        # A mount namespace is entered at its own root, which is not that of processes in a chroot.
        os.fchdir(root)
        os.chroot(".")
    os.close(root)
    os.chdir(order.folder)
    if order.cores:
        os.sched_setaffinity(0, order.cores)
    for name, value in order.environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    sys.argv[1:] = order.arguments
    sys.orig_argv[1:] = ["-m", order.module, *order.arguments]
    _show(sys.orig_argv)
    sys.stdin = sys.__stdin__ = _stream(0, sys.stdin)  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _stream(1, sys.stdout)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _stream(2, sys.stderr)  # type: ignore[misc]


def _stream(number: int, like: object) -> io.TextIOWrapper:
    """A standard stream as Python opens it at its start: it remembers whether that is a terminal, or can seek."""
    assert isinstance(like, io.TextIOWrapper)
    mode = "r" if number == 0 else "w"
    raw = io.FileIO(number, mode, closefd=False)
    setattr(raw, "name", like.name)  # noqa: B010 - typeshed has it as what nobody sets
    unbuffered = like.write_through  # as PYTHONUNBUFFERED says
    lines = not unbuffered and (number == 2 or raw.isatty())
    buffer: Any = io.BufferedReader(raw) if number == 0 else raw if unbuffered else io.BufferedWriter(raw)
    stream = io.TextIOWrapper(buffer, like.encoding, like.errors, "\n", lines, unbuffered)
    setattr(stream, "mode", mode)  # noqa: B010 - the same
    return stream


def _show(argv: Sequence[str]) -> None:
    """Let ``ps`` show this command. Where the kernel forbids it, the server's stays there."""
    text = b"\0".join(map(os.fsencode, argv)) + b"\0"
    memory = mmap.mmap(-1, len(text), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(text)
    _kept.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    with open("/proc/self/stat") as f:
        # proc(5) counts from 1, and the name before ")" may have spaces.
        known = dict(enumerate(f.read().rpartition(")")[2].split(), 3))
    code, stack, data, heap, variables = (26, 27), 28, (45, 46), 47, (50, 51)
    _libc.sbrk.restype = ctypes.c_void_p
    layout = struct.pack(
        "=12QIi", *(int(known[n]) for n in (*code, *data, heap)), _libc.sbrk(0), int(known[stack]),
        start, start + len(text), *(int(known[n]) for n in variables), 0, 0, -1)
    _libc.prctl(_PR_SET_MM, _MAP, layout, ctypes.c_ulong(len(layout)), ctypes.c_ulong(0))


#: What the kernel reads this process's command from.
_kept: list[mmap.mmap] = []


def main() -> None:
    """The server's life, and then, in a child, the program's."""
    control = socket.socket(fileno=int(sys.argv[1]))
    server = os.getpid()
    for name in sys.argv[2:]:
        import_module(name)
    # A collection would write to every object, and each child would have them all to itself.
    gc.collect()
    gc.freeze()
    order, streams = _serve(control)
    # By its object, which would close the number again when it goes.
    control.close()
    _become(order, streams, server)
    # As "python -m" it runs anew; runpy warns where it is imported already.
    sys.modules.pop(order.module, None)
    runpy.run_module(order.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
