"""QUIC (RFC 9000), by aioquic, under the contract: an RPC is a bidirectional stream, a peer is a connection.

aioquic is Python as smtstack is, so beside it the transports are compared rather than the languages. It is an
extra (``pip install 'smtnet[quic]'``), and QUIC is in no list until it is asked for::

    SMTNET_TRANSPORTS=workloads.transports.quic smtnet bench wire

A client checks the server's certificate; aioquic has no way to ask a client for one. Nothing is resumed, and no
request is sent before the handshake is over.
"""

from __future__ import annotations

import select
import socket
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smtstack.errors import ConfigError, PeerError
from smtstack.io.processors import outnumbered
from smtstack.socket import Address, RpcError, RpcTimeout
from smtstack.waiting import Waiter, Waiting
from workloads.transports import tls
from workloads.transports.contract import Call, Caller, Handler, Server, Transport, rpc_to
from workloads.transports.epoll import address_error, wait
from workloads.transports.table import Look, Settings, TransportKind, register

try:
    from aioquic.buffer import Buffer  # type: ignore[attr-defined]
    from aioquic.quic import events
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.connection import QuicConnection
    from aioquic.quic.packet import QuicPacketType, pull_quic_header
    from aioquic.tls import CipherSuite
except ImportError:
    raise ImportError("quic needs aioquic: pip install 'smtnet[quic]'") from None

#: Seconds for a handshake.
CONNECT_S = 10.0
_ALPN = "smtnet-echo"
#: Payload of a UDP datagram in an IPv4 packet of 1500 bytes.
_DATAGRAM = 1500 - 20 - 8
#: The least that a client's first datagram has (RFC 9000 §14.1).
_FIRST_DATAGRAM = 1200
_CID_LEN = 8
#: Datagrams taken before what they bring is answered.
_BATCH = 64
_SOCKET_BUFFER = 4 << 20
_STREAM_ABORTED = 1


def configuration(certs: Path, limit: int, server_name: str | None) -> Any:
    """What a connection is like; with ``server_name`` a client's. Raises :class:`ConfigError`."""
    tls.check_folder(certs)
    # Streams hold messages whole: a window below that would be what is measured.
    window = max(2 * limit, 1 << 20)
    made = QuicConfiguration(alpn_protocols=[_ALPN], is_client=server_name is not None, max_data=16 * window,
                             max_stream_data=window, max_datagram_size=_DATAGRAM, server_name=server_name,
                             connection_id_length=_CID_LEN, idle_timeout=600.0,
                             cipher_suites=[CipherSuite.AES_128_GCM_SHA256])
    try:
        if server_name is None:
            made.load_cert_chain(certs / tls.CERTIFICATE, certs / tls.KEY)
        else:
            made.load_verify_locations(cafile=str(certs / tls.CA))
    except (OSError, ValueError) as e:
        raise ConfigError(f"--certs {certs}: {e}") from None
    return made


@dataclass(slots=True, eq=False)
class Link:
    """A connection and whom it leads to."""

    connection: Any
    peer: Address
    ready: bool = False
    """The handshake is over."""
    end: str = ""
    """Why it has ended; empty: it has not."""
    parts: dict[int, list[bytes]] = field(default_factory=dict)
    """What has come of streams that have not ended, by stream."""
    calls: dict[int, Call] = field(default_factory=dict)
    """A client's, by stream."""


