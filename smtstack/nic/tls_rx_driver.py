"""The driver half of TLS receive offload: marks for the application, and its questions and answers about records.

A packet is marked before it is passed up. What the device cannot do, or there is no room to mark, is passed up as
it came: never dropped, and never something else.
"""

from __future__ import annotations

from smtstack.errors import BadPacket
from smtstack.nic.counters import NicCounters
from smtstack.nic.marks import MarkWriter
from smtstack.nic.tls_flow import ASYNC, SCAN, RxFlow
from smtstack.nic.tls_rx import TRACKING, TlsRxContext
from smtstack.wire import tcp


class RxState:
    """What the driver remembers of a flow."""

    __slots__ = ("begun", "context", "flow", "marks")

    def __init__(self, flow: RxFlow) -> None:
        self.flow = flow
        self.marks = MarkWriter(flow.marks)
        #: Of the device; None: software opens all records.
        self.context: TlsRxContext | None = None
        #: An asynchronous resync has begun: the device is to be asked where it stands.
        self.begun = False


class TlsRxDriver:
    """Passes packets of known flows through their contexts."""

    def __init__(self, counters: NicCounters) -> None:
        self._counters = counters
        self.flows: dict[bytes, RxState] = {}
        self._contexts = 0

    def contexts(self) -> int:
        """Contexts in use."""
        return self._contexts

    def has_context(self, flow: bytes) -> bool:
        """Whether the device decrypts this flow."""
        state = self.flows.get(flow)
        return state is not None and state.context is not None

    def add(self, flow: RxFlow, context: bool) -> bool:
        """Know a flow, with a context or without; whether it has one. One that comes later has to find records."""
        state = self.flows.get(flow.flow)
        if state is not None and state.flow is not flow:
            self.remove(flow.flow)
            state = None
        fresh = state is None
        if state is None:
            state = self.flows[flow.flow] = RxState(flow)
        if context and state.context is None:
            state.context = TlsRxContext(flow.keys, flow.seq, flow.number, flow.resync in (SCAN, ASYNC))
            if not fresh:
                state.context.lose_track()
            self._contexts += 1
            self._counters.rx_tls_ctx += 1
        elif not context:
            self._take_context(state)
        return state.context is not None

    def remove(self, flow: bytes) -> None:
        """Forget a flow, if it is known."""
        state = self.flows.pop(flow, None)
        if state is not None:
            self._take_context(state)
            state.marks.close()

    def reset(self) -> None:
        """All contexts are lost."""
        for state in self.flows.values():
            self._take_context(state)

    def _take_context(self, state: RxState) -> None:
        if state.context is not None:
            state.context = None
            state.begun = False
            self._contexts -= 1
            self._counters.rx_tls_del += 1

    def receive_untrusted(self, frame: bytes, needs_csum: bool = False) -> bytes:
        """The frame to pass up, marked if it is of a flow; others as they are. Raises nothing.

        ``needs_csum``: its checksum was right, and is not there any more."""
        try:
            packet = tcp.parse_untrusted(frame)
        except BadPacket:
            return frame
        state = self.flows.get(packet.flow)
        size = packet.length
        # Where the checksum is wrong, the kernel will say so.
        if state is None or not size or not (needs_csum or tcp.checksum_ok(frame, packet)):
            return frame
        context = state.context
        seq = packet.seq
        plain = None
        if context is not None:
            if not context.in_step:
                self._take_answer(state, context)
            errors = context.errors
            plain = context.receive_untrusted(seq, frame[packet.payload_at:packet.end])
            self._counters.rx_tls_err += context.errors - errors
            if state.begun:
                self._finish(state, context)
            if context.asks:
                self._ask(state, context, seq, size)
        if plain is None:
            state.marks.log(seq, size, False)
            return frame
        if not state.marks.log(seq, size, True):
            state.marks.log(seq, size, False)
            return frame
        self._counters.rx_tls_decrypted_packets += 1
        self._counters.rx_tls_decrypted_bytes += size
        if needs_csum:
            return b"".join((frame[:packet.payload_at], plain, frame[packet.end:]))
        return tcp.replace_payload(frame, packet, plain)

    def _ask(self, state: RxState, context: TlsRxContext, seq: int, size: int) -> None:
        context.asks = False
        if state.flow.resync == SCAN:
            self._counters.rx_tls_resync_req_pkt += 1
            state.marks.ask(context.base)
        elif state.flow.resync == ASYNC:
            self._counters.rx_tls_resync_req_pkt += 1
            self._counters.rx_tls_resync_req_start += 1
            state.marks.ask_later(seq, size)
            state.begun = True

    def _finish(self, state: RxState, context: TlsRxContext) -> None:
        """The device was asked for its progress with the packet before; here is the answer."""
        state.begun = False
        if context.tracker == TRACKING and not context.authenticates and context.base >= 0:
            self._counters.rx_tls_resync_req_end += 1
            # It stands for what it asks now, too.
            context.asks = False
            state.marks.ask(context.base)
        else:
            self._counters.rx_tls_resync_req_skip += 1

    def _take_answer(self, state: RxState, context: TlsRxContext) -> None:
        answer = state.marks.answer()
        if answer is None:
            return
        if context.answer(answer[0], answer[1]):
            self._counters.rx_tls_resync_res_ok += 1
        else:
            self._counters.rx_tls_resync_res_skip += 1
