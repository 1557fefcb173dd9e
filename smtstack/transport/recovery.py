"""Loss recovery and the end of RPCs: timers, and every packet type but DATA.

Control packets are not authenticated (the kernel's are not either), so none of them may do harm that
cannot be made good: a forged GRANT or RESEND makes us send, a forged UNKNOWN makes us send again, a
forged BUSY makes us wait. Only ACK destroys something (a response), and in profile ``smt`` it carries a
proof. docs/protocol.md, "What a forger can do", has the list.
"""

from __future__ import annotations

from smtstack.crypto.epochs import EpochKeys
from smtstack.errors import LocalError
from smtstack.transport import rpc as states
from smtstack.transport.counters import Counters
from smtstack.transport.events import Failed, Reason
from smtstack.transport.message import InMessage
from smtstack.transport.outbox import Outbox
from smtstack.transport.params import INT_MAX, MIN_RESENDS
from smtstack.transport.peers import Host, Peer
from smtstack.transport.profile import Profile
from smtstack.transport.rpc import DEAD, IN_SERVICE, OUTGOING, Rpc
from smtstack.transport.table import RpcTable
from smtstack.transport.trace import Trace
from smtstack.wire import homa

#: What is asked for when nothing of a message is there (homa_timer.c:homa_check_rpc asks for 100 bytes).
PROBE_LENGTH = 100
#: RESENDs without progress after which bytes that have not authenticated are no longer believed: late
#: enough that loss alone hardly ever costs what has arrived, early enough to get it all once more.
DOUBT_RESENDS = 3
#: Ranges one round of RESENDs asks for; the rest waits for the next.
MAX_RESEND_RANGES = 16
#: What more there is to say of an RPC whose host is not silent.
STALLED = "its host lives, but with this RPC it gets no further"
_NEVER = 1 << 60


