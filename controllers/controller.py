"""The fan-out controller as a controller of Mininet: its process, its ports, and its REST interface.

    net = Mininet(topo=..., controller=RyuController)            # or mn --controller fanout
    open_network("fattree,4", controller=RyuController(log=folder / "controller.log"))
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from mininet.node import Controller

from controllers.fabric import Fabric
from controllers.live import fabric_of
from controllers.policies import DEFAULT, POLICIES, nic_paths
from smtstack.errors import ConfigError, SmtError, Unsupported
from smtstack.exit_codes import EXIT_ENVIRONMENT, EXIT_USAGE
from topo.commands import die_with_parent
from topo.interpreter import host_environment, host_python

_LOCALHOST = "127.0.0.1"
#: Seconds for Ryu to start, on a loaded machine or one that is emulated; for an answer; for it to end by itself.
_START_S, _ANSWER_S, _END_S = 60.0, 10.0, 3.0
#: Seconds for all switches to have their rules.
READY_S = 60.0
_LOOK_S = 0.05
#: Other programs may take a port between our choosing it and Ryu's listening there.
_ATTEMPTS = 3
_IN_USE = os.strerror(errno.EADDRINUSE)
#: By the launcher's exit codes.
_KINDS: dict[int, type[SmtError]] = {EXIT_USAGE: ConfigError, EXIT_ENVIRONMENT: Unsupported}
_TAIL_LINES = 4
#: What can be set, as in ``mn --controller fanout,multipath=message,seed=2``.
DEFAULTS: dict[str, Any] = {"multipath": DEFAULT, "seed": 1, "lldp_s": 0.4}


class RyuController(Controller):
    """Ryu with :mod:`controllers.multipath`, listening on this machine only, on ports that are free.

    Options by name, see :data:`DEFAULTS`: ``multipath`` one of :data:`controllers.policies.POLICIES`, ``seed`` of
    the choice among equal ways, ``lldp_s`` seconds between two probes of a link (0: none). ``log``: the file it
    writes (None: one that is gone at the end). Raises :class:`ConfigError` for other options.
    """

    def __init__(self, name: str = "c0", log: Path | None = None, **options: Any) -> None:
        given = DEFAULTS | checked(options)
        self.policy: str = given["multipath"]
        self.seed: int = given["seed"]
        self.lldp_s: float = given["lldp_s"]
        self.fabric: Fabric | None = None
        self.rest_port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="smtnet-controller-")
        self.log = log if log is not None else Path(self._folder.name, "controller.log")
        self._fabric_file = Path(self._folder.name, "fabric.json")
        super().__init__(name, ip=_LOCALHOST, port=0)

    def checkListening(self) -> None:
        """Mininet's asks telnet; our ports are chosen when it starts."""

    def take(self, net: Any) -> None:
        """The network it is for, as it is built; before :meth:`start`. Raises :class:`ConfigError` for one it
        cannot control."""
        self.fabric = fabric_of(net)
        self._fabric_file.write_text(self.fabric.to_json(), encoding="utf-8")

    # -- the process -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start Ryu, and wait until it listens. Raises :class:`SmtError` with the end of its log."""
        if self.fabric is None:
            raise SmtError(f"controller {self.name}: take(net) comes before start()")
        for attempt in range(_ATTEMPTS):
            self.port, self.rest_port = _free_ports()
            try:
                self._launch()
            except SmtError as e:
                self._end(signal.SIGKILL)
                if _IN_USE not in str(e) or attempt == _ATTEMPTS - 1:
                    raise
            else:
                return

    def _launch(self) -> None:
        """Start it with the ports it has."""
        arguments = ["fanout", "--smtnet-fabric", str(self._fabric_file), "--smtnet-multipath", self.policy,
                     "--smtnet-seed", str(self.seed), "--smtnet-lldp", str(self.lldp_s),
                     "--ofp-tcp-listen-port", str(self.port), "--wsapi-port", str(self.rest_port)]
        begin = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            # A file, as a pipe that nobody reads would stop it when it is full.
            self._process = subprocess.Popen(
                [host_python(), "-m", "controllers.launch", *arguments], stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, env=host_environment(), start_new_session=True,
                preexec_fn=die_with_parent)  # noqa: PLW1509 - one system call, which takes no lock
        end = time.monotonic() + _START_S
        while time.monotonic() < end:
            if (code := self._process.poll()) is not None:
                raise _KINDS.get(code, SmtError)(f"controller {self.name} does not start: exit code {code}"
                                                 f"{_tail(self.log, begin)}")
            with contextlib.suppress(SmtError):
                # Somebody else may listen there, and then Ryu does not.
                if self.status()["pid"] == self._process.pid and _listens(self.port):
                    return
            time.sleep(_LOOK_S)
        raise SmtError(f"controller {self.name} does not start: it does not listen after {_START_S:.0f} s"
                       f"{_tail(self.log, begin)}")

    def pids(self) -> list[int]:
        """The number of Ryu's process; empty if none runs."""
        return [self._process.pid] if self._process is not None and self._process.poll() is None else []

    def kill(self) -> None:
        """SIGKILL, for tests and demonstrations: the switches go on with the rules they have."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Start it again on the same ports, where the switches look for it."""
        self._end(signal.SIGTERM)
        self._launch()

    def stop(self, *_args: Any, **_named: Any) -> None:
        """End it. May be called twice."""
        self._end(signal.SIGTERM)
        self._folder.cleanup()
        if self.shell is not None:
            self.terminate()

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    # -- what it says ------------------------------------------------------------------------------------------

    def ready(self, timeout_s: float = READY_S) -> None:
        """Wait until every switch has its rules; see :class:`topo.network.NetController`."""
        end = time.monotonic() + timeout_s
        while True:
            status = self.status()
            missing = ", ".join(status["missing_switches"])
            if status["state"] == "ready" and not missing:
                return
            if status["state"] == "failed":
                raise SmtError(f"controller {self.name}: {'; '.join(status['last_errors'])}")
            if time.monotonic() > end:
                raise SmtError(f"controller {self.name}: not ready after {timeout_s:.0f} s: "
                               + (f"no connection from {missing}" if missing else "still installing rules")
                               + _tail(self.log, 0))
            time.sleep(_LOOK_S)

    @property
    def nic_paths(self) -> int:
        """See :class:`topo.network.NetController`."""
        return nic_paths(self.policy, int(self.status()["path_count"]))

    def status(self) -> dict[str, Any]:
        """``/status``: state, errors, links, switches. All of these raise :class:`SmtError` if there is no
        answer."""
        answer: dict[str, Any] = self.ask("/status")
        return answer

    def paths(self, src: str, dst: str) -> dict[str, Any]:
        """``/paths``: the switches between two hosts, of every path."""
        answer: dict[str, Any] = self.ask(f"/paths/{src}/{dst}")
        return answer

    def counters(self) -> dict[str, Any]:
        """``/counters``: what each link and port carried."""
        answer: dict[str, Any] = self.ask("/counters")
        return answer

    def ask(self, path: str) -> Any:
        """GET from its REST interface; what the JSON says."""
        # Half of what this module takes to import, and most networks have no controller.
        import urllib.error
        import urllib.request

        if self._process is None:
            raise SmtError(f"controller {self.name} does not run")
        url = f"http://{_LOCALHOST}:{self.rest_port}{path}"
        # A proxy that the environment names is for the rest of the world.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(url, timeout=_ANSWER_S) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as e:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                raise ConfigError(json.load(e)["error"]) from None
            raise SmtError(f"controller {self.name}: {path}: {e}") from None
        except (OSError, ValueError) as e:
            raise SmtError(f"controller {self.name} does not answer at {url}: {e}") from None


