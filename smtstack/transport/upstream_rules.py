"""What upstream Homa does otherwise than the SMT module, on which it grew: who sends, who asks again, who is gone.

Rules and names are those of HomaModule 9edb958 (``homa_incoming.c``, ``homa_timer.c``, ``homa_grant.c``,
``homa_peer.c``). Where the module knows no bound, ours are kept: docs/protocol.md, "Profile upstream".
"""

from __future__ import annotations

from typing import Any, Final

from smtstack.crypto.epochs import EpochKeys
from smtstack.crypto.keys import KeyStore
from smtstack.transport.control import ControlPackets
from smtstack.transport.counters import Counters
from smtstack.transport.events import Failed
from smtstack.transport.grants import GrantScheduler
from smtstack.transport.message import OutMessage
from smtstack.transport.outbox import Outbox
from smtstack.transport.params import MIN_RESENDS, TransportParams
from smtstack.transport.profile import Profile
from smtstack.transport.recovery import Recovery
from smtstack.transport.rpc import Host, Peer, Rpc
from smtstack.transport.segment import AS_TCP, Segment
from smtstack.transport.states import DEAD, IN_SERVICE, OUTGOING
from smtstack.transport.table import RpcTable
from smtstack.transport.upstream_message import UpstreamOut
from smtstack.wire import homa, upstream
from smtstack.wire.naming import peer_key

#: ``Rpc.flags`` and ``Peer.flags``: in the shape of TCP.
TCP_SHAPED: Final = 1
#: Ranges that one round of RESENDs asks for. The module has no bound; a window seldom has more gaps.
MAX_RANGES: Final = 128
_DOFF: Final = upstream.DATA_DOFF
_FLAGS: Final = upstream.FLAGS
_URGENT: Final = upstream.URGENT
_pack_data: Final = upstream.DATA_HEADER.pack


class UpstreamGrants(GrantScheduler):
    """Grants as the module gives them: a window by how many messages hold one, and hosts that have few first."""

    __slots__ = ()

    def __init__(self, params: TransportParams) -> None:
        super().__init__(params)
        self._fifo_priority = max(0, params.num_priorities - 2)

    def _choose(self) -> list[Rpc]:
        p = self._p
        of_host: dict[int, int] = {}
        # By how many its host has before it, and only then by bytes remaining.
        places: list[tuple[int, int, Rpc]] = []
        for order, key in enumerate(self._list):
            rpc = self._rpcs[key]
            ip = rpc.peer.host.ip
            before = of_host.get(ip, 0)
            if before < p.max_rpcs_per_peer:
                of_host[ip] = before + 1
                places.append((before, order, rpc))
        places.sort(key=lambda place: place[:2])
        chosen = [rpc for _order, rpc in sorted([place[1:] for place in places[:p.max_overcommit]],
                                                key=lambda place: place[0])]
        self._window = p.window or p.max_incoming // (len(chosen) + 1)
        return chosen


class UpstreamTable(RpcTable):
    """Knows a host's RPCs by their id, whichever port of it began them; and the shape of our own."""

    __slots__ = ("_flags",)

    def __init__(self, ip: int, port: int, profile: Profile[Any], keys: KeyStore, counters: Counters) -> None:
        super().__init__(ip, port, profile, keys, counters)
        self.grants = UpstreamGrants(profile.params)
        self._flags = TCP_SHAPED if profile.params.hijack_tcp else 0

    def client_rpc(self, peer: Peer, tick: int) -> Rpc:
        rpc = super().client_rpc(peer, tick)
        rpc.flags = self._flags
        return rpc

    def server_rpc(self, peer: Peer, key: int, rpc_id: int, keys: EpochKeys, proven: bool,
                   tick: int) -> Rpc | None:
        rpc = super().server_rpc(peer, key, rpc_id, keys, proven, tick)
        if rpc is not None:
            peer.host.served[rpc_id] = rpc
        return rpc

    def free(self, rpc: Rpc, why: str) -> None:
        super().free(rpc, why)
        served = rpc.peer.host.served
        if served.get(rpc.id) is rpc:
            del served[rpc.id]


