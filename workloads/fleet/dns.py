"""The DNS server of a fleet whose sessions begin with tickets: it runs on one of the hosts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from smtstack.session_io.tsig_file import DNS_PORT, TSIG, make_tsig, write_tsig
from topo.dns import DnsServer
from topo.host import SmtHost
from topo.network import SmtNet

#: Where the DNS servers of further fleets on a network listen.
_FURTHER_PORTS = 5300


def server_for(net: SmtNet, edges: Mapping[SmtHost, Sequence[SmtHost]], keys: Path, number: int) -> DnsServer:
    """For fleet ``number``, whose clients ask as ``edges`` say; not started. ``keys``: the folder of all hosts'
    credentials, where the servers find the key to publish with."""
    busy = {*edges, *(peer for peers in edges.values() for peer in peers)}
    # A host with nothing else to do, else the last: while something is measured, nobody asks it anything.
    host = next((host for host in net.hosts if host not in busy), net.hosts[-1])
    key = make_tsig()
    for server in {peer for peers in edges.values() for peer in peers}:
        write_tsig(keys / server.name / TSIG, key)
    return DnsServer(host, key, port=DNS_PORT if number == 0 else _FURTHER_PORTS + number)


def place(net: SmtNet, server: DnsServer) -> str:
    """For results: ``h3 (10.0.0.3:53)``."""
    ip, port = server.address
    return f"{next(host.name for host in net.hosts if ip == host.IP())} ({ip}:{port})"
