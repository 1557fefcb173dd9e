"""What a fleet is: a transport and how it is used, and who asks whom."""

from __future__ import annotations

import re
from dataclasses import dataclass

from smtstack.errors import ConfigError
from smtstack.io.key_file import IN_CLEAR
from smtstack.waiting import Waiting
from topo.host import SmtHost
from topo.network import SmtNet
from workloads.transports.sessions import FROM_TICKETS, MODE
from workloads.transports.table import TABLE

#: Who asks whom.
PATTERNS = {
    "topo": "the pairs the topology is about: incast to its one server, a fan-out from its root",
    "one": "the first host is the server of all others",
    "pairs": "h1 asks h2, h3 asks h4, ...",
    "all": "every host asks every other",
    "root": "the first host asks all others",
}
#: Or by name: who:whom.
_PAIRS = re.compile(r"\w+:\w+(,\w+:\w+)*")

@dataclass(frozen=True, slots=True)
class Setup:
    """What a fleet is."""

    transport: str = "smt"
    nic: str = "sw"
    """Who seals records: ``sw`` or ``hw``. Without meaning for tcp, tls."""
    pattern: str = "topo"
    """Who asks whom: one of :data:`PATTERNS`, or pairs of hosts by name."""
    processes: int = 1
    """Client processes a host, each with a port of its own."""
    workers: int = 1
    """Server processes a host, sharing one port."""
    connections: int = 0
    """Connections of a client process (streams only); 0: as many as it has RPCs under way."""
    wait: Waiting | None = None
    """How servers and clients wait; None: as the transport does by default."""
    keys: str = ""
    """Profile linux only: ``demo``, the kernel module's public keys, or ``none``, in clear. Empty: throw-away
    keys."""
    session: str = ""
    """How sessions of smt begin: one of ``MODES``. Empty: as ``smtnet`` does by default."""
    options: tuple[str, ...] = ()
    """Further options for both ``smtnet serve echo`` and the clients."""
    server_options: tuple[str, ...] = ()
    """Further options for the servers alone: ``("--response-size", "8")``."""
    environment: tuple[tuple[str, str], ...] = ()
    """Further variables of servers and clients, which are fresh processes then."""

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS and not _PAIRS.fullmatch(self.pattern):
            raise ConfigError(f"pattern {self.pattern!r}; there are {', '.join(PATTERNS)}, or pairs of hosts as "
                              "h1:h3,h2:h4")
        if self.keys and self.transport != "linux":
            raise ConfigError(f"--keys {self.keys} is for transport linux only and protects nothing; "
                              f"leave --keys out: a run of {self.transport} makes its own")

    @property
    def uses_nic(self) -> bool:
        """Whether our NIC is on the way at all."""
        return TABLE[self.transport].packets

    @property
    def encrypted(self) -> bool:
        """Nobody on the wire can read what it carries."""
        return TABLE[self.transport].encrypted and self.keys != IN_CLEAR

    @property
    def waiting(self) -> Waiting:
        """How servers and clients wait, where there are processors enough."""
        return TABLE[self.transport].waiting if self.wait is None else self.wait

    @property
    def session_mode(self) -> str | None:
        """How sessions begin; None: not a matter of this transport."""
        return (self.session or MODE) if TABLE[self.transport].sessions else None

    @property
    def needs_dns(self) -> bool:
        """Whether servers publish tickets that clients look up."""
        return self.session_mode in FROM_TICKETS


def asked(pattern: str, net: SmtNet) -> dict[SmtHost, list[SmtHost]]:
    """By each client host the hosts it asks. Raises :class:`ConfigError` for a name that no host has."""
    hosts: list[SmtHost] = net.hosts
    if pattern == "topo" or ":" in pattern:
        edges: dict[SmtHost, list[SmtHost]] = {}
        for client, server in net.flows if pattern == "topo" else _named(pattern, hosts):
            edges.setdefault(client, []).append(server)
        return edges
    if pattern == "one":
        return {host: [hosts[0]] for host in hosts[1:]}
    if pattern == "root":
        return {hosts[0]: hosts[1:]} if len(hosts) > 1 else {}
    if pattern == "pairs":
        return {a: [b] for a, b in zip(hosts[::2], hosts[1::2], strict=False)}
    return {host: [peer for peer in hosts if peer is not host] for host in hosts}


def _named(pattern: str, hosts: list[SmtHost]) -> list[tuple[SmtHost, SmtHost]]:
    known = {host.name: host for host in hosts}
    pairs = [pair.split(":") for pair in pattern.split(",")]
    for name in (name for pair in pairs for name in pair):
        if name not in known:
            raise ConfigError(f"pattern {pattern!r}: there is no host {name}, but {', '.join(known)}")
    return [(known[client], known[server]) for client, server in pairs]
