"""Scripted runs happen in network, mount and process namespaces of their own.

Two runs never meet, nothing is left behind, and nothing needs cleaning: when the first process of the sandbox
ends, for whatever reason, the kernel ends all others and removes their interfaces. The processes, each a fork of
the one before, so that nothing is imported twice::

    the command            waits, hands signals on
      the keeper           made the namespaces; dies with the command, and takes the sandbox along
        process 1          inside: prepares the sandbox, hands signals on, collects orphans
          the command      goes on: inside() is true here
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

from smtstack.errors import SmtError, Unsupported
from smtstack.exit_codes import EXIT_ENVIRONMENT, EXIT_FAILED, EXIT_INTERRUPTED
from smtstack.io.namespaces import pid_namespace
from topo.commands import die_with_parent
from topo.commands import run as run_tool
from topo.devices import keep_firewall_out
from topo.interpreter import host_environment

#: Set inside, to the number of the process namespace, which no other sandbox has at the same time.
VARIABLE = "SMTNET_SANDBOX"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Folders of /run that are empty inside: what Open vSwitch, "ip netns" and this project keep there.
_PRIVATE = ("openvswitch", "netns", "smtnet")
# Linux <linux/sched.h>, <sys/mount.h>, <linux/capability.h>.
_CLONE_NEWNS, _CLONE_NEWPID, _CLONE_NEWNET = 0x20000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_CAP_SYS_ADMIN = 21
#: Seconds the sandbox's first process has to appear, for a signal that comes at once.
_PATIENCE_S = 5.0
#: What shells exit with where there is no such command.
_NO_COMMAND = 127
_libc = ctypes.CDLL(None, use_errno=True)


def inside() -> bool:
    """Whether this process is in a sandbox, so that it may make links and switches as it likes."""
    return os.environ.get(VARIABLE) == str(pid_namespace())


def enter() -> int | None:
    """Go on in a new sandbox. Like ``fork`` it returns twice: None inside, and outside, once that has ended, its
    exit code (128 + n if signal n ended it).

    SIGINT, SIGTERM and SIGHUP are handed on to it. For a process with one thread. Raises :class:`Unsupported`
    without root. Where the machine forbids what a sandbox needs, e.g. in a container without the right to mount, a
    line on stderr says so, and the exit code.
    """
    if os.geteuid() != 0:
        raise Unsupported("a network of namespaces needs root: run it with sudo")
    if not _may_make_namespaces():
        raise Unsupported("this root may not make namespaces (no CAP_SYS_ADMIN): run it outside of the container, "
                          "or in one with --privileged")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # or it would be written twice
    # They are blocked until process 1 is ready for them: the kernel throws others away there.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        outside = os.getpid()
        keeper = os.fork()
        if keeper == 0:
            _keep(outside)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            return None
        with _handled(lambda number: _hand_on(keeper, number)):
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            return _exit_code(os.waitpid(keeper, 0)[1])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_command(command: Sequence[str]) -> int:
    """Run any command in a sandbox: its exit code, as :func:`enter` has it, and raises as that does."""
    code = enter()
    if code is not None:
        return code
    try:
        os.execvp(command[0], list(command))  # noqa: S606 - as sudo and env do
    except OSError as e:
        print(f"smtnet: {command[0]}: {e.strerror}", file=sys.stderr)
    except KeyboardInterrupt:
        print("smtnet: interrupted", file=sys.stderr)
        os._exit(EXIT_INTERRUPTED)
    os._exit(_NO_COMMAND)


def _keep(outside: int) -> None:
    """In the keeper: make the namespaces, and keep them for as long as process 1 lives. Returns in the command
    alone."""
    # A session of its own: the terminal's Ctrl-C reaches the sandbox once, through the command outside.
    os.setsid()
    die_with_parent()
    if os.getppid() != outside:
        os._exit(EXIT_FAILED)
    alive, ours = os.pipe()
    try:
        _call(_libc.unshare, _CLONE_NEWNET | _CLONE_NEWNS | _CLONE_NEWPID)
    except OSError as e:
        _forbidden(e)
    first = os.fork()
    if first:
        os.close(alive)
        os._exit(_exit_code(os.waitpid(first, 0)[1]))
    # In there the keeper has no number: whether it lives, its end of the pipe tells.
    os.close(ours)
    die_with_parent()
    if select.select([alive], [], [], 0)[0]:
        os._exit(EXIT_FAILED)
    os.close(alive)
    try:
        _prepare()
    except (SmtError, OSError) as e:
        _forbidden(e)
    _first_process()


def _forbidden(error: Exception) -> NoReturn:
    print(f"smtnet: no private namespaces here ({error}): run as root outside of a container, or in one with "
          "--privileged", file=sys.stderr)
    os._exit(EXIT_ENVIRONMENT)


def _exit_code(status: int) -> int:
    """The exit code of a process of which ``wait`` said this."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _prepare() -> None:
    """Make new namespaces a place of our own, as process 1 in them. Raises :class:`OSError`, :class:`SmtError`."""
    # What is mounted in here is nobody's affair outside.
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _cover_run()
    for folder in ("/etc/openvswitch", "/var/log/openvswitch"):
        if Path(folder).is_dir():
            _mount("tmpfs", folder, "tmpfs", 0, "mode=755")
    run_tool(["ip", "link", "set", "dev", "lo", "up"])
    for scope in ("all", "default"):
        # Where /proc/sys is read-only, a few router solicitations are on the wires: no harm.
        with contextlib.suppress(OSError):
            Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6").write_text("1")
    keep_firewall_out()
    os.environ.update(host_environment())
    os.environ[VARIABLE] = str(pid_namespace())


