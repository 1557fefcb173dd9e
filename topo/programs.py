"""Servers and clients on Mininet hosts by the ``smtnet`` command, with throw-away keys."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from smtstack.errors import ConfigError, SmtError
from smtstack.exit_codes import EXIT_UNFAITHFUL
from smtstack.session.established import MODES
from smtstack.session_io.tsig_file import TSIG, read_tsig
from topo.dns import DnsServer
from topo.interpreter import host_environment
from topo.running import PATIENCE_S, Program, last_line, python_program


class Needs(NamedTuple):
    """What a transport needs on a command line."""

    packets: bool
    """Whether it sends frames itself, through the emulated NIC."""
    certified: bool
    """Whether it proves who a host is by a certificate."""


#: What can be asked for by name here, as workloads/transports/table.py has it; a test compares the two.
TRANSPORTS = {"smt": Needs(True, True), "homa": Needs(True, False), "tcp": Needs(False, False),
              "tls": Needs(False, True), "ktls-sw": Needs(False, True), "ktls-nic": Needs(False, True),
              "upstream": Needs(True, False)}
_PORT = 2000
_FIRST_CLIENT_PORT = 40_000
#: What servers and clients import sooner or later: they share it (topo/forked.py).
_IMPORTS = ("workloads.commands.main", "workloads.commands.serve", "workloads.commands.serve_kv",
            "workloads.commands.call", "workloads.transports.messages", "workloads.transports.tls",
            "workloads.transports.ktls_own",
            "smtstack.session_io.host", "smtstack.session_io.ticket_dns")
#: Of the credentials, in a folder that goes with them.
_CERTS = "certs"


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
    """The JSON that the client printed; empty if it gave none."""
    ok: bool
    """The client ended well: right answers, whether or not the times are faithful."""
    faithful: bool
    said: str
    """The client's last line to people."""


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
    """Raises :class:`ConfigError` if no session of smt begins so; empty: as ``smtnet`` does by default."""
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
        # All are started, then waited for.
        programs = []
        for host in servers:
            programs.append(_start(host, f"{work} server", folder, secrets, "serve", work,
                                   *_options(host, _PORT, transport, nic)))
            stack.callback(programs[-1].stop)
        for program in programs:
            # Called first at the end: they stop together, too.
            stack.callback(program.process.terminate)
        for program in programs:
            program.wait_for("serving")
        yield secrets


def ask(work: str, client: Any, server: Any, number: int, arguments: Sequence[str], transport: str, nic: str,
        secrets: Secrets) -> Answer:
    """``smtnet call work`` from a host to a server of :func:`serving`; ``number`` differs from call to call."""
    # A port is a client's own for the life of the server: message ids start over with each process.
    options = _options(client, _FIRST_CLIENT_PORT + number, transport, nic)
    with tempfile.TemporaryDirectory(prefix="smtnet-mn-") as folder:
        program = _start(client, f"{work} client", Path(folder), secrets, "call", work, *options, "--peer",
                         f"{server.IP()}:{_PORT}", *arguments)
        try:
            output, _errors = program.process.communicate()
        finally:
            if program.process.poll() is None:  # Ctrl-C
                program.process.kill()
                program.process.communicate()
        said = program.last_line()
    numbers: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        numbers = json.loads(output or "")
    return Answer(numbers, program.process.returncode in (0, EXIT_UNFAITHFUL),
                  bool(numbers.get("fidelity", {}).get("ok")), said)


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
    done = subprocess.run(python_program("workloads", *command), capture_output=True, text=True, check=False,
                          env=host_environment(), timeout=PATIENCE_S)
    if done.returncode:
        raise SmtError(f"{command[0]}: {last_line(done.stderr)}")


def _options(host: Any, port: int, transport: str, nic: str) -> list[str]:
    """The options of a server or a client on ``host``."""
    options = ["--addr", f"{host.IP()}:{port}", "--transport", transport, "--json"]
    if TRANSPORTS[transport].packets:
        options += ["--iface", host.defaultIntf().name, "--nic", nic]
    return options


def _start(host: Any, what: str, folder: Path, secrets: Secrets, *words: str) -> Program:
    """A ``smtnet`` command on ``host``."""
    return Program(host, what, python_program("workloads", *words, *secrets.options.get(host.name, [])),
                   folder / f"{host.name}.log", environment=secrets.environment.get(host.name), imports=_IMPORTS)