class Recovery:
    """Reacts to control packets and to silence."""

    __slots__ = ("_counters", "_failed", "_outbox", "_p", "_port", "_profile", "_table", "trace")

    def __init__(self, port: int, profile: Profile, table: RpcTable, outbox: Outbox, counters: Counters,
                 failed: list[Failed]) -> None:
        self._port = port
        self._profile = profile
        self._p = profile.params
        self._table = table
        self._outbox = outbox
        self._counters = counters
        #: RPCs of ours that failed, for the endpoint to report.
        self._failed = failed
        #: Who is told of doubts and of what is sent again.
        self.trace: Trace | None = None

    # -- packets -----------------------------------------------------------------------------------------

    def handle(self, peer: Peer, packet: homa.Packet, tick: int) -> None:
        """Act on a control packet from ``peer``."""
        key = packet.sender_id ^ 1 | packet.epoch << 64
        rpc = peer.rpcs.get(key)
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
            self._alive(rpc, tick)

    @staticmethod
    def _alive(rpc: Rpc, tick: int) -> None:
        rpc.heard_tick = tick
        rpc.resends = 0

    def _on_grant(self, packet: homa.Grant, rpc: Rpc, tick: int) -> None:
        out = rpc.out
        if out is None:
            return
        out.priority = packet.priority
        offset = min(packet.offset, out.length)
        if offset > out.granted:
            out.granted = offset
            if self.trace is not None:
                self.trace.was_granted(rpc, out)
            self._alive(rpc, tick)
            self._outbox.start(rpc)

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
            self._alive(rpc, tick)
        stop = min(packet.offset + packet.length, out.length)
        if stop > out.granted:
            # Asking for bytes allows them: the GRANT for them was lost.
            out.granted = stop
            if self.trace is not None:
                self.trace.was_granted(rpc, out)
            self._outbox.start(rpc)
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
            self._ask_again(rpc, missing, tick, "the peer asked for the response")

    def _busy(self, rpc: Rpc) -> None:
        self._counters.busy_sent += 1
        peer = rpc.peer
        self._outbox.control(peer, homa.Busy(self._port, peer.port, rpc.id, rpc.keys.epoch & 0xFF))

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
        self.acked(peer, packet.sender_id, packet.epoch)
        for entry in packet.acks:
            if entry.server_port != self._port:
                continue
            if entry.client_port == peer.port:
                self.acked(peer, entry.client_id, packet.epoch)
            elif not self._profile.acks_are_proven:
                self.acked_elsewhere(peer.host, entry.client_port, entry.client_id)

    def acked_elsewhere(self, host: Host, client_port: int, client_id: int) -> None:
        """As :meth:`acked`, said by whatever port of ``host``: in the module all its sockets share one list."""
        peer = self._table.peers.get(host.ip << 16 | client_port)
        if peer is not None:
            self.acked(peer, client_id, 0)

    def acked(self, peer: Peer, client_id: int, epoch: int) -> None:
        """The client has the response of ``client_id``: forget the RPC."""
        rpc = peer.rpcs.get(client_id ^ 1 | epoch << 64)
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

    def _flush_acks(self, peer: Peer) -> None:
        if not peer.acks or peer.ack_keys is None:
            return
        head, *rest = peer.acks
        peer.acks = []
        entries = tuple(homa.AckEntry(i, self._port, peer.port) for i in rest)
        self._send_ack(peer, peer.ack_keys, head, entries)

    def _send_ack(self, peer: Peer, keys: EpochKeys, head: int, entries: tuple[homa.AckEntry, ...]) -> None:
        ack = homa.Ack(self._port, peer.port, head, entries, keys.epoch & 0xFF)
        try:
            proof = self._profile.prove_ack(peer.session, keys, ack)
        except LocalError:
            # The key is used up. The server will give up asking; nothing is lost but its memory till then.
            return
        self._outbox.control(peer, ack, proof)

    # -- silence -----------------------------------------------------------------------------------------

    def _ask_again(self, rpc: Rpc, ranges: list[tuple[int, int]], tick: int, why: str) -> None:
        """RESEND for these (offset, length) ranges, unless the last was less than an interval ago.

        ``why`` is for a trace.
        """
        if tick - rpc.resend_tick < self._gap(rpc):
            return
        rpc.resend_tick = tick
        rpc.resends += 1
        if self.trace is not None:
            self.trace.doubted(rpc, ranges[:MAX_RESEND_RANGES], why)
        peer = rpc.peer
        priority = self._p.num_priorities - 1
        for offset, length in ranges[:MAX_RESEND_RANGES]:
            self._counters.resends_sent += 1
            self._outbox.control(peer, homa.Resend(self._port, peer.port, rpc.id, offset, length, priority,
                                                   rpc.keys.epoch & 0xFF))

    @staticmethod
    def _missing(rpc: Rpc) -> list[tuple[int, int]]:
        """Ranges to ask for; all of a message of which nothing is here."""
        if rpc.inm is None or not rpc.inm.received:
            return [(0, PROBE_LENGTH)]
        return rpc.inm.missing()

    def discarded(self, rpc: Rpc, inm: InMessage, tick: int) -> None:
        """Records of ``rpc`` did not authenticate: ask for their bytes at once, if we did not just ask."""
        self._ask_again(rpc, inm.discarded, tick, "not authentic")
        inm.discarded = []

    def check(self, rpc: Rpc, tick: int) -> None:
        """The timer of ``rpc`` fired: has its peer been silent too long?"""
        inm = rpc.inm
        out = rpc.out
        if rpc.state is IN_SERVICE:
            return
        if rpc.peer.early:
            # No answer can be opened before the handshake ends, which has its own deadline.
            self._table.timers.arm(rpc, tick + self._p.resend_ticks)
            return
        missing = self._missing(rpc)
        waiting = not missing if inm is not None else out is not None and out.sendable()
        if waiting:
            # For ourselves: we have not granted more, or not sent what we may.
            self._alive(rpc, tick)
        p = self._p
        replied = not rpc.is_client and rpc.state is OUTGOING
        all_sent = out is not None and out.sent == out.count
        patience = p.request_ack_ticks if replied and all_sent else p.resend_ticks
        due = max(rpc.heard_tick + patience, max(rpc.resend_tick, rpc.resent_tick) + self._gap(rpc))
        end = self._end(rpc)
        look = min(due, end)
        if tick < look:
            self._table.timers.arm(rpc, look)
            return
        # Who looks much later did not run, and what it waits for may have been there for long: it asks once more.
        if tick >= end and tick - look <= p.resend_ticks:
            self._give_up(rpc, tick)
            return
        if inm is not None and rpc.resends + 1 >= DOUBT_RESENDS:
            missing = inm.doubt() or missing
            self._table.grants.update(rpc)
        if replied and all_sent:
            self._need_ack(rpc, tick)
        elif replied:
            # The rest waits for grants. Nothing is missing here: the client says BUSY if it lives.
            self._ask_again(rpc, [(0, 0)], tick, "silence while the response waits for grants")
        else:
            self._ask_again(rpc, missing, tick, "silence")
        if rpc.state is not DEAD:
            self._table.timers.arm(rpc, min(tick + self._gap(rpc), self._end(rpc)))

    def _gap(self, rpc: Rpc) -> int:
        """Ticks between the last RESEND or NEED_ACK about ``rpc`` and the next."""
        beyond = rpc.resends - MIN_RESENDS
        return self._p.resend_interval << (min(beyond, self._p.resend_doublings) if beyond > 0 else 0)

    def _end(self, rpc: Rpc) -> int:
        """Tick at which ``rpc`` is given up, as far as can be said now: an interval after a RESEND or later."""
        p = self._p
        heard = rpc.heard_tick
        limit = p.timeout_resends_served
        if rpc.is_client or not limit:
            limit = min(MIN_RESENDS, p.timeout_resends)
            end = heard + p.silence_ticks
            inm = rpc.inm
            if inm is None or not inm.forged():
                # A host of which anything is heard is not gone. But it may be a forger's word, or of no use here.
                kept = p.stalled_ticks if rpc.is_client or rpc.state is not OUTGOING else p.keep_response_ticks
                end = max(end, min(rpc.peer.host.heard_tick + p.silence_ticks, heard + kept))
        else:
            end = heard
        return max(end, rpc.resend_tick + p.resend_interval) if rpc.resends >= limit else _NEVER

    def _need_ack(self, rpc: Rpc, tick: int) -> None:
        rpc.resend_tick = tick
        rpc.resends += 1
        if self.trace is not None:
            self.trace.unacknowledged(rpc)
        self._table.keep(rpc)
        peer = rpc.peer
        self._counters.need_acks_sent += 1
        self._outbox.control(peer, homa.NeedAck(self._port, peer.port, rpc.id, rpc.keys.epoch & 0xFF))

    def _give_up(self, rpc: Rpc, tick: int) -> None:
        self._counters.timeouts += 1
        self._table.free(rpc, "given up after silence")
        if rpc.is_client:
            self._counters.failed += 1
            silent = tick - rpc.peer.host.heard_tick >= self._p.silence_ticks
            self._failed.append(Failed(rpc, Reason.TIMEOUT, "" if silent else STALLED))