class UpstreamOutbox(Outbox):
    """Builds the packets: each says its place, and carries an acknowledgement if there is one for its host."""

    __slots__ = ()

    def control(self, peer: Peer, packet: homa.Control, trailer: bytes = b"") -> None:
        rpc = peer.rpcs.get(packet.sender_id)
        flags = peer.flags if rpc is None else rpc.flags
        self._ready.append(Segment(_address(peer, flags), self._control_tos, upstream.pack(packet), trailer,
                                   flow=packet.sender_id))

    def _segment(self, rpc: Rpc, out: OutMessage, index: int) -> Segment:
        peer = rpc.peer
        host = peer.host
        at = out.start(index)
        priority = host.unscheduled_priority(out.length) if at < out.unscheduled else out.priority
        acked, acked_port = host.acks.pop(0) if host.acks else (0, 0)
        header = _pack_data(self._port, peer.port, at, homa.DATA, _DOFF, _FLAGS, _URGENT, rpc.id, out.length,
                            out.unscheduled, acked, acked_port, host.cutoff_version, 0, at)
        return Segment(_address(peer, rpc.flags), priority << 5, header, None, out.mss, out, index, rpc.id)

    def retransmit(self, rpc: Rpc, start: int, stop: int, priority: int, tick: int) -> int:
        out = rpc.out
        assert isinstance(out, UpstreamOut)
        peer = rpc.peer
        to = _address(peer, rpc.flags)
        expected = min(out.length, max(out.granted, stop))
        sent = 0
        for index in range(out.index_at(start), out.sent):
            at = out.start(index)
            if at >= stop:
                break
            if out.resent.get(index) == tick:
                continue
            out.resent[index] = tick
            header = _pack_data(self._port, peer.port, at, homa.DATA, _DOFF, _FLAGS, _URGENT, rpc.id, out.length,
                                expected, 0, 0, peer.host.cutoff_version, 1, at)
            self._paced.append(Segment(to, priority << 5, header, out.payload(index), out.mss, flow=rpc.id))
            sent += 1
        self._counters.packets_resent += sent
        return sent


def _address(peer: Peer, flags: int) -> int:
    return peer.host.ip + AS_TCP if flags & TCP_SHAPED else peer.host.ip


class UpstreamRecovery(Recovery):
    """Silence is an RPC's own: RESENDs every few ticks of it, then the end, whatever else its host says."""

    __slots__ = ()

    def __init__(self, port: int, params: TransportParams, table: RpcTable, outbox: Outbox, counters: Counters,
                 failed: list[Failed]) -> None:
        super().__init__(port, params, table, outbox, counters, failed)
        self._silence = params.timeout_ticks
        self._ranges = MAX_RANGES

    @staticmethod
    def lost(rpc: Rpc) -> list[tuple[int, int]]:
        """Ranges to ask for: every gap, then what was granted behind them. All of which nothing is here."""
        inm = rpc.inm
        return inm.missing() if inm is not None and inm.received else [(0, upstream.ALL)]

    def check(self, rpc: Rpc, tick: int) -> None:
        if rpc.state is IN_SERVICE:
            return
        if not rpc.is_client and rpc.state is OUTGOING:
            self._check_response(rpc, tick)
            return
        p = self._p
        out = rpc.out
        lost = self.lost(rpc)
        if not lost or (rpc.state is OUTGOING and out is not None and out.sendable()):
            # For ourselves: we have not granted more, or not sent what we may.
            rpc.alive(tick)
        due, end = self._due(rpc), self._end(rpc)
        look = min(due, end)
        if tick >= look:
            if tick >= end and tick - look <= p.resend_ticks:
                self._give_up(rpc, tick)
                return
            # Who looks much later did not run: what it waits for may have been there for long.
            self.ask_again(rpc, lost, tick, "silence")
            look = min(self._due(rpc), self._end(rpc))
        self._table.timers.arm(rpc, look)

    def _due(self, rpc: Rpc) -> int:
        """Tick of the next RESEND."""
        return max(rpc.heard_tick + self._p.resend_ticks, rpc.resend_tick + self._gap(rpc))

    def _end(self, rpc: Rpc) -> int:
        return max(rpc.heard_tick + self._p.timeout_ticks, rpc.resend_tick + self._p.resend_interval)

    def _check_response(self, rpc: Rpc, tick: int) -> None:
        """Our response waits: for grants, which its client would ask for, or to be acknowledged."""
        p = self._p
        out = rpc.out
        assert out is not None
        all_sent = out.sent == out.count
        if tick - rpc.heard_tick >= (p.keep_response_ticks if all_sent else p.stalled_ticks):
            self._give_up(rpc, tick)
            return
        due = max(rpc.heard_tick + p.request_ack_ticks, rpc.resend_tick + self._need_ack_gap(rpc))
        if not all_sent:
            due = max(due, tick + p.request_ack_ticks)
        elif tick >= due:
            self._need_ack(rpc, tick)
            due = tick + self._need_ack_gap(rpc)
        if rpc.state is not DEAD:
            self._table.timers.arm(rpc, due)

    def _need_ack_gap(self, rpc: Rpc) -> int:
        beyond = max(0, rpc.resends - MIN_RESENDS)
        return self._p.need_ack_interval << min(beyond, self._p.resend_doublings)


