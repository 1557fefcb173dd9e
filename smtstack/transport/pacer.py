"""The sender's side of scheduling: shortest remaining first (SRPT), at the rate of the link."""

from __future__ import annotations

import heapq
from math import ceil
from typing import Final

from smtstack.transport.params import TransportParams
from smtstack.transport.rpc import Rpc
from smtstack.transport.states import DEAD
from smtstack.wire.ethernet import FRAME_OVERHEAD, HEADER_LEN

#: Bytes a packet costs a link beside its IP length.
LINK_OVERHEAD: Final = HEADER_LEN + FRAME_OVERHEAD


class Pacer:
    """An estimate of when the NIC runs dry.

    It stands in for the NIC's queue (``homa_outgoing.c:homa_check_nic_queue``): keeping that short is what lets
    a short message overtake a long one.
    """

    __slots__ = ("_idle_at", "_max_queue", "_ns_per_byte")

    def __init__(self, params: TransportParams) -> None:
        # One per cent more than the truth, as the kernel module has it (homa_outgoing_sysctl_changed): an
        # estimate that falls behind the link, by rounding alone, lets the NIC's queue grow while it is busy.
        self._ns_per_byte = 1.01 * 8000 / params.link_mbps
        self._max_queue = params.max_nic_queue_ns
        #: When the link will have sent all that was given to it, in ns.
        self._idle_at = 0

    def account(self, ip_bytes: int, packets: int, now: int) -> None:
        """``packets`` with ``ip_bytes`` in all (IP lengths) went to the NIC."""
        cost = ceil((ip_bytes + packets * LINK_OVERHEAD) * self._ns_per_byte)
        idle = self._idle_at
        self._idle_at = (idle if idle > now else now) + cost

    def ready_at(self) -> int:
        """Time from which paced data may go to the NIC."""
        return self._idle_at - self._max_queue


class SrptQueue:
    """RPCs with data they may send: that with the fewest bytes left goes first, now and then the oldest."""

    __slots__ = ("_fifo_every", "_since_fifo", "heap")

    def __init__(self, params: TransportParams) -> None:
        #: (bytes left, birth, RPC); empty: nothing waits.
        self.heap: list[tuple[int, int, Rpc]] = []
        fraction = params.pacer_fifo_fraction
        #: The oldest message goes first once in so many bytes; 0: never.
        segment = params.max_gso_size or params.mtu
        self._fifo_every = segment * 1000 // fraction if fraction else 0
        self._since_fifo = 0

    def push(self, rpc: Rpc, remaining: int) -> None:
        """``rpc`` has a segment it may send and ``remaining`` bytes in all."""
        if not rpc.queued:
            rpc.queued = True
            heapq.heappush(self.heap, (remaining, rpc.birth, rpc))

    def pop(self) -> Rpc | None:
        """The RPC whose segment goes next: fewest bytes left, or (its FIFO share) the oldest."""
        heap = self.heap
        while heap:
            if self._fifo_every and self._since_fifo >= self._fifo_every and len(heap) > 1:
                self._since_fifo = 0
                index = min(range(len(heap)), key=lambda i: heap[i][1])
                _left, _birth, rpc = heap[index]
                heap[index] = heap[-1]
                heap.pop()
                heapq.heapify(heap)
            else:
                _left, _birth, rpc = heapq.heappop(heap)
            rpc.queued = False
            if rpc.state is not DEAD:
                return rpc
        return None

    def sent(self, size: int) -> None:
        """``size`` paced bytes went to the NIC: the oldest message earns its share of them."""
        self._since_fifo += size
