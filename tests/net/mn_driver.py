"""Runs ``mn`` in a sandbox of its own, and looks what is left.

``python -m tests.net.mn_driver [--ovs] [--fork] MN OPTION...``; with ``--ovs`` an Open vSwitch runs there, with
``--fork`` mn is a fork of this process (:mod:`tests.net.forked_program`). Commands for mn's prompt come on stdin;
a line ``TERM`` or ``KILL`` there is that signal, sent to mn. JSON on stdout: exit code, what was said, and what
outlived it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from smtstack.nicshare.file import sweep
from tests.net.forked_program import ForkedProgram
from tests.net.inside import go_inside
from topo import ovs
from topo.commands import run

#: Seconds. What was ended by a signal needs a moment to be gone.
_PATIENCE_S = 10.0


def leftovers() -> list[str]:
    """Links, switches, files of the NICs, and processes, but for the sandbox's own."""
    links = (line.split(": ")[1] for line in run(["ip", "-o", "link"]).splitlines())
    left = [name for name in links if name != "lo" and not name.startswith("ovs-")]
    if ovs.is_running():
        left += run(["ovs-vsctl", "list-br"]).split()
        left += [f"qos {row}" for row in run(["ovs-vsctl", "--bare", "--columns=_uuid", "list", "qos"]).split()]
    sweep()  # as whoever uses a NIC next does: those of a network that was killed are removed then
    left += [str(path) for path in Path("/run/smtnet").iterdir()]
    for pid in os.listdir("/proc"):
        if pid.isdigit() and int(pid) not in (1, os.getpid()):
            with contextlib.suppress(OSError):  # it has just ended
                command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " ").strip()
                if command and not Path(command.split()[0]).name.startswith("ovs"):
                    left.append(command)
    return left


def start(command: list[str], fork: bool) -> subprocess.Popen[str] | ForkedProgram:
    """mn, with a pipe to its prompt and one from all that it says."""
    if fork:
        return ForkedProgram(command)
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, bufsize=1)


def finish(mn: subprocess.Popen[str] | ForkedProgram, text: str = "") -> str:
    """Give it the rest for its prompt: all that it still says, to its end."""
    return mn.communicate(text) if isinstance(mn, ForkedProgram) else mn.communicate(text)[0]


def drive(command: list[str], script: str, fork: bool) -> dict[str, object]:
    """Run mn; what came of it."""
    lines = script.splitlines(keepends=True)
    numbers = {"TERM\n": signal.SIGTERM, "KILL\n": signal.SIGKILL}
    kill = next((line for line in lines if line in numbers), None)
    text = "".join(lines[:lines.index(kill)] if kill else lines)
    # One that no other can print: by its echo we know that mn came so far.
    marker = "*all lines read*"
    mn = start(command, fork)
    assert mn.stdin is not None
    assert mn.stdout is not None
    said = ""
    if kill is None:
        said = finish(mn, text)
    else:
        mn.stdin.write(f"{text}py '{marker}'\n")
        mn.stdin.flush()
        while marker not in said:
            line = mn.stdout.readline()
            if not line:
                break
            said += line
        mn.send_signal(numbers[kill])
        said += finish(mn)
    end = time.monotonic() + _PATIENCE_S
    while (left := leftovers()) and time.monotonic() < end:
        time.sleep(0.05)
    return {"code": mn.returncode, "said": said, "left": left}


if __name__ == "__main__":
    go_inside()
    words = sys.argv[1:]
    flags = [words.pop(0) for flag in ("--ovs", "--fork") if words[0] == flag]
    with ovs.PrivateOvs() if "--ovs" in flags else contextlib.nullcontext():
        result = drive(words, sys.stdin.read(), "--fork" in flags)
    print(json.dumps(result))