class UpstreamControl(ControlPackets):
    """Acts on control packets by the module's rules. None of them proves anything."""

    __slots__ = ()

    def handle(self, peer: Peer, packet: homa.Packet, tick: int) -> None:
        rpc = peer.rpcs.get(packet.sender_id ^ 1)
        if rpc is not None:
            rpc.flags = peer.flags
        super().handle(peer, packet, tick)

    def _on_grant(self, packet: homa.Grant, rpc: Rpc, tick: int) -> None:
        out = rpc.out
        if out is None:
            return
        # Also one that repeats what was granted: the module sends such with every batch that arrives.
        rpc.alive(tick)
        if out.sent < out.count:
            out.priority = packet.priority
            self._allow(rpc, out, packet.offset)

    def _on_resend(self, peer: Peer, packet: homa.Resend, rpc: Rpc | None, tick: int) -> None:
        if rpc is None:
            self._unknown(peer, packet)
            return
        out = rpc.out
        if out is None:
            # The module says BUSY whatever the reason, and a request that can never be whole keeps both waiting.
            if not rpc.is_client:
                self._still_receiving(rpc, tick)
            return
        if not rpc.is_client:
            # The client lives, so the response is worth keeping.
            rpc.alive(tick)
        sent_end = out.sent_end()
        stop = sent_end if packet.length < 0 else packet.offset + packet.length
        # Asking for bytes allows them: the GRANT for them was lost.
        self._allow(rpc, out, stop)
        if packet.offset >= sent_end:
            # Beyond the message there is nothing to wait for.
            if packet.offset < out.length:
                self._busy(rpc)
            return
        stop = min(stop, sent_end)
        again = self._outbox.retransmit(rpc, packet.offset, stop, packet.priority, tick)
        if again and self.trace is not None:
            self.trace.resent(rpc, packet.offset, stop, again, "RESEND")

    def _on_unknown(self, rpc: Rpc, tick: int) -> None:
        if not rpc.is_client:
            self._table.free(rpc, "the peer does not know it")
        elif rpc.state is OUTGOING:
            # Not one that was answered already, in part: that server did know it.
            super()._on_unknown(rpc, tick)

    def _on_need_ack(self, peer: Peer, packet: homa.NeedAck, rpc: Rpc | None) -> None:
        client_id = packet.sender_id ^ 1
        if client_id & 1:
            return
        if rpc is None:
            # Whether it was ours or of the process before us, nobody waits for its response.
            self._send_acks(peer, client_id)
            return
        lost = UpstreamRecovery.lost(rpc)
        if lost:
            # All of it was sent. The tick is that of this packet, which the host was just heard by.
            self._recovery.ask_again(rpc, lost, peer.host.heard_tick, "NEED_ACK")

    def _on_ack(self, peer: Peer, packet: homa.Ack, rpc: Rpc | None) -> None:
        self.acknowledged(peer.host, packet.sender_id)
        for entry in packet.acks:
            if entry.server_port == self._port:
                self.acknowledged(peer.host, entry.client_id)

    def acknowledged(self, host: Host, client_id: int) -> None:
        """``host`` has the response of its RPC: forget it. Whichever of its ports says so."""
        if client_id & 1:
            self._counters.stray += 1
        else:
            self._acked(host.served.get(client_id ^ 1))

    def finished(self, rpc: Rpc) -> None:
        peer = rpc.peer
        acks = peer.host.acks
        if len(acks) >= homa.MAX_ACKS:
            self._send_acks(peer, rpc.id)
        else:
            acks.append((rpc.id, peer.port))

    def acknowledge(self) -> None:
        # A module asks each of these hosts every millisecond, for ever.
        for host in self._table.hosts.values():
            if host.acks:
                head, port = host.acks[0]
                peer = self._table.peers.get(peer_key(host.ip, port))
                if peer is not None:
                    self._send_acks(peer, head)

    def _send_acks(self, peer: Peer, head: int) -> None:
        acks = peer.host.acks
        entries = tuple([homa.AckEntry(client_id, 0, port) for client_id, port in acks if client_id != head])
        acks.clear()
        self._outbox.control(peer, homa.Ack(self._port, peer.port, head, entries))
