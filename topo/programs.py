"""Servers and clients on Mininet hosts by the ``smtnet`` command, with throw-away keys."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from smtstack.errors import ConfigError, SmtError
from smtstack.session.established import MODES
from smtstack.session_io.tsig_file import TSIG, read_tsig
from topo.commands import die_with_parent
from topo.dns import DnsServer
from topo.interpreter import host_environment, host_python


class Needs(NamedTuple):
    """What a transport needs on a command line."""

    packets: bool
    """It sends frames itself, through the emulated NIC."""
    certified: bool
    """It proves who a host is by a certificate."""


#: What can be asked for by name here, as workloads/transports/table.py has it; a test compares the two.
TRANSPORTS = {"smt": Needs(True, True), "homa": Needs(True, False), "tcp": Needs(False, False),
              "tls": Needs(False, True)}
_PORT = 2000
_FIRST_CLIENT_PORT = 40_000
#: Of the credentials, in a folder that goes with them.
_CERTS = "certs"
#: Exit code of ``smtnet call`` for a run that was not faithful: what it did is right all the same.
_UNFAITHFUL = 4
#: Seconds for a server to start or stop on a loaded machine.
_PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class Secrets:
    """Options and environment that give a host's program its keys, by the host's name; empty: needs none."""

    options: dict[str, list[str]]
    environment: dict[str, dict[str, str]]

    def add(self, *words: str) -> None:
        """Further options of every host."""
        for options in self.options.values():
            options.extend(words)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client found."""

    numbers: dict[str, Any]
    """Its JSON; empty if it gave none."""
    ok: bool
    """It ended well: right answers, whether or not the times are faithful."""
    faithful: bool
    said: str
    """Its last line to people."""


def check(transport: str, nic: str, session: str = "") -> None:
    """Raises :class:`ConfigError` for what cannot be had here."""
    if transport not in TRANSPORTS:
        raise ConfigError(f"transport {transport!r}; here there are {', '.join(TRANSPORTS)} "
                          "('smtnet run' has more)")
    if nic not in ("sw", "hw"):
        raise ConfigError(f"nic {nic!r}; sw (software seals) or hw (the emulated NIC does)")
    if session and transport != "smt":
        raise ConfigError(f"session={session} is for transport smt, not for {transport}")
    check_session(session)


def check_session(session: str) -> None:
    """That sessions of smt can begin so; empty: as ``smtnet`` does by default. Raises :class:`ConfigError`."""
    if session and session not in MODES:
        raise ConfigError(f"session {session!r}; there are {', '.join(MODES)}")


def unreachable(host: Any) -> str:
    """Why nobody can talk to this host of Mininet, in words; empty if one can."""
    if not host.intfs:
        return f"{host.name} is at no link"
    return "" if host.IP() else f"{host.name} has no IPv4 address"


@contextmanager
def serving(work: str, pairs: Sequence[tuple[Any, Any]], transport: str, nic: str,
            session: str = "") -> Iterator[Secrets]:
    """``smtnet serve work`` on every server of these pairs (client, server); fresh keys, gone afterwards.

    ``session``: how sessions of smt begin; empty: as the first server was told, when it was made. Tickets are in a
    DNS server, which runs on that host.

    Raises :class:`SmtError` where a server does not start.
    """
    for host in (host for pair in pairs for host in pair):
        if why := unreachable(host):
            raise ConfigError(why)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="smtnet-mn-")))
        servers = dict.fromkeys(server for _client, server in pairs)
        secrets = _make_secrets(folder, pairs, transport)
        if transport == "smt":
            first = next(iter(servers))
            mode = session or getattr(first, "session", "")
            if mode:
                secrets.add("--session", mode)
            if mode.startswith("ticket"):
                dns = stack.enter_context(DnsServer(first, read_tsig(folder / _CERTS / TSIG)))
                secrets.add("--dns", "{}:{}".format(*dns.address))
        # All are started, then waited for: each takes half a second to import what it needs.
        started = [(host, stack.enter_context(_server(host, work, _options(host, _PORT, transport, nic), secrets)))
                   for host in servers]
        for host, process in started:
            # Called first at the end: they stop together, too.
            stack.callback(process.terminate)
            _await_serving(host, process)
        yield secrets


