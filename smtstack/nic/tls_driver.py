"""The driver half of TLS transmit offload: host software that knows the flows, and keeps the device in step.

For each packet it decides, in this order: nothing to protect; no context here (the flow's policy); in sequence;
out of sequence. Then the device gets its state back by the bytes of the record before the packet (``dump``), or
software seals until the application tells where the next record begins (``next_record``). What cannot be sealed is
dropped. Nothing leaves in clear, but by the policy ``none``, which is there to show that this is found.
"""

from __future__ import annotations

from typing import Final

from smtstack.crypto.stream_gcm import MAX_RECORD
from smtstack.nic import tls_fallback
from smtstack.nic.counters import NicCounters
from smtstack.nic.record_map import RecordMapReader
from smtstack.nic.tls_descriptors import Dump, DumpDone, Fence, SetProgress, SetStatic, TcpSend
from smtstack.nic.tls_flow import FREEBSD, LINUX, NEXT_RECORD, TxFlow
from smtstack.nic.tls_tx import TlsTxDevice
from smtstack.wire import tcp
from smtstack.wire.tcp import TcpPacket, distance

#: A jump ahead by less is a packet lost inside of the host; anything else is a retransmission (nfp).
_AHEAD: Final = 1 << 30
# What a packet's bytes are, where a map has sealed records.
_PLAIN, _SEALED, _MIXED, _GONE = range(4)


class TxState:
    """What the driver remembers of a flow."""

    __slots__ = ("answer", "context", "expected", "flow", "furthest", "number", "records")

    def __init__(self, flow: TxFlow) -> None:
        self.flow = flow
        self.records = RecordMapReader(flow.records)
        #: Of the device; 0: none.
        self.context = 0
        #: TCP sequence number with which the device goes on; -1: it is still to be told.
        self.expected = -1
        #: Record number that was last given to the device; -1: none was.
        self.number = -1
        #: Behind the last byte that was ever sent; -1: none was.
        self.furthest = -1
        #: Which answer to a question for the next record is awaited; 0: none.
        self.answer = 0


