"""An endpoint: one address and port, client and server at once. The transport's only entrance.

Sans-IO. Call :meth:`Endpoint.handle_packet` for every frame the NIC delivers and
:meth:`Endpoint.handle_timeout` when :meth:`Endpoint.next_timeout` says; after these, and after
``send_request``, ``send_reply`` or ``abort``, take events with :meth:`Endpoint.next_event` and segments
with :meth:`Endpoint.poll_transmit` until both return None.
"""

from __future__ import annotations

from collections import deque

from smtstack.crypto.keys import KeyStore
from smtstack.errors import AuthError, BadPacket, ConfigError, LocalError
from smtstack.transport import rpc as states
from smtstack.transport.counters import Counters
from smtstack.transport.events import Event, Failed, Reason, Request, Response
from smtstack.transport.outbox import Outbox
from smtstack.transport.params import TransportParams
from smtstack.transport.peers import Host, Peer
from smtstack.transport.profile import Profile, make_profile
from smtstack.transport.recovery import Recovery
from smtstack.transport.rpc import DEAD, IN_SERVICE, INCOMING, Rpc
from smtstack.transport.segment import Segment
from smtstack.transport.table import RpcTable
from smtstack.wire import frame as wire_frame
from smtstack.wire import homa
from smtstack.wire.ethernet import ETHERTYPE_IPV4
from smtstack.wire.ipv4 import FRAGMENT_MASK, VERSION_IHL

#: Clients' ports start here, servers' are below (Homa's HOMA_MIN_DEFAULT_PORT).
FIRST_CLIENT_PORT = 0x8000

_unpack_data = wire_frame.DATA_FRAME.unpack_from
_unpack_common = wire_frame.COMMON_FRAME.unpack_from
_DATA = homa.DATA
_PLACED = homa.PLACED
_INCAST = homa.INCAST
_MIN_LEN = wire_frame.MIN_LEN
_TYPE_AT = wire_frame.TYPE_AT
_PAYLOAD_AT = wire_frame.PAYLOAD_AT
_IP_OFFSET = wire_frame.IP_OFFSET
_TRANSPORT_OFFSET = wire_frame.TRANSPORT_OFFSET
_DATA_IP_LEN = _PAYLOAD_AT - _IP_OFFSET


