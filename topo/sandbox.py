"""Scripted runs happen in network, mount and process namespaces of their own.

Two runs never meet, nothing is left behind, and nothing needs cleaning: when the first process of the sandbox
ends, for whatever reason, the kernel ends all others and removes their interfaces. The processes::

    the command                    waits, hands signals on
      unshare                      util-linux; dies with the command, and takes the sandbox along
        python -m topo.sandbox     process 1 inside: prepares it, collects orphans
          the command again        inside() is true here
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import psutil

from smtstack.errors import SmtError, Unsupported
from smtstack.io.namespaces import pid_namespace
from topo.commands import die_with_parent, program
from topo.commands import run as run_tool
from topo.interpreter import host_environment

#: Set inside, to the number of the process namespace, which no other sandbox has at the same time.
VARIABLE = "SMTNET_SANDBOX"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Folders of /run that are empty inside: what Open vSwitch, "ip netns" and this project keep there.
_PRIVATE = ("openvswitch", "netns", "smtnet")
# Linux <sys/mount.h>, <linux/capability.h>.
_MS_BIND, _MS_REC = 0x1000, 0x4000
_CAP_SYS_ADMIN = 21
#: Seconds the sandbox's first process has to appear, for a signal that comes at once.
_PATIENCE_S = 5.0


def inside() -> bool:
    """Whether this process is in a sandbox, so that it may make links and switches as it likes."""
    return os.environ.get(VARIABLE) == str(pid_namespace())


def run(argv: Sequence[str]) -> int:
    """Run ``smtnet argv`` in a new sandbox; its exit code (128 + n if signal n ended it).

    SIGINT, SIGTERM and SIGHUP are handed on to it. Raises :class:`Unsupported` without root.
    """
    return run_command([sys.executable, "-m", "workloads", *argv])


def run_command(command: Sequence[str]) -> int:
    """Run any command in a sandbox, as :func:`run` does for ``smtnet``'s own."""
    if os.geteuid() != 0:
        raise Unsupported("a network of namespaces needs root: run it with sudo")
    if not _may_make_namespaces():
        raise Unsupported("this root may not make namespaces (no CAP_SYS_ADMIN): run it outside of the container, "
                          "or in one with --privileged")
    # They are blocked until process 1 is ready for them: the kernel throws others away there.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        # A session of its own: the terminal's Ctrl-C reaches it once, through us.
        process = subprocess.Popen(
            [program("unshare"), "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child",
             sys.executable, "-m", "topo.sandbox", *command],
            env=host_environment(), start_new_session=True,
            preexec_fn=die_with_parent)  # noqa: PLW1509 - one system call, which takes no lock
        with _handled(lambda number: _hand_on(process.pid, number)):
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            code = process.wait()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return code if code >= 0 else 128 - code


def enter() -> None:
    """Prepare new namespaces, as process 1 in them; does nothing in a sandbox that is prepared.

    Raises :class:`Unsupported` where the machine forbids it, e.g. in a container without the right to mount.
    """
    if inside():
        return
    if os.getpid() != 1:
        raise SmtError("topo.sandbox is started by the commands that need it, not by hand")
    try:
        _cover_run()
        for folder in ("/etc/openvswitch", "/var/log/openvswitch"):
            if Path(folder).is_dir():
                run_tool(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", folder])
        run_tool(["ip", "link", "set", "dev", "lo", "up"])
    except (SmtError, OSError) as e:
        raise Unsupported(f"no private namespaces here ({e}): run as root outside of a container, or in one with "
                          "--privileged") from None
    for scope in ("all", "default"):
        # Where /proc/sys is read-only, a few router solicitations are on the wires: no harm.
        with contextlib.suppress(OSError):
            Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6").write_text("1")
    os.environ[VARIABLE] = str(pid_namespace())


def _cover_run() -> None:
    """A /run with our folders empty and the others as they are. They need not exist outside, nor come to."""
    outside = os.open("/run", os.O_RDONLY | os.O_DIRECTORY)
    try:
        run_tool(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"])
        mount = ctypes.CDLL(None, use_errno=True).mount
        for entry in os.scandir(outside):
            path, target = f"/proc/self/fd/{outside}/{entry.name}", Path("/run", entry.name)
            if entry.is_symlink():
                target.symlink_to(os.readlink(path))
            elif entry.is_dir() and entry.name not in _PRIVATE:
                target.mkdir()
                if mount(path.encode(), str(target).encode(), None, ctypes.c_ulong(_MS_BIND | _MS_REC), None):
                    raise OSError(ctypes.get_errno(), f"{target}: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(outside)
    for name in _PRIVATE:
        Path("/run", name).mkdir(mode=0o700 if name == "smtnet" else 0o755)


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


def _hand_on(unshare: int, number: int) -> None:
    """To process 1 of the sandbox, the only child of unshare (which itself ignores signals while it waits)."""
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        try:
            children = psutil.Process(unshare).children()
            if children:
                children[0].send_signal(number)
                return
        except psutil.NoSuchProcess:
            return  # it has ended
        time.sleep(0.01)


def _first_process(command: Sequence[str]) -> int:
    """Start the command, hand signals on, collect orphans; its exit code."""
    child = os.fork()
    if child == 0:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.execvp(command[0], list(command))  # noqa: S606 - as sudo and env do
        except KeyboardInterrupt:
            print("smtnet: interrupted", file=sys.stderr)
            os._exit(130)
        except OSError as e:
            print(f"smtnet: {command[0]}: {e.strerror}", file=sys.stderr)
            os._exit(127)

    def hand_on(number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(child, number)

    with _handled(hand_on):
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        while True:
            pid, status = os.wait()
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code


def main(argv: Sequence[str]) -> int:
    """Process 1: the sandbox lasts as long as it does."""
    try:
        enter()
    except SmtError as e:
        print(f"smtnet: {e}", file=sys.stderr)
        return 3
    return _first_process(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
