"""Programs of a fleet: given orders, waited for and ended; how they failed, in one line."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from smtstack.errors import ConfigError, PeerError, SmtError, Unsupported
from topo.host import SmtHost

#: Seconds a process gets to start, or to end when told, on a loaded machine.
PATIENCE_S = 60.0
#: What the exit codes of our processes say.
_KINDS: dict[int, type[SmtError]] = {2: ConfigError, 3: Unsupported}


class Client:
    """A client process on a host: takes a load as a line of JSON, answers with its result."""

    def __init__(self, host: SmtHost, what: str, process: subprocess.Popen[str], log: Path) -> None:
        self.host = host
        #: As people call it.
        self.what = what
        self.process = process
        self.log = log

    def tell(self, message: dict[str, Any]) -> None:
        """Raises what it ended with, if it has."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise died(self.host, self.what, self.process, self.log) from None


def answer_of(client: Client) -> dict[str, Any]:
    """The next line it says; raises what it ended with, if it has."""
    assert client.process.stdout is not None
    line = client.process.stdout.readline()
    if not line:
        raise died(client.host, client.what, client.process, client.log)
    answer: dict[str, Any] = json.loads(line)
    return answer


def await_text(host: SmtHost, process: subprocess.Popen[Any], what: str, log: Path, text: str) -> None:
    """Until ``text`` is in its log; raises SmtError."""
    end = time.monotonic() + PATIENCE_S
    while text not in log.read_text():
        if process.poll() is not None:
            raise died(host, what, process, log)
        if time.monotonic() > end:
            raise PeerError(f"{host.name}: {what} did not say {text!r} within {PATIENCE_S:.0f} s; see {log}")
        time.sleep(0.005)


def died(host: SmtHost, what: str, process: subprocess.Popen[Any], log: Path) -> SmtError:
    """The error a process left, as one of ours with the host's name."""
    code = process.wait(PATIENCE_S)
    lines = [line for line in log.read_text().splitlines() if line.startswith("smtnet: ")]
    why = lines[-1].removeprefix("smtnet: ") if lines else f"exit code {code}; see {log}"
    return _KINDS.get(code, PeerError)(f"{host.name}: {what} ended: {why}")


def finish(process: subprocess.Popen[Any]) -> str:
    """Close its stdin, and wait for its end; what it still says. One that does not end is killed, and named on
    stderr."""
    try:
        said, _errors = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _errors = process.communicate()
        print(f"smtnet: a process did not end within {PATIENCE_S:.0f} s and was killed: {process.args!r}",
              file=sys.stderr)
    return said or ""


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
