"""The receiver's side of scheduling: who may send how much, at which priority (Homa §3.3-3.5)."""

from __future__ import annotations

from bisect import bisect_left, insort

from smtstack.transport.message import InMessage
from smtstack.transport.params import TransportParams
from smtstack.transport.rpc import Rpc


class Grant:
    """One decision: ``rpc`` may send up to ``offset`` at ``priority``."""

    __slots__ = ("offset", "priority", "rpc")

    def __init__(self, rpc: Rpc, offset: int, priority: int) -> None:
        self.rpc = rpc
        self.offset = offset
        self.priority = priority


class GrantScheduler:
    """SRPT at the receiver: incoming messages that are not granted to their end, fewest bytes remaining first.

    ``homa_incoming.c:homa_choose_rpcs_to_grant`` and ``homa_create_grants``; parameters by the same names.
    """

    __slots__ = ("_fifo_granted", "_fifo_priority", "_increment", "_list", "_p", "_rpcs", "_touched", "_window",
                 "dirty", "total_incoming")

    def __init__(self, params: TransportParams) -> None:
        self._p = params
        self._window = params.window or params.unsched_bytes
        self._increment = min(params.grant_increment, self._window // 2, params.max_incoming // 2)
        #: Sorted (remaining, birth); the RPCs by the same key.
        self._list: list[tuple[int, int]] = []
        self._rpcs: dict[tuple[int, int], Rpc] = {}
        #: RPCs to count anew before the next decision.
        self._touched: dict[Rpc, None] = {}
        #: Bytes granted or unscheduled and not yet received, but for those.
        self.total_incoming = 0
        self._fifo_granted = 0
        self._fifo_priority = params.max_sched_prio
        #: Something changed since the last decision.
        self.dirty = False

    def __len__(self) -> int:
        return len(self._list)

    def touch(self, rpc: Rpc) -> None:
        """:meth:`update` before the next decision: once for many packets."""
        self._touched[rpc] = None
        self.dirty = True

    def update(self, rpc: Rpc) -> None:
        """``rpc``'s message grew or was granted more: count it anew and put it where it belongs."""
        inm = rpc.inm
        assert inm is not None
        pending = inm.granted - inm.received
        pending = max(pending, 0)
        if inm.granted < inm.length:
            self._place(rpc, inm, pending, (inm.length - inm.received, rpc.birth))
        elif inm.grant_key is not None:
            self._place(rpc, inm, pending, None)
        else:
            self.total_incoming += pending - inm.pending
            inm.pending = pending
            # Room in the budget: for others.
            self.dirty = True

    def remove(self, rpc: Rpc) -> None:
        """``rpc``'s message is complete or given up."""
        assert rpc.inm is not None
        self._place(rpc, rpc.inm, 0, None)

    def _place(self, rpc: Rpc, inm: InMessage, pending: int, new: tuple[int, int] | None) -> None:
        self.total_incoming += pending - inm.pending
        inm.pending = pending
        self.dirty = True
        old = inm.grant_key
        if old == new:
            return
        if old is not None:
            del self._list[bisect_left(self._list, old)]
            del self._rpcs[old]
        if new is not None:
            insort(self._list, new)
            self._rpcs[new] = rpc
        inm.grant_key = new

    def decide(self) -> list[Grant]:
        """Grants to send now; empty when the budget or the overcommitment is used up."""
        p = self._p
        for rpc in self._touched:
            if rpc.inm is not None:
                self.update(rpc)
        self._touched.clear()
        self.dirty = False
        budget = p.max_incoming - self.total_incoming
        if budget <= 0 or not self._list:
            return []
        chosen = self._choose()
        out: list[Grant] = []
        # Few messages use the lowest levels, so that a newcomer with less left finds a higher one free.
        shift = max(0, p.max_sched_prio + 1 - len(chosen))
        for rank, rpc in enumerate(chosen):
            inm = rpc.inm
            assert inm is not None
            offset = min(inm.length, inm.received + self._window, inm.granted + budget)
            step = offset - inm.granted
            # A small step can wait: more is under way than it adds, and what arrives of that brings us here again.
            if step <= 0 or (step < self._increment and offset < inm.length):
                continue
            budget -= step
            out.append(self._grant(rpc, offset, max(0, p.max_sched_prio - rank - shift)))
            if budget <= 0:
                break
        out += self._pity()
        # Granting changed the order, but not what is to be granted.
        self.dirty = False
        return out

    def _choose(self) -> list[Rpc]:
        p = self._p
        chosen: list[Rpc] = []
        per_host: dict[int, int] = {}
        for key in self._list:
            rpc = self._rpcs[key]
            ip = rpc.peer.host.ip
            held = per_host.get(ip, 0)
            if held >= p.max_rpcs_per_peer:
                continue
            per_host[ip] = held + 1
            chosen.append(rpc)
            if len(chosen) >= p.max_overcommit:
                break
        return chosen

    def _grant(self, rpc: Rpc, offset: int, priority: int) -> Grant:
        inm = rpc.inm
        assert inm is not None
        self._fifo_granted += offset - inm.granted
        inm.granted = offset
        self.update(rpc)
        return Grant(rpc, offset, priority)

    def _pity(self) -> list[Grant]:
        # SRPT alone starves the longest message at high load (homa_incoming.c:homa_grant_fifo).
        p = self._p
        if not p.grant_fifo_fraction or not self._list:
            return []
        if self._fifo_granted < p.fifo_grant_increment * 1000 // p.grant_fifo_fraction:
            return []
        self._fifo_granted = 0
        oldest = self._rpcs[min(self._list, key=lambda k: k[1])]
        inm = oldest.inm
        assert inm is not None
        offset = min(inm.length, inm.granted + p.fifo_grant_increment)
        return [self._grant(oldest, offset, self._fifo_priority)] if offset > inm.granted else []
