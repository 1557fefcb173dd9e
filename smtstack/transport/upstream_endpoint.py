"""An endpoint that speaks upstream Homa's dialect; and what makes endpoints, of any profile."""

from __future__ import annotations

from typing import Any, Final

from smtstack.crypto.keys import KeyStore
from smtstack.crypto.replay import RecentIds
from smtstack.errors import BadPacket, ConfigError
from smtstack.transport.control import ControlPackets
from smtstack.transport.endpoint import Endpoint
from smtstack.transport.outbox import Outbox
from smtstack.transport.params import UPSTREAM, TransportParams
from smtstack.transport.profile import Profile, make_profile
from smtstack.transport.recovery import Recovery
from smtstack.transport.rpc import Peer, Rpc
from smtstack.transport.states import INCOMING
from smtstack.transport.table import RpcTable
from smtstack.transport.upstream_message import UpstreamProfile
from smtstack.transport.upstream_rules import (
    TCP_SHAPED,
    UpstreamControl,
    UpstreamOutbox,
    UpstreamRecovery,
    UpstreamTable,
)
from smtstack.wire import frame as wire_frame
from smtstack.wire import homa, upstream
from smtstack.wire.ethernet import ETHERTYPE_IPV4
from smtstack.wire.ipv4 import FRAGMENT_MASK, PROTO_TCP, VERSION_IHL
from smtstack.wire.naming import peer_key

_unpack_data: Final = upstream.DATA_FRAME.unpack_from
_unpack_common: Final = wire_frame.COMMON_FRAME.unpack_from
_MIN_LEN: Final = wire_frame.MIN_LEN
_IP_OFFSET: Final = wire_frame.IP_OFFSET
_TRANSPORT_OFFSET: Final = wire_frame.TRANSPORT_OFFSET
_TYPE_AT: Final = _TRANSPORT_OFFSET + upstream.TYPE_OFFSET
_FLAGS_AT: Final = _TRANSPORT_OFFSET + upstream.FLAGS_OFFSET
_URGENT_AT: Final = _TRANSPORT_OFFSET + upstream.URGENT_OFFSET
_PAYLOAD_AT: Final = _TRANSPORT_OFFSET + upstream.DATA_LEN
_DATA_IP_LEN: Final = _PAYLOAD_AT - _IP_OFFSET
_DATA: Final = homa.DATA
_TCP: Final = PROTO_TCP
_FLAGS: Final = upstream.FLAGS
_URGENT: Final = upstream.URGENT
_BY_SEQUENCE: Final = upstream.BY_SEQUENCE