class Endpoint:
    """One Homa or SMT socket.

    ``ip`` is a 32-bit integer, ``profile`` one of smt, homa and linux. ``keys`` makes the sessions.
    Requests of any size from 1 byte to ``params.max_message_length`` go to any peer ``keys`` knows.
    """

    __slots__ = ("_cutoff_version", "_events", "_extended", "_failed", "_grants", "_max_length", "_max_message",
                 "_outbox", "_protocol", "_recovery", "_table", "_tick_ns", "counters", "ip", "params", "port",
                 "profile")

    def __init__(self, ip: int, port: int, profile: str, keys: KeyStore,
                 params: TransportParams | None = None, protocol: int | None = None) -> None:
        if not 0 < port <= 0xFFFF:
            raise ConfigError(f"port {port} is not within 1 to 65535")
        self.ip = ip
        self.port = port
        self.params = params or TransportParams()
        self.profile: Profile = make_profile(profile, self.params)
        self.counters = Counters()
        #: IP protocol number on the wire; the profile's unless set.
        self._protocol = self.profile.fmt.protocol if protocol is None else protocol
        self._extended = self.profile.fmt.extended
        self._tick_ns = self.params.tick_ns
        self._cutoff_version = self.params.cutoff_version
        self._max_message = self.params.max_message_length
        self._max_length = self.params.max_wire_length
        self._table = RpcTable(ip, port, self.profile, keys, self.counters)
        self._grants = self._table.grants
        self._outbox = Outbox(port, self.profile.fmt, self.params, self.counters)
        self._events: deque[Event] = deque()
        self._failed: list[Failed] = []
        self._recovery = Recovery(port, self.profile, self._table, self._outbox, self.counters, self._failed)

    @property
    def protocol(self) -> int:
        """IP protocol number of what this endpoint sends and takes."""
        return self._protocol

    # -- the application's side --------------------------------------------------------------------------

    def send_request(self, ip: int, port: int, data: bytes, now: int, cookie: object = None) -> Rpc:
        """Begin an RPC; a Response or Failed event with this RPC ends it.

        Raises :class:`LocalError` for an empty or too long message, :class:`ConfigError` if no key is
        known for the peer.
        """
        if not 0 < len(data) <= self._max_message:
            raise self._bad_length(data)
        table = self._table
        peer = table.peers.get(ip << 16 | port)
        if peer is None or not peer.proven:
            peer = table.call(ip, port)
        tick = now // self._tick_ns
        rpc = table.client_rpc(peer, tick)
        rpc.cookie = cookie
        try:
            rpc.out = self.profile.outgoing(rpc, data)
        except LocalError:
            table.free(rpc)
            raise
        self.counters.requests_sent += 1
        table.timers.arm(rpc, tick + self.params.resend_ticks)
        self._outbox.start(rpc)
        return rpc

    def send_reply(self, rpc: Rpc, data: bytes, now: int) -> bool:
        """Answer a Request; False if its client has given up. Raises :class:`LocalError` for misuse."""
        if not 0 < len(data) <= self._max_message:
            raise self._bad_length(data)
        if rpc.state is DEAD:
            return False
        out = self.profile.outgoing(rpc, data)
        rpc.move(states.REPLY)
        rpc.out = out
        self.counters.responses_sent += 1
        tick = now // self._tick_ns
        rpc.heard_tick = tick
        rpc.resends = 0
        self._table.timers.arm(rpc, tick + self.params.request_ack_ticks)
        self._outbox.start(rpc)
        return True

    def abort(self, rpc: Rpc) -> None:
        """End an RPC now: at a client with a Failed event, at a server silently."""
        if rpc.state is DEAD:
            return
        self._table.free(rpc)
        if rpc.is_client:
            self.counters.failed += 1
            self._recovery.finished(rpc)
            self._events.append(Failed(rpc, Reason.ABORTED))

    def next_event(self) -> Event | None:
        """The next thing the application should know."""
        return self._events.popleft() if self._events else None

    def _bad_length(self, data: bytes) -> LocalError:
        return LocalError(f"a message of {len(data)} bytes; 1 to {self._max_message} (max_message_length) are "
                          "possible")

    # -- the network's side ------------------------------------------------------------------------------

    def poll_transmit(self, now: int) -> Segment | None:
        """The next segment for the NIC driver, or None."""
        if self._grants.dirty:
            self._send_grants()
        return self._outbox.poll(now)

    def grants_due(self) -> bool:
        """Whether peers may be waiting for a GRANT that :meth:`poll_transmit` would yield."""
        return self._grants.dirty

    def next_timeout(self) -> int | None:
        """When to call :meth:`handle_timeout` (and poll) at the latest; None: nothing is pending, 0: poll."""
        if self._grants.dirty:
            return 0
        wake = self._outbox.wake_at()
        tick = self._table.timers.next_tick()
        if tick is None:
            return wake
        at = tick * self._tick_ns
        return at if wake is None or at < wake else wake

    def handle_timeout(self, now: int) -> None:
        """Let timers act that are due at ``now``."""
        tick = now // self._tick_ns
        for rpc in self._table.timers.due(tick):
            if rpc.state is not DEAD:
                self._recovery.check(rpc, tick)
        if self._failed:
            self._events.extend(self._failed)
            self._failed.clear()

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
        if protocol != self._protocol or dport != self.port or dst != self.ip:
            counters.wrong_address += 1
            return
        counters.data_received += 1
        peer = self._table.peers.get(src << 16 | sport) or self._table.heard(src, sport)
        if peer is None:
            counters.no_session += 1
            return
        tick = now // self._tick_ns
        if not self._extended:
            segment_size = epoch = flags = 0
        if version != self._cutoff_version:
            self._tell_cutoffs(peer, sender_id ^ 1, epoch, tick)
        payload = frame[_PAYLOAD_AT:_IP_OFFSET + total]
        key = sender_id ^ 1 | epoch << 64
        rpc = peer.rpcs.get(key)
        # A message in one packet skips reassembly; most messages are.
        index = (index + ip_id) & 0xFFFF
        inside = packet_offset if flags & _PLACED else index * segment_size
        whole = len(payload) == length and inside + high + low == 0
        if rpc is None:
            rpc = self._new_request(peer, key, sender_id, epoch, flags, length, payload if whole else None, tick)
            if rpc is None:
                return
        elif not rpc.is_client and rpc.state is not INCOMING:
            counters.data_redundant += 1
            return
        elif rpc.is_client and whole and rpc.inm is None:
            try:
                data = self.profile.open_whole(peer.session, rpc.keys, sender_id, length, payload)
            except AuthError:
                counters.records_failed += 1
                return
            if data is not None:
                self._finish_response(rpc, data)
                return
        self._receive(rpc, high << 16 | low, index, inside, length, incoming, payload, tick)

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
            self._deliver_request(rpc, data)
            return None
        self._table.timers.arm(rpc, tick + self.params.resend_ticks)
        return rpc

    def _receive(self, rpc: Rpc, segment_offset: int, index: int, inside: int, length: int, incoming: int,
                 payload: bytes, tick: int) -> None:
        counters = self.counters
        inm = rpc.inm
        if inm is None:
            inm = rpc.inm = self.profile.incoming(rpc, length)
            if rpc.is_client:
                # The request is kept: what looks like a response may be forged.
                rpc.move(states.DATA)
                self._table.doubt(rpc)
        elif length != inm.length:
            counters.length_conflicts += 1
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
            rpc.heard_tick = tick
            rpc.resends = 0
        if inm.auth_failures != failures:
            counters.records_failed += inm.auth_failures - failures
            self._recovery.discarded(rpc, inm, tick)
        if inm.truncated and not was_truncated:
            counters.truncated += 1
        for client_id, client_port, server_port in inm.acks:
            if client_port == rpc.peer.port and server_port == self.port and client_id ^ 1 != rpc.id:
                self._recovery.acked(rpc.peer, client_id, 0)
        if data is None:
            inm.acks = []
            self._grants.touch(rpc)
            if not self._table.charge(rpc):
                self._table.free(rpc)
                if rpc.is_client:
                    counters.failed += 1
                    self._events.append(Failed(rpc, Reason.NO_MEMORY))
        elif rpc.is_client:
            self._finish_response(rpc, data)
        else:
            self._table.drop_incoming(rpc)
            self._deliver_request(rpc, data)

    def _deliver_request(self, rpc: Rpc, data: bytes) -> None:
        peer = rpc.peer
        # Marked only now: an id is spent by an authentic message, never by a forged one.
        rpc.keys.guard.mark(rpc.id ^ 1)
        peer.session.accept(rpc.keys)
        if not peer.proven:
            self._table.prove(peer)
        rpc.move(states.COMPLETE)
        self.counters.requests_delivered += 1
        self._events.append(Request(rpc, data))

    def _finish_response(self, rpc: Rpc, data: bytes) -> None:
        rpc.move(states.COMPLETE)
        self._table.free(rpc)
        self.counters.responses_delivered += 1
        self._recovery.finished(rpc)
        self._events.append(Response(rpc, data))

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
        try:
            packet = homa.parse_untrusted(frame[_TRANSPORT_OFFSET:_IP_OFFSET + total], self.profile.fmt)
            if isinstance(packet, homa.Data):
                raise BadPacket("DATA without payload")
        except BadPacket:
            counters.bad_packets += 1
            return
        peer = self._table.peers.get(src << 16 | sport) or self._table.heard(src, sport)
        if peer is None:
            counters.no_session += 1
            return
        self._recovery.handle(peer, packet, now // self._tick_ns)

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
            self._outbox.control(rpc.peer, homa.Grant(self.port, rpc.peer.port, rpc.id, grant.offset,
                                                      grant.priority, rpc.keys.epoch & 0xFF))

    # -- looking in --------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, int]:
        """Sizes of all state; all zero (but ``peers``) when nothing is going on."""
        return {**self._table.snapshot(), "unsent": 0 if self._outbox.idle() else 1}


__all__ = ["FIRST_CLIENT_PORT", "IN_SERVICE", "Endpoint"]
