"""YCSB between two Mininet hosts, by the ``smtnet`` command: for ``smt kv``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smtstack.errors import SmtError
from topo import programs

#: Operations under way, unless a file says how many.
CLIENTS = 8


def run_ycsb(client: Any, server: Any, workload: str, *, value: int | None = None,
             count: int | None = None, transport: str = "smt", nic: str = "sw",
             session: str = "") -> dict[str, Any]:
    """Load records and run ``count`` operations of a workload, or of a property file; what ``smtnet call kv
    --json`` says. What is None is as there by default, or as the file has it.

    Every value read is verified. Raises :class:`ConfigError` for wrong arguments, :class:`SmtError` if an
    operation failed, a value was wrong or a server did not start.
    """
    programs.check(transport, nic, session)
    arguments = ["--workload", workload]
    clients = None if Path(workload).is_file() else CLIENTS
    for option, number in (("--value", value), ("--ops", count), ("--clients", clients)):
        arguments += [] if number is None else [option, str(number)]
    with programs.serving("kv", [(client, server)], transport, nic, session) as secrets:
        answer = programs.ask("kv", client, server, 0, arguments, transport, nic, secrets)
    if not answer.ok:
        raise SmtError(f"{client.name} -> {server.name}: {answer.said}")
    return answer.numbers


def table(client: str, server: str, result: dict[str, Any]) -> str:
    """For people, a line for each kind of operation."""
    lines = [f"{client} -> {server}, {result['transport']}, YCSB {result['workload']}, {result['value_bytes']} B: "
             f"{result['rpc_per_s']:.0f} operations/s, every value right",
             f"{'':<18} {'count':>7} {'p50 us':>8} {'p99 us':>8}"]
    for kind, found in result["ops"].items():
        times = found["rtt_us"]
        lines.append(f"{kind:<18} {found['count']:>7} {times['p50']:>8.0f} {times['p99']:>8.0f}")
    if not result["fidelity"]["ok"]:
        lines.append("times not faithful: " + "; ".join(result["fidelity"]["reasons"]))
    return "\n".join(lines)
