"""Running ip, tc, ethtool and ovs-vsctl: what they refuse is an error naming the host and the command."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Sequence

from smtstack.errors import SmtError, Unsupported

#: Debian's names of the packages that bring the programs.
_PACKAGES = {"ip": "iproute2", "tc": "iproute2", "nsenter": "util-linux", "unshare": "util-linux",
             "ovs-vsctl": "openvswitch-switch", "ovs-dpctl": "openvswitch-switch",
             "ovs-vswitchd": "openvswitch-switch", "ovsdb-server": "openvswitch-switch",
             "ovsdb-tool": "openvswitch-switch", "knotd": "knot"}
#: Where root's programs are, also for a user's PATH.
_PATH = os.pathsep.join(["/usr/local/sbin", "/usr/sbin", "/sbin"])
#: Seconds. They take milliseconds; one that hangs must not hang the run.
_PATIENCE = 30.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def program(name: str) -> str:
    """The path of a program; raises :class:`Unsupported` with the package to install."""
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), _PATH]))
    if found is None:
        raise Unsupported(f"{name} is not installed: apt-get install {_PACKAGES.get(name, name)}")
    return found


def in_namespace(pid: int | None, argv: Sequence[str]) -> list[str]:
    """The command that runs ``argv`` in the network namespace of process ``pid`` (None: in ours)."""
    command = [program(argv[0]), *argv[1:]]
    return command if pid is None else [program("nsenter"), f"--net=/proc/{pid}/ns/net", *command]


def run(argv: Sequence[str], *, where: str = "", pid: int | None = None, stdin: str = "") -> str:
    """Run a command; its stdout. Fails with what it said, in a line beginning with ``where`` (a host, a link)."""
    prefix = f"{where}: " if where else ""
    try:
        done = subprocess.run(in_namespace(pid, argv), input=stdin, capture_output=True, text=True, check=False,
                              timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        raise SmtError(f"{prefix}{' '.join(argv)} did not end within {_PATIENCE:.0f} s") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise SmtError(f"{prefix}{' '.join(argv)}: {said}")
    return done.stdout


def batch(tool: str, lines: Iterable[str], *, where: str, pid: int | None = None) -> None:
    """All ``lines`` to one ``ip -batch`` or ``tc -batch``; the first that is refused is named."""
    commands = [line for line in lines if line]
    if not commands:
        return
    try:
        run([tool, "-batch", "-"], where=where, pid=pid, stdin="\n".join(commands) + "\n")
    except SmtError as e:
        # It says "Command failed -:3": the third line of what it was given.
        number = str(e).rpartition("-:")[2]
        failed = commands[int(number) - 1] if number.isdigit() and int(number) <= len(commands) else commands[0]
        said = str(e).partition("-batch -: ")[2].rpartition(" Command failed")[0] or str(e)
        raise SmtError(f"{where}: {tool} {failed}: {said}") from None


def die_with_parent() -> None:
    """For ``preexec_fn``: the kernel kills the new process when the one that started it is gone."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