def checked(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a controller by name, numbers as numbers; raises :class:`ConfigError`."""
    found = dict(options)
    for name, value in options.items():
        if name not in DEFAULTS:
            raise ConfigError(f"controller fanout has no option {name!r}; there are {', '.join(DEFAULTS)}")
        if name == "multipath":
            if value not in POLICIES:
                raise ConfigError(f"controller fanout: multipath is {value!r}; one of {', '.join(POLICIES)}")
            continue
        try:
            found[name] = type(DEFAULTS[name])(value)
        except (TypeError, ValueError):
            found[name] = -1
        if found[name] < 0:
            raise ConfigError(f"controller fanout: {name} is {value!r}; a number from 0")
    return found


def _free_ports() -> tuple[int, int]:
    with socket.create_server((_LOCALHOST, 0)) as one, socket.create_server((_LOCALHOST, 0)) as two:
        return one.getsockname()[1], two.getsockname()[1]


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((_LOCALHOST, port), _ANSWER_S):
        return True
    return False


def _tail(log: Path, begin: int) -> str:
    """The end of what the log says from byte ``begin`` on, as part of an error text."""
    try:
        lines = log.read_bytes()[begin:].decode(errors="replace").splitlines()
    except OSError:
        return ""
    said = [line.removeprefix("smtnet: ") for line in lines if line.strip()][-_TAIL_LINES:]
    return f": {' | '.join(said)}" if said else ""
