"""An endpoint: one address and port, client and server at once. The transport's only entrance.

Sans-IO. Call :meth:`Endpoint.handle_packet` for every frame the NIC delivers and
:meth:`Endpoint.handle_timeout` when :meth:`Endpoint.next_timeout` says; after these, and after
``send_request``, ``send_reply`` or ``abort``, take events with :meth:`Endpoint.next_event` until it returns
None, and segments with :meth:`Endpoint.drain`. :class:`smtstack.stack.Stack` does that for an endpoint with a NIC.

Sessions come from the key store at once, or, where that is a
:class:`~smtstack.transport.negotiation.Negotiator`, by handshakes: requests wait meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from smtstack.crypto.epochs import Session
from smtstack.crypto.keys import KeyStore
from smtstack.errors import AuthError, BadPacket, ConfigError, LocalError
from smtstack.transport import states
from smtstack.transport.control import ControlPackets
from smtstack.transport.counters import Counters
from smtstack.transport.events import Event, Failed, Reason, Request, Response
from smtstack.transport.negotiation import Negotiator
from smtstack.transport.outbox import Outbox
from smtstack.transport.params import MAX_MTU, TransportParams
from smtstack.transport.profile import Profile, make_profile
from smtstack.transport.recovery import Recovery
from smtstack.transport.rpc import Host, Peer, Rpc
from smtstack.transport.segment import Segment
from smtstack.transport.session_changes import SessionChanges
from smtstack.transport.states import DEAD, IN_SERVICE, INCOMING, WAITING
from smtstack.transport.table import RpcTable
from smtstack.transport.trace import Trace, TraceSink
from smtstack.wire import frame as wire_frame
from smtstack.wire import homa
from smtstack.wire.ethernet import ETHERTYPE_IPV4
from smtstack.wire.ipv4 import FRAGMENT_MASK, PROTO_TCP, VERSION_IHL
from smtstack.wire.naming import peer_key

#: Clients' ports start here, servers' are below (Homa's HOMA_MIN_DEFAULT_PORT).
FIRST_CLIENT_PORT: Final = 0x8000

_unpack_data: Final = wire_frame.DATA_FRAME.unpack_from
_unpack_common: Final = wire_frame.COMMON_FRAME.unpack_from
_DATA: Final = homa.DATA
_PLACED: Final = homa.PLACED
_INCAST: Final = homa.INCAST
_HANDSHAKE: Final = homa.HANDSHAKE
_MIN_LEN: Final = wire_frame.MIN_LEN
_FLAGS_AT: Final = wire_frame.FLAGS_AT
_TYPE_AT: Final = wire_frame.TYPE_AT
_TCP_HEADER_AT: Final = wire_frame.TCP_HEADER_AT
_PAYLOAD_AT: Final = wire_frame.PAYLOAD_AT
_SIZE_AT: Final = wire_frame.SIZE_AT
_OVERLAY: Final = homa.OVERLAY_HEADER_LENGTH
_IP_OFFSET: Final = wire_frame.IP_OFFSET
_TRANSPORT_OFFSET: Final = wire_frame.TRANSPORT_OFFSET
_DATA_IP_LEN: Final = _PAYLOAD_AT - _IP_OFFSET


class Endpoint:
    """One Homa or SMT socket.

    ``ip`` is a 32-bit integer, ``profile`` one of smt, homa and linux; all four are made by
    :func:`~smtstack.transport.upstream_endpoint.make_endpoint`. ``keys`` makes the sessions. ``overlay``:
    DATA of messages longer than a packet has the shape of TCP, where the peer agreed, or nobody negotiates.
    Requests of any size from 1 byte to ``params.max_message_length`` go to any peer ``keys`` knows.
    """

    __slots__ = ("_changes", "_control", "_cutoff_version", "_events", "_extended", "_failed", "_grants",
                 "_handshake", "_held", "_key_timers", "_max_length", "_negotiator", "_outbox", "_overlay",
                 "_protocol", "_recovery", "_table", "_tick_ns", "_trace", "counters", "ip", "params", "port",
                 "profile")

    def __init__(self, ip: int, port: int, profile: str, keys: KeyStore,
                 params: TransportParams | None = None, protocol: int | None = None,
                 overlay: bool = False) -> None:
        if not 0 < port <= 0xFFFF:
            raise ConfigError(f"port {port} is not within 1 to 65535")
        self.ip = ip
        self.port = port
        self.params = params or TransportParams()
        self.profile: Profile[Any] = self._make_profile(profile, keys)
        self.counters = Counters()
        #: IP protocol number on the wire; the profile's unless set.
        self._protocol = self.profile.fmt.protocol if protocol is None else protocol
        self._extended = self.profile.fmt.extended
        self._overlay = overlay
        if overlay and not self._extended:
            raise ConfigError(f"overlay tcp: profile {profile} sends what the kernel module sends, which has none")
        self._tick_ns = self.params.tick_ns
        self._cutoff_version = self.params.cutoff_version
        #: The flag that says handshake, where there are flags.
        self._handshake = _HANDSHAKE if self._extended else 0
        self._max_length = self.params.max_wire_length
        self._table = self._make_table(keys)
        self._grants = self._table.grants
        self._outbox = self._make_outbox()
        self._events: deque[Event] = deque()
        self._failed: list[Failed] = []
        self._recovery = self._make_recovery()
        self._control = self._make_control()
        self._changes = SessionChanges(self.profile, self._table, self._outbox, self.counters, self._events)
        self._held = self._changes.held
        self._key_timers = self._table.key_timers
        #: Who is told what happens; None, as nearly always: nobody.
        self._trace: Trace | None = None
        self._negotiator = keys if isinstance(keys, Negotiator) else None
        if self._negotiator is not None:
            self._negotiator.attach(self)

    # What another dialect of Homa has others of.

    def _make_profile(self, name: str, keys: KeyStore) -> Profile[Any]:
        return make_profile(name, self.params, keys.makes)

    def _make_table(self, keys: KeyStore) -> RpcTable:
        return RpcTable(self.ip, self.port, self.profile, keys, self.counters,
                        self._overlay and not isinstance(keys, Negotiator))

    def _make_outbox(self) -> Outbox:
        return Outbox(self.port, self.profile.fmt, self.params, self.counters)

    def _make_recovery(self) -> Recovery:
        return Recovery(self.port, self.params, self._table, self._outbox, self.counters, self._failed)

    def _make_control(self) -> ControlPackets:
        return ControlPackets(self.port, self.profile, self._table, self._outbox, self._recovery, self.counters)

    @property
    def protocol(self) -> int:
        """IP protocol number of what this endpoint sends and takes."""
        return self._protocol

    def trace_to(self, sink: TraceSink | None, clock: Callable[[], int] | None = None) -> None:
        """From now on ``sink`` is told what happens and why (None: nobody). RPCs under way are not told anew.

        ``clock`` gives the time of events, in the nanoseconds of ``now``; None: as it was told last.
        """
        trace = None if sink is None else Trace(sink, self.profile.fmt, clock)
        self._trace = trace
        for part in (self._outbox, self._table, self._recovery, self._control, self._changes):
            part.trace = trace

    @property
    def trace(self) -> Trace | None:
        """What a driver of this endpoint tells of it: a full ring."""
        return self._trace

    # -- the application's side --------------------------------------------------------------------------

    def send_request(self, ip: int, port: int, data: bytes, now: int, cookie: object = None) -> Rpc:
        """Begin an RPC; a Response or Failed event with this RPC ends it.

        Raises :class:`LocalError` for an empty or too long message, or where this session's requests are to come
        from elsewhere; :class:`ConfigError` if no key is known for the peer. While a handshake makes the session,
        the RPC waits, with nothing sealed or sent.
        """
        table = self._table
        # peer_key(), without the call.
        peer = table.peers.get(ip << 16 | port)
        if peer is None or not peer.proven or peer.session.anonymous:
            if self._negotiator is None:
                peer = table.call(ip, port)
            else:
                pending = table.pending.get(peer_key(ip, port))
                if pending is None or not pending.peer.early:
                    return self._wait(ip, port, data, cookie, now)
                peer = pending.peer
        if not 0 < len(data) <= peer.max_message:
            raise peer.bad_length(len(data))
        tick = now // self._tick_ns
        rpc = table.client_rpc(peer, tick)
        rpc.cookie = cookie
        try:
            rpc.out = self.profile.outgoing(rpc, rpc.peer.session, data)
        except LocalError:
            if self._trace is not None:
                self._trace.now = now
            table.free(rpc, "its message cannot be made")
            raise
        self.counters.requests_sent += 1
        table.timers.arm(rpc, tick + self.params.resend_ticks)
        if self._trace is not None:
            self._trace.now = now
            self._trace.queued(rpc, rpc.out)
        self._outbox.queue(rpc)
        return rpc

    def send_reply(self, rpc: Rpc, data: bytes, now: int) -> bool:
        """Answer a Request; False if its client has given up. Raises :class:`LocalError` for misuse."""
        if not 0 < len(data) <= rpc.peer.max_message:
            raise rpc.peer.bad_length(len(data))
        if rpc.state is DEAD:
            return False
        out = self.profile.outgoing(rpc, rpc.peer.session, data)
        rpc.move(states.REPLY)
        rpc.out = out
        self.counters.responses_sent += 1
        tick = now // self._tick_ns
        rpc.heard_tick = tick
        rpc.resends = 0
        self._table.timers.arm(rpc, tick + self.params.request_ack_ticks)
        if self._trace is not None:
            self._trace.now = now
            self._trace.queued(rpc, out)
        self._outbox.queue(rpc)
        return True

    def abort(self, rpc: Rpc) -> None:
        """End an RPC now: at a client with a Failed event, at a server silently."""
        if rpc.state is DEAD:
            return
        if rpc.is_client and rpc.state is not WAITING:
            self._control.finished(rpc)
        self._table.free(rpc, "aborted")
        if rpc.is_client:
            self.counters.failed += 1
            self._events.append(Failed(rpc, Reason.ABORTED))

    def acknowledge(self) -> None:
        """Before the endpoint goes: tell servers what was answered, where they would ask for ever."""
        self._control.acknowledge()

    def next_event(self) -> Event | None:
        """The next thing the application should know."""
        if not self._events:
            return None
        event = self._events.popleft()
        if self._trace is not None and isinstance(event, Failed):
            self._trace.failed(event.rpc, f"{event.reason.value}: {event.detail}" if event.detail else
                               event.reason.value)
        return event

    def _wait(self, ip: int, port: int, data: bytes, cookie: object, now: int) -> Rpc:
        assert self._negotiator is not None
        if not 0 < len(data) <= self.params.max_message_length:
            raise LocalError(f"a message of {len(data)} bytes; 1 to {self.params.max_message_length} "
                             "(max_message_length) are possible")
        rpc, first = self._changes.wait(ip, port, data, cookie)
        if self._trace is not None:
            self._trace.now = now
            self._trace.waiting(rpc, len(data))
        if first:
            self._negotiator.want(ip, port, now)
        return rpc

    # -- the negotiator's side ---------------------------------------------------------------------------

    def install(self, ip: int, port: int, session: Session, now: int, *, max_message: int,
                mtu: int = MAX_MTU, overlay: bool = False, early: bool = False) -> None:
        """There is a session with this peer: RPCs that wait begin, and what came too early is taken.

        ``early``: we can seal under it, but not open yet: what arrives is held until this is called again with the
        same session. A session that the peer had before is over, with all its RPCs. ``max_message`` is the
        longest message either side may send under it, in bytes, ``mtu`` the longest IP packet (ours, if less),
        ``overlay`` whether both take DATA in the shape of TCP.
        """
        if self._trace is not None:
            self._trace.now = now
        self._changes.install(ip, port, session, max_message, mtu, overlay and self._overlay, early,
                              now // self._tick_ns)
        if not early:
            for frame in self._held.take(peer_key(ip, port)):
                self.counters.packets_received -= 1
                self.handle_packet(frame, now)

    def refuse(self, ip: int, port: int, detail: str, now: int) -> None:
        """There will be no session with this peer, and ``detail`` says why: RPCs that wait for it fail."""
        if self._trace is not None:
            self._trace.now = now
        self._changes.refuse(peer_key(ip, port), detail)

    def end_session(self, ip: int, port: int, detail: str, now: int) -> None:
        """The session with this peer is over; its RPCs fail. Nothing of it is left."""
        if self._trace is not None:
            self._trace.now = now
        self._changes.end(peer_key(ip, port), detail)

    def limit_mtu(self, ip: int, port: int, mtu: int) -> None:
        """From now on messages to this peer go in IP packets of at most ``mtu`` bytes. ConfigError: no key."""
        self._table.call(ip, port).mtu = min(mtu, self.params.mtu)

    # -- the network's side ------------------------------------------------------------------------------

    def poll_transmit(self, now: int) -> Segment | None:
        """The next segment for the NIC driver, or None. For who touches each; :meth:`drain` is for all others."""
        negotiator = self._negotiator
        if negotiator is not None:
            # Before all else: what we seal under a session must not overtake the hello that begins it.
            segment = negotiator.poll_transmit(now)
            if segment is not None:
                if self._trace is not None:
                    self._trace.now = now
                    self._trace.sent(segment)
                return segment
        if self._trace is not None:
            self._trace.now = now
        if self._grants.dirty:
            self._send_grants()
        return self._outbox.poll(now)

    def drain(self, now: int) -> list[Segment]:
        """All segments for the NIC driver that may go now, in their order: what :meth:`poll_transmit` gives."""
        out: list[Segment] = []
        trace = self._trace
        if trace is not None:
            trace.now = now
        negotiator = self._negotiator
        if negotiator is not None:
            while (segment := negotiator.poll_transmit(now)) is not None:
                if trace is not None:
                    trace.sent(segment)
                out.append(segment)
        if self._grants.dirty:
            self._send_grants()
        self._outbox.drain(now, out)
        return out

    def grants_due(self) -> bool:
        """Whether peers may be waiting for a GRANT that :meth:`drain` would yield."""
        return self._grants.dirty

    def next_timeout(self) -> int | None:
        """When to call :meth:`handle_timeout` (and poll) at the latest; None: nothing is pending, 0: poll."""
        if self._grants.dirty:
            return 0
        wake = self._outbox.wake_at()
        if self._negotiator is not None:
            wake = _earlier(wake, self._negotiator.next_timeout())
        tick = self._table.timers.next_tick()
        if self._key_timers.heap:
            tick = _earlier(tick, self._key_timers.next_tick())
        if self._held.frames:
            tick = _earlier(tick, self._held.next_tick())
        if tick is None:
            return wake
        at = tick * self._tick_ns
        return at if wake is None or at < wake else wake

    def handle_timeout(self, now: int) -> None:
        """Let timers act that are due at ``now``."""
        if self._trace is not None:
            self._trace.now = now
        tick = now // self._tick_ns
        for rpc in self._table.timers.due(tick):
            if rpc.state is not DEAD:
                self._recovery.check(rpc, tick)
        if self._key_timers.heap:
            self._key_timers.expire(tick)
        if self._held.frames:
            self._held.expire(tick)
        if self._failed:
            self._report(now)
        if self._negotiator is not None:
            self._negotiator.handle_timeout(now)

    def _report(self, now: int) -> None:
        """RPCs of ours timed out. Peers that answer no others, either, may have forgotten their sessions."""
        failed = list(self._failed)
        self._failed.clear()
        self._events.extend(failed)
        if self._negotiator is not None:
            # Answered nothing since the RPC began, or for as long as it takes to be gone.
            gone = now // self._tick_ns - self.params.silence_ticks
            for peer in {e.rpc.peer: None for e in failed
                         if e.rpc.peer.heard_tick <= max(e.rpc.heard_tick, gone)}:
                if self._changes.is_current(peer):
                    self._negotiator.lost(peer.host.ip, peer.port, now)

    def handle_packet(self, frame: bytes, now: int) -> None:
        """Take one Ethernet frame. Whatever it holds, it is at worst counted and dropped."""
        counters = self.counters
        counters.packets_received += 1
        size = len(frame)
        if size < _MIN_LEN:
            counters.bad_packets += 1
            return
        if frame[_TYPE_AT] != _DATA or size <= _PAYLOAD_AT:
            self._handle_control(frame, now)
            return
        (ethertype, vihl, _tos, total, ip_id, fragment, protocol, src, dst, sport, dport, packet_offset,
         segment_size, epoch, flags, high, low, sender_id, length, incoming, version, _retransmit,
         index) = _unpack_data(frame)
        if (ethertype != ETHERTYPE_IPV4 or vihl != VERSION_IHL or fragment & FRAGMENT_MASK
                or not _DATA_IP_LEN < total <= size - _IP_OFFSET or length == 0 or length > self._max_length):
            counters.bad_packets += 1
            return
        if ((protocol != self._protocol and not self._has_overlay(frame, protocol, src, sport))
                or dport != self.port or dst != self.ip):
            counters.wrong_address += 1
            return
        if self._trace is not None:
            self._trace.now = now
            self._trace.received(frame)
        if flags & self._handshake:
            self._to_negotiator(frame, now)
            return
        # peer_key(), without the call.
        peer = self._table.peers.get(src << 16 | sport) or self._stranger(frame, src, sport, now)
        if peer is None:
            return
        counters.data_received += 1
        tick = now // self._tick_ns
        if not self._extended:
            segment_size = epoch = flags = 0
        if version != self._cutoff_version:
            self._tell_cutoffs(peer, sender_id ^ 1, epoch, tick)
        payload = frame[_PAYLOAD_AT:_IP_OFFSET + total]
        # rpc_key(), without the call.
        key = sender_id ^ 1 | epoch << 64
        rpc = peer.rpcs.get(key)
        # Data.index_in_segment() and offset_in_segment(), without the calls.
        index = (index + ip_id) & 0xFFFF
        inside = packet_offset if flags & _PLACED else index * segment_size
        # A message in one packet skips reassembly; most messages are.
        whole = len(payload) == length and inside + high + low == 0
        if rpc is None:
            rpc = self._new_request(peer, key, sender_id, epoch, flags, length, payload if whole else None, tick)
            if rpc is None:
                return
        elif not rpc.is_client and rpc.state is not INCOMING:
            counters.data_redundant += 1
            peer.host.heard_tick = tick
            return
        elif rpc.is_client and whole and rpc.inm is None:
            try:
                data = self.profile.open_whole(peer.session, rpc.keys, sender_id, length, payload)
            except AuthError:
                counters.records_failed += 1
                return
            if data is not None:
                self._finish_response(rpc, data, tick)
                return
        self._receive(rpc, high << 16 | low, index, inside, length, incoming, payload, tick)

    def _has_overlay(self, frame: bytes, protocol: int, src: int, sport: int) -> bool:
        """Whether DATA under another protocol number is in the shape of TCP, and its sender may send us that."""
        flags = frame[_FLAGS_AT]
        if (protocol != PROTO_TCP or frame[_TCP_HEADER_AT] != _OVERLAY or not self._extended or not flags & _PLACED
                or flags & _HANDSHAKE):
            return False
        peer = self._table.peers.get(peer_key(src, sport))
        if not self._overlay or (peer is not None and not peer.overlay):
            self.counters.overlay_unexpected += 1
            return False
        self.counters.overlay_received += 1
        if len(frame) - _PAYLOAD_AT > int.from_bytes(frame[_SIZE_AT:_SIZE_AT + 2], "big"):
            self.counters.data_merged += 1
        return True

    def _new_request(self, peer: Peer, key: int, sender_id: int, epoch: int, flags: int, length: int,
                     whole: bytes | None, tick: int) -> Rpc | None:
        """State for a request that begins; None if it was refused, or is complete and delivered."""
        counters = self.counters
        session = peer.session
        if sender_id & 1 or sender_id >= session.id_limit:
            counters.stray += 1
            return None
        keys = session.request_keys(epoch)
        if keys is None:
            counters.key_unknown += 1
            return None
        if keys.guard.is_replay(sender_id):
            counters.replays += 1
            return None
        if length > peer.max_wire:
            counters.too_long += 1
            return None
        data = None
        if whole is not None:
            try:
                data = self.profile.open_whole(session, keys, sender_id, length, whole)
            except AuthError:
                counters.records_failed += 1
                return None
        rpc = self._table.server_rpc(peer, key, sender_id ^ 1, keys, data is not None, tick)
        if rpc is None:
            return None
        rpc.flags = flags & _INCAST
        if data is not None:
            self._deliver_request(rpc, data, tick)
            return None
        self._table.timers.arm(rpc, tick + self.params.resend_ticks)
        return rpc

    def _receive(self, rpc: Rpc, segment_offset: int, index: int, inside: int, length: int, incoming: int,
                 payload: bytes, tick: int) -> None:
        counters = self.counters
        inm = rpc.inm
        if inm is None:
            if length > rpc.peer.max_wire:
                counters.too_long += 1
                return
            inm = rpc.inm = self.profile.incoming(rpc, rpc.peer.session, length)
            if rpc.is_client:
                # The request is kept: what looks like a response may be forged.
                rpc.move(states.DATA)
                self._table.doubt(rpc)
        elif length != inm.length:
            counters.length_conflicts += 1
            if length <= rpc.peer.max_wire:
                inm.extend(length)
        new = inm.add(segment_offset, index, inside, payload)
        if incoming > inm.granted:
            inm.granted = min(incoming, inm.length)
            self._grants.touch(rpc)
        if new <= 0:
            if new < 0:
                counters.beyond_message += 1
            else:
                counters.data_redundant += 1
            return
        failures = inm.auth_failures
        was_truncated = inm.truncated
        data = inm.finish()
        if inm.progressed():
            rpc.peer.host.heard_tick = rpc.heard_tick = tick
            rpc.resends = 0
        if inm.auth_failures != failures:
            counters.records_failed += inm.auth_failures - failures
            self._recovery.discarded(rpc, inm, tick)
        if self._trace is not None:
            self._trace.opened(rpc, inm)
        if inm.truncated and not was_truncated:
            counters.truncated += 1
        for client_id, client_port, server_port in inm.acks:
            if server_port == self.port and (client_id ^ 1 != rpc.id or client_port != rpc.peer.port):
                self._control.acked_elsewhere(rpc.peer.host, client_port, client_id)
        if data is None:
            inm.acks = []
            self._grants.touch(rpc)
            if not self._table.charge(rpc):
                self._table.free(rpc, "no memory for its message")
                if rpc.is_client:
                    counters.failed += 1
                    self._events.append(Failed(rpc, Reason.NO_MEMORY))
        elif rpc.is_client:
            self._finish_response(rpc, data, tick)
        else:
            self._table.drop_incoming(rpc)
            self._deliver_request(rpc, data, tick)

    def _deliver_request(self, rpc: Rpc, data: bytes, tick: int) -> None:
        peer = rpc.peer
        keys = rpc.keys
        # Marked only now: an id is spent by an authentic message, never by a forged one.
        keys.guard.mark(rpc.id ^ 1)
        if not keys.proven:
            peer.session.accept(keys, tick)
            self._watch_keys(peer.session)
        if not peer.proven:
            self._table.prove(peer)
        peer.heard_tick = peer.host.heard_tick = tick
        if len(data) > peer.max_message:
            self.counters.too_long += 1
            self._table.free(rpc, "its request is too long")
            return
        rpc.move(states.COMPLETE)
        self.counters.requests_delivered += 1
        if self._trace is not None:
            self._trace.delivered(rpc, len(data))
        self._events.append(Request(rpc, data))

    def _finish_response(self, rpc: Rpc, data: bytes, tick: int) -> None:
        rpc.move(states.COMPLETE)
        if self._trace is not None and len(data) <= rpc.peer.max_message:
            self._trace.delivered(rpc, len(data))
        self._control.finished(rpc)
        self._table.free(rpc, "its response is here")
        peer = rpc.peer
        peer.heard_tick = peer.host.heard_tick = tick
        if not rpc.keys.proven:
            peer.session.proved(rpc.keys, tick)
            self._watch_keys(peer.session)
        if len(data) > peer.max_message:
            self.counters.too_long += 1
            self.counters.failed += 1
            self._events.append(Failed(rpc, Reason.TOO_LONG))
            return
        self.counters.responses_delivered += 1
        self._events.append(Response(rpc, data))

    def _watch_keys(self, session: Session) -> None:
        if session.forget_at >= 0:
            self._key_timers.watch(session)

    def _stranger(self, frame: bytes, src: int, sport: int, now: int) -> Peer | None:
        """The peer of a frame from whom we have not heard; None: there is no session to open it with."""
        if self._negotiator is not None:
            self._held.add(peer_key(src, sport), frame, now // self._tick_ns)
            return None
        peer = self._table.heard(src, sport)
        if peer is None:
            self.counters.no_session += 1
        return peer

    def _to_negotiator(self, frame: bytes, now: int) -> None:
        if self._negotiator is None:
            self.counters.handshakes_unexpected += 1
        else:
            self._negotiator.handle_packet(frame, now)

    def _handle_control(self, frame: bytes, now: int) -> None:
        counters = self.counters
        (ethertype, vihl, _tos, total, _ip_id, fragment, protocol, src, dst, sport, dport, _epoch,
         _sender_id) = _unpack_common(frame)
        if (ethertype != ETHERTYPE_IPV4 or vihl != VERSION_IHL or fragment & FRAGMENT_MASK
                or total > len(frame) - _IP_OFFSET):
            counters.bad_packets += 1
            return
        if protocol != self._protocol or dport != self.port or dst != self.ip:
            counters.wrong_address += 1
            return
        if self._trace is not None:
            self._trace.now = now
            self._trace.received(frame)
        if frame[_FLAGS_AT] & self._handshake:
            self._to_negotiator(frame, now)
            return
        try:
            packet = homa.parse_untrusted(frame[_TRANSPORT_OFFSET:_IP_OFFSET + total], self.profile.fmt)
            if isinstance(packet, homa.Data):
                raise BadPacket("DATA without payload")
        except BadPacket:
            counters.bad_packets += 1
            return
        peer = self._table.peers.get(peer_key(src, sport)) or self._stranger(frame, src, sport, now)
        if peer is None:
            return
        self._control.handle(peer, packet, now // self._tick_ns)

    def _tell_cutoffs(self, peer: Peer, own_id: int, epoch: int, tick: int) -> None:
        # Once a tick and host: every packet in flight carries the old version.
        host: Host = peer.host
        if host.cutoff_tick == tick:
            return
        host.cutoff_tick = tick
        self.counters.cutoffs_sent += 1
        self._outbox.control(peer, homa.Cutoffs(self.port, peer.port, own_id, self.params.unsched_cutoffs,
                                                self._cutoff_version, epoch))

    def _send_grants(self) -> None:
        for grant in self._grants.decide():
            rpc = grant.rpc
            self.counters.grants_sent += 1
            if self._trace is not None:
                self._trace.grants(rpc, grant.offset)
            self._outbox.control(rpc.peer, homa.Grant(self.port, rpc.peer.port, rpc.id, grant.offset,
                                                      grant.priority, rpc.keys.wire_epoch))

    # -- looking in --------------------------------------------------------------------------------------

    def has_rpcs(self, ip: int, port: int) -> bool:
        """Whether RPCs with this peer are under way, either side's."""
        peer = self._table.peers.get(peer_key(ip, port))
        return peer is not None and len(peer.rpcs) > 0

    def snapshot(self) -> dict[str, int]:
        """Sizes of all state; all zero (but ``peers``) when nothing is going on."""
        return {**self._table.snapshot(), "held": len(self._held.frames),
                "unsent": 0 if self._outbox.idle() else 1}


def _earlier(a: int | None, b: int | None) -> int | None:
    """The earlier of two times, where None is never."""
    if a is None or b is None:
        return b if a is None else a
    return a if a < b else b


__all__ = ["FIRST_CLIENT_PORT", "IN_SERVICE", "Endpoint"]