class TlsTxDriver:
    """Posts the packets of a host to a :class:`~smtstack.nic.tls_tx.TlsTxDevice`."""

    def __init__(self, device: TlsTxDevice, counters: NicCounters, number: int, mtu: int) -> None:
        self._device = device
        self._counters = counters
        self._number = number
        #: Bytes of the longest DUMP.
        self.mtu = mtu
        self.flows: dict[bytes, TxState] = {}

    def transmit(self, queue: int, frame: bytes, packet: TcpPacket, gso_size: int, marked: bool) -> bool:
        """Post what becomes of a packet, or drop it; False: the ring has no room, try it again later.

        ``marked``: it comes from a socket whose stream holds plaintext. If its flow is not known it is dropped.
        """
        device = self._device
        # Parameters, fence, a record in pieces, the packet: room for all of it, or none is taken.
        if device.space(queue) < 4 + -(-MAX_RECORD // self.mtu):
            self._counters.tx_queue_stopped += 1
            return False
        payload = frame[packet.payload_at:packet.end]
        state = self.flows.get(packet.flow)
        if not payload or (state is None and not marked):
            device.post(queue, TcpSend(frame, packet, payload, gso_size))
            return True
        if state is None:
            return self._drop_bypass()
        records = state.records
        seq = packet.seq
        context = state.context
        if context and seq == state.expected and records.owner == self._number and not records.sealed \
                and not records.aborted:
            self._count(state, seq, len(payload))
            state.expected = tcp.advance(seq, len(payload))
            device.post(queue, TcpSend(frame, packet, payload, gso_size, context))
            return True
        return self._slow(queue, state, frame, packet, payload, gso_size)

    def _slow(self, queue: int, state: TxState, frame: bytes, packet: TcpPacket, payload: bytes,
              gso_size: int) -> bool:
        counters = self._counters
        records = state.records
        seq, size = packet.seq, len(payload)
        if records.aborted:
            return self._drop_bypass()
        if records.before_records(seq, size):
            counters.tx_tls_skip_no_sync_data += 1
            self._device.post(queue, TcpSend(frame, packet, payload, gso_size))
            return True
        what = self._look(records, seq, size) if records.sealed else _PLAIN
        if what == _SEALED:
            self._count(state, seq, size)
            self._device.post(queue, TcpSend(frame, packet, payload, gso_size))
            return True
        if what == _GONE:
            return self._drop_no_data()
        context = state.context
        if not context or records.owner != self._number:
            policy = state.flow.policy
            if policy == FREEBSD:
                # EAGAIN: whoever gives the flow a context here clears it.
                records.reset_pending = True
                return self._drop_bypass()
            if policy == LINUX:
                return self._software(queue, state, frame, packet, payload, gso_size)
            self._device.post(queue, TcpSend(frame, packet, payload, gso_size))
            return True
        if what == _MIXED or records.straddles_start(seq, size):
            return self._software(queue, state, frame, packet, payload, gso_size)
        if state.number < 0 and not state.answer:
            if seq == records.start_seq and not records.released:
                self._synchronise(queue, state, seq, records.first_number)
            elif state.flow.resync == NEXT_RECORD:
                # The context came when the stream was under way.
                self._ask(state)
        if state.answer:
            self._take_answer(queue, state)
        if seq != state.expected or state.answer:
            if state.flow.resync == NEXT_RECORD:
                return self._until_next_record(queue, state, frame, packet, payload, gso_size)
            if not self._rebuild(queue, state, seq):
                return self._drop_no_data()
        self._count(state, seq, size)
        state.expected = tcp.advance(seq, size)
        self._device.post(queue, TcpSend(frame, packet, payload, gso_size, context))
        return True

    def _look(self, records: RecordMapReader, seq: int, size: int) -> int:
        """What the bytes of a packet are: plaintext, sealed by software, both, or of released records."""
        at = records.straddles_start(seq, size)
        kinds = set()
        while at < size:
            here = tcp.advance(seq, at)
            record = records.lookup(here)
            if record is None:
                return _GONE
            kinds.add(record.sealed)
            at += record.length - distance(record.start, here)
        return _MIXED if len(kinds) > 1 else _SEALED if True in kinds else _PLAIN

    def _synchronise(self, queue: int, state: TxState, seq: int, number: int) -> None:
        """Have the device begin record ``number`` at ``seq``; it gets keys and number only if that is another."""
        device, context = self._device, state.context
        if number != state.number:
            device.post(queue, SetStatic(context, state.flow.keys, number))
            state.number = number
        device.post(queue, SetProgress(context, seq))
        device.post(queue, Fence())
        state.expected = seq

    def _rebuild(self, queue: int, state: TxState, seq: int) -> bool:
        """Give the device the record's bytes before ``seq``; False: they are gone, or never were."""
        records = state.records
        record = records.lookup(seq)
        if record is None:
            return False
        size = distance(record.start, seq)
        before = records.read(record, size)
        if before is None:
            return False
        self._synchronise(queue, state, record.start, record.number)
        for at in range(0, size, self.mtu):
            self._device.post(queue, Dump(state.context, before[at:at + self.mtu]))
        self._counters.tx_tls_ooo += 1
        self._counters.tx_tls_resync_bytes += size
        return True

    def _until_next_record(self, queue: int, state: TxState, frame: bytes, packet: TcpPacket, payload: bytes,
                           gso_size: int) -> bool:
        """Out of sequence: by software, and if packets are missing ask where the next record begins."""
        if not state.answer and 0 <= distance(state.expected, packet.seq) < _AHEAD:
            self._ask(state)
        return self._software(queue, state, frame, packet, payload, gso_size)

    def _ask(self, state: TxState) -> None:
        """Ask where the next record begins; nothing is in sequence until the answer is there."""
        self._counters.tx_tls_ooo += 1
        state.answer = state.records.ask_sync()
        state.expected = -1

    def _take_answer(self, queue: int, state: TxState) -> None:
        answer = state.records.sync_answer(state.answer)
        if answer is not None:
            state.answer = 0
            self._synchronise(queue, state, answer[0], answer[1])

    def _software(self, queue: int, state: TxState, frame: bytes, packet: TcpPacket, payload: bytes,
                  gso_size: int) -> bool:
        sealed = tls_fallback.seal(state.records, state.flow.keys, packet.seq, payload)
        if sealed is None:
            self._counters.tx_tls_no_fallback += 1
            self._counters.tx_dropped += 1
            return True
        self._counters.tx_tls_fallback += 1
        self._count(state, packet.seq, len(payload))
        self._device.post(queue, TcpSend(frame, packet, sealed, gso_size))
        return True

    def _drop_bypass(self) -> bool:
        self._counters.tx_tls_drop_bypass_req += 1
        self._counters.tx_dropped += 1
        return True

    def _drop_no_data(self) -> bool:
        self._counters.tx_tls_drop_no_sync_data += 1
        self._counters.tx_dropped += 1
        return True

    @staticmethod
    def _count(state: TxState, seq: int, size: int) -> None:
        """Bytes sent for the first time, and sent again: what decides whether offload is worth it (FreeBSD)."""
        end = tcp.advance(seq, size)
        new = size if state.furthest < 0 else min(max(distance(state.furthest, end), 0), size)
        if new:
            state.furthest = end
        state.records.count(new, size - new)

    def completed(self) -> None:
        """Look at what the device has done."""
        counters = self._counters
        for completion in self._device.completions:
            if isinstance(completion, DumpDone):
                counters.tx_tls_dump_packets += 1
                counters.tx_tls_dump_bytes += completion.length
        self._device.completions.clear()
