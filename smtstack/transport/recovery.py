"""Loss recovery and the end of RPCs: what is missing is asked for, who is silent too long is given up."""

from __future__ import annotations

from typing import Final

from smtstack.transport.counters import Counters
from smtstack.transport.events import Failed, Reason
from smtstack.transport.message import InMessage
from smtstack.transport.outbox import Outbox
from smtstack.transport.params import MIN_RESENDS, TransportParams
from smtstack.transport.rpc import Rpc
from smtstack.transport.states import DEAD, IN_SERVICE, OUTGOING
from smtstack.transport.table import RpcTable
from smtstack.transport.trace import Trace
from smtstack.wire import homa

#: What is asked for when nothing of a message is there (homa_timer.c:homa_check_rpc asks for 100 bytes).
PROBE_LENGTH: Final = 100
#: RESENDs without progress after which bytes that have not authenticated are no longer believed: late
#: enough that loss alone hardly ever costs what has arrived, early enough to get it all once more.
DOUBT_RESENDS: Final = 3
#: Ranges one round of RESENDs asks for; the rest waits for the next.
MAX_RESEND_RANGES: Final = 16
#: What more there is to say of an RPC whose host is not silent.
STALLED: Final = "its host lives, but with this RPC it gets no further"
_NEVER: Final = 1 << 60


class Recovery:
    """Reacts to silence, and to bytes that were for nothing: RESEND, NEED_ACK, time-outs."""

    __slots__ = ("_counters", "_failed", "_outbox", "_p", "_port", "_ranges", "_silence", "_table", "trace")

    def __init__(self, port: int, params: TransportParams, table: RpcTable, outbox: Outbox, counters: Counters,
                 failed: list[Failed]) -> None:
        self._port = port
        self._p = params
        self._table = table
        self._outbox = outbox
        self._counters = counters
        #: RPCs of ours that failed, for the endpoint to report.
        self._failed = failed
        #: Ticks after which a host counts as silent, and ranges that one round asks for.
        self._silence = params.silence_ticks
        self._ranges = MAX_RESEND_RANGES
        #: Who is told of doubts and of what is sent again.
        self.trace: Trace | None = None

    def ask_again(self, rpc: Rpc, ranges: list[tuple[int, int]], tick: int, why: str) -> None:
        """RESEND for these (offset, length) ranges, unless the last was less than an interval ago.

        ``why`` is for a trace.
        """
        if tick - rpc.resend_tick < self._gap(rpc):
            return
        rpc.resend_tick = tick
        rpc.resends += 1
        if self.trace is not None:
            self.trace.doubted(rpc, ranges[:self._ranges], why)
        peer = rpc.peer
        priority = self._p.num_priorities - 1
        for offset, length in ranges[:self._ranges]:
            self._counters.resends_sent += 1
            self._outbox.control(peer, homa.Resend(self._port, peer.port, rpc.id, offset, length, priority,
                                                   rpc.keys.wire_epoch))

    @staticmethod
    def _missing(rpc: Rpc) -> list[tuple[int, int]]:
        """Ranges to ask for; all of a message of which nothing is here."""
        if rpc.inm is None or not rpc.inm.received:
            return [(0, PROBE_LENGTH)]
        return rpc.inm.missing()

    def discarded(self, rpc: Rpc, inm: InMessage, tick: int) -> None:
        """Records of ``rpc`` did not authenticate: ask for their bytes at once, if we did not just ask."""
        self.ask_again(rpc, inm.discarded, tick, "not authentic")
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
            rpc.alive(tick)
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
            self.ask_again(rpc, [(0, 0)], tick, "silence while the response waits for grants")
        else:
            self.ask_again(rpc, missing, tick, "silence")
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
        self._outbox.control(peer, homa.NeedAck(self._port, peer.port, rpc.id, rpc.keys.wire_epoch))

    def _give_up(self, rpc: Rpc, tick: int) -> None:
        self._counters.timeouts += 1
        self._table.free(rpc, "given up after silence")
        if rpc.is_client:
            self._counters.failed += 1
            silent = tick - rpc.peer.host.heard_tick >= self._silence
            self._failed.append(Failed(rpc, Reason.TIMEOUT, "" if silent else STALLED))
