"""What waits to be sent: control packets, retransmissions, short messages, and paced long ones."""

from __future__ import annotations

from collections import deque
from typing import Final

from smtstack.transport.counters import Counters
from smtstack.transport.message import OutMessage
from smtstack.transport.pacer import Pacer, SrptQueue
from smtstack.transport.params import TransportParams
from smtstack.transport.rpc import Peer, Rpc
from smtstack.transport.segment import Segment
from smtstack.transport.trace import GRANT, Trace
from smtstack.wire import homa, ipv4

_CONTROL_TOS_SHIFT: Final = 5
_pack_data: Final = homa.DATA_HEADER.pack
_TCP_HEADER_LENGTH: Final = homa.TCP_HEADER_LENGTH
_OVERLAY_HEADER_LENGTH: Final = homa.OVERLAY_HEADER_LENGTH
_PLACED: Final = homa.PLACED


class Outbox:
    """Builds segments and says which goes next."""

    __slots__ = ("_control_tos", "_counters", "_extended", "_headers", "_paced", "_pacer", "_port", "_ready",
                 "_srpt", "_throttle", "trace")

    def __init__(self, port: int, fmt: homa.WireFormat, params: TransportParams, counters: Counters) -> None:
        self._port = port
        self._extended = fmt.extended
        #: Bytes of IPv4 and DATA.
        self._headers = ipv4.HEADER_LEN + fmt.data_len
        self._counters = counters
        self._throttle = params.throttle_min_bytes
        self._control_tos = (params.num_priorities - 1) << _CONTROL_TOS_SHIFT
        #: Goes at once: control packets and messages that bypass the pacer.
        self._ready: deque[Segment] = deque()
        #: Retransmissions: before new data, but at the pace of the link.
        self._paced: deque[Segment] = deque()
        #: New data of all other messages.
        self._srpt = SrptQueue(params)
        self._pacer = Pacer(params)
        #: Who is told what waits and what goes.
        self.trace: Trace | None = None

    def control(self, peer: Peer, packet: homa.Control, trailer: bytes = b"") -> None:
        """Queue a control packet (and a trailer: the proof of an ACK), at the highest priority."""
        self._ready.append(Segment(peer.host.ip, self._control_tos, packet.pack(), trailer,
                                   flow=packet.sender_id))

    def queue(self, rpc: Rpc) -> None:
        """Queue what may be sent of ``rpc.out``, which is new, or was granted more."""
        out = rpc.out
        assert out is not None
        if out.length < self._throttle and out.count == 1 and out.sent == 0:
            out.sent = 1
            self._ready.append(self._segment(rpc, out, 0))
        elif out.sendable():
            self._srpt.push(rpc, out.remaining())
        elif self.trace is not None and out.sent < out.count:
            self.trace.blocked(rpc, GRANT)

    def _segment(self, rpc: Rpc, out: OutMessage, index: int) -> Segment:
        peer = rpc.peer
        host = peer.host
        at = out.start(index) if index else 0
        priority = host.unscheduled_priority(out.length) if at < out.unscheduled else out.priority
        if not out.placed:
            at = 0
        size = out.mss if self._extended else 0
        if peer.overlay and out.length > out.mss:
            header = _pack_data(self._port, peer.port, at, size, rpc.keys.wire_epoch, rpc.flags | _PLACED,
                                _OVERLAY_HEADER_LENGTH, homa.DATA, 0, 0, 0, rpc.id, out.length, out.unscheduled,
                                host.cutoff_version, 0, 0)
        else:
            header = _pack_data(self._port, peer.port, 0, size, rpc.keys.wire_epoch, rpc.flags, _TCP_HEADER_LENGTH,
                                homa.DATA, at >> 16, 0, at & 0xFFFF, rpc.id, out.length, out.unscheduled,
                                host.cutoff_version, 0, 0)
        return Segment(host.ip, priority << 5, header, None, out.mss, out, index, rpc.id)

    def retransmit(self, rpc: Rpc, start: int, stop: int, priority: int, tick: int) -> int:
        """Queue every sent packet that overlaps [start, stop) again; how many.

        Each packet once a tick at the most, or forged RESENDs would fill our memory and the link.

        Same bytes as the first time. Each travels alone: its index in the segment is in the header, as
        its IP ID is 0 (paper §4.3, "resend packet offset").
        """
        out = rpc.out
        assert out is not None
        peer = rpc.peer
        size = out.mss if self._extended else 0
        overlay = peer.overlay and out.length > out.mss
        sent = 0
        for index in range(out.sent):
            at = out.start(index)
            if at >= stop:
                break
            if index + 1 < out.count and out.start(index + 1) <= start:
                continue
            payload = out.payload(index)
            told = at if out.placed else 0
            for number, cut in enumerate(range(0, len(payload), out.mss)):
                piece = payload[cut:cut + out.mss]
                a, b = out.packet_range(index, number, len(piece))
                place = index << 16 | number
                if b <= start or a >= stop or out.resent.get(place) == tick:
                    continue
                out.resent[place] = tick
                incoming = min(out.length, max(out.granted, b))
                named = number if out.placed else 0
                if overlay:
                    header = _pack_data(
                        self._port, peer.port, at + cut, size, rpc.keys.wire_epoch, rpc.flags | _PLACED,
                        _OVERLAY_HEADER_LENGTH, homa.DATA, 0, 0, 0, rpc.id, out.length, incoming,
                        peer.host.cutoff_version, 1, 0)
                else:
                    header = _pack_data(
                        self._port, peer.port, 0, size, rpc.keys.wire_epoch, rpc.flags, _TCP_HEADER_LENGTH,
                        homa.DATA, told >> 16, 0, told & 0xFFFF, rpc.id, out.length, incoming,
                        peer.host.cutoff_version, 1, named)
                self._paced.append(Segment(peer.host.ip, priority << 5, header, piece, out.mss,
                                           flow=rpc.id))
                sent += 1
        self._counters.packets_resent += sent
        return sent

    def poll(self, now: int) -> Segment | None:
        """The segment to hand to the driver now, or None: nothing, or the pacer says wait."""
        out: list[Segment] = []
        self.drain(now, out, one=True)
        return out[0] if out else None

    def drain(self, now: int, out: list[Segment], one: bool = False) -> None:
        """Append what :meth:`poll` gives until it gives nothing; ``one``: only the first."""
        pacer = self._pacer
        ready = self._ready
        trace = self.trace
        while ready:
            segment = ready.popleft()
            message = segment.message
            if message is None:
                size = len(segment.payload or b"")
            else:
                # One packet: its length is the message's, but for the record of profile linux.
                size = message.length if self._extended else message.wire_size(0)
            pacer.account(ipv4.HEADER_LEN + len(segment.header) + size, 1, now)
            if trace is not None:
                trace.sent(segment)
            out.append(segment)
            if one:
                return
        srpt = self._srpt
        while (self._paced or srpt.heap) and now >= pacer.ready_at():
            paced = self._next_paced(now)
            if paced is None:
                return
            out.append(paced)
            if one:
                return
        if trace is not None:
            trace.paced(pacer, srpt)

    def _next_paced(self, now: int) -> Segment | None:
        """What goes next at the pace of the link."""
        pacer = self._pacer
        srpt = self._srpt
        if self._paced:
            segment = self._paced.popleft()
            payload = segment.payload
            pacer.account(self._headers + (len(payload) if payload else 0), 1, now)
            if self.trace is not None:
                self.trace.sent(segment)
            return segment
        rpc = srpt.pop()
        while rpc is not None and (rpc.out is None or not rpc.out.sendable()):
            rpc = srpt.pop()
        if rpc is None:
            return None
        out = rpc.out
        assert out is not None
        index = out.sent
        segment = self._segment(rpc, out, index)
        out.sent = index + 1
        size = out.wire_size(index)
        packets = -(-size // out.mss)
        pacer.account(size + packets * self._headers, packets, now)
        srpt.sent(size)
        if self.trace is not None:
            self.trace.sent(segment)
        if out.sendable():
            srpt.push(rpc, out.remaining())
        elif self.trace is not None and out.sent < out.count:
            self.trace.blocked(rpc, GRANT)
        return segment

    def wake_at(self) -> int | None:
        """When :meth:`poll` should be called again though nothing happened; None: never."""
        if self._ready:
            return 0
        if self._paced or self._srpt.heap:
            return self._pacer.ready_at()
        return None

    def idle(self) -> bool:
        """Nothing waits."""
        return not self._ready and not self._paced and not self._srpt.heap