class UpstreamEndpoint(Endpoint):
    """One Homa socket as upstream Homa's peers know them.

    Takes packets of Homa's own protocol and such in the shape of TCP; what it sends has the shape of the RPC's
    last packet from the peer, a new request that of ``params.hijack_tcp``.
    """

    __slots__ = ()

    def __init__(self, ip: int, port: int, profile: str, keys: KeyStore,
                 params: TransportParams | None = None, protocol: int | None = None) -> None:
        super().__init__(ip, port, profile, keys, params or UPSTREAM, protocol)

    def _make_profile(self, name: str, keys: KeyStore) -> Profile[Any]:
        if name == homa.UPSTREAM.name:
            return UpstreamProfile(self.params)
        return make_profile(name, self.params, keys.makes)

    def _make_table(self, keys: KeyStore) -> RpcTable:
        return UpstreamTable(self.ip, self.port, self.profile, keys, self.counters)

    def _make_outbox(self) -> Outbox:
        return UpstreamOutbox(self.port, self.profile.fmt, self.params, self.counters)

    def _make_recovery(self) -> Recovery:
        return UpstreamRecovery(self.port, self.params, self._table, self._outbox, self.counters, self._failed)

    def _make_control(self) -> ControlPackets:
        return UpstreamControl(self.port, self.profile, self._table, self._outbox, self._recovery, self.counters)

    def handle_packet(self, frame: bytes, now: int) -> None:
        counters = self.counters
        counters.packets_received += 1
        size = len(frame)
        if size < _MIN_LEN:
            counters.bad_packets += 1
            return
        if frame[_TYPE_AT] != _DATA or size <= _PAYLOAD_AT:
            self._handle_control(frame, now)
            return
        (ethertype, vihl, total, fragment, protocol, src, dst, sport, dport, sequence, flags, urgent, sender_id,
         length, incoming, acked_id, acked_port, version, place) = _unpack_data(frame)
        if (ethertype != ETHERTYPE_IPV4 or vihl != VERSION_IHL or fragment & FRAGMENT_MASK
                or not _DATA_IP_LEN < total <= size - _IP_OFFSET or length == 0 or length > self._max_length):
            counters.bad_packets += 1
            return
        shaped = protocol == _TCP and flags == _FLAGS and urgent == _URGENT
        if dport != self.port or dst != self.ip or not (shaped or protocol == self._protocol):
            counters.wrong_address += 1
            return
        if self._trace is not None:
            self._trace.now = now
            self._trace.received(frame)
        # peer_key(), without the call.
        peer = self._table.peers.get(src << 16 | sport) or self._stranger(frame, src, sport, now)
        if peer is None:
            return
        peer.flags = TCP_SHAPED if shaped else 0
        counters.data_received += 1
        tick = now // self._tick_ns
        if version != self._cutoff_version:
            self._tell_cutoffs(peer, sender_id ^ 1, 0, tick)
        if acked_id:
            self._acknowledged(peer, acked_id, acked_port)
        at = sequence if place == _BY_SEQUENCE else place
        payload = frame[_PAYLOAD_AT:_IP_OFFSET + total]
        key = sender_id ^ 1
        rpc = peer.rpcs.get(key)
        whole = at == 0 and len(payload) == length
        if rpc is None:
            rpc = self._begin(peer, key, sender_id, length, payload if whole else None, tick)
            if rpc is None:
                return
        else:
            rpc.flags = peer.flags
            if not rpc.is_client and rpc.state is not INCOMING:
                counters.data_redundant += 1
                peer.host.heard_tick = tick
                return
            if whole and rpc.is_client and rpc.inm is None:
                self._finish_response(rpc, payload, tick)
                return
        inm = rpc.inm
        if inm is None or inm.length == length:
            # Any packet of it ends its silence, new or not; but one that is of no use does not help it.
            rpc.alive(tick)
        self._receive(rpc, at, 0, 0, length, incoming, payload, tick)

    def _begin(self, peer: Peer, key: int, sender_id: int, length: int, whole: bytes | None,
               tick: int) -> Rpc | None:
        guard = peer.session.current.guard
        if isinstance(guard, RecentIds):
            guard.tick = tick
        rpc = self._new_request(peer, key, sender_id, 0, 0, length, whole, tick)
        begun = peer.rpcs.get(key)
        if begun is not None:
            begun.flags = peer.flags
        return rpc

    def _acknowledged(self, peer: Peer, acked_id: int, acked_port: int) -> None:
        control = self._control
        if acked_port == self.port and isinstance(control, UpstreamControl):
            control.acknowledged(peer.host, acked_id)

    def _handle_control(self, frame: bytes, now: int) -> None:
        counters = self.counters
        (ethertype, vihl, _tos, total, _ip_id, fragment, protocol, src, dst, sport, dport, _epoch,
         _sender_id) = _unpack_common(frame)
        if (ethertype != ETHERTYPE_IPV4 or vihl != VERSION_IHL or fragment & FRAGMENT_MASK
                or total > len(frame) - _IP_OFFSET):
            counters.bad_packets += 1
            return
        shaped = (protocol == _TCP and frame[_FLAGS_AT] == _FLAGS
                  and frame[_URGENT_AT] << 8 | frame[_URGENT_AT + 1] == _URGENT)
        if dport != self.port or dst != self.ip or not (shaped or protocol == self._protocol):
            counters.wrong_address += 1
            return
        if self._trace is not None:
            self._trace.now = now
            self._trace.received(frame)
        try:
            packet = upstream.parse_untrusted(frame[_TRANSPORT_OFFSET:_IP_OFFSET + total])
            if isinstance(packet, homa.Data):
                raise BadPacket("DATA without payload")
        except BadPacket:
            counters.bad_packets += 1
            return
        peer = self._table.peers.get(peer_key(src, sport)) or self._stranger(frame, src, sport, now)
        if peer is None:
            return
        peer.flags = TCP_SHAPED if shaped else 0
        self._control.handle(peer, packet, now // self._tick_ns)


def make_endpoint(ip: int, port: int, profile: str, keys: KeyStore, params: TransportParams | None = None,
                  protocol: int | None = None, overlay: bool = False) -> Endpoint:
    """An endpoint of any profile, by its name. Raises :class:`~smtstack.errors.ConfigError`.

    ``params`` None: the defaults of the module that speaks that profile. ``overlay`` as for :class:`Endpoint`.
    """
    if profile != homa.UPSTREAM.name:
        return Endpoint(ip, port, profile, keys, params, protocol, overlay)
    if overlay:
        raise ConfigError(f"overlay tcp: profile {profile} has a shape of TCP of its own (hijack_tcp)")
    return UpstreamEndpoint(ip, port, profile, keys, params, protocol)
