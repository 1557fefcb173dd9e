"""Sessions that come and go under RPCs: what waits for one, what came too early for one, what ends with one.

Where a :class:`~smtstack.transport.negotiation.Negotiator` makes the sessions, a peer goes this way::

    unknown --request--> pending, RPCs wait --install(early)--> pending, RPCs send --install--> ready
    pending --refuse--> unknown            ready --end, or another install--> unknown, or ready anew

No packet moves a peer along it, only the negotiator does. What arrives from a peer that is not ready is held.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from smtstack.crypto.epochs import Session
from smtstack.errors import LocalError
from smtstack.transport.counters import Counters
from smtstack.transport.events import Event, Failed, Reason
from smtstack.transport.held import HeldFrames
from smtstack.transport.outbox import Outbox
from smtstack.transport.profile import Profile
from smtstack.transport.rpc import Peer, Rpc
from smtstack.transport.table import RpcTable
from smtstack.transport.trace import Trace
from smtstack.wire.naming import peer_key


class SessionChanges:
    """What an endpoint does when a session with a peer is wanted, begins, is refused or ends."""

    __slots__ = ("_counters", "_events", "_outbox", "_profile", "_table", "held", "trace")

    def __init__(self, profile: Profile[Any], table: RpcTable, outbox: Outbox, counters: Counters,
                 events: deque[Event]) -> None:
        self._profile = profile
        self._table = table
        self._outbox = outbox
        self._counters = counters
        self._events = events
        self.held = HeldFrames(profile.params, counters)
        #: Who is told that a message no longer waits for a session.
        self.trace: Trace | None = None

    def wait(self, ip: int, port: int, data: bytes, cookie: object) -> tuple[Rpc, bool]:
        """A request to a peer that is not ready; True: the first, so somebody has to make a session."""
        table = self._table
        pending = table.pending.get(peer_key(ip, port))
        first = pending is None
        if pending is None:
            pending = table.await_session(ip, port)
        rpc = table.waiting_rpc(pending, data)
        rpc.cookie = cookie
        return rpc, first

    def install(self, ip: int, port: int, session: Session, max_message: int, mtu: int, overlay: bool, early: bool,
                tick: int) -> None:
        """:meth:`Endpoint.install <smtstack.transport.endpoint.Endpoint.install>`, but for what was held."""
        table = self._table
        params = self._profile.params
        limits = min(max_message, params.max_message_length), min(mtu, params.mtu)
        key = peer_key(ip, port)
        old = table.peers.get(key)
        if old is not None:
            if old.session is session:
                old.limit(*limits)
                return
            self._fail(table.end(old), Reason.SESSION_ENDED, "another took its place")
        pending = table.pending.get(key) or table.await_session(ip, port)
        peer = pending.peer
        if peer.early and peer.session is not session:
            # What was sent under the other may have been executed: it must not be sent again.
            for rpc in list(peer.rpcs.values()):
                table.free(rpc, "its session is over")
                self._fail([rpc], Reason.SESSION_ENDED, "another took its place")
            peer.session.end()
            peer.acks.clear()
        session.outlive(self._profile.params.silence_ticks)
        peer.session = session
        peer.early = early
        peer.overlay = overlay
        peer.limit(*limits)
        if not early:
            del table.pending[key]
            table.peers[key] = peer
            peer.proven = True
            for rpc in peer.rpcs.values():
                # Only now it makes sense to ask for answers.
                rpc.heard_tick = tick
                rpc.resends = 0
                table.timers.arm(rpc, tick + params.resend_ticks)
        waiting = pending.waiting
        pending.waiting = {}
        for rpc, data in waiting.items():
            self._start(rpc, data, tick)
            if rpc.out is not None:
                table.timers.arm(rpc, tick + params.resend_ticks)

    def _start(self, rpc: Rpc, data: bytes, tick: int) -> None:
        peer = rpc.peer
        try:
            if len(data) > peer.max_message:
                raise peer.bad_length(len(data))
            self._table.begin(rpc, tick)
            rpc.out = self._profile.outgoing(rpc, peer.session, data)
        except LocalError as e:
            self._table.free(rpc, "its message cannot be made")
            self._fail([rpc], Reason.NOT_SENT, str(e))
            return
        self._counters.requests_sent += 1
        if self.trace is not None:
            self.trace.queued(rpc, rpc.out)
        self._outbox.queue(rpc)

    def refuse(self, key: int, detail: str) -> None:
        """There will be no session: whoever waits, or sent 0-RTT data, fails."""
        self._counters.frames_held_dropped += len(self.held.take(key))
        if key in self._table.pending:
            self._fail(self._table.close(key), Reason.NO_SESSION, detail)

    def end(self, key: int, detail: str) -> None:
        """A ready session is over."""
        peer = self._table.peers.get(key)
        if peer is not None:
            self._fail(self._table.end(peer), Reason.SESSION_ENDED, detail)

    def _fail(self, rpcs: list[Rpc], reason: Reason, detail: str) -> None:
        self._counters.failed += len(rpcs)
        self._events.extend(Failed(rpc, reason, detail) for rpc in rpcs)

    def is_current(self, peer: Peer) -> bool:
        """Whether ``peer`` is ready, and not one that another took the place of."""
        return self._table.peers.get(peer.key) is peer
