"""Every transport under one contract (contract.py), by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from smtstack.errors import ConfigError
from smtstack.io.neighbours import LOOPBACK
from smtstack.io.shared_port import SharedPort
from smtstack.nic.device import NicConfig
from smtstack.socket import Address, SmtContext, SmtSocket
from smtstack.transport.params import TransportParams
from workloads.transports import ktls, tls
from workloads.transports.contract import Caller, Handler, Server
from workloads.transports.epoll import StreamMaker
from workloads.transports.messages import MessageCaller, MessageServer
from workloads.transports.sessions import FROM_TICKETS, SessionSettings
from workloads.transports.stream import Stream
from workloads.transports.stream_caller import StreamCaller
from workloads.transports.stream_server import StreamServer

#: On packets of our own: need root and an interface.
PACKET_TRANSPORTS = ("smt", "homa", "linux")
#: On the kernel's TCP.
STREAM_TRANSPORTS = ("tcp", "tls", "ktls")
#: Those that need a key file, and those that need certificates (smt can do with a key file, too).
KEYED = ("linux",)
CERTIFIED = ("smt", "tls", "ktls")
NAMES = (*PACKET_TRANSPORTS, *STREAM_TRANSPORTS)
#: Nobody on the wire can read what these carry.
ENCRYPTED = (*KEYED, *CERTIFIED)


def check(name: str) -> None:
    """That this machine can do it; raises :class:`~smtstack.errors.Unsupported` naming what is missing."""
    if name == "ktls":
        ktls.check()


@dataclass(frozen=True, slots=True)
class Settings:
    """One end of a transport."""

    transport: str
    local: Address | None = None
    """Our address. A stream client needs none, and takes any free port in any case."""
    interface: str | None = None
    """Where ``local`` is; packet transports need it."""
    keys: str | None = None
    """A key file (smt: instead of a handshake); linux: or ``demo``."""
    certs: Path | None = None
    """Folder of this host's certificate (smt, tls, ktls)."""
    nic: str = "sw"
    poll_ns: int = 0
    """Busy-wait this long before blocking."""
    params: TransportParams | None = None
    """Packet transports; ``max_message_length`` is everybody's."""
    session: SessionSettings = field(default_factory=SessionSettings)
    """How sessions of smt begin, if not with keys from a file."""

    @property
    def limit(self) -> int:
        """Bytes of the longest message."""
        return (self.params or TransportParams()).max_message_length

    @property
    def session_mode(self) -> str | None:
        """How sessions of smt begin, ``keys``: with keys from a file; None: another transport."""
        if self.transport != "smt":
            return None
        return "keys" if self.certs is None else self.session.mode


def open_caller(settings: Settings, peers: Sequence[Address], connections: int = 0) -> Caller:
    """A caller of ``peers``; streams make ``connections`` to each, or (0) one for each call under way.

    Raises :class:`ConfigError`, :class:`~smtstack.errors.Unsupported`.
    """
    if settings.session.state is not None:
        raise ConfigError("--state is for servers: it is they who must not forget anything")
    if settings.transport in PACKET_TRANSPORTS:
        end = _end(settings)
        socket = SmtSocket(*end)
        try:
            check_ways(end[1].interface, peers)
        except ConfigError:
            socket.close()
            raise
        return MessageCaller(socket, peers)
    local_ip = settings.local[0] if settings.local is not None else None
    return StreamCaller(stream_maker(settings, server=False), peers, connections, local_ip, settings.poll_ns)


def check_ways(interface: str, peers: Sequence[Address]) -> None:
    """That packets of ours can reach ``peers`` from there. Raises :class:`ConfigError`.

    What a host sends to an address of its own never comes back from the cable: the kernel's own packets take the
    loopback interface, and so can ours, if both ends are there.
    """
    own = {a.address: name for name, addresses in psutil.net_if_addrs().items() for a in addresses}
    for ip, port in peers:
        if interface != LOOPBACK and own.get(ip) is not None:
            raise ConfigError(f"{ip} is an address of this host ({own[ip]}): nothing comes back from {interface}; "
                              "for both ends on one host take --iface lo --addr 127.0.0.1:PORT at both and "
                              f"--peer 127.0.0.1:{port}, or two namespaces with a cable (docs/echo.md)")
        if interface == LOOPBACK and own.get(ip) != LOOPBACK and not ip.startswith("127."):
            raise ConfigError(f"{ip} cannot be reached over lo, which leads to this host only: --iface takes the "
                              "interface towards it")


def open_server(settings: Settings, handler: Handler, shared: SharedPort | None = None) -> Server:
    """A server at ``settings.local``; with ``shared`` one of several processes that share the port.

    Raises :class:`ConfigError`, :class:`~smtstack.errors.Unsupported`.
    """
    if settings.transport in PACKET_TRANSPORTS:
        local, context = _end(settings)
        # A caller has no tickets to publish, and nothing that must outlive it.
        publish = settings.session.mode in FROM_TICKETS
        context = replace(context, shared_port=shared, publish=publish, state=settings.session.state)
        return MessageServer(SmtSocket(local, context), handler)
    if settings.local is None:
        raise ConfigError("a server needs an address: --addr IP:PORT")
    return StreamServer(stream_maker(settings, server=True), settings.local, settings.limit, handler,
                        settings.poll_ns, shared is not None)


def _end(settings: Settings) -> tuple[Address, SmtContext]:
    """What makes a packet transport's socket."""
    if settings.local is None or settings.interface is None:
        raise ConfigError(f"{settings.transport} needs --iface and --addr: it sends its own packets")
    session = settings.session
    context = SmtContext(settings.interface, settings.transport, settings.keys, settings.params,
                         NicConfig(tls_hw_tx_offload=settings.nic == "hw"), settings.poll_ns, certs=settings.certs,
                         session=session.mode, offer=session.offer(settings.limit),
                         key_update_records=session.key_update_records, dns=session.dns, keylog=session.keylog)
    return settings.local, context


def stream_maker(settings: Settings, server: bool) -> StreamMaker:
    """Connections of a stream transport. Raises :class:`ConfigError`, :class:`~smtstack.errors.Unsupported`."""
    limit = settings.limit
    if settings.transport == "tcp":
        return lambda sock, peer: Stream(sock, peer, limit)
    if settings.certs is None:
        raise ConfigError(f"{settings.transport} needs --certs FOLDER: 'smtnet ca' makes one for each host")
    module = tls if settings.transport == "tls" else ktls
    return module.maker(settings.certs, limit, server)
