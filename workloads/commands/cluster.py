"""``smtnet cluster TOPO``: echo between hosts on several machines, every answer compared."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smtstack import quantities
from smtstack.errors import SmtError
from smtstack.exit_codes import EXIT_FAILED, EXIT_OK, EXIT_UNFAITHFUL
from topo.interpreter import ROOT
from topo.topologies import TOPOS, make_topo
from workloads import transports
from workloads.fleet import credentials
from workloads.fleet.credentials import Credentials
from workloads.options.declare import add_command, option

PORT, CLIENT_PORT = 2000, 40_000
_EXAMPLES = """examples:
  smtnet cluster star,4 --machine 10.0.1.1 --machine 10.0.1.2
  smtnet cluster fanout,2,2 --machine 10.0.1.1,10.0.1.2 --transport tls --size 10KB --count 1000 --json

Mininet's cluster edition makes the topology over the machines: hosts and switches there, links between machines as
tunnels of SSH's. Every pair of hosts that the topology is about talks in turn. docs/mininet.md says what a machine
needs. It shows that all works over several machines: a tunnel is no cable, so its times say nothing of one.
exit code: 0 ok, 1 an RPC failed or an answer was wrong, 2 usage, 3 a machine lacks something
"""


def _names(text: str) -> list[str]:
    """``10.0.1.1,10.0.1.2``."""
    return [name.strip() for name in text.split(",") if name.strip()]


@dataclass(frozen=True)
class Options:
    """What ``smtnet cluster`` takes on its command line."""

    topo: str = option(metavar="TOPO", help=f"{', '.join(TOPOS)} with arguments, as star,4; without loops")
    machine: list[list[str]] = option("--machine", type=_names, action="append", default=[], metavar="ADDR,...",
                                      help="machines that let root in by SSH (two or more; repeatable)")
    transport: str = option("--transport", choices=transports.NAMES, default="smt", help="(default: %(default)s)")
    size: str = option("--size", type=quantities.sizes, default="64", metavar="B",
                       help="request bytes (default: %(default)s)")
    count: int = option("--count", type=quantities.POSITIVE, default=100, metavar="N",
                        help="RPCs of each pair (default: %(default)s)")
    python: str = option("--python", default=sys.executable, metavar="FILE",
                         help="the machines' Python that has smtnet (default: as here)")
    json: bool = option("--json", action="store_true", help="one JSON object on stdout")


def add_parser(commands: _SubParsersAction[ArgumentParser]) -> None:
    """Add ``cluster``."""
    add_command(commands, "cluster", Options, run, help="a topology over several machines: echo between its hosts",
                description="Echo between hosts on several machines. Needs root at each.", epilog=_EXAMPLES)


def run(asked: Options) -> int:
    """The subcommand."""
    from topo.cluster import open_cluster

    machines = [name for names in asked.machine for name in names]
    transports.check(asked.transport)
    pairs = []
    with open_cluster(make_topo(asked.topo), machines) as net, _credentials(asked, net) as made:
        for client, server in net.flows:
            pairs.append(_pair(asked, made, client, server))
            if not asked.json:
                print(_line(pairs[-1]), flush=True)
    result = {"topo": asked.topo, "transport": asked.transport, "machines": machines,
              "crossing": sum(pair["client"]["machine"] != pair["server"]["machine"] for pair in pairs),
              "ok": all(pair["errors"] == 0 and pair["content_ok"] for pair in pairs), "pairs": pairs}
    if asked.json:
        print(json.dumps(result))
    return EXIT_OK if result["ok"] else EXIT_FAILED


@contextlib.contextmanager
def _credentials(asked: Options, net: Any) -> Iterator[Credentials]:
    """Credentials of this run, at each machine, and gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="smtnet-cluster-") as place:
        folder = Path(place, "keys")
        made = credentials.make(folder, asked.transport, {host.name: host.IP() for host in net.hosts})
        net.put(folder)
        try:
            yield made
        finally:
            net.remove(folder)


def _program(asked: Options, made: Credentials, host: Any, *words: str) -> tuple[subprocess.Popen[str], int]:
    """A program of ours on a host, and its number there."""
    variables = {"PYTHONPATH": str(ROOT), **made.environment(host.name)}
    program = host.start("env", *(f"{name}={value}" for name, value in variables.items()), asked.python, "-m",
                         "workloads", *words, "--transport", asked.transport, *made.args(host.name), "--json")
    assert program.stdout is not None
    first = program.stdout.readline().strip()
    if not first.isdecimal():
        raise SmtError(f"{host.name} on {host.server}: {first or 'no program can be started'}")
    return program, int(first)


def _pair(asked: Options, made: Credentials, client: Any, server: Any) -> dict[str, Any]:
    """What one host gets from another."""
    serving, number = _program(asked, made, server, "serve", "echo", "--iface", f"{server.name}-eth0", "--addr",
                               f"{server.IP()}:{PORT}")
    assert serving.stdout is not None
    try:
        said = ""
        while "serving" not in said:
            said = serving.stdout.readline()
            if not said:
                raise SmtError(f"{server.name} on {server.server}: the server ended")
        address = f"{client.IP()}:{CLIENT_PORT}"
        load = ("--size", asked.size, "--count", str(asked.count))
        calling, _number = _program(asked, made, client, "call", "echo", "--iface", f"{client.name}-eth0",
                                    "--addr", address, "--peer", f"{server.IP()}:{PORT}", *load)
        told = calling.communicate()[0]
        if calling.returncode not in (EXIT_OK, EXIT_FAILED, EXIT_UNFAITHFUL):
            raise SmtError(f"{client.name} on {client.server}: {told.strip().splitlines()[-1:]}")
        found = next(json.loads(line) for line in told.splitlines() if line.startswith("{"))
    finally:
        server.end(number)
        serving.communicate()
    return {"client": _where(client), "server": _where(server), "rpcs": found["rpcs"], "errors": found["errors"],
            "content_ok": found["content_ok"], "p50_us": found["rtt_us"]["p50"]}


def _where(host: Any) -> dict[str, str]:
    return {"host": host.name, "machine": host.server}


def _line(pair: dict[str, Any]) -> str:
    ends = " > ".join(f"{end['host']} on {end['machine']}" for end in (pair["client"], pair["server"]))
    return (f"{ends}: {pair['rpcs']} RPCs, {pair['errors']} without an answer, contents "
            f"{'right' if pair['content_ok'] else 'WRONG'}")
