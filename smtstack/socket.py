"""What applications use: blocking SMT sockets.

    >>> context = SmtContext("h1-eth0", certs=Path("certs/h1"))
    >>> with SmtSocket(("10.0.0.1", 40000), context) as sock:
    ...     reply = sock.request(("10.0.0.2", 2000), b"ping", timeout=1.0)

One socket is client and server at once, of any number of peers. It has no thread of its own: the protocol
moves while a call waits, so a server must sit in :meth:`SmtSocket.receive` and a client collect its futures.

Sessions of profile ``smt`` begin by a handshake with the first request to a peer, or earlier by
:meth:`SmtSocket.prepare`; or their keys come from a file that both hosts have. docs/sessions.md.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from smtstack.crypto.keys import KeyStore
from smtstack.errors import ConfigError, PeerError, SmtError, Unsupported
from smtstack.hostcalls.frames import CalledFrames, QueuedFrames
from smtstack.io import key_file, seccomp
from smtstack.io.frame_socket import FrameSocket
from smtstack.io.neighbours import Neighbours
from smtstack.io.packet_socket import PacketSocket, interface_mtu
from smtstack.io.processors import outnumbered
from smtstack.io.shared_port import SharedPort
from smtstack.io.trace_file import TraceFile
from smtstack.loop import PacketLoop
from smtstack.nic.device import NicConfig, SmartNic
from smtstack.nic.driver import Neighbours as NextHops
from smtstack.nic.impairments import Impairments
from smtstack.nicshare.state import Port
from smtstack.ringnic.client import has_ring, open_ring
from smtstack.ringnic.socket import RingSocket
from smtstack.ringnic.starter import ControlProcess
from smtstack.session.offer import Offer
from smtstack.transport import events
from smtstack.transport.params import TransportParams, software
from smtstack.transport.rpc import Rpc
from smtstack.transport.upstream_endpoint import make_endpoint
from smtstack.waiting import AS_HOMA, Waiter, Waiting
from smtstack.wire import overlay
from smtstack.wire.ipv4 import address, format_address

if TYPE_CHECKING:
    # Needs pyOpenSSL, which key files and profiles homa and linux do without.
    from smtstack.session.manager import SessionManager
    from smtstack.session.registry import SessionInfo
    from smtstack.session.resumption import PskStore
    from smtstack.session_io.host import SessionHost

Address = tuple[str, int]
#: How a socket's packets come and go.
INLINE, RING = "inline", "ring"
#: What stands beside a ring in figures: a guarded process each, whose frames go by calls of the host (each an
#: exit, or in a queue), or by a ring that believes the host.
EXIT, QUEUE, UNCHECKED = "exit", "queue", "ring-unchecked"
HOSTINGS = (INLINE, RING, EXIT, QUEUE, UNCHECKED)
#: How long a socket that closes waits for peers to confirm that their sessions are over, in seconds.
FAREWELL_S = 0.2


class RpcError(PeerError):
    """A request ended without a response. The server may have executed it, once at most."""


class RpcTimeout(RpcError):
    """The peer stopped answering, or the caller's own timeout passed."""