def _cover_run() -> None:
    """A /run with our folders empty and the others as they are. They need not exist outside, nor come to."""
    outside = os.open("/run", os.O_RDONLY | os.O_DIRECTORY)
    try:
        _mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
        for entry in os.scandir(outside):
            path, target = f"/proc/self/fd/{outside}/{entry.name}", Path("/run", entry.name)
            if entry.is_symlink():
                target.symlink_to(os.readlink(path))
            elif entry.is_dir() and entry.name not in _PRIVATE:
                target.mkdir()
                _mount(path, str(target), "", _MS_BIND | _MS_REC)
    finally:
        os.close(outside)
    for name in _PRIVATE:
        Path("/run", name).mkdir(mode=0o700 if name == "smtnet" else 0o755)


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """``mount(2)``."""
    _call(_libc.mount, source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode(),
          what=f"mount {target}")


def _call(function: Callable[..., int], *arguments: object, what: str = "unshare") -> None:
    """A function of libc. Raises :class:`OSError`."""
    if function(*arguments):
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _may_make_namespaces() -> bool:
    status = Path("/proc/self/status").read_text()
    (effective,) = (line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> _CAP_SYS_ADMIN & 1)


@contextlib.contextmanager
def _handled(handle: Callable[[int], None]) -> Iterator[None]:
    def call(number: int, _frame: FrameType | None) -> None:
        handle(number)

    old = {number: signal.signal(number, call) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _hand_on(keeper: int, number: int) -> None:
    """To process 1 of the sandbox, the only child of the keeper (which itself blocks signals while it waits)."""
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        try:
            children = psutil.Process(keeper).children()
            if children:
                children[0].send_signal(number)
                return
        except psutil.NoSuchProcess:
            return  # it has ended
        time.sleep(0.01)


def _first_process() -> None:
    """Hand signals on to the command, collect orphans, and end with the command, and so does the sandbox. Returns
    in the command alone."""
    child = os.fork()
    if child == 0:
        return

    def hand_on(number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(child, number)

    with _handled(hand_on):
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        while True:
            pid, status = os.wait()
            if pid == child:
                os._exit(_exit_code(status))
