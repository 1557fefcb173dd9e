"""Every transport of the table (table.py) under one contract (contract.py): opened by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import psutil

from smtstack.errors import ConfigError, SmtError
from smtstack.io.neighbours import LOOPBACK
from smtstack.io.shared_port import SharedPort
from smtstack.nic.device import NicConfig
from smtstack.socket import INLINE, Address, SmtContext, SmtSocket
from workloads.transports.contract import Caller, Handler, Server
from workloads.transports.epoll import StreamMaker
from workloads.transports.messages import MessageCaller, MessageServer
from workloads.transports.sessions import FROM_TICKETS
from workloads.transports.stream_caller import StreamCaller
from workloads.transports.stream_server import StreamServer
from workloads.transports.table import TABLE, Ends
from workloads.transports.table import Settings as Settings

#: On packets of our own (need root and an interface), on the kernel's TCP, and all that are not on a bytestream.
PACKET_TRANSPORTS = tuple(kind.name for kind in TABLE.values() if kind.packets)
STREAM_TRANSPORTS = tuple(kind.name for kind in TABLE.values() if kind.streams is not None)
MESSAGE_TRANSPORTS = tuple(kind.name for kind in TABLE.values() if kind.streams is None)
#: All of them, in the table's order.
NAMES = tuple(TABLE)
#: A server's sockets can be an untrusted host's: smtnet serve kv.
PROXIED = tuple(kind.name for kind in TABLE.values() if kind.proxied)
#: Nobody on the wire can read what these carry.
ENCRYPTED = tuple(kind.name for kind in TABLE.values() if kind.encrypted)


def check(name: str, hosting: str | None = None) -> None:
    """Raises :class:`~smtstack.errors.Unsupported` naming what this machine lacks for a transport; with
    ``hosting``, how the hosts' NICs are going to be, :class:`ConfigError` if it needs others."""
    needed = TABLE[name].check
    if needed is not None:
        needed()
    if hosting is not None and TABLE[name].hosting not in {"", hosting}:
        raise ConfigError(f"{name} needs NICs that own the hosts' interfaces: --nic-hosting {TABLE[name].hosting}")


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
            socket.guard()
        except SmtError:
            socket.close()
            raise
        return MessageCaller(socket, peers)
    _check_own_sockets(settings)
    ends = _ends(settings)
    if ends is not None:
        return ends[0](settings, peers)
    local_ip = settings.local[0] if settings.local is not None else None
    return StreamCaller(stream_maker(settings, server=False), peers, connections, local_ip, settings.waiting)


def check_ways(interface: str, peers: Sequence[Address]) -> None:
    """Raises :class:`ConfigError` if packets of ours cannot reach ``peers`` from ``interface``.

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
        socket = SmtSocket(local, context)
        try:
            socket.guard()
        except SmtError:
            socket.close()
            raise
        return MessageServer(socket, handler)
    _check_own_sockets(settings)
    ends = _ends(settings)
    if ends is not None:
        return ends[1](settings, handler)
    if settings.local is None:
        raise ConfigError("a server needs an address: --addr IP:PORT")
    return StreamServer(stream_maker(settings, server=True), settings.local, settings.limit, handler,
                        settings.waiting, shared is not None)


def _check_own_sockets(settings: Settings) -> None:
    if settings.hosting not in ("", INLINE):
        raise ConfigError(f"{settings.transport} over an untrusted host is what 'smtnet serve kv' has; leave out "
                          f"--nic-hosting {settings.hosting}")


def _end(settings: Settings) -> tuple[Address, SmtContext]:
    """What makes a packet transport's socket."""
    if settings.local is None or settings.interface is None:
        raise ConfigError(f"{settings.transport} needs --iface and --addr: it sends its own packets")
    session = settings.session
    context = SmtContext(settings.interface, settings.transport, settings.keys, settings.params,
                         NicConfig(tls_hw_tx_offload=settings.nic == "hw"), settings.waiting, certs=settings.certs,
                         session=session.mode, offer=session.offer(settings.limit),
                         key_update_records=session.key_update_records, dns=session.dns, keylog=session.keylog,
                         trace=settings.trace, overlay=settings.overlay, hosting=settings.hosting,
                         exit_ns=settings.exit_ns)
    return settings.local, context


def stream_maker(settings: Settings, server: bool) -> StreamMaker:
    """Connections of a stream transport. Raises :class:`ConfigError`, :class:`~smtstack.errors.Unsupported`."""
    _check_certs(settings)
    streams = TABLE[settings.transport].streams
    assert streams is not None
    return streams(settings, server)


def _ends(settings: Settings) -> Ends | None:
    """What makes the ends of a transport that has its own. Raises ConfigError, Unsupported."""
    ends = TABLE[settings.transport].ends
    if ends is not None:
        check(settings.transport)
        _check_certs(settings)
    return ends


def _check_certs(settings: Settings) -> None:
    if TABLE[settings.transport].certified and settings.certs is None:
        raise ConfigError(f"{settings.transport} needs --certs FOLDER: 'smtnet ca' makes one for each host")