def ask(work: str, client: Any, server: Any, number: int, arguments: Sequence[str], transport: str, nic: str,
        secrets: Secrets) -> Answer:
    """``smtnet call work`` from a host to a server of :func:`serving`; ``number`` differs from call to call."""
    # A port is a client's own for the life of the server: message ids start over with each process.
    options = _options(client, _FIRST_CLIENT_PORT + number, transport, nic)
    process = _popen(client, _smtnet("call", work, *options, "--peer", f"{server.IP()}:{_PORT}", *arguments),
                     secrets)
    try:
        output, errors = process.communicate()
    finally:
        if process.poll() is None:  # Ctrl-C
            process.kill()
            process.communicate()
    numbers: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        numbers = json.loads(output)
    return Answer(numbers, process.returncode in (0, _UNFAITHFUL), bool(numbers.get("fidelity", {}).get("ok")),
                  _last_line(errors))


def _smtnet(*args: str) -> list[str]:
    return [host_python(), "-m", "workloads", *args]


def _make_secrets(folder: Path, pairs: Sequence[tuple[Any, Any]], transport: str) -> Secrets:
    """Keys or certificates of all hosts of these pairs, in ``folder``. Raises :class:`SmtError`."""
    hosts = {host.name: host for pair in pairs for host in pair}
    if TRANSPORTS[transport].certified:
        certs = folder / _CERTS
        _make("ca", str(certs), *(f"--host={name}={host.IP()}" for name, host in hosts.items()),
              *(f"--publisher={server.name}" for _client, server in pairs))
        return Secrets({name: ["--certs", str(certs / name)] for name in hosts},
                       {name: {"OPENSSL_CONF": str(certs / name / "openssl.cnf")} for name in hosts})
    return Secrets({}, {})


def _make(*command: str) -> None:
    done = subprocess.run(_smtnet(*command), capture_output=True, text=True, check=False, env=host_environment(),
                          timeout=_PATIENCE_S)
    if done.returncode:
        raise SmtError(f"{command[0]}: {_last_line(done.stderr)}")


def _options(host: Any, port: int, transport: str, nic: str) -> list[str]:
    """Of a server or a client on ``host``."""
    options = ["--addr", f"{host.IP()}:{port}", "--transport", transport, "--json"]
    if TRANSPORTS[transport].packets:
        options += ["--iface", host.defaultIntf().name, "--nic", nic]
    return options


def _popen(host: Any, argv: list[str], secrets: Secrets) -> subprocess.Popen[str]:
    """Start a ``smtnet`` command on ``host``."""
    process: subprocess.Popen[str] = host.popen(
        [*argv, *secrets.options.get(host.name, [])],
        stdin=subprocess.DEVNULL,  # the CLI's next line is not the program's
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=die_with_parent,
        env={**host_environment(), **secrets.environment.get(host.name, {})})
    return process


@contextmanager
def _server(host: Any, work: str, arguments: list[str], secrets: Secrets) -> Iterator[subprocess.Popen[str]]:
    """``smtnet serve work``, until the end of the ``with`` block."""
    process = _popen(host, _smtnet("serve", work, *arguments), secrets)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _await_serving(host: Any, process: subprocess.Popen[str]) -> None:
    """Until it says that clients may come; raises :class:`SmtError`."""
    assert process.stderr is not None
    # Not select(), which fails beyond 1024 files, nor readline(): of what it reads ahead poll() knows nothing.
    descriptor = process.stderr.fileno()
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    said = ""
    end = time.monotonic() + _PATIENCE_S
    while "serving" not in said:
        readable = poller.poll(max(0.0, end - time.monotonic()) * 1000)
        text = os.read(descriptor, 4096).decode() if readable else ""
        if not text:
            raise SmtError(f"{host.name}: the server did not start: {_last_line(said)}")
        said += text


def _last_line(text: str) -> str:
    """What a program said last."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("smtnet: ") if lines else "it said nothing"