@dataclass(frozen=True, slots=True)
class SmtContext:
    """What sockets of one interface have in common."""

    interface: str
    profile: str = "smt"
    keys: str | None = None
    """A key file: profile ``smt`` then needs no handshake. For ``linux`` also ``demo``: keys everybody knows; or
    ``none``: the module's plain Homa, everything in clear."""
    params: TransportParams | None = None
    """Transport parameters; by default ``software(None)``, with the interface's MTU."""
    nic: NicConfig = field(default_factory=NicConfig)
    wait: Waiting = AS_HOMA
    """How to wait for frames: by default busy-waiting where that pays, then asleep (smtstack/waiting.py)."""
    shared_port: SharedPort | None = None
    """This process is one of several workers that share the port."""
    tx_impairments: Impairments | None = None
    rx_impairments: Impairments | None = None
    certs: Path | None = None
    """Profile ``smt``: folder of this host's credentials (``smtnet ca`` makes it), for sessions by handshake."""
    session: str = "mtls"
    """How they begin, and what is accepted besides TLS handshakes: a mode of ``session.established.MODES``."""
    offer: Offer | None = None
    """Parameters we would agree to; by default any cipher and the longest message of ``params``."""
    client_auth: bool = True
    """Clients must show a certificate, in every mode but ``tls``."""
    key_update_records: int = 0
    """Records after which new RPCs use the next key epoch. 0: half the AEAD's limit."""
    dns: tuple[str, int] | None = None
    """Ticket modes: the DNS server that has the tickets."""
    publish: bool = False
    """Ticket modes: this socket's own tickets go there. Needs ``tsig.key`` in ``certs``."""
    state: Path | None = None
    """Ticket and PSK modes: file of what a server must not forget, shared by processes; None: in memory."""
    psks: PskStore | Path | None = None
    """PSK modes: what sessions resume from, or a file for it; sockets may share one. None: this socket's own."""
    idle_s: float = 3600.0
    """A server closes sessions that carried nothing for so many seconds, as those of clients that are gone; who
    is not gone notices nothing. 0: never."""
    keylog: Path | None = None
    """Secrets of all sessions are appended there, for who may read captures; None: nowhere."""
    overlay: str = overlay.NONE
    """``tcp``: DATA of messages longer than a packet has the shape of TCP, so that the kernel's segmentation
    offload works on it (docs/protocol.md, "The overlay"); ``none``: never. Sessions by handshake have it if both
    ends want it; without handshakes both must say the same. Not in profile ``linux``."""
    hosting: str = ""
    """``ring``: packets go by memory shared with an untrusted host (docs/trust.md), ``inline``: by a socket of our
    own; empty: by what the interface's link has. ``exit``, ``queue``, ``ring-unchecked``: for comparison."""
    exit_ns: int = 0
    """Hosting ``exit``: what leaving an enclave is said to cost, beside the change of process, which is real."""
    trace: str | None = None
    """What the engine does and why is written there, in qlog: a new file, or a folder in which each socket makes
    one (docs/trace.md). No keys, no plaintext. None: nowhere."""

    @property
    def has_overlay(self) -> bool:
        """Whether we take DATA in the shape of TCP. Raises :class:`ConfigError` for a value that there is not."""
        if self.overlay not in overlay.OVERLAYS:
            raise ConfigError(f"unknown overlay {self.overlay!r}; there are {', '.join(overlay.OVERLAYS)}")
        return self.overlay == overlay.TCP

    @property
    def has_ring(self) -> bool:
        """Whether packets go by a ring. Raises :class:`ConfigError` for what cannot go that way."""
        if self.hosting and self.hosting not in HOSTINGS:
            raise ConfigError(f"unknown hosting {self.hosting!r}; there are {', '.join(HOSTINGS)}")
        if self.hosting == INLINE or (not self.hosting and not has_ring(self.interface)):
            return False
        refused = {
            "no profile upstream, whose packets are TCP's": self.profile == "upstream",
            "no TLS offload: the NIC is the host's, and is not to see plaintext: take --nic sw":
                self.nic.tls_hw_tx_offload,
            "no overlay tcp, as the ring takes packets, no segments": self.has_overlay,
            "one process at a port: leave out --workers": self.shared_port is not None,
            "no session mode that asks DNS, by sockets of the host's": self.dns is not None}
        for what, wrong in refused.items():
            if wrong:
                raise ConfigError(f"hosting=ring has {what}")
        return True

    def load_keys(self) -> KeyStore:
        """Where keys come from without a handshake. Raises :class:`ConfigError` for what would protect nothing."""
        if self.profile == "smt" and self.keys == "demo":
            raise ConfigError("profile smt takes no demo keys: everybody knows them; make a key file")
        if self.keys == key_file.IN_CLEAR and self.certs is not None:
            raise ConfigError("keys 'none' are in clear, and certs are for what is not: give one of them")
        if self.profile not in ("homa", "upstream") and self.keys is None:
            others = ("'demo' for the public ones ('none': in clear)" if self.profile == "linux"
                      else "certs, made by 'smtnet ca'")
            raise ConfigError(f"profile {self.profile} needs keys, a file made by 'smtnet keys', or {others}")
        # A process that starts over with the same keys and port must not start over with its ids.
        return key_file.load(self.keys or "", self.profile, key_file.fresh_first_id(time.time_ns()))

    def session_host(self, local: tuple[int, int], params: TransportParams) -> SessionHost | None:
        """Makes sessions by handshakes; None: keys are known beforehand.

        Raises :class:`ConfigError`, :class:`Unsupported`, and where DNS does not take tickets :class:`PeerError`.
        """
        if self.certs is None or self.profile != "smt":
            return None
        if self.keys is not None:
            raise ConfigError("certs and keys are two ways to get keys: give one of them")
        try:
            from smtstack.session_io.host import SessionHost, SessionOptions
        except ImportError as e:
            raise Unsupported(f"sessions by handshake need {e.name}: pip install 'smtnet[session]', or use a key "
                              "file") from None
        offer = self.offer or Offer(max_message=params.max_message_length)
        offer = replace(offer, overlay=self.has_overlay)
        options = SessionOptions(self.certs, self.session, offer, self.client_auth, self.key_update_records,
                                 self.dns, self.publish, self.state, self.keylog, self.psks, self.idle_s)
        return SessionHost(options, *local, params.mtu, self.shared_port)


