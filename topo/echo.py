"""RPC echo between Mininet hosts, by the ``smtnet`` command: for ``mn --test smtecho`` and ``smt echo``."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from smtstack.errors import ConfigError, SmtError
from topo.commands import die_with_parent
from topo.interpreter import host_environment, host_python

#: What can be asked for by name here.
TRANSPORTS = ("smt", "homa", "tcp", "tls")
#: Those that send frames themselves, through the emulated NIC.
_RAW = ("smt", "homa")
#: Up to so many hosts, everybody talks to everybody.
FEW_HOSTS = 4
PORT = 2000
_FIRST_CLIENT_PORT = 40_000
#: Seconds for a server to start or stop on a loaded machine.
_PATIENCE_S = 20.0
#: Unanswered RESENDs, one in 10 ms, before a peer is given up: many hosts share few processors here.
_RESENDS = 100
#: Exit code of ``smtnet call`` for a run that was not faithful: its RPCs are right all the same.
_UNFAITHFUL = 4


@dataclass(frozen=True, slots=True)
class EchoResult:
    """What one client saw of one server."""

    client: str
    server: str
    transport: str
    size: int
    rpcs: int
    """RPCs answered with the right bytes."""
    ok: bool
    """All of them were, and every byte was right."""
    p50_us: float | None
    p99_us: float | None
    faithful: bool
    trouble: str
    """Why it is not ok, or not faithful; else empty."""


def pairs_of(hosts: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Who calls whom in ``smtecho``: everybody everybody if they are few, else each its neighbour in a ring."""
    if len(hosts) < 2:
        raise ConfigError("echo needs two hosts; take another topology, e.g. --topo fanout,4")
    if len(hosts) <= FEW_HOSTS:
        return list(combinations(hosts, 2))
    return list(zip(hosts, [*hosts[1:], hosts[0]], strict=True))


def run_pairs(pairs: Iterable[tuple[Any, Any]], *, size: int = 1024, count: int = 100, transport: str = "smt",
              nic: str = "sw") -> Iterator[EchoResult]:
    """Echo from each client to its server, one pair after the other; fresh keys, gone afterwards.

    Raises :class:`ConfigError` for wrong arguments, and :class:`SmtError` where a server does not start.
    """
    pairs = list(pairs)
    _check(size, count, transport, nic)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="smtnet-echo-")))
        secrets = _make_secrets(folder, pairs, transport)
        servers = dict.fromkeys(server for _client, server in pairs)
        # All are started, then waited for: each takes half a second to import what it needs.
        started = [(host, stack.enter_context(_server(host, _options(host, PORT, transport, nic), secrets)))
                   for host in servers]
        for host, process in started:
            # Called first at the end: they stop together, too.
            stack.callback(process.terminate)
            _await_serving(host, process)
        for number, (client, server) in enumerate(pairs):
            # A port is a client's own for the life of the server: message ids start over with each process.
            options = _options(client, _FIRST_CLIENT_PORT + number, transport, nic)
            yield _call(client, server, options, secrets, size, count, transport)


def table(results: Sequence[EchoResult]) -> str:
    """For people, one line each."""
    lines = [f"{'pair':<12} {'transport':<9} {'bytes':>7} {'rpcs':>6} {'p50 us':>8} {'p99 us':>8}  result"]
    for r in results:
        p50, p99 = (f"{value:8.0f}" if value is not None else f"{'-':>8}" for value in (r.p50_us, r.p99_us))
        verdict = "ok" if r.ok else "FAILED"
        if r.ok and not r.faithful:
            verdict = "ok, times not faithful"
        pair = f"{r.client} -> {r.server}"
        lines.append(f"{pair:<12} {r.transport:<9} {r.size:>7} {r.rpcs:>6} {p50} {p99}  {verdict}"
                     + (f": {r.trouble}" if r.trouble else ""))
    return "\n".join(lines)


