"""Control packets: every packet type but DATA, and what we acknowledge.

Control packets are not authenticated (the kernel's are not either), so none of them may do harm that
cannot be made good: a forged GRANT or RESEND makes us send, a forged UNKNOWN makes us send again, a
forged BUSY makes us wait. Only ACK destroys something (a response), and in profile ``smt`` it carries a
proof. docs/protocol.md, "What a forger can do", has the list.
"""

from __future__ import annotations

from typing import Any

from smtstack.crypto.epochs import EpochKeys
from smtstack.errors import LocalError
from smtstack.transport import states
from smtstack.transport.counters import Counters
from smtstack.transport.message import OutMessage
from smtstack.transport.outbox import Outbox
from smtstack.transport.params import INT_MAX, TransportParams
from smtstack.transport.profile import Profile
from smtstack.transport.recovery import Recovery
from smtstack.transport.rpc import Host, Peer, Rpc
from smtstack.transport.table import RpcTable
from smtstack.transport.trace import Trace
from smtstack.wire import homa
from smtstack.wire.naming import peer_key, rpc_key


class ControlPackets:
    """Acts on control packets, and acknowledges our own RPCs."""

    __slots__ = ("_counters", "_outbox", "_p", "_port", "_profile", "_recovery", "_table", "trace")

    def __init__(self, port: int, profile: Profile[Any], table: RpcTable, outbox: Outbox, recovery: Recovery,
                 counters: Counters) -> None:
        self._port = port
        self._profile = profile
        self._p: TransportParams = profile.params
        self._table = table
        self._outbox = outbox
        self._recovery = recovery
        self._counters = counters
        #: Who is told of grants and of what is sent again.
        self.trace: Trace | None = None

    # -- what comes --------------------------------------------------------------------------------------

    def handle(self, peer: Peer, packet: homa.Packet, tick: int) -> None:
        """Act on a control packet from ``peer``."""
        rpc = peer.rpcs.get(rpc_key(packet.sender_id ^ 1, packet.epoch))
        if rpc is not None:
            peer.host.heard_tick = tick
        if isinstance(packet, homa.Ack):
            self._on_ack(peer, packet, rpc)
        elif isinstance(packet, homa.Cutoffs):
            self._on_cutoffs(peer.host, packet)
        elif isinstance(packet, homa.NeedAck):
            self._on_need_ack(peer, packet, rpc)
        elif isinstance(packet, homa.Resend):
            self._on_resend(peer, packet, rpc, tick)
        elif isinstance(packet, homa.Freeze):
            self._counters.freezes += 1
        elif rpc is None:
            self._counters.stray += 1
        elif isinstance(packet, homa.Grant):
            self._on_grant(packet, rpc, tick)
        elif isinstance(packet, homa.Unknown):
            self._on_unknown(rpc, tick)
        elif isinstance(packet, homa.Busy):
            rpc.alive(tick)

    def _on_grant(self, packet: homa.Grant, rpc: Rpc, tick: int) -> None:
        out = rpc.out
        if out is None:
            return
        out.priority = packet.priority
        if self._allow(rpc, out, packet.offset):
            rpc.alive(tick)

    def _allow(self, rpc: Rpc, out: OutMessage, offset: int) -> bool:
        """Bytes of a message of ours below ``offset`` may go; whether that is more than before."""
        offset = min(offset, out.length)
        if offset <= out.granted:
            return False
        out.granted = offset
        if self.trace is not None:
            self.trace.was_granted(rpc, out)
        self._outbox.queue(rpc)
        return True

    def _on_resend(self, peer: Peer, packet: homa.Resend, rpc: Rpc | None, tick: int) -> None:
        if rpc is None:
            self._unknown(peer, packet)
            return
        out = rpc.out
        if out is None:
            if not rpc.is_client:
                self._still_receiving(rpc, tick)
            return
        if not rpc.is_client:
            # The client lives, so the response is worth keeping.
            rpc.alive(tick)
        stop = min(packet.offset + packet.length, out.length)
        # Asking for bytes allows them: the GRANT for them was lost.
        self._allow(rpc, out, stop)
        again = 0
        if packet.length:
            again = self._outbox.retransmit(rpc, packet.offset, stop, packet.priority, tick)
            if again and self.trace is not None:
                self.trace.resent(rpc, packet.offset, stop, again, "RESEND")
        if not again and (out.sendable() or not packet.length):
            # Otherwise all is sent that was asked for and BUSY would be a lie: whoever waits for bytes past
            # the end of a message must not be kept waiting.
            self._busy(rpc)

    def _unknown(self, peer: Peer, packet: homa.Resend) -> None:
        # A request that was delivered and answered must not come again: it would be refused as a replay, asked for
        # with UNKNOWN, refused, without an end. Silence is what its client gives up at.
        client_id = packet.sender_id
        if not client_id & 1:
            keys = peer.session.request_keys(packet.epoch)
            if keys is None or keys.guard.is_replay(client_id):
                self._counters.stray += 1
                return
        self._counters.unknowns_sent += 1
        self._outbox.control(peer, homa.Unknown(self._port, peer.port, client_id ^ 1, packet.epoch))

    def _still_receiving(self, rpc: Rpc, tick: int) -> None:
        # Homa answers BUSY whatever the reason, and a request that can never be whole (somebody changes
        # it on the way) keeps both ends waiting for ever. BUSY must mean that something got better since
        # the last one, or that it is for us to go on.
        inm = rpc.inm
        missing = inm.missing() if inm is not None else []
        if inm is None or inm.news_for_busy() or not missing:
            self._busy(rpc)
        if missing:
            self._recovery.ask_again(rpc, missing, tick, "the peer asked for the response")

    def _busy(self, rpc: Rpc) -> None:
        self._counters.busy_sent += 1
        peer = rpc.peer
        self._outbox.control(peer, homa.Busy(self._port, peer.port, rpc.id, rpc.keys.wire_epoch))

    def _on_unknown(self, rpc: Rpc, tick: int) -> None:
        if rpc.inm is not None and rpc.inm.authenticated():
            # It did know the RPC.
            return
        if rpc.move(states.UNKNOWN) is states.DEAD:
            self._table.free(rpc, "the peer does not know it")
            return
        out = rpc.out
        # Once an interval at the most: UNKNOWNs, forged or many of one kind, must not multiply our traffic.
        if rpc.is_client and out is not None and tick - rpc.resent_tick >= self._p.resend_interval:
            rpc.resent_tick = tick
            if rpc.inm is not None:
                self._table.drop_incoming(rpc)
            again = self._outbox.retransmit(rpc, 0, out.sent_end(),
                                            rpc.peer.host.unscheduled_priority(out.length), tick)
            if again and self.trace is not None:
                self.trace.resent(rpc, 0, out.sent_end(), again, "UNKNOWN")

    def _on_cutoffs(self, host: Host, packet: homa.Cutoffs) -> None:
        host.cutoffs = (INT_MAX, *packet.cutoffs[1:])
        host.cutoff_version = packet.cutoff_version

    def _on_need_ack(self, peer: Peer, packet: homa.NeedAck, rpc: Rpc | None) -> None:
        client_id = packet.sender_id ^ 1
        if rpc is not None:
            # It may have overtaken what it is about: what is lost the timer asks for.
            return
        if client_id & 1 or not peer.session.issued(packet.epoch, client_id):
            return
        keys = peer.session.own_keys(packet.epoch)
        if keys is not None:
            self._send_ack(peer, keys, client_id, ())

    def _on_ack(self, peer: Peer, packet: homa.Ack, rpc: Rpc | None) -> None:
        # An RPC may outlive its epoch.
        keys = rpc.keys if rpc is not None else peer.session.request_keys(packet.epoch)
        if packet.sender_id & 1 or keys is None:
            self._counters.stray += 1
            return
        if not self._profile.ack_proven(peer.session, keys, packet):
            self._counters.acks_forged += 1
            return
        self._acked(rpc)
        for entry in packet.acks:
            if entry.server_port != self._port:
                continue
            if entry.client_port == peer.port:
                self._acked(peer.rpcs.get(rpc_key(entry.client_id ^ 1, packet.epoch)))
            elif not self._profile.acks_are_proven:
                self.acked_elsewhere(peer.host, entry.client_port, entry.client_id)

    def acked_elsewhere(self, host: Host, client_port: int, client_id: int) -> None:
        """Some port of ``host`` says that this one has the response of ``client_id``: forget the RPC.

        In the module all sockets of a host share one list of what to acknowledge.
        """
        peer = self._table.peers.get(peer_key(host.ip, client_port))
        if peer is not None:
            self._acked(peer.rpcs.get(rpc_key(client_id ^ 1, 0)))

    def _acked(self, rpc: Rpc | None) -> None:
        """The client has the response of ``rpc``: forget it."""
        if rpc is not None and not rpc.is_client:
            rpc.move(states.ACK)
            self._table.free(rpc, "acknowledged")

    # -- acknowledging our own ---------------------------------------------------------------------------

    def finished(self, rpc: Rpc) -> None:
        """A client RPC is over: tell the server when five more are, or when it asks."""
        peer = rpc.peer
        if peer.ack_keys is not rpc.keys:
            self._flush_acks(peer)
            peer.ack_keys = rpc.keys
        peer.acks.append(rpc.id)
        if len(peer.acks) > homa.MAX_ACKS or rpc.keys.tx.retired:
            # The RPC may be all that still holds these keys.
            self._flush_acks(peer)

    def acknowledge(self) -> None:
        """The endpoint goes. Here servers ask now and then, and forget by themselves: nothing."""

    def _flush_acks(self, peer: Peer) -> None:
        if not peer.acks or peer.ack_keys is None:
            return
        head, *rest = peer.acks
        peer.acks = []
        entries = tuple([homa.AckEntry(i, self._port, peer.port) for i in rest])
        self._send_ack(peer, peer.ack_keys, head, entries)

    def _send_ack(self, peer: Peer, keys: EpochKeys, head: int, entries: tuple[homa.AckEntry, ...]) -> None:
        ack = homa.Ack(self._port, peer.port, head, entries, keys.wire_epoch)
        try:
            proof = self._profile.prove_ack(peer.session, keys, ack)
        except LocalError:
            # The key is used up. The server will give up asking; nothing is lost but its memory till then.
            return
        self._outbox.control(peer, ack, proof)
