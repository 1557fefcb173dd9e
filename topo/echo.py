"""RPC echo between Mininet hosts, by the ``smtnet`` command: for ``mn --test smtecho`` and ``smt echo``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from smtstack.errors import ConfigError
from topo import programs

#: Up to so many hosts, everybody talks to everybody.
FEW_HOSTS = 4


@dataclass(frozen=True, slots=True)
class EchoResult:
    """What one client saw of one server."""

    client: str
    server: str
    transport: str
    session: str
    """How sessions of smt began; ``-``: another transport, or nobody came so far."""
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
              nic: str = "sw", session: str = "") -> Iterator[EchoResult]:
    """Echo from each client to its server, one pair after the other; fresh keys, gone afterwards.

    ``session``: how sessions of smt begin; empty: as the hosts were told.

    Raises :class:`ConfigError` for wrong arguments, and :class:`SmtError` where a server does not start.
    """
    pairs = list(pairs)
    _check(size, count, transport, nic, session)
    with programs.serving("echo", pairs, transport, nic, session) as secrets:
        for number, (client, server) in enumerate(pairs):
            answer = programs.ask("echo", client, server, number, ["--size", str(size), "--count", str(count)],
                                  transport, nic, secrets)
            yield _result(client, server, transport, size, count, answer)


def table(results: Sequence[EchoResult]) -> str:
    """For people, one line each."""
    lines = [f"{'pair':<12} {'transport':<9} {'session':<9} {'bytes':>7} {'rpcs':>6} {'p50 us':>8} {'p99 us':>8}  "
             "result"]
    for r in results:
        p50, p99 = (f"{value:8.0f}" if value is not None else f"{'-':>8}" for value in (r.p50_us, r.p99_us))
        verdict = "ok" if r.ok else "FAILED"
        if r.ok and not r.faithful:
            verdict = "ok, times not faithful"
        pair = f"{r.client} -> {r.server}"
        lines.append(f"{pair:<12} {r.transport:<9} {r.session:<9} {r.size:>7} {r.rpcs:>6} {p50} {p99}  {verdict}"
                     + (f": {r.trouble}" if r.trouble else ""))
    return "\n".join(lines)


def _check(size: int, count: int, transport: str, nic: str, session: str) -> None:
    programs.check(transport, nic, session)
    for name, value in (("size", size), ("count", count)):
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} {value!r}; a number from 1")


def _result(client: Any, server: Any, transport: str, size: int, count: int,
            answer: programs.Answer) -> EchoResult:
    numbers = answer.numbers
    rpcs = int(numbers.get("rpcs", 0))
    ok = answer.ok and rpcs == count and numbers.get("errors") == 0 and numbers.get("content_ok") is True
    trouble = "" if ok else answer.said
    if ok and not answer.faithful:
        trouble = "; ".join(numbers.get("fidelity", {}).get("reasons", []))
    rtt = numbers.get("rtt_us", {})
    session = numbers.get("session", {}).get("mode", "-")
    return EchoResult(client.name, server.name, transport, session, size, rpcs, ok, rtt.get("p50"), rtt.get("p99"),
                      answer.faithful, trouble)
