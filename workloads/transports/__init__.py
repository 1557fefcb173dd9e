"""Every transport under one contract (contract.py), by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smtstack.errors import ConfigError
from smtstack.io.packet_socket import Fanout
from smtstack.nic.device import NicConfig
from smtstack.socket import Address, SmtContext, SmtSocket
from smtstack.transport.params import TransportParams
from workloads.transports import ktls, tls
from workloads.transports.contract import Caller, Handler, Server
from workloads.transports.epoll import StreamMaker
from workloads.transports.messages import MessageCaller, MessageServer
from workloads.transports.stream import Stream
from workloads.transports.stream_caller import StreamCaller
from workloads.transports.stream_server import StreamServer

#: On packets of our own: need root, an interface and (but for homa) a key file.
PACKET_TRANSPORTS = ("smt", "homa", "linux")
#: On the kernel's TCP.
STREAM_TRANSPORTS = ("tcp", "tls", "ktls")
#: Those that need a key file, and those that need certificates.
KEYED = ("smt", "linux")
CERTIFIED = ("tls", "ktls")
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
    keys: str = "demo"
    certs: Path | None = None
    """Folder of this host's certificate (tls, ktls)."""
    nic: str = "sw"
    poll_ns: int = 0
    """Busy-wait this long before blocking."""
    params: TransportParams | None = None
    """Packet transports; ``max_message_length`` is everybody's."""

    @property
    def limit(self) -> int:
        """Bytes of the longest message."""
        return (self.params or TransportParams()).max_message_length


def open_caller(settings: Settings, peers: Sequence[Address], connections: int = 0) -> Caller:
    """A caller of ``peers``; streams make ``connections`` to each, or (0) one for each call under way.

    Raises :class:`ConfigError`, :class:`~smtstack.errors.Unsupported`.
    """
    if settings.transport in PACKET_TRANSPORTS:
        return MessageCaller(_packet_socket(settings, None), peers)
    local_ip = settings.local[0] if settings.local is not None else None
    return StreamCaller(stream_maker(settings, server=False), peers, connections, local_ip, settings.poll_ns)


def open_server(settings: Settings, handler: Handler, fanout: Fanout | None = None) -> Server:
    """A server at ``settings.local``; with ``fanout`` one of several processes that share the port.

    Raises :class:`ConfigError`, :class:`~smtstack.errors.Unsupported`.
    """
    if settings.transport in PACKET_TRANSPORTS:
        return MessageServer(_packet_socket(settings, fanout), handler)
    if settings.local is None:
        raise ConfigError("a server needs an address: --addr IP:PORT")
    return StreamServer(stream_maker(settings, server=True), settings.local, settings.limit, handler,
                        settings.poll_ns, fanout is not None)


def _packet_socket(settings: Settings, fanout: Fanout | None) -> SmtSocket:
    if settings.local is None or settings.interface is None:
        raise ConfigError(f"{settings.transport} needs --iface and --addr: it sends its own packets")
    context = SmtContext(settings.interface, settings.transport, settings.keys, settings.params,
                         NicConfig(tls_hw_tx_offload=settings.nic == "hw"), settings.poll_ns, fanout)
    return SmtSocket(settings.local, context)


def stream_maker(settings: Settings, server: bool) -> StreamMaker:
    """Connections of a stream transport. Raises :class:`ConfigError`, :class:`~smtstack.errors.Unsupported`."""
    limit = settings.limit
    if settings.transport == "tcp":
        return lambda sock, peer: Stream(sock, peer, limit)
    if settings.certs is None:
        raise ConfigError(f"{settings.transport} needs --certs FOLDER: 'smtnet certs' makes one for each host")
    module = tls if settings.transport == "tls" else ktls
    return module.maker(settings.certs, limit, server)