class RpcFuture:
    """A request under way."""

    __slots__ = ("_response", "_socket", "error", "rpc")

    def __init__(self, socket: SmtSocket, rpc: Rpc) -> None:
        self._socket = socket
        self.rpc = rpc
        self._response: bytes | None = None
        self.error: RpcError | None = None

    def done(self) -> bool:
        """Whether :meth:`result` returns at once."""
        return self._response is not None or self.error is not None

    def settle(self, event: events.Response | events.Failed) -> None:
        """Take the event that ends the RPC."""
        if isinstance(event, events.Response):
            self._response = event.data
        else:
            peer = event.rpc.peer
            text = f"RPC to {peer}: {self._socket.failure_text(event)}"
            self.error = RpcTimeout(text) if event.reason is events.Reason.TIMEOUT else RpcError(text)

    def result(self, timeout: float | None = None) -> bytes:
        """The response. Raises :class:`RpcError`; after ``timeout`` seconds it aborts with :class:`RpcTimeout`."""
        self._socket.drive(self.done, timeout)
        if not self.done():
            self._socket.abort(self)
            self.error = RpcTimeout(f"RPC to {self.rpc.peer}: no response within {timeout} s"
                                    f"{self._socket.mtu_hint()}")
        if self.error is not None:
            raise self.error
        assert self._response is not None
        return self._response


class IncomingRequest:
    """A request to answer with :meth:`reply`, now or later, in any order."""

    __slots__ = ("_rpc", "_socket", "data", "peer_name")

    def __init__(self, socket: SmtSocket, rpc: Rpc, data: bytes, peer_name: str = "") -> None:
        self._socket = socket
        self._rpc = rpc
        self.data = data
        #: Whom the asker's certificate names; "": it showed none, or keys come from a file.
        self.peer_name = peer_name

    @property
    def peer(self) -> Address:
        """Who asks."""
        return format_address(self._rpc.peer.host.ip), self._rpc.peer.port

    def reply(self, data: bytes) -> bool:
        """Answer; False if the client gave up meanwhile."""
        return self._socket.answer(self._rpc, data)