def _check(size: int, count: int, transport: str, nic: str) -> None:
    if transport not in TRANSPORTS:
        raise ConfigError(f"transport {transport!r}; here there are {', '.join(TRANSPORTS)} "
                          "('smtnet run echo' has more)")
    if nic not in ("sw", "hw"):
        raise ConfigError(f"nic {nic!r}; sw (software seals) or hw (the emulated NIC does)")
    for name, value in (("size", size), ("count", count)):
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} {value!r}; a number from 1")


def _smtnet(*args: str) -> list[str]:
    return [host_python(), "-m", "workloads.cli", *args]


@dataclass(frozen=True, slots=True)
class _Secrets:
    """Options and environment that give a host's program its keys, by the host's name; empty: needs none."""

    options: dict[str, list[str]]
    environment: dict[str, dict[str, str]]


def _make_secrets(folder: Path, pairs: Sequence[tuple[Any, Any]], transport: str) -> _Secrets:
    hosts = {host.name: host for pair in pairs for host in pair}
    if transport == "smt":
        path = str(folder / "run.keys")
        addresses = dict.fromkeys(tuple(sorted((client.IP(), server.IP()))) for client, server in pairs)
        _make("keys", path, *(text for pair in addresses for text in ("--pair", ",".join(pair))))
        return _Secrets({name: ["--keys", path] for name in hosts}, {})
    if transport == "tls":
        certs = folder / "certs"
        _make("certs", str(certs), *(f"--host={name}={host.IP()}" for name, host in hosts.items()))
        return _Secrets({name: ["--certs", str(certs / name)] for name in hosts},
                        {name: {"OPENSSL_CONF": str(certs / name / "openssl.cnf")} for name in hosts})
    return _Secrets({}, {})


def _make(*command: str) -> None:
    done = subprocess.run(_smtnet(*command), capture_output=True, text=True, check=False, env=host_environment(),
                          timeout=_PATIENCE_S)
    if done.returncode:
        raise SmtError(f"{command[0]}: {_last_line(done.stderr)}")


def _options(host: Any, port: int, transport: str, nic: str) -> list[str]:
    options = ["--addr", f"{host.IP()}:{port}", "--transport", transport, "--json"]
    if transport in _RAW:
        options += ["--iface", host.defaultIntf().name, "--nic", nic, "--timeout-resends", str(_RESENDS)]
    return options


def _popen(host: Any, argv: list[str], secrets: _Secrets) -> subprocess.Popen[str]:
    process: subprocess.Popen[str] = host.popen(
        [*argv, *secrets.options.get(host.name, [])],
        stdin=subprocess.DEVNULL,  # the CLI's next line is not the program's
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=die_with_parent,
        env={**host_environment(), **secrets.environment.get(host.name, {})})
    return process


@contextmanager
def _server(host: Any, options: list[str], secrets: _Secrets) -> Iterator[subprocess.Popen[str]]:
    process = _popen(host, _smtnet("serve", "echo", *options), secrets)
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
            raise SmtError(f"{host.name}: the echo server did not start: {_last_line(said)}")
        said += text


def _call(client: Any, server: Any, options: list[str], secrets: _Secrets, size: int, count: int,
          transport: str) -> EchoResult:
    process = _popen(client, _smtnet("call", "echo", *options, "--peer", f"{server.IP()}:{PORT}",
                                     "--size", str(size), "--count", str(count)), secrets)
    try:
        output, errors = process.communicate()
    finally:
        if process.poll() is None:  # Ctrl-C
            process.kill()
            process.communicate()
    numbers: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        numbers = json.loads(output)
    rpcs = int(numbers.get("rpcs", 0))
    ok = (process.returncode in (0, _UNFAITHFUL) and rpcs == count and numbers.get("errors") == 0
          and numbers.get("content_ok") is True)
    fidelity = numbers.get("fidelity", {})
    rtt = numbers.get("rtt_us", {})
    trouble = "" if ok else _last_line(errors)
    if ok and not fidelity.get("ok"):
        trouble = "; ".join(fidelity.get("reasons", []))
    return EchoResult(client.name, server.name, transport, size, rpcs, ok, rtt.get("p50"), rtt.get("p99"),
                      bool(fidelity.get("ok")), trouble)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("smtnet: ") if lines else "it said nothing"