class QuicEnd(Transport):
    """A UDP socket and its connections. What is to be sent leaves with the next drive or poll."""

    def __init__(self, local: Address, waiting: Waiting) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.bind(local)
        except OSError as e:
            self._socket.close()
            raise address_error(e, local) from None
        self._socket.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            self._socket.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)
        self._epoll = select.epoll()
        self._epoll.register(self._socket, select.EPOLLIN)
        self._waiter = Waiter(waiting, outnumbered)
        self._links: list[Link] = []
        self._changed: dict[Link, None] = {}
        self._counters: Counter[str] = Counter()

    def fileno(self) -> int:
        return self._epoll.fileno()

    def next_wake(self) -> int | None:
        if self._changed:
            return 0
        timers = [at for link in self._links if (at := link.connection.get_timer()) is not None]
        return int(min(timers) * 1e9) if timers else None

    def poll(self) -> None:
        self._send()
        self._receive()
        self._expire()
        self._send()

    def drive(self, timeout_s: float) -> None:
        self._send()
        wake = self.next_wake()
        if wake is not None:
            timeout_s = max(0.0, min(timeout_s, wake / 1e9 - time.monotonic()))
        wait(self._epoll, self._waiter, timeout_s)
        self.poll()

    def linger(self, timeout_s: float) -> None:
        """Until everything is acknowledged."""
        end = time.monotonic() + timeout_s
        while self._unacknowledged() and (left := end - time.monotonic()) > 0:
            self.drive(left)

    def _unacknowledged(self) -> bool:
        # A connection that waits for an acknowledgement has a timer long before it would be idle.
        idle = time.monotonic() + CONNECT_S
        return any((at := link.connection.get_timer()) is not None and at < idle for link in self._links)

    def counters(self) -> dict[str, int]:
        return {**self._counters, "connections": len(self._links)}

    def drops(self) -> tuple[int, int]:
        return 0, self._counters["socket_send_drops"]

    def close(self) -> None:
        for link in self._links:
            link.connection.close()
            self._changed[link] = None
        self._send()
        self._epoll.close()
        self._socket.close()

    def touch(self, link: Link) -> None:
        """The connection of ``link`` may have something to send."""
        self._changed[link] = None

    def _receive(self) -> None:
        for _datagram in range(_BATCH):
            try:
                data, peer = self._socket.recvfrom(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                continue  # ICMP's, of something sent before: the handshake's end tells.
            self._counters["datagrams_received"] += 1
            link = self._link_of(data, peer)
            if link is not None:
                link.connection.receive_datagram(data, peer, time.monotonic())
                self._changed[link] = None
                self._take_events(link)

    def _link_of(self, _data: bytes, peer: Address) -> Link | None:
        """Whose datagram that is."""
        return next((link for link in self._links if link.peer == peer), None)

    def _expire(self) -> None:
        now = time.monotonic()
        for link in list(self._links):
            at = link.connection.get_timer()
            if at is not None and at <= now:
                link.connection.handle_timer(now)
                self._changed[link] = None
                self._take_events(link)

    def _send(self) -> None:
        changed, self._changed = self._changed, {}
        for link in changed:
            for data, peer in link.connection.datagrams_to_send(time.monotonic()):
                self._counters["datagrams_sent"] += 1
                try:
                    self._socket.sendto(data, peer)
                except OSError:
                    self._counters["socket_send_drops"] += 1  # As if it were lost on the way: QUIC sends it again.

    def _take_events(self, link: Link) -> None:
        while (event := link.connection.next_event()) is not None:
            if isinstance(event, events.StreamDataReceived):
                parts = link.parts.setdefault(event.stream_id, [])
                parts.append(event.data)
                if event.end_stream:
                    del link.parts[event.stream_id]
                    self._message(link, event.stream_id, b"".join(parts))
            elif isinstance(event, events.HandshakeCompleted):
                link.ready = True
            elif isinstance(event, events.ConnectionTerminated):
                link.end = event.reason_phrase or f"the connection ended (code {event.error_code:#x})"
                if link in self._links:
                    self._links.remove(link)
                self._lost(link)
            elif isinstance(event, events.ConnectionIdIssued | events.ConnectionIdRetired):
                self._renamed(link, event)

    @abstractmethod
    def _message(self, link: Link, stream: int, data: bytes) -> None:
        """A stream has ended."""

    @abstractmethod
    def _lost(self, link: Link) -> None:
        """A connection has ended."""

    def _renamed(self, link: Link, event: Any) -> None:
        """A connection has an identifier more, or less."""


class QuicCaller(QuicEnd, Caller):
    """One connection to each peer, a stream to each call."""

    def __init__(self, settings: Settings, peers: Sequence[Address]) -> None:
        assert settings.certs is not None  # ``certified``
        Caller.__init__(self, peers)
        QuicEnd.__init__(self, (settings.local[0] if settings.local else "", 0), settings.waiting)
        self._settings = settings
        self._by_peer: list[Link] = []

    def prepare(self, concurrency: int) -> None:
        certs, limit = self._settings.certs, self._settings.limit
        assert certs is not None
        for peer in self.peers[len(self._by_peer):]:
            connection = QuicConnection(configuration=configuration(certs, limit, peer[0]))
            link = Link(connection, peer)
            connection.connect(peer, time.monotonic())
            self._links.append(link)
            self._by_peer.append(link)
            self.touch(link)
        end = time.monotonic() + CONNECT_S
        for link in self._by_peer:
            while not link.ready:
                left = end - time.monotonic()
                if link.end:
                    raise PeerError(f"{rpc_to(link.peer)}: handshake failed: {link.end}")
                if left <= 0:
                    raise PeerError(f"{rpc_to(link.peer)}: no connection within {CONNECT_S:.0f} s"
                                    "; is the server running?")
                self.drive(left)

    def begin(self, call: Call) -> None:
        link = self._by_peer[call.peer]
        if link.end:
            self.fail(call, RpcError(f"{rpc_to(link.peer)}: {link.end}"))
            return
        stream = call.number = link.connection.get_next_available_stream_id()
        call.handle = link
        link.calls[stream] = call
        link.connection.send_stream_data(stream, call.data, end_stream=True)
        self.touch(link)

    def abort(self, call: Call) -> None:
        link = call.handle
        if isinstance(link, Link) and link.calls.pop(call.number, None) is not None and not link.end:
            link.connection.stop_stream(call.number, _STREAM_ABORTED)
            self.touch(link)
        self.fail(call, RpcTimeout(f"{rpc_to(self.peers[call.peer])}: no answer in time"))

    def drive(self, timeout_s: float) -> None:
        if not self.finished:
            super().drive(timeout_s)

    def _message(self, link: Link, stream: int, data: bytes) -> None:
        call = link.calls.pop(stream, None)
        if call is not None:
            call.response = data
            call.ended = time.perf_counter_ns()
            self.finished.append(call)

    def _lost(self, link: Link) -> None:
        self._counters["connections_lost"] += 1
        for call in list(link.calls.values()):
            self.fail(call, RpcError(f"{rpc_to(link.peer)}: {link.end}"))
        link.calls.clear()


@dataclass(slots=True, eq=False)
class QuicRequest:
    """A stream that has ended, for the handler."""

    _server: QuicServer
    _link: Link
    _stream: int
    data: bytes

    @property
    def longest(self) -> int:
        """Bytes of the longest answer: both ends have the same limit."""
        return self._server.limit

    def reply(self, data: bytes) -> bool:
        """Answer; False if the client is gone."""
        if self._link.end:
            return False
        self._link.connection.send_stream_data(self._stream, data, end_stream=True)
        self._server.touch(self._link)
        return True


class QuicServer(QuicEnd, Server):
    """Takes connections at ``settings.local``; requests go to the handler."""

    def __init__(self, settings: Settings, handler: Handler) -> None:
        assert settings.certs is not None  # ``certified``
        if settings.local is None:
            raise ConfigError("a server needs an address: --addr IP:PORT")
        QuicEnd.__init__(self, settings.local, settings.waiting)
        self.limit = settings.limit
        self._handler = handler
        self._configuration = configuration(settings.certs, settings.limit, None)
        self._by_id: dict[bytes, Link] = {}

    def _link_of(self, data: bytes, peer: Address) -> Link | None:
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=_CID_LEN)
        except ValueError:
            self._counters["bad_datagrams"] += 1
            return None
        link = self._by_id.get(header.destination_cid)
        if link is not None:
            return link
        if (len(data) < _FIRST_DATAGRAM or header.packet_type != QuicPacketType.INITIAL
                or header.version not in self._configuration.supported_versions):
            self._counters["bad_datagrams"] += 1
            return None
        connection = QuicConnection(configuration=self._configuration,
                                    original_destination_connection_id=header.destination_cid)
        link = Link(connection, peer)
        self._links.append(link)
        self._by_id[header.destination_cid] = self._by_id[connection.host_cid] = link
        self._counters["connections_accepted"] += 1
        return link

    def _message(self, link: Link, stream: int, data: bytes) -> None:
        if len(data) > self.limit:
            self._counters["too_long"] += 1
            link.connection.reset_stream(stream, _STREAM_ABORTED)
            return
        self._handler(QuicRequest(self, link, stream, data))

    def _lost(self, link: Link) -> None:
        self._by_id = {name: other for name, other in self._by_id.items() if other is not link}
        if not link.ready:
            self._counters["handshakes_failed"] += 1
            self.last_failure = f"{link.peer[0]}:{link.peer[1]}: {link.end}"

    def _renamed(self, link: Link, event: Any) -> None:
        if isinstance(event, events.ConnectionIdIssued):
            self._by_id[event.connection_id] = link
        else:
            self._by_id.pop(event.connection_id, None)


register(TransportKind(name="quic", about="by aioquic, in Python", ends=(QuicCaller, QuicServer), encrypted=True,
                       certified=True, looks={"sw": Look("#7F7F7F", "*", ":")}, compared=frozenset({"wire"}),
                       beside="smt-sw"))