class SmtSocket:
    """A message socket on ``(address, port)`` of ``context.interface``. Needs root (CAP_NET_RAW)."""

    def __init__(self, local: Address, context: SmtContext) -> None:
        try:
            ip = address(local[0])
        except ValueError as e:
            raise ConfigError(str(e)) from None
        self.context = context
        mtu = interface_mtu(context.interface)
        params = context.params or replace(software(None, context.has_overlay), mtu=min(mtu, 65535))
        if params.mtu > mtu:
            raise ConfigError(f"mtu {params.mtu} is more than the {mtu} of {context.interface}")
        with ExitStack() as undo:
            #: Makes our sessions; None: from keys that are known.
            self.sessions = context.session_host((ip, local[1]), params)
            if self.sessions is not None:
                undo.callback(self.sessions.close)
            keys = self.sessions.manager if self.sessions is not None else context.load_keys()
            self.endpoint = make_endpoint(ip, local[1], context.profile, keys, params, overlay=context.has_overlay)
            self._trace: TraceFile | None = None
            if context.trace is not None:
                self._trace = TraceFile(context.trace, ip, local[1], context.profile)
                undo.callback(self._trace.close)
                self.endpoint.trace_to(self._trace, time.monotonic_ns)
            #: The control process of the ring, if it is ours.
            self._ring_control: ControlProcess | None = None
            by_ring = self._by_ring = context.has_ring
            socket, neighbours = self._open_guarded(ip, local[1]) if by_ring else self._open_packets(ip, local[1])
            undo.callback(socket.close)
            port = Port.attach(context.interface, ip, local[1], self.endpoint.protocol, context.profile)
            if port is not None:
                undo.callback(port.detach)
            # Behind a ring the NIC is the host's.
            config = replace(context.nic, trusted=context.nic.trusted and not by_ring)
            nic = SmartNic(port.configure(config) if port is not None else config)
            nic.super_frames = context.has_overlay
            self.loop = PacketLoop(self.endpoint, nic, socket, neighbours, Waiter(context.wait, outnumbered),
                                   context.tx_impairments, context.rx_impairments, port, self.sessions,
                                   socket.clock if isinstance(socket, RingSocket) else None)
            undo.pop_all()
        self._requests: deque[IncomingRequest] = deque()
        self._closed = False

    def _open_packets(self, ip: int, port: int) -> tuple[FrameSocket, NextHops]:
        context, endpoint = self.context, self.endpoint
        socket = PacketSocket(context.interface, ip, port, endpoint.protocol, endpoint.params.mtu,
                              context.shared_port, context.has_overlay, endpoint.profile.fmt.tcp_shaped)
        return socket, Neighbours(context.interface)

    def _open_guarded(self, ip: int, port: int) -> tuple[FrameSocket, NextHops]:
        context, endpoint = self.context, self.endpoint
        if context.hosting not in (EXIT, QUEUE):
            return self._open_ring(ip, port)
        calls = CalledFrames if context.hosting == EXIT else QueuedFrames
        frames = calls(context.interface, ip, port, endpoint.protocol, endpoint.params.mtu, context.exit_ns)
        return frames, frames.neighbour

    def _open_ring(self, ip: int, port: int) -> tuple[FrameSocket, NextHops]:
        interface = self.context.interface
        if not has_ring(interface):
            self._ring_control = ControlProcess(interface)
            self._ring_control.wait()
        try:
            socket = open_ring(interface, ip, port, self.endpoint.protocol, self.context.hosting != UNCHECKED)
        except BaseException:
            if self._ring_control is not None:
                self._ring_control.stop()
            raise
        return socket, socket.neighbour

    def guard(self, kill: bool = False) -> None:
        """From now on this process, if its packets go by a ring, is a guarded one: it can make no network system
        call, and open no other socket (:mod:`smtstack.io.seccomp`, also for ``kill``). Else nothing happens."""
        if self._by_ring:
            seccomp.guard(kill)

    # -- client ------------------------------------------------------------------------------------------

    def send_request(self, peer: Address, data: bytes) -> RpcFuture:
        """Begin an RPC; any number may be under way. Raises LocalError, ConfigError (no key)."""
        rpc = self.endpoint.send_request(address(peer[0]), peer[1], data, self.loop.clock())
        future = RpcFuture(self, rpc)
        rpc.cookie = future
        self.loop.flush()
        return future

    def request(self, peer: Address, data: bytes, timeout: float | None = None) -> bytes:
        """Send and wait for the response: :meth:`send_request` and :meth:`RpcFuture.result`."""
        return self.send_request(peer, data).result(timeout)

    def failure_text(self, event: events.Failed) -> str:
        """Why an RPC failed, for people."""
        text = f"{event.reason.value}: {event.detail}" if event.detail else event.reason.value
        # Who gives up before the transport would learns what came all the same, and no guess.
        seen = (event.reason is events.Reason.ABORTED
                and (self.endpoint.counters.overlay_unexpected or self.loop.socket.too_long()[0]))
        return text + self.mtu_hint() if event.reason is events.Reason.TIMEOUT or seen else text

    def mtu_hint(self) -> str:
        """What may be wrong of MTU and overlay where a peer does not answer; "": the session agreed on these, or
        they need not be the same."""
        if self.sessions is not None or self.context.profile == "upstream":
            return ""
        counters = self.endpoint.counters
        if counters.overlay_unexpected:
            return ": packets in the shape of TCP came, and here is no overlay: both ends need the same --overlay"
        if self.context.has_overlay and not counters.overlay_received:
            return (" (longer messages have the shape of TCP, and none came in it: do both ends have the same "
                    "--overlay and MTU?)")
        # Interfaces drop packets that are too long without a word to anybody; few let a little more pass.
        mtu = self.endpoint.params.mtu
        count, longest = self.loop.socket.too_long()
        if count:
            return f": packets of up to {longest} bytes came, and the MTU here is {mtu}: both ends need the same"
        return f" (do both ends have the same MTU? here: {mtu})"

    def abort(self, future: RpcFuture) -> None:
        """Give up a request; it never executes twice, and may have executed once."""
        self.endpoint.abort(future.rpc)
        self._dispatch()

    # -- server ------------------------------------------------------------------------------------------

    def receive(self, timeout: float | None = None) -> IncomingRequest | None:
        """The next request; None after ``timeout`` seconds."""
        if not self._requests:
            self.drive(lambda: bool(self._requests), timeout)
        return self._requests.popleft() if self._requests else None

    def answer(self, rpc: Rpc, data: bytes) -> bool:
        """What :meth:`IncomingRequest.reply` does."""
        sent = self.endpoint.send_reply(rpc, data, self.loop.clock())
        self.loop.flush()
        return sent

    # -- sessions ----------------------------------------------------------------------------------------

    def prepare(self, peers: Iterable[Address], timeout: float | None = None) -> None:
        """Have sessions with these peers ready. Raises :class:`PeerError` with the reason if one is not."""
        wanted = list(peers)
        self.begin_sessions(wanted)
        self.drive(lambda: not self.beginning(wanted), timeout)
        # A server whose handshake we refuse is to know why.
        self.loop.flush()
        self.check_sessions(wanted, timeout)

    def begin_sessions(self, peers: Sequence[Address]) -> None:
        """Begin sessions with these peers where there are none; :meth:`beginning` says when that is over."""
        if self.sessions is not None:
            now = self.loop.clock()
            for ip, port in peers:
                self.sessions.manager.begin(address(ip), port, now)
            self.loop.flush()

    def beginning(self, peers: Sequence[Address]) -> bool:
        """Whether sessions with any of these peers are being made by us."""
        sessions = self.sessions
        return sessions is not None and any(sessions.manager.begins(address(ip), port) for ip, port in peers)

    def check_sessions(self, peers: Sequence[Address], timeout: float | None) -> None:
        """Raises :class:`PeerError` if there is no session with one of these peers after ``timeout`` seconds."""
        if self.sessions is None:
            return
        manager = self.sessions.manager
        for ip, port in peers:
            if manager.info(address(ip), port) is None:
                why = manager.failure(address(ip), port) or f"it takes longer than {timeout} s"
                raise PeerError(f"no session with {ip}:{port}: {why}")

    def session_of(self, peer: Address) -> SessionInfo | None:
        """The session with a peer; None: there is none yet, or keys come from a file."""
        return None if self.sessions is None else self.sessions.manager.info(address(peer[0]), peer[1])

    def end_session(self, peer: Address) -> bool:
        """Close the session with a peer; False: there is none. The next request begins another."""
        if self.sessions is None:
            return False
        ended = self.sessions.manager.close(address(peer[0]), peer[1], self.loop.clock())
        self.loop.flush()
        self._dispatch()
        return ended

    @property
    def last_failure(self) -> str:
        """Why a session was not made the last time, and with whom; "": never."""
        return "" if self.sessions is None else self.sessions.last_failure

    # -- both --------------------------------------------------------------------------------------------

    def drive(self, done: Callable[[], bool], timeout: float | None = None) -> None:
        """Move the protocol until ``done()`` or ``timeout`` seconds have passed."""
        deadline = None if timeout is None else self.loop.clock() + int(timeout * 1e9)
        step = self.loop.step
        while not done():
            step(deadline)
            self._dispatch()
            if deadline is not None and self.loop.clock() >= deadline:
                break
        if self.endpoint.grants_due():
            self.loop.flush()

    def poll(self) -> bool:
        """Move the protocol without waiting: for event loops. Whether there was anything to do."""
        busy = self.loop.step(0)
        self._dispatch()
        self.loop.flush()
        return busy

    def _dispatch(self) -> None:
        next_event = self.endpoint.next_event
        while (event := next_event()) is not None:
            if isinstance(event, events.Request):
                self._requests.append(IncomingRequest(self, event.rpc, event.data, self._name_of(event.rpc)))
            elif isinstance(event.rpc.cookie, RpcFuture):
                event.rpc.cookie.settle(event)

    def _name_of(self, rpc: Rpc) -> str:
        """Now, and not when the application asks: the session may be over by then."""
        if self.sessions is None:
            return ""
        return self.sessions.manager.peer_name(rpc.peer.host.ip, rpc.peer.port)

    def fileno(self) -> int:
        """For event loops: readable when frames wait."""
        return self.loop.socket.fileno()

    def counters(self) -> dict[str, int]:
        """Endpoint's, NIC's and socket's counters in one."""
        return self.loop.counters()

    def linger(self, timeout: float = 1.0) -> None:
        """Serve retransmissions and acknowledgements until no RPC is left, at most ``timeout`` seconds."""
        self.drive(lambda: not self.endpoint.snapshot()["rpcs"], timeout)

    def close(self, farewell: bool = True) -> None:
        """Close. Peers in mid-RPC time out, or with ``farewell`` fail: :meth:`linger` first to be kind.

        ``farewell``: tell peers that their sessions are over, which takes ``FAREWELL_S`` if they are gone; and in
        profile ``upstream`` acknowledge the last answers. Without, they find out by a request that times out.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if farewell:
                self._acknowledge()
            if self.sessions is not None and farewell:
                self._say_farewell(self.sessions.manager)
        finally:
            try:
                self.loop.close()
            finally:
                if self._ring_control is not None:
                    self._ring_control.stop()
                if self.sessions is not None:
                    self.sessions.close()
                if self._trace is not None:
                    self._trace.close()

    def _acknowledge(self) -> None:
        # Nothing here is worth an error, as below.
        with suppress(SmtError):
            self.endpoint.acknowledge()
            self.loop.flush()

    def _say_farewell(self, manager: SessionManager) -> None:
        # Whatever is wrong with the interface by now is not worth an error.
        with suppress(SmtError):
            manager.close_all(self.loop.clock())
            self.loop.flush()
            self.drive(lambda: not manager.closing(), FAREWELL_S)

    def __enter__(self) -> SmtSocket:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
